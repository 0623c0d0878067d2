//! The use cases: everything a client can ask for. While a server runs, only this module calls the store and the bus.
//!
//! A method whose changes concern other devices returns [`Notifications`]. The caller sends its own reply first and
//! then passes them to [`Service::notify`]. Batches of claims and mail publish their signals themselves, right after
//! their commit.

mod access;
mod approvals;
mod auth;
mod clock_check;
mod devices;
mod error;
mod heartbeat;
mod keys;
mod limits;
mod mailer;
mod messages;
mod push;
mod reconcile;
mod shown_codes;
mod sliding_window;
mod sweep;

use std::{
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};
use uuid::Uuid;

pub use crate::bus::BusState;
pub use approvals::{PolledApproval, RequestedApproval, Verdict, look_at_approvals_forever};
pub use auth::{Challenge, Confirmation, LookedUpToken, OpenedConnection, RequestedCode, SignInAnswer, SignInRequest};
pub use clock_check::check_clock_forever;
pub use heartbeat::beat_forever;
pub use mailer::{Mailer, MailerError, check as check_mailer};
pub use messages::{FifoGate, Message, Turn};
pub use push::{PushStatus, Pushes, wake_devices_forever};
pub use reconcile::reconcile_forever;
pub use sweep::{expire_mail_forever, sweep_forever};

pub use crate::store::{AcceptedMessage, AccountStatus, DeviceRecord, PublishOutcome, PublishReport, SessionRecord};
use crate::{
    bus::Bus,
    clock::{Clock, Entropy},
    domain::{
        ApprovalId, DeviceId, LocalDelivery, Refusal, Signal, Timestamp, UserId, envelope::MailboxBounds,
        keyed_buckets::DrainLimit, otp::ServerSecret, token::TokenHash,
    },
    metrics::{Batch, Metrics},
    store::{
        BatchItem, BatchWorkers, Batcher, Beside, ClaimAnswer, ClaimRequest, Claims, ConnectionRegistration,
        DeferredMail, DeviceStatus, FairPermit, FairPermits, FoundSession, MailAnswer, MailRequest, Mailboxes, Place,
        PoolUsage, RegisteredConnection, StatusRequest, Store, StoreError, TokenLookup, UserQueues,
    },
    tasks::{Tasks, Work},
    usage_limits::UsageLimits,
};
use clock_check::ClockCheck;
use heartbeat::Presence;
use limits::Limits;
use shown_codes::ShownCodes;

/// How long the result of a database check is reused.
const LATENCY_KEPT: Duration = Duration::from_secs(1);

/// When a batch of claims starts while another runs. Measured with four nodes: with 64 items they take less processor time for a
/// claim, but make fewer claims while the disk of the database is slow.
const CLAIMS_BESIDE: Beside = Beside { least_items: 32, longest_wait: Duration::from_millis(50) };
/// Maximum number of sends and acks per transaction.
const MAIL_PER_BATCH: usize = 256;
/// Maximum number of connections that one transaction registers.
const CONNECTIONS_PER_BATCH: usize = 256;

/// Maximum number of tokens or statuses that one statement reads.
const READS_PER_BATCH: usize = 256;
/// Number of statements at a time that read statuses, which count keys. More would take the connections of other reads.
const STATUS_READERS: usize = 2;

/// Number of operations of one user that run at a time, not counting those in batches.
const OPERATIONS_PER_USER: usize = 4;

/// Maximum number of claims that wait for locked keys at once. Each holds a database connection while it waits.
const BLOCKING_CLAIMS: usize = 4;

/// Maximum number of requests for codes and attempts to redeem one that read the database at once although their network
/// has reached its limit. Others wait, and after two seconds are offered the hardest proof, for which nothing has to be
/// read.
const OVER_LIMIT_READS: usize = 4;
/// Maximum number of look-ups of tokens at once, of all networks that have made too many that failed. The others wait;
/// their number is bounded by the connections that have not upgraded.
const OVER_LIMIT_LOOKUPS: usize = 4;

