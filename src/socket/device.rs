//! The actor of one connected device. The file follows the states of a connection in order.
//!
//! No handler waits: work runs on the runtime of store and bus, and its result comes back as a message. The `handle_*`
//! modules implement what an open connection does; their handlers return a close code if the connection has to close.

mod connection;
mod handle_mail;
mod handle_request;
mod handle_signal;
mod handle_timer;
mod key_notices;
mod open;
mod requests;
mod timer;

use std::{rc::Rc, sync::Arc, time::Duration};

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, StreamHandler, fut::wrap_future};
use actix_http::{
    Payload,
    ws::{CloseReason, ProtocolError},
};
use sealwire_protocol::{CloseCode, Codec, ProtocolFault};
use tokio::{sync::oneshot, time::Instant};

use super::{
    closing::Closing,
    flow::Flow,
    hub::HubMessage,
    message_reader::{Incoming, MessageReader},
    node::Node,
    outbox_body::{OutboxBody, limit_closing},
    request_rate::RequestRate,
    transport::{Holder, Violation, Wire},
};
use crate::{
    domain::{ClientNetwork, Refusal, Session, Signal},
    metrics::Close,
    service::OpenedConnection,
};
use connection::DeviceConnection;
use open::OpenState;

/// The code logged for a Close frame without a code (RFC 6455, 7.1.5).
const CLOSED_WITHOUT_CODE: u16 = 1005;
/// The code logged for an end without a Close frame (RFC 6455, 7.1.5).
const ENDED_WITHOUT_CLOSE: u16 = 1006;

/// The actor of one connection.
pub struct DeviceSocket {
    connection: DeviceConnection,
    state: SocketState,
}

/// The states of a connection, in order. It may start to close in any of them.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all connections are open; boxing the state would cost each an allocation"
)]
enum SocketState {
    /// Registered with the hub.
    Attached,
    /// `Service::open_connection` is running.
    Opening(OpeningState),
    /// The welcome has been sent: requests, signals and mail are handled.
    Open(OpenState),
    /// The outbox is closing, or the connection was lost. The transport finishes on its own.
    Closing(Disconnect),
}

/// The state of a connection that is being opened.
struct OpeningState {
    /// Resolves when `Service::open_connection` has finished, with false if it was not called.
    finished: oneshot::Receiver<bool>,
    /// Signals received before the welcome, except mail.
    early_signals: Vec<Signal>,
    /// The highest sequence number of mail signalled before the welcome. The mailbox is read at least up to it.
    newest_mail: i64,
}

/// When `Service::disconnect` reports the end of the connection to the store and the bus.
enum Disconnect {
    /// Never: the connection was not registered there.
    NotNeeded,
    /// Once `Service::open_connection` has finished, because the report undoes what that does. Never if it was not called.
    AfterOpening(oneshot::Receiver<bool>),
    /// At once.
    Now,
}

/// A connection that has been upgraded to a WebSocket.
pub struct UpgradedConnection {
    /// The session of the presented token.
    pub session: Session,
    /// The codec of the negotiated subprotocol.
    pub codec: Codec,
    /// Receives from the peer.
    pub payload: Payload,
    /// The transport below the WebSocket protocol.
    pub wire: Rc<Wire>,
    /// The client's address.
    pub client: std::net::IpAddr,
}

/// The result of a handler of an open connection: `Err` with the code to close it with.
type HandlerResult = Result<(), Closing>;

// Attached.

impl DeviceSocket {
    /// Starts the actor of an upgraded connection on this worker thread. Returns the body of the response: the frames for
    /// the peer.
    pub fn launch(node: Arc<Node>, upgraded: UpgradedConnection) -> OutboxBody {
        let UpgradedConnection { session, codec, payload, wire, client } = upgraded;
        let upgraded_at = Instant::now();
        let rate = RequestRate::new(node.requests_per_second, upgraded_at.into_std());
        let holder = Holder { network: ClientNetwork::from(client), user: session.caller.user };
        let memory = node.budget.account(holder);
        let flow = Flow::new(node.outbox_bytes, memory, rate);
        let body = OutboxBody::new(flow.clone(), codec);
        Self::create(|ctx| {
            // Attached before the session is checked again, so that a revocation is seen by the check or received as a
            // signal.
            let key = node.hub.attach(session.caller.device, ctx.address().recipient());
            ctx.add_stream(MessageReader::new(payload, flow.clone(), wire.clone()));
            let connection = DeviceConnection { node, session, codec, flow, wire, client, key, upgraded_at };
            Self { connection, state: SocketState::Attached }
        });
        body
    }
}

