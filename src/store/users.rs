//! Looking up users, deleting them, and changing their addresses.

use uuid::Uuid;

use super::{
    Store, StoreError,
    accounts::{active_ids, email_of},
    locks, sessions, sign_in,
    sql::{access::FIND_USER, accounts as sql},
    tx::Tx,
};
use crate::domain::{Caller, ChallengeId, DeviceId, Email, Refusal, Timestamp, UserId};

/// An account that was deleted.
pub struct DeletedAccount {
    /// Its address.
    pub email: Email,
    /// Its devices that were active.
    pub devices: Vec<DeviceId>,
}

/// Gives the user a new address, and returns the old one. A refusal is a value, because the caller still commits.
///
/// # Errors
/// [`StoreError::Conflict`] if a parallel transaction takes the address
pub(super) async fn set_address(
    tx: &mut Tx<'_>,
    user: UserId,
    new: &Email,
) -> Result<Result<Email, Refusal>, StoreError> {
    let old = email_of(tx, user).await?;
    let owner: Option<(Uuid,)> = tx.query(sql::USER_BY_EMAIL).bind(new.as_str()).fetch_optional().await?;
    match owner {
        Some((owner,)) if owner == user.0 => {}
        Some(_) => return Ok(Err(Refusal::EmailTaken)),
        None => {
            let changed = tx.query(sql::CHANGE_EMAIL).bind(user.0).bind(new.as_str()).execute().await;
            changed.map_err(|error| match error {
                StoreError::Data(error) => StoreError::Conflict(error),
                other => other,
            })?;
        }
    }
    Ok(Ok(old))
}

impl Store {
    /// The user with this address, if there is one. For answers to strangers, use [`Self::find_user`].
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn user_by_email(&self, email: &Email) -> Result<Option<UserId>, StoreError> {
        let row: Option<(Uuid,)> =
            self.read().await?.query(sql::USER_BY_EMAIL).bind(email.as_str()).fetch_optional().await?;
        Ok(row.map(|(id,)| UserId(id)))
    }

    /// The user with this address, unless it refuses strangers and is not the caller's own.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn find_user(&self, caller: &Caller, email: &Email) -> Result<Option<UserId>, StoreError> {
        let row: Option<(Uuid,)> =
            self.read().await?.query(FIND_USER).bind(email.as_str()).bind(caller.user.0).fetch_optional().await?;
        Ok(row.map(|(id,)| UserId(id)))
    }

    /// Checks that the caller may delete the account or change its address, before a code is looked at. Returns the
    /// address.
    ///
    /// # Errors
    /// `session_revoked`, `device_too_new`
    pub async fn account_to_change(&self, caller: &Caller, now: Timestamp) -> Result<Email, StoreError> {
        let mut tx = self.read().await?;
        sessions::authorize(&mut tx, caller, now).await?;
        self.require_old_enough(&mut tx, caller, now).await?;
        email_of(&mut tx, caller.user).await
    }

    /// Uses up a correct code and gives the caller's user a new address. Returns the old one, which is the same if the
    /// user had the address already. If another user has it, the attempt is refunded and the code stays usable.
    ///
    /// # Errors
    /// `session_revoked`, `device_too_new`, `email_taken`; `invalid_code` if the code was used in the meantime
    pub async fn change_email(
        &self,
        caller: &Caller,
        challenge: ChallengeId,
        new: &Email,
        now: Timestamp,
    ) -> Result<Email, StoreError> {
        let changed = self.retrying(|| async {
            let mut tx = self.begin().await?;
            sign_in::use_challenge(&mut tx, challenge).await?;
            locks::user(&mut tx, caller.user).await?;
            sessions::authorize(&mut tx, caller, now).await?;
            self.require_old_enough(&mut tx, caller, now).await?;
            let changed = set_address(&mut tx, caller.user, new).await?;
            if changed.is_err() {
                // The refund has to be committed, so the refusal leaves the transaction as a value.
                sign_in::refund(&mut tx, challenge).await?;
            }
            tx.commit().await?;
            Ok(changed)
        });
        Ok(changed.await??)
    }

    /// Uses up a correct code and deletes the caller's user and everything that belongs to it, except the hashes of its
    /// tokens with the reason for which they are invalid.
    ///
    /// The mailboxes of active devices are emptied first, in small transactions of their own.
    ///
    /// # Errors
    /// `session_revoked`, `device_too_new`; `invalid_code` if the code was used in the meantime
    pub async fn delete_account(
        &self,
        caller: &Caller,
        challenge: ChallengeId,
        now: Timestamp,
    ) -> Result<DeletedAccount, StoreError> {
        let mut tx = self.read().await?;
        sessions::authorize(&mut tx, caller, now).await?;
        // Checked here too, because mailboxes are emptied before the transaction.
        self.require_old_enough(&mut tx, caller, now).await?;
        let active = active_ids(&mut tx, caller.user).await?;
        drop(tx);
        self.empty_mailboxes(&active).await?;
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            sign_in::use_challenge(&mut tx, challenge).await?;
            locks::user(&mut tx, caller.user).await?;
            sessions::authorize(&mut tx, caller, now).await?;
            self.require_old_enough(&mut tx, caller, now).await?;
            let email = email_of(&mut tx, caller.user).await?;
            let devices = active_ids(&mut tx, caller.user).await?;
            locks::mailboxes_of(&mut tx, caller.user).await?;
            sessions::record_deletion(&mut tx, caller.user, now).await?;
            tx.query(sql::DELETE_USER).bind(caller.user.0).execute().await?;
            tx.commit().await?;
            Ok(DeletedAccount { email, devices })
        })
        .await
    }
}
