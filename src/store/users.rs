//! Looking up users, deleting them, and changing their addresses.

use std::time::Duration;

use uuid::Uuid;

use super::{
    Store, StoreError, account_lock,
    accounts::{active, active_ids, email_of, set_address},
    approvals::{self, ApprovalRequested, AsksFor, NewApproval},
    challenges, locks, sessions,
    sql::{access::FIND_USER, accounts as sql},
    tx::Tx,
};
use crate::domain::{ApprovalId, Caller, ChallengeId, DeviceId, Email, Refusal, Timestamp, UserId};

/// An account that was deleted.
pub struct DeletedAccount {
    /// Its address.
    pub email: Email,
    /// Its devices that were active.
    pub devices: Vec<DeviceId>,
}

/// The outcome of a change of the address.
#[derive(Debug)]
pub enum AddressChange {
    /// The address was changed.
    Changed {
        /// The old address, which is the same if the user had the address already.
        old: Email,
    },
    /// The account is locked, and a device has to approve the request.
    Requested {
        /// The present address.
        email: Email,
        /// The request.
        approval: ApprovalRequested,
    },
}

/// Sets the address, or makes a request for it if the account is locked. A refusal is a value, because the caller still
/// commits.
async fn change_or_request(
    tx: &mut Tx<'_>,
    caller: &Caller,
    challenge: ChallengeId,
    new: &Email,
    id: ApprovalId,
    now: Timestamp,
) -> Result<Result<AddressChange, Refusal>, StoreError> {
    let email = email_of(tx, caller.user).await?;
    if let Some(approval) = approvals::of_challenge(tx, challenge, caller.user).await? {
        return Ok(Ok(AddressChange::Requested { email, approval }));
    }
    let lock = account_lock::read(tx, caller.user).await?.filter(|_| email != *new);
    let Some(lock) = lock else {
        return Ok(set_address(tx, caller.user, new, now).await?.map(|old| AddressChange::Changed { old }));
    };
    let owner: Option<(Uuid,)> = tx.query(sql::USER_BY_EMAIL).bind(new.as_str()).fetch_optional().await?;
    if owner.is_some() {
        return Ok(Err(Refusal::EmailTaken));
    }
    let devices = active(tx, caller.user).await?;
    let request = NewApproval {
        id,
        challenge,
        asks_for: AsksFor::Address(new.clone()),
        device_name: devices.into_iter().find(|device| device.id == caller.device).and_then(|device| device.name),
        client_network: None,
        known_network: None,
    };
    let approval = approvals::request(tx, caller.user, &request, Duration::from_secs(lock.wait_s), now).await?;
    Ok(approval.map(|approval| AddressChange::Requested { email, approval }))
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

    /// Uses up a correct code and gives the caller's user a new address, or makes a request for that if the account is
    /// locked. A code that made a request stays usable, and gives the same request again. If another user has the
    /// address, the attempt is refunded and the code stays usable.
    ///
    /// # Errors
    /// `session_revoked`, `device_too_new`, `email_taken`, `rate_limited`; `invalid_code` if the code was used in the
    /// meantime
    pub async fn change_email(
        &self,
        caller: &Caller,
        challenge: ChallengeId,
        new: &Email,
        approval: ApprovalId,
        now: Timestamp,
    ) -> Result<AddressChange, StoreError> {
        let changed = self.retrying(|| async {
            let mut tx = self.begin().await?;
            challenges::use_challenge(&mut tx, challenge).await?;
            locks::user(&mut tx, caller.user).await?;
            sessions::authorize(&mut tx, caller, now).await?;
            self.require_old_enough(&mut tx, caller, now).await?;
            let changed = change_or_request(&mut tx, caller, challenge, new, approval, now).await?;
            if !matches!(changed, Ok(AddressChange::Changed { .. })) {
                // The refund has to be committed, so the refusal leaves the transaction as a value.
                challenges::refund(&mut tx, challenge).await?;
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
            challenges::use_challenge(&mut tx, challenge).await?;
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
