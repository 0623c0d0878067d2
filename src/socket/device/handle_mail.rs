//! Delivers mail over an open connection.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use actix::{AsyncContext, Context, Handler, Message};
use futures_util::FutureExt;
use sealwire_protocol::events::Event;
use tokio::time::Instant;

use super::{DeviceSocket, HandlerResult, connection::DeviceConnection, open::OpenState};
use crate::{
    domain::{
        Envelope, Refusal,
        envelope::{MAX_CONTENT, MailPage},
    },
    edge::events::message,
    socket::{
        closing::Closing,
        delivery::{LiveEnvelope, MailboxRead, NextStep},
        ops::encode,
        shares::SharedReservation,
    },
};

/// Pause before the next attempt after the store could not be read, the budget was exhausted or the outbox was full.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The result of a mailbox read.
#[derive(Message)]
#[rtype(result = "()")]
struct MailPageRead {
    read: MailboxRead,
    page: Result<MailPage, Refusal>,
    /// The memory for the page. Given back once the page is in the outbox, which makes its own reservations.
    reservation: SharedReservation,
}

impl OpenState {
    /// Handles the signal of a stored envelope. `envelope` is `None` if the signal carried only its sequence number.
    pub fn handle_mail(
        &mut self,
        connection: &DeviceConnection,
        seq: i64,
        envelope: Option<Arc<Envelope>>,
        ctx: &mut Context<DeviceSocket>,
    ) -> HandlerResult {
        if let Some(envelope) = envelope {
            return self.deliver_or_hold(connection, LiveEnvelope::Stored(seq, envelope), ctx);
        }
        self.delivery.note_stored(seq);
        self.read_mail(connection, ctx)
    }

    /// Handles the signal of an ephemeral envelope, which is meant only for devices connected now.
    pub fn handle_ephemeral(
        &mut self,
        connection: &DeviceConnection,
        envelope: Arc<Envelope>,
        ctx: &mut Context<DeviceSocket>,
    ) -> HandlerResult {
        self.deliver_or_hold(connection, LiveEnvelope::Ephemeral(envelope), ctx)
    }

    fn deliver_or_hold(
        &mut self,
        connection: &DeviceConnection,
        envelope: LiveEnvelope,
        ctx: &mut Context<DeviceSocket>,
    ) -> HandlerResult {
        if let Some(envelope) = self.delivery.receive(envelope, connection.flow.outbox.memory()) {
            self.deliver(connection, &envelope, ctx)?;
        }
        self.send_held(connection, ctx)
    }

    /// Handles acked envelopes. `seqs` is sorted.
    pub fn handle_ack(
        &mut self,
        connection: &DeviceConnection,
        seqs: &[i64],
        ctx: &mut Context<DeviceSocket>,
    ) -> HandlerResult {
        self.delivery.ack(seqs);
        self.read_mail(connection, ctx)
    }

