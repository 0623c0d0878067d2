//! The running nodes of a deployment. Each writes a heartbeat; from the rows of the others it knows whom it must hear over
//! the bus.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Store, StoreError, rows, sql::nodes as sql};
use crate::domain::{Timestamp, nodes::Heartbeat};

/// A node counts as running for this long after its last heartbeat.
const LIVE: Duration = Duration::from_secs(30);
/// The row of a node that was killed is deleted after this long.
const KEPT: Duration = Duration::from_hours(1);

impl Store {
    /// Writes the heartbeat of a node. `now` is used only by SQLite; PostgreSQL uses its own clock.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn beat(&self, node: Uuid, now: Timestamp) -> Result<Heartbeat, StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            let (at,): (DateTime<Utc>,) = tx.query(sql::BEAT).bind(node).bind(now.to_utc()).fetch_one().await?;
            let at = rows::time(at);
            // Heartbeats from the future are from before the database's clock was set back.
            let around = |span| (at.before(span).to_utc(), (at + span).to_utc());
            let (earliest, latest) = around(KEPT);
            tx.query(sql::DELETE_DEAD).bind(earliest).bind(latest).execute().await?;
            let (deployment,): (Uuid,) = tx.query(sql::DEPLOYMENT).fetch_one().await?;
            let (earliest, latest) = around(LIVE);
            let live: Vec<(Uuid,)> = tx.query(sql::LIVE).bind(earliest).bind(latest).fetch_all().await?;
            tx.commit().await?;
            let others = live.into_iter().map(|(id,)| id).filter(|id| *id != node).collect();
            Ok(Heartbeat { at, deployment, others })
        })
        .await
    }

    /// Deletes the row of a node that stops.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn remove_node(&self, node: Uuid) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        tx.query(sql::REMOVE).bind(node).execute().await?;
        tx.commit().await
    }
}
