//! How signals reach the connections of this node, and which connections those are.
//!
//! The bus and the reconcile deliver; the hub of the sockets implements it, which neither of them may import.

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

/// The only way by which signals, local or from other nodes, reach the connections of this node.
pub trait LocalDelivery: Send + Sync {
    /// Delivers a signal to the device's connections on this node. Returns whether there are any. Must not block.
    fn deliver(&self, device: DeviceId, signal: Signal) -> bool;

    /// The connections that are open on this node.
    fn connections(&self) -> Vec<LiveConnection>;
}
