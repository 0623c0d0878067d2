//! Row locks, always taken in this order to avoid deadlocks: challenges, users, sessions, devices, mailboxes, push
//! targets, claims of strangers, keys; within a table by id. On SQLite they do nothing, because there is one writer.

use super::{StoreError, sql::locks as sql, tx::Tx};
use crate::domain::{DeviceId, UserId};

/// Serializes transactions that count and add challenges of one address, given without its tag.
pub async fn address(tx: &mut Tx<'_>, counted_as: &str) -> Result<(), StoreError> {
    tx.query(sql::ADDRESS).bind(counted_as).execute().await?;
    Ok(())
}

/// Serializes changes of one device's rows.
pub async fn device(tx: &mut Tx<'_>, device: DeviceId) -> Result<(), StoreError> {
    tx.query(sql::DEVICE_SESSIONS).bind(device.0).execute().await?;
    tx.query(sql::DEVICE).bind(device.0).execute().await?;
    Ok(())
}

/// Serializes changes of a user's set of devices.
pub async fn user(tx: &mut Tx<'_>, user: UserId) -> Result<(), StoreError> {
    for text in [sql::USER, sql::USER_SESSIONS, sql::USER_DEVICES] {
        tx.query(text).bind(user.0).execute().await?;
    }
    Ok(())
}

/// Waits for sends to a user's mailboxes that are in progress, before the mailboxes are deleted.
pub async fn mailboxes_of(tx: &mut Tx<'_>, user: UserId) -> Result<(), StoreError> {
    tx.query(sql::USER_MAILBOXES).bind(user.0).execute().await?;
    Ok(())
}
