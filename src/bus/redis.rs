//! Signals between nodes over Redis pub/sub: one channel for each connected device.
//!
//! One task, the link, owns two connections: one that only listens (RESP3, so that messages arrive as pushes) and one that
//! publishes. Whatever waits is handled together, so a crowd of connecting devices shares round trips. After a loss the
//! link connects again and resubscribes itself: the client library's own resubscription ignores failures. Pub/sub can
//! also die without a word, so the link listens for its own probes.

mod channels;
mod link;
mod push;

use std::{sync::Arc, time::Duration};

use redis::{Client, IntoConnectionInfo, ProtocolVersion, RedisError, io::tcp::TcpSettings};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::SignalBatch;
use crate::{
    domain::{DeviceId, LocalDelivery, Signal},
    metrics::{BusTraffic, Metrics},
    tasks::Tasks,
};
use link::Link;

/// Commands that may wait for the link. A publish beyond it is dropped; the reconcile heals that.
const QUEUE: usize = 16_384;
/// Bytes of content among them.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// How long a device that connects waits for its subscription. Without it, the reconcile covers what is missed.
const SUBSCRIBE_PATIENCE: Duration = Duration::from_secs(1);

enum Command {
    Publish {
        device: DeviceId,
        batch: SignalBatch,
        /// Ends once the batch is on its way.
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
    local: Arc<dyn LocalDelivery>,
    up: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
    /// When a probe last came back.
    last_probe: watch::Receiver<Option<Instant>>,
}

impl RedisBus {
    /// Starts the link. Redis need not be there yet.
    ///
    /// # Errors
    /// If `url` is not a Redis URL.
    pub fn start(
        url: &str,
        local: Arc<dyn LocalDelivery>,
        node: Uuid,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Result<Self, RedisError> {
        let info = url.into_connection_info()?;
        let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let info = info.set_redis_settings(redis).set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = Client::open(info)?;
        let (commands, queue) = mpsc::channel(QUEUE);
        let link = Link::new(client, node, local.clone(), queue, metrics.clone());
        let (up, last_probe) = (link.is_up(), link.last_probe());
        tasks.spawn("bus link", link.run());
        Ok(Self { commands, room: Arc::new(Semaphore::new(QUEUE_BYTES)), local, up, metrics, last_probe })
    }

    /// Delivers on this node at once and sends to the others.
    pub fn publish(&self, device: DeviceId, signal: Signal) {
        self.deliver_here(device, signal.clone());
        self.publish_elsewhere(device, signal.into());
    }

    /// Delivers on this node, and returns whether the device is connected here.
    pub(super) fn deliver_here(&self, device: DeviceId, signal: Signal) -> bool {
        self.local.deliver(device, signal)
    }

    /// Sends to the other nodes.
    pub(super) fn publish_elsewhere(&self, device: DeviceId, mut batch: SignalBatch) {
        let room = self.reserve(&batch).or_else(|| {
            let dropped = batch.drop_content();
            self.count(BusTraffic::Dropped, dropped);
            self.reserve(&batch)
        });
        let signals = batch.signals().len();
        if signals == 0 {
            return;
        }
        let command = room.map(|room| Command::Publish { device, batch, room });
        let sent = command.is_some_and(|command| self.commands.try_send(command).is_ok());
        self.count(if sent { BusTraffic::Published } else { BusTraffic::Dropped }, signals);
        if !sent {
            tracing::warn!("a signal to other nodes was dropped: the bus has fallen behind");
        }
    }

    fn reserve(&self, batch: &SignalBatch) -> Option<OwnedSemaphorePermit> {
        self.room.clone().try_acquire_many_owned(u32::try_from(batch.bytes()).ok()?).ok()
    }

    fn count(&self, traffic: BusTraffic, signals: usize) {
        self.metrics.bus_signals.add(traffic, signals as u64);
    }

    /// Subscribes to a device's signals; returns once Redis has confirmed it, or after a second.
    pub async fn subscribe(&self, device: DeviceId) {
        let (confirm, confirmed) = oneshot::channel();
        if self.commands.send(Command::Subscribe(device, confirm)).await.is_ok() {
            let _ = timeout(SUBSCRIBE_PATIENCE, confirmed).await;
        }
    }

    /// Undoes one [`Self::subscribe`].
    pub async fn unsubscribe(&self, device: DeviceId) {
        // Fails only if the link has stopped, and its subscriptions with it.
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

    /// How long ago a probe last came back; `None` if none ever did.
    #[must_use]
    pub fn probe_age(&self) -> Option<Duration> {
        self.last_probe.borrow().map(|at| at.elapsed())
    }
}
