//! Stores published keys, and reports the status of a device's keys.

use std::collections::HashSet;

use sha2::{Digest, Sha256};

use super::{
    Store, StoreError, locks, rows, sessions,
    sql::{Sql, keys as sql},
    tx::{Column, Tx},
};
use crate::domain::{
    Caller, DeviceId, KeyKind, KeysStatus, Refusal, Timestamp,
    bundle::{EncodedKey, KeysDigest, MAX_POOL, levels_reached},
    keys::{IdentityKey, KeyId, Prekey},
    publish::{Identity, KnownSignatures, PublishRequest, VerifiedPqPrekey, VerifiedPublish, VerifiedSignedPrekey},
};

/// What a publish did to a pool, as lists of key ids. Each id of the request is in exactly one of the first five lists.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PublishReport {
    /// New and stored.
    pub accepted: Vec<u32>,
    /// Already stored with the same key and not issued.
    pub duplicate: Vec<u32>,
    /// Already stored with another key and not issued.
    pub conflict: Vec<u32>,
    /// Already issued, with this or another key; the id cannot be used again.
    pub already_issued: Vec<u32>,
    /// Not stored because the pool is full.
    pub over_cap: Vec<u32>,
    /// Not in the request, and deleted because the publish replaces the pools. In ascending order.
    pub withdrawn: Vec<u32>,
}

impl PublishReport {
    /// Whether the publish added keys to the pool or withdrew some.
    #[must_use]
    pub fn changed_pool(&self) -> bool {
        !self.accepted.is_empty() || !self.withdrawn.is_empty()
    }
}

/// The result of a publish.
#[derive(Debug)]
pub struct PublishOutcome {
    /// Outcome for the one-time prekeys.
    pub one_time: PublishReport,
    /// Outcome for the one-time PQ prekeys.
    pub pq_one_time: PublishReport,
    /// The status of the device's keys after the publish.
    pub status: KeysStatus,
}

/// The statements for changing a pool of one kind.
struct PublishStatements {
    count: Sql,
    by_key_id: Sql,
    lower_announced: Sql,
    unissued: Sql,
    withdraw: Sql,
    set_announced: Sql,
}

impl PublishStatements {
    fn of(kind: KeyKind) -> Self {
        match kind {
            KeyKind::OneTime => Self {
                count: sql::COUNT_ONE_TIME,
                by_key_id: sql::ONE_TIME_BY_KEY_ID,
                lower_announced: sql::LOWER_ANNOUNCED_ONE_TIME,
                unissued: sql::UNISSUED_ONE_TIME,
                withdraw: sql::WITHDRAW_ONE_TIME,
                set_announced: sql::SET_ANNOUNCED_ONE_TIME,
            },
            KeyKind::PqOneTime => Self {
                count: sql::COUNT_PQ,
                by_key_id: sql::PQ_BY_KEY_ID,
                lower_announced: sql::LOWER_ANNOUNCED_PQ,
                unissued: sql::UNISSUED_PQ,
                withdraw: sql::WITHDRAW_PQ,
                set_announced: sql::SET_ANNOUNCED_PQ,
            },
        }
    }
}

/// A key to add to a pool.
#[derive(Clone, Copy)]
enum PoolKey<'k> {
    OneTime(KeyId, &'k Prekey),
    Pq(&'k VerifiedPqPrekey),
}

impl PoolKey<'_> {
    fn key_id(self) -> KeyId {
        match self {
            Self::OneTime(key_id, _) => key_id,
            Self::Pq(key) => key.key_id,
        }
    }
}

/// The stored suite and identity key of a device, if it has published.
pub(super) async fn identity(tx: &mut Tx<'_>, device: DeviceId) -> Result<Option<Identity>, StoreError> {
    let row: Option<(String, String)> = tx.query(sql::IDENTITY).bind(device.0).fetch_optional().await?;
    row.map(|(suite, key)| {
        let suite = rows::suite(&suite)?;
        let bytes = EncodedKey(key).decode().unwrap_or_default();
        let key = IdentityKey::parse(suite, &bytes).map_err(|error| rows::corrupt(error.into()))?;
        Ok(Identity { suite, key })
    })
    .transpose()
}

