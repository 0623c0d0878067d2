//! Signals between nodes over Redis pub/sub: one channel for each connected device.
//!
//! One task, the link, owns two connections to Redis: one subscribes (RESP3, so that messages are pushed) and one
//! publishes. The link handles all queued commands together, so that many devices connecting at once share round trips.
//! After a disconnection the link reconnects and resubscribes itself, because the client library's own resubscription
//! ignores failures. Pub/sub can also fail silently, so the link publishes probes to itself and checks that they come
//! back.

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

/// Maximum number of commands queued for the link. Further publishes are dropped; the reconcile makes up for them.
const MAX_QUEUED: usize = 16_384;
/// Maximum number of bytes of content in the queue.
const MAX_QUEUED_BYTES: usize = 32 * 1024 * 1024;
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
    up: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
    /// When a probe last came back.
    last_probe: watch::Receiver<Option<Instant>>,
}

impl RedisBus {
    /// Starts the link. Redis need not be reachable yet.
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
        let (commands, queue) = mpsc::channel(MAX_QUEUED);
        let link = Link::new(client, node, local.clone(), queue, metrics.clone());
        let (up, last_probe) = (link.is_up(), link.last_probe());
        tasks.spawn("bus link", link.run());
        let content_bytes = Arc::new(Semaphore::new(MAX_QUEUED_BYTES));
        Ok(Self { commands, content_bytes, local, up, metrics, last_probe })
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
        // Fails only if the link has stopped, which has no subscriptions any more.
        let _ = self.commands.send(BusCommand::Unsubscribe(device)).await;
    }

    /// Whether the link is connected and subscribed.
    #[must_use]
    pub fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// [`Self::is_up`] as a watch channel.
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
