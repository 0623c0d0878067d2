//! Locks, deletes and writes the rows of mailboxes, envelopes and remembered sends.
//!
//! Each transaction that deletes or stores envelopes also changes the counters of their mailboxes, whose rows it has
//! locked: the mailbox's own, those of strangers, and the shares of senders if they are counted.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    mailbox_size,
    plan::{Mailbox, Plan, RememberedSend, Shares},
};
use crate::{
    domain::{
        DeviceId, MessageId, Timestamp, UserId,
        envelope::{MailboxSize, RecipientOutcome},
        push::WakeUp,
    },
    store::{
        StoreError, rows,
        sql::mailbox as sql,
        tx::{Column, Tx},
    },
};

/// Sending device, message id, receiving user, time of acceptance, encoded outcome, whether a part was dropped.
type SendRow = (Uuid, Uuid, Uuid, DateTime<Utc>, Vec<u8>, bool);

impl RememberedSend {
    /// Converts a row of `sends`.
    pub fn from_row(
        (device, message, to, accepted_at, outcome, dropped): SendRow,
    ) -> Result<((DeviceId, MessageId), Self), StoreError> {
        let outcome = RecipientOutcome::decode(&outcome).ok_or_else(|| rows::corrupt("a send's outcome".into()))?;
        let send = Self { to: UserId(to), accepted_at: rows::time(accepted_at), outcome, dropped };
        Ok(((DeviceId(device), MessageId(message)), send))
    }
}

/// Device, next number, envelopes and bytes, those of strangers, number of expired envelopes, next number and envelopes
/// when shares were last correct; whether there is a push target, when a wake-up is due, and the state of wake-ups.
type MailboxRow = (Uuid, i64, i64, i64, i64, i64, i64, Option<i64>, Option<i64>, bool, Option<DateTime<Utc>>, i32);

/// Locks mailboxes, by id, and reads them.
pub async fn lock_mailboxes(
    tx: &mut Tx<'_>,
    devices: &BTreeSet<DeviceId>,
) -> Result<BTreeMap<DeviceId, Mailbox>, StoreError> {
    let ids: Vec<Uuid> = devices.iter().map(|device| device.0).collect();
    Ok(mailboxes(tx.query(sql::LOCK_MAILBOXES).bind_ids(&ids).fetch_all().await?))
}

/// Locks the mailboxes of devices that belong to these users, by id, and reads them. With `skip_locked` it does not wait:
/// those that another transaction has locked are missing.
pub async fn lock_mailboxes_of_owners(
    tx: &mut Tx<'_>,
    devices: &BTreeSet<(DeviceId, UserId)>,
    skip_locked: bool,
) -> Result<BTreeMap<DeviceId, Mailbox>, StoreError> {
    let text = if skip_locked { sql::LOCK_FREE_MAILBOXES_OF_OWNERS } else { sql::LOCK_MAILBOXES_OF_OWNERS };
    let (devices, owners) = devices.iter().map(|(device, owner)| (device.0, owner.0)).unzip();
    Ok(mailboxes(tx.query(text).bind_rows([Column::Ids(devices), Column::Ids(owners)]).fetch_all().await?))
}

fn mailboxes(found: Vec<MailboxRow>) -> BTreeMap<DeviceId, Mailbox> {
    let mailbox = |row: MailboxRow| {
        let (device, next_seq, count, bytes, of_strangers, bytes_of_strangers, expired_total, seq, counted, ..) = row;
        let (.., has_target, due_at, state) = row;
        let load = mailbox_size(count, bytes);
        // A node of an earlier version does not maintain the share of strangers. Once it has emptied the mailbox, this
        // corrects the share.
        let strangers = mailbox_size(of_strangers, bytes_of_strangers).at_most(load);
        // Nor does it maintain the shares of senders. Whatever it stores or deletes changes one of these two numbers.
        let is_counted = seq == Some(next_seq) && counted == Some(count);
        let shares = if is_counted { Shares::Counted } else { Shares::Unknown };
        let wake = WakeUp { has_target, due_at: due_at.map(rows::time), state: state.into() };
        (DeviceId(device), Mailbox { next_seq, load, strangers, expired_total, wake, shares })
    };
    found.into_iter().map(mailbox).collect()
}

