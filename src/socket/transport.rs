//! Serves HTTP with actix-web, but moves upgraded connections out of actix-http so that idle ones need little memory.
//!
//! actix-http's dispatcher keeps 16 KiB of buffers for as long as its connection lives, and most of our connections are
//! WebSocket connections that are idle most of the time. So this module builds the listener itself. An upgrade request
//! goes to the same actix-web application, with a payload stream of ours. When the application has answered 101, the
//! connection moves from the dispatcher to a pump: a small task that holds no buffer while no data moves.
//!
//! The pump also limits how much memory a peer can use. It refuses an oversized message when it has read its header
//! ([`Violation`]), reserves memory for large messages from a node-wide [`SharedBudget`] as they arrive, ends messages
//! and connections that make no progress ([`Cutoff`]), and reads at most one chunk ahead of the handler.
//!
//! Rules for handlers:
//! - The connection's [`Wire`] is in the request's extensions. If it is missing, refuse the upgrade: the request is not a
//!   WebSocket handshake.
//! - Take the connection's place with [`Wire::take_seat`] before you accept the upgrade, and refuse it if there is none.
//! - Do not keep the `HttpRequest`. Its head takes 6 KiB, and its URI and headers keep the dispatcher's 8 KiB read
//!   buffer allocated.
//! - actix-server counts a connection, and waits for it on shutdown, only until its upgrade. To count upgraded
//!   connections, use the `connections` of [`Tuning`].

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

pub use self::{
    connection_limiter::ConnectionLimiter,
    frame_guard::Violation,
    wire::{Cutoff, Wire},
};
use self::{
    deadline_stream::DeadlineStream,
    linger::Linger,
    pump::{Pump, PumpParts, body_error},
    request_activity::track_requests,
    scratch::Scratch,
    wire::Inbound,
};
pub use super::{
    seats::Seats,
    shares::{Holder, SharedBudget},
};

mod connection_limiter;
mod deadline_stream;
mod frame_decoder;
mod frame_guard;
mod inbound;
mod linger;
mod pump;
mod request_activity;
mod scratch;
mod wire;

/// How long an HTTP connection is kept open for another request.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long an HTTP connection with unread request bytes stays open after its last response.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connection that was refused after its upgrade stays open for the peer to answer the Close frame.
const REFUSAL_LINGER: Duration = Duration::from_secs(1);
/// How long writing the response to an upgrade request may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Size of the kernel's send buffer of each connection, in bytes; Linux doubles it for its own needs. Bounded, so that what
/// the kernel takes shows whether the peer reads: it would otherwise grow to some megabytes.
const SEND_BUFFER: u32 = 128 * 1024;
/// Number of connections that the kernel queues until they are accepted. Many clients may reconnect at the same time.
const BACKLOG: u32 = 1024;

/// The limits on the connections of a node. Clones share the budgets.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Maximum size of an inbound message in bytes: the payloads of all its frames together.
    pub max_message: u64,
    /// Budget in bytes for large inbound messages that the handlers have not read yet.
    pub inbound: SharedBudget,
    /// Limits the connections that have not upgraded.
    pub limiter: ConnectionLimiter,
    /// Places for upgraded connections, including closing ones.
    pub connections: Seats,
    /// How long a write may make no progress after the payload stream was dropped. Before that, the
    /// application detects stalled writes.
    pub stall: Duration,
}

/// Returns the size in bytes of an unmasked frame with `payload` bytes of payload (RFC 6455, section 5.2): what a
/// message adds to [`Wire::written`].
#[must_use]
pub fn frame_bytes(payload: usize) -> u64 {
    let header = match payload {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    };
    header + payload as u64
}

/// Returns a socket that listens on `address`.
///
/// # Errors
/// If the operating system refuses, for example because the address is in use or the port is not permitted.
///
/// # Panics
/// If it is called outside of a Tokio runtime.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit it.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Serves an application on `listener`, and returns the server with this service added. Replaces actix-web's
/// `HttpServer`.
///
/// `app` builds the application. It is called twice on each worker: once for ordinary requests and once for upgrades.
///
/// # Errors
/// If the listener cannot be made non-blocking.
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
    // At its own limit, actix-server would stop accepting and let all clients wait. Our limiter refuses connections
    // instead.
    let server = server.max_concurrent_connections(tuning.limiter.unreachable_limit());
    server.listen("http", listener, move || {
        let draining = draining.clone();
        let (limiter, scratch) = (tuning.limiter.clone(), Scratch::new());
        let service = || map_config(app(), |()| AppConfig::default());
        let http = HttpService::build()
            .keep_alive(KEEP_ALIVE)
            // Off: `DeadlineStream` has its own timeout, and responds with an error of the protocol.
            .client_request_timeout(Duration::ZERO)
            .client_disconnect_timeout(DISCONNECT_TIMEOUT)
            .h1_allow_half_closed(false)
            .graceful_shutdown_signal(move || {
                let draining = draining.clone();
                async move { draining.notified().await }
            })
            .upgrade(upgrade_service(service(), tuning.clone()))
            .on_connect_ext(|connection: &DeadlineStream, data| {
                data.insert(connection.activity());
            })
            .finish(track_requests(service()));
        apply_fn_factory(http, move |stream: TcpStream, http| {
            let peer = stream.peer_addr().ok();
            // Otherwise small responses would wait for TCP acknowledgements. If it fails, they are only slower.
            let _ = stream.set_nodelay(true);
            match limiter.try_accept(peer) {
                Ok(slots) => {
                    let stream = DeadlineStream::new(stream, slots, scratch.clone());
                    Either::Left(http.call((stream, Protocol::Http1, peer)))
                }
                Err(refusal) => Either::Right(limiter.clone().refuse(stream, refusal, scratch.clone())),
            }
        })
    })
}

