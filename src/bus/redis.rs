//! Signals between nodes over Redis pub/sub: one channel for each connected device.
//!
//! One task, the link, owns two connections: one that only listens (RESP3, so that messages arrive as pushes) and one that
//! publishes. Whatever waits is handled together, so a crowd of connecting devices shares round trips. After a loss the
//! link connects again and resubscribes itself: the client library's own resubscription ignores failures. Pub/sub can
//! also die without a word, so the link listens for its own probes.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind, RedisError, Value,
    aio::{AsyncPushSender, MultiplexedConnection, SendError},
    io::tcp::TcpSettings,
};
use thiserror::Error;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use uuid::Uuid;

use super::Parcel;
use crate::{
    domain::{Deliver, DeviceId, Signal},
    log_throttle::LogThrottle,
    metrics::{BusTraffic, Metrics},
    tasks::Tasks,
};

const DEVICE_CHANNEL: &str = "sealwire:device:";
const PROBE_CHANNEL: &str = "sealwire:probe:";
/// Commands that may wait for the link. A publish beyond it is dropped; the reconcile heals that.
const QUEUE: usize = 16_384;
/// Bytes of content among them.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// Commands that the link handles together, and channels in one (re)subscription.
const BATCH: usize = 500;
/// How long one answer of Redis may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time between probes. The second that is missed counts as a loss.
const PROBE_EVERY: Duration = Duration::from_secs(2);
const PROBES_MISSED: u32 = 2;
/// Pause before connecting again, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Time after which the log says again that the bus is still down.
const REMIND_EVERY: Duration = Duration::from_mins(1);
/// How long a device that connects waits for its subscription. Without it, the reconcile covers what is missed.
const SUBSCRIBE_PATIENCE: Duration = Duration::from_secs(1);

enum Command {
    Publish {
        device: DeviceId,
        parcel: Parcel,
        /// Ends once the parcel is on its way.
        room: OwnedSemaphorePermit,
    },
    Subscribe(DeviceId, oneshot::Sender<()>),
    Unsubscribe(DeviceId),
}

/// The node's end of the link. Clones share it; the link stops when the last is dropped.
#[derive(Clone)]
pub struct RedisBus {
    commands: mpsc::Sender<Command>,
    /// What is left of [`QUEUE_BYTES`].
    room: Arc<Semaphore>,
    local_delivery: Arc<dyn Deliver>,
    up: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
    /// When a probe last came back.
    heard: watch::Receiver<Option<Instant>>,
}

impl RedisBus {
    /// Starts the link. Redis need not be there yet.
    ///
    /// # Errors
    /// Where the URL is none of Redis.
    pub fn start(
        url: &str,
        local_delivery: Arc<dyn Deliver>,
        node: Uuid,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Result<Self, RedisError> {
        let info = url.into_connection_info()?;
        let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let info = info.set_redis_settings(redis).set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = Client::open(info)?;
        let (commands, queue) = mpsc::channel(QUEUE);
        let (is_up, up) = watch::channel(false);
        let (hears, heard) = watch::channel(None);
        let link = Link {
            client,
            node,
            local_delivery: local_delivery.clone(),
            is_up,
            hears,
            queue,
            subscribers: HashMap::new(),
            metrics: metrics.clone(),
            outage: None,
        };
        tasks.spawn("bus link", link.run());
        Ok(Self { commands, room: Arc::new(Semaphore::new(QUEUE_BYTES)), local_delivery, up, metrics, heard })
    }

    /// Delivers on this node at once and sends to the others.
    pub fn publish(&self, device: DeviceId, signal: Signal) {
        self.deliver_here(device, signal.clone());
        self.publish_elsewhere(device, signal.into());
    }

    /// Delivers on this node, and tells whether the device is connected here.
    pub(super) fn deliver_here(&self, device: DeviceId, signal: Signal) -> bool {
        self.local_delivery.deliver(device, signal)
    }

    /// Sends to the other nodes.
    pub(super) fn publish_elsewhere(&self, device: DeviceId, mut parcel: Parcel) {
        let room = self.reserve(&parcel).or_else(|| {
            let dropped = parcel.drop_content();
            self.count(BusTraffic::Dropped, dropped);
            self.reserve(&parcel)
        });
        let signals = parcel.signals().len();
        if signals == 0 {
            return;
        }
        let command = room.map(|room| Command::Publish { device, parcel, room });
        let sent = command.is_some_and(|command| self.commands.try_send(command).is_ok());
        self.count(if sent { BusTraffic::Published } else { BusTraffic::Dropped }, signals);
        if !sent {
            tracing::warn!("a signal to other nodes was dropped: the bus has fallen behind");
        }
    }

    fn reserve(&self, parcel: &Parcel) -> Option<OwnedSemaphorePermit> {
        self.room.clone().try_acquire_many_owned(u32::try_from(parcel.bytes()).ok()?).ok()
    }

    fn count(&self, traffic: BusTraffic, signals: usize) {
        self.metrics.bus_signals.add(traffic, signals as u64);
    }

    /// Listens for a device; returns once Redis has confirmed it, or has been given long enough.
    pub async fn subscribe(&self, device: DeviceId) {
        let (confirm, confirmed) = oneshot::channel();
        if self.commands.send(Command::Subscribe(device, confirm)).await.is_ok() {
            let _ = timeout(SUBSCRIBE_PATIENCE, confirmed).await;
        }
    }

    /// Takes back one [`Self::subscribe`].
    pub async fn unsubscribe(&self, device: DeviceId) {
        // Fails only where the link has stopped, and its subscriptions with it.
        let _ = self.commands.send(Command::Unsubscribe(device)).await;
    }

    /// Whether signals flow.
    #[must_use]
    pub fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// [`Self::is_up`], to be waited on.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.up.clone()
    }

