//! Delivery of mail by the device's actor.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use actix::{AsyncContext, Context, Handler, Message};
use futures_util::FutureExt;
use sealwire_protocol::events::Event;
use tokio::time::Instant;

use super::super::{
    budget::Reservation,
    delivery::{Held, Next, Reading},
    device::DeviceSocket,
    ops::encode,
};
use crate::{
    domain::{
        Envelope, Refusal,
        envelope::{MAX_CONTENT, Page},
    },
    edge::events::message,
};

/// Pause before the store is read again after it could not be, or after memory was short.
const RETRY: Duration = Duration::from_secs(1);

/// What was read from the mailbox.
#[derive(Message)]
#[rtype(result = "()")]
struct Read {
    reading: Reading,
    page: Result<Page, Refusal>,
    /// Ends once the page is in the outbox, which has reservations of its own.
    _memory: Reservation,
}

impl DeviceSocket {
    /// A stored envelope has arrived, or word of one.
    pub(super) fn mail_arrived(&mut self, seq: i64, envelope: Option<Arc<Envelope>>, ctx: &mut Context<Self>) {
        if let Some(envelope) = envelope {
            self.arrived(Held::Mail(seq, envelope), ctx);
        } else {
            self.delivery.note(seq);
            self.read_mail(ctx);
        }
    }

    /// An envelope for those who are connected now has arrived.
    pub(super) fn ephemeral_arrived(&mut self, envelope: Arc<Envelope>, ctx: &mut Context<Self>) {
        self.arrived(Held::Ephemeral(envelope), ctx);
    }

    fn arrived(&mut self, arrived: Held, ctx: &mut Context<Self>) {
        if let Some(held) = self.delivery.arrived(arrived, &self.node.budget) {
            self.deliver(held, ctx);
        }
        self.release_held(ctx);
    }

    /// The device has acked envelopes; the numbers are sorted.
    pub(super) fn mail_acked(&mut self, seqs: &[i64], ctx: &mut Context<Self>) {
        self.delivery.acked(seqs);
        self.read_mail(ctx);
    }

    fn deliver(&mut self, held: Held, ctx: &mut Context<Self>) {
        match held {
            Held::Mail(seq, envelope) => {
                self.deliver_stored(seq, &envelope, ctx);
            }
            Held::Ephemeral(envelope) => {
                let frame = encode(self.codec, &message(self.codec, None, &envelope));
                if self.outbox.has_spare_room(frame.len()) {
                    self.count_delivery(&envelope);
                    self.push_event(frame, ctx);
                }
            }
        }
    }

    /// Sends an envelope if there is room for it.
    fn deliver_stored(&mut self, seq: i64, envelope: &Envelope, ctx: &mut Context<Self>) -> bool {
        let frame = encode(self.codec, &message(self.codec, Some(seq), envelope));
        if !self.outbox.has_room(frame.len()) {
            // Replies that the client has not read yet: they are no reason to give it up.
            self.delivery.wait();
            ctx.run_later(RETRY, |actor, ctx| {
                actor.delivery.go_on();
                actor.read_mail(ctx);
            });
            return false;
        }
        let admitted = self.delivery.admit(seq, frame.len(), Instant::now());
        if admitted {
            self.count_delivery(envelope);
            self.push_event(frame, ctx);
        }
        admitted
    }

    fn count_delivery(&self, envelope: &Envelope) {
        let waited = self.node.service.now().since(envelope.accepted_at);
        self.node.metrics.delivered((waited <= self.connected_for()).then_some(waited));
    }

    /// Tells the client when the backlog is through, and reads on where there is something to be sent.
    pub(super) fn read_mail(&mut self, ctx: &mut Context<Self>) {
        if self.is_closing() {
            return;
        }
        self.tell_drained(ctx);
        match self.delivery.next(Instant::now()) {
            Next::Nothing => {}
            Next::Wait(time) => {
                ctx.run_later(time, Self::read_mail);
            }
            Next::Read(reading) => self.read_page(reading, ctx),
        }
    }

    fn tell_drained(&mut self, ctx: &mut Context<Self>) {
        if self.delivery.is_drained() {
            self.event(&Event::MailboxDrained {}, ctx);
        }
    }

    /// Sends what has waited too long for its ack once more, unless the client has not even taken the first copies.
    pub(super) fn resend_mail(&mut self, now: Instant, ctx: &mut Context<Self>) {
        if self.outbox.is_empty()
            && let Some(reading) = self.delivery.begin_again(now)
        {
            self.read_page(reading, ctx);
        }
    }

    fn read_page(&mut self, reading: Reading, ctx: &mut Context<Self>) {
        let Some(memory) = self.node.budget.try_reserve(reading.page.bytes + MAX_CONTENT) else {
            return Self::read_later(ctx);
        };
        let (node, device, address) = (self.node.clone(), self.device(), ctx.address());
        let runtime = node.runtime.clone();
        runtime.spawn(async move {
            let page = AssertUnwindSafe(node.service.mail_page(device, reading.page)).catch_unwind().await;
            // A panic is a defect, but it must not leave the device without its mail.
            let page = page.unwrap_or(Err(Refusal::Internal));
            address.do_send(Read { reading, page, _memory: memory });
        });
    }

    fn read_later(ctx: &mut Context<Self>) {
        // Until then nothing else reads, so that what is kept meanwhile stays in order.
        ctx.run_later(RETRY, |actor, ctx| {
            actor.delivery.give_up_reading();
            actor.release_held(ctx);
        });
    }

    /// Goes on with what arrived while the store was read.
    fn release_held(&mut self, ctx: &mut Context<Self>) {
        while let Some(held) = self.delivery.release() {
            self.deliver(held, ctx);
        }
        self.read_mail(ctx);
    }
}

impl Handler<Read> for DeviceSocket {
    type Result = ();

    fn handle(&mut self, Read { reading, page, _memory: memory }: Read, ctx: &mut Context<Self>) {
        if self.is_closing() {
            return;
        }
        let Ok(page) = page else {
            return Self::read_later(ctx);
        };
        if reading.again {
            for (seq, envelope) in self.delivery.end_again(reading, page, Instant::now()) {
                let frame = encode(self.codec, &message(self.codec, Some(seq), &envelope));
                self.node.metrics.redeliveries.inc();
                self.push_event(frame, ctx);
            }
        } else {
            let all = page.envelopes.iter().all(|(seq, envelope)| self.deliver_stored(*seq, envelope, ctx));
            self.delivery.end_reading(reading, page.complete && all);
            self.tell_drained(ctx);
        }
        drop(memory);
        self.release_held(ctx);
    }
}
