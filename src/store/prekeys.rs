//! Keys: publishing, looking up, and claiming each one-time key at most once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::{Store, StoreError, authorize, read, rows, sql, transaction};
use crate::domain::{
    Bundle, Bundles, Caller, ClaimId, DeviceId, KeyKind, KeysStatus, OneTimeOutcome, Refusal, Signal, Suite, Timestamp,
    UserId,
    bundle::{
        KeyBytes, LastResortStatus, MAX_POOL, SignedPrekey, SignedPrekeyStatus, Unavailable, UnavailableReason, depth,
    },
    drain::DrainLimit,
    publish::PublishRequest,
};

/// A publish whose keys and signatures were verified under this suite and identity key.
pub struct ResolvedPublish {
    /// In whose name.
    pub caller: Caller,
    /// The parts.
    pub request: PublishRequest,
    /// The device's suite.
    pub suite: Suite,
    /// The device's identity key.
    pub identity_key: Vec<u8>,
    /// When the new signed prekey, if there is one, stops being served.
    pub signed_prekey_expires_at: Timestamp,
    /// Now.
    pub now: Timestamp,
    /// The low-water mark.
    pub threshold: u32,
}

/// What became of each key id of a pool.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct PublishReport {
    /// New and stored.
    pub accepted: Vec<u32>,
    /// Stored already, with the same key, and not issued.
    pub duplicate: Vec<u32>,
    /// The id is stored with another key.
    pub conflict: Vec<u32>,
    /// The id was handed out before; it never returns.
    pub already_issued: Vec<u32>,
    /// The pool is full.
    pub over_cap: Vec<u32>,
}

/// The answer to a publish.
#[derive(Debug, Serialize)]
pub struct PublishOutcome {
    /// One-time prekeys.
    pub one_time: PublishReport,
    /// PQ one-time prekeys.
    pub pq_one_time: PublishReport,
    /// All of the device's keys after it.
    pub status: KeysStatus,
}

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
    pub answers: Vec<Result<Bundles, StoreError>>,
    /// Owners to be told, now that it is committed.
    pub low: Vec<(DeviceId, Signal)>,
}

/// A device of the user that is asked about, with its signed parts if it has published.
struct Target {
    device: DeviceId,
    registration_id: u32,
    keys: Option<TargetKeys>,
}

struct TargetKeys {
    suite: Suite,
    identity_key: Vec<u8>,
    /// Absent where its owner has none that could be served.
    signed_prekey: Option<SignedPrekey>,
}

impl Target {
    fn from_row(row: rows::TargetRow) -> Result<Self, StoreError> {
        let (id, registration_id, suite, identity_key, key_id, public_key, signature, expires_at) = row;
        let signed_prekey = match (key_id, public_key, signature, expires_at) {
            (Some(key_id), Some(public_key), Some(signature), Some(expires_at)) => Some(SignedPrekey {
                key_id: rows::number(key_id)?,
                public_key: KeyBytes(public_key),
                signature: KeyBytes(signature),
                expires_at: rows::time(expires_at),
            }),
            _ => None,
        };
        let keys = match (suite, identity_key) {
            (Some(suite), Some(identity_key)) => {
                Some(TargetKeys { suite: rows::suite(&suite)?, identity_key, signed_prekey })
            }
            _ => None,
        };
        Ok(Self { device: DeviceId(id), registration_id: rows::number(registration_id)?, keys })
    }

    /// The bundle without one-time parts, or why there is none.
    fn into_bundle(self, now: Timestamp) -> Result<Bundle, Unavailable> {
        let unavailable = |reason| Unavailable { device_id: self.device, reason };
        let keys = self.keys.ok_or(unavailable(UnavailableReason::NoKeys))?;
        let signed_prekey = keys
            .signed_prekey
            .filter(|key| key.expires_at > now)
            .ok_or(unavailable(UnavailableReason::SignedPrekeyExpired))?;
        Ok(Bundle {
            device_id: self.device,
            registration_id: self.registration_id,
            suite: keys.suite,
            identity_key: KeyBytes(keys.identity_key),
            signed_prekey,
            one_time_prekey: None,
            one_time: OneTimeOutcome::NotRequested,
            pq_prekey: None,
        })
    }
}

