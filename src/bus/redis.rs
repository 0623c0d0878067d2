//! Signals between nodes over Redis pub/sub: one channel for each connected device.
//!
//! One task, the link, owns two connections to Redis: one subscribes (RESP3, so that messages are pushed) and one
//! publishes. The link handles all queued commands together, so that many devices connecting at once share round trips.
//! After a disconnection the link reconnects and resubscribes itself, because the client library's own resubscription
//! ignores failures. Pub/sub can also fail silently, so the link publishes announcements of its node and checks that
//! they come back. Announcements of another node show that it uses the same Redis.

mod link;
mod push;
mod target;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::{BusState, SignalBatch, keys::BusKeys, peers::Peers};
use crate::{
    domain::{DeviceId, LocalDelivery, Signal, nodes::Heartbeat, otp::ServerSecret},
    metrics::{BusTraffic, Metrics},
    tasks::Tasks,
};
use link::Link;
use target::BusTarget;
pub use target::BusUrlError;

/// Maximum number of commands queued for the link. Further publishes are dropped; the reconcile makes up for them.
const MAX_QUEUED: usize = 16_384;
/// Maximum number of bytes of content in the queue.
const MAX_QUEUED_BYTES: usize = 32 * 1024 * 1024;
/// Timeout of [`try_connect`].
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connecting device waits for its subscription. If it is not confirmed by then, the reconcile makes up for
/// missed signals.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A command to the link.
enum BusCommand {
    Publish {
        device: DeviceId,
        batch: SignalBatch,
        /// Reserves the batch's bytes of [`MAX_QUEUED_BYTES`] until the batch is sent.
        content_permit: OwnedSemaphorePermit,
    },
    /// The sender confirms the subscription.
    Subscribe(DeviceId, oneshot::Sender<()>),
    Unsubscribe(DeviceId),
}

/// A handle to the link. The link stops when the last clone is dropped.
#[derive(Clone)]
pub struct RedisBus {
    commands: mpsc::Sender<BusCommand>,
    /// The unreserved part of [`MAX_QUEUED_BYTES`].
    content_bytes: Arc<Semaphore>,
    local: Arc<dyn LocalDelivery>,
    state: watch::Receiver<BusState>,
    peers: Arc<Peers>,
    metrics: Arc<Metrics>,
    /// When an announcement of this node last came back.
    last_probe: watch::Receiver<Option<Instant>>,
}

/// What the bus needs to know about its node.
pub struct BusNode<'a> {
    /// The id of the node.
    pub id: Uuid,
    /// The server's secret, from which the channel names and the payload key are derived.
    pub secret: &'a ServerSecret,
    /// The node's first heartbeat.
    pub heartbeat: Heartbeat,
    /// The connections of this node.
    pub local: Arc<dyn LocalDelivery>,
}

/// Checks `bus.url` without connecting.
///
/// # Errors
/// If it is not the URL of a Redis server or of sentinels.
pub fn check_url(url: &str) -> Result<(), BusUrlError> {
    BusTarget::parse(url).map(drop)
}

