//! Checks the requests of an open connection, runs them, and sends their replies.

use std::{panic::AssertUnwindSafe, time::Instant};

use actix::{AsyncContext, Context, Handler, Message};
use actix_web::web::Bytes;
use futures_util::FutureExt;
use sealwire_protocol::{
    ProtocolFault,
    frame::{Op, RequestId, RequestOutline},
    keys::cost_in_tenths,
    limits::MAX_IN_FLIGHT,
};

use super::{
    DeviceSocket, HandlerResult,
    connection::DeviceConnection,
    open::OpenState,
    requests::{Deferred, InFlight},
};
use crate::{
    domain::{ClientNetwork, Refusal},
    edge::EdgeError,
    metrics::RequestedOp,
    socket::ops::{self, FollowUp, Reply, RequestSource, failure},
};

/// Bytes kept free in the outbox for a reply with bundles or sessions. With the default outbox size, 64 such requests can be
/// in flight.
const LIST_REPLY: usize = 16 * 1024;
/// Bytes kept free for a reply with blocks: 10,000 ids as text.
const BLOCKS_REPLY: usize = 400 * 1024;
/// Bytes kept free for most other replies.
const USUAL_REPLY: usize = 1024;
/// Bytes kept free for a reply that may contain two lists of devices.
const MISMATCH_REPLY: usize = 8 * 1024;

/// The reply to a request is ready.
#[derive(Message)]
#[rtype(result = "()")]
struct RequestFinished {
    id: RequestId,
    reply: Vec<u8>,
    follow_up: FollowUp,
}

impl OpenState {
    /// Checks a request frame of the client, then runs, defers or refuses it.
    pub fn handle_request(
        &mut self,
        connection: &DeviceConnection,
        frame: Bytes,
        ctx: &mut Context<DeviceSocket>,
    ) -> HandlerResult {
        let request = RequestOutline::decode(connection.codec, &frame)?;
        if self.requests.contains(request.id) {
            return Err(ProtocolFault::IdInUse.into());
        }
        let requested = request.op.as_ref().map_or(RequestedOp::Unknown, |op| RequestedOp::Op(*op));
        let op = match self.check_request(connection, &request, &frame) {
            Ok(op) => op,
            Err(error) => return connection.refuse(request.id, requested, error),
        };
        if self.requests.must_wait(op) {
            connection.flow.gate.begin_request(frame.len(), reply_bytes(op));
            self.requests.defer(Deferred { request, op, frame });
            return Ok(());
        }
        self.run_request(connection, request, op, frame, ctx)
    }

    /// Checks the op and the limits. Whether accepted or refused, the request counts towards the rate.
    ///
    /// # Errors
    /// If too many requests are in flight, the op is unknown, or the connection is over its rate.
    fn check_request(
        &self,
        connection: &DeviceConnection,
        request: &RequestOutline,
        frame: &[u8],
    ) -> Result<Op, EdgeError> {
        let (rate, now) = (connection.flow.gate.rate(), Instant::now());
        let op = if self.requests.len() < MAX_IN_FLIGHT {
            request.op.map_err(EdgeError::from)
        } else {
            Err(EdgeError::TooManyInFlight)
        };
        let op = op.inspect_err(|_| rate.count_refused(now))?;
        let tenths = cost_in_tenths(connection.codec, op, request, frame);
        rate.take_tenths(tenths, now).map_err(|retry_after| Refusal::RateLimited { retry_after })?;
        Ok(op)
    }

