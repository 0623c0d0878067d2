//! What bounds a node's clients.

use super::{NodeParts, open_files::MostConnections};
use crate::{
    config::Config,
    socket::{Budget, NetworkLimits, Networks, transport::Admission},
};

/// Bounds on connections and on the memory that they hold together, with what is in use of each.
pub struct Bounds {
    /// Upgraded connections, those that are closing included.
    pub sockets: Budget,
    /// Connections that are not upgraded, or not yet, and the rates of new ones.
    pub admission: Admission,
    /// What each client network has of this node.
    pub networks: Networks,
    /// Bytes of large messages that are coming in.
    pub inbound: Budget,
    /// Bytes of requests in flight and outboxes.
    pub outbound: Budget,
}

impl Bounds {
    /// Those that are configured, or that the limit of open files leaves.
    pub fn new(config: &Config, node: &NodeParts) -> Self {
        let most = MostConnections::new(&config.server);
        let networks = Networks::new(network_limits(config, most.http), node.metrics.clone());
        // Half for what comes in, half for what is in flight and goes out: peers that declare large messages and never
        // finish them must not keep the others' requests from being served.
        let half = config.server.memory_budget_mb << 19;
        Self {
            sockets: Budget::new(most.sockets),
            admission: Admission::new(most.http, networks.clone(), &config.server.trusted_proxies),
            networks,
            inbound: Budget::new(half),
            outbound: Budget::new(half),
        }
    }
}

/// What one client network may have of a node that takes `most_http` connections besides its sockets.
fn network_limits(config: &Config, most_http: usize) -> NetworkLimits {
    let limits = &config.limits;
    NetworkLimits {
        sockets: limits.connections_per_network,
        // Whatever a node holds, one network must leave half of it to the others.
        http: limits.http_connections_per_network.min((most_http / 2).max(1)),
        connects_per_second: limits.connects_per_network_second,
    }
}
