//! Row locks of transactions, and their order: users, sessions, devices, mailboxes, keys; rows of one table by id. On
//! SQLite there is one writer, so none of these does anything.

use super::{StoreError, sql::locks as sql, tx::Tx};
use crate::domain::{DeviceId, Email, UserId};

/// Makes counting an address's challenges and adding one a single step.
pub async fn email(tx: &mut Tx<'_>, email: &Email) -> Result<(), StoreError> {
    tx.query(sql::EMAIL).bind(email.as_str()).execute().await?;
    Ok(())
}

/// Makes changes of a device's own rows wait for each other.
pub async fn device(tx: &mut Tx<'_>, device: DeviceId) -> Result<(), StoreError> {
    tx.query(sql::DEVICE_SESSIONS).bind(device.0).execute().await?;
    tx.query(sql::DEVICE).bind(device.0).execute().await?;
    Ok(())
}

/// Makes changes of several devices of a user wait for each other.
pub async fn user(tx: &mut Tx<'_>, user: UserId) -> Result<(), StoreError> {
    for text in [sql::USER, sql::USER_SESSIONS, sql::USER_DEVICES] {
        tx.query(text).bind(user.0).execute().await?;
    }
    Ok(())
}

/// Waits for messages on their way into a user's mailboxes, before these are deleted.
pub async fn mailboxes_of(tx: &mut Tx<'_>, user: UserId) -> Result<(), StoreError> {
    tx.query(sql::USER_MAILBOXES).bind(user.0).execute().await?;
    Ok(())
}
