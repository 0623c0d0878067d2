//! Stores published keys, and reports the status of a device's keys.

use chrono::{DateTime, Utc};

use super::{
    Store, StoreError, locks, rows, sessions,
    sql::{Sql, keys as sql},
    tx::Tx,
};
use crate::domain::{
    Caller, DeviceId, KeyKind, KeysStatus, Refusal, Timestamp,
    bundle::{EncodedKey, LastResortStatus, MAX_POOL, SignedPrekeyStatus, levels_reached},
    keys::{IdentityKey, KeyId, Prekey},
    publish::{Identity, VerifiedPqPrekey, VerifiedPublish, VerifiedSignedPrekey},
};

/// The outcome for each key id of a pool. Every id of the request is in exactly one list.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PublishReport {
    /// New and stored.
    pub accepted: Vec<u32>,
    /// Stored before with the same key, and not issued.
    pub duplicate: Vec<u32>,
    /// Stored before with another key.
    pub conflict: Vec<u32>,
    /// Issued before; the id cannot be used again.
    pub already_issued: Vec<u32>,
    /// Not stored because the pool is full.
    pub over_cap: Vec<u32>,
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

/// The statements for adding to a pool of one kind.
struct PublishStatements {
    count: Sql,
    by_key_id: Sql,
    rearm: Sql,
}

impl PublishStatements {
    fn of(kind: KeyKind) -> Self {
        match kind {
            KeyKind::OneTime => {
                Self { count: sql::COUNT_ONE_TIME, by_key_id: sql::ONE_TIME_BY_KEY_ID, rearm: sql::REARM_ONE_TIME }
            }
            KeyKind::PqOneTime => Self { count: sql::COUNT_PQ, by_key_id: sql::PQ_BY_KEY_ID, rearm: sql::REARM_PQ },
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
async fn identity(tx: &mut Tx<'_>, device: DeviceId) -> Result<Option<Identity>, StoreError> {
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
    /// The suite and identity key that the caller's device has published, if it has.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn identity(&self, caller: &Caller, now: Timestamp) -> Result<Option<Identity>, StoreError> {
        let mut tx = self.read().await?;
        sessions::authorize(&mut tx, caller, now).await?;
        identity(&mut tx, caller.device).await
    }

    /// Stores all keys of a publish in one transaction.
    ///
    /// # Errors
    /// `session_revoked`; `identity_conflict` or `incomplete_keys` if the stored identity changed since the publish was
    /// verified, or is missing and the publish is not complete.
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
            if let Some(key) = publish.signed_prekey() {
                self.replace_signed_prekey(&mut tx, device, key, now).await?;
            }
            if let Some(key) = publish.pq_last_resort() {
                self.replace_last_resort(&mut tx, device, key, now).await?;
            }
            let keys = publish.one_time().iter().map(|(key_id, key)| PoolKey::OneTime(*key_id, key));
            let one_time = self.add_to_pool(&mut tx, device, KeyKind::OneTime, keys.collect(), now).await?;
            let keys = publish.pq_one_time().iter().map(PoolKey::Pq);
            let pq_one_time = self.add_to_pool(&mut tx, device, KeyKind::PqOneTime, keys.collect(), now).await?;
            if !one_time.accepted.is_empty() || !pq_one_time.accepted.is_empty() {
                tx.query(sql::BUMP_POOL_VERSION).bind(device.0).execute().await?;
            }
            let status = self.status(&mut tx, device).await?;
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

    /// Adds keys to a pool and reports on each. Low-water levels that the pool is now above will be announced again
    /// when it falls to them.
    async fn add_to_pool(
        &self,
        tx: &mut Tx<'_>,
        device: DeviceId,
        kind: KeyKind,
        keys: Vec<PoolKey<'_>>,
        now: Timestamp,
    ) -> Result<PublishReport, StoreError> {
        let mut report = PublishReport::default();
        if keys.is_empty() {
            return Ok(report);
        }
        let statements = PublishStatements::of(kind);
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
                Some((false, Some(false) | None)) => &mut report.conflict,
            };
            list.push(key_id.get());
        }
        if !report.accepted.is_empty() {
            let reached = levels_reached(size, self.settings.low_watermark);
            tx.query(statements.rearm).bind(device.0).bind(reached).execute().await?;
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

    /// What the server holds of a device's keys.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn keys_status(&self, device: DeviceId) -> Result<KeysStatus, StoreError> {
        self.status(&mut self.read().await?, device).await
    }

    async fn status(&self, tx: &mut Tx<'_>, device: DeviceId) -> Result<KeysStatus, StoreError> {
        let identity = identity(tx, device).await?;
        let signed: Option<(i64, DateTime<Utc>)> =
            tx.query(sql::SIGNED_PREKEY_STATUS).bind(device.0).fetch_optional().await?;
        let last_resort: Option<(i64,)> = tx.query(sql::LAST_RESORT_STATUS).bind(device.0).fetch_optional().await?;
        let one_time = count(tx, sql::COUNT_ONE_TIME, device).await?;
        let pq_one_time = count(tx, sql::COUNT_PQ, device).await?;
        let version: Option<(i64,)> = tx.query(sql::POOL_VERSION).bind(device.0).fetch_optional().await?;
        let signed_prekey = |(id, at)| {
            Ok::<_, StoreError>(SignedPrekeyStatus { key_id: rows::number(id)?, expires_at: rows::time(at) })
        };
        let pq_last_resort = |(id,)| Ok::<_, StoreError>(LastResortStatus { key_id: rows::number(id)? });
        Ok(KeysStatus {
            suite: identity.map(|identity| identity.suite),
            identity_key: identity.map(|identity| EncodedKey::of(identity.key.as_bytes())),
            signed_prekey: signed.map(signed_prekey).transpose()?,
            pq_last_resort: last_resort.map(pq_last_resort).transpose()?,
            one_time,
            pq_one_time,
            threshold: self.settings.low_watermark,
            pool_version: version.map_or(0, |(version,)| version),
        })
    }
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
