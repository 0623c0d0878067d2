//! Requests of a device: taken in, handed on, answered.

use std::panic::AssertUnwindSafe;

use actix::{AsyncContext, Context, Handler, Message};
use actix_web::web::Bytes;
use futures_util::FutureExt;
use sealwire_protocol::{
    CloseCode,
    frame::{Op, RequestId, RequestOutline},
    limits::MAX_IN_FLIGHT,
};

use super::{
    super::ops::{self, After, Origin, Reply, failure},
    DeviceSocket, depths,
};
use crate::{domain::Refusal, edge::EdgeError, metrics::Asked};

/// Room kept in the outbox for the reply to a request that brings bundles, and for any other. With the default outbox 64 of
/// either can be under way.
const BUNDLES_ROOM: usize = 16 * 1024;
const REPLY_ROOM: usize = 1024;
/// The same for one that may bring two lists of devices.
const MISMATCH_ROOM: usize = 8 * 1024;

pub(super) struct InFlight {
    id: RequestId,
    bytes: usize,
    room: usize,
}

/// A request has its reply.
#[derive(Message)]
#[rtype(result = "()")]
struct Done {
    id: RequestId,
    reply: Vec<u8>,
    after: After,
}

impl DeviceSocket {
    pub(super) fn frame(&mut self, frame: Bytes, ctx: &mut Context<Self>) {
        let Ok(request) = RequestOutline::decode(self.codec, &frame) else {
            return self.close(CloseCode::ProtocolError, ctx);
        };
        let id = request.id;
        let waiting = |(request, ..): &(RequestOutline, Op, Bytes)| request.id == id;
        if self.in_flight.iter().any(|request| request.id == id) || self.deferred.iter().any(waiting) {
            return self.close(CloseCode::ProtocolError, ctx);
        }
        let asked = request.op.as_ref().map_or(Asked::Unknown, |op| Asked::Op(*op));
        let op = match self.admit(&request) {
            Ok(op) => op,
            Err(refusal) => return self.refuse(id, asked, refusal, ctx),
        };
        // A renewal runs alone: what comes before it belongs to the old session, what comes after to the new one.
        let must_wait = op == Op::SessionRenew && !self.in_flight.is_empty();
        if must_wait || self.renewing || !self.deferred.is_empty() {
            self.defer(request, op, frame);
        } else {
            self.hand_on(request, op, frame, ctx);
        }
    }

    /// Whether a request is carried out, be it later. It is counted, and has no effect on any other if it is refused.
    fn admit(&self, request: &RequestOutline) -> Result<Op, EdgeError> {
        let pace = self.outbox.pace();
        let known = if self.in_flight.len() + self.deferred.len() < MAX_IN_FLIGHT {
            request.op.map_err(EdgeError::from)
        } else {
            Err(EdgeError::TooManyInFlight)
        };
        let op = known.inspect_err(|_| pace.count_refused())?;
        pace.take().map_err(|retry_after| Refusal::RateLimited { retry_after })?;
        Ok(op)
    }

    pub(super) fn defer(&mut self, request: RequestOutline, op: Op, frame: Bytes) {
        self.outbox.expect_reply(frame.len(), room(op));
        self.deferred.push_back((request, op, frame));
    }

    pub(super) fn resume_deferred(&mut self, ctx: &mut Context<Self>) {
        while let Some((_, op, _)) = self.deferred.front() {
            if self.renewing || (*op == Op::SessionRenew && !self.in_flight.is_empty()) {
                return;
            }
            if let Some((request, op, frame)) = self.deferred.pop_front() {
                self.outbox.settle_reply(frame.len(), room(op));
                self.hand_on(request, op, frame, ctx);
            }
        }
    }

    /// Runs a request on the runtime of store and bus.
    pub(super) fn hand_on(&mut self, request: RequestOutline, op: Op, frame: Bytes, ctx: &mut Context<Self>) {
        let id = request.id;
        let Some(reservation) = self.node.budget.try_reserve(frame.len()) else {
            return self.refuse(id, Asked::Op(op), Refusal::Unavailable.into(), ctx);
        };
        let (bytes, room) = (frame.len(), room(op));
        self.outbox.expect_reply(bytes, room);
        self.in_flight.push(InFlight { id, bytes, room });
        self.renewing = op == Op::SessionRenew;
        let origin = Origin {
            caller: self.session.caller,
            epoch: self.epoch.unwrap_or_default(),
            turn: match op {
                Op::MessagesSend => Some(self.sends.take()),
                Op::KeysPublish => Some(self.publishes.take()),
                _ => None,
            },
        };
        let (node, codec, address) = (self.node.clone(), self.codec, ctx.address());
        let runtime = node.runtime.clone();
        runtime.spawn(async move {
            // Held for as long as the request is under way, which may be longer than its socket lives.
            let _memory = reservation;
            let run = ops::run(&node, origin, codec, op, &request, frame);
            // A panic in a use case is a defect, but the client still gets its one reply.
            let reply = AssertUnwindSafe(run)
                .catch_unwind()
                .await
                .unwrap_or_else(|_| Reply::new(failure(&node.metrics, Asked::Op(op), codec, id, Refusal::Internal)));
            // The reply first, then what others hear of it.
            address.do_send(Done { id, reply: reply.frame, after: reply.after });
            drop(reply.turn);
            node.service.notify(reply.notifications);
        });
    }
}

/// What the reply to an op may need of the outbox.
fn room(op: Op) -> usize {
    match op {
        Op::KeysFetch | Op::KeysClaim => BUNDLES_ROOM,
        Op::MessagesSend => MISMATCH_ROOM,
        _ => REPLY_ROOM,
    }
}

impl Handler<Done> for DeviceSocket {
    type Result = ();

    fn handle(&mut self, Done { id, reply, after }: Done, ctx: &mut Context<Self>) {
        let Some(at) = self.in_flight.iter().position(|request| request.id == id) else { return };
        let InFlight { bytes, room, .. } = self.in_flight.swap_remove(at);
        if self.in_flight.is_empty() && self.deferred.is_empty() {
            self.in_flight = Vec::new();
        }
        if self.closing {
            return;
        }
        self.reply(reply, ctx);
        self.outbox.settle_reply(bytes, room);
        match after {
            After::Nothing => {}
            After::Renewed(session) => {
                self.session = session;
                self.note_open();
                self.set_timer(ctx);
            }
            After::Published { status, rotated } => {
                let now_known = depths(&status);
                for (known, (version, depth)) in self.known_depth.iter_mut().zip(now_known) {
                    // A signal that came after the publish was heard already if its version stands here.
                    if version > known.0 {
                        *known = (version, depth.min(known.1));
                    }
                }
                if rotated {
                    self.signed_prekey = status.signed_prekey;
                    self.rotation_told = false;
                    self.tell_rotation(self.node.service.now(), ctx);
                    self.set_timer(ctx);
                }
            }
            After::Acked(seqs) => self.mail_acked(&seqs, ctx),
            After::Ended(reason) => return self.end(reason, ctx),
        }
        if std::mem::take(&mut self.renewing) {
            for signal in std::mem::take(&mut self.early) {
                self.heed(signal, ctx);
            }
        }
        self.resume_deferred(ctx);
        self.close_if_drained(ctx);
    }
}
