//! Claims on PostgreSQL, where others may hold the keys that a claim wants.
//!
//! The fast pass serves a whole batch by a few set-based statements and skips locked rows. What comes up short of a pool
//! that still shows unissued keys is settled after that commit, alone, with a lock that waits; only there, or where the
//! pool shows none, is "exhausted" said. Pools are counted after the commit, and a conditional update of the announced
//! depth decides who tells the owner, so that two nodes neither both tell nor both miss.

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    Postgres, StoreError, attempt, authorize,
    bundles::{Draft, Target, absent, draft},
    claims::{ClaimAnswer, ClaimBatch, ClaimRequest, Short, TakenTokens},
    rows, sql,
};
use crate::domain::{Bundle, Bundles, DeviceId, KeyKind, OneTimeOutcome, Refusal, Signal, Timestamp, bundle::depth};

/// Counts of a pool that is refilled while it is counted.
const COUNT_TRIES: usize = 3;
/// Tries to find the earlier claim after a parallel repeat has won.
const SETTLE_TRIES: usize = 3;

/// One claim on one device: the row that it wants to have its name on.
struct Slot {
    item: usize,
    device: DeviceId,
    has_pq: bool,
    one_time: Option<rows::OneTimeRow>,
    pq: Option<rows::PqRow>,
    /// Whether an earlier run of the same claim took something.
    counted: bool,
    allowed: bool,
}

/// Serves a batch.
pub(super) async fn claim(
    engine: &Postgres,
    items: &[ClaimRequest],
    tokens: &mut TakenTokens<'_>,
    threshold: u32,
) -> Result<ClaimBatch, StoreError> {
    let (pool, began) = (&engine.pool, Instant::now());
    let mut transaction = pool.begin().await?;
    let tx = &mut *transaction;
    let mut drafts = drafts(tx, items).await?;
    let mut slots = slots(items, &drafts);
    find_earlier(tx, items, &mut slots).await?;
    for slot in &mut slots {
        slot.counted = slot.one_time.is_some() || slot.pq.is_some();
        let wants_more = slot.one_time.is_none() || (slot.has_pq && slot.pq.is_none());
        let ClaimRequest { caller, now, .. } = &items[slot.item];
        slot.allowed = wants_more && (slot.counted || tokens.take(caller.user, slot.device, *now));
    }
    let mut touched = take(tx, items, &mut slots).await?;
    for slot in &slots {
        if slot.allowed && !slot.counted && slot.one_time.is_none() && slot.pq.is_none() {
            tokens.give_back(items[slot.item].caller.user, slot.device);
        }
    }
    add_last_resorts(tx, &mut drafts, &slots, items).await?;
    transaction.commit().await?;
    engine.metrics.transaction_seconds.observe(began.elapsed().as_secs_f64());
    tokens.keep();

    // What an earlier run took, it may not have lived to announce.
    let earlier = slots.iter().filter(|slot| slot.counted);
    touched.extend(earlier.flat_map(|slot| [(slot.device, KeyKind::OneTime), (slot.device, KeyKind::PqOneTime)]));
    let waiting = unissued(pool, &slots).await?;
    let answers = answers(items, drafts, slots, &waiting)?;
    let low = announce_or_leave(pool, touched, threshold).await;
    Ok(ClaimBatch { answers, low })
}

