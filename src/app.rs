//! The composition root: the only place where backends are chosen and parts are put together. Production and tests both
//! build a server by [`Application::build`] and run it by [`Application::run_until_stopped`].

mod bounds;
mod error;
mod listeners;
mod open_files;
mod runtimes;
mod secret_file;

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use self::{
    bounds::Bounds,
    listeners::{Listener, listen_to_clients, listen_to_operator},
    runtimes::Runtimes,
};
use crate::{
    bus::{Bus, RedisBus},
    clock::{Clock, Entropy},
    config::{Config, LimitsConfig},
    domain::{
        envelope::{MailboxBounds, MailboxSize},
        otp::ServerSecret,
    },
    metrics::Metrics,
    service::{LimitSettings, Mailer, Parts, Policy, Service, expire_mail_forever, reconcile_forever, sweep_forever},
    shutdown::DrainTime,
    socket::Hub,
    sqlite_file::SqliteFile,
    store::{Store, StoreError, StoreSettings},
    tasks::Tasks,
};

pub use self::error::AppError;
pub use crate::shutdown::Stopper;

/// How long closing the database's connections may take once nothing uses them.
const CLOSE_TIME: Duration = Duration::from_millis(400);

/// A server that is ready to run.
pub struct Application {
    clients: Listener,
    operator: Listener,
    stopper: Stopper,
    tasks: Tasks,
    store: Store,
    /// Stopped last.
    runtimes: Runtimes,
}

/// What all parts of a node share.
struct NodeParts {
    id: Uuid,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    hub: Arc<Hub>,
}

impl Application {
    /// Opens the backends, starts the background tasks and binds both ports. Nothing is served before
    /// [`Self::run_until_stopped`].
    ///
    /// # Errors
    /// If a backend, the secret or a port cannot be had.
    pub fn build(config: &Config, clock: Clock, entropy: &Entropy) -> Result<Self, AppError> {
        let runtimes = Runtimes::start().map_err(AppError::System)?;
        let node =
            NodeParts { id: entropy.uuid(), tasks: runtimes.tasks(), metrics: Arc::default(), hub: Arc::default() };
        let store = open_served_store(config, entropy, &node, &runtimes)?;
        let service = start_service(config, clock, entropy, &store, &node)?;
        start_housekeeping(&service, &node.tasks);
        let bounds = Bounds::new(config, &node);
        let operator = listen_to_operator(config, &service, &node, &bounds, runtimes.store())?;
        let clients = listen_to_clients(config, &service, &node, &bounds, runtimes.store())?;
        let stopper = Stopper {
            server: clients.handle(),
            admin: operator.handle(),
            hub: node.hub,
            connections: bounds.sockets,
            time: DrainTime::from_secs(config.server.drain_s),
        };
        Ok(Self { clients, operator, stopper, tasks: node.tasks, store, runtimes })
    }

    /// The clients' port: the configured one, or the free one that was taken for port 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.clients.port()
    }

    /// The operator's port, likewise.
    #[must_use]
    pub fn admin_port(&self) -> u16 {
        self.operator.port()
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
    /// If a listener or a background task ends before it should. The rest is stopped in good order all the same.
    pub async fn run_until_stopped(mut self) -> Result<(), AppError> {
        let served = self.serve().await;
        if let Err(error) = &served {
            tracing::error!(%error, "a part of the server has ended; stopping");
            // The failure stays one even if the rest stops well.
            tokio::join!(self.stopper.stop(), self.clients.finish());
        }
        self.stopper.finish_work(self.tasks.work()).await;
        // The operator can watch until the clients' work is done.
        tokio::join!(self.stopper.admin.stop(false), self.operator.finish());
        if tokio::time::timeout(CLOSE_TIME, self.store.close()).await.is_err() {
            tracing::warn!("the database connections did not close in time");
        }
        self.runtimes.stop();
        served
    }

    /// Serves until the clients' listener has been stopped, or any part ends that should not.
    async fn serve(&mut self) -> Result<(), AppError> {
        tokio::select! {
            served = self.clients.server() => match served {
                Ok(()) if self.stopper.hub.is_draining() => Ok(()),
                Ok(()) => Err(AppError::TaskEnded("listener")),
                Err(error) => Err(AppError::Server(error)),
            },
            served = self.operator.server() => {
                Err(served.map_or_else(AppError::Server, |()| AppError::TaskEnded("admin listener")))
            }
            name = self.tasks.first_ended() => Err(AppError::TaskEnded(name)),
        }
    }
}

/// Opens the store as the one server of a SQLite file, or one of the servers of a PostgreSQL database.
fn open_served_store(
    config: &Config,
    entropy: &Entropy,
    node: &NodeParts,
    runtimes: &Runtimes,
) -> Result<Store, StoreError> {
    let opening = Store::open(config.database.url.reveal(), store_settings(config, entropy));
    Ok(runtimes.store().block_on(opening)?.with_metrics(node.metrics.clone()))
}

