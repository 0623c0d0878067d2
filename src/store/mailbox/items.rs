//! A batch of mail taken apart: what has to be locked, read and deleted for it, and how its answers come together again.

use std::collections::{BTreeSet, HashMap, HashSet};

use uuid::Uuid;

use super::{Accepted, AckRequest, MailAnswer, MailRequest, SendRequest, plan::Facts};
use crate::{
    domain::{
        DeviceId, Refusal, UserId,
        envelope::{Load, MailboxBounds},
    },
    store::StoreError,
};

/// A batch, by kind.
pub struct Items<'a> {
    pub sends: Vec<&'a SendRequest>,
    acks: Vec<&'a AckRequest>,
    /// For each item, whether it is a send.
    order: Vec<bool>,
}

impl<'a> Items<'a> {
    pub fn of(items: &'a [MailRequest]) -> Self {
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

    /// The mailboxes that may change.
    pub fn devices(&self) -> BTreeSet<Uuid> {
        let named = self.sends.iter().filter(|send| !send.ephemeral).flat_map(|send| &send.envelopes);
        named.map(|outgoing| outgoing.device.0).chain(self.acks.iter().map(|ack| ack.caller.device.0)).collect()
    }

    pub fn sessions(&self) -> Vec<Uuid> {
        let callers = self.sends.iter().map(|send| send.caller).chain(self.acks.iter().map(|ack| ack.caller));
        callers.map(|caller| caller.session.0).collect::<HashSet<_>>().into_iter().collect()
    }

    pub fn recipients(&self) -> Vec<Uuid> {
        self.sends.iter().map(|send| send.to.0).collect::<HashSet<_>>().into_iter().collect()
    }

    pub fn ids(&self) -> Vec<(Uuid, Uuid)> {
        let ids = self.sends.iter().map(|send| (send.caller.device.0, send.message.0));
        ids.collect::<HashSet<_>>().into_iter().collect()
    }

    /// Whether each ack comes in the name of a session that holds.
    pub fn holding(&self, facts: &Facts) -> Vec<bool> {
        let holds = |ack: &&AckRequest| {
            let sender = facts.senders.get(&ack.caller.session);
            sender.is_some_and(|sender| sender.device == ack.caller.device && sender.expires_at > ack.now)
        };
        self.acks.iter().map(holds).collect()
    }

    /// What is to be deleted, each envelope once. Numbers that were never given out are not looked for.
    pub fn acked(&self, holding: &[bool], facts: &Facts) -> Vec<(Uuid, i64)> {
        let mut envelopes = BTreeSet::new();
        for (ack, _) in self.acks.iter().zip(holding).filter(|(_, holds)| **holds) {
            let device = ack.caller.device;
            let Some(mailbox) = facts.mailboxes.get(&device).filter(|mailbox| mailbox.load.envelopes > 0) else {
                continue;
            };
            let given = ack.seqs.iter().filter(|seq| (1..mailbox.next_seq).contains(*seq));
            envelopes.extend(given.map(|seq| (device.0, *seq)));
        }
        envelopes.into_iter().collect()
    }

    /// Which users might go over their share of which mailbox with this batch: those are looked up, and no others.
    pub fn crowded(&self, facts: &Facts, bounds: &MailboxBounds) -> HashSet<(DeviceId, UserId)> {
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
    pub fn count(&self, holding: &[bool], mut gone: HashSet<(DeviceId, i64)>) -> Vec<Result<u64, StoreError>> {
        let count = |(ack, holds): (&&AckRequest, &bool)| {
            if !holds {
                return Err(Refusal::SessionRevoked.into());
            }
            Ok(ack.seqs.iter().filter(|seq| gone.remove(&(ack.caller.device, **seq))).count() as u64)
        };
        self.acks.iter().zip(holding).map(count).collect()
    }

    pub fn merge(
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
