//! The composition root: the only module that chooses the backends and creates the modules' dependencies. Both
//! production and tests build a server with [`Application::build`] and run it with [`Application::run_until_stopped`].

mod error;
mod listeners;
mod node_limits;
mod open_files;
mod runtimes;
mod secret_file;

use std::{sync::Arc, time::Duration};

use sealwire_push::{
    ApnsKey, ApnsSettings, FcmSettings, ServiceAccount, Settings as PushSettings, SetupError, VapidKey, WebPushSettings,
};
use uuid::Uuid;

use self::{
    listeners::{Listener, listen_to_clients, listen_to_operator},
    node_limits::NodeLimits,
    runtimes::Runtimes,
};
use crate::{
    bus::{self, Bus, BusNode, RedisBus},
    clock::{Clock, Entropy},
    config::{Config, DemoSetting},
    domain::{
        Email,
        envelope::{MailboxBounds, MailboxSize},
        otp::ServerSecret,
    },
    metrics::Metrics,
    service::{
        Mailer, Policy, Pushes, Service, ServiceDependencies, beat_forever, check_clock_forever, check_mailer,
        expire_mail_forever, look_at_approvals_forever, reconcile_forever, sweep_forever, wake_devices_forever,
    },
    shutdown::DrainTime,
    socket::Hub,
    sqlite_file::SqliteFile,
    store::{Store, StoreError, StoreSettings},
    tasks::{Tasks, Work},
    usage_limits::UsageLimits,
};

pub use self::error::AppError;
pub use crate::shutdown::Stopper;

/// Timeout for deleting this node's heartbeat and closing the database connections.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(400);

/// A server that is ready to run.
pub struct Application {
    clients: Listener,
    operator: Listener,
    stopper: Stopper,
    tasks: Tasks,
    store: Store,
    service: Arc<Service>,
    /// Stopped last: everything else runs on them.
    runtimes: Runtimes,
}

/// What the modules of a node share.
struct NodeContext {
    /// Chosen at random at each start.
    id: Uuid,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    hub: Arc<Hub>,
}

impl Application {
    /// Opens the backends, starts the background tasks and binds both ports. The server accepts connections once
    /// [`Self::run_until_stopped`] runs.
    ///
    /// # Errors
    /// If threads cannot be started, the database, the bus, the mailer or the server secret cannot be set up, or a port
    /// cannot be bound.
    pub fn build(config: &Config, clock: Clock, entropy: &Entropy) -> Result<Self, AppError> {
        // First, so that a start with invalid settings changes nothing, such as creating a database file.
        check(config)?;
        let runtimes = Runtimes::start().map_err(AppError::System)?;
        let node =
            NodeContext { id: entropy.uuid(), tasks: runtimes.tasks(), metrics: Arc::default(), hub: Arc::default() };
        let store = open_served_store(config, entropy, &node, &runtimes)?;
        let bus = start_bus(config, &clock, entropy, &store, &node, &runtimes)?;
        let service = start_service(config, clock, entropy, &store, bus, &node)?;
        let limits = NodeLimits::new(config, &node);
        let operator = listen_to_operator(config, &service, &node, &limits, runtimes.store())?;
        let clients = listen_to_clients(config, &service, &node, &limits, runtimes.store())?;
        // Nothing can fail from here on. After a heartbeat of a start that failed, the other nodes would report this node
        // as unreachable.
        runtimes.store().block_on(service.check_clock());
        start_housekeeping(&service, &node.tasks);
        let stopper = Stopper {
            server: clients.handle(),
            admin: operator.handle(),
            hub: node.hub,
            connections: limits.sockets,
            time: DrainTime::from_secs(config.server.drain_s),
        };
        Ok(Self { clients, operator, stopper, tasks: node.tasks, store, service, runtimes })
    }