fn store_settings(config: &Config, entropy: &Entropy) -> StoreSettings {
    StoreSettings {
        max_connections: config.database.max_connections,
        low_watermark: config.keys.low_watermark,
        entropy: entropy.clone(),
    }
}

/// Puts the use cases together with what they use.
fn start_service(
    config: &Config,
    clock: Clock,
    entropy: &Entropy,
    store: &Store,
    node: &NodeParts,
) -> Result<Arc<Service>, AppError> {
    let secret = server_secret(config, entropy)?;
    let mailer = start_mailer(config, &clock, entropy, node)?;
    let bus = start_bus(config, node)?;
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(node_id = %node.id, version, database = store.kind(), bus = bus.kind(), "starting");
    let parts = Parts {
        store: store.clone(),
        bus,
        local_delivery: node.hub.clone(),
        clock,
        entropy: entropy.clone(),
        mailer,
        secret,
        policy: policy(config),
        metrics: node.metrics.clone(),
    };
    Ok(Arc::new(Service::start(parts, &node.tasks)))
}

/// The configured secret, or that beside the SQLite file.
fn server_secret(config: &Config, entropy: &Entropy) -> Result<ServerSecret, AppError> {
    if let Some(secret) = config.server_secret() {
        return Ok(secret);
    }
    let file = SqliteFile::from_url(config.database.url.reveal()).map_err(StoreError::from)?;
    Ok(secret_file::read_or_make(&file, entropy)?)
}

fn start_mailer(config: &Config, clock: &Clock, entropy: &Entropy, node: &NodeParts) -> Result<Mailer, AppError> {
    Ok(Mailer::new(
        config.mailer.url.reveal(),
        &config.mailer.from,
        clock.clone(),
        entropy.clone(),
        node.metrics.clone(),
        node.tasks.work().clone(),
    )?)
}

fn start_bus(config: &Config, node: &NodeParts) -> Result<Bus, AppError> {
    match config.bus.url.reveal() {
        "local" => Ok(Bus::Local(node.hub.clone())),
        url => RedisBus::start(url, node.hub.clone(), node.id, node.metrics.clone(), &node.tasks)
            .map(Bus::Redis)
            .map_err(AppError::Bus),
    }
}

/// Starts what a node does by itself from time to time.
fn start_housekeeping(service: &Arc<Service>, tasks: &Tasks) {
    tasks.spawn("sweep", sweep_forever(service.clone()));
    tasks.spawn("mail expiry", expire_mail_forever(service.clone()));
    tasks.spawn("reconcile", reconcile_forever(service.clone()));
}

/// Opens the configured store for a command, beside a server if one runs, and brings its tables up to date.
///
/// # Errors
/// Those of [`Store::open_beside_server`].
pub async fn open_store(config: &Config, entropy: &Entropy) -> Result<Store, StoreError> {
    Store::open_beside_server(config.database.url.reveal(), store_settings(config, entropy)).await
}

/// Looks at the configured store without changing it, and returns what it found in a few words.
///
/// # Errors
/// Those of [`Store::inspect`].
pub async fn inspect_store(config: &Config) -> Result<&'static str, StoreError> {
    Store::inspect(config.database.url.reveal()).await
}

/// The configured rules of the use cases.
#[must_use]
pub fn policy(config: &Config) -> Policy {
    let mailbox = &config.mailbox;
    Policy {
        session_lifetime: config.session_lifetime(),
        max_devices: config.auth.max_devices,
        low_watermark: config.keys.low_watermark,
        signed_prekey_lifetime: config.signed_prekey_lifetime(),
        mailbox: MailboxBounds {
            all: MailboxSize { envelopes: mailbox.max_envelopes.into(), bytes: mailbox.max_bytes },
            per_sender: MailboxSize { envelopes: mailbox.max_per_sender.into(), bytes: mailbox.max_bytes_per_sender },
        },
        limits: limits(&config.limits),
    }
}

/// The limits of the use cases. Those of connections are [`Bounds`].
fn limits(limits: &LimitsConfig) -> LimitSettings {
    LimitSettings {
        otp_per_email_hour: limits.otp_per_email_hour,
        otp_per_email_day: limits.otp_per_email_day,
        otp_per_email_network_hour: limits.otp_per_email_network_hour,
        otp_per_network_hour: limits.otp_per_network_hour,
        verify_per_network_minute: limits.verify_per_network_minute,
        find_per_user_hour: limits.find_per_user_hour,
        claim_burst: limits.claim_burst,
        claim_refill_s: limits.claim_refill_s,
        sends_per_device_second: limits.sends_per_device_second,
    }
}
