//! The link: the task that owns both connections to Redis, and detects when they fail.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use redis::{AsyncConnectionConfig, RedisError, aio::MultiplexedConnection};
use thiserror::Error;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use uuid::Uuid;

use super::{
    super::{
        BusState,
        keys::{BusKeys, Publisher},
        payload,
        peers::Peers,
    },
    BusCommand,
    push::PushHandler,
    target::BusTarget,
};
use crate::{
    domain::{DeviceId, LocalDelivery},
    log_throttle::LogThrottle,
    metrics::Metrics,
};

/// Maximum number of commands handled together, and of channels in one subscription after a reconnect.
const BATCH: usize = 500;
/// Timeout for finding the master among sentinels.
const SENTINEL_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for connecting to Redis, and for one response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval between this node's announcements. They also test the connection, because this node subscribes to them too.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(2);
/// If this many announcements of this node in a row do not come back, the connection counts as lost.
const MAX_UNANSWERED_PROBES: u32 = 2;
/// Pause before reconnecting. It doubles with each failure, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Minimum interval between log lines about an outage, and between those about dropped payloads.
const LOG_EVERY: Duration = Duration::from_mins(1);

/// Carries out commands until the last [`RedisBus`](super::RedisBus) is dropped.
pub(super) struct Link {
    target: BusTarget,
    node: Uuid,
    keys: Arc<BusKeys>,
    peers: Arc<Peers>,
    local: Arc<dyn LocalDelivery>,
    state: watch::Sender<BusState>,
    /// When an announcement of this node last came back.
    last_probe: watch::Sender<Option<Instant>>,
    queue: mpsc::Receiver<BusCommand>,
    /// The number of connections of this node per subscribed device.
    subscribers: HashMap<DeviceId, usize>,
    metrics: Arc<Metrics>,
    outage: Option<BusOutage>,
    /// Throttles the log lines about dropped payloads.
    rejections: Arc<LogThrottle>,
}

/// A period in which the link is not connected.
struct BusOutage {
    since: Instant,
    failures: LogThrottle,
}

/// Why a connection to Redis ended.
#[derive(Debug, Error)]
enum LinkEnd {
    #[error(transparent)]
    Redis(#[from] RedisError),
    #[error("this node does not receive its own announcements")]
    ProbesLost,
    #[error("no sentinel answered in time")]
    NoSentinel,
    #[error("Redis closed the connection")]
    Disconnected,
    /// The last handle was dropped; not a failure.
    #[error("the bus is no longer used")]
    Unused,
}

impl Link {
    /// A link that is not connected yet.
    pub(super) fn new(
        target: BusTarget,
        node: Uuid,
        keys: Arc<BusKeys>,
        peers: Arc<Peers>,
        local: Arc<dyn LocalDelivery>,
        queue: mpsc::Receiver<BusCommand>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            target,
            node,
            keys,
            peers,
            local,
            state: watch::channel(BusState::Down).0,
            last_probe: watch::channel(None).0,
            queue,
            subscribers: HashMap::new(),
            metrics,
            outage: None,
            rejections: Arc::new(LogThrottle::new(LOG_EVERY)),
        }
    }

    /// Whether the link is connected and subscribed, and the announcements of the other nodes arrive.
    pub(super) fn state(&self) -> watch::Receiver<BusState> {
        self.state.subscribe()
    }

    /// When an announcement of this node last came back.
    pub(super) fn last_probe(&self) -> watch::Receiver<Option<Instant>> {
        self.last_probe.subscribe()
    }