    /// The port of the clients' listener. If port 0 is configured, the system has chosen it.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.clients.port()
    }

    /// The port of the operator's listener. If port 0 is configured, the system has chosen it.
    #[must_use]
    pub fn admin_port(&self) -> u16 {
        self.operator.port()
    }

    /// Returns a handle that stops this server.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Returns a handle to the background tasks, with which more can be spawned.
    #[must_use]
    pub fn tasks(&self) -> Tasks {
        self.tasks.clone()
    }

    /// Serves until the server is stopped or a listener or background task fails. Then finishes the work and closes the
    /// store. Must run in an actix system.
    ///
    /// # Errors
    /// If a listener failed, or a listener or a background task ended unexpectedly. The rest of the server was stopped
    /// gracefully.
    pub async fn run_until_stopped(mut self) -> Result<(), AppError> {
        let served = self.serve().await;
        if let Err(error) = &served {
            tracing::error!(%error, "a part of the server has ended; stopping");
            // Errors of stopping are ignored: the first error is returned.
            tokio::join!(self.stopper.stop(), self.clients.finish());
        }
        self.stopper.finish_work(self.tasks.work()).await;
        // The operator's listener stops last, so that the operator can watch the server stop.
        tokio::join!(self.stopper.admin.stop(false), self.operator.finish());
        match tokio::time::timeout(CLOSE_TIMEOUT, self.service.leave()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(
                    %error,
                    "cannot delete this node's heartbeat; others may call it unreachable for 30 seconds"
                );
            }
            Err(_) => tracing::warn!(
                "cannot delete this node's heartbeat in time; others may call it unreachable for 30 seconds"
            ),
        }
        self.tasks.end();
        if tokio::time::timeout(CLOSE_TIMEOUT, self.store.close()).await.is_err() {
            tracing::warn!("the database connections did not close in time");
        }
        self.runtimes.stop();
        served
    }

    /// Serves until the clients' listener was stopped, or a listener or background task ended unexpectedly.
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

/// Opens the store for serving: as the only server of a SQLite file, or as one of several servers of a
/// PostgreSQL database.
fn open_served_store(
    config: &Config,
    entropy: &Entropy,
    node: &NodeContext,
    runtimes: &Runtimes,
) -> Result<Store, StoreError> {
    let opening = Store::open(config.database.url.reveal(), store_settings(config, entropy));
    Ok(runtimes.store().block_on(opening)?.with_metrics(node.metrics.clone()))
}

fn store_settings(config: &Config, entropy: &Entropy) -> StoreSettings {
    StoreSettings {
        max_connections: config.database.max_connections,
        pooler: config.database.pooler.then(|| config.database.migrate_url.reveal().to_owned()),
        low_watermark: config.keys.low_watermark,
        device_age: config.device_age(),
        entropy: entropy.clone(),
    }
}

/// Starts the service with all its dependencies.
fn start_service(
    config: &Config,
    clock: Clock,
    entropy: &Entropy,
    store: &Store,
    bus: Bus,
    node: &NodeContext,
) -> Result<Arc<Service>, AppError> {
    let secret = server_secret(config, entropy)?;
    let mailer = start_mailer(config, &clock, entropy, node.metrics.clone(), node.tasks.work().clone())?;
    if config.prints_mails() {
        tracing::warn!(
            "mails are only printed, and codes are not limited; set mailer.url before others use this server"
        );
    }
    if config.server.demo == DemoSetting::Auto && config.prints_mails() && !config.serves_demo() {
        tracing::info!(
            "the try-it page is off: it needs a loopback address in server.bind and no server.trusted_proxies"
        );
    }
    mailer.warn_if_unreachable();
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(node_id = %node.id, version, database = store.kind(), bus = bus.kind(), "starting");
    let pushes =
        Pushes::new(push_sender(config, &clock)?, store.clone(), node.metrics.clone(), node.tasks.work().clone());
    let dependencies = ServiceDependencies {
        node: node.id,
        store: store.clone(),
        bus,
        local_delivery: node.hub.clone(),
        clock,
        entropy: entropy.clone(),
        mailer,
        pushes,
        secret,
        policy: policy(config),
        metrics: node.metrics.clone(),
    };
    Ok(Arc::new(Service::start(dependencies, &node.tasks)))
}

/// Returns the configured server secret. If none is configured, reads it from the file beside the SQLite database.
fn server_secret(config: &Config, entropy: &Entropy) -> Result<ServerSecret, AppError> {
    if let Some(secret) = config.server_secret() {
        return Ok(secret);
    }
    let file = SqliteFile::from_url(config.database.url.reveal()).map_err(StoreError::from)?;
    Ok(secret_file::read_or_create(&file, entropy)?)
}

/// The SQLite file beside which the key for Web Push is kept; `None` on PostgreSQL.
fn vapid_key_file(config: &Config) -> Result<Option<SqliteFile>, StoreError> {
    let url = config.database.url.reveal();
    Ok(if url.starts_with("sqlite:") { Some(SqliteFile::from_url(url)?) } else { None })
}

