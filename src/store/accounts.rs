//! What many operations read of an account: its address and its active devices.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{StoreError, rows, sql::accounts as sql, tx::Tx};
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
    let email: Option<(String,)> = tx.query(sql::EMAIL_OF_USER).bind(user.0).fetch_optional().await?;
    rows::email(&email.ok_or(Refusal::SessionRevoked)?.0)
}
