//! Delivery of mail over an open connection.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use actix::{AsyncContext, Context, Handler, Message};
use futures_util::FutureExt;
use sealwire_protocol::{CloseCode, events::Event};
use tokio::time::Instant;

use super::{DeviceSocket, Handled, connection::Connection, open::Open};
use crate::{
    domain::{
        Envelope, Refusal,
        envelope::{MAX_CONTENT, MailPage},
    },
    edge::events::message,
    socket::{
        budget::Reservation,
        delivery::{LiveEnvelope, Next, Reading},
        ops::encode,
    },
};

/// Pause before the store is read again after it could not be, or after memory was short.
const RETRY: Duration = Duration::from_secs(1);

/// What was read from the mailbox.
#[derive(Message)]
#[rtype(result = "()")]
struct PageRead {
    reading: Reading,
    page: Result<MailPage, Refusal>,
    /// Ends once the page is in the outbox, which has reservations of its own.
    memory: Reservation,
}

impl Open {
    /// A stored envelope was signalled, with its content or without.
    pub fn handle_mail(
        &mut self,
        connection: &Connection,
        seq: i64,
        envelope: Option<Arc<Envelope>>,
        ctx: &mut Context<DeviceSocket>,
    ) -> Handled {
        if let Some(envelope) = envelope {
            return self.deliver_or_hold(connection, LiveEnvelope::Stored(seq, envelope), ctx);
        }
        self.delivery.note(seq);
        self.read_mail(connection, ctx)
    }

    /// An envelope for the devices that are connected now was signalled.
    pub fn handle_ephemeral(
        &mut self,
        connection: &Connection,
        envelope: Arc<Envelope>,
        ctx: &mut Context<DeviceSocket>,
    ) -> Handled {
        self.deliver_or_hold(connection, LiveEnvelope::Ephemeral(envelope), ctx)
    }

    fn deliver_or_hold(
        &mut self,
        connection: &Connection,
        envelope: LiveEnvelope,
        ctx: &mut Context<DeviceSocket>,
    ) -> Handled {
        if let Some(envelope) = self.delivery.take_in(envelope, &connection.node.budget) {
            self.deliver(connection, &envelope, ctx)?;
        }
        self.release_held(connection, ctx)
    }

    /// The device has acked envelopes; the numbers are sorted.
    pub fn handle_ack(&mut self, connection: &Connection, seqs: &[i64], ctx: &mut Context<DeviceSocket>) -> Handled {
        self.delivery.ack(seqs);
        self.read_mail(connection, ctx)
    }

    fn deliver(
        &mut self,
        connection: &Connection,
        envelope: &LiveEnvelope,
        ctx: &mut Context<DeviceSocket>,
    ) -> Handled {
        match envelope {
            LiveEnvelope::Stored(seq, envelope) => {
                self.deliver_stored(connection, *seq, envelope, ctx)?;
            }
            LiveEnvelope::Ephemeral(envelope) => {
                let frame = encode(connection.codec, &message(connection.codec, None, envelope));
                if connection.flow.outbox.fits_in_half(frame.len()) {
                    count_delivery(connection, envelope);
                    connection.send_event_frame(frame)?;
                }
            }
        }
        Ok(())
    }

    /// Sends an envelope. Returns false if it does not fit into the outbox or the window.
    fn deliver_stored(
        &mut self,
        connection: &Connection,
        seq: i64,
        envelope: &Envelope,
        ctx: &mut Context<DeviceSocket>,
    ) -> Result<bool, CloseCode> {
        let frame = encode(connection.codec, &message(connection.codec, Some(seq), envelope));
        if !connection.flow.outbox.fits(frame.len()) {
            // It is full of replies that the client has not read yet: no reason to give the client up.
            self.delivery.block();
            ctx.run_later(RETRY, |actor, ctx| {
                actor.when_open(ctx, |open, connection, ctx| {
                    open.delivery.unblock();
                    open.read_mail(connection, ctx)
                });
            });
            return Ok(false);
        }
        let fits = self.delivery.add_to_window(seq, frame.len(), Instant::now());
        if fits {
            count_delivery(connection, envelope);
            connection.send_event_frame(frame)?;
        }
        Ok(fits)
    }