/// Creates the sender for push services, with the keys that are configured or in a file. `None` if the system has no root
/// certificates: then nothing else of the server fails.
fn push_sender(config: &Config, clock: &Clock) -> Result<Option<sealwire_push::Sender>, AppError> {
    let key = match (config.push.vapid_key.reveal(), vapid_key_file(config)?) {
        ("", Some(file)) => Some(secret_file::read_or_create_vapid_key(&file)?),
        // Every node would have another key.
        ("", None) => None,
        (text, _) => Some(VapidKey::parse(text)?),
    };
    if config.push.allow_insecure {
        tracing::warn!("push.allow_insecure is set: clients can have this machine requested; it is for tests only");
    }
    let settings = PushSettings {
        web_push: key.map(|key| WebPushSettings { key, subject: config.push_contact() }),
        apns: apns_settings(config)?,
        fcm: fcm_settings(config)?,
        allow_insecure: config.push.allow_insecure,
        trusted_services: config.push.trusted_services.clone(),
        forbidden_networks: config.push.forbidden_networks.clone(),
        ..PushSettings::default()
    };
    let clock = clock.clone();
    match sealwire_push::Sender::new(settings, move || clock.now().to_utc().into()) {
        Ok(sender) => Ok(Some(sender)),
        Err(error @ SetupError::NoRoots) => {
            tracing::warn!(%error, "no pushes can be sent");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn apns_settings(config: &Config) -> Result<Option<ApnsSettings>, AppError> {
    let push = &config.push;
    if push.apns_key.reveal().is_empty() {
        return Ok(None);
    }
    Ok(Some(ApnsSettings {
        key: ApnsKey::parse(push.apns_key.reveal())?,
        key_id: push.apns_key_id.clone(),
        team_id: push.apns_team_id.clone(),
        host: push.apns_url.clone(),
        sandbox_host: push.apns_sandbox_url.clone(),
        alert: push.apns_alert.clone(),
    }))
}

fn fcm_settings(config: &Config) -> Result<Option<FcmSettings>, AppError> {
    let push = &config.push;
    if push.fcm_account.reveal().is_empty() {
        return Ok(None);
    }
    let account = ServiceAccount::parse(push.fcm_account.reveal())?;
    Ok(Some(FcmSettings { account, host: push.fcm_url.clone() }))
}

fn start_mailer(
    config: &Config,
    clock: &Clock,
    entropy: &Entropy,
    metrics: Arc<Metrics>,
    work: Work,
) -> Result<Mailer, AppError> {
    let (url, from) = (config.mailer.url.reveal(), &config.mailer.from);
    Ok(Mailer::new(url, from, clock.clone(), entropy.clone(), metrics, work)?)
}

/// Starts the bus. For Redis, first reads the time, the deployment and the running nodes from the database.
fn start_bus(
    config: &Config,
    clock: &Clock,
    entropy: &Entropy,
    store: &Store,
    node: &NodeContext,
    runtimes: &Runtimes,
) -> Result<Bus, AppError> {
    let url = match config.bus.url.reveal() {
        "local" => return Ok(Bus::Local(node.hub.clone())),
        url => url,
    };
    let secret = server_secret(config, entropy)?;
    let heartbeat = runtimes.store().block_on(store.running_nodes(node.id, clock.now()))?;
    let on_bus = BusNode { id: node.id, secret: &secret, heartbeat, local: node.hub.clone() };
    RedisBus::start(url, on_bus, node.metrics.clone(), &node.tasks).map(Bus::Redis).map_err(AppError::Bus)
}

/// Starts the periodic tasks: writes heartbeats, deletes old rows and expired mail, and reconciles the connections with
/// the database.
fn start_housekeeping(service: &Arc<Service>, tasks: &Tasks) {
    tasks.spawn("clock", check_clock_forever(service.clone()));
    if service.has_heartbeat() {
        tasks.spawn("heartbeat", beat_forever(service.clone()));
    }
    tasks.spawn("sweep", sweep_forever(service.clone()));
    tasks.spawn("mail expiry", expire_mail_forever(service.clone()));
    tasks.spawn("approvals", look_at_approvals_forever(service.clone()));
    tasks.spawn("reconcile", reconcile_forever(service.clone()));
    tasks.spawn("push", wake_devices_forever(service.clone()));
}

/// Opens and migrates the configured store for a command. A server may be using the same database.
///
/// # Errors
/// Those of [`Store::open_beside_server`].
pub async fn open_store(config: &Config, entropy: &Entropy) -> Result<Store, StoreError> {
    Store::open_beside_server(config.database.url.reveal(), store_settings(config, entropy)).await
}

/// Checks the settings in the same way as a start, without connecting to anything or changing anything. If
/// `auth.secret` is empty, also reads the secret file.
///
/// # Errors
/// The error with which a start would fail.
pub fn check(config: &Config) -> Result<(), AppError> {
    let database = config.database.url.reveal();
    Store::check_url(database).map_err(AppError::DatabaseUrl)?;
    if config.database.pooler {
        Store::check_url(config.database.migrate_url.reveal()).map_err(AppError::DatabaseUrl)?;
    }
    if config.server_secret().is_none() {
        secret_file::check(&SqliteFile::from_url(database).map_err(StoreError::from)?)?;
    }
    if config.push.vapid_key.reveal().is_empty()
        && let Some(file) = vapid_key_file(config)?
    {
        secret_file::check_vapid_key(&file)?;
    }
    check_mailer(config.mailer.url.reveal(), &config.mailer.from)?;
    match config.bus.url.reveal() {
        "local" => Ok(()),
        url => bus::check_url(url).map_err(AppError::Bus),
    }
}

/// Inspects the configured database without changing it. Returns a short description of its state.
///
/// # Errors
/// Those of [`Store::inspect`].
pub async fn inspect_store(config: &Config) -> Result<&'static str, StoreError> {
    let pooler = config.database.pooler.then(|| config.database.migrate_url.reveal());
    Store::inspect(config.database.url.reveal(), pooler).await
}

/// Checks that the configured bus can be used. Returns a short description of it.
///
/// # Errors
/// [`AppError::BusUnreachable`], with the cause.
pub async fn try_bus(config: &Config) -> Result<&'static str, AppError> {
    match config.bus.url.reveal() {
        "local" => Ok("the bus is local"),
        url => bus::try_connect(url).await.map(|()| "Redis answers").map_err(AppError::BusUnreachable),
    }
}

/// Checks that the configured mailer can be used, and sends a test mail if an address is given. Returns a short
/// description of the outcome. Must be called in a Tokio runtime.
///
/// # Errors
/// If the address is invalid, or the mail server does not answer or does not accept the mail.
pub async fn try_mailer(
    config: &Config,
    entropy: &Entropy,
    test_mail_to: Option<&str>,
) -> Result<&'static str, AppError> {
    let test_mail_to = test_mail_to.map(|text| Email::parse(text).ok_or(AppError::TestAddress)).transpose()?;
    let (clock, work) = (Clock::System, Work::new(tokio::runtime::Handle::current()));
    let sent = test_mail_to.is_some();
    start_mailer(config, &clock, entropy, Arc::default(), work)?.try_now(test_mail_to).await?;
    Ok(if sent { "the test mail was sent" } else { "the mailer can be used" })
}

