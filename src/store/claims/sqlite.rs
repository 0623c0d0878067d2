//! The statements of a batch of claims on SQLite.

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::{
    levels::LowRow,
    slots::{SlotId, SlotOneTimeRow, SlotPqRow},
};
pub use crate::store::many::sqlite::{sessions, users};
use crate::{
    domain::KeyKind,
    store::{
        StoreError,
        many::sqlite::{by_ids, hex, ids, json},
        rows,
        sql::claims::sqlite as texts,
    },
};

/// What a transaction counts holds when it is committed.
pub const WRITES_ALONE: bool = true;

by_ids!(targets, texts::TARGETS_OF_MANY, rows::UserTargetRow);
by_ids!(devices, texts::DEVICES_OF_MANY, (Uuid, Uuid, bool));
by_ids!(last_resorts, texts::LAST_RESORTS, (Uuid, i64, Vec<u8>, Vec<u8>));

/// A query over slots; none is made for an empty list.
macro_rules! over_slots {
    ($name:ident, $text:expr, $row:ty $(, $parameter:ident: $kind:ty)?) => {
        pub async fn $name(tx: &mut SqliteConnection, slots: &[SlotId] $(, $parameter: $kind)?) -> Result<Vec<$row>, StoreError> {
            if slots.is_empty() {
                return Ok(Vec::new());
            }
            let list: Vec<_> =
                slots.iter().map(|slot| (hex(slot.claimer), hex(slot.claim), hex(slot.device))).collect();
            Ok(sqlx::query_as($text).bind(json(&list))$(.bind($parameter))?.fetch_all(tx).await?)
        }
    };
}

over_slots!(claimed_one_time, texts::CLAIMED_ONE_TIME_OF_MANY, SlotOneTimeRow);
over_slots!(claimed_pq, texts::CLAIMED_PQ_OF_MANY, SlotPqRow);
over_slots!(claim_one_time, texts::CLAIM_ONE_TIME_OF_MANY, SlotOneTimeRow, now: DateTime<Utc>);
over_slots!(claim_pq, texts::CLAIM_PQ_OF_MANY, SlotPqRow, now: DateTime<Utc>);

/// Counts pools of a kind.
pub async fn low_pools(
    connection: &mut SqliteConnection,
    kind: KeyKind,
    devices: &[Uuid],
    threshold: u32,
) -> Result<Vec<LowRow>, StoreError> {
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    let text = match kind {
        KeyKind::OneTime => texts::LOW_ONE_TIME,
        KeyKind::PqOneTime => texts::LOW_PQ,
    };
    Ok(sqlx::query_as(text).bind(ids(devices)).bind(i64::from(threshold)).fetch_all(connection).await?)
}