/// Maximum number of polls of approvals that use the database at once. Polls wait in the order in which they came, at most one
/// of each request, so requests that are polled in a loop delay others by at most one turn.
const POLLS: usize = 4;

/// The settings that the use cases need.
#[derive(Clone, Debug)]
pub struct Policy {
    /// How long a session lasts unless it is renewed.
    pub session_lifetime: Duration,
    /// Maximum number of active devices per user.
    pub max_devices: usize,
    /// A device is notified when a pool has at most this many unissued keys.
    pub low_watermark: u32,
    /// Default lifetime of a signed prekey published without `expires_at`.
    pub signed_prekey_lifetime: Duration,
    /// Maximum size of a mailbox, in total and per sending user.
    pub mailbox: MailboxBounds,
    /// A device is woken if it acks nothing for this long after an urgent message.
    pub push_after: Duration,
    /// Rate limits.
    pub limits: UsageLimits,
    /// Whether [`Service::shown_code`] returns codes. Only for development.
    pub shows_codes: bool,
}

/// What [`Service::start`] needs.
pub struct ServiceDependencies {
    /// The id of this node.
    pub node: Uuid,
    /// The database.
    pub store: Store,
    /// Carries signals to connected devices on all nodes.
    pub bus: Bus,
    /// The connections of this node.
    pub local_delivery: Arc<dyn LocalDelivery>,
    /// The time of day.
    pub clock: Clock,
    /// The source of randomness.
    pub entropy: Entropy,
    /// Sends mail.
    pub mailer: Mailer,
    /// Sends pushes.
    pub pushes: Pushes,
    /// Keys the hashes of codes and client networks.
    pub secret: ServerSecret,
    /// The settings.
    pub policy: Policy,
    /// The metrics to count in.
    pub metrics: Arc<Metrics>,
}

/// The use cases. They run on the runtime that owns the store and the bus, except for those that say otherwise.
pub struct Service {
    store: Store,
    bus: Bus,
    local_delivery: Arc<dyn LocalDelivery>,
    clock: Clock,
    entropy: Entropy,
    mailer: Mailer,
    pushes: Arc<Pushes>,
    /// Spawns on the runtime that owns the store and the bus.
    work: Work,
    secret: ServerSecret,
    policy: Policy,
    metrics: Arc<Metrics>,
    presence: Presence,
    clock_check: std::sync::Mutex<ClockCheck>,
    /// Microseconds to add to the clock's time: 0 unless the clock is wrong.
    clock_correction: AtomicI64,
    /// When the last database check ended, and how long the answer took; `None` if it failed.
    last_latency: tokio::sync::Mutex<Option<(Instant, Option<Duration>)>>,
    limits: Limits,
    /// The latest codes, if they are shown.
    shown_codes: Option<ShownCodes>,
    claims: Batcher<ClaimRequest, ClaimAnswer>,
    /// Serves claims that wait for locked keys.
    blocking_claims: Claims,
    /// Bounds their number.
    blocking_permits: Arc<Semaphore>,
    over_limit_permits: Semaphore,
    /// The operations of each user that do not run in batches.
    operations: UserQueues,
    /// Bounds their number, over all users.
    operation_permits: FairPermits,
    /// The look-ups of tokens, one of each token at a time.
    lookups: UserQueues<TokenHash>,
    /// The look-ups of tokens from networks that have made too many that failed.
    over_limit_lookups: Semaphore,
    /// The polls of requests for approvals, one of each request at a time.
    polls: UserQueues<ApprovalId>,
    /// Bounds the number of polls that use the database, over all requests.
    poll_permits: Semaphore,
    /// The publishes whose signatures are being verified: one of each user.
    verifications: UserQueues,
    /// Bounds the number of their parts that are verified at a time, over all users.
    verification_permits: FairPermits,
    /// Has one worker, so that a device's sends keep their order.
    mail: Batcher<MailRequest, MailAnswer>,
    connections: Batcher<ConnectionRegistration, RegisteredConnection>,
    disconnects: Batcher<(DeviceId, Timestamp), ()>,
    tokens: Batcher<TokenLookup, Option<FoundSession>>,
    statuses: Batcher<StatusRequest, DeviceStatus>,
}