    /// How long ago a probe last came back; `None` where none ever has.
    #[must_use]
    pub fn probe_age(&self) -> Option<Duration> {
        self.heard.borrow().map(|heard| heard.elapsed())
    }
}

/// Handles what arrives on the listening connection. Called by the connection itself; it must not wait.
struct PushHandler {
    node: Uuid,
    local_delivery: Arc<dyn Deliver>,
    lost: Arc<Notify>,
    unanswered: Arc<AtomicU32>,
    hears: watch::Sender<Option<Instant>>,
    metrics: Arc<Metrics>,
}

impl AsyncPushSender for PushHandler {
    fn send(&self, push: PushInfo) -> Result<(), SendError> {
        match (push.kind, push.data.as_slice()) {
            (PushKind::Disconnection, _) => self.lost.notify_one(),
            (PushKind::Message, [Value::BulkString(channel), Value::BulkString(payload)]) => {
                let channel = std::str::from_utf8(channel).unwrap_or_default();
                if channel.starts_with(PROBE_CHANNEL) {
                    self.unanswered.store(0, Ordering::Relaxed);
                    self.hears.send_replace(Some(Instant::now()));
                } else if let Some(device) = channel.strip_prefix(DEVICE_CHANNEL).and_then(DeviceId::parse) {
                    match rmp_serde::from_slice::<(Uuid, Vec<Signal>)>(payload) {
                        // This node has delivered its own signals already.
                        Ok((node, _)) if node == self.node => {}
                        Ok((_, signals)) => {
                            for signal in signals {
                                self.metrics.bus_signals.inc(BusTraffic::Received);
                                self.local_delivery.deliver(device, signal);
                            }
                        }
                        Err(error) => tracing::warn!(%error, "a signal of another version was ignored"),
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

struct Link {
    client: Client,
    node: Uuid,
    local_delivery: Arc<dyn Deliver>,
    is_up: watch::Sender<bool>,
    hears: watch::Sender<Option<Instant>>,
    queue: mpsc::Receiver<Command>,
    /// How many connections of this node want each device's signals.
    subscribers: HashMap<DeviceId, usize>,
    metrics: Arc<Metrics>,
    outage: Option<Outage>,
}

/// A time in which signals do not flow.
struct Outage {
    since: Instant,
    failures: LogThrottle,
}

/// Why the link stopped serving.
#[derive(Debug, Error)]
enum Lost {
    #[error(transparent)]
    Redis(#[from] RedisError),
    #[error("its probes do not come back")]
    Silence,
    #[error("Redis closed the connection")]
    Disconnection,
    #[error("the node has no more use for it")]
    Closed,
}

impl Link {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let began = Instant::now();
            let lost = self.serve().await;
            self.is_up.send_if_modified(std::mem::take);
            if matches!(lost, Lost::Closed) {
                return;
            }
            self.note_loss(&lost);
            pause = if began.elapsed() > LONGEST_PAUSE { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            if !self.wait_without_redis(pause).await {
                return;
            }
        }
    }

    /// Logs that the bus is down when an outage begins, and then once per [`REMIND_EVERY`].
    fn note_loss(&mut self, error: &Lost) {
        let now = Instant::now();
        let is_new = self.outage.is_none();
        let outage = self.outage.get_or_insert_with(|| Outage { since: now, failures: LogThrottle::new(REMIND_EVERY) });
        let is_logged = outage.failures.count(now.into_std()).is_some();
        let down_s = (now - outage.since).as_secs();
        if is_new {
            tracing::warn!(%error, "the bus is down");
        } else if is_logged {
            tracing::warn!(%error, down_s, "the bus is still down");
        } else {
            tracing::debug!(%error, down_s, "the bus is still down");
        }
    }

    /// Keeps the count of subscribers right while Redis is away. `false` where the node has no more use for the link.
    async fn wait_without_redis(&mut self, pause: Duration) -> bool {
        let until = tokio::time::sleep(pause);
        tokio::pin!(until);
        loop {
            tokio::select! {
                () = &mut until => return true,
                command = self.queue.recv() => match command {
                    None => return false,
                    // Nobody listens; the reconcile finds what these would have told.
                    Some(Command::Publish { .. }) => {}
                    // Not confirmed: the waiting device goes on, and the reconcile covers it.
                    Some(Command::Subscribe(device, confirm)) => {
                        *self.subscribers.entry(device).or_default() += 1;
                        drop(confirm);
                    }
                    Some(Command::Unsubscribe(device)) => {
                        self.release(device);
                    }
                },
            }
        }
    }

    /// Connects, resubscribes, and serves until something breaks.
    async fn serve(&mut self) -> Lost {
        match self.try_serve().await {
            Ok(lost) | Err(lost) => lost,
        }
    }

    async fn try_serve(&mut self) -> Result<Lost, Lost> {
        let lost = Arc::new(Notify::new());
        let unanswered = Arc::new(AtomicU32::new(0));
        let push_handler = PushHandler {
            node: self.node,
            local_delivery: self.local_delivery.clone(),
            lost: lost.clone(),
            unanswered: unanswered.clone(),
            hears: self.hears.clone(),
            metrics: self.metrics.clone(),
        };
        let config = || {
            AsyncConnectionConfig::new()
                .set_connection_timeout(Some(RESPONSE_TIMEOUT))
                .set_response_timeout(Some(RESPONSE_TIMEOUT))
        };
        let listening = config().set_push_sender(push_handler);
        let mut listener = self.client.get_multiplexed_async_connection_with_config(&listening).await?;
        let mut publisher = self.client.get_multiplexed_async_connection_with_config(&config()).await?;
        let probe = format!("{PROBE_CHANNEL}{}", self.node);
        subscribe(&mut listener, std::iter::once(probe.clone())).await?;
        let devices: Vec<DeviceId> = self.subscribers.keys().copied().collect();
        for chunk in devices.chunks(BATCH) {
            subscribe(&mut listener, chunk.iter().map(channel)).await?;
        }
        self.is_up.send_replace(true);
        let down_s = self.outage.take().map(|outage| outage.since.elapsed().as_secs_f64());
        tracing::info!(devices = devices.len(), down_s, "the bus is up");

        let mut probes = interval(PROBE_EVERY);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut taken = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                () = lost.notified() => return Ok(Lost::Disconnection),
                count = self.queue.recv_many(&mut taken, BATCH) => {
                    if count == 0 {
                        return Ok(Lost::Closed);
                    }
                    let handled = self.handle(&mut taken, &mut listener, &mut publisher).await;
                    taken.clear();
                    handled?;
                }
                _ = probes.tick() => {
                    if unanswered.fetch_add(1, Ordering::Relaxed) >= PROBES_MISSED {
                        return Ok(Lost::Silence);
                    }
                    redis::cmd("PUBLISH").arg(&probe).arg("").exec_async(&mut publisher).await?;
                }
            }
        }
    }

    /// Handles what has queued up: subscriptions in one command each way, publishes in one pipeline.
    async fn handle(
        &mut self,
        commands: &mut Vec<Command>,
        listener: &mut MultiplexedConnection,
        publisher: &mut MultiplexedConnection,
    ) -> Result<(), RedisError> {
        let mut wanted = Vec::new();
        let mut unwanted = Vec::new();
        let mut confirm = Vec::new();
        let mut publishes = redis::pipe();
        for command in commands.drain(..) {
            match command {
                Command::Publish { device, parcel, room } => {
                    match rmp_serde::to_vec(&(self.node, parcel.signals())) {
                        Ok(payload) => {
                            publishes.cmd("PUBLISH").arg(channel(&device)).arg(payload).ignore();
                        }
                        Err(error) => tracing::error!(%error, "a signal has no encoding"),
                    }
                    drop(room);
                }
                Command::Subscribe(device, confirmed) => {
                    let subscribers = self.subscribers.entry(device).or_default();
                    *subscribers += 1;
                    if *subscribers == 1 {
                        unwanted.retain(|other| *other != device);
                        wanted.push(device);
                    }
                    confirm.push(confirmed);
                }
                Command::Unsubscribe(device) => {
                    if self.release(device) {
                        wanted.retain(|other| *other != device);
                        unwanted.push(device);
                    }
                }
            }
        }
        if !unwanted.is_empty() {
            listener.unsubscribe(unwanted.iter().map(channel).collect::<Vec<_>>()).await?;
        }
        subscribe(listener, wanted.iter().map(channel)).await?;
        for confirmed in confirm {
            // A device that has gone away does not wait.
            let _ = confirmed.send(());
        }
        if publishes.cmd_iter().next().is_some() {
            publishes.exec_async(publisher).await?;
        }
        Ok(())
    }

    /// Takes one subscriber away; whether it was the last.
    fn release(&mut self, device: DeviceId) -> bool {
        let Some(subscribers) = self.subscribers.get_mut(&device) else { return false };
        *subscribers -= 1;
        let last = *subscribers == 0;
        if last {
            self.subscribers.remove(&device);
        }
        last
    }
}

fn channel(device: &DeviceId) -> String {
    format!("{DEVICE_CHANNEL}{device}")
}

/// Subscribes to all of them in one command and waits for Redis to confirm.
async fn subscribe(
    listener: &mut MultiplexedConnection,
    channels: impl Iterator<Item = String>,
) -> Result<(), RedisError> {
    let channels: Vec<String> = channels.collect();
    if channels.is_empty() {
        return Ok(());
    }
    listener.subscribe(channels).await
}
