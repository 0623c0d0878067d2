//! Carries signals to the nodes that a device is connected to. What arrives reaches the connections by [`LocalDelivery`]
//! alone. Signals may be lost: the database has what they tell, and the reconcile finds it there.

mod batch;
mod payload;
mod redis;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use batch::SignalBatch;
pub use redis::RedisBus;
use tokio::sync::watch;

use crate::domain::{DeviceId, LocalDelivery, Signal};

/// How signals travel.
#[derive(Clone)]
pub enum Bus {
    /// One node: straight to its own connections.
    Local(Arc<dyn LocalDelivery>),
    /// Many nodes.
    Redis(RedisBus),
}

impl Bus {
    /// Sends a signal to a device's connections on all nodes. Call it after the commit that the signal is about.
    pub fn publish(&self, device: DeviceId, signal: Signal) {
        match self {
            Self::Local(connections) => {
                connections.deliver(device, signal);
            }
            Self::Redis(bus) => bus.publish(device, signal),
        }
    }

    /// Sends the signals of one batch of mail, in order.
    pub fn publish_mail(&self, wakes: Vec<(DeviceId, Signal)>) {
        let Self::Redis(bus) = self else {
            for (device, signal) in wakes {
                self.publish(device, signal);
            }
            return;
        };
        let mut elsewhere: BTreeMap<DeviceId, SignalBatch> = BTreeMap::new();
        for (device, signal) in wakes {
            let is_here = bus.deliver_here(device, signal.clone());
            elsewhere.entry(device).or_default().add(signal, !is_here);
        }
        for (device, batch) in elsewhere {
            bus.publish_elsewhere(device, batch);
        }
    }

    /// Subscribes to a device's signals. They arrive from the time this returns, or soon after if the bus is down.
    pub async fn subscribe(&self, device: DeviceId) {
        match self {
            Self::Local(_) => {}
            Self::Redis(bus) => bus.subscribe(device).await,
        }
    }

    /// Undoes one [`Self::subscribe`].
    pub async fn unsubscribe(&self, device: DeviceId) {
        match self {
            Self::Local(_) => {}
            Self::Redis(bus) => bus.unsubscribe(device).await,
        }
    }

    /// Whether signals reach other nodes.
    #[must_use]
    pub fn is_up(&self) -> bool {
        match self {
            Self::Local(_) => true,
            Self::Redis(bus) => bus.is_up(),
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

    /// How long ago the bus last proved that it works; `None` if it never did, and for the local bus.
    #[must_use]
    pub fn probe_age(&self) -> Option<Duration> {
        match self {
            Self::Local(_) => None,
            Self::Redis(bus) => bus.probe_age(),
        }
    }

    /// [`Self::is_up`] as a value to wait on. For the local bus it never changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<bool> {
        match self {
            Self::Local(_) => watch::channel(true).1,
            Self::Redis(bus) => bus.watch(),
        }
    }
}