/// Reads the bundles without one-time parts that answer for `$devices` (or all addressable ones) of `$user`.
macro_rules! bundles {
    ($db:expr, $caller:expr, $user:expr, $devices:expr, $now:expr) => {{
        let rows: Vec<rows::TargetRow> = sqlx::query_as(sql::TARGETS).bind($user.0).fetch_all($db).await?;
        if rows.is_empty() {
            let exists: Option<(i32,)> = sqlx::query_as(sql::USER_EXISTS).bind($user.0).fetch_optional($db).await?;
            exists.ok_or(Refusal::NotFound)?;
        }
        let targets = rows.into_iter().map(Target::from_row).collect::<Result<Vec<_>, _>>()?;
        let mut answer = Bundles::default();
        let mut add = |target: Target| match target.into_bundle($now) {
            Ok(bundle) => answer.bundles.push(bundle),
            Err(unavailable) => answer.unavailable.push(unavailable),
        };
        match $devices {
            None => {
                let addressable = |target: &Target| target.device != $caller.device && target.keys.is_some();
                targets.into_iter().filter(addressable).for_each(add);
            }
            Some(wanted) => {
                let mut active: HashMap<_, _> = targets.into_iter().map(|target| (target.device, target)).collect();
                let mut missing = Vec::new();
                for device in wanted {
                    match active.remove(device).filter(|target| target.device != $caller.device) {
                        Some(target) => add(target),
                        None => missing.push(*device),
                    }
                }
                for device_id in missing {
                    let row: Option<(bool,)> =
                        sqlx::query_as(sql::DEVICE_REVOKED).bind(device_id.0).bind($user.0).fetch_optional($db).await?;
                    let reason = match row {
                        Some((true,)) if device_id != $caller.device => UnavailableReason::Revoked,
                        _ => UnavailableReason::UnknownDevice,
                    };
                    answer.unavailable.push(Unavailable { device_id, reason });
                }
            }
        }
        answer
    }};
}

/// Puts the last-resort PQ key into a bundle of a PQ suite.
macro_rules! last_resort {
    ($db:expr, $bundle:ident) => {
        if $bundle.suite.has_pq() {
            let row: Option<rows::PqRow> =
                sqlx::query_as(sql::LAST_RESORT).bind($bundle.device_id.0).fetch_optional($db).await?;
            $bundle.pq_prekey = row.map(|row| rows::pq(row, true)).transpose()?;
        }
    };
}

/// Reads the status of a device's keys.
macro_rules! status {
    ($db:expr, $device:expr, $threshold:expr) => {{
        let device = $device.0;
        let cap = i64::try_from(MAX_POOL).unwrap_or(i64::MAX);
        let identity: Option<(String, Vec<u8>)> =
            sqlx::query_as(sql::IDENTITY).bind(device).fetch_optional($db).await?;
        let signed: Option<(i64, DateTime<Utc>)> =
            sqlx::query_as(sql::SIGNED_PREKEY_STATUS).bind(device).fetch_optional($db).await?;
        let last_resort: Option<(i64,)> =
            sqlx::query_as(sql::LAST_RESORT_STATUS).bind(device).fetch_optional($db).await?;
        let (one_time,): (i64,) = sqlx::query_as(sql::COUNT_ONE_TIME).bind(device).bind(cap).fetch_one($db).await?;
        let (pq_one_time,): (i64,) = sqlx::query_as(sql::COUNT_PQ).bind(device).bind(cap).fetch_one($db).await?;
        let version: Option<(i64,)> = sqlx::query_as(sql::POOL_VERSION).bind(device).fetch_optional($db).await?;
        let (suite, identity_key) = match identity {
            Some((suite, key)) => (Some(rows::suite(&suite)?), Some(KeyBytes(key))),
            None => (None, None),
        };
        let signed_prekey = match signed {
            Some((id, at)) => Some(SignedPrekeyStatus { key_id: rows::number(id)?, expires_at: rows::time(at) }),
            None => None,
        };
        let pq_last_resort = match last_resort {
            Some((id,)) => Some(LastResortStatus { key_id: rows::number(id)? }),
            None => None,
        };
        KeysStatus {
            suite,
            identity_key,
            signed_prekey,
            pq_last_resort,
            one_time: rows::number(one_time)?,
            pq_one_time: rows::number(pq_one_time)?,
            threshold: $threshold,
            pool_version: version.map_or(0, |(version,)| version),
        }
    }};
}

