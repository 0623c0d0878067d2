//! The actor of one connected device: the life of a connection, from top to bottom.
//!
//! No handler waits for anything: work runs on the runtime of store and bus and returns as a message. What an open
//! connection does stands in the `handle_*` files; it returns a close code if the connection is to end.

mod connection;
mod handle_mail;
mod handle_request;
mod handle_signal;
mod handle_timer;
mod key_notices;
mod open;
mod requests;
mod timers;

use std::{rc::Rc, sync::Arc, time::Duration};

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, StreamHandler, fut::wrap_future};
use actix_ws::{CloseReason, MessageStream, ProtocolError, Session as WsSession};
use sealwire_protocol::{CloseCode, Codec};
use tokio::{sync::oneshot, time::Instant};

use super::{
    flow::Flow,
    hub::HubMessage,
    message_reader::{Incoming, MessageReader},
    node::Node,
    request_rate::RequestRate,
    transport::{Violation, Wire},
    writer::Writer,
};
use crate::{
    domain::{Refusal, Session, Signal},
    metrics::Close,
    service::Opened,
};
use connection::Connection;
use open::Open;

/// What the log says of a Close frame without a code, and of an end without a Close frame (RFC 6455, 7.1.5).
const CLOSED_WITHOUT_CODE: u16 = 1005;
const ENDED_WITHOUT_CLOSE: u16 = 1006;

/// The actor.
pub struct DeviceSocket {
    connection: Connection,
    state: State,
}

/// The states of a connection, in their order. It may close in each of them.
#[expect(clippy::large_enum_variant, reason = "nearly all connections are open; a box would cost each an allocation")]
enum State {
    /// The hub knows the connection.
    Attached,
    /// The use case that opens it is under way.
    Opening(Opening),
    /// The welcome has been sent: requests, signals and mail are handled.
    Open(Open),
    /// The outbox has its ending, or the connection is lost. The writer does the rest.
    Closing(Disconnect),
}

struct Opening {
    /// Resolves when the use case has finished.
    finished: oneshot::Receiver<()>,
    /// Signals that came before the welcome.
    early: Vec<Signal>,
    /// The newest envelope among them. The mailbox is read after the welcome, up to here at least.
    newest_mail: i64,
}

/// When the end of the connection is reported to the store and the bus.
enum Disconnect {
    /// Never: they do not know the connection.
    NotNeeded,
    /// Once the use case that opens the connection has finished, since the report takes back what that does.
    After(oneshot::Receiver<()>),
    /// At once.
    Now,
}

/// What an upgraded connection consists of.
pub struct Upgraded {
    /// The session of the presented token.
    pub session: Session,
    /// The codec of the chosen subprotocol.
    pub codec: Codec,
    /// Towards the peer.
    pub ws: WsSession,
    /// From the peer.
    pub messages: MessageStream,
    /// Below both.
    pub wire: Rc<Wire>,
    /// The client's address.
    pub client: std::net::IpAddr,
}

/// What a handler of an open connection returns: the code with which to close it, if it is to end.
type Handled = Result<(), CloseCode>;

// Attached.

impl DeviceSocket {
    /// Starts the actor of an upgraded connection, with its reader and its writer, on this worker.
    pub fn launch(node: Arc<Node>, upgraded: Upgraded) {
        let Upgraded { session, codec, ws, messages, wire, client } = upgraded;
        let began = Instant::now();
        let rate = RequestRate::new(node.requests_per_second, began.into_std());
        let flow = Flow::new(node.outbox_bytes, node.budget.clone(), rate);
        actix_rt::spawn(Writer::new(flow.clone(), ws, wire.clone(), codec));
        Self::create(|ctx| {
            // Attached before the session is checked again: a revocation is seen by the check or arrives as a signal.
            let key = node.hub.attach(session.caller.device, ctx.address().recipient());
            ctx.add_stream(MessageReader::new(messages, flow.clone()));
            let connection = Connection { node, session, codec, flow, wire, client, key, began };
            Self { connection, state: State::Attached }
        });
    }
}

