//! The operator's listener, on a port of its own: `GET /status` for people and scripts, `GET /metrics` for Prometheus.
//!
//! Nothing here changes anything, and nothing here names a user. Still, no web page may read it through a browser: a request
//! has to name the server by an address or a known name (a page whose own name was rebound to this address cannot), and
//! has to carry the token if one is configured.

mod access;
mod history;
mod process;
mod status;

use std::{
    io,
    net::TcpListener,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix_server::Server;
use actix_web::{
    App, Error, HttpRequest, HttpResponse, HttpServer,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        KeepAlive, Method, StatusCode,
        header::{self, Accept, ContentType, Header, HeaderName},
    },
    middleware::{DefaultHeaders, Next, from_fn},
    mime::Mime,
    web::{self, Data, ServiceConfig},
};
use tokio::{runtime::Handle, time::Instant};
use uuid::Uuid;

pub use access::Access;
use history::{Counts, History, Point};

use crate::{
    domain::envelope::Load,
    metrics::{AccessDenied, Direction, Metrics, PoolState, Version},
    service::Service,
    tasks::Tasks,
};

/// Connections that it holds at once. Operators are few.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How long a connection is kept for another request.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Time between two looks at the backlog of mail: at least [`BACKLOG_EVERY`], and [`BACKLOG_SHARE`] times as long as a look takes.
const BACKLOG_EVERY: Duration = Duration::from_secs(5);
const BACKLOG_SHARE: u32 = 100;
/// How long answers may take once the server stops.
const SHUTDOWN_SECONDS: u64 = 1;

/// What the page may do: run its own script and style, ask its own server. Not even the page can write markup.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

/// Levels of the node that only the composition root can see.
#[derive(Clone, Copy, Debug)]
pub struct Levels {
    /// Sockets of devices.
    pub connected: usize,
    /// Upgraded connections, also those that are closing: open, and the most.
    pub sockets: (usize, usize),
    /// Connections that are no sockets (yet): open, and the most.
    pub http: (usize, usize),
    /// Requests and mails that are not finished.
    pub work: usize,
    /// Bytes of large messages coming in: in use, and the most.
    pub inbound: (usize, usize),
    /// Bytes of requests in flight and outboxes: in use, and the most.
    pub outbound: (usize, usize),
    /// Whether the node is being stopped.
    pub is_draining: bool,
}

/// What the listener shows.
pub struct Admin {
    service: Arc<Service>,
    runtime: Handle,
    metrics: Arc<Metrics>,
    levels: Box<dyn Fn() -> Levels + Send + Sync>,
    access: Access,
    node_id: Uuid,
    started: Instant,
    history: History,
    /// What waits in mailboxes, once that is known.
    backlog: Mutex<Option<Load>>,
}

impl Admin {
    /// Puts it together and starts to keep its history. What it asks the store, it asks on the runtime.
    #[must_use]
    pub fn start(
        service: Arc<Service>,
        runtime: Handle,
        tasks: &Tasks,
        metrics: Arc<Metrics>,
        levels: Box<dyn Fn() -> Levels + Send + Sync>,
        access: Access,
        node_id: Uuid,
    ) -> Arc<Self> {
        metrics.build_info.set(Version::Built, 1);
        metrics.start_time.set(u64::try_from(service.now().as_micros() / 1_000_000).unwrap_or_default());
        let started = Instant::now();
        let history = History::new(started, Counts::of(&metrics));
        let admin = Arc::new(Self {
            service,
            runtime,
            metrics,
            levels,
            access,
            node_id,
            started,
            history,
            backlog: Mutex::default(),
        });
        tasks.spawn("status history", admin.clone().remember());
        tasks.spawn("mailbox watch", admin.clone().watch_mailboxes());
        admin
    }

    /// Takes samples for the page's charts.
    async fn remember(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(history::STEP);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let latency = self.service.store_latency().await;
            self.history.push(self.point(latency));
        }
    }

    /// Looks at the backlog of mail now and then, however long a look takes: it reads all mailboxes.
    async fn watch_mailboxes(self: Arc<Self>) {
        loop {
            let began = Instant::now();
            // If the store does not answer, the last known backlog stays; the state of the store is shown beside it.
            if let Ok(backlog) = self.service.mailbox_backlog().await {
                *self.backlog.lock().unwrap_or_else(PoisonError::into_inner) = Some(backlog);
            }
            tokio::time::sleep((began.elapsed() * BACKLOG_SHARE).max(BACKLOG_EVERY)).await;
        }
    }

    fn backlog(&self) -> Option<Load> {
        *self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn point(&self, latency: Option<Duration>) -> Point {
        Point {
            at: Instant::now(),
            counts: Counts::of(&self.metrics),
            connected: (self.levels)().connected,
            resident: process::resident_bytes(),
            latency,
        }
    }

    /// How long the database takes to answer, if it does. Asked on the runtime that owns its connections.
    async fn latency(&self) -> Option<Duration> {
        let service = self.service.clone();
        self.runtime.spawn(async move { service.store_latency().await }).await.unwrap_or_default()
    }

    /// Brings the gauges up to date.
    async fn measure(&self) {
        let metrics = &self.metrics;
        let Levels { connected, sockets, http, work, inbound, outbound, is_draining } = (self.levels)();
        metrics.connected_devices.set(connected as u64);
        metrics.open_sockets.set(sockets.0 as u64);
        metrics.open_sockets_limit.set(sockets.1 as u64);
        metrics.open_http.set(http.0 as u64);
        metrics.open_http_limit.set(http.1 as u64);
        metrics.work_under_way.set(work as u64);
        metrics.draining.set(u64::from(is_draining));
        for (direction, (used, limit)) in [(Direction::In, inbound), (Direction::Out, outbound)] {
            metrics.memory_in_use.set(direction, used as u64);
            metrics.memory_limit.set(direction, limit as u64);
        }
        let Load { envelopes, bytes } = self.backlog().unwrap_or_default();
        metrics.mailbox_envelopes.set(envelopes);
        metrics.mailbox_bytes.set(bytes);
        metrics.resident_memory.set(process::resident_bytes().unwrap_or_default());
        metrics.open_files.set(process::open_files().unwrap_or_default());
        metrics.max_files.set(process::max_files().unwrap_or(u64::MAX));
        metrics.database_up.set(u64::from(self.latency().await.is_some()));
        let (_, pool) = self.service.store_state();
        metrics.pool_connections.set(PoolState::Idle, pool.idle.into());
        metrics.pool_connections.set(PoolState::Busy, (pool.open - pool.idle).into());
        metrics.pool_limit.set(pool.limit.into());
        metrics.bus_up.set(u64::from(self.service.bus_is_up()));
    }
}

