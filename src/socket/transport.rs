//! Serves HTTP with actix-web, but runs upgraded connections without its buffers.
//!
//! actix-http's dispatcher keeps its buffers, 16 KiB, for as long as a connection lives; most of ours
//! are sockets that say little. So the listener is built by hand: an upgrade request goes to the
//! very same actix-web application with a payload stream of ours, and once that has answered 101 the
//! socket leaves the dispatcher for a pump, a small task that owns no buffer while nothing moves.
//!
//! The pump is also where a peer's demands on memory are met: oversized messages are refused by their
//! header ([`Violation`]), large ones wait for a node-wide [`Budget`], and nothing is read that the
//! handler has not asked for.
//!
//! What a handler has to know:
//! - It finds the connection's [`Wire`] in the request's extensions. There is none when the node holds
//!   as many connections as it may, or the request is no WebSocket handshake: refuse the upgrade.
//! - Do not keep the `HttpRequest`: its head is 6 KiB, and its URI and header values keep the
//!   dispatcher's 8 KiB read buffer alive.
//! - actix-server counts a connection, and waits for it when it stops, only until its upgrade. The
//!   `connections` budget of [`Tuning`] is the count to go by then.

use std::{
    future::poll_fn,
    io,
    net::{SocketAddr, TcpListener},
    pin::pin,
    rc::Rc,
    time::Duration,
};

use actix_codec::{Encoder, Framed, FramedParts};
use actix_http::{
    BoxedPayloadStream, ConnectionType, HttpMessage, HttpService, Method, Payload, Protocol, Request, Response,
    StatusCode,
    body::{BodySize, BoxBody, MessageBody},
    h1::{self, Codec},
};
use actix_server::ServerBuilder;
use actix_service::{IntoServiceFactory, Service, ServiceFactory, apply_fn_factory, map_config};
use actix_web::{
    Error,
    dev::{AppConfig, ServiceResponse},
};
use bytes::Bytes;
use futures_util::future::Either;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

pub use self::{admission::Admission, frame_guard::Violation, wire::Wire};
use self::{
    deadline_stream::DeadlineStream,
    linger::Linger,
    pump::{Pump, PumpParts, body_error},
    request_activity::tracked,
    scratch::Scratch,
    wire::Inbound,
};
pub use super::budget::{Budget, Reservation};

mod admission;
mod deadline_stream;
mod frame_decoder;
mod frame_guard;
mod linger;
mod pump;
mod request_activity;
mod scratch;
mod wire;

/// How long an ordinary connection is kept for another request.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long an ordinary connection with unread request bytes lingers after its last response.
const DISCONNECT_TIME: Duration = Duration::from_secs(1);
/// How long the answer to an upgrade request may take to be written.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Connections that the kernel queues until they are accepted: a reconnecting crowd comes at once.
const BACKLOG: u32 = 1024;

/// What bounds the upgraded connections of a node. Clones share the budgets.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Largest inbound message in bytes, its frames counted together.
    pub max_message: u64,
    /// Bytes of large inbound messages that may be on their way to their handlers. A limit below
    /// `max_message` lets one such message in at a time.
    pub inbound: Budget,
    /// Decides which connections are accepted.
    pub admission: Admission,
    /// Upgraded connections, those that are closing included.
    pub connections: Budget,
    /// How long a write may stand still once the reader, whose business that is otherwise, is gone.
    pub stall: Duration,
}

/// Bytes that a message with `payload` bytes takes as a server's frame, as [`Wire::written`] counts.
#[must_use]
pub fn frame_bytes(payload: usize) -> u64 {
    let header = match payload {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    };
    header + payload as u64
}

/// Binds a listening socket, with room in its queue for a crowd of clients.
///
/// # Errors
/// Those of the operating system: an address in use, a port not permitted.
///
/// # Panics
/// Outside of a Tokio runtime.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Adds the application that `app` makes to a server, on `listener`.
///
/// This takes the place of `HttpServer`. `app` is called twice on each worker: once for ordinary
/// requests, once for upgrades.
///
/// # Errors
/// When the listener cannot be made non-blocking.
pub fn listen<F, I, S, B>(
    server: ServerBuilder,
    listener: TcpListener,
    app: F,
    tuning: Tuning,
) -> io::Result<ServerBuilder>
where
    F: Fn() -> I + Clone + Send + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig, Response = ServiceResponse<B>, Error = Error, InitError = ()>
        + 'static,
    S::Service: 'static,
    <S::Service as Service<Request>>::Future: 'static,
    B: MessageBody + 'static,
{
    let draining = server.graceful_shutdown_signal();
    // Ours is the count to go by: at its own actix-server would stop accepting, and let everybody wait.
    let server = server.max_concurrent_connections(tuning.admission.beyond_all());
    server.listen("http", listener, move || {
        let draining = draining.clone();
        let (admission, scratch) = (tuning.admission.clone(), Scratch::new());
        let service = || map_config(app(), |()| AppConfig::default());
        let http = HttpService::build()
            .keep_alive(KEEP_ALIVE)
            // Bounded by the stream, which can say so in our terms.
            .client_request_timeout(Duration::ZERO)
            .client_disconnect_timeout(DISCONNECT_TIME)
            .h1_allow_half_closed(false)
            .graceful_shutdown_signal(move || {
                let draining = draining.clone();
                async move { draining.notified().await }
            })
            .upgrade(upgrade_service(service(), tuning.clone()))
            .on_connect_ext(|connection: &DeadlineStream, data| {
                data.insert(connection.activity());
            })
            .finish(tracked(service()));
        apply_fn_factory(http, move |stream: TcpStream, http| {
            let peer = stream.peer_addr().ok();
            // Without it, small answers would wait for the peer's acknowledgements; it works all the same.
            let _ = stream.set_nodelay(true);
            match admission.admit(peer) {
                Ok(admitted) => {
                    let stream = DeadlineStream::new(stream, admitted, scratch.clone());
                    Either::Left(http.call((stream, Protocol::Http1, peer)))
                }
                Err(refusal) => Either::Right(admission.clone().refuse(stream, refusal, scratch.clone())),
            }
        })
    })
}

