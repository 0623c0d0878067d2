//! Claims: each one-time key is handed out at most once, ever.
//!
//! A claim's memory is the tombstone itself: claimer and claim id stand on the issued row for a day, set by the statement
//! that issues it, so that a repeat finds its key there and two parallel repeats cannot both win.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::time::Instant;

use super::{
    Sqlite, Store, StoreError, authorize,
    bundles::{Draft, Target, absent, bundles, draft, last_resort},
    claims_postgres,
    error::fail_all,
    prekeys::pool_size,
    rows, sql,
};
use crate::domain::{
    Bundles, Caller, ClaimId, DeviceId, KeyKind, OneTimeOutcome, Refusal, Signal, Timestamp, UserId,
    bucket::DrainLimit, bundle::depth,
};

/// Runs of a batch whose outcome is unknown or that lost to another.
const CLAIM_TRIES: u32 = 4;

/// A request for one-time keys of some or all devices of a user.
#[derive(Clone, Debug)]
pub struct ClaimRequest {
    /// In whose name.
    pub caller: Caller,
    /// Whose keys.
    pub user: UserId,
    /// Which devices; all that are addressable if absent.
    pub devices: Option<Vec<DeviceId>>,
    /// The intent.
    pub claim: ClaimId,
    /// Now.
    pub now: Timestamp,
}

/// What a batch of claims came to.
pub struct ClaimBatch {
    /// One for each request, in order.
    pub answers: Vec<Result<ClaimAnswer, StoreError>>,
    /// Owners to be told, now that it is committed.
    pub low: Vec<(DeviceId, Signal)>,
}

/// The answer to one claim.
#[derive(Debug)]
pub enum ClaimAnswer {
    /// Complete.
    Done(Bundles),
    /// Some pools hold keys that other transactions held at that moment: see [`Store::settle`].
    Short(Box<Short>),
}

/// A claim that came up short of keys that exist.
#[derive(Debug)]
pub struct Short {
    pub(super) request: ClaimRequest,
    pub(super) answer: Bundles,
    /// The devices whose pools are to be waited for.
    pub(super) waiting: Vec<(DeviceId, KeyKind)>,
}

/// Drain-limit tokens of a transaction that has not committed; dropping gives them back.
pub(super) struct TakenTokens<'a> {
    drain: &'a DrainLimit,
    pairs: Vec<(UserId, DeviceId)>,
}

impl TakenTokens<'_> {
    pub(super) fn take(&mut self, user: UserId, target: DeviceId, now: Timestamp) -> bool {
        let taken = self.drain.take((user, target), now).is_ok();
        if taken {
            self.pairs.push((user, target));
        }
        taken
    }

    /// The claims are committed: what they took stays taken.
    pub(super) fn keep(&mut self) {
        self.pairs.clear();
    }

    /// A token was not needed: its claim took no key.
    pub(super) fn give_back(&mut self, user: UserId, target: DeviceId) {
        if let Some(at) = self.pairs.iter().rposition(|pair| *pair == (user, target)) {
            self.pairs.swap_remove(at);
            self.drain.give_back(&(user, target));
        }
    }
}

impl Drop for TakenTokens<'_> {
    fn drop(&mut self) {
        for pair in self.pairs.drain(..) {
            self.drain.give_back(&pair);
        }
    }
}

/// Fills a bundle's one-time parts: those of an earlier claim with the same id, else the oldest of each pool.
macro_rules! fill {
    ($tx:ident, $bundle:ident, $item:ident, $tokens:ident, $touched:ident) => {{
        let ClaimRequest { caller, claim, now, .. } = $item;
        let target = $bundle.device_id;
        let earlier: Option<rows::OneTimeRow> = sqlx::query_as(sql::CLAIMED_ONE_TIME)
            .bind(caller.device.0)
            .bind(claim.0)
            .bind(target.0)
            .fetch_optional(&mut *$tx)
            .await?;
        let earlier_pq: Option<rows::PqRow> = if $bundle.suite.has_pq() {
            sqlx::query_as(sql::CLAIMED_PQ)
                .bind(caller.device.0)
                .bind(claim.0)
                .bind(target.0)
                .fetch_optional(&mut *$tx)
                .await?
        } else {
            None
        };
        let counted = earlier.is_some() || earlier_pq.is_some();
        let mut one_time = earlier;
        let mut pq = earlier_pq;
        let wants_more = one_time.is_none() || (pq.is_none() && $bundle.suite.has_pq());
        let allowed = wants_more && (counted || $tokens.take(caller.user, target, *now));
        let mut took = false;
        if allowed && one_time.is_none() {
            one_time = take_oldest!($tx, sql::CLAIM_ONE_TIME, target, $item);
            if one_time.is_some() {
                took = true;
                $touched.insert((target, KeyKind::OneTime));
            }
        }
        if allowed && pq.is_none() && $bundle.suite.has_pq() {
            pq = take_oldest!($tx, sql::CLAIM_PQ, target, $item);
            if pq.is_some() {
                took = true;
                $touched.insert((target, KeyKind::PqOneTime));
            }
        }
        if allowed && !counted && !took {
            $tokens.give_back(caller.user, target);
        }
        $bundle.one_time = match (&one_time, allowed) {
            (Some(_), _) => OneTimeOutcome::Claimed,
            (None, true) => OneTimeOutcome::Exhausted,
            (None, false) => OneTimeOutcome::Limited,
        };
        $bundle.one_time_prekey = one_time.map(rows::one_time).transpose()?;
        match pq {
            Some(row) => $bundle.pq_prekey = Some(rows::pq(row, false)?),
            None => last_resort!(&mut *$tx, $bundle),
        }
    }};
}

