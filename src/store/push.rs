//! Push targets of devices, and the wake-ups that are due.
//!
//! A mailbox records when its device is to be woken (`mailboxes.wake_at`), and the sends and acks that change the mailbox
//! keep it up to date. A node takes wake-ups that are due by making them due again a little later. If the node dies,
//! another one takes them then. What came of a push is written only if the mailbox has not changed since.

use std::{collections::BTreeSet, time::Duration};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Store, StoreError, locks, rows, sessions,
    sql::{locks as lock_sql, mailbox, push as sql},
    tx::{Column, Tx},
};
use crate::domain::{
    Caller, DeviceId, Refusal, Timestamp,
    push::{FAILURES_KEPT, NONCE_LIFETIME, PushFailures, PushKind, PushTarget, WakeState},
};

/// A registration of a target: another one each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PushRegistration(pub Uuid);

/// A target to register.
#[derive(Clone, Debug)]
pub struct NewPushTarget {
    /// Identifies the registration.
    pub id: PushRegistration,
    /// The target.
    pub target: PushTarget,
    /// The hash of the nonce that confirms it.
    pub nonce_hash: [u8; 32],
}

/// A device to wake.
#[derive(Clone, Debug)]
pub struct DueWakeUp {
    /// The device.
    pub device: DeviceId,
    /// The registration of its target.
    pub id: PushRegistration,
    /// The target.
    pub target: PushTarget,
    /// The failures so far.
    pub failures: PushFailures,
    /// Until when this node has taken the wake-up. Identifies it.
    pub taken_until: Timestamp,
}

/// What came of a push to wake a device.
#[derive(Clone, Debug)]
pub struct SettledWakeUp {
    /// The wake-up.
    pub due: DueWakeUp,
    /// When the next one is due.
    pub next_at: Timestamp,
    /// Whether the device was woken, or the wake-up given up. Otherwise it is tried again.
    pub is_done: bool,
    /// The failures now; `None` if no push was tried.
    pub failures: Option<PushFailures>,
}

/// Kind, address, p256dh, auth, topic, sandbox.
type TargetColumns = (String, String, Option<String>, Option<String>, Option<String>, bool);

fn target((kind, address, p256dh, auth, topic, is_sandbox): TargetColumns) -> Result<PushTarget, StoreError> {
    let corrupt = || rows::corrupt("a push target".into());
    Ok(match PushKind::parse(&kind).ok_or_else(corrupt)? {
        PushKind::Webpush => PushTarget::WebPush {
            endpoint: address,
            p256dh: p256dh.ok_or_else(corrupt)?,
            auth: auth.ok_or_else(corrupt)?,
        },
        PushKind::Apns => PushTarget::Apns { token: address, topic: topic.ok_or_else(corrupt)?, is_sandbox },
        PushKind::Fcm => PushTarget::Fcm { token: address },
    })
}

/// Device, registration and target; when pushes began to fail, how many did, and until when the target is not used after
/// a failure.
type DueRow = (
    Uuid,
    Uuid,
    String,
    String,
    Option<String>,
    Option<String>,
    Option<String>,
    bool,
    Option<DateTime<Utc>>,
    i32,
    Option<DateTime<Utc>>,
);

impl DueWakeUp {
    /// Returns with the wake-up when it may be sent, if that is later.
    fn from_row(row: DueRow, taken_until: Timestamp, now: Timestamp) -> Result<(Self, Option<Timestamp>), StoreError> {
        let (device, id, kind, address, p256dh, auth, topic, is_sandbox, since, count, not_before) = row;
        let not_before = not_before.map(rows::time);
        let are_stale = not_before.is_none_or(|at| now.since(at) > FAILURES_KEPT);
        let failures = PushFailures { since: since.map(rows::time), count: count.unsigned_abs() };
        let due = Self {
            device: DeviceId(device),
            id: PushRegistration(id),
            target: target((kind, address, p256dh, auth, topic, is_sandbox))?,
            failures: if are_stale { PushFailures::default() } else { failures },
            taken_until,
        };
        Ok((due, not_before.filter(|at| *at > now)))
    }
}

type StoredTarget = (Uuid, String, String, Option<String>, Option<String>, Option<String>, bool, bool);

/// The registration of a device's target, the target, and whether it is active.
async fn read_target(
    tx: &mut Tx<'_>,
    device: DeviceId,
) -> Result<Option<(PushRegistration, PushTarget, bool)>, StoreError> {
    let row: Option<StoredTarget> = tx.query(sql::TARGET).bind(device.0).fetch_optional().await?;
    let Some((id, kind, address, p256dh, auth, topic, is_sandbox, active)) = row else { return Ok(None) };
    Ok(Some((PushRegistration(id), target((kind, address, p256dh, auth, topic, is_sandbox))?, active)))
}

