//! Signals to connected devices. The bus carries them to other nodes; the socket turns them into events of the protocol
//! or closes the connection.

use std::sync::Arc;

pub use sealwire_protocol::auth::EndReason;

use super::{DeviceId, Envelope, KeyKind, PendingApproval, SessionId};

/// A signal to a device's connections, on any node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// One of the device's pools is at or below the low-water mark.
    PrekeysLow {
        /// The pool.
        kind: KeyKind,
        /// Unissued keys when the pool was counted.
        remaining: u32,
        /// The version of the device's pools at that time.
        pool_version: i64,
    },
    /// Other devices of the same user were added or revoked.
    DevicesChanged {
        /// New devices.
        added: Vec<DeviceId>,
        /// Revoked devices.
        removed: Vec<DeviceId>,
    },
    /// These sessions of the device were logged out; connections of its other sessions stay open.
    LoggedOut {
        /// The sessions that ended.
        sessions: Vec<SessionId>,
    },
    /// The device was revoked or replaced.
    DeviceRevoked,
    /// The user's account was deleted.
    AccountDeleted,
    /// A connection with this epoch was opened; all older ones of the device close.
    Displaced {
        /// The new connection's `devices.conn_epoch`.
        epoch: i64,
    },
    /// The device's mailbox has a new envelope.
    Mail {
        /// The number of the newest envelope.
        seq: i64,
        /// That envelope, or `None` if it has to be read from the store.
        envelope: Option<Arc<Envelope>>,
    },
    /// A message for the connections that are open now. It is not stored.
    Ephemeral(Arc<Envelope>),
    /// Sessions of one of the user's devices were opened or ended.
    SessionsChanged {
        /// The device of the sessions.
        device: DeviceId,
        /// Sessions that a sign-in opened.
        opened: Vec<SessionId>,
        /// Sessions that ended other than by expiry or renewal.
        ended: Vec<SessionId>,
    },
    /// A request waits for an approval by one of the user's devices.
    ApprovalRequested(Box<PendingApproval>),
}
