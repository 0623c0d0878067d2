//! Records which nodes of a deployment are running. Each node writes a heartbeat at intervals, and reads those of the
//! other nodes to know whose announcements must arrive over the bus.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Store, StoreError, rows, sql::nodes as sql, tx::Tx};
use crate::domain::{Timestamp, nodes::Heartbeat};

/// A node counts as running for this long after its last heartbeat.
const RUNNING_FOR: Duration = Duration::from_secs(30);
/// How long a heartbeat is kept if its node did not stop gracefully.
const RETENTION: Duration = Duration::from_hours(1);

impl Store {
    /// Returns the current time by the clock of the database; on SQLite, `now`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn clock(&self, now: Timestamp) -> Result<Timestamp, StoreError> {
        let (at,): (DateTime<Utc>,) = self.read().await?.query(sql::NOW).bind(now.to_utc()).fetch_one().await?;
        Ok(rows::time(at))
    }

    /// Returns the high-water time, which [`Self::record_high_water`] wrote last. SQLite only.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn high_water(&self) -> Result<Option<Timestamp>, StoreError> {
        let row: Option<(DateTime<Utc>,)> = self.read().await?.query(sql::HIGH_WATER).fetch_optional().await?;
        Ok(row.map(|(at,)| rows::time(at)).filter(|at| at.as_micros() > 0))
    }

    /// Records the high-water time. SQLite only.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn record_high_water(&self, at: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        tx.query(sql::RECORD_HIGH_WATER).bind(at.to_utc()).execute().await?;
        tx.commit().await
    }

    /// Returns the current time, the id of the deployment and the other running nodes, without writing a heartbeat. For a
    /// node that is starting.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn running_nodes(&self, node: Uuid, now: Timestamp) -> Result<Heartbeat, StoreError> {
        let mut tx = self.read().await?;
        let (at,): (DateTime<Utc>,) = tx.query(sql::NOW).bind(now.to_utc()).fetch_one().await?;
        heartbeat(&mut tx, node, rows::time(at)).await
    }

    /// Writes the heartbeat of a node, and deletes those older than an hour. Returns the time of the heartbeat, the id of
    /// the deployment and the other running nodes.
    ///
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
            // A heartbeat in the future was written before the database's clock was set back.
            let (earliest, latest) = around(at, RETENTION);
            tx.query(sql::DELETE_STALE).bind(earliest).bind(latest).execute().await?;
            let heartbeat = heartbeat(&mut tx, node, at).await?;
            tx.commit().await?;
            Ok(heartbeat)
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

/// Reads the id of the deployment and the nodes other than `node` that are running at `at`, by the clock of the
/// database.
async fn heartbeat(tx: &mut Tx<'_>, node: Uuid, at: Timestamp) -> Result<Heartbeat, StoreError> {
    let (deployment,): (Uuid,) = tx.query(sql::DEPLOYMENT).fetch_one().await?;
    let (earliest, latest) = around(at, RUNNING_FOR);
    let running: Vec<(Uuid,)> = tx.query(sql::RUNNING).bind(earliest).bind(latest).fetch_all().await?;
    let others = running.into_iter().map(|(id,)| id).filter(|id| *id != node).collect();
    Ok(Heartbeat { at, deployment, others })
}

/// The times `span` before and after `at`.
fn around(at: Timestamp, span: Duration) -> (DateTime<Utc>, DateTime<Utc>) {
    (at.before(span).to_utc(), (at + span).to_utc())
}
