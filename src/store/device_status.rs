//! The status of devices: their sessions, keys, mailboxes and push targets. One statement reads those of many devices.

use chrono::{DateTime, Utc};

use super::{
    BatchItem, BatchOutcome, Store, StoreError,
    error::fail_all,
    rows,
    sql::keys as sql,
    tx::{Column, Query, Tx},
};
use crate::domain::{
    Caller, KeysStatus, Refusal, Timestamp, UserId,
    bundle::{EncodedKey, LastResortStatus, MAX_POOL, SignedPrekeyStatus},
    envelope::MailboxStatus,
    push::PushState,
};

/// The status of a caller's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Whether the caller's session is valid.
    pub session_is_valid: bool,
    /// The keys of the device that the server holds.
    pub keys: KeysStatus,
    /// The mailbox of the device.
    pub mailbox: MailboxStatus,
    /// The push target of the device.
    pub push: PushState,
}

/// The place of the caller in the list; whether the session is valid; the suite and the identity key; id and expiry of
/// the signed prekey; the id of the last-resort key; the sizes of both pools and their version; the next number of the
/// mailbox, its envelopes, and how many expired; whether the push target is active.
pub(super) type StatusRow = (
    i64,
    bool,
    Option<String>,
    Option<String>,
    Option<i64>,
    Option<DateTime<Utc>>,
    Option<i64>,
    i64,
    i64,
    i64,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    Option<bool>,
);

impl DeviceStatus {
    /// The status of a device that does not exist.
    pub(super) fn missing(threshold: u32) -> Self {
        let keys = KeysStatus {
            suite: None,
            identity_key: None,
            signed_prekey: None,
            pq_last_resort: None,
            one_time: 0,
            pq_one_time: 0,
            threshold,
            pool_version: 0,
        };
        Self { session_is_valid: false, keys, mailbox: MailboxStatus::default(), push: PushState::None }
    }

    /// Converts a row. Returns the place of the caller with the status of its device.
    pub(super) fn from_row(row: StatusRow, threshold: u32) -> Result<(i64, Self), StoreError> {
        let (place, session_is_valid, suite, identity_key, signed_id, expires_at, last_resort, ..) = row;
        let (.., one_time, pq_one_time, pool_version, next_seq, count, expired, is_push_active) = row;
        let signed_prekey = signed_id.zip(expires_at).map(|(id, at)| {
            Ok::<_, StoreError>(SignedPrekeyStatus { key_id: rows::number(id)?, expires_at: rows::time(at) })
        });
        let pq_last_resort = last_resort.map(|id| Ok::<_, StoreError>(LastResortStatus { key_id: rows::number(id)? }));
        let keys = KeysStatus {
            suite: suite.as_deref().map(rows::suite).transpose()?,
            identity_key: identity_key.map(EncodedKey),
            signed_prekey: signed_prekey.transpose()?,
            pq_last_resort: pq_last_resort.transpose()?,
            one_time: rows::number(one_time)?,
            pq_one_time: rows::number(pq_one_time)?,
            threshold,
            pool_version,
        };
        let mailbox = MailboxStatus {
            head: next_seq.map_or(0, |next| next - 1),
            waiting: count.map_or(0, i64::unsigned_abs),
            expired_total: expired.map_or(0, i64::unsigned_abs),
        };
        let push = match is_push_active {
            None => PushState::None,
            Some(false) => PushState::Unconfirmed,
            Some(true) => PushState::Active,
        };
        Ok((place, Self { session_is_valid, keys, mailbox, push }))
    }
}

/// A caller whose status is wanted.
#[derive(Clone, Copy, Debug)]
pub struct StatusRequest {
    /// The session, user and device.
    pub caller: Caller,
    /// The current time.
    pub now: Timestamp,
}

impl BatchItem for StatusRequest {
    fn user(&self) -> Option<UserId> {
        Some(self.caller.user)
    }
}

impl Store {
    /// The statuses of the callers' devices, in the order of the requests: `session_revoked` if a session is not valid.
    pub async fn serve_statuses(&self, requests: Vec<StatusRequest>) -> Vec<Result<DeviceStatus, StoreError>> {
        let outcome = self.run_batch("statuses", &requests, |requests, _| async {
            let Some(now) = requests.iter().map(|request| request.now).max() else {
                return Ok(BatchOutcome::default());
            };
            let callers: Vec<Caller> = requests.iter().map(|request| request.caller).collect();
            let statuses = self.device_statuses(&callers, now).await?.into_iter();
            let answer = |status: DeviceStatus| {
                if status.session_is_valid { Ok(status) } else { Err(Refusal::SessionRevoked.into()) }
            };
            Ok(BatchOutcome { answers: statuses.map(answer).collect(), signals: Vec::new() })
        });
        outcome.await.map_or_else(|error| fail_all(&error, requests.len()), |outcome| outcome.answers)
    }

    /// The statuses of the callers' devices, in their order.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn device_statuses(&self, callers: &[Caller], now: Timestamp) -> Result<Vec<DeviceStatus>, StoreError> {
        self.read_statuses(&mut self.read().await?, callers, now).await
    }

    /// [`Self::device_statuses`] on a connection.
    pub(super) async fn read_statuses(
        &self,
        tx: &mut Tx<'_>,
        callers: &[Caller],
        now: Timestamp,
    ) -> Result<Vec<DeviceStatus>, StoreError> {
        let threshold = self.settings.low_watermark;
        let query = tx.query(sql::STATUS_OF_MANY);
        let found: Vec<StatusRow> = bind_callers(query, callers, now).fetch_packed().await?;
        let mut statuses = vec![DeviceStatus::missing(threshold); callers.len()];
        for row in found {
            let (place, status) = DeviceStatus::from_row(row, threshold)?;
            if let Some(wanted) = usize::try_from(place).ok().and_then(|place| statuses.get_mut(place)) {
                *wanted = status;
            }
        }
        Ok(statuses)
    }
}

/// Binds what the statements of a status need.
pub(super) fn bind_callers<'t, 'c>(query: Query<'t, 'c>, callers: &[Caller], now: Timestamp) -> Query<'t, 'c> {
    query
        .bind_rows([
            Column::Integers((0..).take(callers.len()).collect()),
            Column::Ids(callers.iter().map(|caller| caller.device.0).collect()),
            Column::Ids(callers.iter().map(|caller| caller.session.0).collect()),
        ])
        .bind(now.to_utc())
        .bind(i64::try_from(MAX_POOL).unwrap_or(i64::MAX))
}