/// The answers without one-time parts, or why there is none.
async fn drafts(tx: &mut PgConnection, items: &[ClaimRequest]) -> Result<Vec<Result<Bundles, StoreError>>, StoreError> {
    let sessions: HashSet<Uuid> = items.iter().map(|item| item.caller.session.0).collect();
    let valid: Vec<(Uuid, Uuid, DateTime<Utc>)> = sqlx::query_as(sql::many::SESSIONS_OF_MANY)
        .bind(sessions.into_iter().collect::<Vec<_>>())
        .fetch_all(&mut *tx)
        .await?;
    let valid: HashMap<Uuid, (Uuid, DateTime<Utc>)> =
        valid.into_iter().map(|(session, device, expires_at)| (session, (device, expires_at))).collect();

    let users: HashSet<Uuid> = items.iter().map(|item| item.user.0).collect();
    let users: Vec<Uuid> = users.into_iter().collect();
    let mut targets: HashMap<Uuid, Vec<rows::TargetRow>> = HashMap::new();
    let rows: Vec<rows::UserTargetRow> = sqlx::query_as(sql::TARGETS_OF_MANY).bind(&users).fetch_all(&mut *tx).await?;
    for row in rows {
        let (user, row) = rows::split_user(row);
        targets.entry(user).or_default().push(row);
    }
    let empty: Vec<Uuid> = users.into_iter().filter(|user| !targets.contains_key(user)).collect();
    if !empty.is_empty() {
        let exist: Vec<(Uuid,)> = sqlx::query_as(sql::many::USERS_OF_MANY).bind(&empty).fetch_all(&mut *tx).await?;
        targets.extend(exist.into_iter().map(|(user,)| (user, Vec::new())));
    }

    let mut drafts = Vec::with_capacity(items.len());
    for ClaimRequest { caller, user, devices, now, .. } in items {
        let session_holds = valid
            .get(&caller.session.0)
            .is_some_and(|(device, expires_at)| *device == caller.device.0 && Timestamp::new(*expires_at) > *now);
        drafts.push(if !session_holds {
            Err(Refusal::SessionRevoked.into())
        } else if let Some(rows) = targets.get(&user.0) {
            let targets = rows.iter().cloned().map(Target::from_row).collect::<Result<Vec<_>, _>>()?;
            Ok(draft(targets, caller, devices.as_deref(), *now))
        } else {
            Err(Refusal::NotFound.into())
        });
    }
    explain_missing(tx, items, drafts).await
}

/// Says of each named device that is not among the user's active ones why it is not.
async fn explain_missing(
    tx: &mut PgConnection,
    items: &[ClaimRequest],
    drafts: Vec<Result<Draft, StoreError>>,
) -> Result<Vec<Result<Bundles, StoreError>>, StoreError> {
    let missing: Vec<Uuid> = drafts.iter().flatten().flat_map(|draft| draft.missing.iter().map(|id| id.0)).collect();
    let mut known: HashMap<(Uuid, Uuid), bool> = HashMap::new();
    if !missing.is_empty() {
        let rows: Vec<(Uuid, Uuid, bool)> =
            sqlx::query_as(sql::DEVICES_OF_MANY).bind(&missing).fetch_all(&mut *tx).await?;
        known.extend(rows.into_iter().map(|(device, user, revoked)| ((device, user), revoked)));
    }
    let explain = |(draft, item): (Result<Draft, StoreError>, &ClaimRequest)| {
        draft.map(|Draft { mut answer, missing }| {
            for device in missing {
                let revoked = known.get(&(device.0, item.user.0)).copied();
                answer.unavailable.push(absent(device, &item.caller, revoked));
            }
            answer
        })
    };
    Ok(drafts.into_iter().zip(items).map(explain).collect())
}

/// One slot for each claim and device. Repeats within the batch share one.
fn slots(items: &[ClaimRequest], drafts: &[Result<Bundles, StoreError>]) -> Vec<Slot> {
    let mut seen = HashSet::new();
    let mut slots = Vec::new();
    for (index, (item, draft)) in items.iter().zip(drafts).enumerate() {
        for bundle in draft.iter().flat_map(|answer| &answer.bundles) {
            if seen.insert((item.caller.device, item.claim, bundle.device_id)) {
                slots.push(Slot {
                    item: index,
                    device: bundle.device_id,
                    has_pq: bundle.suite.has_pq(),
                    one_time: None,
                    pq: None,
                    counted: false,
                    allowed: false,
                });
            }
        }
    }
    slots
}

/// The parameters of statements over many slots: ordinal, claimer, claim and device of each.
#[derive(Default)]
struct Columns {
    slot: Vec<i32>,
    claimer: Vec<Uuid>,
    claim: Vec<Uuid>,
    device: Vec<Uuid>,
}

impl Columns {
    fn of(items: &[ClaimRequest], slots: &[Slot], wanted: impl Fn(&Slot) -> bool) -> Self {
        let mut columns = Self::default();
        for (index, slot) in slots.iter().enumerate().filter(|(_, slot)| wanted(slot)) {
            let item = &items[slot.item];
            columns.slot.push(i32::try_from(index).unwrap_or(i32::MAX));
            columns.claimer.push(item.caller.device.0);
            columns.claim.push(item.claim.0);
            columns.device.push(slot.device.0);
        }
        columns
    }
}

