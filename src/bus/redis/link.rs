//! The task that owns the connections to Redis: one that only listens (RESP3, so that messages arrive as pushes) and one
//! that publishes. What waits is handled together, so a crowd of connecting devices shares round trips.
//!
//! After a loss the link connects again and resubscribes itself: the client library's own resubscription ignores failures.
//! Pub/sub can also die without any error, so the link listens for its own probes.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use redis::{AsyncConnectionConfig, Client, RedisError, aio::MultiplexedConnection};
use thiserror::Error;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use uuid::Uuid;

use super::{
    channels::{device_channel, probe_channel},
    push_handler::PushHandler,
};
use crate::{
    bus::signal_batch::SignalBatch,
    domain::{Deliver, DeviceId},
    log_throttle::LogThrottle,
    metrics::Metrics,
};

/// Commands that are handled together, and channels in one (re)subscription.
const BATCH: usize = 500;
/// How long one answer of Redis may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time between probes. The second that is missed counts as a loss.
const PROBE_EVERY: Duration = Duration::from_secs(2);
const PROBES_MISSED: u32 = 2;
/// Pause before connecting again, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// During an outage, the log says so at most this often.
const REMIND_EVERY: Duration = Duration::from_mins(1);

/// What the node asks of the link.
pub enum Command {
    /// Send signals to the other nodes.
    Publish {
        /// Their device.
        device: DeviceId,
        /// The signals.
        batch: SignalBatch,
        /// The bytes that they take in the queue; ends once they are on their way.
        bytes: OwnedSemaphorePermit,
    },
    /// One more connection wants a device's signals. Answered when Redis has confirmed it.
    Subscribe(DeviceId, oneshot::Sender<()>),
    /// One connection fewer does.
    Unsubscribe(DeviceId),
}

/// The link of a node.
pub struct Link {
    client: Client,
    node: Uuid,
    local_delivery: Arc<dyn Deliver>,
    is_up: watch::Sender<bool>,
    probed: watch::Sender<Option<Instant>>,
    queue: mpsc::Receiver<Command>,
    /// How many connections of this node want each device's signals.
    subscribers: HashMap<DeviceId, usize>,
    metrics: Arc<Metrics>,
    outage: Option<Outage>,
}

/// What a [`Link`] keeps its node informed by: whether it is up, and when a probe last came back.
pub struct Reports {
    pub is_up: watch::Sender<bool>,
    pub probed: watch::Sender<Option<Instant>>,
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
    #[error("the node has dropped its end")]
    Closed,
}

impl Link {
    /// A link that is still down. It takes its commands from `queue`.
    pub fn new(
        client: Client,
        node: Uuid,
        local_delivery: Arc<dyn Deliver>,
        queue: mpsc::Receiver<Command>,
        reports: Reports,
        metrics: Arc<Metrics>,
    ) -> Self {
        let Reports { is_up, probed } = reports;
        Self { client, node, local_delivery, is_up, probed, queue, subscribers: HashMap::new(), metrics, outage: None }
    }

    /// Connects and serves until the node drops its end, and over again after each loss.
    pub async fn run(mut self) {
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

    /// Keeps the count of subscribers right while Redis is away. Returns false if the node has dropped its end.
    async fn wait_without_redis(&mut self, pause: Duration) -> bool {
        let until = tokio::time::sleep(pause);
        tokio::pin!(until);
        loop {
            tokio::select! {
                () = &mut until => return true,
                command = self.queue.recv() => match command {
                    None => return false,
                    // Lost; the reconcile makes up for it.
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
            probed: self.probed.clone(),
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
        let probe = probe_channel(self.node);
        subscribe(&mut listener, std::iter::once(probe.clone())).await?;
        let devices: Vec<DeviceId> = self.subscribers.keys().copied().collect();
        for chunk in devices.chunks(BATCH) {
            subscribe(&mut listener, chunk.iter().map(device_channel)).await?;
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
                Command::Publish { device, batch, bytes } => {
                    match rmp_serde::to_vec(&(self.node, batch.signals())) {
                        Ok(payload) => {
                            publishes.cmd("PUBLISH").arg(device_channel(&device)).arg(payload).ignore();
                        }
                        Err(error) => tracing::error!(%error, "a signal has no encoding"),
                    }
                    drop(bytes);
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
            listener.unsubscribe(unwanted.iter().map(device_channel).collect::<Vec<_>>()).await?;
        }
        subscribe(listener, wanted.iter().map(device_channel)).await?;
        for confirmed in confirm {
            // A device that has gone away does not wait.
            let _ = confirmed.send(());
        }
        if publishes.cmd_iter().next().is_some() {
            publishes.exec_async(publisher).await?;
        }
        Ok(())
    }

    /// Takes one subscriber away. Returns whether it was the last.
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
