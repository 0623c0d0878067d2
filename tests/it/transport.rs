//! Upgraded connections over real sockets, through the production listener.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

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
use sealwire::socket::transport::{self, Budget, Tuning, Violation, Wire, frame_bytes};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

/// How long a write may stand still without a reader.
const STALL: Duration = Duration::from_secs(3);
const MAX_MESSAGE: u64 = 524_288;
/// Payloads of the messages that `/count` sends.
const COUNTED: [usize; 6] = [0, 125, 126, 65_535, 65_536, 1_000_000];
/// Longer than any condition waited for should take.
const PATIENCE: Duration = Duration::from_secs(20);

// --- The server under test -----------------------------------------------------------------------

/// What the handlers tell the tests.
#[derive(Default)]
struct Probe {
    /// Bytes given to a session, and bytes that its wire says were written.
    given: AtomicU64,
    written: AtomicU64,
    /// Handlers that have ended.
    ended: AtomicU64,
}

struct Server {
    address: SocketAddr,
    tuning: Tuning,
    probe: Arc<Probe>,
    handle: actix_server::ServerHandle,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start() -> Self {
        Self::with(Budget::new(1 << 30), Budget::new(100))
    }

    fn with(inbound: Budget, connections: Budget) -> Self {
        let tuning = Tuning { max_message: MAX_MESSAGE, inbound, connections, stall: STALL };
        let probe = Arc::new(Probe::default());
        let (tell, told) = std::sync::mpsc::channel();
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
                tell.send((address, server.handle())).unwrap();
                server.await.unwrap();
            });
        });
        let (address, handle) = told.recv().unwrap();
        Self { address, tuning, probe, handle, thread: Some(thread) }
    }

    async fn open(&self, path: &str) -> Client {
        let (client, head) = Client::upgrade(self.address, path, b"").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        client
    }

    async fn all_connections_gone(&self) {
        eventually(|| self.tuning.connections.in_use() == 0).await;
        assert_eq!(self.tuning.inbound.in_use(), 0);
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

fn wire(request: &HttpRequest) -> Rc<Wire> {
    Rc::clone(request.extensions().get::<Rc<Wire>>().unwrap())
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
        let code = match self.wire.violation() {
            Some(Violation::Protocol) => 4504,
            Some(Violation::FrameTooLarge) => 4505,
            None => return ctx.stop(),
        };
        self.close(ctx, Some(CloseCode::Other(code).into()));
    }
}

