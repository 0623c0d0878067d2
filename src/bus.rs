//! The bus carries signals to wherever a device is connected. It never touches a connection: what arrives enters the node
//! through [`Deliver`]. The database is the truth and the bus only a wake-up.

mod redis;
mod signal_batch;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use signal_batch::SignalBatch;
use tokio::sync::watch;

pub use redis::RedisBus;

use crate::domain::{Deliver, DeviceId, Signal};

/// The way signals travel.
#[derive(Clone)]
pub enum Bus {
    /// One node: straight to its own connections.
    Local(Arc<dyn Deliver>),
    /// Many nodes.
    Redis(RedisBus),
}

impl Bus {
    /// Sends a signal to a device's connections. Call it after the commit that it reports.
    pub fn publish(&self, device: DeviceId, signal: Signal) {
        match self {
            Self::Local(local_delivery) => {
                local_delivery.deliver(device, signal);
            }
            Self::Redis(bus) => bus.publish(device, signal),
        }
    }

    /// Sends the signals of a batch of mail, in their order.
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

    /// Takes back one [`Self::subscribe`].
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

    /// Time since the last probe came back; `None` if none has, and for the local bus, which needs none.
    #[must_use]
    pub fn probe_age(&self) -> Option<Duration> {
        match self {
            Self::Local(_) => None,
            Self::Redis(bus) => bus.probe_age(),
        }
    }

    /// [`Self::is_up`], to be waited on. The local bus is always up.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<bool> {
        match self {
            Self::Local(_) => watch::channel(true).1,
            Self::Redis(bus) => bus.watch(),
        }
    }
}