    /// Runs a request: on this thread if it is served by a batch, otherwise on the runtime of store and bus.
    fn run_request(
        &mut self,
        connection: &DeviceConnection,
        request: RequestOutline,
        op: Op,
        frame: Bytes,
        ctx: &mut Context<DeviceSocket>,
    ) -> HandlerResult {
        let id = request.id;
        let Ok(reservation) = connection.flow.outbox.memory().reserve(frame.len()) else {
            return connection.refuse(id, RequestedOp::Op(op), Refusal::Unavailable.into());
        };
        let (request_bytes, reply_bytes) = (frame.len(), reply_bytes(op));
        connection.flow.gate.begin_request(request_bytes, reply_bytes);
        let requests = &mut self.requests;
        requests.in_flight.push(InFlight { id, request_bytes, reply_bytes });
        if op == Op::SessionRenew {
            requests.begin_renewal();
        }
        let source = RequestSource {
            caller: connection.session.caller,
            epoch: self.epoch,
            network: ClientNetwork::from(connection.client),
            turn: match op {
                Op::MessagesSend => Some(requests.sends.take()),
                Op::KeysPublish => Some(requests.publishes.take()),
                _ => None,
            },
        };
        let (node, codec, address) = (connection.node.clone(), connection.codec, ctx.address());
        let runtime = node.runtime.clone();
        let run = async move {
            // Held until the request is finished, even if its connection ends earlier.
            let _reservation = reservation;
            let reply = ops::run(&node, source, codec, op, &request, frame);
            // A panic in a use case is a defect, but the client still gets a reply.
            let reply = AssertUnwindSafe(reply).catch_unwind().await.unwrap_or_else(|_| {
                Reply::new(failure(&node.metrics, RequestedOp::Op(op), codec, id, Refusal::Internal))
            });
            // The reply first, then the notifications to other devices.
            address.do_send(RequestFinished { id, reply: reply.frame, follow_up: reply.follow_up });
            drop(reply.turn);
            node.service.notify(reply.notifications);
        };
        if ops::runs_in_batches(op) {
            runtime.spawn_local(run);
        } else {
            runtime.spawn(run);
        }
        Ok(())
    }

    /// Sends a reply, does its follow-up, and runs the requests that waited for it.
    fn finish_request(
        &mut self,
        connection: &mut DeviceConnection,
        RequestFinished { id, reply, follow_up }: RequestFinished,
        ctx: &mut Context<DeviceSocket>,
    ) -> HandlerResult {
        let Some(request) = self.requests.take_in_flight(id) else { return Ok(()) };
        connection.send_reply(reply)?;
        connection.flow.gate.end_request(request.request_bytes, request.reply_bytes);
        match follow_up {
            FollowUp::Nothing => {}
            FollowUp::Renewed(session) => {
                connection.session = session;
                connection.note_open(self.epoch);
                self.set_timer(connection, ctx);
            }
            FollowUp::Published { status, changed_pools, rotated } => {
                self.keys.note_publish(&status, changed_pools);
                if rotated {
                    self.keys.note_rotation(status.signed_prekey);
                    self.send_rotation_notice(connection, connection.node.service.now())?;
                    self.set_timer(connection, ctx);
                }
            }
            FollowUp::Acked(seqs) => self.handle_ack(connection, &seqs, ctx)?,
            FollowUp::Limited => connection.flow.gate.rate().count_limited(Instant::now()),
            FollowUp::Ended(reason) => return Err(connection.end_session(reason)),
        }
        for signal in self.requests.end_renewal() {
            self.handle_signal(connection, signal, ctx)?;
        }
        while let Some(Deferred { request, op, frame }) = self.requests.next_deferred() {
            connection.flow.gate.end_request(frame.len(), reply_bytes(op));
            self.run_request(connection, request, op, frame, ctx)?;
        }
        self.close_if_drained()
    }
}

/// The bytes that the reply to an op may need.
fn reply_bytes(op: Op) -> usize {
    match op {
        Op::KeysFetch | Op::KeysClaim | Op::SessionsList => LIST_REPLY,
        Op::BlocksList => BLOCKS_REPLY,
        Op::MessagesSend => MISMATCH_REPLY,
        _ => USUAL_REPLY,
    }
}

impl Handler<RequestFinished> for DeviceSocket {
    type Result = ();

    fn handle(&mut self, finished: RequestFinished, ctx: &mut Context<Self>) {
        self.when_open(ctx, |open, connection, ctx| open.finish_request(connection, finished, ctx));
    }
}
