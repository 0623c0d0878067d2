//! Mailboxes: encrypted envelopes stored until their device acks them.
//!
//! Sends and acks of many devices share one transaction. It locks their mailboxes, by id, before it reads anything that
//! the sends depend on. So envelope numbers follow commit order without gaps, and a reader that sees one number sees
//! all smaller ones. What to write is decided in memory (`plan`) and written by a few set-based statements.
//!
//! A mailbox that another transaction keeps locked must not hold up the others of the batch: see `deferral`.

mod batch;
mod deferral;
mod expiry;
mod plan;
mod reading;
mod writing;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    time::Duration,
};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    BatchItem, BatchOutcome, PendingAnswer, Store, StoreError, access, rows,
    sql::{access::BLOCKS_OF_MANY, accounts, mailbox as sql},
    tx::{Column, Tx},
};
use crate::domain::{
    AccessKey, Caller, DeviceId, MessageId, SessionId, Timestamp, UserId,
    envelope::{MailboxBounds, MailboxSize, OutgoingEnvelope},
};
pub use deferral::DeferredMail;
use deferral::SkippedRecipients;

use batch::MailBatch;
use plan::{CallerSession, Mailbox, Plan, PlanInput, RecipientUser, RememberedSend, Shares, plan};
use writing::{lock_mailboxes_of_owners, remove_envelopes};

/// Maximum size of a transaction, unless a single message is larger: bytes of content plus [`ROW_BYTES`] per row.
const COMMIT_BYTES: usize = 4 * 1024 * 1024;
/// Assumed size of a row without its content.
const ROW_BYTES: usize = 256;

/// A message to the devices of a user.
#[derive(Clone, Debug)]
pub struct SendRequest {
    /// The sending session, user and device.
    pub caller: Caller,
    /// The epoch of the connection that sent it. The send is refused if the device has a newer connection.
    pub epoch: i64,
    /// Chosen by the sending device. A repeat with the same id is not stored again.
    pub message: MessageId,
    /// The receiving user.
    pub to: UserId,
    /// Whether to deliver it to connected devices only, without storing it.
    pub ephemeral: bool,
    /// Whether devices are woken for it.
    pub is_urgent: bool,
    /// How long an envelope is stored before it expires.
    pub ttl: Duration,
    /// One for each device of the recipient.
    pub envelopes: Vec<OutgoingEnvelope>,
    /// Devices of the recipient that the sender cannot encrypt for.
    pub skipped: Vec<DeviceId>,
    /// The access key that the sender shows, if it has the form of one.
    pub access: Option<AccessKey>,
    /// The current time.
    pub now: Timestamp,
}

/// Acknowledges envelopes, so that they are deleted.
#[derive(Clone, Debug)]
pub struct AckRequest {
    /// The device that acks, with its session and user.
    pub caller: Caller,
    /// Numbers of envelopes; unknown ones are ignored.
    pub seqs: Vec<i64>,
    /// The current time.
    pub now: Timestamp,
}

/// A request that changes mailboxes.
#[derive(Clone, Debug)]
pub enum MailRequest {
    /// Stores envelopes.
    Send(SendRequest),
    /// Deletes envelopes.
    Ack(AckRequest),
}

impl BatchItem for MailRequest {
    fn user(&self) -> Option<UserId> {
        Some(match self {
            Self::Send(send) => send.caller.user,
            Self::Ack(ack) => ack.caller.user,
        })
    }
}

impl MailRequest {
    /// The size that counts towards [`COMMIT_BYTES`].
    fn bytes(&self) -> usize {
        match self {
            Self::Send(send) => send.envelopes.iter().map(|outgoing| ROW_BYTES + outgoing.content.len()).sum(),
            Self::Ack(ack) => ROW_BYTES * ack.seqs.len(),
        }
    }
}

