//! The timer of an open connection.

use std::time::Duration;

use actix::SpawnHandle;
use tokio::time::Instant;

use super::connection::DeviceConnection;

/// Interval between pings.
pub const HEARTBEAT: Duration = Duration::from_secs(25);

/// The single timer of a connection, shared by all its deadlines.
pub struct ConnectionTimer {
    /// When the next ping is due.
    pub next_ping: Instant,
    /// The running timer of the actor.
    pub handle: SpawnHandle,
}

impl ConnectionTimer {
    /// No timer is running yet. The time of the first ping is random, to spread the pings of many connections.
    pub fn new(connection: &DeviceConnection) -> Self {
        Self { next_ping: connection.upgraded_at + connection.jitter_within(HEARTBEAT), handle: SpawnHandle::default() }
    }
}