impl Actor for DeviceSocket {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        if self.connection.node.hub.is_draining() {
            // The drain may have started before this connection was attached.
            return self.close(CloseCode::Draining, ctx);
        }
        let (node, caller) = (self.connection.node.clone(), self.connection.session.caller);
        let (finish, finished) = oneshot::channel();
        self.state = SocketState::Opening(OpeningState { finished, early_signals: Vec::new(), newest_mail: 0 });
        // On this thread, because a batch does the work.
        let open = self.connection.node.runtime.spawn_local(async move {
            // Before the permit, so that a user with many operations holds none while it waits for itself.
            let _place = match node.service.enter_as_user(caller.user).await {
                Ok(place) => place,
                Err(refusal) => {
                    let _ = finish.send(false);
                    return Err(refusal);
                }
            };
            // If many clients connect at once, they wait here, where a connection uses little memory.
            let _permit = node.opening_permits.acquire().await;
            let opened = Box::pin(node.service.open_connection(caller)).await;
            // Fails if the actor has ended. Only a connection that closes while it is being opened waits for this.
            let _ = finish.send(true);
            opened
        });
        ctx.spawn(wrap_future(open).map(|opened, actor: &mut Self, ctx| {
            actor.opened(opened.unwrap_or(Err(Refusal::Internal)), ctx);
        }));
    }

    fn stopped(&mut self, _: &mut Context<Self>) {
        self.disconnect();
    }
}

// Opening.

impl OpeningState {
    fn hold_signal(&mut self, signal: Signal) {
        match signal {
            Signal::Mail { seq, .. } => self.newest_mail = self.newest_mail.max(seq),
            // Dropped: the device does not count as connected before the welcome.
            Signal::Ephemeral(_) => {}
            signal => self.early_signals.push(signal),
        }
    }

    /// The code to close with if the connection could not be opened.
    fn close_code(&self, refusal: &Refusal, is_session_expired: bool) -> CloseCode {
        match refusal {
            Refusal::SessionRevoked if is_session_expired => CloseCode::SessionExpired,
            Refusal::SessionRevoked if self.early_signals.contains(&Signal::AccountDeleted) => {
                CloseCode::AccountDeleted
            }
            Refusal::SessionRevoked if self.early_signals.contains(&Signal::DeviceRevoked) => CloseCode::DeviceRevoked,
            Refusal::SessionRevoked => CloseCode::SessionRevoked,
            _ => CloseCode::Unavailable,
        }
    }
}

impl DeviceSocket {
    fn opened(&mut self, opened: Result<OpenedConnection, Refusal>, ctx: &mut Context<Self>) {
        let SocketState::Opening(opening) = &mut self.state else { return };
        let now = self.connection.node.service.now();
        let OpenedConnection { epoch, keys, mailbox, approvals, push } = match opened {
            Ok(opened) => opened,
            Err(refusal) => {
                let code = opening.close_code(&refusal, self.connection.session.expires_at <= now);
                return self.close(code, ctx);
            }
        };
        let (mut early_signals, newest_mail) = (std::mem::take(&mut opening.early_signals), opening.newest_mail);
        let approvals: Vec<Signal> =
            approvals.into_iter().map(|request| Signal::ApprovalRequested(Box::new(request))).collect();
        // A request that was made while the connection was opened is in both lists.
        early_signals.retain(|signal| !approvals.contains(signal));
        self.connection.log_opened(epoch);
        self.connection.note_open(epoch);
        self.state = SocketState::Open(OpenState::new(&self.connection, epoch, &keys, mailbox, newest_mail));
        self.when_open(ctx, |open, connection, ctx| {
            open.welcome(connection, keys, mailbox, push, now)?;
            open.read_mail(connection, ctx)?;
            for signal in approvals.into_iter().chain(early_signals) {
                open.handle_signal(connection, signal, ctx)?;
            }
            connection.flow.gate.open();
            open.set_timer(connection, ctx);
            Ok(())
        });
    }
}

// Open.

impl DeviceSocket {
    /// Runs `act` if the connection is open, and closes the connection if `act` fails.
    fn when_open(
        &mut self,
        ctx: &mut Context<Self>,
        act: impl FnOnce(&mut OpenState, &mut DeviceConnection, &mut Context<Self>) -> HandlerResult,
    ) {
        let SocketState::Open(open) = &mut self.state else { return };
        if let Err(closing) = act(open, &mut self.connection, ctx) {
            self.close(closing, ctx);
        }
    }
}

impl StreamHandler<Result<Incoming, ProtocolError>> for DeviceSocket {
    fn handle(&mut self, message: Result<Incoming, ProtocolError>, ctx: &mut Context<Self>) {
        if matches!(self.state, SocketState::Closing(_)) {
            return;
        }
        match (message, self.connection.codec) {
            (Ok(Incoming::Text(frame)), Codec::Json) | (Ok(Incoming::Binary(frame)), Codec::MsgPack) => {
                self.when_open(ctx, |open, connection, ctx| open.handle_request(connection, frame, ctx));
            }
            (Ok(Incoming::Ping(payload)), _) => self.connection.flow.outbox.pong(&payload),
            (Ok(Incoming::Pong), _) => {}
            (Ok(Incoming::Close(reason)), _) => self.echo_close(reason, ctx),
            (Ok(Incoming::Text(_)), _) => self.close(ProtocolFault::TextFrame, ctx),
            (Ok(Incoming::Binary(_)), _) => self.close(ProtocolFault::BinaryFrame, ctx),
            (Err(error), _) => self.close(fault(&error), ctx),
        }
    }

