//! Decides the outcome of a batch of sends, in memory, from what was read after the mailboxes were locked. Sends are
//! decided in order, as if each had its own transaction.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use super::{AcceptedMessage, SendRequest};
use crate::{
    domain::{
        AccessSettings, Admission, DeviceId, Envelope, MessageId, Refusal, SessionId, Signal, Timestamp, UserId,
        envelope::{
            MESSAGE_ID_RETENTION, MailboxBounds, MailboxSize, OutgoingEnvelope, Recipient, RecipientOutcome,
            check_devices,
        },
        push::WakeUp,
    },
    store::StoreError,
};

/// A caller's session, with the epoch of its device's newest connection.
#[derive(Clone, Copy, Debug)]
pub struct CallerSession {
    pub device: DeviceId,
    pub expires_at: Timestamp,
    pub newest_epoch: i64,
}

/// What is known of the shares of senders in a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shares {
    /// Nothing: they must be counted. Rows may be left that are out of date.
    Unknown,
    /// Each sender that has a row in `mailbox_shares` has exactly that much.
    Counted,
}

/// The state of a locked mailbox.
#[derive(Clone, Copy, Debug)]
pub struct Mailbox {
    /// The number that the next envelope gets.
    pub next_seq: i64,
    /// The envelopes that it holds.
    pub load: MailboxSize,
    /// Those of them that are from strangers.
    pub strangers: MailboxSize,
    /// Number of envelopes that ever expired before they were acked.
    pub expired_total: i64,
    /// When the device is to be woken.
    pub wake: WakeUp,
    /// Whether the shares of senders are counted.
    pub shares: Shares,
}

/// An accepted send, remembered so that repeats are recognized.
#[derive(Clone, Debug)]
pub struct RememberedSend {
    pub to: UserId,
    pub accepted_at: Timestamp,
    pub outcome: Vec<RecipientOutcome>,
    /// Whether a part of it was dropped because the recipient had blocked the sender. Its outcome is that of a stored
    /// part, and later parts are dropped too, even if the block has ended.
    pub dropped: bool,
}

/// A receiving user.
#[derive(Clone, Debug)]
pub struct RecipientUser {
    pub access: AccessSettings,
    /// Whether it has blocked anybody.
    pub has_blocks: bool,
    /// Its published devices with the expiry of their signed prekeys.
    pub devices: Vec<(DeviceId, Option<Timestamp>)>,
}

impl RecipientUser {
    /// A user without devices.
    pub fn new(access: AccessSettings, blocks: i64) -> Self {
        Self { access, has_blocks: blocks > 0, devices: Vec::new() }
    }
}

/// The state that the outcome depends on, read after the mailboxes were locked.
#[derive(Default)]
pub struct PlanInput {
    pub mailboxes: BTreeMap<DeviceId, Mailbox>,
    pub sessions: HashMap<SessionId, CallerSession>,
    /// The users that exist.
    pub recipients: HashMap<UserId, RecipientUser>,
    /// Recipients and senders that they have blocked.
    pub blocked: HashSet<(UserId, UserId)>,
    pub sends: HashMap<(DeviceId, MessageId), RememberedSend>,
    /// What a sending user has in a mailbox, for mailboxes in which somebody might have too much or shares are counted.
    pub shares: HashMap<(DeviceId, UserId), MailboxSize>,
    /// Those of `shares` that have a row.
    pub counted: HashSet<(DeviceId, UserId)>,
    /// Whether mailboxes that other transactions have locked are missing.
    pub skips_locked: bool,
    /// Recipients whose messages wait because a mailbox of theirs is locked.
    pub deferred: HashSet<UserId>,
}

impl PlanInput {
    /// How the recipient of a send treats its sender; `None` if the recipient does not exist.
    fn admit(&self, item: &SendRequest) -> Option<Admission> {
        let recipient = self.recipients.get(&item.to)?;
        Some(recipient.access.admit(item.to, &item.caller, item.access.as_ref(), item.now))
    }

    /// Whether the recipient refuses the sender as a stranger.
    pub fn refuses(&self, item: &SendRequest) -> bool {
        self.admit(item) == Some(Admission::Refused)
    }

    /// The recipient of a send; `None` if it does not exist or refuses the sender: nothing may tell one from the other.
    pub fn recipient(&self, item: &SendRequest) -> Option<&RecipientUser> {
        self.recipients.get(&item.to).filter(|_| !self.refuses(item))
    }