/// Sorts a key that could not be inserted because its id is taken.
fn sort_taken(report: &mut PublishReport, key_id: u32, taken: &(bool, Option<Vec<u8>>), public_key: &[u8]) {
    let list = match taken {
        (true, _) => &mut report.already_issued,
        (false, Some(stored)) if stored == public_key => &mut report.duplicate,
        (false, _) => &mut report.conflict,
    };
    list.push(key_id);
}

impl Store {
    /// The suite and identity key that the device has published, if it has.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn identity(&self, caller: &Caller, now: Timestamp) -> Result<Option<(Suite, Vec<u8>)>, StoreError> {
        self.check_session(caller, now).await?;
        let row: Option<(String, Vec<u8>)> =
            read!(self, |db| sqlx::query_as(sql::IDENTITY).bind(caller.device.0).fetch_optional(db).await)?;
        row.map(|(suite, key)| Ok((rows::suite(&suite)?, key))).transpose()
    }

    /// Stores a verified publish, whole or not at all.
    ///
    /// # Errors
    /// `session_revoked`, `identity_conflict`, `incomplete_keys`
    pub async fn publish(&self, publish: &ResolvedPublish) -> Result<PublishOutcome, StoreError> {
        let ResolvedPublish { caller, request, now, threshold, .. } = publish;
        let device = caller.device;
        let at = now.to_utc();
        let outcome = transaction!(self, |tx| {
            authorize!(tx, caller, now);
            let stored: Option<(String, Vec<u8>)> =
                sqlx::query_as(sql::IDENTITY).bind(device.0).fetch_optional(&mut *tx).await?;
            match stored {
                Some((suite, key)) => {
                    if rows::suite(&suite)? != publish.suite || key != publish.identity_key {
                        return Err(Refusal::IdentityConflict.into());
                    }
                }
                None if request.is_complete() => {
                    sqlx::query(sql::INSERT_IDENTITY)
                        .bind(device.0)
                        .bind(&publish.identity_key)
                        .bind(at)
                        .bind(publish.suite.as_str())
                        .execute(&mut *tx)
                        .await?;
                }
                None => return Err(Refusal::IncompleteKeys.into()),
            }
            if let Some(key) = &request.signed_prekey {
                sqlx::query(sql::DELETE_SIGNED_PREKEYS).bind(device.0).execute(&mut *tx).await?;
                sqlx::query(sql::INSERT_SIGNED_PREKEY)
                    .bind(Uuid::now_v7())
                    .bind(device.0)
                    .bind(&key.public_key)
                    .bind(&key.signature)
                    .bind(at)
                    .bind(publish.signed_prekey_expires_at.to_utc())
                    .bind(i64::from(key.key_id))
                    .execute(&mut *tx)
                    .await?;
            }
            if let Some(key) = &request.pq_last_resort {
                sqlx::query(sql::DELETE_LAST_RESORT).bind(device.0).execute(&mut *tx).await?;
                insert_pq!(tx, device, true, key, at);
            }

            let mut one_time = PublishReport::default();
            let mut size = pool_size!(tx, sql::COUNT_ONE_TIME, device, MAX_POOL)?;
            for key in &request.one_time {
                let fits = (size as usize) < MAX_POOL;
                let inserted = fits && {
                    let insert = sqlx::query(sql::INSERT_ONE_TIME)
                        .bind(Uuid::now_v7())
                        .bind(device.0)
                        .bind(&key.public_key)
                        .bind(at)
                        .bind(i64::from(key.key_id));
                    insert.execute(&mut *tx).await?.rows_affected() == 1
                };
                if inserted {
                    size += 1;
                    one_time.accepted.push(key.key_id);
                    continue;
                }
                let taken: Option<(bool, Option<Vec<u8>>)> = sqlx::query_as(sql::ONE_TIME_BY_KEY_ID)
                    .bind(device.0)
                    .bind(i64::from(key.key_id))
                    .fetch_optional(&mut *tx)
                    .await?;
                match taken {
                    Some(taken) => sort_taken(&mut one_time, key.key_id, &taken, &key.public_key),
                    None => one_time.over_cap.push(key.key_id),
                }
            }
            if !one_time.accepted.is_empty() {
                let rearm = sqlx::query(sql::REARM_ONE_TIME).bind(device.0).bind(depth(size, *threshold));
                rearm.execute(&mut *tx).await?;
            }

            let mut pq_one_time = PublishReport::default();
            let mut size = pool_size!(tx, sql::COUNT_PQ, device, MAX_POOL)?;
            for key in &request.pq_one_time {
                if (size as usize) < MAX_POOL && insert_pq!(tx, device, false, key, at).rows_affected() == 1 {
                    size += 1;
                    pq_one_time.accepted.push(key.key_id);
                    continue;
                }
                let taken: Option<(bool, Option<Vec<u8>>)> = sqlx::query_as(sql::PQ_BY_KEY_ID)
                    .bind(device.0)
                    .bind(i64::from(key.key_id))
                    .fetch_optional(&mut *tx)
                    .await?;
                match taken {
                    Some(taken) => sort_taken(&mut pq_one_time, key.key_id, &taken, &key.public_key),
                    None => pq_one_time.over_cap.push(key.key_id),
                }
            }
            if !pq_one_time.accepted.is_empty() {
                let rearm = sqlx::query(sql::REARM_PQ).bind(device.0).bind(depth(size, *threshold));
                rearm.execute(&mut *tx).await?;
            }

            if !one_time.accepted.is_empty() || !pq_one_time.accepted.is_empty() {
                sqlx::query(sql::BUMP_POOL_VERSION).bind(device.0).execute(&mut *tx).await?;
            }
            let status = status!(&mut *tx, device, *threshold);
            PublishOutcome { one_time, pq_one_time, status }
        });
        Ok(outcome)
    }

    /// What the server holds of a device's keys.
    ///
    /// # Errors
    /// The store's own.
    pub async fn keys_status(&self, device: DeviceId, threshold: u32) -> Result<KeysStatus, StoreError> {
        Ok(read!(self, |db| status!(db, device, threshold)))
    }

    /// Bundles that consume nothing.
    ///
    /// # Errors
    /// `session_revoked`, `not_found`
    pub async fn fetch(
        &self,
        caller: &Caller,
        user: UserId,
        devices: Option<&[DeviceId]>,
        now: Timestamp,
    ) -> Result<Bundles, StoreError> {
        self.check_session(caller, now).await?;
        read!(self, |db| {
            let mut answer = bundles!(db, caller, user, devices, now);
            for bundle in &mut answer.bundles {
                last_resort!(db, bundle);
            }
            Ok(answer)
        })
    }

    /// Serves many claims in one commit. One that fails for a reason of its own fails alone.
    pub async fn claim(&self, items: Vec<ClaimRequest>, drain: &Arc<DrainLimit>, threshold: u32) -> ClaimBatch {
        let mut tries = 0;
        loop {
            let mut taken = TakenTokens { drain, pairs: Vec::new() };
            match self.try_claim(&items, &mut taken, threshold).await {
                Ok(batch) => {
                    taken.pairs.clear();
                    return batch;
                }
                Err(error @ StoreError::Internal(_)) if items.len() > 1 => {
                    tracing::warn!(%error, items = items.len(), "a batch of claims failed; running its items singly");
                    return self.claim_singly(items, drain, threshold).await;
                }
                // The commit's outcome may be unknown; the same claim ids find their keys again.
                Err(StoreError::Unavailable(error)) if tries < 3 => {
                    tracing::warn!(%error, "a batch of claims failed; trying again");
                    tries += 1;
                }
                Err(error) => return ClaimBatch { answers: fail_all(&error, items.len()), low: Vec::new() },
            }
        }
    }

    async fn claim_singly(&self, items: Vec<ClaimRequest>, drain: &Arc<DrainLimit>, threshold: u32) -> ClaimBatch {
        let mut all = ClaimBatch { answers: Vec::with_capacity(items.len()), low: Vec::new() };
        for item in items {
            let mut taken = TakenTokens { drain, pairs: Vec::new() };
            match self.try_claim(std::slice::from_ref(&item), &mut taken, threshold).await {
                Ok(one) => {
                    taken.pairs.clear();
                    all.answers.extend(one.answers);
                    all.low.extend(one.low);
                }
                Err(error) => all.answers.push(Err(error)),
            }
        }
        all
    }

    async fn try_claim(
        &self,
        items: &[ClaimRequest],
        tokens: &mut TakenTokens<'_>,
        threshold: u32,
    ) -> Result<ClaimBatch, StoreError> {
        Ok(transaction!(self, |tx| {
            let mut answers = Vec::with_capacity(items.len());
            let mut touched = BTreeSet::new();
            for item in items {
                // Refusals come before the first write of an item, so the others need no savepoint.
                let answer = async {
                    let ClaimRequest { caller, user, devices, now, .. } = item;
                    authorize!(tx, caller, now);
                    let mut answer = bundles!(&mut *tx, caller, user, devices, *now);
                    for bundle in &mut answer.bundles {
                        fill!(tx, bundle, item, tokens, touched);
                    }
                    Ok::<_, StoreError>(answer)
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
            ClaimBatch { answers, low: low.into_iter().map(|((device, _), signal)| (device, signal)).collect() }
        }))
    }
}

/// Drain-limit tokens of a transaction that has not committed; dropping gives them back.
struct TakenTokens<'a> {
    drain: &'a DrainLimit,
    pairs: Vec<(UserId, DeviceId)>,
}