/// Serves on a listening socket. The server runs once it is awaited.
///
/// # Errors
/// If the socket cannot be used.
pub fn listen(listener: TcpListener, admin: Arc<Admin>) -> io::Result<Server> {
    let admin = Data::from(admin);
    let server = HttpServer::new(move || App::new().configure(routes(admin.clone())))
        .workers(1)
        .max_connections(MAX_CONNECTIONS)
        .client_request_timeout(REQUEST_TIME)
        .keep_alive(KeepAlive::Timeout(KEEP_ALIVE))
        .shutdown_timeout(SHUTDOWN_SECONDS)
        .disable_signals()
        .listen(listener)?;
    Ok(server.run())
}

fn routes(admin: Data<Admin>) -> impl FnOnce(&mut ServiceConfig) {
    let headers = DefaultHeaders::new()
        .add((header::CACHE_CONTROL, "no-store"))
        .add((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .add((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
        .add((header::REFERRER_POLICY, "no-referrer"))
        .add((HeaderName::from_static("cross-origin-resource-policy"), "same-origin"));
    let file = |content_type: &'static str, text: &'static str| {
        web::to(move || async move { HttpResponse::Ok().content_type(content_type).body(text) })
    };
    move |app| {
        let all = web::scope("")
            .wrap(from_fn(authorize))
            .wrap(headers)
            .route("/status", web::to(show))
            .route("/status.css", file("text/css; charset=utf-8", include_str!("admin/status.css")))
            .route("/status.js", file("text/javascript; charset=utf-8", include_str!("admin/status.js")))
            .route("/status.svg", file("image/svg+xml", include_str!("admin/status.svg")))
            .route("/metrics", web::to(metrics))
            .route("/", web::to(home))
            .default_service(web::to(|| async { refusal(StatusCode::NOT_FOUND, "see /status and /metrics") }));
        app.app_data(admin).service(all);
    }
}

/// Passes on the requests that may be asked, by those who may ask.
async fn authorize(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let refused = request.app_data::<Data<Admin>>().and_then(|admin| {
        if let Err(denied) = admin.access.check(request.head()) {
            admin.metrics.access_denied.inc(denied);
            return Some(deny(denied));
        }
        (!matches!(*request.method(), Method::GET | Method::HEAD)).then(|| {
            let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "this listener only answers GET and HEAD");
            response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
            response
        })
    });
    match refused {
        Some(response) => Ok(request.into_response(response)),
        None => Ok(next.call(request).await?.map_into_boxed_body()),
    }
}

fn deny(denied: AccessDenied) -> HttpResponse {
    if denied == AccessDenied::Host {
        let why = "this name is not known here: use an address, or add the name to admin.allowed_hosts";
        return refusal(StatusCode::FORBIDDEN, why);
    }
    let mut response = refusal(StatusCode::UNAUTHORIZED, "show admin.token, as Bearer or as Basic's password");
    let challenge = header::HeaderValue::from_static("Basic realm=\"sealwire\", charset=\"UTF-8\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

fn refusal(status: StatusCode, why: &'static str) -> HttpResponse {
    HttpResponse::build(status).content_type(ContentType::plaintext()).body(format!("{why}\n"))
}

/// `GET /`
async fn home() -> HttpResponse {
    HttpResponse::Found().insert_header((header::LOCATION, "/status")).finish()
}

/// `GET /status`: the page for clients that prefer HTML, JSON for all others; with the history if the query asks for it.
async fn show(request: HttpRequest, admin: Data<Admin>) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    response.insert_header((header::VARY, "Accept"));
    if prefers_html(&request) {
        return response.content_type(ContentType::html()).body(include_str!("admin/status.html"));
    }
    let latency = admin.latency().await;
    response.json(status::Report::of(&admin, latency, request.query_string() == "history"))
}

fn prefers_html(request: &HttpRequest) -> bool {
    let ranked = Accept::parse(request).map(|accept| accept.ranked()).unwrap_or_default();
    let known = ranked
        .iter()
        .map(Mime::essence_str)
        .find(|mime| matches!(*mime, "text/html" | "application/json" | "application/*" | "*/*"));
    known == Some("text/html")
}

/// `GET /metrics`
async fn metrics(admin: Data<Admin>) -> HttpResponse {
    admin.measure().await;
    HttpResponse::Ok().content_type(Metrics::CONTENT_TYPE).body(admin.metrics.exposition())
}
