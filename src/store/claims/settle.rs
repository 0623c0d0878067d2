//! Claims that came up short on PostgreSQL, where others may hold the keys that a claim wants.
//!
//! The transaction of a batch skips locked rows. What comes up short of a pool that still shows unissued keys is settled
//! after that commit, alone, with a lock that waits; only there, or where the pool shows none, is "exhausted" said.

use std::collections::{BTreeSet, HashSet};

use uuid::Uuid;

use super::{
    ClaimRequest, Short,
    levels::announce_or_leave,
    slots::{self, Slots},
};
use crate::{
    domain::{Bundles, DeviceId, KeyKind, Signal},
    store::{Postgres, StoreError, attempt, authorize, rows, run, sql::claims as texts},
};

/// Tries to find the earlier claim after a parallel repeat has won.
const SETTLE_TRIES: usize = 3;

/// The pools of which a slot came up short although they show unissued keys.
pub async fn unissued(engine: &Postgres, slots: &Slots) -> Result<HashSet<(DeviceId, KeyKind)>, StoreError> {
    let mut waiting = HashSet::new();
    for (kind, text) in [(KeyKind::OneTime, texts::UNISSUED_ONE_TIME), (KeyKind::PqOneTime, texts::UNISSUED_PQ)] {
        let devices: HashSet<Uuid> = slots.wanting(kind).into_iter().map(|id| id.device).collect();
        if !devices.is_empty() {
            let devices: Vec<Uuid> = devices.into_iter().collect();
            let query = sqlx::query_as(text).bind(devices);
            let rows: Vec<(Uuid,)> = run!(engine.connections, |db| query.fetch_all(db).await?)?;
            waiting.extend(rows.into_iter().map(|(device,)| (DeviceId(device), kind)));
        }
    }
    Ok(waiting)
}

/// The blocking pass of a claim that came up short.
pub async fn settle(
    engine: &Postgres,
    short: Short,
    threshold: u32,
) -> Result<(Bundles, Vec<(DeviceId, Signal)>), StoreError> {
    let Short { request, mut answer, waiting } = short;
    let mut touched = BTreeSet::new();
    for (device, kind) in waiting {
        let Some(bundle) = answer.bundles.iter_mut().find(|bundle| bundle.device_id == device) else { continue };
        match kind {
            KeyKind::OneTime => {
                let three = (texts::CLAIMED_ONE_TIME, texts::WAIT_FOR_ONE_TIME, texts::UNISSUED_ONE_TIME);
                let row: Option<rows::OneTimeRow> = wait_for_key!(engine, request, device, three);
                if row.is_some() {
                    touched.insert((device, kind));
                    slots::fill(bundle, row, None, true)?;
                }
            }
            KeyKind::PqOneTime => {
                let three = (texts::CLAIMED_PQ, texts::WAIT_FOR_PQ, texts::UNISSUED_PQ);
                let row: Option<rows::PqRow> = wait_for_key!(engine, request, device, three);
                if let Some(row) = row {
                    touched.insert((device, kind));
                    bundle.pq_prekey = Some(rows::pq(row, false)?);
                }
            }
        }
    }
    let low = announce_or_leave(engine, touched, threshold).await;
    Ok((answer, low))
}

/// Takes a key of the pool for the claim, or finds the one that a parallel repeat took; waits for whoever holds the
/// oldest. `None` once the pool shows no unissued key.
macro_rules! wait_for_key {
    ($engine:ident, $request:ident, $device:ident, $texts:ident) => {{
        let (earlier, wait, unissued) = $texts;
        let ClaimRequest { caller, claim, now, .. } = &$request;
        let mut lost = 0;
        loop {
            let run = async {
                let row = attempt!($engine, |tx| {
                    authorize!(tx, caller, now);
                    let row = sqlx::query_as(earlier)
                        .bind(caller.device.0)
                        .bind(claim.0)
                        .bind($device.0)
                        .fetch_optional(&mut *tx)
                        .await?;
                    match row {
                        Some(row) => Some(row),
                        None => {
                            sqlx::query_as(wait)
                                .bind($device.0)
                                .bind(caller.device.0)
                                .bind(claim.0)
                                .bind(now.to_utc())
                                .fetch_optional(&mut *tx)
                                .await?
                        }
                    }
                });
                Ok::<_, StoreError>(row)
            };
            match run.await {
                Ok(Some(row)) => break Some(row),
                Ok(None) => {
                    let query = sqlx::query_as(unissued).bind(vec![$device.0]);
                    let left: Option<(Uuid,)> = run!($engine.connections, |db| query.fetch_optional(db).await?)?;
                    if left.is_none() {
                        break None;
                    }
                }
                // A parallel repeat of the same claim won the unique index; its key is found on the next run.
                Err(StoreError::Data(_)) if lost < SETTLE_TRIES => lost += 1,
                Err(error) => return Err(error),
            }
        }
    }};
}
use wait_for_key;
