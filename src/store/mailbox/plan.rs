//! The outcome of a batch of sends, decided in memory from what was read under the locks of the mailboxes: one send
//! after the other, as if each had a transaction of its own.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use super::{AcceptedMessage, SendRequest};
use crate::{
    domain::{
        DeviceId, Envelope, MessageId, Refusal, SessionId, Signal, Timestamp, UserId,
        envelope::{
            MESSAGE_ID_RETENTION, MailboxBounds, MailboxSize, OutgoingEnvelope, Recipient, RecipientOutcome,
            check_devices,
        },
    },
    store::StoreError,
};

/// A session with the newest connection of its device.
#[derive(Clone, Copy, Debug)]
pub struct CallerSession {
    pub device: DeviceId,
    pub expires_at: Timestamp,
    pub newest_epoch: i64,
}

/// A locked mailbox, as it will be written.
#[derive(Clone, Copy, Debug)]
pub struct Mailbox {
    /// The number that the next envelope gets.
    pub next_seq: i64,
    /// What it holds.
    pub load: MailboxSize,
    /// Envelopes that ever expired before they were acked.
    pub expired_total: i64,
}

/// What is remembered of a message id.
#[derive(Clone, Debug)]
pub struct RememberedSend {
    pub to: UserId,
    pub accepted_at: Timestamp,
    pub outcome: Vec<RecipientOutcome>,
}

/// What the outcome depends on, read after the mailboxes were locked.
#[derive(Default)]
pub struct PlanInput {
    pub mailboxes: BTreeMap<DeviceId, Mailbox>,
    pub sessions: HashMap<SessionId, CallerSession>,
    /// Every user that exists, with the devices that have published.
    pub recipients: HashMap<UserId, Vec<(DeviceId, Option<Timestamp>)>>,
    pub sends: HashMap<(DeviceId, MessageId), RememberedSend>,
    /// What a user has in a mailbox, where that may matter.
    pub shares: HashMap<(DeviceId, UserId), MailboxSize>,
}

/// An envelope to be stored.
pub struct NewEnvelope {
    pub device: DeviceId,
    pub seq: i64,
    pub envelope: Arc<Envelope>,
    pub expires_at: Timestamp,
}

/// What is to be written, answered and signalled.
#[derive(Default)]
pub struct Plan {
    pub answers: Vec<Result<AcceptedMessage, StoreError>>,
    pub envelopes: Vec<NewEnvelope>,
    /// Mailboxes that change.
    pub mailboxes: BTreeMap<DeviceId, Mailbox>,
    pub new_sends: Vec<(DeviceId, MessageId)>,
    pub changed_sends: Vec<(DeviceId, MessageId)>,
    /// Sends that are past their time and whose ids are used anew.
    pub stale_sends: Vec<(DeviceId, MessageId)>,
    /// What stands behind the ids of both lists.
    pub sends: HashMap<(DeviceId, MessageId), RememberedSend>,
    /// In the order of the numbers of each device.
    pub signals: Vec<(DeviceId, Signal)>,
}

/// Decides a batch. `again` says that an earlier run may have been committed without our knowing.
///
/// # Errors
/// `Conflict` where what was read changed in between: the batch is to run again.
pub fn plan(items: &[&SendRequest], input: PlanInput, bounds: &MailboxBounds, again: bool) -> Result<Plan, StoreError> {
    let mut planner = Planner { input, bounds, again, plan: Plan::default() };
    for item in items {
        let answer = match planner.send(item) {
            Err(error @ StoreError::Conflict(_)) => return Err(error),
            answer => answer,
        };
        planner.plan.answers.push(answer);
    }
    let Planner { input, mut plan, .. } = planner;
    plan.sends = input.sends;
    Ok(plan)
}

struct Planner<'a> {
    input: PlanInput,
    bounds: &'a MailboxBounds,
    again: bool,
    plan: Plan,
}

