//! The composition root: the only place where backends are chosen and parts are put together. Production and tests both
//! go through [`Application::build`].

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
    time::Duration,
};

use actix_server::{Server, ServerHandle};
use actix_web::{App, web};
use base64::{Engine, engine::general_purpose::STANDARD};
use rand::Rng;
use thiserror::Error;
use tokio::{
    runtime::{Builder, Runtime},
    sync::Semaphore,
};

use crate::{
    bus::{Bus, RedisBus},
    clock::{Clock, Entropy},
    config::{Config, decode_secret},
    domain::{
        envelope::{Load, MailboxBounds},
        otp::ServerSecret,
    },
    http::{self, Http},
    protocol::{frame::MAX_FRAME_BYTES, http::Origins},
    service::{Mailer, MailerError, Parts, Policy, Service, expire_mail_forever, reconcile_forever, sweep_forever},
    socket::{
        Budget, Hub, Node, open,
        transport::{self, Tuning},
    },
    store::{Store, StoreError},
};

/// Files that a node needs besides its sockets.
const RESERVED_FILES: u64 = 256;
/// The time over which a stopping node's clients should come back.
const DRAIN_SPREAD: Duration = Duration::from_secs(5);
/// How long the sockets of a stopping node have to send their Close frames.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// Connections that open at once: as many as one transaction of the store takes.
const OPENING: usize = 256;
/// How long a write may stand still after its actor has gone. Longer than the actor's own patience with a closing peer.
const WRITE_STALL: Duration = Duration::from_secs(35);
/// How long ordinary requests of a stopping node may take.
const SHUTDOWN_SECONDS: u64 = 5;

