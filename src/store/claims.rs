//! Claims: each one-time key is issued at most once, ever.
//!
//! The record of a claim is the tombstone itself: the statement that issues a key writes the claimer and the claim id
//! into its row, where they stay for a day. A repeat finds its key there, and a unique index lets only one of two
//! parallel repeats write.
//!
//! A batch is one transaction of a few set-based statements, whatever its size. Which claim still needs which keys
//! is tracked in memory (`assignments`). On PostgreSQL, other transactions may have locked keys: see `blocking`.

mod assignments;
mod blocking;
mod levels;
mod strangers;
mod tokens;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    BatchItem, BatchOutcome, Store, StoreError,
    bundles::{BundleAssembly, Inquiry, KnownDevices, TargetDevices, add_last_resorts, distinct},
    rows,
    sql::accounts,
    tx::Tx,
};
use crate::domain::{
    AccessKey, Bundles, Caller, ClaimId, DeviceId, KeyKind, Refusal, Signal, Timestamp, UserId, bundle::UsableSuites,
    keyed_buckets::DrainLimit,
};
use assignments::Assignments;
use strangers::StrangerClaims;
use tokens::TakenTokens;

/// One of a device's two pools of one-time keys.
type KeyPool = (DeviceId, KeyKind);

/// A request for one-time keys of some or all devices of a user.
#[derive(Clone, Debug)]
pub struct ClaimRequest {
    /// The claiming session, user and device.
    pub caller: Caller,
    /// The user whose keys are claimed.
    pub user: UserId,
    /// The target devices; `None` for all that have published.
    pub devices: Option<Vec<DeviceId>>,
    /// The suites that the claimer can use.
    pub suites: UsableSuites,
    /// Chosen by the client; a repeat with the same id gets the same keys.
    pub claim: ClaimId,
    /// The access key that the claimer shows, if it has the form of one.
    pub access: Option<AccessKey>,
    /// The current time.
    pub now: Timestamp,
}

impl BatchItem for ClaimRequest {
    fn user(&self) -> Option<UserId> {
        Some(self.caller.user)
    }
}

impl ClaimRequest {
    fn inquiry(&self) -> Inquiry<'_> {
        Inquiry { caller: &self.caller, user: self.user, access: self.access.as_ref(), now: self.now }
    }
}

/// The answer to one claim.
#[derive(Debug)]
pub enum ClaimAnswer {
    /// The final answer.
    Done(Bundles),
    /// The claim may still get keys that other transactions had locked: see [`Claims::claim_blocking`].
    Blocked(Box<BlockedClaim>),
}

/// A claim that got no key from some pools although these have unissued keys, because other transactions had locked
/// them.
#[derive(Debug)]
pub struct BlockedClaim {
    request: ClaimRequest,
    answer: Bundles,
    /// The pools to wait for.
    waiting: Vec<KeyPool>,
    /// Whether the claimer is a stranger whose claims are limited.
    is_limited: bool,
}

/// Claims on a store, under a drain limit and a limit for strangers.
#[derive(Clone)]
pub struct Claims {
    store: Store,
    drain: Arc<DrainLimit>,
    /// Claims per hour of all strangers together that take keys of one device; 0 for no limit.
    stranger_limit: u32,
}

impl Claims {
    /// Claims on `store`. Claims over the drain limit get no one-time keys, nor do those over `stranger_limit`, the
    /// number per hour of all strangers together that take keys of one device (0 for no limit).
    #[must_use]
    pub fn new(store: Store, drain: DrainLimit, stranger_limit: u32) -> Self {
        Self { store, drain: Arc::new(drain), stranger_limit }
    }

    /// The same claims, under the same drain limit, but through another store of the same database.
    #[must_use]
    pub fn with_store(self, store: Store) -> Self {
        Self { store, ..self }
    }

    /// Serves a batch of claims in one transaction. A claim can fail without failing the others. The signals are for
    /// owners whose pools have fallen to a low-water level.
    pub async fn claim(&self, items: Vec<ClaimRequest>) -> BatchOutcome<ClaimAnswer> {
        let outcome = self.store.run_batch("claims", &items, |items, _| self.claim_once(items)).await;
        outcome.unwrap_or_else(|error| BatchOutcome::failed(&error, items.len()))
    }