/// The limits of the use cases. If mails are only printed, codes are not limited: developers request many, and no
/// mailbox can be flooded.
fn usage_limits(config: &Config) -> UsageLimits {
    let limits = config.limits.usage.clone();
    if !config.prints_mails() {
        return limits;
    }
    UsageLimits {
        otp_per_email_hour: 0,
        otp_per_email_day: 0,
        otp_per_email_network_hour: 0,
        otp_per_network_hour: 0,
        ..limits
    }
}

/// The settings of the use cases.
#[must_use]
pub fn policy(config: &Config) -> Policy {
    let mailbox = &config.mailbox;
    let whole = MailboxSize { envelopes: mailbox.max_envelopes.into(), bytes: mailbox.max_bytes };
    Policy {
        session_lifetime: config.session_lifetime(),
        max_devices: config.auth.max_devices,
        low_watermark: config.keys.low_watermark,
        signed_prekey_lifetime: config.signed_prekey_lifetime(),
        mailbox: MailboxBounds {
            all: whole,
            per_sender: MailboxSize { envelopes: mailbox.max_per_sender.into(), bytes: mailbox.max_bytes_per_sender },
            strangers: whole.share(mailbox.stranger_share),
        },
        push_after: config.push_after(),
        limits: usage_limits(config),
        shows_codes: config.serves_demo() && config.prints_mails(),
    }
}