/// Deletes envelopes of locked mailboxes, and updates the sizes of the mailboxes in memory. Returns the envelopes that
/// existed.
pub async fn remove_envelopes(
    tx: &mut Tx<'_>,
    envelopes: &[(DeviceId, i64)],
    mailboxes: &mut BTreeMap<DeviceId, Mailbox>,
) -> Result<Vec<(DeviceId, i64)>, StoreError> {
    let (devices, seqs) = envelopes.iter().map(|(device, seq)| (device.0, *seq)).unzip();
    let removed: Vec<(Uuid, i64, Uuid, i64, bool)> =
        tx.query(sql::DELETE_ENVELOPES).bind_rows([Column::Ids(devices), Column::Integers(seqs)]).fetch_all().await?;
    // By device and sending user: envelopes and bytes.
    let mut lowered: BTreeMap<(Uuid, Uuid), (i64, i64)> = BTreeMap::new();
    for (device, _, sender, bytes, from_stranger) in &removed {
        if let Some(Mailbox { load, strangers, shares, .. }) = mailboxes.get_mut(&DeviceId(*device)) {
            *load = load.minus(bytes.unsigned_abs());
            if *from_stranger {
                *strangers = strangers.minus(bytes.unsigned_abs());
            }
            *strangers = strangers.at_most(*load);
            if *shares == Shares::Counted {
                let (envelopes, all_bytes) = lowered.entry((*device, *sender)).or_default();
                *envelopes += 1;
                *all_bytes += bytes;
            }
        }
    }
    lower_shares(tx, &lowered).await?;
    for mailbox in mailboxes.values_mut().filter(|mailbox| mailbox.load.envelopes == 0) {
        // No row is left, so nothing has to be maintained until the mailbox is crowded again.
        mailbox.shares = Shares::Unknown;
    }
    Ok(removed.into_iter().map(|(device, seq, ..)| (DeviceId(device), seq)).collect())
}

/// Subtracts envelopes and bytes from the shares of senders, by device and sending user.
async fn lower_shares(tx: &mut Tx<'_>, lowered: &BTreeMap<(Uuid, Uuid), (i64, i64)>) -> Result<(), StoreError> {
    tx.query(sql::LOWER_SHARES)
        .bind_rows([
            Column::Ids(lowered.keys().map(|(device, _)| *device).collect()),
            Column::Ids(lowered.keys().map(|(_, sender)| *sender).collect()),
            Column::Integers(lowered.values().map(|(envelopes, _)| *envelopes).collect()),
            Column::Integers(lowered.values().map(|(_, bytes)| *bytes).collect()),
        ])
        .execute()
        .await?;
    let devices: BTreeSet<Uuid> = lowered.keys().map(|(device, _)| *device).collect();
    let devices: Vec<Uuid> = devices.into_iter().collect();
    tx.query(sql::DELETE_EMPTY_SHARES).bind_ids(&devices).execute().await?;
    Ok(())
}

/// Writes locked mailboxes back.
pub async fn update_mailboxes(tx: &mut Tx<'_>, mailboxes: &BTreeMap<DeviceId, Mailbox>) -> Result<(), StoreError> {
    let column = |get: fn(&Mailbox) -> i64| Column::Integers(mailboxes.values().map(get).collect());
    let size = |get: fn(&Mailbox) -> u64| {
        let number = |mailbox| i64::try_from(get(mailbox)).unwrap_or(i64::MAX);
        Column::Integers(mailboxes.values().map(number).collect())
    };
    tx.query(sql::UPDATE_MAILBOXES)
        .bind_rows([
            Column::Ids(mailboxes.keys().map(|device| device.0).collect()),
            column(|mailbox| mailbox.next_seq),
            size(|mailbox| mailbox.load.envelopes),
            size(|mailbox| mailbox.load.bytes),
            column(|mailbox| mailbox.expired_total),
            size(|mailbox| mailbox.strangers.envelopes),
            size(|mailbox| mailbox.strangers.bytes),
            column(|mailbox| (mailbox.shares == Shares::Counted).into()),
            Column::OptionalTimes(
                mailboxes.values().map(|mailbox| mailbox.wake.due_at.map(Timestamp::to_utc)).collect(),
            ),
            column(|mailbox| mailbox.wake.state as i64),
        ])
        .execute()
        .await?;
    Ok(())
}

