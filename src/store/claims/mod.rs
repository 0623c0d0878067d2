//! Claims: each one-time key is handed out at most once, ever.
//!
//! A claim's memory is the tombstone itself: claimer and claim id stand on the issued row for a day, set by the statement
//! that issues it, so that a repeat finds its key there and two parallel repeats cannot both win.
//!
//! A batch is one transaction of a few set-based statements, whatever its size. What it wants and has is kept in memory
//! (`drafts`, `slots`); each engine has its own statements. On PostgreSQL others may hold keys meanwhile: see `settle`.

mod drafts;
mod levels;
mod postgres;
mod settle;
mod slots;
mod sqlite;
mod tokens;

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use super::{Store, StoreError, error::fail_all, many::batch_transaction};
use crate::domain::{Bundles, Caller, ClaimId, DeviceId, KeyKind, Signal, Timestamp, UserId, bucket::DrainLimit};
use drafts::{Facts, add_last_resorts, distinct, explain_missing, missing};
use slots::Slots;
use tokens::TakenTokens;

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
    request: ClaimRequest,
    answer: Bundles,
    /// The devices whose pools are to be waited for.
    waiting: Vec<(DeviceId, KeyKind)>,
}

impl Store {
    /// Serves many claims in one commit. One that fails for a reason of its own fails alone.
    pub async fn claim(&self, items: Vec<ClaimRequest>, drain: &Arc<DrainLimit>, threshold: u32) -> ClaimBatch {
        let mut tries = 1;
        loop {
            let mut taken = TakenTokens::none(drain);
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
                Err(error @ (StoreError::Unavailable(_) | StoreError::Conflict(_) | StoreError::Data(_)))
                    if tries < CLAIM_TRIES && !error.is_out_of_reach() =>
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
        let Some(now) = items.first().map(|item| item.now.to_utc()) else {
            return Ok(ClaimBatch { answers: Vec::new(), low: Vec::new() });
        };
        let (drafts, slots, mut touched, low) = batch_transaction!(self, claims, |tx, engine| {
            let sessions = engine::sessions(tx, &distinct(items.iter().map(|item| item.caller.session.0))).await?;
            let users = distinct(items.iter().map(|item| item.user.0));
            let mut facts = Facts::new(sessions, engine::targets(tx, &users).await?);
            facts.add_users(engine::users(tx, &facts.without_targets(users)).await?);
            let drafts = facts.drafts(items)?;
            let known = engine::devices(tx, &missing(&drafts)).await?;
            let mut drafts = explain_missing(items, drafts, known);

            let mut slots = Slots::of(items, &drafts);
            slots.put_one_time(engine::claimed_one_time(tx, &slots.with(KeyKind::OneTime)).await?);
            slots.put_pq(engine::claimed_pq(tx, &slots.with(KeyKind::PqOneTime)).await?);
            slots.allow(items, tokens);
            let taken = engine::claim_one_time(tx, &slots.wanting(KeyKind::OneTime), now).await?;
            let taken_pq = engine::claim_pq(tx, &slots.wanting(KeyKind::PqOneTime), now).await?;
            let mut touched: BTreeSet<(DeviceId, KeyKind)> = BTreeSet::new();
            touched.extend(slots.put_one_time(taken).into_iter().map(|device| (device, KeyKind::OneTime)));
            touched.extend(slots.put_pq(taken_pq).into_iter().map(|device| (device, KeyKind::PqOneTime)));
            slots.give_back(items, tokens);
            add_last_resorts(&mut drafts, engine::last_resorts(tx, &slots.without_pq()).await?)?;

            let low = if engine::WRITES_ALONE {
                levels::news(levels::low_pools!(tx, engine, &touched, threshold))
            } else {
                Vec::new()
            };
            (drafts, slots, touched, low)
        });
        tokens.keep();
        let Self::Postgres(engine) = self else {
            return Ok(ClaimBatch { answers: slots.answers(items, drafts, &HashSet::new())?, low });
        };
        // What an earlier run took, it may not have lived to announce.
        touched.extend(slots.touched_earlier());
        let unissued = settle::unissued(engine, &slots).await?;
        let answers = slots.answers(items, drafts, &unissued)?;
        let low = levels::announce_or_leave(engine, touched, threshold).await;
        Ok(ClaimBatch { answers, low })
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
            Self::Postgres(engine) => settle::settle(engine, short, threshold).await,
        }
    }

    /// The low pools of these devices, for owners who may have missed the news. SQLite has one node, which cannot miss
    /// its own.
    ///
    /// # Errors
    /// The store's own.
    pub async fn low_pools(&self, devices: &[DeviceId], threshold: u32) -> Result<Vec<(DeviceId, Signal)>, StoreError> {
        match self {
            Self::Sqlite(_) => Ok(Vec::new()),
            Self::Postgres(engine) => levels::all_low(engine, devices, threshold).await,
        }
    }
}