    /// How the parts of a send to a recipient that does not refuse it are stored.
    fn reception(&self, item: &SendRequest) -> Reception {
        let admission = self.admit(item).unwrap_or(Admission::Known);
        Reception {
            from_stranger: admission.is_stranger(),
            is_limited: admission == Admission::LimitedStranger,
            is_dropped: self.blocked.contains(&(item.to, item.caller.user)),
        }
    }
}

/// How the parts of a send are stored.
#[derive(Clone, Copy, Debug)]
struct Reception {
    /// Whether they count in the share of strangers.
    from_stranger: bool,
    /// Whether that share is limited.
    is_limited: bool,
    /// Whether they are dropped, although they are answered as stored.
    is_dropped: bool,
}

/// An envelope to be stored.
pub struct NewEnvelope {
    pub device: DeviceId,
    pub seq: i64,
    pub envelope: Arc<Envelope>,
    pub expires_at: Timestamp,
    pub from_stranger: bool,
    pub is_urgent: bool,
}

/// What to write, answer and signal.
#[derive(Default)]
pub struct Plan {
    pub answers: Vec<Result<AcceptedMessage, StoreError>>,
    pub envelopes: Vec<NewEnvelope>,
    /// Mailboxes that change.
    pub mailboxes: BTreeMap<DeviceId, Mailbox>,
    pub new_sends: Vec<(DeviceId, MessageId)>,
    pub changed_sends: Vec<(DeviceId, MessageId)>,
    /// Remembered sends that are past their retention time and whose ids are used again.
    pub stale_sends: Vec<(DeviceId, MessageId)>,
    /// Shares of sending users that have changed or have no row yet.
    pub shares: BTreeMap<(DeviceId, UserId), MailboxSize>,
    /// Mailboxes whose shares were not counted before.
    pub newly_counted: BTreeSet<DeviceId>,
    /// The sends of `new_sends` and `changed_sends`.
    pub sends: HashMap<(DeviceId, MessageId), RememberedSend>,
    /// In order of envelope number for each device.
    pub signals: Vec<(DeviceId, Signal)>,
}

/// Decides a batch. `again` means that an earlier run of the same batch may have been committed. If the input skips locked
/// mailboxes, a send that needs one is [`StoreError::Locked`], and so are later sends to the same user.
///
/// # Errors
/// `Conflict` if a device was added after the mailboxes were locked: the batch has to run again.
pub fn plan(
    items: &[&SendRequest],
    input: PlanInput,
    bounds: &MailboxBounds,
    wake_after: Duration,
    again: bool,
) -> Result<Plan, StoreError> {
    let mut planner = Planner { input, bounds, wake_after, again, plan: Plan::default() };
    for item in items {
        let answer = match planner.send(item) {
            Err(error @ StoreError::Conflict(_)) => return Err(error),
            answer => answer,
        };
        planner.plan.answers.push(answer);
    }
    let Planner { input, mut plan, .. } = planner;
    for (pair, share) in input.shares.iter().filter(|(_, share)| share.envelopes > 0) {
        // A changed share of a mailbox that was not counted before has no row.
        let Some(mailbox) = input.mailboxes.get(&pair.0) else { continue };
        if mailbox.shares == Shares::Unknown {
            plan.newly_counted.insert(pair.0);
            plan.mailboxes.entry(pair.0).or_insert(*mailbox).shares = Shares::Counted;
        }
        if !input.counted.contains(pair) {
            plan.shares.insert(*pair, *share);
        }
    }
    plan.sends = input.sends;
    Ok(plan)
}

struct Planner<'a> {
    input: PlanInput,
    bounds: &'a MailboxBounds,
    wake_after: Duration,
    again: bool,
    plan: Plan,
}