macro_rules! take_oldest {
    ($tx:ident, $text:expr, $target:expr, $item:ident) => {
        sqlx::query_as($text)
            .bind($target.0)
            .bind($item.caller.device.0)
            .bind($item.claim.0)
            .bind($item.now.to_utc())
            .fetch_optional(&mut *$tx)
            .await?
    };
}

impl Store {
    /// Serves many claims in one commit. One that fails for a reason of its own fails alone.
    pub async fn claim(&self, items: Vec<ClaimRequest>, drain: &Arc<DrainLimit>, threshold: u32) -> ClaimBatch {
        let mut tries = 1;
        loop {
            let mut taken = TakenTokens { drain, pairs: Vec::new() };
            match self.try_claim(&items, &mut taken, threshold).await {
                Ok(batch) => {
                    taken.keep();
                    return batch;
                }
                Err(error @ (StoreError::Data(_) | StoreError::Internal(_))) if items.len() > 1 => {
                    tracing::warn!(%error, items = items.len(), "a batch of claims failed; running its items singly");
                    return self.claim_singly(items, drain, threshold).await;
                }
                // The commit's outcome may be unknown, or a parallel repeat of the same claim was first: on the next run
                // the claim ids find their keys.
                Err(StoreError::Unavailable(error) | StoreError::Conflict(error) | StoreError::Data(error))
                    if tries < CLAIM_TRIES =>
                {
                    tracing::debug!(%error, tries, "a batch of claims failed; trying again");
                    self.metrics().store_retries.inc();
                    tries += 1;
                }
                Err(error) => return ClaimBatch { answers: fail_all(&error, items.len()), low: Vec::new() },
            }
        }
    }

    async fn claim_singly(&self, items: Vec<ClaimRequest>, drain: &Arc<DrainLimit>, threshold: u32) -> ClaimBatch {
        let mut all = ClaimBatch { answers: Vec::with_capacity(items.len()), low: Vec::new() };
        for item in items {
            let one = Box::pin(self.claim(vec![item], drain, threshold)).await;
            all.answers.extend(one.answers);
            all.low.extend(one.low);
        }
        all
    }

    async fn try_claim(
        &self,
        items: &[ClaimRequest],
        tokens: &mut TakenTokens<'_>,
        threshold: u32,
    ) -> Result<ClaimBatch, StoreError> {
        match self {
            Self::Sqlite(engine) => claim_in_turn(engine, items, tokens, threshold).await,
            Self::Postgres(engine) => claims_postgres::claim(engine, items, tokens, threshold).await,
        }
    }

    /// Waits, for a claim that came up short, for whoever holds the keys that it wants. Only after that may it say
    /// "exhausted". Gives the owners to be told.
    ///
    /// # Errors
    /// `session_revoked`; `unavailable` where the holder takes too long.
    pub async fn settle(&self, short: Short, threshold: u32) -> Result<(Bundles, Vec<(DeviceId, Signal)>), StoreError> {
        match self {
            // One writer: nobody else can hold a key.
            Self::Sqlite(_) => Ok((short.answer, Vec::new())),
            Self::Postgres(engine) => claims_postgres::settle(engine, short, threshold).await,
        }
    }
}

/// SQLite: one item after the other, in one commit.
async fn claim_in_turn(
    engine: &Sqlite,
    items: &[ClaimRequest],
    tokens: &mut TakenTokens<'_>,
    threshold: u32,
) -> Result<ClaimBatch, StoreError> {
    let began = Instant::now();
    let mut transaction = engine.writer.begin_with("BEGIN IMMEDIATE").await?;
    let tx = &mut *transaction;
    let mut answers = Vec::with_capacity(items.len());
    let mut touched = BTreeSet::new();
    for item in items {
        // Refusals come before the first write of an item, so the others need no savepoint.
        let answer = async {
            let ClaimRequest { caller, user, devices, now, .. } = item;
            authorize!(tx, caller, now);
            let mut answer = bundles!(&mut *tx, caller, user, devices.as_deref(), *now);
            for bundle in &mut answer.bundles {
                fill!(tx, bundle, item, tokens, touched);
            }
            Ok::<_, StoreError>(ClaimAnswer::Done(answer))
        };
        match answer.await {
            Err(refused @ StoreError::Refused(_)) => answers.push(Err(refused)),
            answer => answers.push(Ok(answer?)),
        }
    }
    // The writer is alone, so the count inside the transaction is the count after the commit.
    let mut low = BTreeMap::new();
    for (device, kind) in touched {
        let (count, announce) = match kind {
            KeyKind::OneTime => (sql::COUNT_ONE_TIME, sql::ANNOUNCE_ONE_TIME),
            KeyKind::PqOneTime => (sql::COUNT_PQ, sql::ANNOUNCE_PQ),
        };
        let remaining = pool_size!(tx, count, device, threshold as usize + 1)?;
        let reached = depth(remaining, threshold);
        if reached > 0 {
            let announced: Option<(i64,)> =
                sqlx::query_as(announce).bind(device.0).bind(reached).fetch_optional(&mut *tx).await?;
            if let Some((pool_version,)) = announced {
                low.insert((device, kind), Signal::PrekeysLow { kind, remaining, pool_version });
            }
        }
    }
    transaction.commit().await?;
    engine.metrics.transaction_seconds.observe(began.elapsed().as_secs_f64());
    Ok(ClaimBatch { answers, low: low.into_iter().map(|((device, _), signal)| (device, signal)).collect() })
}
