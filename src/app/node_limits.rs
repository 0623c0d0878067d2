//! The limits that all clients of a node share.

use sealwire_protocol::limits::MAX_FRAME_BYTES;

use super::{NodeContext, open_files::ConnectionLimits};
use crate::{
    config::Config,
    metrics::Direction,
    socket::{NetworkLimits, Networks, Seats, SharedBudget, transport::ConnectionLimiter},
};

/// Maximum number of sockets of a user for each device that it may have: an open one and one that is closing.
const SOCKETS_PER_DEVICE: usize = 2;

/// The limits on connections and their memory. Each also counts what is in use.
pub struct NodeLimits {
    /// WebSocket connections, including closing ones.
    pub sockets: Seats,
    /// Limits the connections that have not upgraded to WebSocket: their number, and the rate of new ones.
    pub limiter: ConnectionLimiter,
    /// The limits per client network.
    pub networks: Networks,
    /// Bytes of large WebSocket messages that are being received.
    pub inbound: SharedBudget,
    /// Bytes of requests in flight, outboxes and held mail.
    pub outbound: SharedBudget,
}

impl NodeLimits {
    /// Returns the configured limits. Connection limits that are not configured are derived from the limit on open
    /// files.
    pub fn new(config: &Config, node: &NodeContext) -> Self {
        let connections = ConnectionLimits::new(&config.server);
        let networks = Networks::new(network_limits(config, connections), node.metrics.clone());
        let of_user = config.auth.max_devices.saturating_mul(SOCKETS_PER_DEVICE);
        // Inbound and outbound each get half of the memory budget. 2^19 bytes are half a MiB.
        let half = config.server.memory_budget_mb << 19;
        Self {
            sockets: Seats::new(connections.sockets, of_user, node.metrics.clone()),
            limiter: ConnectionLimiter::new(connections.http, networks.clone(), &config.server.trusted_proxies),
            networks,
            inbound: SharedBudget::counted(half, MAX_FRAME_BYTES, node.metrics.clone(), Direction::In),
            outbound: SharedBudget::counted(half, MAX_FRAME_BYTES, node.metrics.clone(), Direction::Out),
        }
    }
}

/// Returns the limits per client network on a node with these limits on connections.
fn network_limits(config: &Config, connections: ConnectionLimits) -> NetworkLimits {
    let limits = &config.limits;
    // One network, also a wide one of IPv6, may use at most half of the node's connections that have not upgraded.
    let half = (connections.http / 2).max(1);
    NetworkLimits {
        sockets: limits.connections_per_network,
        widest_sockets: (connections.sockets / 2).max(1),
        http: limits.http_connections_per_network.min(half),
        widest_http: half,
        connects_per_second: limits.connects_per_network_second,
    }
}
