//! Mailboxes: ciphertext that waits for its device.
//!
//! Sends and acks of many devices share one transaction. It locks the mailboxes that are named, by id, and only then reads
//! what the sends depend on; so the numbers that it gives are the order of commits, without gaps, and whoever sees a
//! number sees all before it. What is to be written is decided in memory (`plan`); each engine has its own few set-based
//! statements.

mod plan;
mod postgres;
mod sqlite;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Store, StoreError, error::fail_all, read, rows, sql::mailbox as texts};
use crate::domain::{
    Caller, DeviceId, Envelope, MessageId, Refusal, Signal, Timestamp, UserId,
    envelope::{Load, MailboxBounds, MailboxStatus, Outgoing, Page, PageRequest, SentTo},
};
use plan::{Facts, Mailbox, PastSend, Plan, Sender, plan};

/// Runs of a batch whose outcome is unknown or that lost to another.
const TRIES: u32 = 4;
/// Content that one transaction stores, unless a single message has more.
const COMMIT_BYTES: usize = 4 * 1024 * 1024;
/// Envelopes that a sweep handles in one transaction.
const SWEEP_STEP: i64 = 200;

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
    /// Bytes of content.
    fn bytes(&self) -> usize {
        match self {
            Self::Send(send) => send.envelopes.iter().map(|outgoing| outgoing.content.len()).sum(),
            Self::Ack(_) => 0,
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
    /// Devices whose mailboxes are full.
    pub undelivered: Vec<DeviceId>,
}

/// What a batch of mail came to.
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

/// Runs a block in one transaction of either engine, with that engine's statements.
macro_rules! mail_transaction {
    ($store:expr, |$tx:ident, $engine:ident| $body:block) => {
        match $store {
            Store::Sqlite(sqlite) => {
                use self::sqlite as $engine;
                let mut transaction = sqlite.writer.begin_with("BEGIN IMMEDIATE").await?;
                let $tx = &mut *transaction;
                let value = $body;
                transaction.commit().await?;
                value
            }
            Store::Postgres(pool) => {
                use self::postgres as $engine;
                let mut transaction = pool.begin().await?;
                let $tx = &mut *transaction;
                let value = $body;
                transaction.commit().await?;
                value
            }
        }
    };
}

/// Locks mailboxes, by id, and reads them.
macro_rules! lock {
    ($tx:ident, $engine:ident, $devices:expr) => {{
        let devices: BTreeSet<Uuid> = $devices;
        let rows = $engine::mailboxes($tx, &devices.into_iter().collect::<Vec<_>>()).await?;
        rows.into_iter()
            .map(|(device, next_seq, count, bytes, expired_total)| {
                (DeviceId(device), Mailbox { next_seq, load: load(count, bytes), expired_total })
            })
            .collect::<BTreeMap<DeviceId, Mailbox>>()
    }};
}

impl Store {
    /// Serves sends and acks, sends in their order, in one commit or, where they are large, in several. One that fails for
    /// a reason of its own fails alone.
    pub async fn mail(&self, items: Vec<MailRequest>, bounds: &MailboxBounds) -> MailBatch {
        let mut all = MailBatch { answers: Vec::with_capacity(items.len()), wakes: Vec::new() };
        let mut items = items.into_iter().peekable();
        while items.peek().is_some() {
            let mut bytes = 0;
            let mut some = Vec::new();
            while let Some(item) = items.next_if(|item| some.is_empty() || bytes + item.bytes() <= COMMIT_BYTES) {
                bytes += item.bytes();
                some.push(item);
            }
            let one = self.mail_commit(some, bounds).await;
            all.answers.extend(one.answers);
            all.wakes.extend(one.wakes);
        }
        all
    }

    async fn mail_commit(&self, items: Vec<MailRequest>, bounds: &MailboxBounds) -> MailBatch {
        let mut tries = 1;
        loop {
            match self.try_mail(&items, bounds, tries > 1).await {
                Ok(batch) => return batch,
                Err(error @ (StoreError::Data(_) | StoreError::Internal(_))) if items.len() > 1 => {
                    tracing::warn!(%error, items = items.len(), "a batch of mail failed; running its items singly");
                    let mut all = MailBatch { answers: Vec::with_capacity(items.len()), wakes: Vec::new() };
                    for item in items {
                        let one = Box::pin(self.mail_commit(vec![item], bounds)).await;
                        all.answers.extend(one.answers);
                        all.wakes.extend(one.wakes);
                    }
                    return all;
                }
                // The commit's outcome may be unknown, or a parallel repeat was first: the next run finds its record.
                Err(StoreError::Unavailable(error) | StoreError::Conflict(error) | StoreError::Data(error))
                    if tries < TRIES =>
                {
                    tracing::debug!(%error, tries, "a batch of mail failed; trying again");
                    tries += 1;
                }
                Err(error) => return MailBatch { answers: fail_all(&error, items.len()), wakes: Vec::new() },
            }
        }
    }

    async fn try_mail(
        &self,
        items: &[MailRequest],
        bounds: &MailboxBounds,
        again: bool,
    ) -> Result<MailBatch, StoreError> {
        let batch = Split::of(items);
        let (acked, Plan { answers, wakes, .. }) = mail_transaction!(self, |tx, engine| {
            let mut facts = Facts { mailboxes: lock!(tx, engine, batch.devices()), ..Facts::default() };
            let sessions = engine::senders(tx, &batch.sessions()).await?;
            facts.senders = sessions
                .into_iter()
                .map(|(session, device, expires_at, newest_epoch)| {
                    let expires_at = rows::time(expires_at);
                    (crate::domain::SessionId(session), Sender { device: DeviceId(device), expires_at, newest_epoch })
                })
                .collect();

            let holding = batch.holding(&facts);
            let acked = batch.acked(&holding);
            let gone = if acked.is_empty() { Vec::new() } else { engine::delete_messages(tx, &acked).await? };
            let mut changed: BTreeSet<DeviceId> = BTreeSet::new();
            for (device, _, bytes) in &gone {
                if let Some(mailbox) = facts.mailboxes.get_mut(&DeviceId(*device)) {
                    mailbox.remove(*bytes);
                    changed.insert(DeviceId(*device));
                }
            }

            if !batch.sends.is_empty() {
                let users = batch.recipients();
                for (user, device, expires_at) in engine::recipients(tx, &users).await? {
                    let devices = facts.recipients.entry(UserId(user)).or_default();
                    devices.push((DeviceId(device), expires_at.map(rows::time)));
                }
                let unseen: Vec<Uuid> =
                    users.into_iter().filter(|user| !facts.recipients.contains_key(&UserId(*user))).collect();
                if !unseen.is_empty() {
                    let found = engine::users(tx, &unseen).await?;
                    facts.recipients.extend(found.into_iter().map(|(user,)| (UserId(user), Vec::new())));
                }
                for row in engine::sends(tx, &batch.ids()).await? {
                    let (id, send) = past_send(row)?;
                    facts.sends.insert(id, send);
                }
                let crowded = batch.crowded(&facts, bounds);
                if !crowded.is_empty() {
                    facts.shares = crowded.iter().map(|(device, user)| ((*device, *user), Load::default())).collect();
                    let ids: Vec<_> = crowded.iter().map(|(device, user)| (device.0, user.0)).collect();
                    for (device, user, count, bytes) in engine::shares(tx, &ids).await? {
                        facts.shares.insert((DeviceId(device), UserId(user)), load(count, bytes));
                    }
                }
            }

            let emptied: BTreeMap<DeviceId, Mailbox> =
                changed.into_iter().filter_map(|device| Some((device, *facts.mailboxes.get(&device)?))).collect();
            let mut plan = plan(&batch.sends, facts, bounds, again)?;
            for (device, mailbox) in emptied {
                plan.mailboxes.entry(device).or_insert(mailbox);
            }
            if !plan.envelopes.is_empty() {
                engine::insert_messages(tx, &plan.envelopes).await?;
            }
            let mailboxes: Vec<_> = std::mem::take(&mut plan.mailboxes).into_iter().collect();
            if !mailboxes.is_empty() {
                engine::update_mailboxes(tx, &mailboxes).await?;
            }
            for (device, message) in &plan.stale_sends {
                sqlx::query(texts::DELETE_SEND).bind(device.0).bind(message.0).execute(&mut *tx).await?;
            }
            let new: Vec<SendRow> = plan.new_sends.iter().filter_map(|id| send_row(*id, &plan.sends)).collect();
            if !new.is_empty() {
                engine::insert_sends(tx, &new).await?;
            }
            for (device, message, _, _, outcome) in
                plan.changed_sends.iter().filter_map(|id| send_row(*id, &plan.sends))
            {
                sqlx::query(texts::UPDATE_SEND).bind(device).bind(message).bind(outcome).execute(&mut *tx).await?;
            }
            let counted = gone.into_iter().map(|(device, seq, _)| (DeviceId(device), seq)).collect();
            (batch.count(&holding, counted), plan)
        });
        Ok(MailBatch { answers: batch.merge(acked, answers), wakes })
    }

    /// A mailbox at a glance.
    ///
    /// # Errors
    /// The store's own.
    pub async fn mailbox(&self, device: DeviceId) -> Result<MailboxStatus, StoreError> {
        let row: Option<(i64, i64, i64)> =
            read!(self, |db| sqlx::query_as(texts::MAILBOX).bind(device.0).fetch_optional(db).await)?;
        Ok(row.map_or_else(MailboxStatus::default, |(next_seq, count, expired)| MailboxStatus {
            head: next_seq - 1,
            waiting: count.unsigned_abs(),
            expired_total: expired.unsigned_abs(),
        }))
    }

    /// Some envelopes of a device, oldest first, without those whose time is up.
    ///
    /// # Errors
    /// The store's own.
    pub async fn mail_page(&self, device: DeviceId, page: PageRequest, now: Timestamp) -> Result<Page, StoreError> {
        type Row = (i64, Uuid, Uuid, Uuid, i32, Vec<u8>, DateTime<Utc>);
        let bytes = i64::try_from(page.bytes).unwrap_or(i64::MAX);
        let found: Vec<Row> = read!(self, |db| sqlx::query_as(texts::PAGE)
            .bind(device.0)
            .bind(page.after)
            .bind(page.upto)
            .bind(now.to_utc())
            .bind(i64::from(page.envelopes))
            .bind(bytes)
            .fetch_all(db)
            .await)?;
        let total: usize = found.iter().map(|row| row.5.len()).sum();
        let complete = found.len() < page.envelopes as usize && total < page.bytes;
        let envelope = |(seq, message, user, from, kind, content, accepted_at): Row| {
            let envelope = Envelope {
                message: MessageId(message),
                from_user: UserId(user),
                from_device: DeviceId(from),
                kind: u8::try_from(kind).unwrap_or_default(),
                content: content.into(),
                accepted_at: rows::time(accepted_at),
            };
            (seq, Arc::new(envelope))
        };
        Ok(Page { envelopes: found.into_iter().map(envelope).collect(), complete })
    }

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
            if i64::try_from(expired).is_ok_and(|expired| expired < SWEEP_STEP) {
                return Ok(all);
            }
        }
    }

    async fn expire_some(&self, now: Timestamp) -> Result<u64, StoreError> {
        let any: Option<(Uuid, i64)> =
            read!(self, |db| sqlx::query_as(texts::EXPIRED).bind(now.to_utc()).bind(1_i64).fetch_optional(db).await)?;
        if any.is_none() {
            return Ok(0);
        }
        Ok(mail_transaction!(self, |tx, engine| {
            if engine::take_sweep(tx).await? {
                let expired: Vec<(Uuid, i64)> =
                    sqlx::query_as(texts::EXPIRED).bind(now.to_utc()).bind(SWEEP_STEP).fetch_all(&mut *tx).await?;
                let mut mailboxes = lock!(tx, engine, expired.iter().map(|(device, _)| *device).collect());
                let gone = engine::delete_messages(tx, &expired).await?;
                for (device, _, bytes) in &gone {
                    if let Some(mailbox) = mailboxes.get_mut(&DeviceId(*device)) {
                        mailbox.remove(*bytes);
                        mailbox.expired_total += 1;
                    }
                }
                let changed: Vec<_> = mailboxes.into_iter().collect();
                engine::update_mailboxes(tx, &changed).await?;
                gone.len() as u64
            } else {
                0
            }
        }))
    }
}

