//! Conversions between columns and domain types.

use chrono::{DateTime, Utc};

use super::StoreError;
use crate::domain::{Email, Suite, Timestamp};

/// A `BIGINT` or `INTEGER` that the schema keeps within `u32`.
pub fn number(value: i64) -> Result<u32, StoreError> {
    u32::try_from(value).map_err(|error| corrupt(error.into()))
}

/// Parses the name of a suite.
pub fn suite(name: &str) -> Result<Suite, StoreError> {
    Suite::parse(name).ok_or_else(|| corrupt("unknown suite".into()))
}

/// Parses a user's address.
pub fn email(text: &str) -> Result<Email, StoreError> {
    Email::parse(text).ok_or_else(|| corrupt("invalid address".into()))
}

/// A time; both databases store microseconds.
pub fn time(at: DateTime<Utc>) -> Timestamp {
    Timestamp::new(at)
}

/// A hash as it is stored: lower-case hexadecimal.
pub fn hash_to_hex(hash: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

/// The hash that [`hash_to_hex`] wrote.
pub fn hash_from_hex(text: &str) -> Result<[u8; 32], StoreError> {
    blake3::Hash::from_hex(text).map(Into::into).map_err(|error| corrupt(error.into()))
}

/// The error for a column value that this server never writes.
pub fn corrupt(why: Box<dyn std::error::Error + Send + Sync>) -> StoreError {
    StoreError::Internal(sqlx::Error::Decode(why))
}
