//! The use cases. In a running server nothing else calls the store or the bus.
//!
//! A method that changes something returns what other devices must be sent ([`Notifications`]); the caller sends its own
//! reply first and then calls [`Service::notify`]. What a batch of claims or of mail has for others goes out with its commit.

mod auth;
mod devices;
mod error;
mod keys;
mod limits;
mod mailer;
mod messages;
mod reconcile;
mod sliding_window;
mod sweep;

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::Instant};

pub use auth::{Challenge, OpenedConnection, SignInRequest};
pub use limits::LimitSettings;
pub use mailer::{Mailer, MailerError};
pub use messages::{Message, Turn, Turns};
pub use reconcile::reconcile_forever;
pub use sweep::{expire_mail_forever, sweep_forever};

pub use crate::store::{AcceptedMessage, DeviceRecord, PublishOutcome, PublishReport};
use crate::{
    bus::Bus,
    clock::{Clock, Entropy},
    domain::{
        DeviceId, LocalDelivery, Signal, Timestamp, envelope::MailboxBounds, keyed_buckets::DrainLimit,
        otp::ServerSecret,
    },
    metrics::{Batch, Metrics},
    store::{
        BatchWorkers, Batcher, ClaimAnswer, ClaimRequest, Claims, ConnectionRegistration, MailAnswer, MailRequest,
        Mailboxes, PoolUsage, RegisteredConnection, Store, StoreError,
    },
    tasks::Tasks,
};
use limits::Limits;

/// Claims that one transaction serves at most. Chosen with `loadtest/claims`, together with the number of workers.
const CLAIMS_PER_BATCH: usize = 128;
/// Sends and acks that one transaction serves at most.
const MAIL_PER_BATCH: usize = 256;
/// Connections that one transaction opens at most.
const CONNECTIONS_PER_BATCH: usize = 256;

/// Claims that may wait at once for locked keys, each with a database connection of its own.
const BLOCKING_CLAIMS: usize = 4;

/// What the use cases need to know of the configuration.
#[derive(Clone, Debug)]
pub struct Policy {
    /// How long a session lasts.
    pub session_lifetime: Duration,
    /// Active devices a user may have.
    pub max_devices: usize,
    /// Unissued keys at which an owner is told.
    pub low_watermark: u32,
    /// How long a signed prekey is served that does not say itself.
    pub signed_prekey_lifetime: Duration,
    /// What mailboxes hold at most.
    pub mailbox: MailboxBounds,
    /// Bounds on what clients may ask for.
    pub limits: LimitSettings,
}

/// What a service is made of.
pub struct Parts {
    /// The database.
    pub store: Store,
    /// The way to connected devices.
    pub bus: Bus,
    /// The devices connected to this node.
    pub local_delivery: Arc<dyn LocalDelivery>,
    /// Time.
    pub clock: Clock,
    /// Randomness.
    pub entropy: Entropy,
    /// The way to people.
    pub mailer: Mailer,
    /// The server's secret.
    pub secret: ServerSecret,
    /// The configured rules.
    pub policy: Policy,
    /// What counts it all.
    pub metrics: Arc<Metrics>,
}

/// The use cases. Lives on the runtime that owns store and bus.
pub struct Service {
    store: Store,
    bus: Bus,
    local_delivery: Arc<dyn LocalDelivery>,
    clock: Clock,
    entropy: Entropy,
    mailer: Mailer,
    secret: ServerSecret,
    policy: Policy,
    metrics: Arc<Metrics>,
    limits: Limits,
    claims: Batcher<ClaimRequest, ClaimAnswer>,
    /// For claims that wait for locked keys.
    blocking_claims: Claims,
    /// A permit for each of them.
    blocking: Semaphore,
    /// One worker, so that a device's sends keep their order.
    mail: Batcher<MailRequest, MailAnswer>,
    connections: Batcher<ConnectionRegistration, RegisteredConnection>,
    disconnects: Batcher<(DeviceId, Timestamp), ()>,
}

/// Signals that an operation owes to devices, to be sent after its reply.
#[must_use = "other devices wait for them"]
#[derive(Debug, Default)]
pub struct Notifications(Vec<(DeviceId, Signal)>);

impl Notifications {
    fn to_all(devices: impl IntoIterator<Item = DeviceId>, signal: &Signal) -> Self {
        Self(devices.into_iter().map(|device| (device, signal.clone())).collect())
    }

    fn and(mut self, device: DeviceId, signal: Signal) -> Self {
        self.0.push((device, signal));
        self
    }
}

/// Starts the batchers of a service.
struct Batches<'s> {
    tasks: &'s Tasks,
    metrics: &'s Metrics,
    store: &'s Store,
}