impl Planner<'_> {
    fn send(&mut self, item: &SendRequest) -> Result<AcceptedMessage, StoreError> {
        let sender = self.input.sessions.get(&item.caller.session);
        let sender = sender.filter(|sender| sender.device == item.caller.device && sender.expires_at > item.now);
        if sender.ok_or(Refusal::SessionRevoked)?.newest_epoch > item.epoch {
            // The device is connected anew, maybe elsewhere: what it sends there must not be overtaken.
            return Err(Refusal::Unavailable.into());
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
        let devices = self.input.recipients.get(&item.to).ok_or(Refusal::NotFound)?;
        let required = |expires_at: &Option<Timestamp>| expires_at.is_some_and(|at| at > item.now);
        let recipients: Vec<Recipient> =
            devices.iter().map(|(device, expiry)| Recipient { device: *device, required: required(expiry) }).collect();
        check_devices(&recipients, item.caller.device, &item.envelopes)?;
        let accepted_at = item.now;
        if item.ephemeral {
            for outgoing in &item.envelopes {
                let signal = Signal::Ephemeral(Arc::new(envelope(item, outgoing, accepted_at)));
                self.plan.signals.push((outgoing.device, signal));
            }
            return Ok(AcceptedMessage { accepted_at, duplicate: false, undelivered: Vec::new() });
        }
        let mut outcome = Vec::with_capacity(item.envelopes.len());
        for outgoing in &item.envelopes {
            let stored = self.store(item, outgoing, accepted_at)?;
            outcome.push(RecipientOutcome { device: outgoing.device, digest: outgoing.digest(), stored });
        }
        let undelivered: Vec<DeviceId> = outcome.iter().filter(|one| !one.stored).map(|one| one.device).collect();
        if !outcome.is_empty() && undelivered.len() == outcome.len() {
            return Err(Refusal::MailboxFull.into());
        }
        let id = (item.caller.device, item.message);
        self.plan.new_sends.push(id);
        self.input.sends.insert(id, RememberedSend { to: item.to, accepted_at, outcome });
        Ok(AcceptedMessage { accepted_at, duplicate: false, undelivered })
    }

    /// Stores for the devices that were not reached before, and signals the others: whoever accepted the message may
    /// not have lived to tell them.
    fn repeat(&mut self, item: &SendRequest, past: RememberedSend) -> Result<AcceptedMessage, StoreError> {
        let id = (item.caller.device, item.message);
        let RememberedSend { to, accepted_at, mut outcome } = past;
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
        let devices = self.input.recipients.get(&to);
        let reachable: HashSet<DeviceId> = devices.into_iter().flatten().map(|(device, _)| *device).collect();
        let mut changed = false;
        for outgoing in &item.envelopes {
            let device = outgoing.device;
            let at = find(&outcome, device);
            if at.is_some_and(|at| outcome[at].stored) {
                if let Some(mailbox) = self.input.mailboxes.get(&device) {
                    self.plan.signals.push((device, Signal::Mail { seq: mailbox.next_seq - 1, envelope: None }));
                }
                continue;
            }
            if !reachable.contains(&device) || device == item.caller.device {
                continue;
            }
            let stored = self.store(item, outgoing, accepted_at)?;
            match at {
                Some(at) => outcome[at].stored = stored,
                None => outcome.push(RecipientOutcome { device, digest: outgoing.digest(), stored }),
            }
            changed |= stored || at.is_none();
        }
        // Whoever is left out this time waits for another repeat.
        let lacks = |one: &&RecipientOutcome| !one.stored && reachable.contains(&one.device);
        let undelivered = outcome.iter().filter(lacks).map(|one| one.device).collect();
        if changed {
            self.input.sends.insert(id, RememberedSend { to, accepted_at, outcome });
            if !self.plan.new_sends.contains(&id) && !self.plan.changed_sends.contains(&id) {
                self.plan.changed_sends.push(id);
            }
        }
        // Of a batch that ran twice because nobody knew whether it was committed, the first run is the one that counts.
        let duplicate = !(self.again && accepted_at == item.now);
        Ok(AcceptedMessage { accepted_at, duplicate, undelivered })
    }

    /// Gives an envelope its number; `false` where the mailbox is full.
    fn store(
        &mut self,
        item: &SendRequest,
        outgoing: &OutgoingEnvelope,
        accepted_at: Timestamp,
    ) -> Result<bool, StoreError> {
        let device = outgoing.device;
        let bytes = outgoing.content.len();
        // A device that came between the lock and the list of devices.
        let mailbox = self.input.mailboxes.get_mut(&device);
        let mailbox = mailbox.ok_or(StoreError::Conflict(sqlx::Error::RowNotFound))?;
        let share = self.input.shares.get_mut(&(device, item.caller.user));
        let load = mailbox.load.plus(bytes);
        let share_fits = share.as_ref().is_none_or(|share| share.plus(bytes).fits(self.bounds.per_sender));
        if !load.fits(self.bounds.all) || !share_fits {
            return Ok(false);
        }
        if let Some(share) = share {
            *share = share.plus(bytes);
        }
        let seq = mailbox.next_seq;
        mailbox.next_seq += 1;
        mailbox.load = load;
        self.plan.mailboxes.insert(device, *mailbox);
        let envelope = Arc::new(envelope(item, outgoing, accepted_at));
        self.plan.signals.push((device, Signal::Mail { seq, envelope: Some(envelope.clone()) }));
        self.plan.envelopes.push(NewEnvelope { device, seq, envelope, expires_at: item.now + item.ttl });
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;
    use crate::domain::Caller;

    const BOUNDS: MailboxBounds = MailboxBounds {
        all: MailboxSize { envelopes: 9, bytes: 99 },
        per_sender: MailboxSize { envelopes: 9, bytes: 99 },
    };

    /// A sender, a device with an empty mailbox, and a message from the one to the other.
    fn world() -> (PlanInput, SendRequest) {
        let id = Uuid::from_u128;
        let now = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let caller = Caller { session: SessionId(id(1)), user: UserId(id(2)), device: DeviceId(id(3)) };
        let (to, device) = (UserId(id(4)), DeviceId(id(5)));
        let later = now + Duration::from_hours(1);
        let mut input = PlanInput::default();
        input.mailboxes.insert(device, Mailbox { next_seq: 1, load: MailboxSize::default(), expired_total: 0 });
        input
            .sessions
            .insert(caller.session, CallerSession { device: caller.device, expires_at: later, newest_epoch: 1 });
        input.recipients.insert(to, vec![(device, Some(later))]);
        let envelopes = vec![OutgoingEnvelope { device, kind: 0, content: Bytes::from_static(b"x") }];
        let message = MessageId(id(6));
        let ttl = Duration::from_mins(1);
        (input, SendRequest { caller, epoch: 1, message, to, ephemeral: false, ttl, envelopes, now })
    }

    fn remember(input: &mut PlanInput, item: &SendRequest) {
        let outcome = item.envelopes.iter().map(|one| RecipientOutcome {
            device: one.device,
            digest: one.digest(),
            stored: true,
        });
        let send = RememberedSend { to: item.to, accepted_at: item.now, outcome: outcome.collect() };
        input.sends.insert((item.caller.device, item.message), send);
    }

    #[test]
    fn a_batch_that_was_committed_unnoticed_is_no_repeat() {
        for (again, later, duplicate) in [(true, 0, false), (true, 1, true), (false, 0, true)] {
            let (mut input, mut item) = world();
            remember(&mut input, &item);
            item.now = item.now + Duration::from_secs(later);
            let plan = plan(&[&item], input, &BOUNDS, again).unwrap();
            assert_eq!(plan.answers[0].as_ref().unwrap().duplicate, duplicate);
            assert!(plan.envelopes.is_empty() && plan.mailboxes.is_empty());
        }
    }

    #[test]
    fn a_device_that_came_after_the_locks_makes_the_batch_run_again() {
        let (mut input, item) = world();
        input.mailboxes.clear();
        assert!(matches!(plan(&[&item], input, &BOUNDS, false), Err(StoreError::Conflict(_))));
    }

    #[test]
    fn only_a_newer_connection_makes_a_send_too_late() {
        for (epoch, accepted) in [(0, false), (1, true), (2, true)] {
            let (input, item) = world();
            let plan = plan(&[&SendRequest { epoch, ..item }], input, &BOUNDS, false).unwrap();
            assert_eq!(plan.answers[0].is_ok(), accepted);
        }
    }
}
