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
    strangers::StrangerClaims,
};
use crate::{
    domain::{Bundles, DeviceId, KeyKind, Signal},
    store::{
        Store, StoreError, sessions,
        sql::{Sql, claims as sql},
        tx::{Column, DecodeRow, Tx},
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

/// What a wait for a key led to.
enum Waited<R> {
    /// The claim's key.
    Key(R),
    /// The pool has no unissued key.
    Exhausted,
    /// Strangers have taken as many keys of the device as they may.
    Limited,
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
        let BlockedClaim { request, mut answer, waiting, is_limited } = blocked;
        let mut touched = BTreeSet::new();
        for (device, kind) in waiting {
            let Some(bundle) = answer.bundles.iter_mut().find(|bundle| bundle.device_id == device) else { continue };
            let took = match kind {
                KeyKind::OneTime => match self.wait_for_key(&request, device, kind, is_limited).await? {
                    Waited::Key(row) => {
                        set_one_time(bundle, Some(one_time_key(row)?), true);
                        true
                    }
                    Waited::Exhausted => false,
                    Waited::Limited => {
                        set_one_time(bundle, None, false);
                        false
                    }
                },
                KeyKind::PqOneTime => match self.wait_for_key(&request, device, kind, is_limited).await? {
                    Waited::Key(row) => {
                        bundle.pq_prekey = Some(pq_key(row)?);
                        true
                    }
                    Waited::Exhausted | Waited::Limited => false,
                },
            };
            if took {
                touched.insert((device, kind));
            }
        }
        let signals = self.store.announce(&touched).await;
        Ok((answer, signals))
    }

    /// Takes a key of the pool, or finds the one that a parallel repeat took. `is_limited` says whether the claimer is a
    /// stranger whose claims are limited.
    async fn wait_for_key<R: DecodeRow>(
        &self,
        request: &ClaimRequest,
        device: DeviceId,
        kind: KeyKind,
        is_limited: bool,
    ) -> Result<Waited<R>, StoreError> {
        let mut tries = 1;
        loop {
            match self.store.retrying(|| self.take_or_wait(request, device, kind, is_limited)).await {
                Ok(Waited::Exhausted) => {
                    if unissued(&self.store, kind, &[device.0]).await?.is_empty() {
                        return Ok(Waited::Exhausted);
                    }
                }
                Ok(waited) => return Ok(waited),
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
        is_limited: bool,
    ) -> Result<Waited<R>, StoreError> {
        let ClaimRequest { caller, claim, now, .. } = request;
        let statements = BlockingClaimStatements::of(kind);
        let mut tx = self.store.begin().await?;
        sessions::authorize(&mut tx, caller, *now).await?;
        let limited = if is_limited { BTreeSet::from([device.0]) } else { BTreeSet::new() };
        let mut strangers = StrangerClaims::lock(&mut tx, limited, self.stranger_limit, *now).await?;
        let this_claim = || [caller.device.0, claim.0, device.0].map(|id| Column::Ids(vec![id]));
        let mut row: Option<R> = tx.query(statements.claimed).bind_rows(this_claim()).fetch_optional().await?;
        if row.is_none() {
            // A claim that took a key of another kind is counted already.
            if is_limited && !self.is_counted(&mut tx, this_claim).await? && !strangers.take(device, *now) {
                return Ok(Waited::Limited);
            }
            row = tx
                .query(statements.wait)
                .bind(device.0)
                .bind(caller.device.0)
                .bind(claim.0)
                .bind(now.to_utc())
                .fetch_optional()
                .await?;
            if row.is_some() {
                strangers.write(&mut tx).await?;
            }
        }
        tx.commit().await?;
        Ok(row.map_or(Waited::Exhausted, Waited::Key))
    }

    /// Whether a claim has taken a key of any kind.
    async fn is_counted(
        &self,
        tx: &mut Tx<'_>,
        this_claim: impl Fn() -> [Column<'static>; 3],
    ) -> Result<bool, StoreError> {
        let one_time: Option<OneTimeRow> =
            tx.query(sql::CLAIMED_ONE_TIME).bind_rows(this_claim()).fetch_optional().await?;
        let pq: Option<PqRow> = tx.query(sql::CLAIMED_PQ).bind_rows(this_claim()).fetch_optional().await?;
        Ok(one_time.is_some() || pq.is_some())
    }
}
