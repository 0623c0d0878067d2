//! Handles the messages that Redis pushes on the subscribing connection.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use redis::{
    PushInfo, PushKind, Value,
    aio::{AsyncPushSender, SendError},
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use uuid::Uuid;

use super::super::{
    keys::{BusKeys, Channel},
    payload::{self, PayloadError},
    peers::Peers,
};
use crate::{
    domain::{DeviceId, LocalDelivery},
    log_throttle::LogThrottle,
    metrics::{BusTraffic, Metrics},
};

/// Called by the Redis connection, so it must not block.
pub(super) struct PushHandler {
    pub(super) node: Uuid,
    pub(super) keys: Arc<BusKeys>,
    pub(super) peers: Arc<Peers>,
    pub(super) local: Arc<dyn LocalDelivery>,
    pub(super) disconnected: Arc<Notify>,
    /// The number of this node's announcements since the last one that came back.
    pub(super) unanswered: Arc<AtomicU32>,
    pub(super) last_probe: watch::Sender<Option<Instant>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) rejections: Arc<LogThrottle>,
}

impl AsyncPushSender for PushHandler {
    fn send(&self, push: PushInfo) -> Result<(), SendError> {
        match (push.kind, push.data.as_slice()) {
            (PushKind::Disconnection, _) => self.disconnected.notify_one(),
            (PushKind::Message, [Value::BulkString(channel), Value::BulkString(payload)]) => {
                let name = std::str::from_utf8(channel).unwrap_or_default();
                let handled = match self.keys.parse_channel(name) {
                    Some(Channel::Nodes) => self.handle_announcement(payload),
                    Some(Channel::Device(device)) => self.handle_signals(device, name, payload),
                    None => Ok(()),
                };
                if let Err(error) = handled {
                    self.metrics.bus_signals.inc(BusTraffic::Rejected);
                    if let Some(count) = self.rejections.count(std::time::Instant::now()) {
                        tracing::warn!(%error, count, "a payload on the bus was dropped");
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl PushHandler {
    fn handle_announcement(&self, payload: &[u8]) -> Result<(), PayloadError> {
        let (node, deployment) =
            payload::decode_announcement(&self.keys, payload, self.peers.database_time(Instant::now()))?;
        if node == self.node {
            self.unanswered.store(0, Ordering::Relaxed);
            self.last_probe.send_replace(Some(Instant::now()));
        } else {
            self.peers.record(node, deployment, Instant::now());
        }
        Ok(())
    }

    fn handle_signals(&self, device: DeviceId, channel: &str, payload: &[u8]) -> Result<(), PayloadError> {
        let (node, signals) =
            payload::decode_signals(&self.keys, channel, payload, self.peers.database_time(Instant::now()))?;
        // A node delivers its own signals directly.
        if node != self.node {
            for signal in signals {
                self.metrics.bus_signals.inc(BusTraffic::Received);
                self.local.deliver(device, signal);
            }
        }
        Ok(())
    }
}
