//! The running nodes of a deployment. Each writes a heartbeat; from the rows of the others it knows whom it must hear over
//! the bus.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Store, StoreError, rows, sql::nodes as sql, tx::Tx};
use crate::domain::{Timestamp, nodes::Heartbeat};

/// A node counts as running for this long after its last heartbeat.
const LIVE: Duration = Duration::from_secs(30);
/// The row of a node that was killed is deleted after this long.
const KEPT: Duration = Duration::from_hours(1);

impl Store {
    /// What [`Self::beat`] returns, without a heartbeat: for a node that is only starting.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn running_nodes(&self, node: Uuid, now: Timestamp) -> Result<Heartbeat, StoreError> {
        let mut tx = self.read().await?;
        let (at,): (DateTime<Utc>,) = tx.query(sql::NOW).bind(now.to_utc()).fetch_one().await?;
        heartbeat(&mut tx, node, rows::time(at)).await
    }

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
            let (earliest, latest) = around(at, KEPT);
            tx.query(sql::DELETE_DEAD).bind(earliest).bind(latest).execute().await?;
            let heartbeat = heartbeat(&mut tx, node, at).await?;
            tx.commit().await?;
            Ok(heartbeat)
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

/// The nodes that run at a time of the database, besides `node`.
async fn heartbeat(tx: &mut Tx<'_>, node: Uuid, at: Timestamp) -> Result<Heartbeat, StoreError> {
    let (deployment,): (Uuid,) = tx.query(sql::DEPLOYMENT).fetch_one().await?;
    let (earliest, latest) = around(at, LIVE);
    let live: Vec<(Uuid,)> = tx.query(sql::LIVE).bind(earliest).bind(latest).fetch_all().await?;
    let others = live.into_iter().map(|(id,)| id).filter(|id| *id != node).collect();
    Ok(Heartbeat { at, deployment, others })
}

/// The times `span` before and after `at`.
fn around(at: Timestamp, span: Duration) -> (DateTime<Utc>, DateTime<Utc>) {
    (at.before(span).to_utc(), (at + span).to_utc())
}
