//! A user's devices.

use super::{
    DeviceRecord, Store, StoreError,
    accounts::{active, active_ids, email_of},
    locks, push, sessions,
    sql::{accounts as sql, keys, mailbox},
    tx::Tx,
};
use crate::domain::{Caller, DeviceId, Email, Refusal, SessionId, Timestamp, UserId};

/// A device that was revoked.
#[derive(Clone, Debug)]
pub struct RevokedDevice {
    /// The device.
    pub id: DeviceId,
    /// Its display name, if it has one.
    pub name: Option<String>,
    /// The sessions that ended.
    pub sessions: Vec<SessionId>,
}

/// Revokes a device of the user. Ends its sessions; deletes its envelopes, its signed prekey, its last-resort key,
/// its unissued one-time keys and its push target. Returns `None` if it was not active.
pub(super) async fn revoke(
    tx: &mut Tx<'_>,
    device: DeviceId,
    user: UserId,
    now: Timestamp,
) -> Result<Option<RevokedDevice>, StoreError> {
    let revoked: Option<(Option<String>,)> =
        tx.query(sql::REVOKE_DEVICE).bind(device.0).bind(user.0).fetch_optional().await?;
    let Some((name,)) = revoked else { return Ok(None) };
    let sessions = sessions::end_sessions_of_device(tx, device, now).await?;
    for text in [
        // Locks the mailbox before its envelopes are deleted, and so waits for a send in progress.
        mailbox::EMPTY_MAILBOX,
        mailbox::DELETE_SHARES,
        mailbox::DELETE_MESSAGES,
        keys::DELETE_SIGNED_PREKEYS,
        keys::DELETE_UNISSUED,
        keys::DELETE_UNISSUED_PQ,
    ] {
        tx.query(text).bind(device.0).execute().await?;
    }
    push::remove_target(tx, device).await?;
    Ok(Some(RevokedDevice { id: device, name, sessions }))
}

impl Store {
    /// The caller's active devices, oldest first.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn list_devices(&self, caller: &Caller, now: Timestamp) -> Result<Vec<DeviceRecord>, StoreError> {
        let mut tx = self.read().await?;
        sessions::authorize(&mut tx, caller, now).await?;
        active(&mut tx, caller.user).await
    }

    /// Sets the display name of one of the caller's active devices.
    ///
    /// # Errors
    /// `session_revoked`, `unknown_device`; `device_too_new` for another device
    pub async fn rename_device(
        &self,
        caller: &Caller,
        device: DeviceId,
        name: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::user(&mut tx, caller.user).await?;
            sessions::authorize(&mut tx, caller, now).await?;
            self.may_disturb(&mut tx, caller, device, now).await?;
            let renamed = tx.query(sql::RENAME_DEVICE).bind(device.0).bind(caller.user.0).bind(name).execute().await?;
            if renamed == 0 {
                return Err(Refusal::UnknownDevice.into());
            }
            tx.commit().await
        })
        .await
    }

    /// Revokes one of the caller's active devices. Returns it with the user's address and remaining devices.
    ///
    /// # Errors
    /// `session_revoked`, `unknown_device`; `device_too_new` for another device
    pub async fn revoke_device(
        &self,
        caller: &Caller,
        device: DeviceId,
        now: Timestamp,
    ) -> Result<(RevokedDevice, Email, Vec<DeviceId>), StoreError> {
        let mut tx = self.read().await?;
        sessions::authorize(&mut tx, caller, now).await?;
        // Checked here too, because the mailbox is emptied before the transaction.
        self.may_disturb(&mut tx, caller, device, now).await?;
        let known = active(&mut tx, caller.user).await?;
        drop(tx);
        if known.iter().any(|known| known.id == device) {
            self.empty_mailboxes(&[device]).await?;
        }
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::user(&mut tx, caller.user).await?;
            sessions::authorize(&mut tx, caller, now).await?;
            self.may_disturb(&mut tx, caller, device, now).await?;
            let revoked = revoke(&mut tx, device, caller.user, now).await?.ok_or(Refusal::UnknownDevice)?;
            let email = email_of(&mut tx, caller.user).await?;
            let others = active_ids(&mut tx, caller.user).await?;
            tx.commit().await?;
            Ok((revoked, email, others))
        })
        .await
    }
}
