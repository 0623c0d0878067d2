//! A batch of sends and acks: which rows it has to lock, read and delete, and how its answers are combined.

use std::collections::{BTreeSet, HashMap, HashSet};

use uuid::Uuid;

use super::{
    AcceptedMessage, AckRequest, MailAnswer, MailRequest, SendRequest,
    plan::{PlanInput, Shares},
};
use crate::{
    domain::{
        DeviceId, Refusal, UserId,
        access::Strangers,
        envelope::{MailboxBounds, MailboxSize},
    },
    store::StoreError,
};

/// A batch, split into sends and acks.
pub struct MailBatch<'a> {
    pub sends: Vec<&'a SendRequest>,
    pub acks: Vec<&'a AckRequest>,
    /// For each item, whether it is a send.
    order: Vec<bool>,
}

impl<'a> MailBatch<'a> {
    pub fn new(items: &'a [MailRequest]) -> Self {
        let mut all = Self { sends: Vec::new(), acks: Vec::new(), order: Vec::with_capacity(items.len()) };
        for item in items {
            all.order.push(matches!(item, MailRequest::Send(_)));
            match item {
                MailRequest::Send(send) => all.sends.push(send),
                MailRequest::Ack(ack) => all.acks.push(ack),
            }
        }
        all
    }

    /// The devices whose mailboxes may change, if they belong to these users. A send may name devices of others, whose
    /// mailboxes it must not lock.
    pub fn devices(&self) -> BTreeSet<(DeviceId, UserId)> {
        let sends = self.sends.iter().filter(|send| !send.ephemeral);
        let named = sends.flat_map(|send| send.envelopes.iter().map(|outgoing| (outgoing.device, send.to)));
        named.chain(self.acks.iter().map(|ack| (ack.caller.device, ack.caller.user))).collect()
    }

    /// The sessions of all callers, each once.
    pub fn sessions(&self) -> Vec<Uuid> {
        let callers = self.sends.iter().map(|send| send.caller).chain(self.acks.iter().map(|ack| ack.caller));
        callers.map(|caller| caller.session.0).collect::<HashSet<_>>().into_iter().collect()
    }

    /// The receiving users, each once.
    pub fn recipients(&self) -> Vec<Uuid> {
        self.sends.iter().map(|send| send.to.0).collect::<HashSet<_>>().into_iter().collect()
    }

    /// The recipients that refuse strangers, but not the sender.
    pub fn refusing_others(&self, input: &PlanInput) -> Vec<Uuid> {
        let is_admitted = |send: &&&SendRequest| {
            let recipient = input.recipients.get(&send.to);
            recipient.is_some_and(|one| one.access.strangers == Strangers::Refuse) && !input.refuses(send)
        };
        self.sends.iter().filter(is_admitted).map(|send| send.to.0).collect::<HashSet<_>>().into_iter().collect()
    }

    /// Recipient and sender of the sends that a block may drop: the recipient has blocked somebody. A recipient that
    /// refuses the sender counts as one that does not exist.
    pub fn possible_blocks(&self, input: &PlanInput) -> HashSet<(UserId, UserId)> {
        let has_blocks = |send: &&&SendRequest| input.recipient(send).is_some_and(|recipient| recipient.has_blocks);
        self.sends.iter().filter(has_blocks).map(|send| (send.to, send.caller.user)).collect()
    }

    /// The sending device and message id of each send, each pair once.
    pub fn message_ids(&self) -> Vec<(Uuid, Uuid)> {
        let ids = self.sends.iter().map(|send| (send.caller.device.0, send.message.0));
        ids.collect::<HashSet<_>>().into_iter().collect()
    }

    /// For each ack, whether its session is valid.
    pub fn valid_acks(&self, input: &PlanInput) -> Vec<bool> {
        let is_valid = |ack: &&AckRequest| {
            let session = input.sessions.get(&ack.caller.session);
            session.is_some_and(|session| session.device == ack.caller.device && session.expires_at > ack.now)
        };
        self.acks.iter().map(is_valid).collect()
    }

    /// The envelopes to delete, each once, without numbers that were never assigned.
    pub fn acked_envelopes(&self, valid: &[bool], input: &PlanInput) -> Vec<(DeviceId, i64)> {
        let mut envelopes = BTreeSet::new();
        for (ack, _) in self.acks.iter().zip(valid).filter(|(_, valid)| **valid) {
            let device = ack.caller.device;
            let Some(mailbox) = input.mailboxes.get(&device).filter(|mailbox| mailbox.load.envelopes > 0) else {
                continue;
            };
            let given = ack.seqs.iter().filter(|seq| (1..mailbox.next_seq).contains(*seq));
            envelopes.extend(given.map(|seq| (device, *seq)));
        }
        envelopes.into_iter().collect()
    }

    /// Pairs of mailbox and sending user whose share of the mailbox this batch might exceed, or changes where shares are
    /// counted. Only these shares are read.
    pub fn crowded(&self, input: &PlanInput, bounds: &MailboxBounds) -> HashSet<(DeviceId, UserId)> {
        let mut loads: HashMap<DeviceId, MailboxSize> = HashMap::new();
        for outgoing in self.sends.iter().flat_map(|send| &send.envelopes) {
            let stored =
                || input.mailboxes.get(&outgoing.device).map_or_else(MailboxSize::default, |mailbox| mailbox.load);
            let load = loads.entry(outgoing.device).or_insert_with(stored);
            *load = load.plus(outgoing.content.len());
        }
        let pairs = self
            .sends
            .iter()
            .filter(|send| !send.ephemeral)
            .flat_map(|send| send.envelopes.iter().map(|outgoing| (outgoing.device, send.caller.user)));
        let is_crowded = |(device, _): &(DeviceId, UserId)| {
            let fits = || loads.get(device).is_some_and(|load| load.fits(bounds.per_sender));
            input.mailboxes.get(device).is_some_and(|mailbox| mailbox.shares == Shares::Counted || !fits())
        };
        pairs.filter(is_crowded).collect()
    }

    /// The answers to the acks: how many envelopes each deleted. An envelope counts for the first ack that names it.
    /// `available` are the mailboxes that the batch has locked, if it skipped those that others had locked.
    pub fn count_acked(
        &self,
        valid: &[bool],
        mut removed: HashSet<(DeviceId, i64)>,
        available: Option<&HashSet<DeviceId>>,
    ) -> Vec<Result<u64, StoreError>> {
        let count = |(ack, valid): (&&AckRequest, &bool)| {
            if !valid {
                return Err(Refusal::SessionRevoked.into());
            }
            if available.is_some_and(|available| !available.contains(&ack.caller.device)) {
                return Err(StoreError::Locked(sqlx::Error::RowNotFound));
            }
            Ok(ack.seqs.iter().filter(|seq| removed.remove(&(ack.caller.device, **seq))).count() as u64)
        };
        self.acks.iter().zip(valid).map(count).collect()
    }

    /// All answers in the order of the batch.
    pub fn merge(
        self,
        acked: Vec<Result<u64, StoreError>>,
        sent: Vec<Result<AcceptedMessage, StoreError>>,
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
