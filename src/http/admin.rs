//! The operator's listener, on its own port: `GET /status` for people and scripts, `GET /metrics` for Prometheus.
//!
//! It is read-only and reveals no user. Still, other web pages must not read it. The `Host` of a request must be an IP
//! address or an allowed name, which protects against DNS rebinding, and the request must present the token if one is
//! configured.

mod access;
mod alerts;
mod gauges;
mod history;
mod pages;
mod process;
mod runbook;
mod status;

use std::{
    io,
    net::TcpListener,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix_server::Server;
use actix_web::{App, HttpServer, http::KeepAlive, web::Data};
use sealwire_protocol::push::PushKind;
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

/// Maximum number of open connections. There are few operators.
const MAX_CONNECTIONS: usize = 64;
/// Timeout for receiving a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an idle connection stays open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Minimum pause between two measurements of the mail backlog.
const MIN_BACKLOG_PAUSE: Duration = Duration::from_secs(5);
/// The pause after a measurement is at least this many times its duration.
const BACKLOG_PAUSE_FACTOR: u32 = 100;
/// Pause between two measurements of how long wake-ups have been due.
const PUSH_WATCH_PAUSE: Duration = Duration::from_secs(15);
/// Seconds that responses in progress may take once the server stops.
const SHUTDOWN_SECONDS: u64 = 1;

/// The current usage of the node's resources, which only the composition root can read.
#[derive(Clone, Copy, Debug)]
pub struct NodeUsage {
    /// Connected devices.
    pub connected: usize,
    /// WebSocket connections, including closing ones: number and limit.
    pub sockets: (usize, usize),
    /// Connections that have not upgraded to WebSocket: number and limit.
    pub http: (usize, usize),
    /// Requests and mails in progress.
    pub work: usize,
    /// Bytes of large messages being received: in use and limit.
    pub inbound: (usize, usize),
    /// Bytes of requests in flight and outboxes: in use and limit.
    pub outbound: (usize, usize),
    /// Whether the node is stopping.
    pub is_draining: bool,
}

/// The state behind the listener's pages.
pub struct Admin {
    service: Arc<Service>,
    runtime: Handle,
    metrics: Arc<Metrics>,
    usage: Box<dyn Fn() -> NodeUsage + Send + Sync>,
    access: Access,
    node_id: Uuid,
    started: Instant,
    history: History,
    /// The mail in all mailboxes; `None` before the first measurement.
    backlog: Mutex<Option<MailboxSize>>,
}

impl Admin {
    /// Starts the tasks that record the history and measure the mail backlog. Queries to the store run on `runtime`.
    #[must_use]
    pub fn start(
        service: Arc<Service>,
        runtime: Handle,
        tasks: &Tasks,
        metrics: Arc<Metrics>,
        usage: Box<dyn Fn() -> NodeUsage + Send + Sync>,
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
            usage,
            access,
            node_id,
            started,
            history,
            backlog: Mutex::default(),
        });
        tasks.spawn("status history", admin.clone().sample_history());
        tasks.spawn("mailbox watch", admin.clone().measure_backlog());
        tasks.spawn("push watch", admin.clone().measure_overdue_pushes());
        admin
    }

    /// Records points for the charts of the status page.
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

    /// Measures the mail backlog repeatedly. That reads all mailboxes, so the pause depends on how long it takes.
    async fn measure_backlog(self: Arc<Self>) {
        loop {
            let began = Instant::now();
            // If the store fails, the last value is kept. The status shows the failure.
            if let Ok(backlog) = self.service.mailbox_backlog().await {
                *self.backlog.lock().unwrap_or_else(PoisonError::into_inner) = Some(backlog);
            }
            tokio::time::sleep((began.elapsed() * BACKLOG_PAUSE_FACTOR).max(MIN_BACKLOG_PAUSE)).await;
        }
    }

    /// Measures repeatedly how long wake-ups have been due.
    async fn measure_overdue_pushes(self: Arc<Self>) {
        loop {
            for kind in PushKind::ALL {
                // If the store fails, the last value is kept. The status shows the failure.
                if let Ok(overdue) = self.service.overdue_wake_up(kind).await {
                    self.metrics.push_overdue.set(kind, overdue.as_secs());
                }
            }
            tokio::time::sleep(PUSH_WATCH_PAUSE).await;
        }
    }

    fn backlog(&self) -> Option<MailboxSize> {
        *self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn point(&self, latency: Option<Duration>) -> Point {
        Point {
            at: Instant::now(),
            counts: CounterValues::of(&self.metrics),
            connected: (self.usage)().connected,
            resident: process::resident_bytes(),
            waiting: self.backlog().map(|backlog| backlog.envelopes),
            latency,
        }
    }

    /// How long the database takes to answer; `None` if it does not. The query runs on the runtime that owns the
    /// connections.
    async fn latency(&self) -> Option<Duration> {
        let service = self.service.clone();
        self.runtime.spawn(async move { service.store_latency().await }).await.unwrap_or_default()
    }
}

/// Builds a server on a listening socket. It accepts connections once it is polled.
///
/// # Errors
/// If the operating system refuses the listener.
pub fn listen(listener: TcpListener, admin: Arc<Admin>) -> io::Result<Server> {
    let admin = Data::from(admin);
    let server = HttpServer::new(move || App::new().configure(pages::routes(admin.clone())))
        .workers(1)
        .max_connections(MAX_CONNECTIONS)
        .client_request_timeout(REQUEST_TIMEOUT)
        .keep_alive(KeepAlive::Timeout(KEEP_ALIVE))
        .shutdown_timeout(SHUTDOWN_SECONDS)
        .disable_signals()
        .listen(listener)?;
    Ok(server.run())
}
