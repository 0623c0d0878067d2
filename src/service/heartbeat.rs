//! The heartbeat of a node: a row in the database, from which the other nodes know that this one runs and that its
//! announcements must arrive over the bus.

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use super::Service;

/// Interval between heartbeats.
const EVERY: Duration = Duration::from_secs(10);

/// Writes the heartbeat of a node at intervals, and passes the other running nodes to the bus. Never returns.
pub async fn beat_forever(service: Arc<Service>, node: Uuid) {
    loop {
        tokio::time::sleep(EVERY).await;
        match service.store.write_heartbeat(node, service.now()).await {
            Ok(heartbeat) => service.bus.update_nodes(heartbeat),
            Err(error) => tracing::warn!(%error, "cannot write the heartbeat of this node"),
        }
    }
}