/// The place of an operation that does not run in a batch: among those of its user, and among all of the node.
#[must_use = "dropping a place gives it back at once"]
pub struct OperationPlace {
    _permit: FairPermit,
    _of_user: Place,
}

/// Signals to other devices that a use case caused. Send them with [`Service::notify`], after the reply.
#[must_use = "pass them to `Service::notify`"]
#[derive(Debug, Default)]
pub struct Notifications(Vec<(DeviceId, Signal)>);

impl Notifications {
    fn to_all(devices: impl IntoIterator<Item = DeviceId>, signal: &Signal) -> Self {
        Self(devices.into_iter().map(|device| (device, signal.clone())).collect())
    }

    fn and_all(mut self, devices: impl IntoIterator<Item = DeviceId>, signal: &Signal) -> Self {
        self.0.extend(Self::to_all(devices, signal).0);
        self
    }

    fn and(mut self, device: DeviceId, signal: Signal) -> Self {
        self.0.push((device, signal));
        self
    }
}

/// What the batchers of a service share.
struct Batches<'s> {
    tasks: &'s Tasks,
    metrics: &'s Arc<Metrics>,
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
        Item: BatchItem,
        Answer: Send + 'static,
        Run: Fn(Vec<Item>) -> Done + Clone + Send + 'static,
        Done: Future<Output = Vec<Result<Answer, StoreError>>> + Send,
    {
        Batcher::start(self.tasks, self.workers(name, batch, largest_batch, count), self.store.health(), run)
    }

    fn workers(&self, name: &'static str, batch: Batch, largest_batch: usize, count: usize) -> BatchWorkers {
        let (meter, metrics) = (self.metrics.batch(batch), self.metrics.clone());
        BatchWorkers { name, largest_batch, count, beside: Beside::ALWAYS, meter, metrics }
    }

    /// Starts workers whose batches only read. They use none of the connections of the other batches, nor their runtime.
    fn start_readers<Item, Answer, Run, Done>(
        &self,
        name: &'static str,
        batch: Batch,
        count: usize,
        run: Run,
    ) -> Batcher<Item, Answer>
    where
        Item: BatchItem,
        Answer: Send + 'static,
        Run: Fn(Vec<Item>) -> Done + Clone + Send + 'static,
        Done: Future<Output = Vec<Result<Answer, StoreError>>> + Send,
    {
        let tasks = self.tasks.clone().without_batch_runtime();
        Batcher::start(&tasks, self.workers(name, batch, READS_PER_BATCH, count), self.store.health(), run)
    }

    fn start_connections(&self) -> Batcher<ConnectionRegistration, RegisteredConnection> {
        let store = self.store.for_batch_workers();
        self.start("connections", Batch::Connections, CONNECTIONS_PER_BATCH, 1, move |items| {
            let store = store.clone();
            async move { store.register_connections(items).await }
        })
    }

    fn start_disconnects(&self) -> Batcher<(DeviceId, Timestamp), ()> {
        let store = self.store.for_batch_workers();
        self.start("disconnects", Batch::Disconnects, CONNECTIONS_PER_BATCH, 1, move |items: Vec<_>| {
            let store = store.clone();
            async move {
                if let Err(error) = store.touch_devices(&items).await {
                    tracing::warn!(%error, "cannot record when devices were last seen");
                }
                items.iter().map(|_| Ok(())).collect()
            }
        })
    }

    fn start_mail(&self, policy: &Policy, bus: &Bus) -> Batcher<MailRequest, MailAnswer> {
        let mailboxes_of = |store: Store| Mailboxes::new(store, policy.mailbox, policy.push_after);
        let deferred = self.start_deferred_mail(mailboxes_of(self.store.clone()), bus);
        let (mailboxes, bus) = (mailboxes_of(self.store.for_batch_workers()), bus.clone());
        self.start("mail", Batch::Mail, MAIL_PER_BATCH, 1, move |items| {
            let (mailboxes, deferred, bus) = (mailboxes.clone(), deferred.clone(), bus.clone());
            async move {
                let outcome = mailboxes.serve_or_defer(&deferred, items).await;
                bus.publish_mail(outcome.signals);
                outcome.answers
            }
        })
    }

    /// Starts the queue of mail for locked mailboxes, which uses `mailboxes`.
    fn start_deferred_mail(&self, mailboxes: Mailboxes, bus: &Bus) -> DeferredMail {
        let workers = self.workers("deferred mail", Batch::DeferredMail, MAIL_PER_BATCH, 1);
        let bus = bus.clone();
        // It waits long for locks, so it uses none of the connections of the other batches, nor their runtime.
        let tasks = self.tasks.clone().without_batch_runtime();
        DeferredMail::start(&tasks, workers, mailboxes, move |signals| bus.publish_mail(signals))
    }
}

