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

use super::{
    super::payload,
    channels::{DEVICE_CHANNEL, PROBE_CHANNEL},
};
use crate::{
    domain::{DeviceId, LocalDelivery},
    metrics::{BusTraffic, Metrics},
};

/// Called by the Redis connection, so it must not block.
pub(super) struct PushHandler {
    pub(super) node: Uuid,
    pub(super) local: Arc<dyn LocalDelivery>,
    pub(super) disconnected: Arc<Notify>,
    /// The number of probes since the last one that came back.
    pub(super) unanswered: Arc<AtomicU32>,
    pub(super) last_probe: watch::Sender<Option<Instant>>,
    pub(super) metrics: Arc<Metrics>,
}

impl AsyncPushSender for PushHandler {
    fn send(&self, push: PushInfo) -> Result<(), SendError> {
        match (push.kind, push.data.as_slice()) {
            (PushKind::Disconnection, _) => self.disconnected.notify_one(),
            (PushKind::Message, [Value::BulkString(channel), Value::BulkString(payload)]) => {
                let channel = std::str::from_utf8(channel).unwrap_or_default();
                if channel.starts_with(PROBE_CHANNEL) {
                    self.unanswered.store(0, Ordering::Relaxed);
                    self.last_probe.send_replace(Some(Instant::now()));
                } else if let Some(device) = channel.strip_prefix(DEVICE_CHANNEL).and_then(DeviceId::parse) {
                    match payload::decode(payload) {
                        // A node delivers its own signals directly.
                        Ok((node, _)) if node == self.node => {}
                        Ok((_, signals)) => {
                            for signal in signals {
                                self.metrics.bus_signals.inc(BusTraffic::Received);
                                self.local.deliver(device, signal);
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