impl Planner<'_> {
    fn send(&mut self, item: &SendRequest) -> Result<AcceptedMessage, StoreError> {
        let session = self.input.sessions.get(&item.caller.session);
        let session = session.filter(|session| session.device == item.caller.device && session.expires_at > item.now);
        if session.ok_or(Refusal::SessionRevoked)?.newest_epoch > item.epoch {
            // The device has a newer connection, perhaps on another node, and this send must not overtake sends from
            // there.
            return Err(Refusal::Unavailable.into());
        }
        if self.input.deferred.contains(&item.to) {
            return Err(locked());
        }
        let id = (item.caller.device, item.message);
        match self.input.sends.get(&id) {
            Some(past) if past.accepted_at > item.now.before(MESSAGE_ID_RETENTION) => self.repeat(item, past.clone()),
            Some(_) => {
                self.plan.stale_sends.push(id);
                self.input.sends.remove(&id);
                self.first(item)
            }
            None => self.first(item),
        }
    }

    fn first(&mut self, item: &SendRequest) -> Result<AcceptedMessage, StoreError> {
        let devices = &self.input.recipient(item).ok_or(Refusal::NotFound)?.devices;
        let required = |expires_at: &Option<Timestamp>| expires_at.is_some_and(|at| at > item.now);
        let recipients: Vec<Recipient> =
            devices.iter().map(|(device, expiry)| Recipient { device: *device, required: required(expiry) }).collect();
        if recipients.is_empty() && item.to != item.caller.user {
            return Err(Refusal::NoDevices.into());
        }
        check_devices(&recipients, item.caller.device, &item.envelopes, &item.skipped)?;
        let accepted_at = item.now;
        let reception = self.input.reception(item);
        if item.ephemeral {
            for outgoing in item.envelopes.iter().filter(|_| !reception.is_dropped) {
                let signal = Signal::Ephemeral(Arc::new(envelope(item, outgoing, accepted_at)));
                self.plan.signals.push((outgoing.device, signal));
            }
            return Ok(AcceptedMessage { accepted_at, duplicate: false, stored: 0, undelivered: Vec::new() });
        }
        self.defer_if_locked(item, item.envelopes.iter().map(|outgoing| outgoing.device))?;
        let mut outcome = Vec::with_capacity(item.envelopes.len());
        for outgoing in &item.envelopes {
            let stored = self.store(item, outgoing, accepted_at, reception)?;
            outcome.push(RecipientOutcome { device: outgoing.device, digest: outgoing.digest(), stored });
        }
        let undelivered: Vec<DeviceId> = outcome.iter().filter(|one| !one.stored).map(|one| one.device).collect();
        if !outcome.is_empty() && undelivered.len() == outcome.len() {
            return Err(Refusal::MailboxFull.into());
        }
        let id = (item.caller.device, item.message);
        let stored = stored(&outcome);
        if outcome.is_empty() {
            // A record would let anybody add rows for messages to nobody, for example by skipping all devices.
            return Ok(AcceptedMessage { accepted_at, duplicate: false, stored, undelivered });
        }
        self.plan.new_sends.push(id);
        let dropped = reception.is_dropped;
        self.input.sends.insert(id, RememberedSend { to: item.to, accepted_at, outcome, dropped });
        Ok(AcceptedMessage { accepted_at, duplicate: false, stored, undelivered })
    }

    /// Stores the message for devices that did not get it before, and signals the others again: the node that accepted
    /// the message may have stopped before it signalled them.
    fn repeat(&mut self, item: &SendRequest, past: RememberedSend) -> Result<AcceptedMessage, StoreError> {
        let id = (item.caller.device, item.message);
        let RememberedSend { to, accepted_at, mut outcome, mut dropped } = past;
        if to != item.to || item.ephemeral {
            return Err(Refusal::IdConflict.into());
        }
        let find = |outcome: &[RecipientOutcome], device| outcome.iter().position(|one| one.device == device);
        for outgoing in &item.envelopes {
            let known = find(&outcome, outgoing.device).map(|at| outcome[at].digest);
            if known.is_some_and(|digest| digest != outgoing.digest()) {
                return Err(Refusal::IdConflict.into());
            }
        }
        // If the recipient now refuses the sender, the answer is the one after a deletion of the recipient.
        let devices = self.input.recipient(item).into_iter().flat_map(|recipient| &recipient.devices);
        let reachable: HashSet<DeviceId> = devices.map(|(device, _)| *device).collect();
        let named = item.envelopes.iter().map(|outgoing| outgoing.device);
        self.defer_if_locked(item, named.filter(|one| reachable.contains(one) && *one != item.caller.device))?;
        let mut reception = self.input.reception(item);
        reception.is_dropped |= dropped;
        let mut changed = false;
        for outgoing in &item.envelopes {
            let device = outgoing.device;
            let at = find(&outcome, device);
            if at.is_some_and(|at| outcome[at].stored) {
                if !reception.is_dropped
                    && reachable.contains(&device)
                    && let Some(mailbox) = self.input.mailboxes.get(&device)
                {
                    self.plan.signals.push((device, Signal::Mail { seq: mailbox.next_seq - 1, envelope: None }));
                }
                continue;
            }
            if !reachable.contains(&device) || device == item.caller.device {
                continue;
            }
            let stored = self.store(item, outgoing, accepted_at, reception)?;
            dropped |= reception.is_dropped;
            match at {
                Some(at) => outcome[at].stored = stored,
                None => outcome.push(RecipientOutcome { device, digest: outgoing.digest(), stored }),
            }
            changed |= stored || at.is_none();
        }
        // Devices that the repeat does not name still count as undelivered.
        let lacks = |one: &&RecipientOutcome| !one.stored && reachable.contains(&one.device);
        let undelivered = outcome.iter().filter(lacks).map(|one| one.device).collect();
        let stored = stored(&outcome);
        if changed {
            self.input.sends.insert(id, RememberedSend { to, accepted_at, outcome, dropped });
            if !self.plan.new_sends.contains(&id) && !self.plan.changed_sends.contains(&id) {
                self.plan.changed_sends.push(id);
            }
        }
        // If the batch runs again because the outcome of its commit was unknown, its sends are not duplicates.
        let duplicate = !(self.again && accepted_at == item.now);
        Ok(AcceptedMessage { accepted_at, duplicate, stored, undelivered })
    }

    /// Defers a send, and later ones to the same user, if a mailbox that it needs was skipped because it is locked.
    fn defer_if_locked(
        &mut self,
        item: &SendRequest,
        mut devices: impl Iterator<Item = DeviceId>,
    ) -> Result<(), StoreError> {
        if self.input.skips_locked && devices.any(|device| !self.input.mailboxes.contains_key(&device)) {
            self.input.deferred.insert(item.to);
            return Err(locked());
        }
        Ok(())
    }

    /// Adds an envelope to the plan, with its number. Returns `false` if the mailbox, the sender's share of it or, for a
    /// limited stranger, that of all strangers is full. A dropped one counts as stored.
    fn store(
        &mut self,
        item: &SendRequest,
        outgoing: &OutgoingEnvelope,
        accepted_at: Timestamp,
        reception: Reception,
    ) -> Result<bool, StoreError> {
        if reception.is_dropped {
            return Ok(true);
        }
        let device = outgoing.device;
        let bytes = outgoing.content.len();
        // Missing if the device was added after the mailboxes were locked.
        let mailbox = self.input.mailboxes.get_mut(&device);
        let mailbox = mailbox.ok_or(StoreError::Conflict(sqlx::Error::RowNotFound))?;
        let share = self.input.shares.get_mut(&(device, item.caller.user));
        let load = mailbox.load.plus(bytes);
        let share_fits = share.as_ref().is_none_or(|share| share.plus(bytes).fits(self.bounds.per_sender));
        let strangers = mailbox.strangers.plus(bytes);
        let strangers_fit = !reception.is_limited
            || self.bounds.strangers.is_none_or(|bound| strangers.envelopes == 1 || strangers.fits(bound));
        if !load.fits(self.bounds.all) || !share_fits || !strangers_fit {
            return Ok(false);
        }
        if let Some(share) = share {
            *share = share.plus(bytes);
            let pair = (device, item.caller.user);
            if self.input.counted.contains(&pair) {
                self.plan.shares.insert(pair, *share);
            }
        }
        let seq = mailbox.next_seq;
        mailbox.next_seq += 1;
        if item.is_urgent {
            mailbox.wake.note_stored(mailbox.load.envelopes == 0, self.wake_after, item.now);
        }
        mailbox.load = load;
        if reception.from_stranger {
            mailbox.strangers = strangers;
        }
        self.plan.mailboxes.insert(device, *mailbox);
        let envelope = Arc::new(envelope(item, outgoing, accepted_at));
        self.plan.signals.push((device, Signal::Mail { seq, envelope: Some(envelope.clone()) }));
        self.plan.envelopes.push(NewEnvelope {
            device,
            seq,
            envelope,
            expires_at: item.now + item.ttl,
            from_stranger: reception.from_stranger,
            is_urgent: item.is_urgent,
        });
        Ok(true)
    }
}

