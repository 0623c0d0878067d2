//! What arrives from Redis: signals of other nodes, this node's own probes, the loss of the connection.

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

use super::channels::Channel;
use crate::{
    domain::{Deliver, DeviceId, Signal},
    metrics::{BusTraffic, Metrics},
};

/// Handles what arrives on the listening connection. The connection calls it; it must not wait.
pub struct PushHandler {
    /// This node.
    pub node: Uuid,
    pub local_delivery: Arc<dyn Deliver>,
    /// Notified when the connection is lost.
    pub lost: Arc<Notify>,
    /// Probes sent since the last one came back.
    pub unanswered: Arc<AtomicU32>,
    pub probed: watch::Sender<Option<Instant>>,
    pub metrics: Arc<Metrics>,
}

impl AsyncPushSender for PushHandler {
    fn send(&self, push: PushInfo) -> Result<(), SendError> {
        match (push.kind, push.data.as_slice()) {
            (PushKind::Disconnection, _) => self.lost.notify_one(),
            (PushKind::Message, [Value::BulkString(channel), Value::BulkString(payload)]) => {
                match Channel::parse(channel) {
                    Some(Channel::Probe) => {
                        self.unanswered.store(0, Ordering::Relaxed);
                        self.probed.send_replace(Some(Instant::now()));
                    }
                    Some(Channel::Device(device)) => self.deliver(device, payload),
                    None => {}
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl PushHandler {
    fn deliver(&self, device: DeviceId, payload: &[u8]) {
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
