//! The heartbeat of a node: a row in the database that shows the other nodes that this one is running, so that they
//! expect its announcements on the bus.

use std::{sync::Arc, time::Duration};

use tokio::sync::Mutex;
use uuid::Uuid;

use super::Service;
use crate::store::StoreError;

/// Interval between heartbeats.
const EVERY: Duration = Duration::from_secs(10);

/// The row of this node in the table of nodes.
pub struct Presence {
    node: Uuid,
    /// Whether the node is stopping. Locked while a heartbeat is written, so that the row is not written again after it
    /// was deleted.
    has_left: Mutex<bool>,
}

impl Presence {
    pub(super) fn new(node: Uuid) -> Self {
        Self { node, has_left: Mutex::new(false) }
    }
}

/// Writes the heartbeat of this node at once and then every ten seconds. Logs failures. Never returns.
pub async fn beat_forever(service: Arc<Service>) {
    let mut warned = false;
    loop {
        match service.beat().await {
            Ok(is_alone) if is_alone || warned || service.bus.kind() != "local" => {}
            Ok(_) => {
                tracing::warn!("other nodes run on this database, but bus.url is local: signals do not reach them");
                warned = true;
            }
            Err(error) => tracing::warn!(%error, "cannot write the heartbeat of this node"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

impl Service {
    /// Whether this node writes heartbeats. Not with SQLite and a local bus: there is no other node, and nothing reads
    /// the heartbeats.
    #[must_use]
    pub fn has_heartbeat(&self) -> bool {
        self.store.kind() != "sqlite" || self.bus.kind() != "local"
    }

    /// Writes a heartbeat, unless the node is stopping, and passes the other running nodes to the bus. Returns whether
    /// there are none.
    async fn beat(&self) -> Result<bool, StoreError> {
        let has_left = self.presence.has_left.lock().await;
        if *has_left {
            return Ok(true);
        }
        let heartbeat = self.store.write_heartbeat(self.presence.node, self.now()).await?;
        let is_alone = heartbeat.others.is_empty();
        self.bus.update_nodes(heartbeat);
        Ok(is_alone)
    }

    /// Deletes this node's heartbeat, and stops writing it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn leave(&self) -> Result<(), StoreError> {
        *self.presence.has_left.lock().await = true;
        if !self.has_heartbeat() {
            return Ok(());
        }
        self.store.remove_node(self.presence.node).await
    }
}
