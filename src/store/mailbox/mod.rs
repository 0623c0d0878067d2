//! Mailboxes: ciphertext that waits for its device.
//!
//! Sends and acks of many devices share one transaction. It locks the mailboxes that are named, by id, and only then reads
//! what the sends depend on; so the numbers that it gives are the order of commits, without gaps, and whoever sees a
//! number sees all before it. What is to be written is decided in memory (`plan`); each engine has its own few set-based
//! statements.

mod expiry;
mod items;
mod plan;
mod postgres;
mod reading;
mod sqlite;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Store, StoreError, error::fail_all, many::batch_transaction, rows, sql::mailbox as texts};
use crate::domain::{
    Caller, DeviceId, MessageId, SessionId, Signal, Timestamp, UserId,
    envelope::{Load, MailboxBounds, Outgoing, SentTo},
};
use items::Items;
use plan::{Facts, Mailbox, PastSend, Plan, Sender, plan};

/// Runs of a batch whose outcome is unknown or that lost to another.
const TRIES: u32 = 4;
/// What one transaction handles, unless a single message is larger: bytes of content, and as many more for each row as
/// rows cost.
const COMMIT_BYTES: usize = 4 * 1024 * 1024;
const ROW_BYTES: usize = 256;

/// A message to the devices of a user.
#[derive(Clone, Debug)]
pub struct SendRequest {
    /// In whose name.
    pub caller: Caller,
    /// The connection that it came over. Once the device has a newer one, it is refused.
    pub epoch: i64,
    /// The sending device's name for it.
    pub message: MessageId,
    /// Whose devices.
    pub to: UserId,
    /// Only for who is connected now.
    pub ephemeral: bool,
    /// How long it waits.
    pub ttl: Duration,
    /// One for each device.
    pub envelopes: Vec<Outgoing>,
    /// Now.
    pub now: Timestamp,
}

/// Envelopes that have arrived.
#[derive(Clone, Debug)]
pub struct AckRequest {
    /// Whose mailbox.
    pub caller: Caller,
    /// Their numbers; unknown ones are passed over.
    pub seqs: Vec<i64>,
    /// Now.
    pub now: Timestamp,
}

/// Something to be done to mailboxes.
#[derive(Clone, Debug)]
pub enum MailRequest {
    /// Store.
    Send(SendRequest),
    /// Delete.
    Ack(AckRequest),
}