impl Plan {
    /// Writes the plan to the database.
    pub async fn write(&self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        self.insert_envelopes(tx).await?;
        update_mailboxes(tx, &self.mailboxes).await?;
        self.write_shares(tx).await?;
        for (device, message) in &self.stale_sends {
            tx.query(sql::DELETE_SEND).bind(device.0).bind(message.0).execute().await?;
        }
        self.insert_sends(tx).await?;
        for id in &self.changed_sends {
            if let Some(send) = self.sends.get(id) {
                let outcome = RecipientOutcome::encode(&send.outcome);
                tx.query(sql::UPDATE_SEND).bind(id.0.0).bind(id.1.0).bind(outcome).bind(send.dropped).execute().await?;
            }
        }
        Ok(())
    }

    async fn insert_envelopes(&self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        let all = || self.envelopes.iter();
        tx.query(sql::INSERT_ENVELOPES)
            .bind_rows([
                Column::Ids(all().map(|new| new.device.0).collect()),
                Column::Integers(all().map(|new| new.seq).collect()),
                Column::Ids(all().map(|new| new.envelope.message.0).collect()),
                Column::Ids(all().map(|new| new.envelope.from_user.0).collect()),
                Column::Ids(all().map(|new| new.envelope.from_device.0).collect()),
                Column::Integers(all().map(|new| new.envelope.kind.into()).collect()),
                Column::Bytes(all().map(|new| &new.envelope.content[..]).collect()),
                Column::Times(all().map(|new| new.envelope.accepted_at.to_utc()).collect()),
                Column::Times(all().map(|new| new.expires_at.to_utc()).collect()),
                Column::Integers(all().map(|new| new.from_stranger.into()).collect()),
                Column::Integers(all().map(|new| new.is_urgent.into()).collect()),
            ])
            .execute()
            .await?;
        Ok(())
    }

    async fn write_shares(&self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        // What an earlier version has left.
        let newly_counted: Vec<Uuid> = self.newly_counted.iter().map(|device| device.0).collect();
        tx.query(sql::DELETE_SHARES_OF_MANY).bind_ids(&newly_counted).execute().await?;
        let size = |get: fn(&MailboxSize) -> u64| {
            let number = |share| i64::try_from(get(share)).unwrap_or(i64::MAX);
            Column::Integers(self.shares.values().map(number).collect())
        };
        tx.query(sql::WRITE_SHARES)
            .bind_rows([
                Column::Ids(self.shares.keys().map(|(device, _)| device.0).collect()),
                Column::Ids(self.shares.keys().map(|(_, sender)| sender.0).collect()),
                size(|share| share.envelopes),
                size(|share| share.bytes),
            ])
            .execute()
            .await?;
        Ok(())
    }

    async fn insert_sends(&self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        let new: Vec<_> = self.new_sends.iter().filter_map(|id| Some((id, self.sends.get(id)?))).collect();
        let outcomes: Vec<Vec<u8>> = new.iter().map(|(_, send)| RecipientOutcome::encode(&send.outcome)).collect();
        tx.query(sql::INSERT_SENDS)
            .bind_rows([
                Column::Ids(new.iter().map(|(id, _)| id.0.0).collect()),
                Column::Ids(new.iter().map(|(id, _)| id.1.0).collect()),
                Column::Ids(new.iter().map(|(_, send)| send.to.0).collect()),
                Column::Times(new.iter().map(|(_, send)| send.accepted_at.to_utc()).collect()),
                Column::Bytes(outcomes.iter().map(Vec::as_slice).collect()),
                Column::Integers(new.iter().map(|(_, send)| send.dropped.into()).collect()),
            ])
            .execute()
            .await?;
        Ok(())
    }
}
