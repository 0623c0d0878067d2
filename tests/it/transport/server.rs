//! The server under test: the production listener with handlers made for the tests.

use std::{
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, StreamHandler, fut::WrapFuture};
use actix_web::{App, HttpMessage, HttpRequest, HttpResponse, web};
use actix_ws::{AggregatedMessage, CloseCode, CloseReason, ProtocolError, Session};
use bytes::Bytes;
use sealwire::socket::transport::{
    self, ConnectionLimiter, Cutoff, Holder, Seats, SharedBudget, Tuning, Violation, Wire, frame_bytes,
};
use tokio::time::timeout;

use super::{client::Client, eventually};
use crate::support::raw::{BINARY, frame};

/// How long a write may make no progress because the client does not read.
const STALL: Duration = Duration::from_secs(3);
/// The largest accepted message, in bytes.
pub const MAX_MESSAGE: u64 = 524_288;
/// Payloads of the messages that `/count` sends.
pub const COUNTED: [usize; 6] = [0, 125, 126, 65_535, 65_536, 1_000_000];

/// What the handlers report to the tests.
#[derive(Default)]
pub struct Probe {
    /// Bytes given to a session.
    pub given: AtomicU64,
    /// Bytes that the session's wire reports as written.
    pub written: AtomicU64,
    /// Handlers that have ended.
    pub ended: AtomicU64,
}

/// A running server with these handlers.
pub struct Server {
    pub address: SocketAddr,
    pub tuning: Tuning,
    pub probe: Arc<Probe>,
    handle: actix_server::ServerHandle,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start() -> Self {
        Self::with_budgets(SharedBudget::new(1 << 30, 1 << 30), 100)
    }

    /// Starts a server with this budget for messages and this many places for upgraded connections.
    pub fn with_budgets(inbound: SharedBudget, places: usize) -> Self {
        // All of them are of one user.
        let connections = Seats::new(places, usize::MAX, Arc::default());
        let limiter = ConnectionLimiter::unlimited();
        let tuning = Tuning { max_message: MAX_MESSAGE, inbound, limiter, connections, stall: STALL };
        let probe = Arc::new(Probe::default());
        let (sender, receiver) = std::sync::mpsc::channel();
        let (shared, data) = (tuning.clone(), web::Data::from(Arc::clone(&probe)));
        let thread = std::thread::spawn(move || {
            actix_rt::System::new().block_on(async move {
                let listener = transport::bind(([127, 0, 0, 1], 0).into()).unwrap();
                let address = listener.local_addr().unwrap();
                let app = move || {
                    App::new()
                        .app_data(data.clone())
                        .route("/echo", web::get().to(echo))
                        .route("/refuse", web::get().to(refuse))
                        .route("/page", web::get().to(page))
                        .route("/page", web::post().to(post))
                        .route("/stream", web::get().to(stream))
                        .route("/push", web::get().to(push))
                        .route("/count", web::get().to(count))
                        .route("/sip", web::get().to(sip))
                        .route("/mute", web::get().to(mute))
                        .route("/abort", web::get().to(abort))
                        .route("/leave", web::get().to(leave))
                };
                let builder = actix_server::Server::build().workers(1).disable_signals();
                let server = transport::listen(builder, listener, app, shared).unwrap().run();
                sender.send((address, server.handle())).unwrap();
                server.await.unwrap();
            });
        });
        let (address, handle) = receiver.recv().unwrap();
        Self { address, tuning, probe, handle, thread: Some(thread) }
    }

    /// Opens an upgraded connection.
    pub async fn open(&self, path: &str) -> Client {
        let (client, head) = Client::upgrade(self.address, path, b"").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        client
    }

    /// Waits until no connection is left, and asserts that none has left a reservation.
    pub async fn all_connections_gone(&self) {
        eventually(|| self.tuning.connections.in_use() == 0).await;
        assert_eq!(self.tuning.inbound.in_use(), 0);
    }