impl MailRequest {
    /// What it costs of [`COMMIT_BYTES`].
    fn bytes(&self) -> usize {
        match self {
            Self::Send(send) => send.envelopes.iter().map(|outgoing| ROW_BYTES + outgoing.content.len()).sum(),
            Self::Ack(ack) => ROW_BYTES * ack.seqs.len(),
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub enum MailAnswer {
    /// A message was accepted.
    Sent(Accepted),
    /// So many envelopes were deleted.
    Acked(u64),
}

/// An accepted message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// When it was accepted first.
    pub accepted_at: Timestamp,
    /// Whether it had been accepted before.
    pub duplicate: bool,
    /// Devices that lack it because their mailboxes were full.
    pub undelivered: Vec<DeviceId>,
}

/// What a batch of mail came to.
#[derive(Default)]
pub struct MailBatch {
    /// One for each request, in order.
    pub answers: Vec<Result<MailAnswer, StoreError>>,
    /// Devices to be told, now that it is committed; those of one device in the order of their numbers.
    pub wakes: Vec<(DeviceId, Signal)>,
}

impl Mailbox {
    fn count(&self) -> i64 {
        i64::try_from(self.load.envelopes).unwrap_or(i64::MAX)
    }

    fn bytes(&self) -> i64 {
        i64::try_from(self.load.bytes).unwrap_or(i64::MAX)
    }

    /// Takes an envelope out.
    fn remove(&mut self, bytes: i64) {
        self.load.envelopes = self.load.envelopes.saturating_sub(1);
        self.load.bytes = self.load.bytes.saturating_sub(bytes.unsigned_abs());
    }
}

/// sending device, message id, recipient, time of acceptance, outcome.
type SendRow = (Uuid, Uuid, Uuid, DateTime<Utc>, Vec<u8>);

fn columns(pairs: &[(Uuid, Uuid)]) -> (Vec<Uuid>, Vec<Uuid>) {
    pairs.iter().copied().unzip()
}

fn load(count: i64, bytes: i64) -> Load {
    Load { envelopes: count.unsigned_abs(), bytes: bytes.unsigned_abs() }
}

/// Locks mailboxes, by id, and reads them.
macro_rules! lock {
    ($tx:ident, $engine:ident, $devices:expr) => {{
        let devices: std::collections::BTreeSet<uuid::Uuid> = $devices;
        let rows = $engine::mailboxes($tx, &devices.into_iter().collect::<Vec<_>>()).await?;
        rows.into_iter()
            .map(|(device, next_seq, count, bytes, expired_total)| {
                let load = $crate::store::mailbox::load(count, bytes);
                (DeviceId(device), Mailbox { next_seq, load, expired_total })
            })
            .collect::<std::collections::BTreeMap<DeviceId, Mailbox>>()
    }};
}
use lock;

/// Deletes envelopes of locked mailboxes and takes them off their books. Gives device, number and size of those that were
/// there.
macro_rules! remove {
    ($tx:ident, $engine:ident, $envelopes:expr, $mailboxes:expr) => {{
        let envelopes: Vec<(uuid::Uuid, i64)> = $envelopes;
        let gone = if envelopes.is_empty() { Vec::new() } else { $engine::delete_messages($tx, &envelopes).await? };
        for (device, _, bytes) in &gone {
            if let Some(mailbox) = $mailboxes.get_mut(&DeviceId(*device)) {
                mailbox.remove(*bytes);
            }
        }
        gone
    }};
}
use remove;

/// Reads what sends depend on.
macro_rules! read_for_sends {
    ($tx:ident, $engine:ident, $items:ident, $facts:ident, $bounds:ident) => {
        let users = $items.recipients();
        for (user, device, expires_at) in $engine::recipients($tx, &users).await? {
            let devices = $facts.recipients.entry(UserId(user)).or_default();
            devices.push((DeviceId(device), expires_at.map(rows::time)));
        }
        let unseen: Vec<Uuid> =
            users.into_iter().filter(|user| !$facts.recipients.contains_key(&UserId(*user))).collect();
        if !unseen.is_empty() {
            let found = $engine::users($tx, &unseen).await?;
            $facts.recipients.extend(found.into_iter().map(|(user,)| (UserId(user), Vec::new())));
        }
        for row in $engine::sends($tx, &$items.ids()).await? {
            let (id, send) = past_send(row)?;
            $facts.sends.insert(id, send);
        }
        let crowded = $items.crowded(&$facts, $bounds);
        if !crowded.is_empty() {
            let ids: Vec<_> = crowded.iter().map(|(device, user)| (device.0, user.0)).collect();
            $facts.shares = crowded.into_iter().map(|pair| (pair, Load::default())).collect();
            for (device, user, count, bytes) in $engine::shares($tx, &ids).await? {
                $facts.shares.insert((DeviceId(device), UserId(user)), load(count, bytes));
            }
        }
    };
}

/// Writes what was decided.
macro_rules! write_plan {
    ($tx:ident, $engine:ident, $plan:ident) => {
        if !$plan.envelopes.is_empty() {
            $engine::insert_messages($tx, &$plan.envelopes).await?;
        }
        let mailboxes: Vec<_> = std::mem::take(&mut $plan.mailboxes).into_iter().collect();
        if !mailboxes.is_empty() {
            $engine::update_mailboxes($tx, &mailboxes).await?;
        }
        for (device, message) in &$plan.stale_sends {
            sqlx::query(texts::DELETE_SEND).bind(device.0).bind(message.0).execute(&mut *$tx).await?;
        }
        let new: Vec<SendRow> = $plan.new_sends.iter().filter_map(|id| send_row(*id, &$plan.sends)).collect();
        if !new.is_empty() {
            $engine::insert_sends($tx, &new).await?;
        }
        for (device, message, _, _, outcome) in $plan.changed_sends.iter().filter_map(|id| send_row(*id, &$plan.sends))
        {
            sqlx::query(texts::UPDATE_SEND).bind(device).bind(message).bind(outcome).execute(&mut *$tx).await?;
        }
    };
}

impl Store {
    /// Serves sends and acks, sends in their order, in one commit or, where they are large, in several. One that fails for
    /// a reason of its own fails alone.
    pub async fn mail(&self, items: Vec<MailRequest>, bounds: &MailboxBounds) -> MailBatch {
        let mut all = MailBatch::default();
        let mut items = items.into_iter().peekable();
        while items.peek().is_some() {
            let mut bytes = 0;
            let mut some = Vec::new();
            while let Some(item) = items.next_if(|item| some.is_empty() || bytes + item.bytes() <= COMMIT_BYTES) {
                bytes += item.bytes();
                some.push(item);
            }
            let count = some.len();
            match self.mail_commit(some, bounds).await {
                Ok(one) => {
                    all.answers.extend(one.answers);
                    all.wakes.extend(one.wakes);
                }
                Err(error) => {
                    // The rest would wait as long, and those behind it.
                    let rest = if error.is_out_of_reach() { items.by_ref().count() } else { 0 };
                    all.answers.extend(fail_all(&error, count + rest));
                }
            }
        }
        all
    }

    /// One commit, with as many runs as it takes.
    async fn mail_commit(&self, items: Vec<MailRequest>, bounds: &MailboxBounds) -> Result<MailBatch, StoreError> {
        let mut tries = 1;
        loop {
            match self.try_mail(&items, bounds, tries > 1).await {
                Err(error @ (StoreError::Data(_) | StoreError::Internal(_))) if items.len() > 1 => {
                    tracing::warn!(%error, items = items.len(), "a batch of mail failed; running its items singly");
                    let mut all = MailBatch::default();
                    for item in items {
                        match Box::pin(self.mail_commit(vec![item], bounds)).await {
                            Ok(one) => {
                                all.answers.extend(one.answers);
                                all.wakes.extend(one.wakes);
                            }
                            Err(error) => all.answers.push(Err(error)),
                        }
                    }
                    return Ok(all);
                }
                // The commit's outcome may be unknown, or a parallel repeat was first: the next run finds its record.
                Err(error @ (StoreError::Unavailable(_) | StoreError::Conflict(_) | StoreError::Data(_)))
                    if tries < TRIES && !error.is_out_of_reach() =>
                {
                    tracing::debug!(%error, tries, "a batch of mail failed; trying again");
                    self.metrics().store_retries.inc();
                    tries += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn try_mail(
        &self,
        items: &[MailRequest],
        bounds: &MailboxBounds,
        again: bool,
    ) -> Result<MailBatch, StoreError> {
        let items = Items::of(items);
        let (acked, Plan { answers, wakes, .. }) = batch_transaction!(self, mailbox, |tx, engine| {
            let mut facts = Facts { mailboxes: lock!(tx, engine, items.devices()), ..Facts::default() };
            let sessions = engine::sessions(tx, &items.sessions()).await?;
            let sender = |(session, device, expires_at, newest_epoch)| {
                (
                    SessionId(session),
                    Sender { device: DeviceId(device), expires_at: rows::time(expires_at), newest_epoch },
                )
            };
            facts.senders = sessions.into_iter().map(sender).collect();
            let holding = items.holding(&facts);
            let gone = remove!(tx, engine, items.acked(&holding, &facts), facts.mailboxes);
            let emptied: BTreeSet<DeviceId> = gone.iter().map(|(device, ..)| DeviceId(*device)).collect();
            let emptied: BTreeMap<DeviceId, Mailbox> =
                emptied.into_iter().filter_map(|device| Some((device, *facts.mailboxes.get(&device)?))).collect();
            if !items.sends.is_empty() {
                read_for_sends!(tx, engine, items, facts, bounds);
            }
            let mut plan = plan(&items.sends, facts, bounds, again)?;
            for (device, mailbox) in emptied {
                plan.mailboxes.entry(device).or_insert(mailbox);
            }
            write_plan!(tx, engine, plan);
            let gone = gone.into_iter().map(|(device, seq, _)| (DeviceId(device), seq)).collect();
            (items.count(&holding, gone), plan)
        });
        Ok(MailBatch { answers: items.merge(acked, answers), wakes })
    }
}

fn past_send(
    (device, message, to, accepted_at, outcome): SendRow,
) -> Result<((DeviceId, MessageId), PastSend), StoreError> {
    let outcome = SentTo::decode(&outcome).ok_or_else(|| rows::corrupt("a send's outcome".into()))?;
    let send = PastSend { to: UserId(to), accepted_at: rows::time(accepted_at), outcome };
    Ok(((DeviceId(device), MessageId(message)), send))
}

fn send_row(id: (DeviceId, MessageId), sends: &HashMap<(DeviceId, MessageId), PastSend>) -> Option<SendRow> {
    let PastSend { to, accepted_at, outcome } = sends.get(&id)?;
    Some((id.0.0, id.1.0, to.0, accepted_at.to_utc(), SentTo::encode(outcome)))
}