    /// Sends an envelope if it fits. If not, a stored one is read from the store later, and an ephemeral one is
    /// dropped.
    fn deliver(
        &mut self,
        connection: &DeviceConnection,
        envelope: &LiveEnvelope,
        ctx: &mut Context<DeviceSocket>,
    ) -> HandlerResult {
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

    /// Sends a stored envelope. Returns false if it does not fit into the outbox or the window.
    fn deliver_stored(
        &mut self,
        connection: &DeviceConnection,
        seq: i64,
        envelope: &Envelope,
        ctx: &mut Context<DeviceSocket>,
    ) -> Result<bool, Closing> {
        let frame = encode(connection.codec, &message(connection.codec, Some(seq), envelope));
        if !connection.flow.outbox.fits(frame.len()) {
            // The outbox is full of replies that the client has not read yet. That is no reason to close the
            // connection.
            self.delivery.block();
            ctx.run_later(RETRY_PAUSE, |actor, ctx| {
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

    /// Announces the end of the backlog if it has been reached, and reads the mailbox if there is more to send.
    pub fn read_mail(&mut self, connection: &DeviceConnection, ctx: &mut Context<DeviceSocket>) -> HandlerResult {
        self.send_backlog_end(connection)?;
        match self.delivery.next_step(Instant::now()) {
            NextStep::Idle => {}
            NextStep::Wait(time) => {
                ctx.run_later(time, |actor, ctx| actor.when_open(ctx, Self::read_mail_again));
            }
            NextStep::Read(read) => read_page(connection, read, ctx),
        }
        Ok(())
    }

    fn read_mail_again(&mut self, connection: &mut DeviceConnection, ctx: &mut Context<DeviceSocket>) -> HandlerResult {
        self.read_mail(connection, ctx)
    }

    fn send_backlog_end(&mut self, connection: &DeviceConnection) -> HandlerResult {
        if self.delivery.take_backlog_end() { connection.send_event(&Event::MailboxDrained {}) } else { Ok(()) }
    }

    /// Starts to resend the envelopes whose acks are overdue. Does nothing if frames are still queued: the client has
    /// to read those first.
    pub fn resend_mail(&mut self, connection: &DeviceConnection, now: Instant, ctx: &mut Context<DeviceSocket>) {
        if connection.flow.outbox.is_empty()
            && let Some(read) = self.delivery.begin_resend(now)
        {
            read_page(connection, read, ctx);
        }
    }

    /// Sends the held envelopes that may be sent now, then reads the mailbox if there is more to send.
    fn send_held(&mut self, connection: &DeviceConnection, ctx: &mut Context<DeviceSocket>) -> HandlerResult {
        while let Some(envelope) = self.delivery.release() {
            self.deliver(connection, &envelope, ctx)?;
        }
        self.read_mail(connection, ctx)
    }

    /// Sends the envelopes of a page. If the page could not be read, reads again later.
    fn handle_page(
        &mut self,
        connection: &DeviceConnection,
        MailPageRead { read, page, reservation }: MailPageRead,
        ctx: &mut Context<DeviceSocket>,
    ) -> HandlerResult {
        let Ok(page) = page else {
            read_later(ctx);
            return Ok(());
        };
        if read.is_resend {
            for (seq, envelope) in self.delivery.finish_resend(read, page, Instant::now()) {
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
            self.delivery.finish_read(read, page.complete && all_fit);
            self.send_backlog_end(connection)?;
        }
        drop(reservation);
        self.send_held(connection, ctx)
    }
}

/// Reads a page from the store. Its result comes back as [`MailPageRead`].
fn read_page(connection: &DeviceConnection, read: MailboxRead, ctx: &mut Context<DeviceSocket>) {
    let Ok(reservation) = connection.flow.outbox.memory().reserve(read.page.bytes + MAX_CONTENT) else {
        return read_later(ctx);
    };
    let (node, device, address) = (connection.node.clone(), connection.device(), ctx.address());
    let user = connection.session.caller.user;
    let runtime = node.runtime.clone();
    runtime.spawn(async move {
        let page = async {
            let _place = node.service.enter(user).await?;
            node.service.mail_page(device, read.page).await
        };
        let page = AssertUnwindSafe(page).catch_unwind().await;
        // A panic is a defect, but without a result the connection would never read its mailbox again.
        let page = page.unwrap_or(Err(Refusal::Internal));
        address.do_send(MailPageRead { read, page, reservation });
    });
}

/// Reads the mailbox again after [`RETRY_PAUSE`].
fn read_later(ctx: &mut Context<DeviceSocket>) {
    // The read counts as in progress until then, so that envelopes received meanwhile are held and stay in order.
    ctx.run_later(RETRY_PAUSE, |actor, ctx| {
        actor.when_open(ctx, |open, connection, ctx| {
            open.delivery.abandon_read();
            open.send_held(connection, ctx)
        });
    });
}

/// Counts a delivery. Its latency counts only if the envelope was accepted after the connection was upgraded.
fn count_delivery(connection: &DeviceConnection, envelope: &Envelope) {
    let waited = connection.node.service.now().since(envelope.accepted_at);
    connection.node.metrics.count_delivery((waited <= connection.age()).then_some(waited));
}

impl Handler<MailPageRead> for DeviceSocket {
    type Result = ();

    fn handle(&mut self, read: MailPageRead, ctx: &mut Context<Self>) {
        self.when_open(ctx, |open, connection, ctx| open.handle_page(connection, read, ctx));
    }
}
