//! Records which nodes of a deployment run. Each node writes a heartbeat at intervals. From the rows of the others it
//! learns from which nodes it should receive over the bus.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Store, StoreError, rows, sql::nodes as sql};
use crate::domain::{Timestamp, nodes::Heartbeat};

/// A node counts as running for this long after its last heartbeat.
const RUNNING_FOR: Duration = Duration::from_secs(30);
/// How long after its last heartbeat the row of a node that did not stop gracefully is deleted.
const RETENTION: Duration = Duration::from_hours(1);

impl Store {
    /// Writes the heartbeat of a node, and returns its time, the id of the deployment and the other running nodes.
    /// `now` is used only on SQLite; PostgreSQL uses its own clock.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn write_heartbeat(&self, node: Uuid, now: Timestamp) -> Result<Heartbeat, StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            let (at,): (DateTime<Utc>,) =
                tx.query(sql::WRITE_HEARTBEAT).bind(node).bind(now.to_utc()).fetch_one().await?;
            let at = rows::time(at);
            tx.query(sql::DELETE_STALE).bind(at.before(RETENTION).to_utc()).execute().await?;
            let (deployment,): (Uuid,) = tx.query(sql::DEPLOYMENT).fetch_one().await?;
            let running: Vec<(Uuid,)> =
                tx.query(sql::RUNNING).bind(at.before(RUNNING_FOR).to_utc()).fetch_all().await?;
            tx.commit().await?;
            let others = running.into_iter().map(|(id,)| id).filter(|id| *id != node).collect();
            Ok(Heartbeat { at, deployment, others })
        })
        .await
    }

    /// Deletes the row of a node that is stopping.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn remove_node(&self, node: Uuid) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        tx.query(sql::REMOVE).bind(node).execute().await?;
        tx.commit().await
    }
}