/// The result of a [`MailRequest`].
#[derive(Debug)]
pub enum MailAnswer {
    /// The message was accepted.
    Sent(AcceptedMessage),
    /// This many envelopes were deleted.
    Acked(u64),
    /// A mailbox stayed locked, and the request waits for it elsewhere. Only [`Mailboxes::serve_or_defer`] answers so.
    Deferred(PendingAnswer<MailAnswer>),
}

/// What a transaction does if another one has locked a mailbox that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LockWait {
    /// Waits about a second.
    Long,
    /// Waits about as long as other batches take.
    Brief,
    /// Goes on without it. Requests that need it are [`StoreError::Locked`].
    Skip,
}

/// An accepted message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedMessage {
    /// When it was first accepted.
    pub accepted_at: Timestamp,
    /// Whether an earlier request was already accepted with this message id.
    pub duplicate: bool,
    /// Number of devices that it was ever stored for under this id; 0 if it is ephemeral.
    pub stored: u64,
    /// Devices that did not get it because their mailboxes are full.
    pub undelivered: Vec<DeviceId>,
}

/// Sends and acks on a store, with bounds on what a mailbox holds.
#[derive(Clone)]
pub struct Mailboxes {
    store: Store,
    bounds: MailboxBounds,
    wake_after: Duration,
}

impl Mailboxes {
    /// The mailboxes of `store`. A device is woken if it acks nothing for `wake_after`.
    #[must_use]
    pub fn new(store: Store, bounds: MailboxBounds, wake_after: Duration) -> Self {
        Self { store, bounds, wake_after }
    }

    /// Serves sends and acks in one transaction, or in several if they are large. Sends are served in order. A request
    /// can fail without failing the others; those that wait for a locked mailbox in vain are [`StoreError::Locked`]. The
    /// signals deliver the envelopes to connected devices.
    pub async fn serve(&self, items: Vec<MailRequest>) -> BatchOutcome<MailAnswer> {
        let mut all = BatchOutcome::default();
        let mut rest = &items[..];
        while !rest.is_empty() {
            let (commit, later) = rest.split_at(first_commit(rest));
            rest = later;
            let skipped = SkippedRecipients::default();
            let serve = self.store.run_batch("mail", commit, |items, again| {
                self.commit_available(items, again, LockWait::Long, &skipped)
            });
            match serve.await {
                Ok(outcome) => all.append(outcome),
                Err(error) if error.is_outage() => {
                    // Each further transaction would wait just as long, and so delay the requests queued behind it.
                    all.append(BatchOutcome::failed(&error, commit.len() + rest.len()));
                    rest = &[];
                }
                Err(error) => all.append(BatchOutcome::failed(&error, commit.len())),
            }
        }
        all
    }

    /// Runs one transaction. Sends to users in `deferred` are [`StoreError::Locked`].
    async fn serve_once(
        &self,
        items: &[MailRequest],
        again: bool,
        wait: LockWait,
        deferred: HashSet<UserId>,
    ) -> Result<BatchOutcome<MailAnswer>, StoreError> {
        let batch = MailBatch::new(items);
        let mut tx = match wait {
            LockWait::Brief => self.store.begin_with_brief_lock_wait().await?,
            LockWait::Long | LockWait::Skip => self.store.begin().await?,
        };
        let skips_locked = wait == LockWait::Skip;
        let mailboxes = lock_mailboxes_of_owners(&mut tx, &batch.devices(), skips_locked).await?;
        let mut input = PlanInput { mailboxes, skips_locked, deferred, ..PlanInput::default() };
        let available = skips_locked.then(|| input.mailboxes.keys().copied().collect());
        input.sessions = sessions(&mut tx, &batch.sessions()).await?;
        let valid_acks = batch.valid_acks(&input);
        let acked = batch.acked_envelopes(&valid_acks, &input);
        let removed = remove_envelopes(&mut tx, &acked, &mut input.mailboxes).await?;
        self.note_acks(&removed, &batch, &mut input.mailboxes);
        let emptied = changed_mailboxes(&removed, &input.mailboxes);
        if !batch.sends.is_empty() {
            read_for_sends(&mut tx, &batch, &self.bounds, &mut input).await?;
        }
        let mut plan = plan(&batch.sends, input, &self.bounds, self.wake_after, again)?;
        for (device, mailbox) in emptied {
            plan.mailboxes.entry(device).or_insert(mailbox);
        }
        plan.write(&mut tx).await?;
        tx.commit().await?;
        let acked = batch.count_acked(&valid_acks, removed.into_iter().collect(), available.as_ref());
        let Plan { answers, signals, .. } = plan;
        Ok(BatchOutcome { answers: batch.merge(acked, answers), signals })
    }
}

