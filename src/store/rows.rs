//! Conversions from columns to domain types.

use chrono::{DateTime, Utc};

use super::StoreError;
use crate::domain::{Suite, Timestamp};

/// A `BIGINT` or `INTEGER` that the schema keeps within `u32`.
pub fn number(value: i64) -> Result<u32, StoreError> {
    u32::try_from(value).map_err(|error| corrupt(error.into()))
}

/// A suite by its name.
pub fn suite(name: &str) -> Result<Suite, StoreError> {
    Suite::parse(name).ok_or_else(|| corrupt("unknown suite".into()))
}

/// A time, which both databases keep to the microsecond.
pub fn time(at: DateTime<Utc>) -> Timestamp {
    Timestamp::new(at)
}

/// Hashes are kept in lower-case hexadecimal.
pub fn hex(hash: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

/// The hash that [`hex`] wrote.
pub fn hash(text: &str) -> Result<[u8; 32], StoreError> {
    blake3::Hash::from_hex(text).map(Into::into).map_err(|error| corrupt(error.into()))
}

/// The error for a column that holds what this server never writes.
pub fn corrupt(why: Box<dyn std::error::Error + Send + Sync>) -> StoreError {
    StoreError::Internal(sqlx::Error::Decode(why))
}