/// A batch, by kind.
struct Split {
    sends: Vec<SendRequest>,
    acks: Vec<AckRequest>,
    /// For each item, whether it is a send.
    order: Vec<bool>,
}

impl Split {
    fn of(items: &[MailRequest]) -> Self {
        let mut split = Self { sends: Vec::new(), acks: Vec::new(), order: Vec::with_capacity(items.len()) };
        for item in items {
            split.order.push(matches!(item, MailRequest::Send(_)));
            match item {
                MailRequest::Send(send) => split.sends.push(send.clone()),
                MailRequest::Ack(ack) => split.acks.push(ack.clone()),
            }
        }
        split
    }

    /// The mailboxes that may change.
    fn devices(&self) -> BTreeSet<Uuid> {
        let named = self.sends.iter().filter(|send| !send.ephemeral).flat_map(|send| &send.envelopes);
        named.map(|outgoing| outgoing.device.0).chain(self.acks.iter().map(|ack| ack.caller.device.0)).collect()
    }

    fn sessions(&self) -> Vec<Uuid> {
        let callers = self.sends.iter().map(|send| send.caller).chain(self.acks.iter().map(|ack| ack.caller));
        callers.map(|caller| caller.session.0).collect::<HashSet<_>>().into_iter().collect()
    }

    fn recipients(&self) -> Vec<Uuid> {
        self.sends.iter().map(|send| send.to.0).collect::<HashSet<_>>().into_iter().collect()
    }