impl Mailboxes {
    /// Records in the mailboxes in memory that their devices acked envelopes.
    fn note_acks(
        &self,
        removed: &[(DeviceId, i64)],
        batch: &MailBatch<'_>,
        mailboxes: &mut BTreeMap<DeviceId, Mailbox>,
    ) {
        let removed: BTreeSet<DeviceId> = removed.iter().map(|(device, _)| *device).collect();
        for ack in batch.acks.iter().filter(|ack| removed.contains(&ack.caller.device)) {
            if let Some(mailbox) = mailboxes.get_mut(&ack.caller.device) {
                mailbox.wake.note_acked(mailbox.load.envelopes == 0, self.wake_after, ack.now);
            }
        }
    }
}

/// How many of these requests fit into one transaction; at least one.
fn first_commit(items: &[MailRequest]) -> usize {
    let mut bytes = 0;
    let fits = |item: &&MailRequest| {
        bytes += item.bytes();
        bytes <= COMMIT_BYTES
    };
    items.iter().take_while(fits).count().max(1)
}

/// Those of `sessions` whose devices are not revoked, including expired sessions.
async fn sessions(tx: &mut Tx<'_>, sessions: &[Uuid]) -> Result<HashMap<SessionId, CallerSession>, StoreError> {
    let found: Vec<(Uuid, Uuid, DateTime<Utc>, i64)> =
        tx.query(accounts::SESSIONS_OF_MANY).bind_ids(sessions).fetch_all().await?;
    let session = |(session, device, expires_at, newest_epoch)| {
        (
            SessionId(session),
            CallerSession { device: DeviceId(device), expires_at: rows::time(expires_at), newest_epoch },
        )
    };
    Ok(found.into_iter().map(session).collect())
}

/// The mailboxes from which envelopes were removed.
fn changed_mailboxes(
    removed: &[(DeviceId, i64)],
    mailboxes: &BTreeMap<DeviceId, Mailbox>,
) -> BTreeMap<DeviceId, Mailbox> {
    let devices: BTreeSet<DeviceId> = removed.iter().map(|(device, _)| *device).collect();
    devices.into_iter().filter_map(|device| Some((device, *mailboxes.get(&device)?))).collect()
}

/// Receiving user, device, expiry of its signed prekey, and the user's access key, `strangers` and number of blocks.
type RecipientRow = (Uuid, Uuid, Option<DateTime<Utc>>, Option<Vec<u8>>, String, i64);

/// Adds the published devices of users, of those that refuse strangers only if `even_refusing`.
async fn read_recipients(
    tx: &mut Tx<'_>,
    users: &[Uuid],
    even_refusing: bool,
    input: &mut PlanInput,
) -> Result<(), StoreError> {
    for row in tx.query(sql::RECIPIENTS_OF_MANY).bind_ids(users).bind(even_refusing).fetch_all().await? {
        let (user, device, expires_at, key, strangers, blocks): RecipientRow = row;
        let recipient = match input.recipients.entry(UserId(user)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(RecipientUser::new(access::settings(key, &strangers)?, blocks)),
        };
        recipient.devices.push((DeviceId(device), expires_at.map(rows::time)));
    }
    Ok(())
}

