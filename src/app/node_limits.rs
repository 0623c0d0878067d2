//! Limits on what the clients of a node may use together.

use super::{NodeContext, open_files::ConnectionLimits};
use crate::{
    config::Config,
    socket::{Budget, NetworkLimits, Networks, transport::ConnectionLimiter},
};

/// The limits on connections and their memory, each with the amount in use.
pub struct NodeLimits {
    /// WebSocket connections, including closing ones.
    pub sockets: Budget,
    /// Connections before an upgrade to WebSocket: their number, and the rate of new ones.
    pub limiter: ConnectionLimiter,
    /// The limits per client network.
    pub networks: Networks,
    /// Bytes of large messages that are being received.
    pub inbound: Budget,
    /// Bytes of requests in flight and of outboxes.
    pub outbound: Budget,
}

impl NodeLimits {
    /// The configured limits, or those derived from the limit of open files.
    pub fn new(config: &Config, node: &NodeContext) -> Self {
        let connections = ConnectionLimits::new(&config.server);
        let networks = Networks::new(network_limits(config, connections.http), node.metrics.clone());
        // Half for incoming messages, half for requests in flight and outboxes: peers that announce large messages and
        // never finish them must not block the requests of others.
        let half = config.server.memory_budget_mb << 19;
        Self {
            sockets: Budget::new(connections.sockets),
            limiter: ConnectionLimiter::new(connections.http, networks.clone(), &config.server.trusted_proxies),
            networks,
            inbound: Budget::new(half),
            outbound: Budget::new(half),
        }
    }
}

/// The limits of one client network on a node that allows `max_http` HTTP connections.
fn network_limits(config: &Config, max_http: usize) -> NetworkLimits {
    let limits = &config.limits;
    NetworkLimits {
        sockets: limits.connections_per_network,
        // One network must leave half of a node's connections to others.
        http: limits.http_connections_per_network.min((max_http / 2).max(1)),
        connects_per_second: limits.connects_per_network_second,
    }
}
