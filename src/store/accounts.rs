//! What many operations read or change of an account: its address and its active devices.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    StoreError, rows,
    sql::{accounts as sql, approvals},
    tx::Tx,
};
use crate::domain::{DeviceId, Email, Refusal, Timestamp, UserId};

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

/// The user's active devices, oldest first.
pub(super) async fn active_ids(tx: &mut Tx<'_>, user: UserId) -> Result<Vec<DeviceId>, StoreError> {
    Ok(active(tx, user).await?.into_iter().map(|device| device.id).collect())
}

/// The user's address.
///
/// # Errors
/// `session_revoked` if the user was deleted
pub(super) async fn email_of(tx: &mut Tx<'_>, user: UserId) -> Result<Email, StoreError> {
    Ok(email_and_start(tx, user).await?.0)
}

/// The user's address, and when the user first signed in.
///
/// # Errors
/// `session_revoked` if the user was deleted
pub(super) async fn email_and_start(tx: &mut Tx<'_>, user: UserId) -> Result<(Email, Timestamp), StoreError> {
    let row: Option<(String, DateTime<Utc>)> = tx.query(sql::EMAIL_OF_USER).bind(user.0).fetch_optional().await?;
    let (email, created_at) = row.ok_or(Refusal::SessionRevoked)?;
    Ok((rows::email(&email)?, rows::time(created_at)))
}

/// Gives the user a new address, and returns the old one. Denies the pending requests of new devices, because they were
/// made with codes for the old address. A refusal is a value, because the caller still commits.
///
/// # Errors
/// [`StoreError::Conflict`] if a parallel transaction takes the address
pub(super) async fn set_address(
    tx: &mut Tx<'_>,
    user: UserId,
    new: &Email,
    now: Timestamp,
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
            tx.query(approvals::DENY_DEVICES_OF).bind(user.0).bind(now.to_utc()).execute().await?;
        }
    }
    Ok(Ok(old))
}