impl Store {
    /// What is needed to verify a publish: the suite and identity key of the caller's device, if it has published, and
    /// the signatures of those keys of the request that are stored.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn publish_basis(
        &self,
        caller: &Caller,
        request: &PublishRequest,
        now: Timestamp,
    ) -> Result<(Option<Identity>, KnownSignatures), StoreError> {
        let mut tx = self.read().await?;
        sessions::authorize(&mut tx, caller, now).await?;
        let device = caller.device;
        let Some(stored) = identity(&mut tx, device).await? else { return Ok((None, KnownSignatures::default())) };
        let mut known = KnownSignatures::default();
        let pq_keys = request.pq_one_time.iter().chain(&request.pq_last_resort);
        let ids = pq_keys.map(|key| i64::from(key.key_id)).collect();
        let query = tx.query(sql::PQ_SIGNATURES).bind(device.0).bind_rows([Column::Integers(ids)]);
        let rows: Vec<(Vec<u8>, Vec<u8>)> = query.fetch_all().await?;
        known.extend(rows);
        if request.signed_prekey.is_some() {
            let row: Option<(String, String)> =
                tx.query(sql::SIGNED_PREKEY_SIGNATURE).bind(device.0).fetch_optional().await?;
            known.extend(
                row.and_then(|(key, signature)| Some((EncodedKey(key).decode()?, EncodedKey(signature).decode()?))),
            );
        }
        Ok((Some(stored), known))
    }

    /// Stores all keys of a publish in one transaction.
    ///
    /// # Errors
    /// `session_revoked`; `identity_conflict` or `incomplete_keys` if the stored identity changed since the publish was
    /// verified, or is missing and the publish is not complete; `pool_changed` if the pools do not have the expected
    /// version; `stale_signed_prekey` if the id of a new signed prekey is too small.
    pub async fn publish(
        &self,
        caller: &Caller,
        publish: &VerifiedPublish,
        now: Timestamp,
    ) -> Result<PublishOutcome, StoreError> {
        let device = caller.device;
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::device(&mut tx, device).await?;
            sessions::authorize(&mut tx, caller, now).await?;
            match identity(&mut tx, device).await? {
                Some(stored) if stored == *publish.identity() => {}
                Some(_) => return Err(Refusal::IdentityConflict.into()),
                None if publish.is_complete() => insert_identity(&mut tx, device, publish.identity(), now).await?,
                None => return Err(Refusal::IncompleteKeys.into()),
            }
            if let Some(expected) = publish.expect_pool_version()
                && expected != pool_version(&mut tx, device).await?
            {
                return Err(Refusal::PoolChanged.into());
            }
            if let Some(key) = publish.signed_prekey()
                && is_new_signed_prekey(&mut tx, device, key, publish.replaces_pools()).await?
            {
                self.replace_signed_prekey(&mut tx, device, key, now).await?;
            }
            if let Some(key) = publish.pq_last_resort() {
                self.replace_last_resort(&mut tx, device, key, now).await?;
            }
            let keys = publish.one_time().iter().map(|(key_id, key)| PoolKey::OneTime(*key_id, key));
            let replace = publish.replaces_pools();
            let one_time = self.change_pool(&mut tx, device, KeyKind::OneTime, keys.collect(), replace, now).await?;
            let keys = publish.pq_one_time().iter().map(PoolKey::Pq).collect();
            let pq_one_time = self.change_pool(&mut tx, device, KeyKind::PqOneTime, keys, replace, now).await?;
            if one_time.changed_pool() || pq_one_time.changed_pool() {
                tx.query(sql::BUMP_POOL_VERSION).bind(device.0).execute().await?;
            }
            let status = self.read_statuses(&mut tx, &[*caller], now).await?.swap_remove(0).keys;
            tx.commit().await?;
            Ok(PublishOutcome { one_time, pq_one_time, status })
        })
        .await
    }

    pub(super) async fn replace_signed_prekey(
        &self,
        tx: &mut Tx<'_>,
        device: DeviceId,
        new: &VerifiedSignedPrekey,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        tx.query(sql::DELETE_SIGNED_PREKEYS).bind(device.0).execute().await?;
        tx.query(sql::INSERT_SIGNED_PREKEY)
            .bind(self.row_id(now))
            .bind(device.0)
            .bind(EncodedKey::of(new.key.as_bytes()).0)
            .bind(EncodedKey::of(&new.signature).0)
            .bind(now.to_utc())
            .bind(new.expires_at.to_utc())
            .bind(i64::from(new.key_id))
            .execute()
            .await?;
        Ok(())
    }

    async fn replace_last_resort(
        &self,
        tx: &mut Tx<'_>,
        device: DeviceId,
        new: &VerifiedPqPrekey,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        tx.query(sql::DELETE_LAST_RESORT).bind(device.0).execute().await?;
        self.insert_pq(tx, device, true, new, now).await.map(drop)
    }

    /// Adds keys to a pool and reports on each. With `replace`, unissued keys whose ids are not in `keys` are
    /// withdrawn, and a key in `keys` replaces an unissued one with the same id. Low-water levels that the pool is now
    /// above will be announced again when it falls to them.
    async fn change_pool(
        &self,
        tx: &mut Tx<'_>,
        device: DeviceId,
        kind: KeyKind,
        keys: Vec<PoolKey<'_>>,
        replace: bool,
        now: Timestamp,
    ) -> Result<PublishReport, StoreError> {
        let mut report = PublishReport::default();
        if keys.is_empty() && !replace {
            return Ok(report);
        }
        let statements = PublishStatements::of(kind);
        if replace {
            report.withdrawn = withdraw_others(tx, device, &statements, &keys).await?;
        }
        let mut size = count(tx, statements.count, device).await?;
        for key in keys {
            let key_id = key.key_id();
            let fits = usize::try_from(size).is_ok_and(|size| size < MAX_POOL);
            if fits && self.insert(tx, device, key, now).await? {
                size += 1;
                report.accepted.push(key_id.get());
                continue;
            }
            let taken = tx.query(statements.by_key_id).bind(device.0).bind(i64::from(key_id));
            let taken = match key {
                PoolKey::OneTime(_, key) => taken.bind(EncodedKey::of(key.as_bytes()).0),
                PoolKey::Pq(key) => taken.bind(key.key.as_bytes()),
            };
            let list = match taken.fetch_optional().await? {
                None => &mut report.over_cap,
                Some((true, _)) => &mut report.already_issued,
                Some((false, Some(true))) => &mut report.duplicate,
                Some((false, _)) if replace => {
                    // False if a claim has issued the stored key since it was read.
                    let replaced = replace_key(tx, device, key, now).await?;
                    if replaced { &mut report.accepted } else { &mut report.already_issued }
                }
                Some((false, Some(false) | None)) => &mut report.conflict,
            };
            list.push(key_id.get());
        }
        if kind == KeyKind::OneTime && !report.accepted.is_sorted() {
            let mut by_id: Vec<i64> = report.accepted.iter().copied().map(i64::from).collect();
            by_id.sort_unstable();
            tx.query(sql::ORDER_ONE_TIME).bind(device.0).bind_rows([Column::Integers(by_id)]).execute().await?;
        }
        if report.changed_pool() {
            let reached = levels_reached(size, self.settings.low_watermark);
            let statement = if replace { statements.set_announced } else { statements.lower_announced };
            tx.query(statement).bind(device.0).bind(reached).execute().await?;
        }
        Ok(report)
    }

    /// Inserts a key into its pool. Returns whether its id was free.
    async fn insert(
        &self,
        tx: &mut Tx<'_>,
        device: DeviceId,
        key: PoolKey<'_>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        match key {
            PoolKey::OneTime(key_id, key) => self.insert_one_time(tx, device, key_id, key, now).await,
            PoolKey::Pq(key) => self.insert_pq(tx, device, false, key, now).await,
        }
    }

    pub(super) async fn insert_one_time(
        &self,
        tx: &mut Tx<'_>,
        device: DeviceId,
        key_id: KeyId,
        key: &Prekey,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let inserted = tx
            .query(sql::INSERT_ONE_TIME)
            .bind(self.row_id(now))
            .bind(device.0)
            .bind(EncodedKey::of(key.as_bytes()).0)
            .bind(now.to_utc())
            .bind(i64::from(key_id))
            .execute()
            .await?;
        Ok(inserted == 1)
    }

    /// PQ keys are stored as bytes: in base64, PostgreSQL would move them out of the row into a TOAST table.
    async fn insert_pq(
        &self,
        tx: &mut Tx<'_>,
        device: DeviceId,
        last_resort: bool,
        new: &VerifiedPqPrekey,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let inserted = tx
            .query(sql::INSERT_PQ)
            .bind(self.row_id(now))
            .bind(device.0)
            .bind(last_resort)
            .bind(i64::from(new.key_id))
            .bind(new.key.as_bytes())
            .bind(&new.signature[..])
            .bind(now.to_utc())
            .execute()
            .await?;
        Ok(inserted == 1)
    }

    /// The SHA-256 over the device's keys that can still be issued, all read by one statement. It covers, for each key,
    /// the name of its kind, its id as four bytes (big-endian) and its bytes as published; for their order see
    /// `keys.status` in `docs/protocol.md`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn keys_digest(&self, device: DeviceId) -> Result<KeysDigest, StoreError> {
        type Row = (i32, i64, Option<String>, Option<Vec<u8>>);
        let mut tx = self.read().await?;
        let keys: Vec<Row> = tx.query(sql::DIGEST_KEYS).bind(device.0).fetch_all().await?;
        let mut digest = Sha256::new();
        for (part, key_id, text, bytes) in keys {
            let kind: &[u8] = match part {
                1 => b"one_time",
                2 => b"pq_one_time",
                3 => b"signed",
                _ => b"pq_last_resort",
            };
            digest.update(kind);
            digest.update(rows::number(key_id)?.to_be_bytes());
            digest.update(text.and_then(|text| EncodedKey(text).decode()).or(bytes).unwrap_or_default());
        }
        Ok(digest.finalize().into())
    }
}

