//! The actor of one connected device. It owns the session, hands requests to the use cases, and queues what comes back.
//! No handler waits for anything: work runs on the runtime of store and bus and returns as a message.

mod mail;
mod requests;
mod signals;
mod timing;

use std::{collections::VecDeque, net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, SpawnHandle, StreamHandler,
    fut::wrap_future,
};
use actix_web::web::Bytes;
use actix_ws::{MessageStream, ProtocolError, Session as WsSession};
use sealwire_protocol::{
    CloseCode, Codec,
    events::Event,
    frame::{Op, RequestId, RequestOutline},
};
use tokio::{sync::oneshot, time::Instant};

use super::{
    Node,
    delivery::Delivery,
    hub::ConnectionKey,
    inlet::{Incoming, Inlet},
    ops::{encode, failure},
    outbox::{Outbox, Overflow, Writer},
    pace::Pace,
    transport::{Violation, Wire},
};
use crate::{
    domain::{
        DeviceId, EndReason, KeysStatus, Refusal, Session, Signal,
        bundle::{SignedPrekeyStatus, depth},
    },
    edge::{self, EdgeError},
    metrics::{Asked, Close},
    service::{Opened, Turns},
};

/// Time between two pings.
const HEARTBEAT: Duration = Duration::from_secs(25);
/// What stands in the log for a Close frame without a code, and for an end without a Close frame (RFC 6455, 7.1.5).
const CLOSED_WITHOUT_CODE: u16 = 1005;
const ENDED_WITHOUT_CLOSE: u16 = 1006;

/// The actor.
pub struct DeviceSocket {
    pub(super) node: Arc<Node>,
    session: Session,
    pub(super) codec: Codec,
    pub(super) outbox: Rc<Outbox>,
    wire: Rc<Wire>,
    client: IpAddr,
    attached: Option<ConnectionKey>,
    opening: Opening,
    /// The connection's place among those of the device; `None` until it is open.
    epoch: Option<i64>,
    /// Signals that came before the welcome was out, or during a renewal that they may concern.
    early: Vec<Signal>,
    /// Requests that were handed on.
    in_flight: Vec<requests::InFlight>,
    /// Requests that wait for a renewal, or the renewal itself, which waits for those before it.
    deferred: VecDeque<(RequestOutline, Op, Bytes)>,
    renewing: bool,
    /// The places of sends under way.
    sends: Turns,
    /// Those of publishes, so that the last one's signed prekey is the one that is watched.
    publishes: Turns,
    pub(super) delivery: Delivery,
    signed_prekey: Option<SignedPrekeyStatus>,
    /// How deep the owner knows each pool to be ([`depth`]), at which pool version: a signal that says no more is an echo.
    known_depth: [(i64, i32); 2],
    /// Whether the owner was told that the signed prekey expires.
    rotation_told: bool,
    next_ping: Instant,
    timer: SpawnHandle,
    closing: bool,
    opened_at: Instant,
}

/// How far the use case that opens the connection has come.
enum Opening {
    NotBegun,
    /// The receiver resolves when it has finished.
    UnderWay(oneshot::Receiver<()>),
    Done,
}

/// A signal for the device.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Told(pub Signal);

/// The node is being stopped.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Drain {
    /// The time over which the clients of this node should come back.
    pub spread: Duration,
}

/// The time for replies is over.
#[derive(Message)]
#[rtype(result = "()")]
pub struct CutOff;

/// What an upgraded connection brings along.
pub struct Upgraded {
    /// Of the presented token.
    pub session: Session,
    /// Of the chosen subprotocol.
    pub codec: Codec,
    /// Towards the peer.
    pub ws: WsSession,
    /// From the peer.
    pub messages: MessageStream,
    /// Below both.
    pub wire: Rc<Wire>,
    /// The client's address.
    pub client: IpAddr,
}

impl DeviceSocket {
    /// Starts the actor of an upgraded connection on this worker.
    pub fn launch(node: Arc<Node>, upgraded: Upgraded) {
        let Upgraded { session, codec, ws, messages, wire, client } = upgraded;
        let outbox = Outbox::new(node.outbox_bytes, node.budget.clone(), Pace::new(node.requests_per_second));
        actix_rt::spawn(Writer::new(outbox.clone(), ws, wire.clone(), codec));
        Self::create(|ctx| {
            ctx.add_stream(Inlet::new(messages, outbox.clone()));
            let opened_at = Instant::now();
            let delivery = Delivery::new(node.outbox_bytes / 2);
            Self {
                node,
                session,
                codec,
                outbox,
                wire,
                client,
                attached: None,
                opening: Opening::NotBegun,
                epoch: None,
                early: Vec::new(),
                in_flight: Vec::new(),
                deferred: VecDeque::new(),
                renewing: false,
                sends: Turns::default(),
                publishes: Turns::default(),
                delivery,
                signed_prekey: None,
                known_depth: [(0, 0); 2],
                rotation_told: false,
                // The first ping comes at a moment of its own, so that those of many sockets spread.
                next_ping: opened_at + HEARTBEAT.mul_f64(fraction(session.caller.session.0)),
                timer: SpawnHandle::default(),
                closing: false,
                opened_at,
            }
        });
    }