/// Lets `app` respond to upgrade requests, and moves each connection that it accepts to a pump.
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
    let tuning = Rc::new(tuning);
    apply_fn_factory(app, move |(mut request, framed): (Request, Framed<_, _>), app: &S::Service| {
        let upgrade = Upgrade::offer(&mut request, &tuning);
        let response = app.call(request);
        let (tuning, scratch) = (tuning.clone(), scratch.clone());
        // Boxed, because otherwise it would enlarge the dispatcher of every HTTP connection.
        Box::pin(async move {
            let (response, body) = match response.await {
                Ok(response) => Response::from(response).map_into_boxed_body(),
                Err(error) => Response::from(error),
            }
            .into_parts();
            let connection = framed.into_parts();
            let ended = match upgrade {
                Some(upgrade) if response.status() == StatusCode::SWITCHING_PROTOCOLS && !is_refusal(&response) => {
                    upgrade.accept(connection, response, body, tuning, scratch).await
                }
                refused => {
                    // Frees the place, which is for upgraded connections only. This one still counts as HTTP.
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

/// Marks a 101 response that refuses an upgrade: its body is WebSocket frames with the reason, and the connection closes
/// after them.
pub struct RefusedAfterUpgrade;

fn is_refusal(response: &Response<()>) -> bool {
    response.extensions().get::<RefusedAfterUpgrade>().is_some()
}

/// An upgrade that the application has yet to accept or refuse. The application starts a connection before the 101 is
/// written. If nothing comes of it, dropping this ends the connection.
struct Upgrade {
    /// `None` once a pump has taken it over.
    wire: Option<Rc<Wire>>,
}

impl Drop for Upgrade {
    fn drop(&mut self) {
        if let Some(wire) = &self.wire {
            wire.abort();
        }
    }
}

impl Upgrade {
    /// Adds a wire and a payload stream to the request. Returns `None`, without changing it, if it is not a `GET` request.
    fn offer(request: &mut Request, tuning: &Tuning) -> Option<Self> {
        // A handler of another method might read the body, and would wait for our payload stream forever.
        if request.method() != Method::GET {
            return None;
        }
        let wire = Wire::new(tuning.connections.clone());
        request.extensions_mut().insert(Rc::clone(&wire));
        let payload: BoxedPayloadStream = Box::pin(Inbound(Rc::clone(&wire)));
        *request.payload() = Payload::Stream { payload };
        Some(Self { wire: Some(wire) })
    }

    /// Writes the 101 response and spawns a pump for the connection. The caller's future, which is the dispatcher, can
    /// then end and free its buffers.
    async fn accept(
        mut self,
        connection: FramedParts<DeadlineStream, Codec>,
        response: Response<()>,
        body: BoxBody,
        tuning: Rc<Tuning>,
        scratch: Scratch,
    ) -> io::Result<()> {
        if !self.wire.as_ref().is_some_and(|wire| wire.has_seat()) {
            return Err(io::Error::other("the application accepted an upgrade without a place for it"));
        }
        let FramedParts { io, mut codec, read_buf, mut write_buf, .. } = connection;
        // The slots are freed: the connection counts as upgraded from now on.
        let (mut stream, _) = io.into_parts();
        codec.encode(h1::Message::Item((response, body.size())), &mut write_buf)?;
        timeout(RESPONSE_TIMEOUT, stream.write_all(&write_buf)).await??;
        let Some(wire) = self.wire.take() else { return Ok(()) };
        actix_rt::spawn(Pump::new(PumpParts {
            stream,
            scratch,
            wire,
            // A copy, because a slice would keep the dispatcher's buffer allocated.
            early: Bytes::copy_from_slice(&read_buf),
            body,
            tuning,
        }));
        Ok(())
    }
}

/// Writes a response other than 101 to an upgrade request. Then closes the connection: the client may already have sent
/// WebSocket frames, which are not HTTP.
async fn refuse_upgrade(
    connection: FramedParts<DeadlineStream, Codec>,
    mut response: Response<()>,
    body: BoxBody,
    scratch: &Scratch,
) -> io::Result<()> {
    let is_after_upgrade = is_refusal(&response);
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !is_after_upgrade {
        return Err(io::Error::other("the application answered 101 to a request that cannot be upgraded"));
    }
    let stream = timeout(RESPONSE_TIMEOUT, async move {
        let FramedParts { io: mut stream, mut codec, mut write_buf, .. } = connection;
        if is_after_upgrade {
            codec.encode(h1::Message::Item((response, BodySize::Stream)), &mut write_buf)?;
            let frames = actix_web::body::to_bytes(body).await.map_err(body_error)?;
            write_buf.extend_from_slice(&frames);
            stream.write_all_buf(&mut write_buf).await?;
            return Ok(stream);
        }
        let head = response.head_mut();
        head.set_connection_type(ConnectionType::Close);
        // For a body of unknown length, the codec would announce chunks but write none: the body ends with the
        // connection.
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
    // It counts until it ends: a client can make it linger for some seconds.
    let (mut stream, _slots) = stream.into_parts();
    let mut linger = Linger::default();
    let lingering = poll_fn(|cx| linger.poll(&mut stream, scratch, cx));
    if is_after_upgrade {
        let _ = timeout(REFUSAL_LINGER, lingering).await;
    } else {
        lingering.await;
    }
    Ok(())
}
