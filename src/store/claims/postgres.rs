//! The statements of a batch of claims on PostgreSQL.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    levels::LowRow,
    slots::{SlotId, SlotOneTimeRow, SlotPqRow},
};
pub use crate::store::many::postgres::{sessions, users};
use crate::{
    domain::KeyKind,
    store::{StoreError, many::postgres::by_ids, rows, sql::claims as texts},
};

/// Others write at the same time.
pub const WRITES_ALONE: bool = false;

by_ids!(targets, texts::TARGETS_OF_MANY, rows::UserTargetRow);
by_ids!(devices, texts::DEVICES_OF_MANY, (Uuid, Uuid, bool));
by_ids!(last_resorts, texts::LAST_RESORTS, (Uuid, i64, Vec<u8>, Vec<u8>));

/// A query over slots; none is made for an empty list.
macro_rules! over_slots {
    ($name:ident, $text:expr, $row:ty $(, $parameter:ident: $kind:ty)?) => {
        pub async fn $name(tx: &mut PgConnection, slots: &[SlotId] $(, $parameter: $kind)?) -> Result<Vec<$row>, StoreError> {
            if slots.is_empty() {
                return Ok(Vec::new());
            }
            let column = |get: fn(&SlotId) -> Uuid| slots.iter().map(get).collect::<Vec<_>>();
            let query = sqlx::query_as($text)
                .bind(column(|slot| slot.claimer))
                .bind(column(|slot| slot.claim))
                .bind(column(|slot| slot.device));
            Ok(query$(.bind($parameter))?.fetch_all(tx).await?)
        }
    };
}

over_slots!(claimed_one_time, texts::CLAIMED_ONE_TIME_OF_MANY, SlotOneTimeRow);
over_slots!(claimed_pq, texts::CLAIMED_PQ_OF_MANY, SlotPqRow);
over_slots!(claim_one_time, texts::CLAIM_ONE_TIME_OF_MANY, SlotOneTimeRow, now: DateTime<Utc>);
over_slots!(claim_pq, texts::CLAIM_PQ_OF_MANY, SlotPqRow, now: DateTime<Utc>);

/// Counts pools of a kind.
pub async fn low_pools(
    connection: &mut PgConnection,
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
    Ok(sqlx::query_as(text).bind(devices).bind(i64::from(threshold)).fetch_all(connection).await?)
}