    /// Sends the end of the backlog if it has been reached, and reads on if there is something to send.
    pub fn read_mail(&mut self, connection: &Connection, ctx: &mut Context<DeviceSocket>) -> Handled {
        self.send_backlog_end(connection)?;
        match self.delivery.next(Instant::now()) {
            Next::Nothing => {}
            Next::Wait(time) => {
                ctx.run_later(time, |actor, ctx| actor.when_open(ctx, Self::read_mail_again));
            }
            Next::Read(reading) => read_page(connection, reading, ctx),
        }
        Ok(())
    }

    fn read_mail_again(&mut self, connection: &mut Connection, ctx: &mut Context<DeviceSocket>) -> Handled {
        self.read_mail(connection, ctx)
    }

    fn send_backlog_end(&mut self, connection: &Connection) -> Handled {
        if self.delivery.take_backlog_end() { connection.send_event(&Event::MailboxDrained {}) } else { Ok(()) }
    }

    /// Sends again what has waited too long for its ack, unless the client has not even taken the first copies.
    pub fn resend_mail(&mut self, connection: &Connection, now: Instant, ctx: &mut Context<DeviceSocket>) {
        if connection.flow.outbox.is_empty()
            && let Some(reading) = self.delivery.begin_resend(now)
        {
            read_page(connection, reading, ctx);
        }
    }

    /// Goes on with what was held while the store was read.
    fn release_held(&mut self, connection: &Connection, ctx: &mut Context<DeviceSocket>) -> Handled {
        while let Some(envelope) = self.delivery.release() {
            self.deliver(connection, &envelope, ctx)?;
        }
        self.read_mail(connection, ctx)
    }

    fn handle_page(
        &mut self,
        connection: &Connection,
        PageRead { reading, page, memory }: PageRead,
        ctx: &mut Context<DeviceSocket>,
    ) -> Handled {
        let Ok(page) = page else {
            read_later(ctx);
            return Ok(());
        };
        if reading.is_resend {
            for (seq, envelope) in self.delivery.end_resend(reading, page, Instant::now()) {
                let frame = encode(connection.codec, &message(connection.codec, Some(seq), &envelope));
                connection.node.metrics.redeliveries.inc();
                connection.send_event_frame(frame)?;
            }
        } else {
            let mut all_fit = true;
            for (seq, envelope) in &page.envelopes {
                all_fit = self.deliver_stored(connection, *seq, envelope, ctx)?;
                if !all_fit {
                    break;
                }
            }
            self.delivery.end_reading(reading, page.complete && all_fit);
            self.send_backlog_end(connection)?;
        }
        drop(memory);
        self.release_held(connection, ctx)
    }
}

fn read_page(connection: &Connection, reading: Reading, ctx: &mut Context<DeviceSocket>) {
    let Some(memory) = connection.node.budget.try_reserve(reading.page.bytes + MAX_CONTENT) else {
        return read_later(ctx);
    };
    let (node, device, address) = (connection.node.clone(), connection.device(), ctx.address());
    let runtime = node.runtime.clone();
    runtime.spawn(async move {
        let page = AssertUnwindSafe(node.service.mail_page(device, reading.page)).catch_unwind().await;
        // A panic is a defect, but it must not leave the device without its mail.
        let page = page.unwrap_or(Err(Refusal::Internal));
        address.do_send(PageRead { reading, page, memory });
    });
}

fn read_later(ctx: &mut Context<DeviceSocket>) {
    // Until then nothing else reads, so that what is held meanwhile stays in order.
    ctx.run_later(RETRY, |actor, ctx| {
        actor.when_open(ctx, |open, connection, ctx| {
            open.delivery.give_up_reading();
            open.release_held(connection, ctx)
        });
    });
}

fn count_delivery(connection: &Connection, envelope: &Envelope) {
    let waited = connection.node.service.now().since(envelope.accepted_at);
    connection.node.metrics.delivered((waited <= connection.age()).then_some(waited));
}

impl Handler<PageRead> for DeviceSocket {
    type Result = ();

    fn handle(&mut self, read: PageRead, ctx: &mut Context<Self>) {
        self.when_open(ctx, |open, connection, ctx| open.handle_page(connection, read, ctx));
    }
}
