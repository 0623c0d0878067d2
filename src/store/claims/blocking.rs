//! Claims that wait for keys which other transactions have locked. PostgreSQL only.
//!
//! The transaction of a batch skips locked keys. If a claim got no key from a pool that still has unissued ones, it
//! runs again after the commit, alone, and waits for the lock. So a pool is never reported as exhausted just because
//! its keys were locked.

use std::collections::{BTreeSet, HashSet};

use uuid::Uuid;

use super::{
    BlockedClaim, ClaimRequest, Claims, KeyPool,
    assignments::{Assignments, OneTimeRow, PqRow, one_time_key, pq_key, set_one_time},
};
use crate::{
    domain::{Bundles, DeviceId, KeyKind, Signal},
    store::{
        Store, StoreError, sessions,
        sql::{Sql, claims as sql},
        tx::{Column, DecodeRow},
    },
};

/// Maximum number of attempts if a parallel repeat of the same claim writes first.
const TRIES: usize = 4;

/// The statements of a blocking claim for a pool of one kind.
struct BlockingClaimStatements {
    claimed: Sql,
    wait: Sql,
    unissued: Sql,
}

impl BlockingClaimStatements {
    fn of(kind: KeyKind) -> Self {
        match kind {
            KeyKind::OneTime => {
                Self { claimed: sql::CLAIMED_ONE_TIME, wait: sql::WAIT_FOR_ONE_TIME, unissued: sql::UNISSUED_ONE_TIME }
            }
            KeyKind::PqOneTime => Self { claimed: sql::CLAIMED_PQ, wait: sql::WAIT_FOR_PQ, unissued: sql::UNISSUED_PQ },
        }
    }
}

/// The pools from which a claim got no key although they have unissued ones.
pub async fn blocked_pools(store: &Store, assignments: &Assignments) -> Result<HashSet<KeyPool>, StoreError> {
    let mut blocked = HashSet::new();
    for kind in KeyKind::ALL {
        let devices: Vec<Uuid> = assignments.devices_lacking(kind).into_iter().collect();
        if !devices.is_empty() {
            let found = unissued(store, kind, &devices).await?;
            blocked.extend(found.into_iter().map(|device| (DeviceId(device), kind)));
        }
    }
    Ok(blocked)
}

/// Those of `devices` whose pools have unissued keys, locked or not.
async fn unissued(store: &Store, kind: KeyKind, devices: &[Uuid]) -> Result<Vec<Uuid>, StoreError> {
    let text = BlockingClaimStatements::of(kind).unissued;
    let found: Vec<(Uuid,)> = store.read().await?.query(text).bind_ids(devices).fetch_all().await?;
    Ok(found.into_iter().map(|(device,)| device).collect())
}

impl Claims {
    /// Completes a blocked claim: waits for the transactions that have locked the keys. Returns the bundles, and
    /// signals for owners whose pools have fallen to a low-water level.
    ///
    /// # Errors
    /// `session_revoked`; `unavailable` if a lock is held too long.
    pub async fn claim_blocking(
        &self,
        blocked: BlockedClaim,
    ) -> Result<(Bundles, Vec<(DeviceId, Signal)>), StoreError> {
        let BlockedClaim { request, mut answer, waiting } = blocked;
        let mut touched = BTreeSet::new();
        for (device, kind) in waiting {
            let Some(bundle) = answer.bundles.iter_mut().find(|bundle| bundle.device_id == device) else { continue };
            let took = match kind {
                KeyKind::OneTime => {
                    let row: Option<OneTimeRow> = self.wait_for_key(&request, device, kind).await?;
                    row.map(one_time_key).transpose()?.map(|key| set_one_time(bundle, Some(key), true))
                }
                KeyKind::PqOneTime => {
                    let row: Option<PqRow> = self.wait_for_key(&request, device, kind).await?;
                    row.map(pq_key).transpose()?.map(|key| bundle.pq_prekey = Some(key))
                }
            };
            if took.is_some() {
                touched.insert((device, kind));
            }
        }
        let signals = self.store.announce(&touched).await;
        Ok((answer, signals))
    }

    /// Takes a key of the pool, or finds the one that a parallel repeat took. `None` once the pool has no unissued key.
    async fn wait_for_key<R: DecodeRow>(
        &self,
        request: &ClaimRequest,
        device: DeviceId,
        kind: KeyKind,
    ) -> Result<Option<R>, StoreError> {
        let mut tries = 1;
        loop {
            match self.store.retrying(|| self.take_or_wait(request, device, kind)).await {
                Ok(Some(row)) => return Ok(Some(row)),
                Ok(None) => {
                    if unissued(&self.store, kind, &[device.0]).await?.is_empty() {
                        return Ok(None);
                    }
                }
                // A parallel repeat of the same claim was first; the next run finds its key.
                Err(StoreError::Data(_)) if tries < TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    async fn take_or_wait<R: DecodeRow>(
        &self,
        request: &ClaimRequest,
        device: DeviceId,
        kind: KeyKind,
    ) -> Result<Option<R>, StoreError> {
        let ClaimRequest { caller, claim, now, .. } = request;
        let statements = BlockingClaimStatements::of(kind);
        let mut tx = self.store.begin().await?;
        sessions::authorize(&mut tx, caller, *now).await?;
        let this_claim = [caller.device.0, claim.0, device.0].map(|id| Column::Ids(vec![id]));
        let mut row: Option<R> = tx.query(statements.claimed).bind_rows(this_claim).fetch_optional().await?;
        if row.is_none() {
            row = tx
                .query(statements.wait)
                .bind(device.0)
                .bind(caller.device.0)
                .bind(claim.0)
                .bind(now.to_utc())
                .fetch_optional()
                .await?;
        }
        tx.commit().await?;
        Ok(row)
    }
}