/// Connects to the Redis server at a URL, and checks that it answers.
///
/// # Errors
/// The cause, as text that does not contain the URL.
pub async fn try_connect(url: &str) -> Result<(), String> {
    let attempt = async {
        let mut target = BusTarget::parse(url).map_err(|error| error.to_string())?;
        let client = target.client().await.map_err(|error| error.to_string())?;
        let mut connection = client.get_multiplexed_async_connection().await.map_err(|error| error.to_string())?;
        redis::cmd("PING").exec_async(&mut connection).await.map_err(|error| error.to_string())
    };
    timeout(CONNECT_TIMEOUT, attempt).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

impl RedisBus {
    /// Starts the link. Redis need not be reachable yet.
    ///
    /// # Errors
    /// If `url` is not the URL of a Redis server or of sentinels.
    pub fn start(url: &str, node: BusNode<'_>, metrics: Arc<Metrics>, tasks: &Tasks) -> Result<Self, BusUrlError> {
        let target = BusTarget::parse(url)?;
        let (commands, queue) = mpsc::channel(MAX_QUEUED);
        let peers = Arc::new(Peers::new(node.heartbeat, Instant::now()));
        let keys = Arc::new(BusKeys::new(node.secret));
        let link = Link::new(target, node.id, keys, peers.clone(), node.local.clone(), queue, metrics.clone());
        let (state, last_probe) = (link.state(), link.last_probe());
        tasks.spawn("bus link", link.run());
        let content_bytes = Arc::new(Semaphore::new(MAX_QUEUED_BYTES));
        Ok(Self { commands, content_bytes, local: node.local, state, peers, metrics, last_probe })
    }

    /// Delivers a signal on this node and publishes it to the others.
    pub fn publish(&self, device: DeviceId, signal: Signal) {
        self.deliver_locally(device, signal.clone());
        self.publish_remotely(device, signal.into());
    }

    /// Delivers a signal on this node. Returns whether the device is connected here.
    pub(super) fn deliver_locally(&self, device: DeviceId, signal: Signal) -> bool {
        self.local.deliver(device, signal)
    }

    /// Publishes a batch to the other nodes. If the queue has too much content, drops the batch's content; if the queue
    /// is full, drops the batch.
    pub(super) fn publish_remotely(&self, device: DeviceId, mut batch: SignalBatch) {
        let content_permit = self.reserve(&batch).or_else(|| {
            let dropped = batch.drop_content();
            self.count(BusTraffic::Dropped, dropped);
            self.reserve(&batch)
        });
        let signals = batch.signals().len();
        if signals == 0 {
            return;
        }
        let command = content_permit.map(|content_permit| BusCommand::Publish { device, batch, content_permit });
        let sent = command.is_some_and(|command| self.commands.try_send(command).is_ok());
        self.count(if sent { BusTraffic::Published } else { BusTraffic::Dropped }, signals);
        if !sent {
            tracing::warn!("a signal to other nodes was dropped: the queue to Redis is full");
        }
    }

    fn reserve(&self, batch: &SignalBatch) -> Option<OwnedSemaphorePermit> {
        self.content_bytes.clone().try_acquire_many_owned(u32::try_from(batch.bytes()).ok()?).ok()
    }

    fn count(&self, traffic: BusTraffic, signals: usize) {
        self.metrics.bus_signals.add(traffic, signals as u64);
    }

    /// Subscribes to a device's signals. Returns once Redis has confirmed it, or after a second.
    pub async fn subscribe(&self, device: DeviceId) {
        let (confirm, confirmed) = oneshot::channel();
        if self.commands.send(BusCommand::Subscribe(device, confirm)).await.is_ok() {
            let _ = timeout(SUBSCRIBE_TIMEOUT, confirmed).await;
        }
    }

    /// Undoes one call of [`Self::subscribe`].
    pub async fn unsubscribe(&self, device: DeviceId) {
        // Fails only if the link has stopped; it then has no subscriptions.
        let _ = self.commands.send(BusCommand::Unsubscribe(device)).await;
    }

    /// Replaces the list of other running nodes by that of a newer heartbeat.
    pub fn update_nodes(&self, heartbeat: Heartbeat) {
        self.peers.update(heartbeat, Instant::now());
    }

    /// Whether the link is connected and subscribed, and the announcements of the other nodes arrive.
    #[must_use]
    pub fn state(&self) -> BusState {
        *self.state.borrow()
    }

    /// [`Self::state`] as a watch channel.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<BusState> {
        self.state.clone()
    }

    /// How long ago an announcement of this node last came back; `None` if none ever did.
    #[must_use]
    pub fn probe_age(&self) -> Option<Duration> {
        self.last_probe.borrow().map(|at| at.elapsed())
    }
}
