//! The database. `Store` is a closed enum over engines; every operation is one method, one transaction at most, over
//! texts that stand in `sql`.
//!
//! To add an operation: its text goes into `sql.rs`, its method into the file of its subject (`accounts`, `devices`,
//! `prekeys`), written over `read!` or `transaction!`, which run the one body on whichever engine is open. What serves
//! batches (`claims`, `mailbox`) is written over `batch_transaction!` and a module of set-based statements per engine. A
//! method that changes anything starts with `authorize!` or looks the sessions up, so that a revoked session changes
//! nothing, whatever the bus has heard.
//!
//! Lock order: users, sessions, devices, mailboxes, keys.

mod accounts;
mod batch;
mod bundles;
mod claims;
mod devices;
mod error;
mod mailbox;
mod many;
mod open;
mod prekeys;
mod reach;
mod rows;
mod run;
mod seed;
pub mod sql;

use std::{sync::Arc, time::Duration};

pub use accounts::{NewChallenge, NewDevice, NewSession, PastChallenge, Presented, Redemption, SignIn};
pub use batch::Batcher;
pub use claims::{ClaimAnswer, ClaimBatch, ClaimRequest, Short};
pub use devices::{Connection, DeviceRecord, NewConnection, Standing};
pub use error::StoreError;
pub use mailbox::{Accepted, AckRequest, MailAnswer, MailBatch, MailRequest, SendRequest};
pub use prekeys::{PublishOutcome, PublishReport, ResolvedPublish};
pub use reach::Reach;
pub use seed::SeedDevice;

/// How long after the last failed write a SQLite file is trusted again.
const SETTLED: Duration = Duration::from_secs(5);
/// Rows that a sweep handles in one transaction.
const SWEEP_STEP: i64 = 500;

/// Batches of claims that PostgreSQL works on at once. Measured with `loadtest/claims`: six gained nothing over four.
const CLAIM_LANES: u32 = 4;
/// Connections for mail, for devices that connect and that part, and one more: one that comes back is tried out first.
const OTHER_LANES: u32 = 4;
/// Runs of a transaction that lost to another before its client is told `unavailable`.
const CONFLICT_TRIES: u32 = 4;

/// Takes the locks of a list of pairs, where the engine has any.
macro_rules! serialize {
    ($store:expr, $tx:ident, $pairs:expr, $id:expr) => {
        for text in $pairs.into_iter().filter_map(|pair: $crate::store::sql::Pair| pair.on($store)) {
            sqlx::query(text).bind($id).execute(&mut *$tx).await?;
        }
    };
}

/// Checks inside a transaction that the caller's session still holds and evaluates to the session that it replaces.
macro_rules! authorize {
    ($tx:ident, $caller:expr, $now:expr) => {{
        let row: Option<(Option<uuid::Uuid>,)> = sqlx::query_as($crate::store::sql::AUTHORIZE)
            .bind($caller.session.0)
            .bind($caller.device.0)
            .bind($now.to_utc())
            .fetch_optional(&mut *$tx)
            .await?;
        row.ok_or($crate::domain::Refusal::SessionRevoked)?.0
    }};
}

use crate::metrics::Metrics;
use open::FileLock;
use run::Connections;
use run::{attempt, read, run, transaction};
use {authorize, serialize};

/// The open database. Clones share its connections.
#[derive(Clone, Debug)]
pub enum Store {
    /// One file, for one node.
    Sqlite(Sqlite),
    /// A server, for many nodes.
    Postgres(Postgres),
}

/// The embedded engine: write-ahead log, every commit synced, one writer, several readers.
#[derive(Clone, Debug)]
pub struct Sqlite {
    writer: Connections<sqlx::Sqlite>,
    readers: Connections<sqlx::Sqlite>,
    /// Held by the one that serves.
    lock: Option<Arc<FileLock>>,
    metrics: Arc<Metrics>,
}

/// The server for many nodes: every connection reads and writes.
#[derive(Clone, Debug)]
pub struct Postgres {
    connections: Connections<sqlx::Postgres>,
    /// For the lanes of batchers, on whose runtime they are opened.
    lanes: Connections<sqlx::Postgres>,
    metrics: Arc<Metrics>,
}

/// Database connections at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLevels {
    /// Open.
    pub open: u32,
    /// Open and not in use.
    pub idle: u32,
    /// As many as may be open.
    pub limit: u32,
}

impl PoolLevels {
    fn plus(self, other: Self) -> Self {
        Self { open: self.open + other.open, idle: self.idle + other.idle, limit: self.limit + other.limit }
    }
}

