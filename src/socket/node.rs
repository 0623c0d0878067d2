//! The state that all connections of a node share.

use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::Semaphore;

use super::{hub::Hub, networks::Networks, shares::SharedBudget};
use crate::{edge::Origins, metrics::Metrics, service::Service, tasks::Work};

/// The shared state. Every connection holds an `Arc` of it.
pub struct Node {
    /// The use cases.
    pub service: Arc<Service>,
    /// The registry of this node's connections.
    pub hub: Arc<Hub>,
    /// Spawns on the runtime of store and bus, where the ops run that no batch serves.
    pub runtime: Work,
    /// Memory budget in bytes for requests in flight, outboxes, mailbox reads and held mail.
    pub budget: SharedBudget,
    /// Limits the number of connections that are being opened at once.
    pub opening_permits: Semaphore,
    /// Maximum number of bytes queued in the outbox of one connection.
    pub outbox_bytes: usize,
    /// Maximum number of requests per second on each connection; 0 turns the limit off.
    pub requests_per_second: u32,
    /// The limits on each client network.
    pub networks: Networks,
    /// Proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// The browser origins that may connect.
    pub origins: Origins,
    /// The metrics of the node.
    pub metrics: Arc<Metrics>,
}