    async fn claim_once(&self, items: &[ClaimRequest]) -> Result<BatchOutcome<ClaimAnswer>, StoreError> {
        let Some(now) = items.first().map(|item| item.now) else { return Ok(BatchOutcome::default()) };
        let mut tokens = TakenTokens::new(&self.drain);
        let mut tx = self.store.begin().await?;
        let assemblies = assemble(&mut tx, items).await?;
        let known = KnownDevices::read(&mut tx, assemblies.iter().flatten()).await?;
        let limited: Vec<bool> =
            assemblies.iter().map(|one| one.as_ref().is_ok_and(|assembly| assembly.is_limited)).collect();
        let finish = |(assembly, item): (Result<BundleAssembly, StoreError>, &ClaimRequest)| {
            assembly.map(|assembly| assembly.finish(&item.caller, item.user, &known))
        };
        let mut answers: Vec<Result<Bundles, StoreError>> = assemblies.into_iter().zip(items).map(finish).collect();

        let mut assignments = Assignments::new(items, &answers, &limited);
        let limited = assignments.limited_devices();
        let mut strangers = StrangerClaims::lock(&mut tx, limited, self.stranger_limit, now).await?;
        assignments.load_earlier(&mut tx).await?;
        assignments.apply_limits(items, &mut tokens, &mut strangers);
        let mut touched = assignments.take_keys(&mut tx, now).await?;
        assignments.refund_unused(items, &mut tokens, &mut strangers);
        strangers.write(&mut tx).await?;
        let bundles = answers.iter_mut().flatten().flat_map(|answer| &mut answer.bundles);
        add_last_resorts(&mut tx, &assignments.without_pq_key(), bundles).await?;
        if tx.is_sole_writer() {
            let low = levels::low_pools(&mut tx, &touched, self.store.settings.low_watermark).await?;
            tx.commit().await?;
            tokens.commit();
            let answers = assignments.answers(items, answers, &HashSet::new());
            return Ok(BatchOutcome { answers, signals: levels::newly_low(low) });
        }
        tx.commit().await?;
        tokens.commit();
        // A node may have committed an earlier run of a claim and stopped before it announced the low pool.
        touched.extend(assignments.touched_earlier());
        let blocked = blocking::blocked_pools(&self.store, &assignments).await?;
        let answers = assignments.answers(items, answers, &blocked);
        Ok(BatchOutcome { answers, signals: self.store.announce(&touched).await })
    }
}

/// For each claim, its bundles without one-time keys, or its refusal.
async fn assemble(
    tx: &mut Tx<'_>,
    items: &[ClaimRequest],
) -> Result<Vec<Result<BundleAssembly, StoreError>>, StoreError> {
    type CallerSessionRow = (Uuid, Uuid, DateTime<Utc>, i64);
    let sessions = distinct(items.iter().map(|item| item.caller.session.0));
    let sessions: Vec<CallerSessionRow> = tx.query(accounts::SESSIONS_OF_MANY).bind_ids(&sessions).fetch_all().await?;
    let sessions: HashMap<Uuid, (Uuid, Timestamp)> = sessions
        .into_iter()
        .map(|(session, device, expires_at, _)| (session, (device, rows::time(expires_at))))
        .collect();
    let inquiries: Vec<Inquiry<'_>> = items.iter().map(ClaimRequest::inquiry).collect();
    let targets = TargetDevices::read(tx, &inquiries).await?;
    let assemble = |(item, inquiry): (&ClaimRequest, &Inquiry<'_>)| {
        let ClaimRequest { caller, devices, suites, now, .. } = item;
        let session = sessions.get(&caller.session.0);
        let is_valid = session.is_some_and(|(device, expires_at)| *device == caller.device.0 && expires_at > now);
        if !is_valid {
            return Err(Refusal::SessionRevoked.into());
        }
        targets.assemble(inquiry, devices.as_deref(), suites)
    };
    Ok(items.iter().zip(&inquiries).map(assemble).collect())
}

impl Store {
    /// Signals for the low pools of these devices, whose owners may have missed earlier ones. Empty on SQLite, where
    /// the only node cannot miss its own signals.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn low_pools(&self, devices: &[DeviceId]) -> Result<Vec<(DeviceId, Signal)>, StoreError> {
        let mut tx = self.read().await?;
        if tx.is_sole_writer() {
            return Ok(Vec::new());
        }
        let pools = devices.iter().flat_map(|device| KeyKind::ALL.map(|kind| (*device, kind))).collect();
        let low = levels::low_pools(&mut tx, &pools, self.settings.low_watermark).await?;
        tx.end_statements().await?;
        Ok(low.into_iter().map(|pool| (pool.device, pool.signal)).collect())
    }

    /// Counts pools after the commit that took keys from them, and returns the signals for their owners. Best effort:
    /// failures are logged, and the reconciler catches up.
    async fn announce(&self, touched: &BTreeSet<KeyPool>) -> Vec<(DeviceId, Signal)> {
        if touched.is_empty() {
            return Vec::new();
        }
        let low = async {
            let mut tx = self.read().await?;
            let low = levels::low_pools(&mut tx, touched, self.settings.low_watermark).await?;
            tx.end_statements().await?;
            Ok::<_, StoreError>(low)
        };
        match low.await {
            Ok(low) => levels::newly_low(low),
            Err(error) => {
                tracing::warn!(%error, "cannot announce low pools of prekeys; the reconciler will");
                Vec::new()
            }
        }
    }
}
