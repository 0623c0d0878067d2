//! Connected devices: the upgrade, the transport below the WebSocket, and one actor per connection.

mod budget;
mod delivery;
mod device;
mod frame_guard;
mod hub;
mod inlet;
mod networks;
mod ops;
mod outbox;
mod pace;
pub mod transport;
mod upgrade;

use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::Semaphore;

pub use hub::Hub;
pub use networks::{NetworkLimits, Networks};
pub use upgrade::open;

use crate::{edge::Origins, metrics::Metrics, service::Service, tasks::Work};
pub use budget::Budget;

/// What all sockets of a node share.
pub struct Node {
    /// The use cases.
    pub service: Arc<Service>,
    /// Who is connected here.
    pub hub: Arc<Hub>,
    /// The runtime of store and bus, where ops run.
    pub runtime: Work,
    /// Bytes that requests in flight and outboxes may hold together.
    pub budget: Budget,
    /// Connections that may be under way from attached to open.
    pub opening: Semaphore,
    /// Bytes that may wait for one socket.
    pub outbox_bytes: usize,
    /// Requests a second of one socket that are served without delay; 0: any number.
    pub requests_per_second: u32,
    /// What each client network has of this node.
    pub networks: Networks,
    /// Proxies whose word about the client is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Browser origins that may connect.
    pub origins: Origins,
    /// What is counted of all sockets together; none has metrics of its own.
    pub metrics: Arc<Metrics>,
}
