//! The composition root: the only place where backends are chosen and parts are put together. Production and tests both
//! go through [`Application::build`].

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::Path,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use actix_server::Server;
use actix_web::{App, web};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{
    FutureExt,
    future::{Fuse, FusedFuture},
};
use rand::Rng;
use thiserror::Error;
use tokio::{
    runtime::{Builder, Runtime},
    sync::Semaphore,
};
use uuid::Uuid;

use crate::{
    bus::{Bus, RedisBus},
    clock::{Clock, Entropy},
    config::{Config, ServerConfig, decode_secret},
    domain::{
        envelope::{Load, MailboxBounds},
        otp::ServerSecret,
    },
    http::{
        self, Http,
        admin::{self, Access, Admin, Levels},
    },
    metrics::Metrics,
    protocol::{frame::MAX_FRAME_BYTES, http::Origins},
    service::{
        LimitSettings, Mailer, MailerError, Parts, Policy, Service, expire_mail_forever, reconcile_forever,
        sweep_forever,
    },
    shutdown::DrainTime,
    socket::{
        Budget, Hub, NetworkLimits, Networks, Node, open,
        transport::{self, Admission, Tuning},
    },
    store::{Store, StoreError, StoreSettings},
    tasks::{Tasks, Work},
};

pub use crate::shutdown::Stopper;

