//! Push targets of devices, and the wake-ups that are due.
//!
//! A mailbox records when its device is to be woken (`mailboxes.wake_at`), and the sends and acks that change the mailbox
//! keep it up to date. A node takes wake-ups that are due by making them due again a little later. If the node dies,
//! another one takes them then. What came of a push is written only if the mailbox has not changed since.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Store, StoreError, locks, rows, sessions,
    sql::{locks as lock_sql, mailbox, push as sql},
    tx::{Column, Tx},
};
use crate::domain::{
    Caller, DeviceId, Refusal, Timestamp,
    push::{NONCE_LIFETIME, PushFailures, PushKind, PushState, PushTarget},
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
    /// The failures now, if they have changed.
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

/// Locks mailboxes in the order in which batches lock them.
async fn lock_mailboxes(tx: &mut Tx<'_>, devices: &[Uuid]) -> Result<(), StoreError> {
    tx.query(mailbox::LOCK_ONLY).bind_ids(devices).execute().await?;
    Ok(())
}

impl Store {
    /// Whether a device has a push target.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn push_state(&self, device: DeviceId) -> Result<PushState, StoreError> {
        Ok(match read_target(&mut self.read().await?, device).await? {
            None => PushState::None,
            Some((.., true)) => PushState::Active,
            Some((.., false)) => PushState::Unconfirmed,
        })
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
            tx.query(sql::SET_HAS_PUSH).bind(caller.device.0).bind(false).execute().await?;
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

    /// Confirms the target of the caller's device with its nonce. Repeatable.
    ///
    /// # Errors
    /// `session_revoked`; `not_found` if there is no target, or the nonce is another one or past its time.
    pub async fn confirm_push(&self, caller: &Caller, nonce_hash: &[u8; 32], now: Timestamp) -> Result<(), StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::device(&mut tx, caller.device).await?;
            sessions::authorize(&mut tx, caller, now).await?;
            // Rolled back if the nonce is wrong.
            tx.query(sql::SET_HAS_PUSH).bind(caller.device.0).bind(true).execute().await?;
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
            tx.query(sql::SET_HAS_PUSH).bind(caller.device.0).bind(false).execute().await?;
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
            tx.query(sql::SET_HAS_PUSH).bind(device.0).bind(false).execute().await?;
            remove_target(&mut tx, device).await?;
            tx.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Takes at most `limit` wake-ups that are due, until `taken_until`. Wake-ups of devices without a target or an urgent
    /// envelope end.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn take_due_wake_ups(
        &self,
        limit: usize,
        taken_until: Timestamp,
        now: Timestamp,
    ) -> Result<Vec<DueWakeUp>, StoreError> {
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
            bool,
        );
        // Most looks find nothing, and a write would wait for others.
        let any: Option<(i32,)> = self.read().await?.query(sql::IS_ANY_DUE).bind(now.to_utc()).fetch_optional().await?;
        if any.is_none() {
            return Ok(Vec::new());
        }
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let (taken, found) = self
            .retrying(|| async {
                let mut tx = self.begin().await?;
                let until = taken_until.to_utc();
                let due = tx.query(sql::TAKE_DUE).bind(now.to_utc()).bind(limit).bind(until);
                let taken: Vec<(Uuid,)> = due.fetch_all().await?;
                let mut taken: Vec<Uuid> = taken.into_iter().map(|(device,)| device).collect();
                taken.sort_unstable();
                let targets = tx.query(sql::TARGETS_OF_MANY).bind_ids(&taken).bind(now.to_utc());
                let found: Vec<DueRow> = targets.fetch_all().await?;
                tx.commit().await?;
                Ok((taken, found))
            })
            .await?;
        let mut due = Vec::with_capacity(found.len());
        for row in found {
            let (device, id, kind, address, p256dh, auth, topic, is_sandbox, since, count, is_urgent) = row;
            if is_urgent {
                let target = target((kind, address, p256dh, auth, topic, is_sandbox))?;
                let failures = PushFailures { since: since.map(rows::time), count: count.unsigned_abs() };
                let id = PushRegistration(id);
                due.push(DueWakeUp { device: DeviceId(device), id, target, failures, taken_until });
            }
        }
        let wanted: HashSet<Uuid> = due.iter().map(|one| one.device.0).collect();
        let needless: Vec<Uuid> = taken.into_iter().filter(|device| !wanted.contains(device)).collect();
        if !needless.is_empty() {
            self.retrying(|| async {
                let mut tx = self.begin().await?;
                lock_mailboxes(&mut tx, &needless).await?;
                let end = tx.query(sql::END_DUE).bind_ids(&needless).bind(taken_until.to_utc()).bind(now.to_utc());
                end.execute().await?;
                tx.commit().await
            })
            .await?;
        }
        Ok(due)
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
                    Column::Integers(settled.iter().map(|one| one.is_done.into()).collect()),
                ])
                .execute()
                .await?;
            for one in &settled {
                let Some(failures) = one.failures else { continue };
                tx.query(sql::SET_FAILURES)
                    .bind(one.due.device.0)
                    .bind(one.due.id.0)
                    .bind(failures.since.map(Timestamp::to_utc))
                    .bind(i32::try_from(failures.count).unwrap_or(i32::MAX))
                    .execute()
                    .await?;
            }
            tx.commit().await
        })
        .await
    }
}
