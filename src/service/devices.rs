//! Listing, renaming and revoking devices; finding users and deleting accounts.

use super::{Notifications, Service};
use crate::{
    domain::{Caller, DeviceId, Email, Refusal, Signal, UserId},
    store::DeviceRecord,
};

impl Service {
    /// Returns the user's active devices, oldest first.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn list_devices(&self, caller: &Caller) -> Result<Vec<DeviceRecord>, Refusal> {
        Ok(self.store.list_devices(caller, self.now()).await?)
    }

    /// Renames a device.
    ///
    /// # Errors
    /// `session_revoked`, `unknown_device`, `device_too_new`
    pub async fn rename_device(&self, caller: &Caller, device: DeviceId, name: &str) -> Result<(), Refusal> {
        Ok(self.store.rename_device(caller, device, name, self.now()).await?)
    }

    /// Revokes a device: deletes its sessions and unissued keys, and closes its socket.
    ///
    /// # Errors
    /// `session_revoked`, `unknown_device`, `device_too_new`
    pub async fn revoke_device(&self, caller: &Caller, device: DeviceId) -> Result<Notifications, Refusal> {
        let others = self.store.revoke_device(caller, device, self.now()).await?;
        let changed = Signal::DevicesChanged { added: vec![], removed: vec![device] };
        Ok(Notifications::to_all(others, &changed).and(device, Signal::DeviceRevoked))
    }

    /// Returns the user with this address. A user that refuses strangers is found only by its own devices.
    ///
    /// # Errors
    /// `session_revoked`, `rate_limited`, `not_found`
    pub async fn find_user(&self, caller: &Caller, email: &Email) -> Result<UserId, Refusal> {
        self.store.check_session(caller, self.now()).await?;
        self.limits.find(caller.user, self.now())?;
        self.store.find_user(caller, email).await?.ok_or(Refusal::NotFound)
    }

    /// Deletes the user and everything that belongs to it.
    ///
    /// # Errors
    /// `session_revoked`, `device_too_new`
    pub async fn delete_account(&self, caller: &Caller) -> Result<Notifications, Refusal> {
        let devices = self.store.delete_account(caller, self.now()).await?;
        Ok(Notifications::to_all(devices, &Signal::AccountDeleted))
    }
}
