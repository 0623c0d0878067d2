//! Envelopes that nobody will fetch: their time is up, or their device is about to go.

use uuid::Uuid;

use super::{Mailbox, lock, remove};
use crate::{
    domain::{DeviceId, Timestamp},
    store::{Store, StoreError, many::batch_transaction, read, sql::mailbox as texts},
};

/// Envelopes that one transaction deletes. Small, since sends to the same mailboxes wait for it.
const STEP: i64 = 200;

impl Store {
    /// Deletes envelopes whose time is up, in small steps, and counts them as expired. Of several nodes one does it. Gives
    /// their number.
    ///
    /// # Errors
    /// The store's own.
    pub async fn expire_mail(&self, now: Timestamp) -> Result<u64, StoreError> {
        let mut all = 0;
        loop {
            let expired = self.expire_some(now).await?;
            all += expired;
            if i64::try_from(expired).is_ok_and(|expired| expired < STEP) {
                return Ok(all);
            }
        }
    }

    async fn expire_some(&self, now: Timestamp) -> Result<u64, StoreError> {
        let any: Option<(Uuid, i64)> =
            read!(self, |db| sqlx::query_as(texts::EXPIRED).bind(now.to_utc()).bind(1_i64).fetch_optional(db).await?);
        if any.is_none() {
            return Ok(0);
        }
        Ok(batch_transaction!(self, mailbox, |tx, engine| {
            if engine::take_sweep(tx).await? {
                let expired: Vec<(Uuid, i64)> =
                    sqlx::query_as(texts::EXPIRED).bind(now.to_utc()).bind(STEP).fetch_all(&mut *tx).await?;
                let mut mailboxes = lock!(tx, engine, expired.iter().map(|(device, _)| *device).collect());
                let gone = remove!(tx, engine, expired, mailboxes);
                for (device, ..) in &gone {
                    if let Some(mailbox) = mailboxes.get_mut(&DeviceId(*device)) {
                        mailbox.expired_total += 1;
                    }
                }
                engine::update_mailboxes(tx, &mailboxes.into_iter().collect::<Vec<_>>()).await?;
                gone.len() as u64
            } else {
                0
            }
        }))
    }

    /// Deletes what waits for devices that are about to go, in small steps: in one, a full mailbox would hold up everybody
    /// who sends to it. What comes in meanwhile is left to the transaction that follows.
    ///
    /// # Errors
    /// The store's own.
    pub(in crate::store) async fn empty_mailboxes(&self, devices: &[DeviceId]) -> Result<(), StoreError> {
        for device in devices {
            loop {
                let gone = batch_transaction!(self, mailbox, |tx, engine| {
                    let mut mailboxes = lock!(tx, engine, [device.0].into());
                    let oldest: Vec<(Uuid, i64)> =
                        sqlx::query_as(texts::OLDEST).bind(device.0).bind(STEP).fetch_all(&mut *tx).await?;
                    let gone = remove!(tx, engine, oldest, mailboxes);
                    engine::update_mailboxes(tx, &mailboxes.into_iter().collect::<Vec<_>>()).await?;
                    gone.len()
                });
                if i64::try_from(gone).is_ok_and(|gone| gone < STEP) {
                    break;
                }
            }
        }
        Ok(())
    }
}
