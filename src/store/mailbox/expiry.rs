//! Deletes envelopes that no device will read: expired ones, and those of a device that is about to be deleted.

use uuid::Uuid;

use super::writing::{lock_mailboxes, remove_envelopes, update_mailboxes};
use crate::{
    domain::{DeviceId, Timestamp},
    store::{Store, StoreError, sql::mailbox as sql},
};

/// Maximum number of envelopes that one transaction deletes. Small, because sends to the same mailboxes wait for it.
const STEP: u32 = 200;

fn is_last_step(rows: usize) -> bool {
    u32::try_from(rows).is_ok_and(|rows| rows < STEP)
}

impl Store {
    /// Deletes expired envelopes, in small steps, and counts them in their mailboxes. One node at a time does this.
    /// Returns the number of envelopes.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn expire_mail(&self, now: Timestamp) -> Result<u64, StoreError> {
        let mut all = 0;
        loop {
            let expired = self.expire_some(now).await?;
            all += expired as u64;
            if is_last_step(expired) {
                return Ok(all);
            }
        }
    }

    async fn expire_some(&self, now: Timestamp) -> Result<usize, StoreError> {
        let any: Option<(Uuid, i64)> =
            self.read().await?.query(sql::EXPIRED).bind(now.to_utc()).bind(1_i64).fetch_optional().await?;
        if any.is_none() {
            return Ok(0);
        }
        let mut tx = self.begin().await?;
        let (is_ours,): (bool,) = tx.query(sql::TAKE_EXPIRY).fetch_one().await?;
        if !is_ours {
            return Ok(0);
        }
        let expired: Vec<(Uuid, i64)> =
            tx.query(sql::EXPIRED).bind(now.to_utc()).bind(i64::from(STEP)).fetch_all().await?;
        let expired: Vec<_> = expired.into_iter().map(|(device, seq)| (DeviceId(device), seq)).collect();
        let devices = expired.iter().map(|(device, _)| *device).collect();
        let mut mailboxes = lock_mailboxes(&mut tx, &devices).await?;
        let removed = remove_envelopes(&mut tx, &expired, &mut mailboxes).await?;
        for (device, _) in &removed {
            if let Some(mailbox) = mailboxes.get_mut(device) {
                mailbox.expired_total += 1;
            }
        }
        update_mailboxes(&mut tx, &mailboxes).await?;
        tx.commit().await?;
        Ok(removed.len())
    }

    /// Deletes the envelopes of devices that are about to be deleted, in small steps: one large step would block
    /// senders to a full mailbox. Envelopes stored meanwhile are left to the transaction that deletes the device.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub(in crate::store) async fn empty_mailboxes(&self, devices: &[DeviceId]) -> Result<(), StoreError> {
        for device in devices {
            loop {
                let mut tx = self.begin().await?;
                let mut mailboxes = lock_mailboxes(&mut tx, &[*device].into()).await?;
                let oldest: Vec<(Uuid, i64)> =
                    tx.query(sql::OLDEST).bind(device.0).bind(i64::from(STEP)).fetch_all().await?;
                let oldest: Vec<_> = oldest.into_iter().map(|(device, seq)| (DeviceId(device), seq)).collect();
                let removed = remove_envelopes(&mut tx, &oldest, &mut mailboxes).await?;
                update_mailboxes(&mut tx, &mailboxes).await?;
                tx.commit().await?;
                if is_last_step(removed.len()) {
                    break;
                }
            }
        }
        Ok(())
    }
}
