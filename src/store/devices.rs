//! A user's devices.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Store, StoreError, locks, rows, sessions,
    sql::{accounts as sql, keys, mailbox},
    tx::Tx,
};
use crate::domain::{Caller, DeviceId, Refusal, Timestamp, UserId};

/// An active device.
#[derive(Clone, Debug)]
pub struct DeviceRecord {
    /// The id that the server gave it.
    pub id: DeviceId,
    /// A display name, if it has one.
    pub name: Option<String>,
    /// The device's number in the client's Signal library.
    pub registration_id: u32,
    /// When it first signed in.
    pub created_at: Timestamp,
    /// When it last connected or disconnected.
    pub last_seen: Option<Timestamp>,
}

type DeviceRow = (Uuid, Option<String>, i64, DateTime<Utc>, Option<DateTime<Utc>>);

/// The user's active devices, oldest first.
pub(super) async fn active(tx: &mut Tx<'_>, user: UserId) -> Result<Vec<DeviceRecord>, StoreError> {
    let found: Vec<DeviceRow> = tx.query(sql::ACTIVE_DEVICES).bind(user.0).fetch_all().await?;
    let record = |(id, name, registration_id, created_at, last_seen): DeviceRow| {
        Ok(DeviceRecord {
            id: DeviceId(id),
            name,
            registration_id: rows::number(registration_id)?,
            created_at: rows::time(created_at),
            last_seen: last_seen.map(rows::time),
        })
    };
    found.into_iter().map(record).collect()
}

/// Revokes a device of the user. Ends its sessions; deletes its envelopes, its signed prekey, its last-resort key and
/// its unissued one-time keys. Returns whether it was active.
pub(super) async fn revoke(
    tx: &mut Tx<'_>,
    device: DeviceId,
    user: UserId,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let was_active = tx.query(sql::REVOKE_DEVICE).bind(device.0).bind(user.0).execute().await? == 1;
    if was_active {
        sessions::end_sessions_of_device(tx, device, now).await?;
        for text in [
            // Locks the mailbox before its envelopes are deleted, and so waits for a send in progress.
            mailbox::EMPTY_MAILBOX,
            mailbox::DELETE_MESSAGES,
            keys::DELETE_SIGNED_PREKEYS,
            keys::DELETE_UNISSUED,
            keys::DELETE_UNISSUED_PQ,
        ] {
            tx.query(text).bind(device.0).execute().await?;
        }
    }
    Ok(was_active)
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

    /// Revokes one of the caller's active devices. Returns the remaining ones.
    ///
    /// # Errors
    /// `session_revoked`, `unknown_device`; `device_too_new` for another device
    pub async fn revoke_device(
        &self,
        caller: &Caller,
        device: DeviceId,
        now: Timestamp,
    ) -> Result<Vec<DeviceId>, StoreError> {
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
            if !revoke(&mut tx, device, caller.user, now).await? {
                return Err(Refusal::UnknownDevice.into());
            }
            let others = active(&mut tx, caller.user).await?;
            tx.commit().await?;
            Ok(others.into_iter().map(|device| device.id).collect())
        })
        .await
    }
}
