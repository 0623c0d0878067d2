//! Carries signals to the nodes that a device is connected to. A node hands them to its connections only through
//! [`LocalDelivery`]. Signals may be lost: they report changes that are in the database, where the reconcile finds
//! them. Only ephemeral messages are not stored.

mod batch;
mod keys;
mod payload;
mod peers;
mod redis;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use batch::SignalBatch;
pub use redis::{BusNode, BusUrlError, RedisBus, check_url, try_connect};
use tokio::sync::watch;
use uuid::Uuid;

use crate::domain::{DeviceId, LocalDelivery, Signal, nodes::Heartbeat};

/// Whether signals reach the other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusState {
    /// Signals reach all nodes.
    Up,
    /// There is no connection to Redis.
    Down,
    /// The node with this id is running according to its heartbeat, but its announcements do not arrive.
    NodeUnreachable(Uuid),
    /// Another deployment with the same server secret uses this Redis.
    ForeignDeployment,
}

/// The transport of signals.
#[derive(Clone)]
pub enum Bus {
    /// For a single node: delivers directly to its own connections.
    Local(Arc<dyn LocalDelivery>),
    /// For several nodes: Redis pub/sub.
    Redis(RedisBus),
}

impl Bus {
    /// Sends a signal to a device's connections on all nodes. Call this after the commit that the signal reports.
    pub fn publish(&self, device: DeviceId, signal: Signal) {
        match self {
            Self::Local(connections) => {
                connections.deliver(device, signal);
            }
            Self::Redis(bus) => bus.publish(device, signal),
        }
    }

    /// Sends the signals of one batch of mail, in order. Signals for one device share a publish; envelopes are sent to
    /// other nodes only if the device is not connected here.
    pub fn publish_mail(&self, signals: Vec<(DeviceId, Signal)>) {
        let Self::Redis(bus) = self else {
            for (device, signal) in signals {
                self.publish(device, signal);
            }
            return;
        };
        let mut remote: BTreeMap<DeviceId, SignalBatch> = BTreeMap::new();
        for (device, signal) in signals {
            let is_local = bus.deliver_locally(device, signal.clone());
            remote.entry(device).or_default().add(signal, !is_local);
        }
        for (device, batch) in remote {
            bus.publish_remotely(device, batch);
        }
    }

    /// Subscribes this node to a device's signals. They are received once this returns or, if the bus is down, once it
    /// is up.
    pub async fn subscribe(&self, device: DeviceId) {
        match self {
            Self::Local(_) => {}
            Self::Redis(bus) => bus.subscribe(device).await,
        }
    }

    /// Undoes one call of [`Self::subscribe`].
    pub async fn unsubscribe(&self, device: DeviceId) {
        match self {
            Self::Local(_) => {}
            Self::Redis(bus) => bus.unsubscribe(device).await,
        }
    }

    /// Replaces the list of other running nodes by that of a newer heartbeat.
    pub fn update_nodes(&self, heartbeat: Heartbeat) {
        match self {
            Self::Local(_) => {}
            Self::Redis(bus) => bus.update_nodes(heartbeat),
        }
    }

    /// Whether signals reach the other nodes. The local bus is always up.
    #[must_use]
    pub fn state(&self) -> BusState {
        match self {
            Self::Local(_) => BusState::Up,
            Self::Redis(bus) => bus.state(),
        }
    }

    /// `local` or `redis`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Local(_) => "local",
            Self::Redis(_) => "redis",
        }
    }

    /// How long ago an announcement of this node last came back over the bus; `None` if none ever did, and for the
    /// local bus.
    #[must_use]
    pub fn probe_age(&self) -> Option<Duration> {
        match self {
            Self::Local(_) => None,
            Self::Redis(bus) => bus.probe_age(),
        }
    }

    /// [`Self::state`] as a watch channel. For the local bus it never changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<BusState> {
        match self {
            Self::Local(_) => watch::channel(BusState::Up).1,
            Self::Redis(bus) => bus.watch(),
        }
    }
}
