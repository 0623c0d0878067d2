//! Small conversions between columns and domain types.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::StoreError;
use crate::domain::{
    Suite, Timestamp,
    bundle::{KeyBytes, OneTimePrekey, PqPrekey},
};

/// A `BIGINT` or `INTEGER` that the schema keeps within `u32`.
pub fn number(value: i64) -> Result<u32, StoreError> {
    u32::try_from(value).map_err(|error| corrupt(error.into()))
}

pub fn suite(name: &str) -> Result<Suite, StoreError> {
    Suite::parse(name).ok_or_else(|| corrupt("unknown suite".into()))
}

pub fn time(at: DateTime<Utc>) -> Timestamp {
    Timestamp::new(at)
}

pub fn corrupt(why: Box<dyn std::error::Error + Send + Sync>) -> StoreError {
    StoreError::Internal(sqlx::Error::Decode(why))
}

/// id, name, registration id, created, last seen.
pub type DeviceRow = (Uuid, Option<String>, i64, DateTime<Utc>, Option<DateTime<Utc>>);

pub type OneTimeRow = (i64, Vec<u8>);

pub fn one_time((key_id, public_key): OneTimeRow) -> Result<OneTimePrekey, StoreError> {
    Ok(OneTimePrekey { key_id: number(key_id)?, public_key: KeyBytes(public_key) })
}

pub type PqRow = (i64, Vec<u8>, Vec<u8>);

pub fn pq((key_id, public_key, signature): PqRow, last_resort: bool) -> Result<PqPrekey, StoreError> {
    Ok(PqPrekey {
        key_id: number(key_id)?,
        public_key: KeyBytes(public_key),
        signature: KeyBytes(signature),
        last_resort,
    })
}

/// id, registration, suite, identity key, then key id, key, signature and expiry of the signed prekey.
pub type TargetRow =
    (Uuid, i64, Option<String>, Option<Vec<u8>>, Option<i64>, Option<Vec<u8>>, Option<Vec<u8>>, Option<DateTime<Utc>>);

/// A [`TargetRow`] behind the id of its user.
pub type UserTargetRow = (
    Uuid,
    Uuid,
    i64,
    Option<String>,
    Option<Vec<u8>>,
    Option<i64>,
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Option<DateTime<Utc>>,
);

pub fn split_user(row: UserTargetRow) -> (Uuid, TargetRow) {
    let (user, device, registration_id, suite, identity_key, key_id, public_key, signature, expires_at) = row;
    (user, (device, registration_id, suite, identity_key, key_id, public_key, signature, expires_at))
}
