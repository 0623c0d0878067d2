//! The bus carries signals to wherever a device is connected. It never touches a connection: whatever arrives enters the
//! node by [`Deliver`]. The database is the truth and the bus only a wake-up.

mod redis;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub use redis::RedisBus;
use tokio::sync::watch;

use crate::domain::{Deliver, DeviceId, Signal};

/// The way signals travel.
#[derive(Clone)]
pub enum Bus {
    /// One node: straight to its own door.
    Local(Arc<dyn Deliver>),
    /// Many nodes.
    Redis(RedisBus),
}

impl Bus {
    /// Sends a signal to a device's connections. Call it after the commit that it tells of.
    pub fn publish(&self, device: DeviceId, signal: Signal) {
        match self {
            Self::Local(door) => door.deliver(device, signal),
            Self::Redis(bus) => bus.publish(device, signal),
        }
    }

    /// Sends what a batch of mail has for devices, in its order. Other nodes read the store from a device's newest number
    /// on, so of several in a row they are told the last alone.
    pub fn publish_mail(&self, wakes: Vec<(DeviceId, Signal)>) {
        let Self::Redis(bus) = self else {
            for (device, signal) in wakes {
                self.publish(device, signal);
            }
            return;
        };
        let mut newest: BTreeMap<DeviceId, Signal> = BTreeMap::new();
        for (device, signal) in wakes {
            bus.deliver_here(device, signal.clone());
            if let Signal::Mail { seq, .. } = signal {
                newest.insert(device, Signal::Mail { seq, envelope: None });
                continue;
            }
            if let Some(mail) = newest.remove(&device) {
                bus.publish_elsewhere(device, mail);
            }
            bus.publish_elsewhere(device, signal);
        }
        for (device, mail) in newest {
            bus.publish_elsewhere(device, mail);
        }
    }

    /// Listens for a device from the time this returns (or soon after, where the bus is down).
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

    /// What it is, in a word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Local(_) => "local",
            Self::Redis(_) => "redis",
        }
    }

    /// How long ago the bus was last heard to work; `None` where it has nothing to hear, or never did.
    #[must_use]
    pub fn probe_age(&self) -> Option<Duration> {
        match self {
            Self::Local(_) => None,
            Self::Redis(bus) => bus.probe_age(),
        }
    }

    /// [`Self::is_up`], to be waited on. Of the local bus it never changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<bool> {
        match self {
            Self::Local(_) => watch::channel(true).1,
            Self::Redis(bus) => bus.watch(),
        }
    }
}