    fn opened(&mut self, opened: Result<Opened, Refusal>, ctx: &mut Context<Self>) {
        self.opening = Opening::Done;
        if self.closing {
            return;
        }
        let now = self.node.service.now();
        let Opened { epoch, keys, mailbox } = match opened {
            Ok(opened) => opened,
            Err(Refusal::SessionRevoked) if self.session.expires_at <= now => {
                return self.close(CloseCode::SessionExpired, ctx);
            }
            Err(Refusal::SessionRevoked) => {
                let code = if self.early.contains(&Signal::AccountDeleted) {
                    CloseCode::AccountDeleted
                } else if self.early.contains(&Signal::DeviceRevoked) {
                    CloseCode::DeviceRevoked
                } else {
                    CloseCode::SessionRevoked
                };
                return self.close(code, ctx);
            }
            Err(_) => return self.close(CloseCode::Unavailable, ctx),
        };
        self.epoch = Some(epoch);
        tracing::info!(
            device_id = %self.session.caller.device,
            user_id = %self.session.caller.user,
            session_id = %self.session.caller.session,
            epoch,
            client = %self.client,
            subprotocol = self.codec.subprotocol(),
            "socket opened"
        );
        self.note_open();
        self.signed_prekey = keys.signed_prekey;
        self.known_depth = depths(&keys);
        let low: Vec<_> = keys.low_pools().collect();
        let (threshold, pool_version) = (keys.threshold, keys.pool_version);
        self.node.metrics.connects.inc();
        self.event(&edge::events::welcome(&self.session, now, HEARTBEAT, keys, mailbox), ctx);
        for (kind, remaining) in low {
            self.event(&Event::PrekeysLow { kind: kind.into(), remaining, threshold, pool_version }, ctx);
        }
        self.tell_rotation(now, ctx);
        self.delivery.open(mailbox);
        self.read_mail(ctx);
        for signal in std::mem::take(&mut self.early) {
            self.heed(signal, ctx);
        }
        self.outbox.start_reading();
        self.set_timer(ctx);
    }

    /// Tells the hub what the reconcile has to check.
    fn note_open(&self) {
        if let (Some(key), Some(epoch)) = (self.attached, self.epoch) {
            let caller = self.session.caller;
            self.node.hub.note_open(caller.device, key, caller.session, epoch);
        }
    }

    pub(super) fn event(&mut self, event: &Event<'_>, ctx: &mut Context<Self>) {
        self.push_event(encode(self.codec, event), ctx);
    }