async fn echo(request: HttpRequest, body: web::Payload, probe: web::Data<Probe>) -> actix_web::Result<HttpResponse> {
    assert!(request.peer_addr().is_some(), "the peer's address is known on the upgrade path");
    let Some(wire) = request.extensions().get::<Rc<Wire>>().cloned() else {
        return Ok(HttpResponse::ServiceUnavailable().body("full"));
    };
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

/// Sends for ever, never more than 64 KiB ahead of the kernel.
async fn push(request: HttpRequest, body: web::Payload, probe: web::Data<Probe>) -> actix_web::Result<HttpResponse> {
    let wire = wire(&request);
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

/// Sends messages of all lengths of header, and ends when the wire says that they are written.
async fn count(request: HttpRequest, body: web::Payload, probe: web::Data<Probe>) -> actix_web::Result<HttpResponse> {
    let wire = wire(&request);
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

/// Takes one message, and looks for another when the test says so.
async fn sip(request: HttpRequest, body: web::Payload, probe: web::Data<Probe>) -> actix_web::Result<HttpResponse> {
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
    let wire = wire(&request);
    actix_rt::spawn(async move {
        wire.wait_written(u64::MAX).await;
        drop((session, messages));
    });
    Ok(response)
}

/// Queues more than the peer takes, then gives it up at its first message.
async fn abort(request: HttpRequest, body: web::Payload, probe: web::Data<Probe>) -> actix_web::Result<HttpResponse> {
    let wire = wire(&request);
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

/// Queues more than the peer takes, then drops all it has.
async fn leave(request: HttpRequest, body: web::Payload, probe: web::Data<Probe>) -> actix_web::Result<HttpResponse> {
    let (response, mut session, messages) = actix_ws::handle(&request, body)?;
    actix_rt::spawn(async move {
        while timeout(Duration::from_millis(200), session.binary(vec![7; 1 << 20])).await.is_ok() {}
        drop(messages);
        probe.ended.fetch_add(1, Ordering::SeqCst);
    });
    Ok(response)
}

// --- A client that may break the rules -----------------------------------------------------------

struct Client {
    stream: TcpStream,
}

/// A frame from the server: first byte and payload.
type Frame = (u8, Vec<u8>);

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

fn request(method: &str, path: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// The head of a masked frame that declares `length`, with a mask of zeros.
fn header(head: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![head];
    match length {
        0..=125 => bytes.push(0x80 | u8::try_from(length).unwrap()),
        126..=0xffff => {
            bytes.push(0xfe);
            bytes.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
        _ => {
            bytes.push(0xff);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

fn frame(head: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(head, payload.len() as u64);
    bytes.extend_from_slice(payload);
    bytes
}

impl Client {
    /// Sends an upgrade request, with `early` in the same segment, and reads the answer's head.
    async fn upgrade(address: SocketAddr, path: &str, early: &[u8]) -> (Self, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&[request("GET", path).as_bytes(), early].concat()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
        }
        (Self { stream }, String::from_utf8(head).unwrap())
    }

    async fn send(&mut self, bytes: &[u8]) {
        timeout(PATIENCE, self.stream.write_all(bytes)).await.unwrap().unwrap();
    }

    async fn receive(&mut self) -> Frame {
        timeout(PATIENCE, async {
            let head = self.stream.read_u8().await.unwrap();
            let length = match self.stream.read_u8().await.unwrap() {
                126 => self.stream.read_u16().await.unwrap().into(),
                127 => self.stream.read_u64().await.unwrap(),
                short => short.into(),
            };
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            self.stream.read_exact(&mut payload).await.unwrap();
            (head, payload)
        })
        .await
        .expect("a frame in time")
    }

    /// Reads to the end; false if the connection was reset.
    async fn ends_orderly(&mut self) -> bool {
        let mut rest = Vec::new();
        timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await.expect("an end in time").is_ok()
    }

    /// All that comes until the end of the connection, as text.
    async fn rest(mut self) -> String {
        let mut rest = String::new();
        timeout(PATIENCE, self.stream.read_to_string(&mut rest)).await.unwrap().unwrap();
        rest
    }
}

async fn eventually(condition: impl Fn() -> bool) {
    timeout(PATIENCE, async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the condition in time");
}

/// The value once it has stopped changing.
async fn settled(value: impl Fn() -> u64) -> u64 {
    let mut before = u64::MAX;
    loop {
        let now = value();
        if now == before {
            return now;
        }
        before = now;
        sleep(Duration::from_millis(300)).await;
    }
}

fn close_code((head, payload): &Frame) -> u16 {
    assert_eq!(*head, CLOSE);
    u16::from_be_bytes([payload[0], payload[1]])
}

// --- Behaviour -----------------------------------------------------------------------------------

#[tokio::test]
async fn carries_every_kind_of_message() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    for size in [0, 1, 125, 126, 4096, 65_535, 65_536, 524_288] {
        let payload = vec![b'x'; size];
        client.send(&frame(BINARY, &payload)).await;
        assert_eq!(client.receive().await, (BINARY, payload));
    }
    client.send(&frame(TEXT, "grüß".as_bytes())).await;
    assert_eq!(client.receive().await, (TEXT, "grüß".as_bytes().to_vec()));
    client.send(&[frame(0x01, b"in "), frame(PING, b"!"), frame(0x80, b"parts")].concat()).await;
    assert_eq!(client.receive().await, (PONG, b"!".to_vec()));
    assert_eq!(client.receive().await, (TEXT, b"in parts".to_vec()));
    client.send(&frame(CLOSE, &1000u16.to_be_bytes())).await;
    assert_eq!(close_code(&client.receive().await), 1000);
    assert!(client.ends_orderly().await);
    drop(client);
    server.all_connections_gone().await;
}

#[tokio::test]
async fn speaks_with_a_stock_client() {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::{connect_async, tungstenite::Message};
    let server = Server::start();
    let (mut socket, _) = connect_async(format!("ws://{}/echo", server.address)).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
    server.all_connections_gone().await;
}

#[tokio::test]
async fn frames_sent_with_the_upgrade_request_are_not_lost() {
    let server = Server::start();
    let early = [frame(TEXT, b"first"), frame(TEXT, b"second")].concat();
    for cut in [early.len(), 8, 1] {
        let (mut client, head) = Client::upgrade(server.address, "/echo", &early[..cut]).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        client.send(&early[cut..]).await;
        assert_eq!(client.receive().await, (TEXT, b"first".to_vec()));
        assert_eq!(client.receive().await, (TEXT, b"second".to_vec()));
    }
}

#[tokio::test]
async fn a_flood_of_small_frames_comes_back_in_order() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    let (mut reader, mut writer) = client.stream.split();
    let flood: Vec<u8> = (0..20_000u32).flat_map(|n| frame(BINARY, &n.to_be_bytes())).collect();
    let expected: Vec<u8> = (0..20_000u32).flat_map(|n| [&[BINARY, 4][..], &n.to_be_bytes()].concat()).collect();
    let mut answer = vec![0; expected.len()];
    let (sent, received) = tokio::join!(writer.write_all(&flood), timeout(PATIENCE, reader.read_exact(&mut answer)));
    sent.unwrap();
    received.unwrap().unwrap();
    assert!(answer == expected);
}

#[tokio::test]
async fn a_refused_upgrade_gets_the_whole_answer() {
    let server = Server::start();
    let (client, head) = Client::upgrade(server.address, "/refuse", &frame(TEXT, b"too soon")).await;
    assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
    assert!(head.contains("connection: close\r\n"), "{head}");
    assert_eq!(client.rest().await, r#"{"error":{"code":"unauthorized"}}"#);
    server.all_connections_gone().await;
}

#[tokio::test]
async fn upgrade_headers_on_an_ordinary_path_are_answered_and_the_connection_closed() {
    let server = Server::start();
    let (client, head) = Client::upgrade(server.address, "/page", b"").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("connection: close\r\n"), "{head}");
    assert!(head.contains("content-length: 15\r\n"), "{head}");
    assert_eq!(client.rest().await, "hello 127.0.0.1");
    let (client, head) = Client::upgrade(server.address, "/stream", b"").await;
    assert!(!head.contains("transfer-encoding"), "{head}");
    assert_eq!(client.rest().await, "one two three");
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(request("POST", "/page").as_bytes()).await.unwrap();
    let answer = Client { stream }.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("0 bytes"), "{answer}");
    server.all_connections_gone().await;
}

#[tokio::test]
async fn ordinary_requests_keep_their_connection_and_may_come_before_an_upgrade() {
    let server = Server::start();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let get = "GET /page HTTP/1.1\r\nHost: test\r\n\r\n";
    stream.write_all(format!("{get}{get}{}", request("GET", "/echo")).as_bytes()).await.unwrap();
    let mut client = Client { stream };
    client.send(&frame(TEXT, b"after all")).await;
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"after all") {
        bytes.push(timeout(PATIENCE, client.stream.read_u8()).await.unwrap().unwrap());
    }
    let text = String::from_utf8_lossy(&bytes);
    assert_eq!(text.matches("hello 127.0.0.1").count(), 2, "{text}");
    assert_eq!(text.matches("HTTP/1.1 101 ").count(), 1, "{text}");
}

#[tokio::test]
async fn a_full_node_offers_no_upgrade() {
    let server = Server::with(Budget::new(1 << 20), Budget::new(1));
    let client = server.open("/echo").await;
    let (other, head) = Client::upgrade(server.address, "/echo", b"").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(other.rest().await, "full");
    drop(client);
    server.all_connections_gone().await;
    server.open("/echo").await;
}

#[tokio::test]
async fn a_half_closed_peer_gets_what_it_asked_for_and_an_end() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    client.send(&frame(TEXT, b"last words")).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.receive().await, (TEXT, b"last words".to_vec()));
    assert!(client.ends_orderly().await);
    server.all_connections_gone().await;
}

#[tokio::test]
async fn a_peer_that_vanishes_leaves_nothing_behind() {
    let server = Server::start();
    for path in ["/echo", "/push"] {
        let mut client = server.open(path).await;
        client.send(&header(BINARY, 300_000)).await;
        eventually(|| path == "/push" || server.tuning.inbound.in_use() == 300_000).await;
        client.stream.set_zero_linger().unwrap();
        drop(client);
        server.all_connections_gone().await;
    }
    eventually(|| server.probe.ended.load(Ordering::SeqCst) == 2).await;
}

#[tokio::test]
async fn an_oversized_frame_is_refused_by_its_header_and_the_sender_learns_why() {
    let server = Server::start();
    for length in [MAX_MESSAGE + 1, 200_000_000, 1 << 62] {
        let mut client = server.open("/echo").await;
        client.send(&[frame(TEXT, b"fine"), header(BINARY, length)].concat()).await;
        let (mut reader, mut writer) = client.stream.into_split();
        // The sender goes on, as one that has not read the close yet would.
        let sending = tokio::spawn(async move {
            let junk = vec![0; 64 * 1024];
            for _ in 0..100 {
                if writer.write_all(&junk).await.is_err() {
                    return;
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
        let mut received = Vec::new();
        let end = timeout(PATIENCE, reader.read_to_end(&mut received)).await.unwrap();
        let expected = [&[TEXT, 4][..], b"fine", &[CLOSE, 2], &4505u16.to_be_bytes()].concat();
        assert_eq!(received, expected);
        assert!(end.is_ok(), "an orderly end, not a reset");
        sending.await.unwrap();
    }
    server.all_connections_gone().await;
}

#[tokio::test]
async fn a_breach_of_framing_is_answered_after_the_frames_before_it() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    client.send(&[frame(TEXT, b"fine"), vec![TEXT, 5], b"plain".to_vec()].concat()).await;
    assert_eq!(client.receive().await, (TEXT, b"fine".to_vec()));
    assert_eq!(close_code(&client.receive().await), 4504);
    assert!(client.ends_orderly().await);
}

#[tokio::test]
async fn what_follows_a_close_frame_is_ignored() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    client.send(&[frame(CLOSE, &1000u16.to_be_bytes()), vec![0xff; 100]].concat()).await;
    assert_eq!(close_code(&client.receive().await), 1000);
    assert!(client.ends_orderly().await);
}

#[tokio::test]
async fn a_peer_that_does_not_close_after_the_end_is_not_waited_for_long() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    client.send(&frame(CLOSE, b"")).await;
    assert_eq!(client.receive().await.0, CLOSE);
    // It sends for ever and never closes: neither end of the stream nor silence ends the linger.
    let started = std::time::Instant::now();
    while client.stream.write_all(b"still here").await.is_ok() {
        assert!(started.elapsed() < PATIENCE);
        sleep(Duration::from_millis(50)).await;
    }
    server.all_connections_gone().await;
}

#[tokio::test]
async fn the_wire_counts_every_byte_of_every_frame() {
    let server = Server::start();
    let mut client = server.open("/count").await;
    for size in COUNTED {
        assert_eq!(client.receive().await.1.len(), size);
    }
    assert!(client.ends_orderly().await);
    let given = server.probe.given.load(Ordering::SeqCst);
    assert_eq!(given, server.probe.written.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_reader_that_stops_is_pushed_back_to_the_sender() {
    let server = Server::start();
    let client = server.open("/push").await;
    let given = settled(|| server.probe.given.load(Ordering::SeqCst)).await;
    let written = server.probe.written.load(Ordering::SeqCst);
    assert!(given > 0 && given - written <= 64 * 1024 + 2 * frame_bytes(16 * 1024), "{given} {written}");
    drop(client);
    server.all_connections_gone().await;
}

#[tokio::test]
async fn a_handler_that_does_not_read_is_pushed_back_to_the_peer() {
    let server = Server::start();
    let mut client = server.open("/mute").await;
    let message = frame(BINARY, &vec![7; 60_000]);
    let sent = AtomicU64::new(0);
    let sending = async {
        while client.stream.write_all(&message).await.is_ok() {
            sent.fetch_add(message.len() as u64, Ordering::SeqCst);
        }
    };
    let stopped_at = tokio::select! {
        () = sending => panic!("the connection ended"),
        sent = settled(|| sent.load(Ordering::SeqCst)) => sent,
    };
    // The kernel's buffers of both sides, which grow to some megabytes; the server adds one chunk.
    assert!(stopped_at < 32 << 20, "{stopped_at} bytes were taken");
    assert!(server.tuning.inbound.in_use() <= 60_000);
    client.stream.set_zero_linger().unwrap();
}

#[tokio::test]
async fn large_messages_wait_for_the_budget_of_the_node() {
    let server = Server::with(Budget::new(600_000), Budget::new(10));
    let mut holder = server.open("/echo").await;
    holder.send(&header(BINARY, 400_000)).await;
    eventually(|| server.tuning.inbound.in_use() == 400_000).await;

    let mut waiter = server.open("/echo").await;
    let large = vec![7; 300_000];
    waiter.send(&[frame(TEXT, b"small"), frame(BINARY, &large)].concat()).await;
    assert_eq!(waiter.receive().await, (TEXT, b"small".to_vec()), "small ones need no memory");
    assert!(timeout(Duration::from_millis(300), waiter.receive()).await.is_err());
    assert_eq!(server.tuning.inbound.in_use(), 400_000);

    holder.send(&vec![7; 400_000]).await;
    assert_eq!(holder.receive().await.1.len(), 400_000);
    assert_eq!(waiter.receive().await, (BINARY, large));
    eventually(|| server.tuning.inbound.in_use() == 0).await;
}

#[tokio::test]
async fn a_large_message_stays_reserved_until_its_reader_looks_for_more() {
    let server = Server::start();
    let mut client = server.open("/sip").await;
    client.send(&frame(BINARY, &[7; 10_000])).await;
    eventually(|| server.probe.ended.load(Ordering::SeqCst) == 1).await;
    assert_eq!(server.tuning.inbound.in_use(), 10_000);
    server.probe.given.store(1, Ordering::SeqCst);
    eventually(|| server.tuning.inbound.in_use() == 0).await;
}

#[tokio::test]
async fn a_fragmented_message_reserves_what_it_may_grow_to() {
    let server = Server::start();
    let mut client = server.open("/echo").await;
    client.send(&frame(0x02, &[7; 3000])).await;
    client.send(&frame(PING, b"")).await;
    assert_eq!(client.receive().await.0, PONG);
    assert_eq!(server.tuning.inbound.in_use(), 0, "still small");
    client.send(&frame(0x00, &[7; 3000])).await;
    eventually(|| server.tuning.inbound.in_use() as u64 == MAX_MESSAGE).await;
    client.send(&frame(0x80, &[7; 3000])).await;
    assert_eq!(client.receive().await, (BINARY, vec![7; 9000]));
    eventually(|| server.tuning.inbound.in_use() == 0).await;
}

#[tokio::test]
async fn abort_drops_a_peer_that_takes_nothing() {
    let server = Server::start();
    let mut client = server.open("/abort").await;
    client.send(&frame(TEXT, b"go")).await;
    eventually(|| server.probe.ended.load(Ordering::SeqCst) == 1).await;
    server.all_connections_gone().await;
}

#[tokio::test]
async fn a_peer_that_takes_nothing_does_not_outlive_its_handler_for_long() {
    let server = Server::start();
    let client = server.open("/leave").await;
    eventually(|| server.probe.ended.load(Ordering::SeqCst) == 1).await;
    server.all_connections_gone().await;
    drop(client);
}