impl TakenTokens<'_> {
    fn take(&mut self, user: UserId, target: DeviceId, now: Timestamp) -> bool {
        let taken = self.drain.take(user, target, now);
        if taken {
            self.pairs.push((user, target));
        }
        taken
    }

    /// The latest token was not needed.
    fn give_back_last(&mut self) {
        if let Some((user, target)) = self.pairs.pop() {
            self.drain.give_back(user, target);
        }
    }
}

impl Drop for TakenTokens<'_> {
    fn drop(&mut self) {
        for (user, target) in self.pairs.drain(..) {
            self.drain.give_back(user, target);
        }
    }
}

/// The same failure for every item of a batch.
pub(super) fn fail_all<T>(error: &StoreError, items: usize) -> Vec<Result<T, StoreError>> {
    tracing::error!(%error, items, "a batch failed");
    std::iter::repeat_with(|| Err(StoreError::Refused(error.refusal()))).take(items).collect()
}

/// Counts a pool, no further than `$limit`.
macro_rules! pool_size {
    ($tx:ident, $count:expr, $device:expr, $limit:expr) => {{
        let limit = i64::try_from($limit).unwrap_or(i64::MAX);
        let (count,): (i64,) = sqlx::query_as($count).bind($device.0).bind(limit).fetch_one(&mut *$tx).await?;
        rows::number(count)
    }};
}

macro_rules! insert_pq {
    ($tx:ident, $device:expr, $last_resort:expr, $key:expr, $at:expr) => {
        sqlx::query(sql::INSERT_PQ)
            .bind(Uuid::now_v7())
            .bind($device.0)
            .bind($last_resort)
            .bind(i64::from($key.key_id))
            .bind(&$key.public_key)
            .bind(&$key.signature)
            .bind($at)
            .execute(&mut *$tx)
            .await?
    };
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
            $tokens.give_back_last();
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

use {fill, insert_pq, pool_size, take_oldest};