/// The slot that a row's ordinal means.
fn slot_at(slots: &mut [Slot], ordinal: i32) -> Option<&mut Slot> {
    usize::try_from(ordinal).ok().and_then(|index| slots.get_mut(index))
}

macro_rules! over_slots {
    ($tx:ident, $text:expr, $columns:ident) => {
        sqlx::query_as($text).bind(&$columns.slot).bind(&$columns.claimer).bind(&$columns.claim).bind(&$columns.device)
    };
}

type SlotOneTimeRow = (i32, i64, Vec<u8>);
type SlotPqRow = (i32, i64, Vec<u8>, Vec<u8>);

/// Finds what earlier runs of the same claims took.
async fn find_earlier(tx: &mut PgConnection, items: &[ClaimRequest], slots: &mut [Slot]) -> Result<(), StoreError> {
    let all = Columns::of(items, slots, |_| true);
    if all.slot.is_empty() {
        return Ok(());
    }
    let rows: Vec<SlotOneTimeRow> = over_slots!(tx, sql::CLAIMED_ONE_TIME_OF_MANY, all).fetch_all(&mut *tx).await?;
    for (ordinal, key_id, public_key) in rows {
        if let Some(slot) = slot_at(slots, ordinal) {
            slot.one_time = Some((key_id, public_key));
        }
    }
    let pq = Columns::of(items, slots, |slot| slot.has_pq);
    if !pq.slot.is_empty() {
        let rows: Vec<SlotPqRow> = over_slots!(tx, sql::CLAIMED_PQ_OF_MANY, pq).fetch_all(&mut *tx).await?;
        for (ordinal, key_id, public_key, signature) in rows {
            if let Some(slot) = slot_at(slots, ordinal) {
                slot.pq = Some((key_id, public_key, signature));
            }
        }
    }
    Ok(())
}

/// Takes the oldest free keys for the slots that want some. Gives the pools that were touched.
async fn take(
    tx: &mut PgConnection,
    items: &[ClaimRequest],
    slots: &mut [Slot],
) -> Result<BTreeSet<(DeviceId, KeyKind)>, StoreError> {
    let mut touched = BTreeSet::new();
    let Some(now) = items.first().map(|item| item.now.to_utc()) else { return Ok(touched) };
    let wanted = Columns::of(items, slots, |slot| slot.allowed && slot.one_time.is_none());
    if !wanted.slot.is_empty() {
        let rows: Vec<SlotOneTimeRow> =
            over_slots!(tx, sql::CLAIM_ONE_TIME_OF_MANY, wanted).bind(now).fetch_all(&mut *tx).await?;
        for (ordinal, key_id, public_key) in rows {
            if let Some(slot) = slot_at(slots, ordinal) {
                slot.one_time = Some((key_id, public_key));
                touched.insert((slot.device, KeyKind::OneTime));
            }
        }
    }
    let wanted = Columns::of(items, slots, |slot| slot.allowed && slot.has_pq && slot.pq.is_none());
    if !wanted.slot.is_empty() {
        let rows: Vec<SlotPqRow> = over_slots!(tx, sql::CLAIM_PQ_OF_MANY, wanted).bind(now).fetch_all(&mut *tx).await?;
        for (ordinal, key_id, public_key, signature) in rows {
            if let Some(slot) = slot_at(slots, ordinal) {
                slot.pq = Some((key_id, public_key, signature));
                touched.insert((slot.device, KeyKind::PqOneTime));
            }
        }
    }
    Ok(touched)
}

/// Puts the last-resort key into every bundle of a PQ suite; one that has a one-time PQ key gets that later.
async fn add_last_resorts(
    tx: &mut PgConnection,
    drafts: &mut [Result<Bundles, StoreError>],
    slots: &[Slot],
    items: &[ClaimRequest],
) -> Result<(), StoreError> {
    let lacking: HashSet<(usize, DeviceId)> =
        slots.iter().filter(|slot| slot.has_pq && slot.pq.is_none()).map(|slot| (slot.item, slot.device)).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    debug_assert_eq!(drafts.len(), items.len());
    let devices: HashSet<Uuid> = lacking.iter().map(|(_, device)| device.0).collect();
    let rows: Vec<(Uuid, i64, Vec<u8>, Vec<u8>)> =
        sqlx::query_as(sql::LAST_RESORTS).bind(devices.into_iter().collect::<Vec<_>>()).fetch_all(&mut *tx).await?;
    let keys: HashMap<Uuid, rows::PqRow> =
        rows.into_iter().map(|(device, id, key, signature)| (device, (id, key, signature))).collect();
    for bundle in drafts.iter_mut().flatten().flat_map(|answer| &mut answer.bundles) {
        if bundle.suite.has_pq() {
            let key = keys.get(&bundle.device_id.0).cloned();
            bundle.pq_prekey = key.map(|row| rows::pq(row, true)).transpose()?;
        }
    }
    Ok(())
}

