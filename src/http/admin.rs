//! The operator's listener, on a port of its own: `GET /status` for people and scripts, `GET /metrics` for Prometheus.
//!
//! It changes nothing and names no user. Still, a page in a browser must not read it: a request has to name the server by
//! an address or a known name, which a page whose own name was rebound to this address cannot, and has to show the token
//! if one is configured.

mod access;
mod gauges;
mod history;
mod pages;
mod process;
mod status;

use std::{
    io,
    net::TcpListener,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix_server::Server;
use actix_web::{App, HttpServer, http::KeepAlive, web::Data};
use tokio::{
    runtime::Handle,
    time::{Instant, MissedTickBehavior},
};
use uuid::Uuid;

pub use self::access::Access;
use self::history::{CounterValues, History, Point};
use crate::{
    domain::envelope::MailboxSize,
    metrics::{Metrics, Version},
    service::Service,
    tasks::Tasks,
};

/// Connections that it holds at once. Operators are few.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How long a connection is kept for another request.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Shortest time between two measurements of the backlog of mail.
const BACKLOG_EVERY: Duration = Duration::from_secs(5);
/// At least this many times the duration of a measurement passes before the next.
const BACKLOG_SHARE: u32 = 100;
/// Seconds that answers may take once the server stops.
const SHUTDOWN_SECONDS: u64 = 1;

/// Levels of the node that only the composition root can read.
#[derive(Clone, Copy, Debug)]
pub struct Levels {
    /// Sockets of devices.
    pub connected: usize,
    /// Upgraded connections, including those that are closing: how many are open, and may be.
    pub sockets: (usize, usize),
    /// Connections that are not upgraded, or not yet: how many are open, and may be.
    pub http: (usize, usize),
    /// Requests and mails under way.
    pub work: usize,
    /// Bytes of large messages coming in: how many are in use, and may be.
    pub inbound: (usize, usize),
    /// Bytes of requests in flight and outboxes: how many are in use, and may be.
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
    /// What waits in mailboxes; `None` before the first measurement.
    backlog: Mutex<Option<MailboxSize>>,
}

impl Admin {
    /// Starts to keep the history and to measure the backlog of mail. Questions to the store run on `runtime`.
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
        let history = History::new(started, CounterValues::of(&metrics));
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
        tasks.spawn("status history", admin.clone().sample_history());
        tasks.spawn("mailbox watch", admin.clone().measure_backlog());
        admin
    }

    /// Takes samples for the page's charts.
    async fn sample_history(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(history::STEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let latency = self.service.store_latency().await;
            self.history.push(self.point(latency));
        }
    }

    /// Measures the backlog of mail now and then. That reads all mailboxes, so how often depends on how long it takes.
    async fn measure_backlog(self: Arc<Self>) {
        loop {
            let began = Instant::now();
            // If the store does not answer, the last value stays; the store's own state is shown beside it.
            if let Ok(backlog) = self.service.mailbox_backlog().await {
                *self.backlog.lock().unwrap_or_else(PoisonError::into_inner) = Some(backlog);
            }
            tokio::time::sleep((began.elapsed() * BACKLOG_SHARE).max(BACKLOG_EVERY)).await;
        }
    }

    fn backlog(&self) -> Option<MailboxSize> {
        *self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn point(&self, latency: Option<Duration>) -> Point {
        Point {
            at: Instant::now(),
            counts: CounterValues::of(&self.metrics),
            connected: (self.levels)().connected,
            resident: process::resident_bytes(),
            latency,
        }
    }

    /// How long the database takes to answer; `None` if it does not. Asked on the runtime that owns its connections.
    async fn latency(&self) -> Option<Duration> {
        let service = self.service.clone();
        self.runtime.spawn(async move { service.store_latency().await }).await.unwrap_or_default()
    }
}

/// Makes a server on a listening socket. It runs once it is awaited.
///
/// # Errors
/// If the socket cannot be used.
pub fn listen(listener: TcpListener, admin: Arc<Admin>) -> io::Result<Server> {
    let admin = Data::from(admin);
    let server = HttpServer::new(move || App::new().configure(pages::routes(admin.clone())))
        .workers(1)
        .max_connections(MAX_CONNECTIONS)
        .client_request_timeout(REQUEST_TIME)
        .keep_alive(KeepAlive::Timeout(KEEP_ALIVE))
        .shutdown_timeout(SHUTDOWN_SECONDS)
        .disable_signals()
        .listen(listener)?;
    Ok(server.run())
}