/// Lets `app` answer upgrade requests, and takes over the connections that it accepts.
fn upgrade_service<S, B>(
    app: S,
    tuning: Tuning,
) -> impl ServiceFactory<(Request, Framed<DeadlineStream, Codec>), Config = (), Response = (), Error = Error, InitError = ()>
where
    S: ServiceFactory<Request, Config = (), Response = ServiceResponse<B>, Error = Error, InitError = ()> + 'static,
    <S::Service as Service<Request>>::Future: 'static,
    B: MessageBody + 'static,
{
    let scratch = Scratch::new();
    apply_fn_factory(app, move |(mut request, framed): (Request, Framed<_, _>), app: &S::Service| {
        let upgrade = Upgrade::offer(&mut request, &tuning);
        let answer = app.call(request);
        let (tuning, scratch) = (tuning.clone(), scratch.clone());
        // Boxed, so that the dispatcher of every ordinary connection need not have room for it.
        Box::pin(async move {
            let (response, body) = match answer.await {
                Ok(response) => Response::from(response).map_into_boxed_body(),
                Err(error) => Response::from(error),
            }
            .into_parts();
            let connection = framed.into_parts();
            let ended = match upgrade {
                Some(upgrade) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    upgrade.accept(connection, response, body, &tuning, scratch).await
                }
                refused => {
                    // The slot is for connections that were let in; actix-server counts this one.
                    drop(refused);
                    refuse_upgrade(connection, response, body, &scratch).await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection lost during its upgrade");
            }
            Ok(())
        })
    })
}

/// An upgrade that the application may accept.
struct Upgrade {
    wire: Rc<Wire>,
    slot: Reservation,
}

impl Upgrade {
    /// Equips a handshake with a wire and a payload stream, if the node has room for the connection.
    fn offer(request: &mut Request, tuning: &Tuning) -> Option<Self> {
        // A handler of another method may read a body, and would wait for ours for ever.
        if request.method() != Method::GET {
            return None;
        }
        let slot = tuning.connections.try_reserve(1)?;
        let wire = Wire::new();
        request.extensions_mut().insert(Rc::clone(&wire));
        let payload: BoxedPayloadStream = Box::pin(Inbound(Rc::clone(&wire)));
        *request.payload() = Payload::Stream { payload };
        Some(Self { wire, slot })
    }

    /// Writes the 101 and leaves the connection to a task of its own, so that the caller's future,
    /// the dispatcher's, ends and frees its buffers.
    async fn accept(
        self,
        connection: FramedParts<DeadlineStream, Codec>,
        response: Response<()>,
        body: BoxBody,
        tuning: &Tuning,
        scratch: Scratch,
    ) -> io::Result<()> {
        let FramedParts { io, mut codec, read_buf, mut write_buf, .. } = connection;
        // It counts as a socket from now on.
        let mut stream = io.into_inner();
        codec.encode(h1::Message::Item((response, body.size())), &mut write_buf)?;
        timeout(ANSWER_TIME, stream.write_all(&write_buf)).await??;
        actix_rt::spawn(Pump::new(PumpParts {
            stream,
            scratch,
            wire: self.wire,
            // A copy: the buffer itself is the dispatcher's.
            early: Bytes::copy_from_slice(&read_buf),
            body,
            slot: self.slot,
            max_message: tuning.max_message,
            budget: tuning.inbound.clone(),
            stall_limit: tuning.stall,
        }));
        Ok(())
    }
}

/// Writes any other answer to an upgrade request, and closes: what the client sent behind the request is not HTTP.
async fn refuse_upgrade(
    connection: FramedParts<DeadlineStream, Codec>,
    mut response: Response<()>,
    body: BoxBody,
    scratch: &Scratch,
) -> io::Result<()> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(io::Error::other("an upgrade was accepted that had not been offered"));
    }
    let stream = timeout(ANSWER_TIME, async move {
        let FramedParts { io: mut stream, mut codec, mut write_buf, .. } = connection;
        let head = response.head_mut();
        head.set_connection_type(ConnectionType::Close);
        // The codec ends the body of such a response with the connection, but would announce chunks.
        head.no_chunking(body.size() == BodySize::Stream);
        codec.encode(h1::Message::Item((response, body.size())), &mut write_buf)?;
        let mut body = pin!(body);
        while let Some(chunk) = poll_fn(|cx| body.as_mut().poll_next(cx)).await {
            codec.encode(h1::Message::Chunk(Some(chunk.map_err(body_error)?)), &mut write_buf)?;
            stream.write_all_buf(&mut write_buf).await?;
        }
        codec.encode(h1::Message::Chunk(None), &mut write_buf)?;
        stream.write_all_buf(&mut write_buf).await?;
        io::Result::Ok(stream)
    })
    .await??;
    // Its places in the counts are given up here: what lingers is bounded in time.
    let (mut stream, mut linger) = (stream.into_inner(), Linger::default());
    poll_fn(|cx| linger.poll(&mut stream, scratch, cx)).await;
    Ok(())
}