/// The pools of which a slot came up short although they show unissued keys.
async fn unissued(pool: &PgPool, slots: &[Slot]) -> Result<HashSet<(DeviceId, KeyKind)>, StoreError> {
    let short = |kind: KeyKind| {
        let lacks = move |slot: &&Slot| {
            slot.allowed
                && match kind {
                    KeyKind::OneTime => slot.one_time.is_none(),
                    KeyKind::PqOneTime => slot.has_pq && slot.pq.is_none(),
                }
        };
        let devices: HashSet<Uuid> = slots.iter().filter(lacks).map(|slot| slot.device.0).collect();
        devices.into_iter().collect::<Vec<_>>()
    };
    let mut waiting = HashSet::new();
    for (kind, text) in [(KeyKind::OneTime, sql::UNISSUED_ONE_TIME), (KeyKind::PqOneTime, sql::UNISSUED_PQ)] {
        let devices = short(kind);
        if !devices.is_empty() {
            let rows: Vec<(Uuid,)> = sqlx::query_as(text).bind(devices).fetch_all(pool).await?;
            waiting.extend(rows.into_iter().map(|(device,)| (DeviceId(device), kind)));
        }
    }
    Ok(waiting)
}

fn answers(
    items: &[ClaimRequest],
    drafts: Vec<Result<Bundles, StoreError>>,
    slots: Vec<Slot>,
    unissued: &HashSet<(DeviceId, KeyKind)>,
) -> Result<Vec<Result<ClaimAnswer, StoreError>>, StoreError> {
    let mut by_claim = HashMap::new();
    for slot in slots {
        let item = &items[slot.item];
        by_claim.insert((item.caller.device, item.claim, slot.device), slot);
    }
    let mut answers = Vec::with_capacity(items.len());
    for (item, draft) in items.iter().zip(drafts) {
        let mut answer = match draft {
            Ok(answer) => answer,
            Err(refusal) => {
                answers.push(Err(refusal));
                continue;
            }
        };
        let mut waiting = Vec::new();
        for bundle in &mut answer.bundles {
            let Some(slot) = by_claim.get(&(item.caller.device, item.claim, bundle.device_id)) else { continue };
            fill(bundle, slot.one_time.clone(), slot.pq.clone(), slot.allowed)?;
            for kind in [KeyKind::OneTime, KeyKind::PqOneTime] {
                let has = match kind {
                    KeyKind::OneTime => slot.one_time.is_some(),
                    KeyKind::PqOneTime => !slot.has_pq || slot.pq.is_some(),
                };
                if slot.allowed && !has && unissued.contains(&(slot.device, kind)) {
                    waiting.push((slot.device, kind));
                }
            }
        }
        answers.push(Ok(if waiting.is_empty() {
            ClaimAnswer::Done(answer)
        } else {
            ClaimAnswer::Short(Box::new(Short { request: item.clone(), answer, waiting }))
        }));
    }
    Ok(answers)
}

fn fill(
    bundle: &mut Bundle,
    one_time: Option<rows::OneTimeRow>,
    pq: Option<rows::PqRow>,
    allowed: bool,
) -> Result<(), StoreError> {
    bundle.one_time = match (&one_time, allowed) {
        (Some(_), _) => OneTimeOutcome::Claimed,
        (None, true) => OneTimeOutcome::Exhausted,
        (None, false) => OneTimeOutcome::Limited,
    };
    bundle.one_time_prekey = one_time.map(rows::one_time).transpose()?;
    if let Some(row) = pq {
        bundle.pq_prekey = Some(rows::pq(row, false)?);
    }
    Ok(())
}

/// A pool at or under the threshold.
struct LowPool {
    device: DeviceId,
    signal: Signal,
    /// Whether this count has just been announced for the first time.
    news: bool,
}

