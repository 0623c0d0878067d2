//! Low-water levels: decides which node announces to the owner that a pool is low.
//!
//! Pools are counted, and a conditional update of the number of announced levels decides which node announces a level,
//! so that each is announced once. On SQLite, which has one writer, this is part of the claims' transaction. On
//! PostgreSQL it follows the commit: concurrent transactions do not see each other's claims, so both could miss a
//! level.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::KeyPool;
use crate::{
    domain::{DeviceId, KeyKind, Signal, bundle::levels_reached},
    store::{
        StoreError, rows,
        sql::{Sql, claims as sql},
        tx::Tx,
    },
};

/// Maximum number of times that a pool is counted, if it changes between the count and the update.
const COUNT_TRIES: usize = 3;

/// Device, unissued keys, pool version, number of announced levels.
type LowPoolRow = (Uuid, i64, i64, i32);

/// A pool at or below the low-water mark.
pub struct LowPool {
    pub device: DeviceId,
    pub signal: Signal,
    /// Whether it has fallen to a level that was not announced before.
    is_new: bool,
}

/// The statements that count pools and that raise the number of announced levels.
fn statements(kind: KeyKind) -> (Sql, Sql) {
    match kind {
        KeyKind::OneTime => (sql::LOW_ONE_TIME, sql::ANNOUNCE_ONE_TIME),
        KeyKind::PqOneTime => (sql::LOW_PQ, sql::ANNOUNCE_PQ),
    }
}

/// Counts pools, and raises the number of announced levels of those that have fallen to further levels. If another node
/// announces the level or the pool is refilled after the count, the pool is counted again.
pub async fn low_pools(
    tx: &mut Tx<'_>,
    pools: &BTreeSet<KeyPool>,
    low_watermark: u32,
) -> Result<Vec<LowPool>, StoreError> {
    let mut low = Vec::new();
    for kind in KeyKind::ALL {
        let (count, announce) = statements(kind);
        let mut devices: Vec<Uuid> = pools.iter().filter(|(_, one)| *one == kind).map(|(device, _)| device.0).collect();
        for _ in 0..COUNT_TRIES {
            let counted: Vec<LowPoolRow> = tx
                .query(count)
                .bind_ids(&std::mem::take(&mut devices))
                .bind(i64::from(low_watermark))
                .fetch_all()
                .await?;
            for (device, remaining, pool_version, announced) in counted {
                let remaining = rows::number(remaining)?;
                let reached = levels_reached(remaining, low_watermark);
                let is_new = reached > announced;
                if is_new {
                    let raised: Option<(Uuid,)> =
                        tx.query(announce).bind(device).bind(reached).bind(pool_version).fetch_optional().await?;
                    if raised.is_none() {
                        // Another node announced the level, or the pool was refilled. Count again to find out which.
                        devices.push(device);
                        continue;
                    }
                }
                let signal = Signal::PrekeysLow { kind, remaining, pool_version };
                low.push(LowPool { device: DeviceId(device), signal, is_new });
            }
        }
    }
    Ok(low)
}

/// The signals for pools that have fallen to a level that was not announced before.
pub fn newly_low(low: Vec<LowPool>) -> Vec<(DeviceId, Signal)> {
    low.into_iter().filter(|pool| pool.is_new).map(|pool| (pool.device, pool.signal)).collect()
}
