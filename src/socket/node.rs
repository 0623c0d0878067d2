//! What all sockets of a node share.

use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::Semaphore;

use super::{budget::Budget, hub::Hub, networks::Networks};
use crate::{edge::Origins, metrics::Metrics, service::Service, tasks::Work};

/// The shared parts. Every connection holds one `Arc` of it.
pub struct Node {
    /// The use cases.
    pub service: Arc<Service>,
    /// The connections of this node.
    pub hub: Arc<Hub>,
    /// The runtime of store and bus, where ops run.
    pub runtime: Work,
    /// Bytes that requests in flight and outboxes may hold together.
    pub budget: Budget,
    /// Permits to run the use case that opens a connection.
    pub opening: Semaphore,
    /// Bytes that may wait for one socket.
    pub outbox_bytes: usize,
    /// Requests per second of one connection that are served without delay; 0 turns the limit off.
    pub requests_per_second: u32,
    /// The limits on each client network.
    pub networks: Networks,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Browser origins that may connect.
    pub origins: Origins,
    /// Counts all sockets together; none has metrics of its own.
    pub metrics: Arc<Metrics>,
}
