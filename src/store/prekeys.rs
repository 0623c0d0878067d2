//! Publishing keys, and what the server holds of a device's.

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::{Store, StoreError, authorize, read, rows, serialize, sql, transaction};
use crate::domain::{
    Caller, DeviceId, KeysStatus, Refusal, Suite, Timestamp,
    bundle::{KeyBytes, LastResortStatus, MAX_POOL, SignedPrekeyStatus, depth},
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

/// Counts a pool, no further than `$limit`.
macro_rules! pool_size {
    ($tx:ident, $count:expr, $device:expr, $limit:expr) => {{
        let limit = i64::try_from($limit).unwrap_or(i64::MAX);
        let (count,): (i64,) = sqlx::query_as($count).bind($device.0).bind(limit).fetch_one(&mut *$tx).await?;
        rows::number(count)
    }};
}

/// Adds keys to a pool and reports on each: `$insert` answers with the rows it wrote, `$existing` finds a taken id.
/// New keys re-arm the low-water levels that the pool rises above.
macro_rules! add_to_pool {
    ($tx:ident, $publish:ident, $keys:expr, $count:expr, $existing:expr, $rearm:expr, |$key:ident| $insert:expr) => {{
        let device = $publish.caller.device;
        let mut report = PublishReport::default();
        if !$keys.is_empty() {
            let mut size = pool_size!($tx, $count, device, MAX_POOL)?;
            for $key in &$keys {
                let fits = usize::try_from(size).is_ok_and(|size| size < MAX_POOL);
                if fits && $insert.execute(&mut *$tx).await?.rows_affected() == 1 {
                    size += 1;
                    report.accepted.push($key.key_id);
                    continue;
                }
                let taken: Option<(bool, Option<Vec<u8>>)> = sqlx::query_as($existing)
                    .bind(device.0)
                    .bind(i64::from($key.key_id))
                    .fetch_optional(&mut *$tx)
                    .await?;
                match taken {
                    Some(taken) => sort_taken(&mut report, $key.key_id, &taken, &$key.public_key),
                    None => report.over_cap.push($key.key_id),
                }
            }
            if !report.accepted.is_empty() {
                let reached = depth(size, $publish.threshold);
                sqlx::query($rearm).bind(device.0).bind(reached).execute(&mut *$tx).await?;
            }
        }
        report
    }};
}

macro_rules! insert_one_time {
    ($publish:ident, $key:ident) => {
        sqlx::query(sql::INSERT_ONE_TIME)
            .bind(Uuid::now_v7())
            .bind($publish.caller.device.0)
            .bind(&$key.public_key)
            .bind($publish.now.to_utc())
            .bind(i64::from($key.key_id))
    };
}

macro_rules! insert_pq {
    ($publish:ident, $last_resort:expr, $key:ident) => {
        sqlx::query(sql::INSERT_PQ)
            .bind(Uuid::now_v7())
            .bind($publish.caller.device.0)
            .bind($last_resort)
            .bind(i64::from($key.key_id))
            .bind(&$key.public_key)
            .bind(&$key.signature)
            .bind($publish.now.to_utc())
    };
}

impl Store {
    /// The suite and identity key that the device has published, if it has.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn identity(&self, caller: &Caller, now: Timestamp) -> Result<Option<(Suite, Vec<u8>)>, StoreError> {
        self.check_session(caller, now).await?;
        let row: Option<(String, Vec<u8>)> =
            read!(self, |db| sqlx::query_as(sql::IDENTITY).bind(caller.device.0).fetch_optional(db).await?);
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
            serialize!(self, tx, sql::SERIALIZE_DEVICE, device.0);
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
                insert_pq!(publish, true, key).execute(&mut *tx).await?;
            }
            let one_time = add_to_pool!(
                tx,
                publish,
                request.one_time,
                sql::COUNT_ONE_TIME,
                sql::ONE_TIME_BY_KEY_ID,
                sql::REARM_ONE_TIME,
                |key| insert_one_time!(publish, key)
            );
            let pq_one_time = add_to_pool!(
                tx,
                publish,
                request.pq_one_time,
                sql::COUNT_PQ,
                sql::PQ_BY_KEY_ID,
                sql::REARM_PQ,
                |key| insert_pq!(publish, false, key)
            );
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
        Ok(read!(self, |db| status!(&mut *db, device, threshold)))
    }
}
