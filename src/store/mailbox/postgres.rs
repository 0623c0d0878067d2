//! The statements of a batch of mail on PostgreSQL.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    SendRow, columns,
    plan::{Mailbox, NewEnvelope},
};
pub use crate::store::many::postgres::{sessions, users};
use crate::{
    domain::DeviceId,
    store::{StoreError, many::postgres::by_ids, sql::mailbox as texts},
};

by_ids!(mailboxes, texts::MAILBOXES_LOCKED, (Uuid, i64, i64, i64, i64));
by_ids!(recipients, texts::RECIPIENTS_OF_MANY, (Uuid, Uuid, Option<DateTime<Utc>>));

pub async fn sends(tx: &mut PgConnection, ids: &[(Uuid, Uuid)]) -> Result<Vec<SendRow>, StoreError> {
    let (devices, messages) = columns(ids);
    Ok(sqlx::query_as(texts::SENDS_OF_MANY).bind(devices).bind(messages).fetch_all(tx).await?)
}

pub async fn shares(tx: &mut PgConnection, ids: &[(Uuid, Uuid)]) -> Result<Vec<(Uuid, Uuid, i64, i64)>, StoreError> {
    let (devices, users) = columns(ids);
    Ok(sqlx::query_as(texts::SHARES_OF_MANY).bind(devices).bind(users).fetch_all(tx).await?)
}

pub async fn delete_messages(tx: &mut PgConnection, gone: &[(Uuid, i64)]) -> Result<Vec<(Uuid, i64, i64)>, StoreError> {
    let (devices, seqs): (Vec<Uuid>, Vec<i64>) = gone.iter().copied().unzip();
    Ok(sqlx::query_as(texts::DELETE_MANY_MESSAGES).bind(devices).bind(seqs).fetch_all(tx).await?)
}

pub async fn insert_messages(tx: &mut PgConnection, new: &[NewEnvelope]) -> Result<(), StoreError> {
    let column = |get: fn(&NewEnvelope) -> Uuid| new.iter().map(get).collect::<Vec<_>>();
    let time = |get: fn(&NewEnvelope) -> DateTime<Utc>| new.iter().map(get).collect::<Vec<_>>();
    sqlx::query(texts::INSERT_MESSAGES)
        .bind(column(|one| one.device.0))
        .bind(new.iter().map(|one| one.seq).collect::<Vec<_>>())
        .bind(column(|one| one.envelope.message.0))
        .bind(column(|one| one.envelope.from_user.0))
        .bind(column(|one| one.envelope.from_device.0))
        .bind(new.iter().map(|one| i32::from(one.envelope.kind)).collect::<Vec<_>>())
        .bind(new.iter().map(|one| &one.envelope.content[..]).collect::<Vec<_>>())
        .bind(time(|one| one.envelope.accepted_at.to_utc()))
        .bind(time(|one| one.expires_at.to_utc()))
        .execute(tx)
        .await?;
    Ok(())
}

pub async fn update_mailboxes(tx: &mut PgConnection, changed: &[(DeviceId, Mailbox)]) -> Result<(), StoreError> {
    let column = |get: fn(&Mailbox) -> i64| changed.iter().map(|(_, mailbox)| get(mailbox)).collect::<Vec<_>>();
    sqlx::query(texts::UPDATE_MAILBOXES)
        .bind(changed.iter().map(|(device, _)| device.0).collect::<Vec<_>>())
        .bind(column(|mailbox| mailbox.next_seq))
        .bind(column(Mailbox::count))
        .bind(column(Mailbox::bytes))
        .bind(column(|mailbox| mailbox.expired_total))
        .execute(tx)
        .await?;
    Ok(())
}

pub async fn insert_sends(tx: &mut PgConnection, new: &[SendRow]) -> Result<(), StoreError> {
    let column = |get: fn(&SendRow) -> Uuid| new.iter().map(get).collect::<Vec<_>>();
    sqlx::query(texts::INSERT_SENDS)
        .bind(column(|row| row.0))
        .bind(column(|row| row.1))
        .bind(column(|row| row.2))
        .bind(new.iter().map(|row| row.3).collect::<Vec<_>>())
        .bind(new.iter().map(|row| &row.4[..]).collect::<Vec<_>>())
        .execute(tx)
        .await?;
    Ok(())
}

/// Whether this node is the one to sweep. Until the transaction ends, no other is.
pub async fn take_sweep(tx: &mut PgConnection) -> Result<bool, StoreError> {
    let (taken,): (bool,) = sqlx::query_as(texts::TAKE_SWEEP).fetch_one(tx).await?;
    Ok(taken)
}