/// Reads what sends depend on: recipients, their blocks of senders, remembered sends, and senders' shares of mailboxes
/// that are nearly full.
async fn read_for_sends(
    tx: &mut Tx<'_>,
    batch: &MailBatch<'_>,
    bounds: &MailboxBounds,
    input: &mut PlanInput,
) -> Result<(), StoreError> {
    let mut users = batch.recipients();
    read_recipients(tx, &users, false, input).await?;
    // For a user that refuses the sender, this does the same work as for one that does not exist.
    users.retain(|user| !input.recipients.contains_key(&UserId(*user)));
    for row in tx.query(accounts::USERS_OF_MANY).bind_ids(&users).fetch_all().await? {
        let (user, key, strangers, blocks): (Uuid, Option<Vec<u8>>, String, i64) = row;
        input.recipients.insert(UserId(user), RecipientUser::new(access::settings(key, &strangers)?, blocks));
    }
    let refusing = batch.refusing_others(input);
    if !refusing.is_empty() {
        read_recipients(tx, &refusing, true, input).await?;
    }

    let (recipients, senders) = batch.possible_blocks(input).into_iter().map(|(to, from)| (to.0, from.0)).unzip();
    let blocked: Vec<(Uuid, Uuid)> =
        tx.query(BLOCKS_OF_MANY).bind_rows([Column::Ids(recipients), Column::Ids(senders)]).fetch_all().await?;
    input.blocked = blocked.into_iter().map(|(to, from)| (UserId(to), UserId(from))).collect();

    let (devices, messages) = batch.message_ids().into_iter().unzip();
    let sends = tx.query(sql::SENDS_OF_MANY).bind_rows([Column::Ids(devices), Column::Ids(messages)]);
    for row in sends.fetch_all().await? {
        let (id, send) = RememberedSend::from_row(row)?;
        input.sends.insert(id, send);
    }

    read_shares(tx, batch.crowded(input, bounds), input).await
}

/// Reads the shares of sending users in mailboxes. Those that have no counter are counted.
async fn read_shares(
    tx: &mut Tx<'_>,
    pairs: HashSet<(DeviceId, UserId)>,
    input: &mut PlanInput,
) -> Result<(), StoreError> {
    type ShareRow = (Uuid, Uuid, i64, i64);
    let columns = |pairs: &[(DeviceId, UserId)]| {
        let (devices, users) = pairs.iter().map(|(device, user)| (device.0, user.0)).unzip();
        [Column::Ids(devices), Column::Ids(users)]
    };
    let share = |(device, user, count, bytes): ShareRow| ((DeviceId(device), UserId(user)), mailbox_size(count, bytes));
    let is_counted = |(device, _): &&(DeviceId, UserId)| {
        input.mailboxes.get(device).is_some_and(|mailbox| mailbox.shares == Shares::Counted)
    };
    let maybe_counted: Vec<_> = pairs.iter().filter(is_counted).copied().collect();
    let found: Vec<ShareRow> = tx.query(sql::COUNTED_SHARES).bind_rows(columns(&maybe_counted)).fetch_all().await?;
    input.shares = found.into_iter().map(share).collect();
    input.counted = input.shares.keys().copied().collect();
    let uncounted: Vec<_> = pairs.into_iter().filter(|pair| !input.counted.contains(pair)).collect();
    input.shares.extend(uncounted.iter().map(|pair| (*pair, MailboxSize::default())));
    let found: Vec<ShareRow> = tx.query(sql::COUNT_SHARES).bind_rows(columns(&uncounted)).fetch_all().await?;
    input.shares.extend(found.into_iter().map(share));
    Ok(())
}

/// Converts two columns, which are never negative, to the size of a mailbox.
fn mailbox_size(count: i64, bytes: i64) -> MailboxSize {
    MailboxSize { envelopes: count.unsigned_abs(), bytes: bytes.unsigned_abs() }
}