impl Service {
    /// Builds the service and starts its batch workers.
    #[must_use]
    pub fn start(dependencies: ServiceDependencies, tasks: &Tasks) -> Self {
        let ServiceDependencies {
            node,
            store,
            bus,
            local_delivery,
            clock,
            entropy,
            mailer,
            pushes,
            secret,
            policy,
            metrics,
        } = dependencies;
        let limits = &policy.limits;
        let drain = DrainLimit::new(limits.claim_burst, Duration::from_secs(limits.claim_refill_s));
        let blocking_claims = Claims::new(store.clone(), drain, limits.stranger_keys_per_device_hour);
        let batches = Batches { tasks, metrics: &metrics, store: &store };
        let claims = blocking_claims.clone().with_store(store.for_batch_workers());
        let workers = batches.workers("claims", Batch::Claims, store.claims_per_batch(), store.claim_workers());
        let workers = BatchWorkers { beside: CLAIMS_BESIDE, ..workers };
        let claims = Batcher::start(tasks, workers, store.health(), {
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
        let mail = batches.start_mail(&policy, &bus);
        let connections = batches.start_connections();
        let disconnects = batches.start_disconnects();
        let tokens = batches.start_readers("tokens", Batch::Tokens, 1, {
            let store = store.clone();
            move |lookups| {
                let store = store.clone();
                async move { store.look_up_tokens(lookups).await }
            }
        });
        let statuses = batches.start_readers("statuses", Batch::Statuses, STATUS_READERS, {
            let store = store.clone();
            move |requests| {
                let store = store.clone();
                async move { store.serve_statuses(requests).await }
            }
        });
        let limits = Limits::new(&policy.limits);
        let shown_codes = policy.shows_codes.then(ShownCodes::default);
        let operations = UserQueues::new(OPERATIONS_PER_USER, metrics.clone());
        let operation_permits = FairPermits::new(store.concurrent_operations());
        let lookups = UserQueues::new(1, metrics.clone());
        let polls = UserQueues::new(1, metrics.clone());
        let verifications = UserQueues::new(1, metrics.clone());
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        // The other half is left to everything else.
        let verification_permits = FairPermits::new(cores.div_ceil(2));
        Self {
            store,
            bus,
            local_delivery,
            clock,
            entropy,
            mailer,
            pushes: Arc::new(pushes),
            work: tasks.work().clone(),
            secret,
            policy,
            metrics,
            presence: Presence::new(node),
            clock_check: std::sync::Mutex::default(),
            clock_correction: AtomicI64::new(0),
            last_latency: tokio::sync::Mutex::default(),
            limits,
            shown_codes,
            claims,
            blocking_claims,
            blocking_permits: Arc::new(Semaphore::new(BLOCKING_CLAIMS)),
            over_limit_permits: Semaphore::new(OVER_LIMIT_READS),
            operations,
            operation_permits,
            lookups,
            over_limit_lookups: Semaphore::new(OVER_LIMIT_LOOKUPS),
            polls,
            poll_permits: Semaphore::new(POLLS),
            verifications,
            verification_permits,
            mail,
            connections,
            disconnects,
            tokens,
            statuses,
        }
    }

    /// The configured low-water mark: the number of keys at which a device is notified.
    #[must_use]
    pub fn low_watermark(&self) -> u32 {
        self.policy.low_watermark
    }

    /// Waits until an operation of the user may run that is not part of a batch. Hold the place while it runs.
    ///
    /// # Errors
    /// `unavailable` if too many operations of the user wait, or this one waits for longer than an operation waits for a
    /// database connection.
    pub async fn enter(&self, user: UserId) -> Result<OperationPlace, Refusal> {
        let places = async {
            let of_user = self.operations.enter(user).await?;
            Ok(OperationPlace { _permit: self.operation_permits.acquire(user).await?, _of_user: of_user })
        };
        match tokio::time::timeout(self.store.health().acquire_timeout(), places).await {
            Ok(entered) => entered.map_err(|error: StoreError| error.into()),
            Err(_) => Err(StoreError::Overloaded.into()),
        }
    }

    /// Waits until one more operation of the user may run whose number over all users is bounded in another way.
    ///
    /// # Errors
    /// `unavailable` if too many operations of the user wait.
    pub async fn enter_as_user(&self, user: UserId) -> Result<Place, Refusal> {
        Ok(self.operations.enter(user).await?)
    }

    /// Runs an operation on the runtime that owns the store, for a use case that runs on another.
    async fn on_own_runtime<T: Send + 'static, E: Into<Refusal> + Send + 'static>(
        &self,
        operation: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.work.spawn(operation).await.map_err(|_| Refusal::Internal)?.map_err(Into::into)
    }

    /// Sends a use case's signals to other devices.
    pub fn notify(&self, notifications: Notifications) {
        for (device, signal) in notifications.0 {
            self.bus.publish(device, signal);
        }
    }

    /// Whether signals reach the other nodes.
    #[must_use]
    pub fn bus_state(&self) -> BusState {
        self.bus.state()
    }

    /// The kind of bus (`local` or `redis`), and how long ago an announcement of this node last came back over it:
    /// `None` if none ever did, and for the local bus.
    #[must_use]
    pub fn bus_kind(&self) -> (&'static str, Option<Duration>) {
        (self.bus.kind(), self.bus.probe_age())
    }

    /// The kind of database (`sqlite` or `postgres`), and the state of its connection pool.
    #[must_use]
    pub fn store_state(&self) -> (&'static str, PoolUsage) {
        (self.store.kind(), self.store.pool())
    }

    /// Whether the store answers within two seconds.
    pub async fn store_is_reachable(&self) -> bool {
        self.store_latency().await.is_some()
    }

    /// How long the database took to answer; `None` if it failed or took more than two seconds. While it is available,
    /// it is checked at most once a second, because a check locks a row and every client can cause one.
    pub async fn store_latency(&self) -> Option<Duration> {
        let mut last = self.last_latency.lock().await;
        let is_known = |(asked, latency): &(Instant, Option<Duration>)| {
            // An operation may have found an outage since the check.
            asked.elapsed() < LATENCY_KEPT && latency.is_some() && !self.store.health().is_unavailable()
        };
        if let Some((_, latency)) = last.filter(is_known) {
            return latency;
        }
        let latency = self.ask_store().await;
        *last = Some((Instant::now(), latency));
        latency
    }

    async fn ask_store(&self) -> Option<Duration> {
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
