//! Derives the connection limits from the operating system's limit on open files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::ServerConfig;

/// Number of open files that a node needs in addition to client connections.
const RESERVED: u64 = 384;
/// Minimum number of connections to allow, even if the limit on open files is lower.
const MIN_CONNECTIONS: usize = 128;
/// The limit on open files to assume if the system has none.
const ASSUMED_LIMIT: u64 = 1 << 20;

/// Maximum numbers of open connections of a node.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// WebSocket connections.
    pub sockets: usize,
    /// Connections that have not upgraded.
    pub http: usize,
}

impl ConnectionLimits {
    /// Raises the process's limit on open files to the hard limit, and divides it: three quarters for WebSocket
    /// connections, one quarter for others. Configured limits take precedence.
    pub fn new(server: &ServerConfig) -> Self {
        let files = usize::try_from(raise_limit().saturating_sub(RESERVED)).unwrap_or(usize::MAX).max(MIN_CONNECTIONS);
        let or = |configured: usize, derived: usize| if configured == 0 { derived } else { configured };
        Self {
            sockets: or(server.max_connections, files - files / 4),
            http: or(server.max_http_connections, files / 4),
        }
    }
}

/// Raises the soft limit on open files to the hard limit, and returns the limit in force.
fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = if raised.is_ok() { maximum } else { current };
    limit.unwrap_or(ASSUMED_LIMIT)
}