    fn ids(&self) -> Vec<(Uuid, Uuid)> {
        let ids = self.sends.iter().map(|send| (send.caller.device.0, send.message.0));
        ids.collect::<HashSet<_>>().into_iter().collect()
    }

    /// Whether each ack comes in the name of a session that holds.
    fn holding(&self, facts: &Facts) -> Vec<bool> {
        let holds = |ack: &AckRequest| {
            let sender = facts.senders.get(&ack.caller.session);
            sender.is_some_and(|sender| sender.device == ack.caller.device && sender.expires_at > ack.now)
        };
        self.acks.iter().map(holds).collect()
    }

    /// What is to be deleted, each envelope once.
    fn acked(&self, holding: &[bool]) -> Vec<(Uuid, i64)> {
        let holding = self.acks.iter().zip(holding).filter(|(_, holds)| **holds);
        let pairs = holding.flat_map(|(ack, _)| ack.seqs.iter().map(|seq| (ack.caller.device.0, *seq)));
        pairs.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Which users might go over their share of which mailbox with this batch: those are looked up, and no others.
    fn crowded(&self, facts: &Facts, bounds: &MailboxBounds) -> HashSet<(DeviceId, UserId)> {
        let mut loads: HashMap<DeviceId, Load> = HashMap::new();
        for outgoing in self.sends.iter().flat_map(|send| &send.envelopes) {
            let stored = || facts.mailboxes.get(&outgoing.device).map_or_else(Load::default, |mailbox| mailbox.load);
            let load = loads.entry(outgoing.device).or_insert_with(stored);
            *load = load.plus(outgoing.content.len());
        }
        let pairs = self
            .sends
            .iter()
            .filter(|send| !send.ephemeral)
            .flat_map(|send| send.envelopes.iter().map(|outgoing| (outgoing.device, send.caller.user)));
        pairs.filter(|(device, _)| !loads.get(device).is_some_and(|load| load.fits(bounds.per_sender))).collect()
    }

    /// The answers to the acks: an envelope counts for the first that names it.
    fn count(&self, holding: &[bool], mut gone: HashSet<(DeviceId, i64)>) -> Vec<Result<u64, StoreError>> {
        let count = |(ack, holds): (&AckRequest, &bool)| {
            if !holds {
                return Err(Refusal::SessionRevoked.into());
            }
            Ok(ack.seqs.iter().filter(|seq| gone.remove(&(ack.caller.device, **seq))).count() as u64)
        };
        self.acks.iter().zip(holding).map(count).collect()
    }

    fn merge(
        self,
        acked: Vec<Result<u64, StoreError>>,
        sent: Vec<Result<Accepted, StoreError>>,
    ) -> Vec<Result<MailAnswer, StoreError>> {
        let (mut acked, mut sent) = (acked.into_iter(), sent.into_iter());
        let answer = |is_send: bool| {
            let answer = if is_send {
                sent.next().map(|answer| answer.map(MailAnswer::Sent))
            } else {
                acked.next().map(|count| count.map(MailAnswer::Acked))
            };
            answer.unwrap_or(Err(StoreError::Overloaded))
        };
        self.order.into_iter().map(answer).collect()
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