fn envelope(item: &SendRequest, outgoing: &OutgoingEnvelope, accepted_at: Timestamp) -> Envelope {
    Envelope {
        message: item.message,
        from_user: item.caller.user,
        from_device: item.caller.device,
        kind: outgoing.kind,
        content: outgoing.content.clone(),
        accepted_at,
    }
}

/// The mailbox is locked by another transaction.
fn locked() -> StoreError {
    StoreError::Locked(sqlx::Error::RowNotFound)
}

/// Number of devices that have stored the message.
fn stored(outcome: &[RecipientOutcome]) -> u64 {
    outcome.iter().filter(|one| one.stored).count() as u64
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;
    use crate::domain::{
        AccessKey, Caller,
        access::{Strangers, YOUNG_ACCOUNT},
    };

    const BOUNDS: MailboxBounds = MailboxBounds {
        all: MailboxSize { envelopes: 9, bytes: 99 },
        per_sender: MailboxSize { envelopes: 9, bytes: 99 },
        strangers: Some(MailboxSize { envelopes: 2, bytes: 20 }),
    };

    const AFTER: Duration = Duration::from_millis(1500);

    /// A sender, a device with an empty mailbox, and a message from the one to the other.
    fn input_and_send() -> (PlanInput, SendRequest) {
        let id = Uuid::from_u128;
        let now = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let user_since = now.before(YOUNG_ACCOUNT);
        let caller = Caller { session: SessionId(id(1)), user: UserId(id(2)), device: DeviceId(id(3)), user_since };
        let (to, device) = (UserId(id(4)), DeviceId(id(5)));
        let later = now + Duration::from_hours(1);
        let mut input = PlanInput::default();
        let empty = MailboxSize::default();
        input.mailboxes.insert(
            device,
            Mailbox {
                next_seq: 1,
                load: empty,
                strangers: empty,
                expired_total: 0,
                wake: WakeUp::default(),
                shares: Shares::Unknown,
            },
        );
        input
            .sessions
            .insert(caller.session, CallerSession { device: caller.device, expires_at: later, newest_epoch: 1 });
        let mut recipient = RecipientUser::new(AccessSettings::default(), 0);
        recipient.devices.push((device, Some(later)));
        input.recipients.insert(to, recipient);
        let envelopes = vec![OutgoingEnvelope { device, kind: 0, content: Bytes::from_static(b"x") }];
        let message = MessageId(id(6));
        let ttl = Duration::from_mins(1);
        (
            input,
            SendRequest {
                caller,
                epoch: 1,
                message,
                to,
                ephemeral: false,
                is_urgent: true,
                ttl,
                envelopes,
                skipped: Vec::new(),
                access: None,
                now,
            },
        )
    }

    fn remember(input: &mut PlanInput, item: &SendRequest) {
        let outcome = item.envelopes.iter().map(|one| RecipientOutcome {
            device: one.device,
            digest: one.digest(),
            stored: true,
        });
        let send = RememberedSend { to: item.to, accepted_at: item.now, outcome: outcome.collect(), dropped: false };
        input.sends.insert((item.caller.device, item.message), send);
    }

    #[test]
    fn a_batch_that_runs_again_after_an_unknown_commit_is_not_a_duplicate() {
        for (again, later, duplicate) in [(true, 0, false), (true, 1, true), (false, 0, true)] {
            let (mut input, mut item) = input_and_send();
            remember(&mut input, &item);
            item.now = item.now + Duration::from_secs(later);
            let plan = plan(&[&item], input, &BOUNDS, AFTER, again).unwrap();
            assert_eq!(plan.answers[0].as_ref().unwrap().duplicate, duplicate);
            assert!(plan.envelopes.is_empty() && plan.mailboxes.is_empty());
        }
    }

    /// Messages of this many users, each of one byte, to the recipient of `item`.
    fn from_others(item: &SendRequest, users: std::ops::Range<u128>, input: &mut PlanInput) -> Vec<SendRequest> {
        let send = |n: u128| {
            let id = |of: u128| Uuid::from_u128(n * 100 + of);
            let (session, user, device) = (SessionId(id(1)), UserId(id(2)), DeviceId(id(3)));
            let caller = Caller { session, user, device, user_since: item.now };
            SendRequest { caller, message: MessageId(id(6)), ..item.clone() }
        };
        let sends: Vec<SendRequest> = users.map(send).collect();
        for SendRequest { caller, .. } in &sends {
            let expires_at = item.now + Duration::from_hours(1);
            input.sessions.insert(caller.session, CallerSession { device: caller.device, expires_at, newest_epoch: 1 });
        }
        sends
    }

    fn results(plan: &Plan) -> Vec<String> {
        let result = |answer: &Result<AcceptedMessage, StoreError>| match answer {
            Ok(accepted) => format!("stored {}", accepted.stored),
            Err(error) => error.to_string(),
        };
        plan.answers.iter().map(result).collect()
    }

    const FULL: &str = "the mailbox is full; try again later";

    #[test]
    fn strangers_share_a_part_of_a_mailbox_and_others_still_find_room() {
        let (mut input, known) = input_and_send();
        let strangers = from_others(&known, 7..10, &mut input);
        let items = [&strangers[0], &strangers[1], &strangers[2], &known];
        let plan = plan(&items, input, &BOUNDS, AFTER, false).unwrap();
        assert_eq!(results(&plan), ["stored 1", "stored 1", FULL, "stored 1"]);
        assert_eq!(plan.envelopes.iter().map(|one| one.from_stranger).collect::<Vec<_>>(), [true, true, false]);
        let mailbox = plan.mailboxes.values().next().unwrap();
        let size = |envelopes, bytes| MailboxSize { envelopes, bytes };
        assert_eq!((mailbox.load, mailbox.strangers), (size(3, 3), size(2, 2)));
    }

    #[test]
    fn the_share_of_strangers_is_bounded_in_bytes_but_always_has_room_for_one_envelope() {
        let (mut input, mut item) = input_and_send();
        item.envelopes[0].content = Bytes::from_static(&[b'x'; 30]);
        let strangers = from_others(&item, 7..9, &mut input);
        let plan = plan(&strangers.iter().collect::<Vec<_>>(), input, &BOUNDS, AFTER, false).unwrap();
        assert_eq!(results(&plan), ["stored 1", FULL]);
    }

    #[test]
    fn strangers_are_counted_but_not_bounded_where_they_are_allowed_or_the_limit_is_off() {
        for (strangers, bounds) in
            [(Strangers::Allow, BOUNDS), (Strangers::Limit, MailboxBounds { strangers: None, ..BOUNDS })]
        {
            let (mut input, item) = input_and_send();
            input.recipients.get_mut(&item.to).unwrap().access.strangers = strangers;
            let sends = from_others(&item, 7..11, &mut input);
            let plan = plan(&sends.iter().collect::<Vec<_>>(), input, &bounds, AFTER, false).unwrap();
            assert_eq!(results(&plan), ["stored 1"; 4]);
            assert_eq!(plan.mailboxes.values().next().unwrap().strangers.envelopes, 4);
        }
    }

    #[test]
    fn a_recipient_that_refuses_the_sender_is_answered_like_a_deleted_one() {
        let key = AccessKey([7; 16]);
        for is_deleted in [false, true] {
            let (mut input, mut item) = input_and_send();
            let mut repeat = item.clone();
            repeat.message = MessageId(Uuid::from_u128(66));
            remember(&mut input, &repeat);
            input.recipients.get_mut(&item.to).unwrap().access =
                AccessSettings { key: Some(key.clone()), strangers: Strangers::Refuse };
            item.access = Some(AccessKey([8; 16]));
            if is_deleted {
                input.recipients.clear();
                input.mailboxes.clear();
            }
            let ephemeral = SendRequest { ephemeral: true, ..item.clone() };
            let nothing = SendRequest { envelopes: Vec::new(), skipped: Vec::new(), ..item.clone() };
            let plan = plan(&[&item, &ephemeral, &nothing, &repeat], input, &BOUNDS, AFTER, false).unwrap();
            assert_eq!(results(&plan), ["not found", "not found", "not found", "stored 1"]);
            let repeated = plan.answers[3].as_ref().unwrap();
            assert!(repeated.duplicate && repeated.undelivered.is_empty());
            assert!(plan.envelopes.is_empty() && plan.signals.is_empty() && plan.mailboxes.is_empty());
        }
        let (mut input, mut item) = input_and_send();
        input.recipients.get_mut(&item.to).unwrap().access =
            AccessSettings { key: Some(key.clone()), strangers: Strangers::Refuse };
        item.access = Some(key);
        assert_eq!(results(&plan(&[&item], input, &BOUNDS, AFTER, false).unwrap()), ["stored 1"]);
    }

    #[test]
    fn a_message_of_a_blocked_sender_is_answered_as_stored_and_dropped() {
        let (mut input, item) = input_and_send();
        input.blocked.insert((item.to, item.caller.user));
        let mailbox = input.mailboxes.values_mut().next().unwrap();
        mailbox.load = BOUNDS.all;
        let ephemeral = SendRequest { ephemeral: true, message: MessageId(Uuid::from_u128(9)), ..item.clone() };
        let mut changed = item.clone();
        changed.envelopes[0].content = Bytes::from_static(b"y");
        let plan = plan(&[&item, &item, &changed, &ephemeral], input, &BOUNDS, AFTER, false).unwrap();
        let conflict = Refusal::IdConflict.to_string();
        assert_eq!(results(&plan), ["stored 1", "stored 1", &conflict, "stored 0"]);
        assert_eq!(plan.answers[1].as_ref().map(|answer| answer.duplicate).ok(), Some(true));
        assert!(plan.envelopes.is_empty() && plan.signals.is_empty() && plan.mailboxes.is_empty());
        let id = (item.caller.device, item.message);
        assert!(plan.new_sends == [id] && plan.sends[&id].dropped, "the repeat is recognized");
    }

    #[test]
    fn a_dropped_message_stays_dropped_when_the_block_has_ended() {
        let (mut input, mut item) = input_and_send();
        remember(&mut input, &item);
        input.sends.values_mut().next().unwrap().dropped = true;
        let other = DeviceId(Uuid::from_u128(55));
        let empty = MailboxSize::default();
        input.mailboxes.insert(
            other,
            Mailbox {
                next_seq: 1,
                load: empty,
                strangers: empty,
                expired_total: 0,
                wake: WakeUp::default(),
                shares: Shares::Unknown,
            },
        );
        input.recipients.get_mut(&item.to).unwrap().devices.push((other, None));
        item.envelopes.push(OutgoingEnvelope { device: other, ..item.envelopes[0].clone() });
        let plan = plan(&[&item], input, &BOUNDS, AFTER, false).unwrap();
        assert_eq!(results(&plan), ["stored 2"]);
        assert!(plan.envelopes.is_empty() && plan.signals.is_empty() && plan.mailboxes.is_empty());
        assert_eq!(plan.changed_sends.len(), 1);
    }

    #[test]
    fn a_repeat_while_the_sender_is_blocked_drops_only_what_was_not_stored_before() {
        let (mut input, item) = input_and_send();
        remember(&mut input, &item);
        let send = input.sends.values_mut().next().unwrap();
        send.outcome[0].stored = false;
        input.blocked.insert((item.to, item.caller.user));
        let plan = plan(&[&item], input, &BOUNDS, AFTER, false).unwrap();
        assert_eq!(results(&plan), ["stored 1"]);
        assert!(plan.envelopes.is_empty() && plan.sends.values().all(|send| send.dropped));
    }

    #[test]
    fn what_stores_nothing_leaves_no_record() {
        let (input, item) = input_and_send();
        let device = item.envelopes[0].device;
        let id = |n| MessageId(Uuid::from_u128(n));
        let ephemeral = SendRequest { ephemeral: true, message: id(11), ..item.clone() };
        let skipping = SendRequest { envelopes: Vec::new(), skipped: vec![device], message: id(12), ..item.clone() };
        let to_nobody = SendRequest { envelopes: Vec::new(), message: id(13), ..item.clone() };
        let mut too_large = SendRequest { message: id(14), ..item.clone() };
        too_large.envelopes[0].content = Bytes::from_static(&[b'x'; 100]);
        let unknown = SendRequest { to: UserId(Uuid::from_u128(15)), message: id(15), ..item.clone() };
        let items = [&ephemeral, &skipping, &skipping, &to_nobody, &too_large, &unknown];
        let plan = plan(&items, input, &BOUNDS, AFTER, false).unwrap();
        let (mismatch, unknown) = (results(&plan)[3].clone(), Refusal::NotFound.to_string());
        assert_eq!(results(&plan), ["stored 0", "stored 0", "stored 0", &mismatch, FULL, &unknown]);
        assert!(plan.answers[..3].iter().flatten().all(|answer| !answer.duplicate));
        assert!(plan.new_sends.is_empty() && plan.changed_sends.is_empty() && plan.mailboxes.is_empty());
    }

    #[test]
    fn a_device_added_after_the_mailboxes_were_locked_makes_the_batch_run_again() {
        let (mut input, item) = input_and_send();
        input.mailboxes.clear();
        assert!(matches!(plan(&[&item], input, &BOUNDS, AFTER, false), Err(StoreError::Conflict(_))));
    }

    /// Adds a user with a device whose mailbox is empty, and returns a message to it.
    fn to_another_user(item: &SendRequest, input: &mut PlanInput) -> SendRequest {
        let (to, device, empty) = (UserId(Uuid::from_u128(70)), DeviceId(Uuid::from_u128(71)), MailboxSize::default());
        let mut recipient = RecipientUser::new(AccessSettings::default(), 0);
        recipient.devices.push((device, None));
        input.recipients.insert(to, recipient);
        let wake = WakeUp::default();
        let mailbox =
            Mailbox { next_seq: 1, load: empty, strangers: empty, expired_total: 0, wake, shares: Shares::Unknown };
        input.mailboxes.insert(device, mailbox);
        let envelopes = vec![OutgoingEnvelope { device, ..item.envelopes[0].clone() }];
        SendRequest { to, envelopes, message: MessageId(Uuid::from_u128(72)), ..item.clone() }
    }

    #[test]
    fn a_skipped_mailbox_defers_its_message_and_all_later_ones_to_the_same_user() {
        const LOCKED: &str = "locked";
        let (mut input, item) = input_and_send();
        let other = to_another_user(&item, &mut input);
        let locked = item.envelopes[0].device;
        input.mailboxes.remove(&locked);
        input.skips_locked = true;
        // A second device of the user whose mailbox is free.
        let free = DeviceId(Uuid::from_u128(73));
        let empty = MailboxSize::default();
        let wake = WakeUp::default();
        let mailbox =
            Mailbox { next_seq: 1, load: empty, strangers: empty, expired_total: 0, wake, shares: Shares::Unknown };
        input.mailboxes.insert(free, mailbox);
        input.recipients.get_mut(&item.to).unwrap().devices.push((free, None));
        let id = |n| MessageId(Uuid::from_u128(n));
        let to_free = |n| SendRequest {
            envelopes: vec![OutgoingEnvelope { device: free, ..item.envelopes[0].clone() }],
            skipped: vec![locked],
            message: id(n),
            ..item.clone()
        };
        let ephemeral = |n| SendRequest { ephemeral: true, message: id(n), ..item.clone() };
        let (before, after) = (to_free(81), to_free(82));
        let (early, late) = (ephemeral(83), ephemeral(84));
        let mut invalid = SendRequest { message: id(85), ..item.clone() };
        invalid.envelopes[0].device = DeviceId(Uuid::from_u128(99));
        let items = [&before, &early, &invalid, &item, &after, &late, &other];
        let plan = plan(&items, input, &BOUNDS, AFTER, false).unwrap();
        let outcomes: Vec<String> = results(&plan)
            .into_iter()
            .zip(&plan.answers)
            .map(|(text, answer)| if matches!(answer, Err(StoreError::Locked(_))) { LOCKED.to_owned() } else { text })
            .collect();
        let mismatch = outcomes[2].clone();
        assert!(mismatch != LOCKED && plan.answers[2].is_err(), "what is refused needs no mailbox");
        assert_eq!(outcomes, ["stored 1", "stored 0", &mismatch, LOCKED, LOCKED, LOCKED, "stored 1"]);
        assert_eq!((plan.envelopes.len(), plan.new_sends.len()), (2, 2));
    }

    #[test]
    fn a_repeat_waits_for_a_skipped_mailbox_too() {
        let (mut input, item) = input_and_send();
        remember(&mut input, &item);
        input.mailboxes.clear();
        input.skips_locked = true;
        let plan = plan(&[&item, &item], input, &BOUNDS, AFTER, false).unwrap();
        assert!(plan.answers.iter().all(|answer| matches!(answer, Err(StoreError::Locked(_)))));
        assert!(plan.signals.is_empty() && plan.changed_sends.is_empty());
    }

    #[test]
    fn a_send_is_refused_only_if_its_device_has_a_newer_connection() {
        for (epoch, accepted) in [(0, false), (1, true), (2, true)] {
            let (input, item) = input_and_send();
            let plan = plan(&[&SendRequest { epoch, ..item }], input, &BOUNDS, AFTER, false).unwrap();
            assert_eq!(plan.answers[0].is_ok(), accepted);
        }
    }
}
