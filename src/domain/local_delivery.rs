//! The interface through which signals reach the connections of this node.
//!
//! The socket hub implements it. The bus and the reconciler use it, because their layers may not import the hub.

use super::{DeviceId, SessionId, Signal};

/// An open connection of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveConnection {
    /// The connected device.
    pub device: DeviceId,
    /// The session that the device presented.
    pub session: SessionId,
    /// The connection's `devices.conn_epoch`.
    pub epoch: i64,
}

/// Delivers signals, from this node or others, to the connections of this node. All signals go through it.
pub trait LocalDelivery: Send + Sync {
    /// Delivers a signal to the device's connections on this node. Returns whether it has any. Must not block.
    fn deliver(&self, device: DeviceId, signal: Signal) -> bool;

    /// The connections that are open on this node.
    fn connections(&self) -> Vec<LiveConnection>;
}
