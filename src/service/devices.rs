//! Listing, renaming and revoking devices; finding users; deleting accounts and changing their addresses.

use super::{
    Confirmation, Notifications, RequestedApproval, Service,
    auth::{Guess, revoked_notifications},
    mailer::Mail,
};
use crate::{
    domain::{ApprovalId, Caller, ClientNetwork, DeviceId, Email, Refusal, Signal, UserId, otp::CodePurpose},
    store::{AddressChange, DeviceRecord},
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

    /// Revokes a device: deletes its sessions and unissued keys, and closes its socket. `network` is the client's.
    ///
    /// # Errors
    /// `session_revoked`, `unknown_device`, `device_too_new`
    pub async fn revoke_device(
        &self,
        caller: &Caller,
        device: DeviceId,
        network: ClientNetwork,
    ) -> Result<Notifications, Refusal> {
        let (revoked, email, others) = self.store.revoke_device(caller, device, self.now()).await?;
        self.mailer.send(Mail::device_revoked(email, revoked.name.as_deref()).caused_from(Some(network)));
        let changed = Signal::DevicesChanged { added: vec![], removed: vec![device] };
        let mut notifications = Notifications::to_all(others.iter().copied(), &changed);
        notifications.0.extend(revoked_notifications(revoked, &others).0);
        Ok(notifications)
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

    /// Deletes the user and everything that belongs to it. The code is one for `delete`, mailed to the user's address.
    ///
    /// # Errors
    /// In this order: `session_revoked`, `device_too_new`, `confirmation_required`, `rate_limited`, `invalid_code` or
    /// `too_many_attempts`
    pub async fn delete_account(
        &self,
        caller: &Caller,
        confirmation: Option<Confirmation>,
        network: ClientNetwork,
    ) -> Result<Notifications, Refusal> {
        let now = self.now();
        let email = self.store.account_to_change(caller, now).await?;
        let Confirmation { challenge, code, work } = confirmation.ok_or(Refusal::ConfirmationRequired)?;
        let purpose = CodePurpose::Delete;
        self.confirm(&Guess { challenge, email: &email, purpose, code: &code, work: &work, network }, now).await?;
        let deleted = self.store.delete_account(caller, challenge, now).await?;
        self.mailer.send(Mail::account_deleted(deleted.email).caused_from(Some(network)));
        tracing::info!(user_id = %caller.user, device_id = %caller.device, "account deleted");
        Ok(Notifications::to_all(deleted.devices, &Signal::AccountDeleted))
    }

    /// Gives the user a new address, or requests that if the account is locked. The code is one for `change_email`, mailed
    /// to the new address.
    ///
    /// # Errors
    /// In this order: `session_revoked`, `device_too_new`, `confirmation_required`, `rate_limited`, `invalid_code` or
    /// `too_many_attempts`, `email_taken`, `rate_limited` if too many changes are requested
    pub async fn change_email(
        &self,
        caller: &Caller,
        new: &Email,
        confirmation: Option<Confirmation>,
        network: ClientNetwork,
    ) -> Result<(Option<RequestedApproval>, Notifications), Refusal> {
        let now = self.now();
        self.store.account_to_change(caller, now).await?;
        let Confirmation { challenge, code, work } = confirmation.ok_or(Refusal::ConfirmationRequired)?;
        let purpose = CodePurpose::ChangeEmail;
        self.confirm(&Guess { challenge, email: new, purpose, code: &code, work: &work, network }, now).await?;
        let id = ApprovalId(self.entropy.uuid());
        match self.store.change_email(caller, challenge, new, id, now).await? {
            AddressChange::Changed { old } => {
                if old != *new {
                    self.mailer.send(Mail::address_changed(old).caused_from(Some(network)));
                    tracing::info!(user_id = %caller.user, device_id = %caller.device, "address changed");
                }
                Ok((None, Notifications::default()))
            }
            AddressChange::Requested { email, approval } => {
                let (requested, notifications) = self.requested(caller.user, email, approval, network).await;
                Ok((Some(requested), notifications))
            }
        }
    }
}