    /// Returns the value once it has stopped changing, which means that it is the same after 500 round trips on another
    /// connection. The one worker serves these in turn with everything that could change the value.
    pub async fn settled(&self, value: impl Fn() -> u64) -> u64 {
        const ROUND_TRIPS: u64 = 500;
        let mut clock = self.open("/echo").await;
        loop {
            let before = value();
            for tick in 0..ROUND_TRIPS {
                clock.send(&frame(BINARY, &tick.to_be_bytes())).await;
                assert_eq!(clock.receive().await, (BINARY, tick.to_be_bytes().to_vec()));
            }
            if before > 0 && before == value() {
                return before;
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.handle.stop(false));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// The wire of an upgraded connection, which has taken its place.
fn wire(request: &HttpRequest) -> actix_web::Result<Rc<Wire>> {
    let wire = Rc::clone(request.extensions().get::<Rc<Wire>>().unwrap());
    wire.take_seat(Holder::NOBODY).map_err(|_| actix_web::error::ErrorServiceUnavailable("full"))?;
    Ok(wire)
}

/// Echoes messages; answers a violation with the close code of the protocol.
struct Echo {
    session: Option<Session>,
    wire: Rc<Wire>,
    probe: web::Data<Probe>,
}

impl Actor for Echo {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        self.probe.ended.fetch_add(1, Ordering::SeqCst);
    }
}

impl Echo {
    fn send<F: Future + 'static>(&self, ctx: &mut Context<Self>, sending: F) {
        ctx.wait(sending.into_actor(self).map(|_, _, _| ()));
    }

    fn close(&mut self, ctx: &mut Context<Self>, reason: Option<CloseReason>) {
        if let Some(session) = self.session.take() {
            ctx.wait(session.close(reason).into_actor(self).map(|_, _, ctx| ctx.stop()));
        }
    }
}

impl StreamHandler<Result<AggregatedMessage, ProtocolError>> for Echo {
    fn handle(&mut self, item: Result<AggregatedMessage, ProtocolError>, ctx: &mut Self::Context) {
        let Some(mut session) = self.session.clone() else {
            return;
        };
        match item {
            Ok(AggregatedMessage::Text(text)) => {
                self.send(ctx, async move { session.text(text).await });
            }
            Ok(AggregatedMessage::Binary(data)) => {
                self.send(ctx, async move { session.binary(data).await });
            }
            Ok(AggregatedMessage::Ping(data)) => {
                self.send(ctx, async move { session.pong(&data).await });
            }
            Ok(AggregatedMessage::Pong(_)) => {}
            Ok(AggregatedMessage::Close(reason)) => self.close(ctx, reason),
            Err(_) => ctx.stop(),
        }
    }

