//! Looking up and deleting users.

use uuid::Uuid;

use super::{Store, StoreError, devices, locks, sessions, sql::access::FIND_USER, sql::accounts as sql};
use crate::domain::{Caller, DeviceId, Email, Timestamp, UserId};

impl Store {
    /// The user with this address, unless it refuses strangers and is not the caller's own.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn find_user(&self, caller: &Caller, email: &Email) -> Result<Option<UserId>, StoreError> {
        let row: Option<(Uuid,)> =
            self.read().await?.query(FIND_USER).bind(email.as_str()).bind(caller.user.0).fetch_optional().await?;
        Ok(row.map(|(id,)| UserId(id)))
    }

    /// Deletes the caller's user and everything that belongs to it, except the hashes of its tokens with the reason for
    /// which they are invalid. Returns the devices that were active.
    ///
    /// The mailboxes of active devices are emptied first, in small transactions of their own.
    ///
    /// # Errors
    /// `session_revoked`, `device_too_new`
    pub async fn delete_account(&self, caller: &Caller, now: Timestamp) -> Result<Vec<DeviceId>, StoreError> {
        let mut tx = self.read().await?;
        sessions::authorize(&mut tx, caller, now).await?;
        // Checked here too, because mailboxes are emptied before the transaction.
        self.require_old_enough(&mut tx, caller, now).await?;
        let active = devices::active(&mut tx, caller.user).await?;
        drop(tx);
        self.empty_mailboxes(&active.iter().map(|device| device.id).collect::<Vec<_>>()).await?;
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::user(&mut tx, caller.user).await?;
            sessions::authorize(&mut tx, caller, now).await?;
            self.require_old_enough(&mut tx, caller, now).await?;
            let active = devices::active(&mut tx, caller.user).await?;
            locks::mailboxes_of(&mut tx, caller.user).await?;
            sessions::record_deletion(&mut tx, caller.user, now).await?;
            tx.query(sql::DELETE_USER).bind(caller.user.0).execute().await?;
            tx.commit().await?;
            Ok(active.into_iter().map(|device| device.id).collect())
        })
        .await
    }
}