    fn finished(&mut self, ctx: &mut Context<Self>) {
        if let Some(cutoff) = self.connection.wire.cutoff() {
            return self.close(cutoff, ctx);
        }
        match self.connection.wire.violation() {
            Some(Violation::FrameTooLarge) => self.close(CloseCode::FrameTooLarge, ctx),
            Some(Violation::Protocol(fault)) => self.close(fault, ctx),
            None => ctx.stop(),
        }
    }
}

/// Returns the rule that the peer broke, from an error of the WebSocket library. The frame guard has already checked the
/// framing, so the only error to expect is text that is not UTF-8.
fn fault(error: &ProtocolError) -> ProtocolFault {
    match error {
        ProtocolError::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => ProtocolFault::NotUtf8,
        _ => ProtocolFault::Framing,
    }
}

impl Handler<HubMessage> for DeviceSocket {
    type Result = ();

    fn handle(&mut self, message: HubMessage, ctx: &mut Context<Self>) {
        match message {
            HubMessage::DeliverSignal(signal) => self.handle_signal(signal, ctx),
            HubMessage::Drain { spread } => self.drain(spread, ctx),
            HubMessage::CutOff => self.close(CloseCode::Draining, ctx),
        }
    }
}

impl DeviceSocket {
    fn handle_signal(&mut self, signal: Signal, ctx: &mut Context<Self>) {
        match &mut self.state {
            SocketState::Opening(opening) => opening.hold_signal(signal),
            SocketState::Open(_) => {
                self.when_open(ctx, |open, connection, ctx| open.handle_signal(connection, signal, ctx));
            }
            SocketState::Attached | SocketState::Closing(_) => {}
        }
    }

    fn drain(&mut self, spread: Duration, ctx: &mut Context<Self>) {
        match &self.state {
            SocketState::Open(_) => self.when_open(ctx, |open, connection, _| open.drain(connection, spread)),
            SocketState::Attached | SocketState::Opening(_) | SocketState::Closing(_) => {
                self.close(CloseCode::Draining, ctx);
            }
        }
    }
}

// Closing.

impl DeviceSocket {
    /// Closes with the code and reason of `closing`: the transport sends the queued frames and the Close frame, and the
    /// actor stops.
    fn close(&mut self, closing: impl Into<Closing>, ctx: &mut Context<Self>) {
        let closing = closing.into();
        if self.begin_closing(closing.code.number(), closing.reason, Close::Code(closing.code)) {
            self.connection.flow.outbox.close(closing);
            limit_closing(self.connection.wire.clone());
            ctx.stop();
        }
    }

    /// Closes by answering the client's Close frame.
    fn echo_close(&mut self, reason: Option<CloseReason>, ctx: &mut Context<Self>) {
        let code = reason.as_ref().map_or(CLOSED_WITHOUT_CODE, |reason| reason.code.into());
        if self.begin_closing(code, "closed by the client", Close::Peer) {
            self.connection.flow.outbox.echo_close(reason);
            limit_closing(self.connection.wire.clone());
            ctx.stop();
        }
    }

    /// Enters the closing state, and logs the end of the connection. Returns false if the connection is already
    /// closing.
    fn begin_closing(&mut self, code: u16, reason: &'static str, close: Close) -> bool {
        let (epoch, disconnect) = match std::mem::replace(&mut self.state, SocketState::Closing(Disconnect::NotNeeded))
        {
            SocketState::Attached => (None, Disconnect::NotNeeded),
            SocketState::Opening(opening) => (None, Disconnect::AfterOpening(opening.finished)),
            SocketState::Open(open) => (Some(open.epoch()), Disconnect::Now),
            closing @ SocketState::Closing(_) => {
                self.state = closing;
                return false;
            }
        };
        self.state = SocketState::Closing(disconnect);
        self.connection.wire.note_closing();
        self.connection.log_closed(epoch, code, reason);
        self.connection.node.metrics.closes.inc(close);
        true
    }

    /// Unregisters the connection from the hub, and from the store and the bus if opening it had started.
    fn disconnect(&mut self) {
        if self.begin_closing(ENDED_WITHOUT_CLOSE, "connection lost", Close::Lost) {
            self.connection.wire.abort();
        }
        let (node, device) = (self.connection.node.clone(), self.connection.device());
        node.hub.detach(device, self.connection.key);
        let finished = match std::mem::replace(&mut self.state, SocketState::Closing(Disconnect::NotNeeded)) {
            SocketState::Closing(Disconnect::AfterOpening(finished)) => Some(finished),
            SocketState::Closing(Disconnect::Now) => None,
            SocketState::Closing(Disconnect::NotNeeded)
            | SocketState::Attached
            | SocketState::Opening(_)
            | SocketState::Open(_) => return,
        };
        let runtime = node.runtime.clone();
        runtime.spawn(async move {
            // The receiver fails if the task was dropped with its runtime; then there is nothing to wait for.
            if let Some(finished) = finished
                && finished.await == Ok(false)
            {
                return;
            }
            node.service.disconnect(device).await;
        });
    }
}