/// Batches of claims that may be in flight at once, of so many connections in all.
fn claim_lanes(max_connections: u32) -> u32 {
    (max_connections.saturating_sub(OTHER_LANES) / 3).clamp(1, CLAIM_LANES)
}

/// Connections that the lanes of batchers have to themselves, of so many in all.
fn lane_connections(max_connections: u32) -> u32 {
    claim_lanes(max_connections) + OTHER_LANES
}

impl Store {
    /// Has the store count what it does in `with`; until then it counts for itself.
    #[must_use]
    pub fn measured(mut self, with: Arc<Metrics>) -> Self {
        match &mut self {
            Self::Sqlite(engine) => engine.metrics = with,
            Self::Postgres(engine) => engine.metrics = with,
        }
        self
    }

    fn metrics(&self) -> &Metrics {
        match self {
            Self::Sqlite(engine) => &engine.metrics,
            Self::Postgres(engine) => &engine.metrics,
        }
    }

    /// What it is, in a word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "sqlite",
            Self::Postgres(_) => "postgres",
        }
    }

    /// Its connections at this moment.
    #[must_use]
    pub fn pool(&self) -> PoolLevels {
        fn levels<DB: sqlx::Database>(pool: &sqlx::Pool<DB>) -> PoolLevels {
            let open = pool.size();
            // The pool counts without a lock: a connection that is just being opened may show as idle already, and one that
            // is taken at the moment at which it comes back makes the count fall below zero, which is then a huge one.
            let idle = u32::try_from(pool.num_idle()).map_or(0, |idle| idle.min(open));
            PoolLevels { open, idle, limit: pool.options().get_max_connections() }
        }
        match self {
            Self::Sqlite(engine) => levels(engine.writer.pool()).plus(levels(engine.readers.pool())),
            Self::Postgres(engine) => levels(engine.connections.pool()).plus(levels(engine.lanes.pool())),
        }
    }

    /// Whether the database answers; and, where SQLite could not write, whether it can again.
    ///
    /// # Errors
    /// Where it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let _: Option<(i32,)> = read!(self, |db| sqlx::query_as(sql::PING).fetch_optional(db).await?);
        if let Self::Sqlite(engine) = self {
            engine.readers.reach().held();
            if let Some(lost) = engine.writer.reach().lost_at() {
                transaction!(self, |tx| {
                    sqlx::query(sql::TRY_TO_WRITE).execute(&mut *tx).await?;
                });
                // What is left of a full disk may take this small write and no other.
                if lost.elapsed() < SETTLED {
                    return Err(StoreError::unsettled());
                }
                engine.writer.reach().held();
            }
        }
        Ok(())
    }

    /// What is known of its reach, for writing.
    #[must_use]
    pub fn reach(&self) -> &Arc<Reach> {
        match self {
            Self::Sqlite(engine) => engine.writer.reach(),
            Self::Postgres(engine) => engine.connections.reach(),
        }
    }

    /// The same store without limits on how long its runs take, for work that nobody waits for.
    #[must_use]
    pub fn unhurried(&self) -> Self {
        match self.clone() {
            Self::Sqlite(engine) => Self::Sqlite(Sqlite { writer: engine.writer.unhurried(), ..engine }),
            Self::Postgres(engine) => {
                Self::Postgres(Postgres { connections: engine.connections.unhurried(), ..engine })
            }
        }
    }

    /// Batches of claims that may be in flight at once. SQLite has one writer; PostgreSQL keeps other connections busy
    /// while one waits for its commit.
    #[must_use]
    pub fn claim_lanes(&self) -> usize {
        match self {
            Self::Sqlite(_) => 1,
            Self::Postgres(_) => claim_lanes(self.pool().limit) as usize,
        }
    }

    /// The same database for the lanes of batchers, which have connections of their own: those open on the lanes' runtime,
    /// and nobody else's work keeps them waiting.
    #[must_use]
    pub fn for_lanes(&self) -> Self {
        match self {
            Self::Sqlite(_) => self.clone(),
            Self::Postgres(engine) => Self::Postgres(Postgres { connections: engine.lanes.clone(), ..engine.clone() }),
        }
    }

    /// Closes all connections after the statements in flight.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(engine) => {
                engine.readers.pool().close().await;
                engine.writer.pool().close().await;
                if let Some(lock) = &engine.lock {
                    lock.release();
                }
            }
            Self::Postgres(engine) => {
                engine.lanes.pool().close().await;
                engine.connections.pool().close().await;
            }
        }
    }
}
