//! Locks, deletes and writes the rows of mailboxes, envelopes and remembered sends.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    mailbox_size,
    plan::{Mailbox, Plan, RememberedSend},
};
use crate::{
    domain::{DeviceId, MessageId, UserId, envelope::RecipientOutcome, push::WakeUp},
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

/// Device, next number, envelopes and bytes, those of strangers, number of expired envelopes; whether there is a push
/// target, when a wake-up is due, whether the device was woken.
type MailboxRow = (Uuid, i64, i64, i64, i64, i64, i64, bool, Option<DateTime<Utc>>, bool);

/// Locks mailboxes, by id, and reads them.
pub async fn lock_mailboxes(
    tx: &mut Tx<'_>,
    devices: &BTreeSet<DeviceId>,
) -> Result<BTreeMap<DeviceId, Mailbox>, StoreError> {
    let ids: Vec<Uuid> = devices.iter().map(|device| device.0).collect();
    let found: Vec<MailboxRow> = tx.query(sql::LOCK_MAILBOXES).bind_ids(&ids).fetch_all().await?;
    let mailbox = |row: MailboxRow| {
        let (device, next_seq, count, bytes, of_strangers, bytes_of_strangers, expired_total, ..) = row;
        let (.., has_target, due_at, is_woken) = row;
        let load = mailbox_size(count, bytes);
        // A node of an earlier version does not maintain the share of strangers. Once it has emptied the mailbox, this
        // corrects the share.
        let strangers = mailbox_size(of_strangers, bytes_of_strangers).at_most(load);
        let wake = WakeUp { has_target, due_at: due_at.map(rows::time), is_woken };
        (DeviceId(device), Mailbox { next_seq, load, strangers, expired_total, wake })
    };
    Ok(found.into_iter().map(mailbox).collect())
}

/// Deletes envelopes of locked mailboxes, and updates the sizes of the mailboxes in memory. Returns the envelopes that
/// existed.
pub async fn remove_envelopes(
    tx: &mut Tx<'_>,
    envelopes: &[(DeviceId, i64)],
    mailboxes: &mut BTreeMap<DeviceId, Mailbox>,
) -> Result<Vec<(DeviceId, i64)>, StoreError> {
    let (devices, seqs) = envelopes.iter().map(|(device, seq)| (device.0, *seq)).unzip();
    let removed: Vec<(Uuid, i64, i64, bool)> =
        tx.query(sql::DELETE_ENVELOPES).bind_rows([Column::Ids(devices), Column::Integers(seqs)]).fetch_all().await?;
    for (device, _, bytes, from_stranger) in &removed {
        if let Some(Mailbox { load, strangers, .. }) = mailboxes.get_mut(&DeviceId(*device)) {
            *load = load.minus(bytes.unsigned_abs());
            if *from_stranger {
                *strangers = strangers.minus(bytes.unsigned_abs());
            }
            *strangers = strangers.at_most(*load);
        }
    }
    Ok(removed.into_iter().map(|(device, seq, ..)| (DeviceId(device), seq)).collect())
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
            Column::OptionalTimes(
                mailboxes.values().map(|mailbox| mailbox.wake.due_at.map(|at| at.to_utc())).collect(),
            ),
            column(|mailbox| mailbox.wake.is_woken.into()),
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