/// Why a server could not be built or run.
#[derive(Debug, Error)]
pub enum AppError {
    /// The store.
    #[error("cannot open the database: {0}")]
    Store(#[from] StoreError),
    /// The bus.
    #[error("bus.url is not the address of a Redis: {0}")]
    Bus(#[source] redis::RedisError),
    /// The mailer.
    #[error(transparent)]
    Mailer(#[from] MailerError),
    /// The server secret's file.
    #[error("cannot read or make the server secret {path}: {source}")]
    Secret {
        /// Where it should be.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The listener, or the system's limits.
    #[error("cannot serve on {bind}: {source}")]
    Listen {
        /// The address.
        bind: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The operating system gives no randomness or no threads.
    #[error("the system gives no randomness or threads: {0}")]
    System(#[source] io::Error),
}

/// A server that is ready to run.
pub struct Application {
    port: u16,
    server: Server,
    hub: Arc<Hub>,
    connections: Budget,
    store: Store,
    /// Owns store, batchers and bus; stopped last, so that no database connection hangs on a worker that drains.
    runtime: Runtime,
}

/// Stops a running server from elsewhere.
#[derive(Clone)]
pub struct Stopper {
    server: ServerHandle,
    hub: Arc<Hub>,
    /// Upgraded sockets, those that are closing included.
    connections: Budget,
}

impl Stopper {
    /// Tells all clients to come back later, closes their sockets, and stops the server once they are gone.
    pub async fn stop(&self) {
        self.hub.drain(DRAIN_SPREAD);
        let gone = async {
            while self.connections.in_use() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(DRAIN_TIME, gone).await.is_err() {
            tracing::warn!(sockets = self.connections.in_use(), "some sockets did not close in time");
        }
        self.server.stop(true).await;
    }
}

impl Application {
    /// Opens the backends, binds the port and puts everything together.
    ///
    /// # Errors
    /// Where a backend, the secret or the port cannot be had.
    pub fn build(config: &Config, clock: Clock, entropy: &Entropy) -> Result<Self, AppError> {
        let runtime = Builder::new_multi_thread()
            .thread_name("sealwire-store")
            .worker_threads(cores())
            .enable_all()
            .build()
            .map_err(AppError::System)?;
        let handle = runtime.handle().clone();
        let store = runtime.block_on(open_store(config))?;
        let secret = server_secret(config, entropy)?;
        let hub = Arc::new(Hub::default());
        let mailer =
            Mailer::start(config.mailer.url.reveal(), &config.mailer.from, clock.clone(), entropy.clone(), &handle)?;
        let node_id = entropy.uuid();
        let bus = match config.bus.url.reveal() {
            "local" => Bus::Local(hub.clone()),
            url => Bus::Redis(RedisBus::start(url, hub.clone(), node_id, &handle).map_err(AppError::Bus)?),
        };
        tracing::info!(%node_id, "starting");
        let parts = Parts {
            store: store.clone(),
            bus,
            door: hub.clone(),
            clock,
            entropy: entropy.clone(),
            mailer,
            secret,
            policy: policy(config),
        };
        let service = Arc::new(Service::start(parts, &handle));
        handle.spawn(sweep_forever(service.clone()));
        handle.spawn(expire_mail_forever(service.clone()));
        handle.spawn(reconcile_forever(service.clone()));

        let origins = Origins::new(&config.server.allowed_origins);
        // Half for what comes in, half for what is in flight and goes out: peers that declare large messages and never
        // finish them must not keep the others' requests from being served.
        let half = config.server.memory_budget_mb << 19;
        let (inbound, budget) = (Budget::new(half), Budget::new(half));
        let node = web::Data::new(Node {
            service: service.clone(),
            hub: hub.clone(),
            runtime: handle.clone(),
            budget,
            opening: Semaphore::new(OPENING),
            outbox_bytes: config.server.outbox_bytes,
            origins: origins.clone(),
        });
        let is_draining = {
            let hub = hub.clone();
            Box::new(move || hub.is_draining())
        };
        let http = web::Data::new(Http {
            service,
            runtime: handle,
            trusted_proxies: config.server.trusted_proxies.clone(),
            origins,
            is_draining,
        });
        let connections = Budget::new(max_connections(config.server.max_connections));
        let tuning = Tuning {
            max_message: MAX_FRAME_BYTES as u64,
            inbound,
            connections: connections.clone(),
            stall: WRITE_STALL,
        };
        let app = move || {
            let socket =
                web::resource("/v1/socket").route(web::get().to(open)).default_service(web::to(http::not_found));
            App::new().app_data(node.clone()).service(socket).configure(http::routes(http.clone()))
        };
        let bind = config.server.bind;
        let workers = if config.server.workers == 0 { cores() } else { config.server.workers };
        let entered = runtime.enter();
        let listened = transport::bind(bind).and_then(|listener: TcpListener| {
            let port = listener.local_addr()?.port();
            let server = Server::build().workers(workers).disable_signals().shutdown_timeout(SHUTDOWN_SECONDS);
            Ok((port, transport::listen(server, listener, app, tuning)?.run()))
        });
        drop(entered);
        let (port, server) = listened.map_err(|source| AppError::Listen { bind, source })?;
        Ok(Self { port, server, hub, connections, store, runtime })
    }

    /// The port it listens on: the configured one, or the free one that was taken for port 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A handle with which to stop it.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper { server: self.server.handle(), hub: self.hub.clone(), connections: self.connections.clone() }
    }

    /// Serves until it is stopped, then closes the store. Needs an actix system.
    ///
    /// # Errors
    /// Where the listener fails.
    pub async fn run_until_stopped(self) -> io::Result<()> {
        let served = self.server.await;
        self.store.close().await;
        self.runtime.shutdown_background();
        served
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// Opens the configured store and brings its tables up to date.
///
/// # Errors
/// The store's.
pub async fn open_store(config: &Config) -> Result<Store, StoreError> {
    Store::open(config.database.url.reveal(), config.database.max_connections).await
}

/// Looks at the configured store without changing it.
///
/// # Errors
/// The store's.
pub async fn inspect_store(config: &Config) -> Result<&'static str, StoreError> {
    Store::inspect(config.database.url.reveal()).await
}

/// The rules that the use cases follow.
#[must_use]
pub fn policy(config: &Config) -> Policy {
    let mailbox = &config.mailbox;
    Policy {
        session_lifetime: config.session_lifetime(),
        max_devices: config.auth.max_devices,
        low_watermark: config.keys.low_watermark,
        signed_prekey_lifetime: config.signed_prekey_lifetime(),
        mailbox: MailboxBounds {
            all: Load { envelopes: mailbox.max_envelopes.into(), bytes: mailbox.max_bytes },
            per_sender: Load { envelopes: mailbox.max_per_sender.into(), bytes: mailbox.max_bytes_per_sender },
        },
        limits: config.limits.clone(),
    }
}

/// Sockets that may be open: the configured number, or what the limit of open files leaves. The soft limit is raised to
/// the hard one first.
fn max_connections(configured: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let files = if raised.is_ok() { maximum } else { current };
    let room = usize::try_from(files.unwrap_or(1 << 20).saturating_sub(RESERVED_FILES)).unwrap_or(usize::MAX).max(64);
    if configured == 0 { room } else { configured }
}

/// The configured secret, or the one kept beside the `SQLite` file, which is made when it is absent.
fn server_secret(config: &Config, entropy: &Entropy) -> Result<ServerSecret, AppError> {
    if let Some(secret) = config.server_secret() {
        return Ok(secret);
    }
    let url = config.database.url.reveal();
    let file = url.trim_start_matches("sqlite:").trim_start_matches("//");
    let path = Path::new(file.split('?').next().unwrap_or(file)).with_extension("secret");
    let failed = |source| AppError::Secret { path: path.display().to_string(), source };
    match std::fs::read_to_string(&path) {
        Ok(text) => decode_secret(&text).ok_or_else(|| failed(io::Error::other("not 32 bytes in base64"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut bytes = [0; 32];
            entropy.draw(|rng| rng.fill_bytes(&mut bytes));
            write_private(&path, &STANDARD.encode(bytes)).map_err(failed)?;
            Ok(ServerSecret::new(bytes))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Writes a new file that its owner alone can read.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