impl Batches<'_> {
    fn start<Item, Answer, Run, Done>(
        &self,
        name: &'static str,
        batch: Batch,
        largest_batch: usize,
        count: usize,
        run: Run,
    ) -> Batcher<Item, Answer>
    where
        Item: Send + 'static,
        Answer: Send + 'static,
        Run: Fn(Vec<Item>) -> Done + Clone + Send + 'static,
        Done: Future<Output = Vec<Result<Answer, StoreError>>> + Send,
    {
        let workers = BatchWorkers { name, largest_batch, count, meter: self.metrics.batch(batch) };
        Batcher::start(self.tasks, workers, self.store.health(), run)
    }
}

impl Service {
    /// Puts the parts together and starts the batchers.
    #[must_use]
    pub fn start(parts: Parts, tasks: &Tasks) -> Self {
        let Parts { store, bus, local_delivery, clock, entropy, mailer, secret, policy, metrics } = parts;
        let limits = &policy.limits;
        let drain = DrainLimit::new(limits.claim_burst, Duration::from_secs(limits.claim_refill_s));
        let blocking_claims = Claims::new(store.clone(), drain);
        let batches = Batches { tasks, metrics: &metrics, store: &store };
        let claims = blocking_claims.clone().on(store.for_batch_workers());
        let claims = batches.start("claims", Batch::Claims, CLAIMS_PER_BATCH, store.claim_workers(), {
            let bus = bus.clone();
            move |items| {
                let (claims, bus) = (claims.clone(), bus.clone());
                async move {
                    let outcome = claims.claim(items).await;
                    for (owner, signal) in outcome.signals {
                        bus.publish(owner, signal);
                    }
                    outcome.answers
                }
            }
        });
        let mailboxes = Mailboxes::new(store.for_batch_workers(), policy.mailbox);
        let mail = batches.start("mail", Batch::Mail, MAIL_PER_BATCH, 1, {
            let bus = bus.clone();
            move |items| {
                let (mailboxes, bus) = (mailboxes.clone(), bus.clone());
                async move {
                    let outcome = mailboxes.serve(items).await;
                    bus.publish_mail(outcome.signals);
                    outcome.answers
                }
            }
        });
        let connections = batches.start("connections", Batch::Connections, CONNECTIONS_PER_BATCH, 1, {
            let store = store.for_batch_workers();
            move |items| {
                let store = store.clone();
                async move { store.register_connections(items).await }
            }
        });
        let disconnects = batches.start("disconnects", Batch::Disconnects, CONNECTIONS_PER_BATCH, 1, {
            let store = store.for_batch_workers();
            move |items: Vec<(DeviceId, Timestamp)>| {
                let store = store.clone();
                async move {
                    if let Err(error) = store.touch_devices(&items).await {
                        tracing::warn!(%error, "cannot record when devices were last seen");
                    }
                    items.iter().map(|_| Ok(())).collect()
                }
            }
        });
        let limits = Limits::new(&policy.limits);
        Self {
            store,
            bus,
            local_delivery,
            clock,
            entropy,
            mailer,
            secret,
            policy,
            metrics,
            limits,
            claims,
            blocking_claims,
            blocking: Semaphore::new(BLOCKING_CLAIMS),
            mail,
            connections,
            disconnects,
        }
    }

    /// The time of day.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The configured low-water mark.
    #[must_use]
    pub fn low_watermark(&self) -> u32 {
        self.policy.low_watermark
    }

    /// Sends what an operation owes to other devices.
    pub fn notify(&self, notifications: Notifications) {
        for (device, signal) in notifications.0 {
            self.bus.publish(device, signal);
        }
    }

    /// Whether signals reach other nodes.
    #[must_use]
    pub fn bus_is_up(&self) -> bool {
        self.bus.is_up()
    }

    /// What the bus is, in a word, and how long ago it was last heard to work.
    #[must_use]
    pub fn bus_state(&self) -> (&'static str, Option<Duration>) {
        (self.bus.kind(), self.bus.probe_age())
    }

    /// What the store is, in a word, and its connections.
    #[must_use]
    pub fn store_state(&self) -> (&'static str, PoolUsage) {
        (self.store.kind(), self.store.pool())
    }

    /// Whether the store answers.
    pub async fn store_is_reachable(&self) -> bool {
        self.store_latency().await.is_some()
    }

    /// How long the store takes to answer, if it does.
    pub async fn store_latency(&self) -> Option<Duration> {
        let began = Instant::now();
        match tokio::time::timeout(Duration::from_secs(2), self.store.ping()).await {
            Ok(Ok(())) => Some(began.elapsed()),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the store does not answer");
                None
            }
            Err(_) => None,
        }
    }
}