/// Files that a node needs besides its clients' connections.
const RESERVED_FILES: u64 = 384;
/// How long closing the database's connections may take once nothing uses them.
const CLOSE_TIME: Duration = Duration::from_millis(400);
/// Threads for the lanes of batchers at most. They plan what the database then does.
const LANE_THREADS: usize = 4;
/// Connections that open at once: as many as one transaction of the store takes.
const OPENING: usize = 256;
/// How long a write may stand still after its actor has gone. Longer than the actor's own patience with a closing peer.
const WRITE_STALL: Duration = Duration::from_secs(35);

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
    #[error("cannot serve on {setting} = {bind}: {source}")]
    Listen {
        /// The setting that has the address.
        setting: &'static str,
        /// The address.
        bind: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The listener, while it ran.
    #[error("the listener failed: {0}")]
    Server(#[source] io::Error),
    /// A part without which the server would go on half dead. What was left of it has been stopped in good order.
    #[error("a background task ended: {0}")]
    TaskEnded(&'static str),
    /// The operating system gives no randomness or no threads.
    #[error("the system gives no randomness or threads: {0}")]
    System(#[source] io::Error),
}

/// A server that is ready to run.
pub struct Application {
    port: u16,
    admin_port: u16,
    server: Server,
    /// On a thread of its own, so that it answers whatever the clients do.
    admin: Server,
    stopper: Stopper,
    tasks: Tasks,
    store: Store,
    /// Owns store and bus; stopped last, so that no database connection hangs on a worker that drains.
    runtime: Runtime,
    /// Owns the batchers' lanes and their connections.
    lanes: Runtime,
}

impl Application {
    /// Opens the backends, binds the port and puts everything together.
    ///
    /// # Errors
    /// Where a backend, the secret or the port cannot be had.
    pub fn build(config: &Config, clock: Clock, entropy: &Entropy) -> Result<Self, AppError> {
        let runtime = build_runtime("sealwire-store", cores()).map_err(AppError::System)?;
        let lanes = build_runtime("sealwire-lanes", cores().min(LANE_THREADS)).map_err(AppError::System)?;
        let tasks = Tasks::new(runtime.handle().clone()).with_lanes(lanes.handle().clone());
        let metrics = Arc::new(Metrics::new());
        let store = Store::open(config.database.url.reveal(), store_settings(config, entropy));
        let store = runtime.block_on(store)?.with_metrics(metrics.clone());
        let secret = server_secret(config, entropy)?;
        let hub = Arc::new(Hub::default());
        let mailer = Mailer::new(
            config.mailer.url.reveal(),
            &config.mailer.from,
            clock.clone(),
            entropy.clone(),
            metrics.clone(),
            tasks.work().clone(),
        )?;
        let node_id = entropy.uuid();
        let bus = start_bus(config, &hub, node_id, &metrics, &tasks)?;
        let version = env!("CARGO_PKG_VERSION");
        tracing::info!(%node_id, version, database = store.kind(), bus = bus.kind(), "starting");
        let parts = Parts {
            store: store.clone(),
            bus,
            local_delivery: hub.clone(),
            clock,
            entropy: entropy.clone(),
            mailer,
            secret,
            policy: policy(config),
            metrics: metrics.clone(),
        };
        let service = Arc::new(Service::start(parts, &tasks));
        tasks.spawn("sweep", sweep_forever(service.clone()));
        tasks.spawn("mail expiry", expire_mail_forever(service.clone()));
        tasks.spawn("reconcile", reconcile_forever(service.clone()));

        let origins = Origins::new(&config.server.allowed_origins);
        // Half for what comes in, half for what is in flight and goes out: peers that declare large messages and never
        // finish them must not keep the others' requests from being served.
        let half = config.server.memory_budget_mb << 19;
        let (inbound, budget) = (Budget::new(half), Budget::new(half));
        let (most_sockets, most_http) = most_connections(&config.server);
        let connections = Budget::new(most_sockets);
        let networks = Networks::new(network_limits(&config.limits, most_http), metrics.clone());
        let admission = Admission::new(most_http, networks.clone(), &config.server.trusted_proxies);
        let node = web::Data::new(Node {
            service: service.clone(),
            hub: hub.clone(),
            runtime: tasks.work().clone(),
            budget,
            opening: Semaphore::new(OPENING),
            outbox_bytes: config.server.outbox_bytes,
            requests_per_second: config.limits.requests_per_connection_second,
            networks,
            trusted_proxies: config.server.trusted_proxies.clone(),
            origins: origins.clone(),
            metrics: metrics.clone(),
        });
        let (sockets, http) = (connections.clone(), admission.http.clone());
        let budgets = [sockets, http, inbound.clone(), node.budget.clone()];
        let levels = levels(hub.clone(), tasks.work().clone(), budgets);
        let access = Access::new(config.admin.token.reveal(), &config.admin.allowed_hosts);
        let handle = runtime.handle().clone();
        let admin = Admin::start(service.clone(), handle, &tasks, metrics.clone(), levels, access, node_id);
        let is_draining = {
            let hub = hub.clone();
            Box::new(move || hub.is_draining())
        };
        let http = web::Data::new(Http {
            service,
            runtime: tasks.work().clone(),
            trusted_proxies: config.server.trusted_proxies.clone(),
            origins,
            metrics: metrics.clone(),
            is_draining,
        });
        let tuning = Tuning {
            max_message: MAX_FRAME_BYTES as u64,
            inbound,
            admission,
            connections: connections.clone(),
            stall: WRITE_STALL,
        };
        let app = move || {
            let socket =
                web::resource("/v1/socket").route(web::get().to(open)).default_service(web::to(http::not_found));
            App::new().app_data(node.clone()).service(socket).configure(http::routes(http.clone()))
        };
        let (admin_port, admin) = listen_admin(config.admin.bind, admin, &runtime)?;
        let bind = config.server.bind;
        let workers = if config.server.workers == 0 { cores() } else { config.server.workers };
        let time = DrainTime::from_secs(config.server.drain_s);
        let entered = runtime.enter();
        let listened = transport::bind(bind).and_then(|listener: TcpListener| {
            let port = listener.local_addr()?.port();
            let server = Server::build().workers(workers).disable_signals().shutdown_timeout(time.http_secs());
            Ok((port, transport::listen(server, listener, app, tuning)?.run()))
        });
        drop(entered);
        let (port, server) = listened.map_err(|source| AppError::Listen { setting: "server.bind", bind, source })?;
        let stopper = Stopper { server: server.handle(), admin: admin.handle(), hub, connections, time };
        Ok(Self { port, admin_port, server, admin, stopper, tasks, store, runtime, lanes })
    }

    /// The port it listens on: the configured one, or the free one that was taken for port 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port of the operator's listener.
    #[must_use]
    pub fn admin_port(&self) -> u16 {
        self.admin_port
    }

    /// A handle with which to stop it.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Its background tasks, to which more can be added.
    #[must_use]
    pub fn tasks(&self) -> Tasks {
        self.tasks.clone()
    }

    /// Serves until it is stopped or a part of it fails, then closes the store. Needs an actix system.
    ///
    /// # Errors
    /// Where a listener or a background task ends before it should.
    pub async fn run_until_stopped(self) -> Result<(), AppError> {
        let Self { server, admin, stopper, tasks, store, runtime, lanes, .. } = self;
        let (mut server, mut admin) = (pin!(server.fuse()), pin!(admin.fuse()));
        let served = tokio::select! {
            served = &mut server => match served {
                Ok(()) if stopper.hub.is_draining() => Ok(()),
                Ok(()) => Err(AppError::TaskEnded("listener")),
                Err(error) => Err(AppError::Server(error)),
            },
            watched = &mut admin => Err(watched.map_or_else(AppError::Server, |()| AppError::TaskEnded("admin listener"))),
            name = tasks.first_ended() => Err(AppError::TaskEnded(name)),
        };
        if let Err(error) = &served {
            tracing::error!(%error, "a part of the server has ended; stopping");
            // Its failure does not become a success where the rest stops well.
            tokio::join!(stopper.stop(), drive(server.as_mut()));
        }
        stopper.settle(tasks.work()).await;
        // The operator can watch until the clients' work is done.
        tokio::join!(stopper.admin.stop(false), drive(admin.as_mut()));
        if tokio::time::timeout(CLOSE_TIME, store.close()).await.is_err() {
            tracing::warn!("the database connections did not close in time");
        }
        lanes.shutdown_background();
        runtime.shutdown_background();
        served
    }
}

/// What one client network may have of a node that takes so many connections that are no sockets.
fn network_limits(limits: &LimitSettings, most_http: usize) -> NetworkLimits {
    NetworkLimits {
        sockets: limits.connections_per_network,
        // Whatever a node holds, one network must leave half of it to the others.
        http: limits.http_connections_per_network.min((most_http / 2).max(1)),
        connects_per_second: limits.connects_per_network_second,
    }
}

/// What the operator's listener asks about the node.
fn levels(hub: Arc<Hub>, work: Work, budgets: [Budget; 4]) -> Box<dyn Fn() -> Levels + Send + Sync> {
    Box::new(move || {
        let [sockets, http, inbound, outbound] = budgets.each_ref().map(|budget| (budget.in_use(), budget.limit()));
        Levels {
            connected: hub.connected(),
            sockets,
            http,
            work: work.unfinished(),
            inbound,
            outbound,
            is_draining: hub.is_draining(),
        }
    })
}

/// Runs a listener to its end, if it has not come to that yet.
async fn drive(listener: Pin<&mut Fuse<Server>>) {
    if !listener.is_terminated() {
        // However it ends, the node is ending with it.
        let _ = listener.await;
    }
}

/// Binds the operator's port.
fn listen_admin(bind: SocketAddr, admin: Arc<Admin>, runtime: &Runtime) -> Result<(u16, Server), AppError> {
    let _entered = runtime.enter();
    let listener = transport::bind(bind);
    let listened = listener.and_then(|listener| Ok((listener.local_addr()?.port(), admin::listen(listener, admin)?)));
    listened.map_err(|source| AppError::Listen { setting: "admin.bind", bind, source })
}

fn build_runtime(name: &str, threads: usize) -> io::Result<Runtime> {
    Builder::new_multi_thread().thread_name(name).worker_threads(threads).enable_all().build()
}

fn start_bus(
    config: &Config,
    hub: &Arc<Hub>,
    node_id: Uuid,
    metrics: &Arc<Metrics>,
    tasks: &Tasks,
) -> Result<Bus, AppError> {
    match config.bus.url.reveal() {
        "local" => Ok(Bus::Local(hub.clone())),
        url => {
            RedisBus::start(url, hub.clone(), node_id, metrics.clone(), tasks).map(Bus::Redis).map_err(AppError::Bus)
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

fn store_settings(config: &Config, entropy: &Entropy) -> StoreSettings {
    StoreSettings {
        max_connections: config.database.max_connections,
        low_watermark: config.keys.low_watermark,
        entropy: entropy.clone(),
    }
}

/// Opens the configured store for a command, beside a server if one runs, and brings its tables up to date.
///
/// # Errors
/// The store's.
pub async fn open_store(config: &Config, entropy: &Entropy) -> Result<Store, StoreError> {
    Store::open_beside(config.database.url.reveal(), store_settings(config, entropy)).await
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

/// Sockets and other connections that may be open: the configured numbers, or what the limit of open files leaves. The
/// soft limit is raised to the hard one first.
fn most_connections(server: &ServerConfig) -> (usize, usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let files = if raised.is_ok() { maximum } else { current };
    let room = usize::try_from(files.unwrap_or(1 << 20).saturating_sub(RESERVED_FILES)).unwrap_or(usize::MAX).max(128);
    let or = |configured: usize, derived: usize| if configured == 0 { derived } else { configured };
    (or(server.max_connections, room - room / 4), or(server.max_http_connections, room / 4))
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
