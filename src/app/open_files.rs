//! How many connections a node may have, given the operating system's limit of open files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::ServerConfig;

/// Files that a node needs besides its clients' connections.
const RESERVED: u64 = 384;
/// Connections to plan for if the limit of open files leaves fewer, or so much as nothing.
const FEWEST: usize = 128;
/// The limit that is assumed if the system has none.
const UNLIMITED: u64 = 1 << 20;

/// Connections that a node may hold open.
#[derive(Clone, Copy, Debug)]
pub struct MostConnections {
    /// Upgraded sockets.
    pub sockets: usize,
    /// Connections that are not upgraded, or not yet.
    pub http: usize,
}

impl MostConnections {
    /// Raises the process's limit of open files as far as it goes, and divides what it allows: three quarters for
    /// sockets, one for other connections. A configured number takes precedence.
    pub fn new(server: &ServerConfig) -> Self {
        let files = usize::try_from(raise_limit().saturating_sub(RESERVED)).unwrap_or(usize::MAX).max(FEWEST);
        let or = |configured: usize, derived: usize| if configured == 0 { derived } else { configured };
        Self {
            sockets: or(server.max_connections, files - files / 4),
            http: or(server.max_http_connections, files / 4),
        }
    }
}

/// Raises the soft limit of open files to the hard one, and returns what is in force then.
fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = if raised.is_ok() { maximum } else { current };
    limit.unwrap_or(UNLIMITED)
}
