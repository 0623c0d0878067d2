//! What an open connection remembers of time.

use std::time::Duration;

use actix::SpawnHandle;
use tokio::time::Instant;

use super::connection::Connection;

/// Time between two pings.
pub const HEARTBEAT: Duration = Duration::from_secs(25);

/// The one timer of a connection.
pub struct Timers {
    pub next_ping: Instant,
    /// The timer that is set.
    pub handle: SpawnHandle,
}

impl Timers {
    /// No timer is set yet. The first ping comes at a moment of its own, so that those of many connections spread.
    pub fn new(connection: &Connection) -> Self {
        Self { next_ping: connection.began + connection.share_of(HEARTBEAT), handle: SpawnHandle::default() }
    }
}
