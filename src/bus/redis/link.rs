//! The link: the task that owns both connections to Redis, and finds out when they are lost.

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
    sync::{Notify, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use uuid::Uuid;

use super::{
    super::payload,
    Command,
    channels::{DEVICE_CHANNEL, PROBE_CHANNEL},
    push::PushHandler,
};
use crate::{
    domain::{DeviceId, LocalDelivery},
    log_throttle::LogThrottle,
    metrics::Metrics,
};

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

/// Serves until the last [`RedisBus`](super::RedisBus) is dropped.
pub(super) struct Link {
    client: Client,
    node: Uuid,
    local: Arc<dyn LocalDelivery>,
    is_up: watch::Sender<bool>,
    /// When a probe last came back.
    last_probe: watch::Sender<Option<Instant>>,
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
    /// A link that is not connected yet.
    pub(super) fn new(
        client: Client,
        node: Uuid,
        local: Arc<dyn LocalDelivery>,
        queue: mpsc::Receiver<Command>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            client,
            node,
            local,
            is_up: watch::channel(false).0,
            last_probe: watch::channel(None).0,
            queue,
            subscribers: HashMap::new(),
            metrics,
            outage: None,
        }
    }

    /// Whether signals flow.
    pub(super) fn is_up(&self) -> watch::Receiver<bool> {
        self.is_up.subscribe()
    }

    /// When a probe last came back.
    pub(super) fn last_probe(&self) -> watch::Receiver<Option<Instant>> {
        self.last_probe.subscribe()
    }

    /// Connects, again and again, and serves.
    pub(super) async fn run(mut self) {
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

    /// Logs that the bus is down when an outage begins, and then once a minute.
    fn note_loss(&mut self, error: &Lost) {
        let now = Instant::now();
        let is_new = self.outage.is_none();
        let outage = self.outage.get_or_insert_with(|| Outage { since: now, failures: LogThrottle::new(REMIND_EVERY) });
        let down_s = (now - outage.since).as_secs();
        let is_logged = outage.failures.count(now.into_std()).is_some();
        match (is_new, is_logged) {
            (true, _) => tracing::warn!(%error, "the bus is down"),
            (false, true) => tracing::warn!(%error, down_s, "the bus is still down"),
            (false, false) => tracing::debug!(%error, down_s, "the bus is still down"),
        }
    }

    /// Keeps the count of subscribers right while Redis is away. Returns `false` once the node has no more use for the link.
    async fn wait_without_redis(&mut self, pause: Duration) -> bool {
        let until = tokio::time::sleep(pause);
        tokio::pin!(until);
        loop {
            tokio::select! {
                () = &mut until => return true,
                command = self.queue.recv() => match command {
                    None => return false,
                    // Lost; the reconcile finds what these signals were about.
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
        let pushes = PushHandler {
            node: self.node,
            local: self.local.clone(),
            lost: lost.clone(),
            unanswered: unanswered.clone(),
            last_probe: self.last_probe.clone(),
            metrics: self.metrics.clone(),
        };
        let config = || {
            AsyncConnectionConfig::new()
                .set_connection_timeout(Some(RESPONSE_TIMEOUT))
                .set_response_timeout(Some(RESPONSE_TIMEOUT))
        };
        let listening = config().set_push_sender(pushes);
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
                Command::Publish { device, batch, room } => {
                    match payload::encode(self.node, batch.signals()) {
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

    /// Removes one subscriber, and returns whether it was the last.
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

/// Subscribes to all channels in one command and waits for Redis to confirm.
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
