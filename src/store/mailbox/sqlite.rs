//! The statements of a batch of mail on SQLite: the same set-based operations, with one JSON text in the place of arrays.

use chrono::{DateTime, SecondsFormat, Utc};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::{
    SendRow,
    plan::{Mailbox, NewEnvelope},
};
pub use crate::store::many::sqlite::{sessions, users};
use crate::{
    domain::DeviceId,
    store::{
        StoreError,
        many::sqlite::{by_ids, hex, json},
        sql::mailbox::sqlite as texts,
    },
};

/// A time as sqlx writes it, so that texts compare as times do.
fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, false)
}

by_ids!(mailboxes, texts::MAILBOXES_OF_MANY, (Uuid, i64, i64, i64, i64));
by_ids!(recipients, texts::RECIPIENTS_OF_MANY, (Uuid, Uuid, Option<DateTime<Utc>>));

fn pairs(ids: &[(Uuid, Uuid)]) -> String {
    json(&ids.iter().map(|(one, other)| (hex(*one), hex(*other))).collect::<Vec<_>>())
}

pub async fn sends(tx: &mut SqliteConnection, ids: &[(Uuid, Uuid)]) -> Result<Vec<SendRow>, StoreError> {
    Ok(sqlx::query_as(texts::SENDS_OF_MANY).bind(pairs(ids)).fetch_all(tx).await?)
}

pub async fn shares(
    tx: &mut SqliteConnection,
    ids: &[(Uuid, Uuid)],
) -> Result<Vec<(Uuid, Uuid, i64, i64)>, StoreError> {
    Ok(sqlx::query_as(texts::SHARES_OF_MANY).bind(pairs(ids)).fetch_all(tx).await?)
}

pub async fn delete_messages(
    tx: &mut SqliteConnection,
    gone: &[(Uuid, i64)],
) -> Result<Vec<(Uuid, i64, i64)>, StoreError> {
    let rows: Vec<_> = gone.iter().map(|(device, seq)| (hex(*device), seq)).collect();
    Ok(sqlx::query_as(texts::DELETE_MANY_MESSAGES).bind(json(&rows)).fetch_all(tx).await?)
}

pub async fn insert_messages(tx: &mut SqliteConnection, new: &[NewEnvelope]) -> Result<(), StoreError> {
    let mut contents = Vec::with_capacity(new.iter().map(|one| one.envelope.content.len()).sum());
    let mut rows = Vec::with_capacity(new.len());
    for NewEnvelope { device, seq, envelope, expires_at } in new {
        rows.push((
            hex(device.0),
            seq,
            hex(envelope.message.0),
            hex(envelope.from_user.0),
            hex(envelope.from_device.0),
            envelope.kind,
            contents.len(),
            envelope.content.len(),
            time(envelope.accepted_at.to_utc()),
            time(expires_at.to_utc()),
        ));
        contents.extend_from_slice(&envelope.content);
    }
    sqlx::query(texts::INSERT_MESSAGES).bind(json(&rows)).bind(contents).execute(tx).await?;
    Ok(())
}

pub async fn update_mailboxes(tx: &mut SqliteConnection, changed: &[(DeviceId, Mailbox)]) -> Result<(), StoreError> {
    let row = |(device, mailbox): &(DeviceId, Mailbox)| {
        (hex(device.0), mailbox.next_seq, mailbox.count(), mailbox.bytes(), mailbox.expired_total)
    };
    let rows: Vec<_> = changed.iter().map(row).collect();
    sqlx::query(texts::UPDATE_MAILBOXES).bind(json(&rows)).execute(tx).await?;
    Ok(())
}

pub async fn insert_sends(tx: &mut SqliteConnection, new: &[SendRow]) -> Result<(), StoreError> {
    let mut outcomes = Vec::new();
    let mut rows = Vec::with_capacity(new.len());
    for (device, message, to, at, outcome) in new {
        rows.push((hex(*device), hex(*message), hex(*to), time(*at), outcomes.len(), outcome.len()));
        outcomes.extend_from_slice(outcome);
    }
    sqlx::query(texts::INSERT_SENDS).bind(json(&rows)).bind(outcomes).execute(tx).await?;
    Ok(())
}

/// There is one node.
#[expect(clippy::unused_async, reason = "the other engine asks the database")]
pub async fn take_sweep(_: &mut SqliteConnection) -> Result<bool, StoreError> {
    Ok(true)
}

#[cfg(test)]
mod tests {
    use sqlx::{Encode, Sqlite, sqlite::SqliteArgumentsBuffer};

    use super::*;
    use crate::domain::Timestamp;

    #[test]
    fn times_are_written_as_the_driver_writes_them() {
        for text in ["2026-06-01T12:00:00Z", "2026-06-01T12:00:00.5Z", "2026-06-01T12:00:00.123456Z"] {
            let at = Timestamp::parse(text).unwrap().to_utc();
            let mut buffer = SqliteArgumentsBuffer::default();
            assert!(!Encode::<Sqlite>::encode(at, &mut buffer).unwrap().is_null());
            assert!(format!("{buffer:?}").contains(&format!("{:?}", time(at))), "{buffer:?}");
        }
    }
}
