//! Low-water levels: who tells the owner that a pool runs low.
//!
//! Pools are counted, and a conditional update of the announced depth decides who tells, once per level. On SQLite that is
//! part of the claims' transaction, since the writer is alone. On PostgreSQL it comes after the commit, so that two nodes
//! neither both tell nor both miss: claims that count inside their transactions do not see each other.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::postgres;
use crate::{
    domain::{DeviceId, KeyKind, Signal, bundle::depth},
    store::{Postgres, StoreError, rows, run, sql::claims as texts},
};

/// Counts of a pool that is refilled while it is counted.
pub const COUNT_TRIES: usize = 3;

/// device, what is left, pool version, announced depth.
pub type LowRow = (Uuid, i64, i64, i32);

/// A pool at or under the threshold.
pub struct LowPool {
    pub device: DeviceId,
    pub signal: Signal,
    pub pool_version: i64,
    /// How many levels it has fallen to.
    pub depth: i32,
    /// Whether that is more than was announced before.
    pub news: bool,
}

impl LowPool {
    pub fn from_row(kind: KeyKind, row: LowRow, threshold: u32) -> Result<Self, StoreError> {
        let (device, remaining, pool_version, announced) = row;
        let remaining = rows::number(remaining)?;
        let depth = depth(remaining, threshold);
        let signal = Signal::PrekeysLow { kind, remaining, pool_version };
        Ok(Self { device: DeviceId(device), signal, pool_version, depth, news: depth > announced })
    }
}

/// The devices of the pools of a kind.
pub fn devices_of(pools: &BTreeSet<(DeviceId, KeyKind)>, kind: KeyKind) -> Vec<Uuid> {
    pools.iter().filter(|(_, one)| *one == kind).map(|(device, _)| device.0).collect()
}

/// The text that announces a depth.
pub fn announcement(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::OneTime => texts::ANNOUNCE_ONE_TIME,
        KeyKind::PqOneTime => texts::ANNOUNCE_PQ,
    }
}

/// Counts pools and raises the announced depth of those that are deeper than announced. A pool that is refilled between the
/// two is counted again.
macro_rules! low_pools {
    ($connection:ident, $engine:ident, $pools:expr, $threshold:expr) => {{
        let mut low: Vec<$crate::store::claims::levels::LowPool> = Vec::new();
        for kind in [KeyKind::OneTime, KeyKind::PqOneTime] {
            let mut devices = $crate::store::claims::levels::devices_of($pools, kind);
            for _ in 0..$crate::store::claims::levels::COUNT_TRIES {
                let counted = $engine::low_pools($connection, kind, &std::mem::take(&mut devices), $threshold).await?;
                for row in counted {
                    let pool = $crate::store::claims::levels::LowPool::from_row(kind, row, $threshold)?;
                    if pool.news {
                        let raised: Option<(uuid::Uuid,)> =
                            sqlx::query_as($crate::store::claims::levels::announcement(kind))
                                .bind(pool.device.0)
                                .bind(pool.depth)
                                .bind(pool.pool_version)
                                .fetch_optional(&mut *$connection)
                                .await?;
                        if raised.is_none() {
                            // Announced by somebody else, or refilled: the next count tells.
                            devices.push(pool.device.0);
                            continue;
                        }
                    }
                    low.push(pool);
                }
            }
        }
        low
    }};
}
pub(super) use low_pools;

/// What is to be told of pools after a claim that touched them.
pub fn news(low: Vec<LowPool>) -> Vec<(DeviceId, Signal)> {
    low.into_iter().filter(|pool| pool.news).map(|pool| (pool.device, pool.signal)).collect()
}

async fn count(
    engine: &Postgres,
    pools: &BTreeSet<(DeviceId, KeyKind)>,
    threshold: u32,
) -> Result<Vec<LowPool>, StoreError> {
    if pools.is_empty() {
        return Ok(Vec::new());
    }
    run!(engine.connections, |db| low_pools!(db, postgres, pools, threshold))
}

/// The owners to be told after a commit that must not be undone by a failure here: the reconcile tells what this does not.
pub async fn announce_or_leave(
    engine: &Postgres,
    touched: BTreeSet<(DeviceId, KeyKind)>,
    threshold: u32,
) -> Vec<(DeviceId, Signal)> {
    let low = count(engine, &touched, threshold).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "could not announce low pools");
        Vec::new()
    });
    news(low)
}

/// All low pools of these devices, announced or not: for owners who may have missed it.
pub async fn all_low(
    engine: &Postgres,
    devices: &[DeviceId],
    threshold: u32,
) -> Result<Vec<(DeviceId, Signal)>, StoreError> {
    let kinds = [KeyKind::OneTime, KeyKind::PqOneTime];
    let pools = devices.iter().flat_map(|device| kinds.map(|kind| (*device, kind))).collect();
    let low = count(engine, &pools, threshold).await?;
    Ok(low.into_iter().map(|pool| (pool.device, pool.signal)).collect())
}