/// Whether a signed prekey has to be stored. It does not if its id and key are those of the served one.
///
/// # Errors
/// `stale_signed_prekey` if its id is not greater than that of the served one, unless the publish replaces the pools.
async fn is_new_signed_prekey(
    tx: &mut Tx<'_>,
    device: DeviceId,
    new: &VerifiedSignedPrekey,
    replace: bool,
) -> Result<bool, StoreError> {
    let served: Option<(i64, String)> = tx.query(sql::SERVED_SIGNED_PREKEY).bind(device.0).fetch_optional().await?;
    match served {
        Some((key_id, key)) if key_id == i64::from(new.key_id) && key == EncodedKey::of(new.key.as_bytes()).0 => {
            Ok(false)
        }
        Some((key_id, _)) if !replace && key_id >= i64::from(new.key_id) => {
            Err(Refusal::StaleSignedPrekey { served: rows::number(key_id)? }.into())
        }
        _ => Ok(true),
    }
}

/// Deletes the unissued keys of a pool whose ids are not in `keys`. Returns their ids in ascending order.
async fn withdraw_others(
    tx: &mut Tx<'_>,
    device: DeviceId,
    statements: &PublishStatements,
    keys: &[PoolKey<'_>],
) -> Result<Vec<u32>, StoreError> {
    let kept: HashSet<i64> = keys.iter().map(|key| i64::from(key.key_id())).collect();
    let unissued: Vec<(i64,)> = tx.query(statements.unissued).bind(device.0).fetch_all().await?;
    let others = unissued.into_iter().map(|(key_id,)| key_id).filter(|key_id| !kept.contains(key_id)).collect();
    let withdraw = tx.query(statements.withdraw).bind(device.0).bind_rows([Column::Integers(others)]);
    let withdrawn: Vec<(i64,)> = withdraw.fetch_all().await?;
    let mut withdrawn: Vec<u32> =
        withdrawn.into_iter().map(|(key_id,)| rows::number(key_id)).collect::<Result<_, _>>()?;
    withdrawn.sort_unstable();
    Ok(withdrawn)
}

/// Replaces the unissued key with the same id. Returns `false` if that key has been issued.
async fn replace_key(tx: &mut Tx<'_>, device: DeviceId, new: PoolKey<'_>, now: Timestamp) -> Result<bool, StoreError> {
    let key_id = i64::from(new.key_id());
    let replaced = match new {
        PoolKey::OneTime(_, key) => {
            let statement = tx.query(sql::REPLACE_ONE_TIME).bind(device.0).bind(key_id);
            statement.bind(EncodedKey::of(key.as_bytes()).0).bind(now.to_utc()).execute().await?
        }
        PoolKey::Pq(key) => {
            let statement = tx.query(sql::REPLACE_PQ).bind(device.0).bind(key_id);
            statement.bind(key.key.as_bytes()).bind(now.to_utc()).bind(&key.signature[..]).execute().await?
        }
    };
    Ok(replaced == 1)
}

async fn pool_version(tx: &mut Tx<'_>, device: DeviceId) -> Result<i64, StoreError> {
    let version: Option<(i64,)> = tx.query(sql::POOL_VERSION).bind(device.0).fetch_optional().await?;
    Ok(version.map_or(0, |(version,)| version))
}

pub(super) async fn insert_identity(
    tx: &mut Tx<'_>,
    device: DeviceId,
    identity: &Identity,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.query(sql::INSERT_IDENTITY)
        .bind(device.0)
        .bind(EncodedKey::of(identity.key.as_bytes()).0)
        .bind(now.to_utc())
        .bind(identity.suite.as_str())
        .execute()
        .await?;
    Ok(())
}

/// The number of unissued keys in a pool, counted up to [`MAX_POOL`].
async fn count(tx: &mut Tx<'_>, text: Sql, device: DeviceId) -> Result<u32, StoreError> {
    let limit = i64::try_from(MAX_POOL).unwrap_or(i64::MAX);
    let (count,): (i64,) = tx.query(text).bind(device.0).bind(limit).fetch_one().await?;
    rows::number(count)
}