/// Deletes the target of a device. Its mailbox is changed by the caller.
pub(super) async fn remove_target(tx: &mut Tx<'_>, device: DeviceId) -> Result<(), StoreError> {
    tx.query(sql::DELETE_TARGET).bind(device.0).execute().await?;
    Ok(())
}

/// The state of a mailbox whose wake-up was settled.
fn state_after(settled: &SettledWakeUp) -> WakeState {
    if settled.is_done { WakeState::Woken } else { WakeState::Waiting }
}

/// Locks mailboxes in the order in which batches lock them.
async fn lock_mailboxes(tx: &mut Tx<'_>, devices: &[Uuid]) -> Result<(), StoreError> {
    tx.query(mailbox::LOCK_ONLY).bind_ids(devices).execute().await?;
    Ok(())
}

impl Store {
    /// Whether the target of a device is still this registration, and not yet confirmed.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn is_push_unconfirmed(&self, device: DeviceId, id: PushRegistration) -> Result<bool, StoreError> {
        let found = read_target(&mut self.read().await?, device).await?;
        Ok(matches!(found, Some((found, _, false)) if found == id))
    }

    /// The active target of the caller's device.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn active_target(
        &self,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<Option<(PushRegistration, PushTarget)>, StoreError> {
        let mut tx = self.read().await?;
        sessions::authorize(&mut tx, caller, now).await?;
        let found = read_target(&mut tx, caller.device).await?;
        Ok(found.filter(|(.., active)| *active).map(|(id, target, _)| (id, target)))
    }

    /// Replaces the target of the caller's device by an unconfirmed one.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn register_push(&self, caller: &Caller, new: &NewPushTarget, now: Timestamp) -> Result<(), StoreError> {
        let (address, p256dh, auth, topic, sandbox) = match &new.target {
            PushTarget::WebPush { endpoint, p256dh, auth } => (endpoint, Some(p256dh), Some(auth), None, false),
            PushTarget::Apns { token, topic, is_sandbox } => (token, None, None, Some(topic), *is_sandbox),
            PushTarget::Fcm { token } => (token, None, None, None, false),
        };
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::device(&mut tx, caller.device).await?;
            sessions::authorize(&mut tx, caller, now).await?;
            tx.query(sql::END_WAKE_UPS).bind(caller.device.0).execute().await?;
            tx.query(sql::SET_TARGET)
                .bind(caller.device.0)
                .bind(new.id.0)
                .bind(new.target.kind().name())
                .bind(address.as_str())
                .bind(p256dh.map(String::as_str))
                .bind(auth.map(String::as_str))
                .bind(topic.map(String::as_str))
                .bind(sandbox)
                .bind(now.to_utc())
                .bind(new.nonce_hash.to_vec())
                .bind((now + NONCE_LIFETIME).to_utc())
                .execute()
                .await?;
            tx.commit().await
        })
        .await
    }

    /// Confirms the target of the caller's device with its nonce. Repeatable. If urgent messages wait, a wake-up is due
    /// after `wake_after`.
    ///
    /// # Errors
    /// `session_revoked`; `not_found` if there is no target, or the nonce is another one or past its time.
    pub async fn confirm_push(
        &self,
        caller: &Caller,
        nonce_hash: &[u8; 32],
        wake_after: Duration,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::device(&mut tx, caller.device).await?;
            sessions::authorize(&mut tx, caller, now).await?;
            // Rolled back if the nonce is wrong.
            let due_at = (now + wake_after).to_utc();
            tx.query(sql::START_WAKE_UPS).bind(caller.device.0).bind(due_at).execute().await?;
            let confirmed = tx
                .query(sql::CONFIRM_TARGET)
                .bind(caller.device.0)
                .bind(nonce_hash.to_vec())
                .bind(now.to_utc())
                .execute()
                .await?;
            if confirmed == 0 {
                return Err(Refusal::NotFound.into());
            }
            tx.commit().await
        })
        .await
    }

    /// Deletes the target of the caller's device. Repeatable.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn remove_push(&self, caller: &Caller, now: Timestamp) -> Result<(), StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::device(&mut tx, caller.device).await?;
            sessions::authorize(&mut tx, caller, now).await?;
            tx.query(sql::END_WAKE_UPS).bind(caller.device.0).execute().await?;
            remove_target(&mut tx, caller.device).await?;
            tx.commit().await
        })
        .await
    }

    /// Deletes the target of a device, because a push service says that it is gone, unless the device has registered
    /// again. Returns whether it was deleted.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn forget_push(&self, device: DeviceId, id: PushRegistration) -> Result<bool, StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            tx.query(lock_sql::DEVICE).bind(device.0).execute().await?;
            if !matches!(read_target(&mut tx, device).await?, Some((found, ..)) if found == id) {
                return Ok(false);
            }
            tx.query(sql::END_WAKE_UPS).bind(device.0).execute().await?;
            remove_target(&mut tx, device).await?;
            tx.commit().await?;
            Ok(true)
        })
        .await
    }

    /// How long the oldest wake-up of a kind has been due and was not taken.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn overdue_wake_up(&self, kind: PushKind, now: Timestamp) -> Result<Duration, StoreError> {
        let mut tx = self.read().await?;
        let oldest: (Option<DateTime<Utc>>,) =
            tx.query(sql::OLDEST_DUE).bind(now.to_utc()).bind(kind.name()).fetch_one().await?;
        Ok(oldest.0.map_or(Duration::ZERO, |due_at| now.since(rows::time(due_at))))
    }

    /// Takes at most `limit` wake-ups of a kind that are due, until `taken_until`. Wake-ups of devices without a target or an urgent
    /// envelope end. Those whose target may not be used yet are postponed.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn take_due_wake_ups(
        &self,
        kind: PushKind,
        limit: usize,
        taken_until: Timestamp,
        now: Timestamp,
    ) -> Result<Vec<DueWakeUp>, StoreError> {
        // Most looks find nothing, and a write would wait for others.
        let mut read = self.read().await?;
        let any: Option<(i32,)> =
            read.query(sql::IS_ANY_DUE).bind(now.to_utc()).bind(kind.name()).fetch_optional().await?;
        drop(read);
        if any.is_none() {
            return Ok(Vec::new());
        }
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            let due = tx.query(sql::TAKE_DUE).bind(now.to_utc()).bind(limit).bind(taken_until.to_utc());
            let taken: Vec<(Uuid,)> = due.bind(kind.name()).fetch_all().await?;
            let mut needless: BTreeSet<Uuid> = taken.into_iter().map(|(device,)| device).collect();
            let devices: Vec<Uuid> = needless.iter().copied().collect();
            let found: Vec<DueRow> =
                tx.query(sql::TARGETS_OF_MANY).bind_ids(&devices).bind(now.to_utc()).fetch_all().await?;
            let mut due = Vec::with_capacity(found.len());
            let (mut postponed, mut until) = (Vec::new(), Vec::new());
            for row in found {
                let (one, not_before) = DueWakeUp::from_row(row, taken_until, now)?;
                needless.remove(&one.device.0);
                if let Some(at) = not_before {
                    postponed.push(one.device.0);
                    until.push(at.to_utc());
                } else {
                    due.push(one);
                }
            }
            if !postponed.is_empty() {
                let rows = [Column::Ids(postponed), Column::Times(until)];
                tx.query(sql::POSTPONE_DUE).bind_rows(rows).execute().await?;
            }
            // In the same transaction: a send that waits for a mailbox does not find a wake-up that is about to end.
            if !needless.is_empty() {
                let needless: Vec<Uuid> = needless.into_iter().collect();
                tx.query(sql::END_DUE).bind_ids(&needless).execute().await?;
            }
            tx.commit().await?;
            Ok(due)
        })
        .await
    }

    /// Writes what came of wake-ups. A mailbox that has changed since its wake-up was taken is left alone.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn settle_wake_ups(&self, settled: &[SettledWakeUp]) -> Result<(), StoreError> {
        let mut settled: Vec<&SettledWakeUp> = settled.iter().collect();
        settled.sort_unstable_by_key(|one| one.due.device.0);
        let devices: Vec<Uuid> = settled.iter().map(|one| one.due.device.0).collect();
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            lock_mailboxes(&mut tx, &devices).await?;
            tx.query(sql::SETTLE_DUE)
                .bind_rows([
                    Column::Ids(devices.clone()),
                    Column::Times(settled.iter().map(|one| one.due.taken_until.to_utc()).collect()),
                    Column::Times(settled.iter().map(|one| one.next_at.to_utc()).collect()),
                    Column::Integers(settled.iter().map(|one| state_after(one) as i64).collect()),
                ])
                .execute()
                .await?;
            let tried: Vec<(&SettledWakeUp, PushFailures)> =
                settled.iter().filter_map(|one| Some((*one, one.failures?))).collect();
            let time = |at: Option<Timestamp>| at.map(Timestamp::to_utc);
            tx.query(sql::SETTLE_TARGETS)
                .bind_rows([
                    Column::Ids(tried.iter().map(|(one, _)| one.due.device.0).collect()),
                    Column::Ids(tried.iter().map(|(one, _)| one.due.id.0).collect()),
                    Column::OptionalTimes(tried.iter().map(|(_, failures)| time(failures.since)).collect()),
                    Column::Integers(tried.iter().map(|(_, failures)| failures.count.into()).collect()),
                    Column::OptionalTimes(
                        tried.iter().map(|(one, _)| time((!one.is_done).then_some(one.next_at))).collect(),
                    ),
                ])
                .execute()
                .await?;
            tx.commit().await
        })
        .await
    }
}