    fn finished(&mut self, ctx: &mut Self::Context) {
        let code = match (self.wire.cutoff(), self.wire.violation()) {
            (Some(Cutoff::MessageTooSlow), _) => 4001,
            (Some(Cutoff::NotReading | Cutoff::QueueGivenUp), _) => 4002,
            (Some(Cutoff::MessageGivenUp | Cutoff::PlaceGivenUp), _) => 4003,
            (None, Some(Violation::Protocol(_))) => 4504,
            (None, Some(Violation::FrameTooLarge)) => 4505,
            (None, None) => return ctx.stop(),
        };
        self.close(ctx, Some(CloseCode::Other(code).into()));
    }
}

async fn echo(request: HttpRequest, body: web::Payload, probe: web::Data<Probe>) -> actix_web::Result<HttpResponse> {
    assert!(request.peer_addr().is_some(), "the peer's address is known on the upgrade path");
    let wire = wire(&request)?;
    let (response, session, stream) = actix_ws::handle(&request, body)?;
    let stream = stream.max_frame_size(1 << 20).aggregate_continuations();
    Echo::create(|ctx| {
        ctx.add_stream(stream);
        Echo { session: Some(session), wire, probe }
    });
    Ok(response)
}

async fn refuse() -> HttpResponse {
    HttpResponse::Unauthorized().content_type("application/json").body(r#"{"error":{"code":"unauthorized"}}"#)
}

async fn page(request: HttpRequest) -> String {
    format!("hello {}", request.peer_addr().unwrap().ip())
}

async fn post(body: web::Bytes) -> String {
    format!("{} bytes", body.len())
}

async fn stream() -> HttpResponse {
    let chunks = ["one ", "two ", "three"].map(|part| Ok::<_, actix_web::Error>(Bytes::from(part)));
    HttpResponse::Ok().streaming(futures_util::stream::iter(chunks))
}

/// Sends without end, at most 64 KiB ahead of what the kernel has taken.
async fn push(request: HttpRequest, body: web::Payload, probe: web::Data<Probe>) -> actix_web::Result<HttpResponse> {
    let wire = wire(&request)?;
    let (response, mut session, messages) = actix_ws::handle(&request, body)?;
    actix_rt::spawn(async move {
        let payload = Bytes::from(vec![7; 16 * 1024]);
        let mut given = 0;
        while session.binary(payload.clone()).await.is_ok() && !wire.is_gone() {
            given += frame_bytes(payload.len());
            probe.given.store(given, Ordering::SeqCst);
            wire.wait_written(given.saturating_sub(64 * 1024)).await;
            probe.written.store(wire.written(), Ordering::SeqCst);
        }
        drop(messages);
        probe.ended.fetch_add(1, Ordering::SeqCst);
    });
    Ok(response)
}

/// Sends messages with frame headers of every length, and ends when the wire reports them as written.
async fn count(request: HttpRequest, body: web::Payload, probe: web::Data<Probe>) -> actix_web::Result<HttpResponse> {
    let wire = wire(&request)?;
    let (response, mut session, messages) = actix_ws::handle(&request, body)?;
    actix_rt::spawn(async move {
        for size in COUNTED {
            session.binary(vec![7; size]).await.unwrap();
        }
        let given = COUNTED.map(frame_bytes).iter().sum();
        wire.wait_written(given).await;
        probe.given.store(given, Ordering::SeqCst);
        probe.written.store(wire.written(), Ordering::SeqCst);
        drop((session, messages));
    });
    Ok(response)
}

/// Reads one message, and asks for the next one when the test has set [`Probe::given`] to 1.
async fn sip(request: HttpRequest, body: web::Payload, probe: web::Data<Probe>) -> actix_web::Result<HttpResponse> {
    wire(&request)?;
    let (response, session, mut messages) = actix_ws::handle(&request, body)?;
    actix_rt::spawn(async move {
        assert!(messages.recv().await.is_some());
        probe.ended.fetch_add(1, Ordering::SeqCst);
        eventually(|| probe.given.load(Ordering::SeqCst) == 1).await;
        assert!(messages.recv().await.is_none());
        drop(session);
    });
    Ok(response)
}

/// Keeps the stream but never reads it.
async fn mute(request: HttpRequest, body: web::Payload) -> actix_web::Result<HttpResponse> {
    let (response, session, messages) = actix_ws::handle(&request, body)?;
    let wire = wire(&request)?;
    actix_rt::spawn(async move {
        wire.wait_written(u64::MAX).await;
        drop((session, messages));
    });
    Ok(response)
}

/// Queues more than the client reads, then aborts the connection at the client's first message.
async fn abort(request: HttpRequest, body: web::Payload, probe: web::Data<Probe>) -> actix_web::Result<HttpResponse> {
    let wire = wire(&request)?;
    let (response, mut session, mut messages) = actix_ws::handle(&request, body)?;
    actix_rt::spawn(async move {
        while timeout(Duration::from_millis(200), session.binary(vec![7; 1 << 20])).await.is_ok() {}
        assert!(messages.recv().await.is_some());
        assert!(!wire.is_gone());
        wire.abort();
        assert!(wire.is_gone());
        assert!(messages.recv().await.is_none(), "the stream ends");
        probe.ended.fetch_add(1, Ordering::SeqCst);
    });
    Ok(response)
}

/// Queues more than the client reads, then drops the session and the stream.
async fn leave(request: HttpRequest, body: web::Payload, probe: web::Data<Probe>) -> actix_web::Result<HttpResponse> {
    wire(&request)?;
    let (response, mut session, messages) = actix_ws::handle(&request, body)?;
    actix_rt::spawn(async move {
        while timeout(Duration::from_millis(200), session.binary(vec![7; 1 << 20])).await.is_ok() {}
        drop(messages);
        probe.ended.fetch_add(1, Ordering::SeqCst);
    });
    Ok(response)
}