/// Counts pools as they are committed now, and raises the announced depth of those that are deeper than announced. A
/// pool that is refilled between the two is counted again.
async fn count_pools(
    pool: &PgPool,
    pools: &BTreeSet<(DeviceId, KeyKind)>,
    threshold: u32,
) -> Result<Vec<LowPool>, StoreError> {
    let mut low = Vec::new();
    for (kind, count, announce) in [
        (KeyKind::OneTime, sql::LOW_ONE_TIME, sql::ANNOUNCE_COUNTED_ONE_TIME),
        (KeyKind::PqOneTime, sql::LOW_PQ, sql::ANNOUNCE_COUNTED_PQ),
    ] {
        let mut devices: Vec<Uuid> = pools.iter().filter(|(_, one)| *one == kind).map(|(device, _)| device.0).collect();
        for _ in 0..COUNT_TRIES {
            if devices.is_empty() {
                break;
            }
            let counted: Vec<(Uuid, i64, i64, i32)> = sqlx::query_as(count)
                .bind(std::mem::take(&mut devices))
                .bind(i64::from(threshold))
                .fetch_all(pool)
                .await?;
            for (device, remaining, pool_version, announced) in counted {
                let remaining = rows::number(remaining)?;
                let reached = depth(remaining, threshold);
                let mut news = false;
                if reached > announced {
                    let raised: Option<(Uuid,)> = sqlx::query_as(announce)
                        .bind(device)
                        .bind(reached)
                        .bind(pool_version)
                        .fetch_optional(pool)
                        .await?;
                    news = raised.is_some();
                    if !news {
                        // Announced by somebody else, or refilled: the next count tells.
                        devices.push(device);
                        continue;
                    }
                }
                let signal = Signal::PrekeysLow { kind, remaining, pool_version };
                low.push(LowPool { device: DeviceId(device), signal, news });
            }
        }
    }
    Ok(low)
}

/// The owners to be told after a claim that touched these pools was committed.
async fn announce(
    pool: &PgPool,
    touched: BTreeSet<(DeviceId, KeyKind)>,
    threshold: u32,
) -> Result<Vec<(DeviceId, Signal)>, StoreError> {
    let low = count_pools(pool, &touched, threshold).await?;
    Ok(low.into_iter().filter(|pool| pool.news).map(|pool| (pool.device, pool.signal)).collect())
}

/// The same after a commit that must not be undone by a failure here: the reconcile tells what this does not.
async fn announce_or_leave(
    pool: &PgPool,
    touched: BTreeSet<(DeviceId, KeyKind)>,
    threshold: u32,
) -> Vec<(DeviceId, Signal)> {
    announce(pool, touched, threshold).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "could not announce low pools");
        Vec::new()
    })
}

/// All low pools of these devices, announced or not: for owners who may have missed it.
pub(super) async fn low_pools(
    pool: &PgPool,
    devices: &[DeviceId],
    threshold: u32,
) -> Result<Vec<(DeviceId, Signal)>, StoreError> {
    let kinds = [KeyKind::OneTime, KeyKind::PqOneTime];
    let pools = devices.iter().flat_map(|device| kinds.map(|kind| (*device, kind))).collect();
    let low = count_pools(pool, &pools, threshold).await?;
    Ok(low.into_iter().map(|pool| (pool.device, pool.signal)).collect())
}

/// The blocking pass of a claim that came up short.
pub(super) async fn settle(
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
                let texts = (sql::CLAIMED_ONE_TIME, sql::WAIT_FOR_ONE_TIME, sql::UNISSUED_ONE_TIME);
                let row: Option<rows::OneTimeRow> = wait_for_key!(engine, request, device, texts);
                if row.is_some() {
                    touched.insert((device, kind));
                    let pq = None;
                    fill(bundle, row, pq, true)?;
                }
            }
            KeyKind::PqOneTime => {
                let texts = (sql::CLAIMED_PQ, sql::WAIT_FOR_PQ, sql::UNISSUED_PQ);
                let row: Option<rows::PqRow> = wait_for_key!(engine, request, device, texts);
                if let Some(row) = row {
                    touched.insert((device, kind));
                    bundle.pq_prekey = Some(rows::pq(row, false)?);
                }
            }
        }
    }
    let low = announce_or_leave(&engine.pool, touched, threshold).await;
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
                    let left: Option<(Uuid,)> =
                        sqlx::query_as(unissued).bind(vec![$device.0]).fetch_optional(&$engine.pool).await?;
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