impl Actor for DeviceSocket {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        if self.connection.node.hub.is_draining() {
            // The drain may have passed before this connection was attached.
            return self.close(CloseCode::Draining, ctx);
        }
        let (node, caller) = (self.connection.node.clone(), self.connection.session.caller);
        let (finish, finished) = oneshot::channel();
        self.state = State::Opening(Opening { finished, early: Vec::new(), newest_mail: 0 });
        let open = self.connection.node.runtime.spawn(async move {
            // A crowd that connects at once waits here, in little memory, rather than inside the use case.
            let _permit = node.opening.acquire().await;
            let opened = Box::pin(node.service.open_connection(caller)).await;
            // Nobody waits for this unless the connection has ended meanwhile.
            let _ = finish.send(());
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

impl Opening {
    fn keep(&mut self, signal: Signal) {
        match signal {
            Signal::Mail { seq, .. } => self.newest_mail = self.newest_mail.max(seq),
            // The device is not connected yet.
            Signal::Ephemeral(_) => {}
            signal => self.early.push(signal),
        }
    }

    /// How a connection closes that is not opened.
    fn close_code(&self, refusal: &Refusal, session_is_over: bool) -> CloseCode {
        match refusal {
            Refusal::SessionRevoked if session_is_over => CloseCode::SessionExpired,
            Refusal::SessionRevoked if self.early.contains(&Signal::AccountDeleted) => CloseCode::AccountDeleted,
            Refusal::SessionRevoked if self.early.contains(&Signal::DeviceRevoked) => CloseCode::DeviceRevoked,
            Refusal::SessionRevoked => CloseCode::SessionRevoked,
            _ => CloseCode::Unavailable,
        }
    }
}

impl DeviceSocket {
    fn opened(&mut self, opened: Result<Opened, Refusal>, ctx: &mut Context<Self>) {
        let State::Opening(opening) = &mut self.state else { return };
        let now = self.connection.node.service.now();
        let Opened { epoch, keys, mailbox } = match opened {
            Ok(opened) => opened,
            Err(refusal) => {
                let code = opening.close_code(&refusal, self.connection.session.expires_at <= now);
                return self.close(code, ctx);
            }
        };
        let (early, newest_mail) = (std::mem::take(&mut opening.early), opening.newest_mail);
        self.connection.log_opened(epoch);
        self.connection.note_open(epoch);
        self.state = State::Open(Open::new(&self.connection, epoch, &keys, mailbox, newest_mail));
        self.when_open(ctx, |open, connection, ctx| {
            open.welcome(connection, keys, mailbox, now)?;
            open.read_mail(connection, ctx)?;
            for signal in early {
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
    /// Has an open connection do something, and closes it if that ends it.
    fn when_open(
        &mut self,
        ctx: &mut Context<Self>,
        act: impl FnOnce(&mut Open, &mut Connection, &mut Context<Self>) -> Handled,
    ) {
        let State::Open(open) = &mut self.state else { return };
        if let Err(code) = act(open, &mut self.connection, ctx) {
            self.close(code, ctx);
        }
    }
}

impl StreamHandler<Result<Incoming, ProtocolError>> for DeviceSocket {
    fn handle(&mut self, message: Result<Incoming, ProtocolError>, ctx: &mut Context<Self>) {
        if matches!(self.state, State::Closing(_)) {
            return;
        }
        match (message, self.connection.codec) {
            (Ok(Incoming::Text(frame)), Codec::Json) | (Ok(Incoming::Binary(frame)), Codec::MsgPack) => {
                self.when_open(ctx, |open, connection, ctx| open.handle_request(connection, frame, ctx));
            }
            (Ok(Incoming::Ping(payload)), _) => self.connection.flow.outbox.pong(&payload),
            (Ok(Incoming::Pong), _) => {}
            (Ok(Incoming::Close(reason)), _) => self.echo_close(reason, ctx),
            (Ok(Incoming::Text(_) | Incoming::Binary(_)) | Err(_), _) => self.close(CloseCode::ProtocolError, ctx),
        }
    }

    fn finished(&mut self, ctx: &mut Context<Self>) {
        match self.connection.wire.violation() {
            Some(Violation::FrameTooLarge) => self.close(CloseCode::FrameTooLarge, ctx),
            Some(Violation::Protocol) => self.close(CloseCode::ProtocolError, ctx),
            None => ctx.stop(),
        }
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
            State::Opening(opening) => opening.keep(signal),
            State::Open(_) => {
                self.when_open(ctx, |open, connection, ctx| open.handle_signal(connection, signal, ctx));
            }
            State::Attached | State::Closing(_) => {}
        }
    }

    fn drain(&mut self, spread: Duration, ctx: &mut Context<Self>) {
        match &self.state {
            State::Open(_) => self.when_open(ctx, |open, connection, _| open.drain(connection, spread)),
            State::Attached | State::Opening(_) | State::Closing(_) => self.close(CloseCode::Draining, ctx),
        }
    }
}

// Closing.

impl DeviceSocket {
    /// Sends what is queued, then the Close frame. The writer sees to it; the actor is done.
    fn close(&mut self, code: CloseCode, ctx: &mut Context<Self>) {
        if self.begin_closing(code.number(), code.reason(), Close::Code(code)) {
            self.connection.flow.outbox.close(code);
            ctx.stop();
        }
    }

    /// Answers the client's Close frame.
    fn echo_close(&mut self, reason: Option<CloseReason>, ctx: &mut Context<Self>) {
        let code = reason.as_ref().map_or(CLOSED_WITHOUT_CODE, |reason| reason.code.into());
        if self.begin_closing(code, "closed by the client", Close::Peer) {
            self.connection.flow.outbox.echo_close(reason);
            ctx.stop();
        }
    }

    /// Enters the last state, and writes the one line that the log has of the end of every socket. Returns false if the
    /// connection is closing already.
    fn begin_closing(&mut self, code: u16, reason: &'static str, close: Close) -> bool {
        let (epoch, disconnect) = match std::mem::replace(&mut self.state, State::Closing(Disconnect::NotNeeded)) {
            State::Attached => (None, Disconnect::NotNeeded),
            State::Opening(opening) => (None, Disconnect::After(opening.finished)),
            State::Open(open) => (Some(open.epoch()), Disconnect::Now),
            closing @ State::Closing(_) => {
                self.state = closing;
                return false;
            }
        };
        self.state = State::Closing(disconnect);
        self.connection.log_closed(epoch, code, reason);
        self.connection.node.metrics.closes.inc(close);
        true
    }

    /// Takes back what attaching and opening did.
    fn disconnect(&mut self) {
        if self.begin_closing(ENDED_WITHOUT_CLOSE, "connection lost", Close::Lost) {
            self.connection.flow.outbox.abort();
        }
        let (node, device) = (self.connection.node.clone(), self.connection.device());
        node.hub.detach(device, self.connection.key);
        let finished = match std::mem::replace(&mut self.state, State::Closing(Disconnect::NotNeeded)) {
            State::Closing(Disconnect::After(finished)) => Some(finished),
            State::Closing(Disconnect::Now) => None,
            State::Closing(Disconnect::NotNeeded) | State::Attached | State::Opening(_) | State::Open(_) => return,
        };
        let runtime = node.runtime.clone();
        runtime.spawn(async move {
            if let Some(finished) = finished {
                // Fails if the node is being torn down, and then there is nothing to wait for.
                let _ = finished.await;
            }
            node.service.disconnect(device).await;
        });
    }
}
