//! The lock of an account: while it is set, new devices need an approval.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{
    Store, StoreError, accounts, approvals, device_age::too_new_until, locks, rows, sessions, sql::approvals as sql,
    tx::Tx,
};
use crate::domain::{
    Caller, Email, PendingApproval, Refusal, Timestamp, UserId,
    approval::{Lock, PresentedRecoveryKey},
};

/// Whether an account is locked, and what waits for an approval.
#[derive(Debug)]
pub struct AccountStatus {
    /// The lock, if there is one.
    pub lock: Option<Lock>,
    /// The requests that are pending, oldest first.
    pub pending: Vec<PendingApproval>,
}

/// The lock of a user.
pub(super) async fn read(tx: &mut Tx<'_>, user: UserId) -> Result<Option<Lock>, StoreError> {
    let row: Option<(Option<String>, Option<i64>)> = tx.query(sql::LOCK).bind(user.0).fetch_optional().await?;
    match row {
        Some((Some(hash), Some(wait_s))) => {
            Ok(Some(Lock { recovery_key_hash: rows::hash_from_hex(&hash)?, wait_s: wait_s.unsigned_abs() }))
        }
        _ => Ok(None),
    }
}

/// Checks that the caller may change this lock: its device is older than `wait_s`, or it presents the recovery key.
///
/// # Errors
/// `invalid_code` if the recovery key is wrong, `device_too_new`
async fn check_may_change(
    tx: &mut Tx<'_>,
    caller: &Caller,
    lock: &Lock,
    recovery_key: Option<&PresentedRecoveryKey>,
    now: Timestamp,
) -> Result<(), StoreError> {
    match recovery_key {
        Some(presented) if presented.opens(lock) => Ok(()),
        Some(_) => Err(Refusal::InvalidCode.into()),
        None => {
            let (created_at,): (DateTime<Utc>,) =
                tx.query(sql::DEVICE_CREATED_AT).bind(caller.device.0).fetch_one().await?;
            let allowed_at = rows::time(created_at) + Duration::from_secs(lock.wait_s);
            if allowed_at > now { Err(too_new_until(allowed_at, now).into()) } else { Ok(()) }
        }
    }
}

async fn set(tx: &mut Tx<'_>, user: UserId, lock: Option<&Lock>) -> Result<(), StoreError> {
    tx.query(sql::SET_LOCK)
        .bind(user.0)
        .bind(lock.map(|lock| rows::hash_to_hex(&lock.recovery_key_hash)))
        .bind(lock.map(|lock| lock.wait_s.cast_signed()))
        .execute()
        .await?;
    Ok(())
}

impl Store {
    /// Locks the account, or locks it anew with other values. Returns the address to mail; `None` if nothing has changed.
    /// `allowed` is the time to wait, if the device has changed the lock too often.
    ///
    /// # Errors
    /// `session_revoked`, `device_too_new`, `invalid_code`, `rate_limited`
    pub async fn lock_account(
        &self,
        caller: &Caller,
        lock: &Lock,
        recovery_key: Option<&PresentedRecoveryKey>,
        allowed: Result<(), Duration>,
        now: Timestamp,
    ) -> Result<Option<Email>, StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::user(&mut tx, caller.user).await?;
            sessions::authorize(&mut tx, caller, now).await?;
            match read(&mut tx, caller.user).await? {
                Some(present) if present == *lock => return Ok(None),
                Some(present) => check_may_change(&mut tx, caller, &present, recovery_key, now).await?,
                None => self.require_old_enough(&mut tx, caller, now).await?,
            }
            allowed.map_err(|retry_after| Refusal::RateLimited { retry_after })?;
            set(&mut tx, caller.user, Some(lock)).await?;
            let email = accounts::email_of(&mut tx, caller.user).await?;
            tx.commit().await?;
            Ok(Some(email))
        })
        .await
    }

    /// Unlocks the account. Pending requests stay pending. Returns the address to mail; `None` if it was not locked.
    /// `allowed` is the time to wait, if the device has changed the lock too often.
    ///
    /// # Errors
    /// `session_revoked`, `device_too_new`, `invalid_code`, `rate_limited`
    pub async fn unlock_account(
        &self,
        caller: &Caller,
        recovery_key: Option<&PresentedRecoveryKey>,
        allowed: Result<(), Duration>,
        now: Timestamp,
    ) -> Result<Option<Email>, StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::user(&mut tx, caller.user).await?;
            sessions::authorize(&mut tx, caller, now).await?;
            let Some(lock) = read(&mut tx, caller.user).await? else { return Ok(None) };
            check_may_change(&mut tx, caller, &lock, recovery_key, now).await?;
            allowed.map_err(|retry_after| Refusal::RateLimited { retry_after })?;
            set(&mut tx, caller.user, None).await?;
            let email = accounts::email_of(&mut tx, caller.user).await?;
            tx.commit().await?;
            Ok(Some(email))
        })
        .await
    }

    /// The lock of the caller's account, and its pending requests.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn account_status(&self, caller: &Caller, now: Timestamp) -> Result<AccountStatus, StoreError> {
        let mut tx = self.read().await?;
        sessions::authorize(&mut tx, caller, now).await?;
        let lock = read(&mut tx, caller.user).await?;
        Ok(AccountStatus { lock, pending: approvals::pending(&mut tx, caller.user).await? })
    }
}