    pub(super) fn push_event(&mut self, frame: Vec<u8>, ctx: &mut Context<Self>) {
        if !self.closing
            && let Err(Overflow) = self.outbox.push_event(frame)
        {
            self.close(CloseCode::SlowConsumer, ctx);
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// For how long it has been open.
    pub(super) fn connected_for(&self) -> Duration {
        self.opened_at.elapsed()
    }

    /// Whose connection it is.
    pub(super) fn device(&self) -> DeviceId {
        self.session.caller.device
    }

    fn reply(&mut self, reply: Vec<u8>, ctx: &mut Context<Self>) {
        if let Err(Overflow) = self.outbox.push_reply(reply) {
            self.close(CloseCode::SlowConsumer, ctx);
        }
    }

    /// Answers a request with an error without running it.
    fn refuse(&mut self, id: RequestId, asked: Asked, error: EdgeError, ctx: &mut Context<Self>) {
        let reply = failure(&self.node.metrics, asked, self.codec, id, error);
        self.reply(reply, ctx);
    }

    /// Sends what is queued, then the Close frame. The writer sees to it; the actor is done.
    fn close(&mut self, code: CloseCode, ctx: &mut Context<Self>) {
        if !self.closing {
            self.closing = true;
            self.log_closed(code.number(), code.reason());
            self.node.metrics.closes.inc(Close::Code(code));
            self.outbox.close(code);
            ctx.stop();
        }
    }

    /// The one line at the end of every socket, whoever ended it.
    fn log_closed(&self, code: u16, reason: &'static str) {
        tracing::info!(
            device_id = %self.session.caller.device,
            epoch = self.epoch,
            code,
            reason,
            seconds = self.opened_at.elapsed().as_secs_f64(),
            "socket closed"
        );
    }

    /// Closes once a node that is being stopped, and reads no more for that, owes this socket no reply.
    fn close_if_drained(&mut self, ctx: &mut Context<Self>) {
        if self.epoch.is_some() && !self.outbox.is_reading() && self.in_flight.is_empty() && self.deferred.is_empty() {
            self.close(CloseCode::Draining, ctx);
        }
    }

    /// Tells the client why its session ended, and closes.
    fn end(&mut self, reason: EndReason, ctx: &mut Context<Self>) {
        if !self.closing {
            self.event(&Event::SessionRevoked { reason: reason.into() }, ctx);
            self.close(reason.into(), ctx);
        }
    }
}

/// How deep each pool is, with the pool version.
fn depths(keys: &KeysStatus) -> [(i64, i32); 2] {
    [keys.one_time, keys.pq_one_time].map(|count| (keys.pool_version, depth(count, keys.threshold)))
}

/// A number from 0 to 1 out of random bits.
fn fraction(id: uuid::Uuid) -> f64 {
    f64::from(u32::from_le_bytes(id.as_bytes()[12..16].try_into().unwrap_or_default())) / f64::from(u32::MAX)
}

impl Actor for DeviceSocket {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        // Attached before the session is checked again: a revocation is seen by the check or arrives as a signal.
        self.attached = Some(self.node.hub.attach(self.session.caller.device, ctx.address()));
        if self.node.hub.is_draining() {
            // The drain may have passed before this connection was attached.
            return self.close(CloseCode::Draining, ctx);
        }
        let (node, caller) = (self.node.clone(), self.session.caller);
        let (finished, opening) = oneshot::channel();
        self.opening = Opening::UnderWay(opening);
        let open = self.node.runtime.spawn(async move {
            // A crowd that connects at once waits here, in little memory, rather than inside the use case.
            let _turn = node.opening.acquire().await;
            let opened = Box::pin(node.service.open_connection(caller)).await;
            // Nobody waits for this unless the connection has ended meanwhile.
            let _ = finished.send(());
            opened
        });
        ctx.spawn(wrap_future(open).map(|opened, actor: &mut Self, ctx| {
            actor.opened(opened.unwrap_or(Err(Refusal::Internal)), ctx);
        }));
    }

    fn stopped(&mut self, _: &mut Context<Self>) {
        if !self.closing {
            self.log_closed(ENDED_WITHOUT_CLOSE, "connection lost");
            self.node.metrics.closes.inc(Close::Lost);
            self.outbox.abort();
        }
        let device = self.session.caller.device;
        if let Some(key) = self.attached.take() {
            self.node.hub.detach(device, key);
        }
        let (node, opening) = (self.node.clone(), std::mem::replace(&mut self.opening, Opening::NotBegun));
        self.node.runtime.spawn(async move {
            // Parting takes back what opening did, so it must not overtake it.
            match opening {
                Opening::NotBegun => return,
                Opening::UnderWay(finished) => {
                    // Fails where the node is being torn down, and then there is nothing to wait for.
                    let _ = finished.await;
                }
                Opening::Done => {}
            }
            node.service.part(device).await;
        });
    }
}

impl StreamHandler<Result<Incoming, ProtocolError>> for DeviceSocket {
    fn handle(&mut self, message: Result<Incoming, ProtocolError>, ctx: &mut Context<Self>) {
        if self.closing {
            return;
        }
        match (message, self.codec) {
            (Ok(Incoming::Text(frame)), Codec::Json) | (Ok(Incoming::Binary(frame)), Codec::MsgPack) => {
                self.frame(frame, ctx);
            }
            (Ok(Incoming::Ping(payload)), _) => self.outbox.pong(&payload),
            (Ok(Incoming::Pong), _) => {}
            (Ok(Incoming::Close(reason)), _) => {
                self.closing = true;
                let code = reason.as_ref().map_or(CLOSED_WITHOUT_CODE, |reason| reason.code.into());
                self.log_closed(code, "closed by the client");
                self.node.metrics.closes.inc(Close::Peer);
                self.outbox.echo_close(reason);
                ctx.stop();
            }
            (Ok(Incoming::Text(_) | Incoming::Binary(_)) | Err(_), _) => {
                self.close(CloseCode::ProtocolError, ctx);
            }
        }
    }

    fn finished(&mut self, ctx: &mut Context<Self>) {
        match self.wire.violation() {
            Some(Violation::FrameTooLarge) => self.close(CloseCode::FrameTooLarge, ctx),
            Some(Violation::Protocol) => self.close(CloseCode::ProtocolError, ctx),
            None => ctx.stop(),
        }
    }
}

impl Handler<Drain> for DeviceSocket {
    type Result = ();

    fn handle(&mut self, Drain { spread }: Drain, ctx: &mut Context<Self>) {
        let wait = spread.mul_f64(fraction(self.session.caller.session.0));
        let reconnect_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        if self.epoch.is_none() {
            return self.close(CloseCode::Draining, ctx);
        }
        if !self.closing && self.outbox.is_reading() {
            self.event(&Event::ServerDraining { reconnect_in_ms }, ctx);
            self.outbox.stop_reading();
            self.close_if_drained(ctx);
        }
    }
}

impl Handler<CutOff> for DeviceSocket {
    type Result = ();

    fn handle(&mut self, _: CutOff, ctx: &mut Context<Self>) {
        self.close(CloseCode::Draining, ctx);
    }
}