    /// Connects and handles commands, and reconnects when the connection fails.
    pub(super) async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let began = Instant::now();
            let end = self.serve().await;
            self.set_state(BusState::Down);
            if matches!(end, LinkEnd::Unused) {
                return;
            }
            self.log_failure(&end);
            pause = if began.elapsed() > LONGEST_PAUSE { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            if !self.queue_while_down(pause).await {
                return;
            }
        }
    }

    /// Logs that the bus is down: when an outage begins, and then once a minute.
    fn log_failure(&mut self, error: &LinkEnd) {
        let now = Instant::now();
        let is_new = self.outage.is_none();
        let outage = self.outage.get_or_insert_with(|| BusOutage { since: now, failures: LogThrottle::new(LOG_EVERY) });
        let down_s = (now - outage.since).as_secs();
        let is_logged = outage.failures.count(now.into_std()).is_some();
        match (is_new, is_logged) {
            (true, _) => tracing::warn!(%error, "the bus is down"),
            (false, true) => tracing::warn!(%error, down_s, "the bus is still down"),
            (false, false) => tracing::debug!(%error, down_s, "the bus is still down"),
        }
    }

    /// Waits for the pause between two connections. Meanwhile drops signals and keeps the counts of subscribers up to
    /// date. Returns `false` if the link is no longer used.
    async fn queue_while_down(&mut self, pause: Duration) -> bool {
        let until = tokio::time::sleep(pause);
        tokio::pin!(until);
        loop {
            tokio::select! {
                () = &mut until => return true,
                command = self.queue.recv() => match command {
                    None => return false,
                    // Dropped. The reconcile makes up for these signals.
                    Some(BusCommand::Publish { .. }) => {}
                    // Not confirmed: the device stops waiting, and the reconcile makes up for missed signals.
                    Some(BusCommand::Subscribe(device, confirm)) => {
                        *self.subscribers.entry(device).or_default() += 1;
                        drop(confirm);
                    }
                    Some(BusCommand::Unsubscribe(device)) => {
                        self.release(device);
                    }
                },
            }
        }
    }

    /// Connects, resubscribes, and handles commands until the connection fails or the link is no longer used.
    async fn serve(&mut self) -> LinkEnd {
        match self.try_serve().await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn try_serve(&mut self) -> Result<LinkEnd, LinkEnd> {
        let disconnected = Arc::new(Notify::new());
        let unanswered = Arc::new(AtomicU32::new(0));
        let pushes = PushHandler {
            node: self.node,
            keys: self.keys.clone(),
            peers: self.peers.clone(),
            local: self.local.clone(),
            disconnected: disconnected.clone(),
            unanswered: unanswered.clone(),
            last_probe: self.last_probe.clone(),
            metrics: self.metrics.clone(),
            rejections: self.rejections.clone(),
        };
        let config = || {
            AsyncConnectionConfig::new()
                .set_connection_timeout(Some(RESPONSE_TIMEOUT))
                .set_response_timeout(Some(RESPONSE_TIMEOUT))
        };
        let with_pushes = config().set_push_sender(pushes);
        let client = timeout(SENTINEL_TIMEOUT, self.target.client()).await.map_err(|_| LinkEnd::NoSentinel)??;
        let mut subscriber = client.get_multiplexed_async_connection_with_config(&with_pushes).await?;
        let mut publisher = client.get_multiplexed_async_connection_with_config(&config()).await?;
        let nodes = self.keys.nodes_channel();
        subscribe(&mut subscriber, std::iter::once(nodes.clone())).await?;
        let devices: Vec<DeviceId> = self.subscribers.keys().copied().collect();
        for chunk in devices.chunks(BATCH) {
            subscribe(&mut subscriber, chunk.iter().map(|device| self.keys.device_channel(*device))).await?;
        }
        self.peers.restart(Instant::now());
        self.update_state();
        let down_s = self.outage.take().map(|outage| outage.since.elapsed().as_secs_f64());
        tracing::info!(devices = devices.len(), down_s, "the bus is up");

        let mut announcements = interval(ANNOUNCE_EVERY);
        announcements.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut commands = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                () = disconnected.notified() => return Ok(LinkEnd::Disconnected),
                count = self.queue.recv_many(&mut commands, BATCH) => {
                    if count == 0 {
                        return Ok(LinkEnd::Unused);
                    }
                    let handled = self.handle(&mut commands, &mut subscriber, &mut publisher).await;
                    commands.clear();
                    handled?;
                }
                _ = announcements.tick() => {
                    if unanswered.fetch_add(1, Ordering::Relaxed) >= MAX_UNANSWERED_PROBES {
                        return Ok(LinkEnd::ProbesLost);
                    }
                    let announcement =
                        payload::encode_announcement(&self.keys, self.publisher(), self.peers.deployment());
                    redis::cmd("PUBLISH").arg(&nodes).arg(announcement).exec_async(&mut publisher).await?;
                    self.update_state();
                }
            }
        }
    }

    /// Updates the state of a connected link. Logs each new problem with the announcements, and its end.
    fn update_state(&self) {
        let before = *self.state.borrow();
        let state = self.peers.state(Instant::now());
        if !self.set_state(state) {
            return;
        }
        match (before, state) {
            (BusState::NodeUnreachable(_) | BusState::ForeignDeployment, BusState::Up) => {
                tracing::info!("the bus reaches all running nodes again");
            }
            (_, BusState::Up | BusState::Down) => {}
            (_, BusState::NodeUnreachable(node)) => {
                tracing::warn!(
                    %node,
                    "a running node's announcements do not arrive over the bus; check that both nodes use the same Redis"
                );
            }
            (_, BusState::ForeignDeployment) => tracing::error!(
                "another deployment with the same auth.secret uses this Redis; give each deployment a secret of its own"
            ),
        }
    }

    /// Sets the state. Returns whether it changed; only then are watchers notified.
    fn set_state(&self, state: BusState) -> bool {
        self.state.send_if_modified(|known| std::mem::replace(known, state) != state)
    }

    fn publisher(&self) -> Publisher {
        Publisher { node: self.node, at: self.peers.database_time(Instant::now()) }
    }

    /// Handles queued commands: one SUBSCRIBE and one UNSUBSCRIBE for all devices, and one pipeline of publishes.
    async fn handle(
        &mut self,
        commands: &mut Vec<BusCommand>,
        subscriber: &mut MultiplexedConnection,
        publisher: &mut MultiplexedConnection,
    ) -> Result<(), RedisError> {
        let mut added = Vec::new();
        let mut removed = Vec::new();
        let mut confirmations = Vec::new();
        let mut publishes = redis::pipe();
        let by = self.publisher();
        for command in commands.drain(..) {
            match command {
                BusCommand::Publish { device, batch, content_permit } => {
                    let channel = self.keys.device_channel(device);
                    match payload::encode_signals(&self.keys, &channel, by, batch.signals()) {
                        Ok(payload) => {
                            publishes.cmd("PUBLISH").arg(channel).arg(payload).ignore();
                        }
                        Err(error) => tracing::error!(%error, "cannot encode a signal"),
                    }
                    drop(content_permit);
                }
                BusCommand::Subscribe(device, confirm) => {
                    let subscribers = self.subscribers.entry(device).or_default();
                    *subscribers += 1;
                    if *subscribers == 1 {
                        removed.retain(|other| *other != device);
                        added.push(device);
                    }
                    confirmations.push(confirm);
                }
                BusCommand::Unsubscribe(device) => {
                    if self.release(device) {
                        added.retain(|other| *other != device);
                        removed.push(device);
                    }
                }
            }
        }
        if !removed.is_empty() {
            let channels: Vec<String> = removed.into_iter().map(|device| self.keys.device_channel(device)).collect();
            subscriber.unsubscribe(channels).await?;
        }
        subscribe(subscriber, added.into_iter().map(|device| self.keys.device_channel(device))).await?;
        for confirm in confirmations {
            // Fails if the device no longer waits.
            let _ = confirm.send(());
        }
        if publishes.cmd_iter().next().is_some() {
            publishes.exec_async(publisher).await?;
        }
        Ok(())
    }

    /// Removes one subscriber of a device. Returns whether it was the last.
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

/// Subscribes to all channels in one command and waits for Redis to confirm.
async fn subscribe(
    subscriber: &mut MultiplexedConnection,
    channels: impl Iterator<Item = String>,
) -> Result<(), RedisError> {
    let channels: Vec<String> = channels.collect();
    if channels.is_empty() {
        return Ok(());
    }
    subscriber.subscribe(channels).await
}
