//! The bus carries signals to wherever a device is connected. It never touches a connection: whatever arrives enters the
//! node by [`Deliver`]. The database is the truth and the bus only a wake-up.

use std::sync::Arc;

use crate::domain::{Deliver, DeviceId, Signal};

/// The way signals travel.
#[derive(Clone)]
pub enum Bus {
    /// One node: straight to its own door.
    Local(Arc<dyn Deliver>),
}

impl Bus {
    /// Sends a signal to a device's connections. Call it after the commit that it tells of.
    pub fn publish(&self, device: DeviceId, signal: Signal) {
        match self {
            Self::Local(door) => door.deliver(device, signal),
        }
    }
}
