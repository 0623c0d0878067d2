//! The age rule: while a user has a published device of a certain age, younger devices may not disturb the others. So a
//! person who controls the mailbox for a short time can sign in, but cannot lock the owner out.
//!
//! The age of a device counts from `devices.created_at`. A device is published once it has an identity key.

use chrono::{DateTime, Utc};

use super::{Store, StoreError, rows, sql::accounts as sql, tx::Tx};
use crate::domain::{Caller, DeviceId, Refusal, Timestamp};

impl Store {
    /// Checks that the caller's device is old enough to disturb other devices of its user: that it has the configured
    /// age, or that no active published device of the user has it. Call it after `authorize`. Before operations with
    /// effects outside of their transaction, call it also before those effects.
    ///
    /// # Errors
    /// `device_too_new`
    pub(super) async fn require_old_enough(
        &self,
        tx: &mut Tx<'_>,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let age = self.settings.device_age;
        if age.is_zero() {
            return Ok(());
        }
        let too_new: Option<(DateTime<Utc>,)> = tx
            .query(sql::YOUNGER_THAN_OLD_DEVICE)
            .bind(caller.device.0)
            .bind(now.before(age).to_utc())
            .bind(caller.user.0)
            .fetch_optional()
            .await?;
        match too_new {
            Some((created_at,)) => Err(too_new_until(rows::time(created_at) + age, now).into()),
            None => Ok(()),
        }
    }

    /// Checks that the caller may disturb this device: its own, or another one if it is old enough.
    ///
    /// # Errors
    /// `device_too_new`
    pub(super) async fn may_disturb(
        &self,
        tx: &mut Tx<'_>,
        caller: &Caller,
        device: DeviceId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if device == caller.device { Ok(()) } else { self.require_old_enough(tx, caller, now).await }
    }
}

/// The refusal of an operation that the device may do at `allowed_at`.
pub(super) fn too_new_until(allowed_at: Timestamp, now: Timestamp) -> Refusal {
    Refusal::DeviceTooNew { allowed_at, retry_after: allowed_at.since(now) }
}
