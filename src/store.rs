//! The database: every operation is one method, in at most one transaction unless it says otherwise, written once for
//! SQLite and PostgreSQL.
//!
//! To add an operation: its SQL goes into the file of its subject under `sql`, its method into the file of its subject
//! here. A write takes a transaction from `Store::begin` inside `Store::retrying`, takes its row locks first (`locks`)
//! and then checks the caller's session (`sessions::authorize`), so that a session that has ended changes nothing from
//! that commit on. A read takes a connection from `Store::read`.

mod batcher;
mod bundles;
mod claims;
mod connections;
mod devices;
mod error;
mod health;
mod keys;
mod locks;
mod mailbox;
mod migrations;
mod open;
mod pool;
mod retry;
mod rows;
mod seed;
mod sessions;
mod sign_in;
pub mod sql;
mod sweep;
mod tx;
mod users;

use std::{sync::Arc, time::Duration};

pub use batcher::{BatchWorkers, Batcher};
pub use claims::{BlockedClaim, ClaimAnswer, ClaimRequest, Claims};
pub use connections::{Connection, ConnectionState, NewConnection};
pub use devices::DeviceRecord;
pub use error::StoreError;
pub use health::Health;
pub use keys::{PublishOutcome, PublishReport};
pub use mailbox::{Accepted, AckRequest, MailAnswer, MailRequest, Mailboxes, SendRequest};
pub use retry::BatchOutcome;
pub use seed::SeedDevice;
pub use sessions::{NewSession, Presented};
pub use sign_in::{NewChallenge, NewDevice, PastChallenge, Redemption, SignIn};

use uuid::Uuid;

use crate::{clock::Entropy, domain::Timestamp, metrics::Metrics};
use open::FileLock;
use pool::Connections;
use tx::Tx;

/// How long after the last failed write a SQLite file is trusted again.
const SETTLED: Duration = Duration::from_secs(5);

/// Batches of claims that PostgreSQL works on at once. Measured with `loadtest/claims`: six gained nothing over four.
const CLAIM_WORKERS: u32 = 4;
/// Connections for the other batch workers (mail, connects, disconnects), and one more: a connection that is returned is
/// tested before it can be taken again.
const OTHER_WORKERS: u32 = 4;

/// Settings of a store that are fixed when it is opened.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// Database connections that may be open.
    pub max_connections: u32,
    /// Unissued keys of a pool at which its owner gets `prekeys.low`.
    pub low_watermark: u32,
    /// The source of the ids of new rows.
    pub entropy: Entropy,
}

/// The open database. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Store {
    database: Database,
    settings: StoreSettings,
    metrics: Arc<Metrics>,
}

#[derive(Clone, Debug)]
enum Database {
    /// One file, for one node.
    Sqlite(SqliteConnections),
    /// A server, for many nodes.
    Postgres(PostgresServer),
}

/// Write-ahead log, every commit synced, one writer, several readers.
#[derive(Clone, Debug)]
struct SqliteConnections {
    writer: Connections<sqlx::Sqlite>,
    readers: Connections<sqlx::Sqlite>,
    /// Held by the process that serves the file.
    lock: Option<Arc<FileLock>>,
}

/// Every connection reads and writes.
#[derive(Clone, Debug)]
struct PostgresServer {
    connections: Connections<sqlx::Postgres>,
    /// For the batch workers, on whose runtime they are opened.
    batch_connections: Connections<sqlx::Postgres>,
}

/// Database connections at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLevels {
    /// Open connections.
    pub open: u32,
    /// Open connections that nobody uses.
    pub idle: u32,
    /// The maximum number of open connections.
    pub limit: u32,
}

impl PoolLevels {
    fn of<DB: pool::Engine>(connections: &Connections<DB>) -> Self {
        let pool = connections.pool();
        let open = pool.size();
        // The pool counts without a lock: a connection that is being opened may count as idle already, and one that is
        // taken at the moment it is returned can make the count underflow.
        let idle = u32::try_from(pool.num_idle()).map_or(0, |idle| idle.min(open));
        Self { open, idle, limit: pool.options().get_max_connections() }
    }

    fn plus(self, other: Self) -> Self {
        Self { open: self.open + other.open, idle: self.idle + other.idle, limit: self.limit + other.limit }
    }
}

/// Batches of claims in flight at once, given `max_connections` in all.
fn claim_workers(max_connections: u32) -> u32 {
    (max_connections.saturating_sub(OTHER_WORKERS) / 3).clamp(1, CLAIM_WORKERS)
}

/// Connections that the batch workers have to themselves, given `max_connections` in all.
fn batch_connections(max_connections: u32) -> u32 {
    claim_workers(max_connections) + OTHER_WORKERS
}

impl Store {
    /// A store over an open database, with metrics of its own.
    fn over(database: Database, settings: StoreSettings) -> Self {
        Self { database, settings, metrics: Arc::default() }
    }

    /// The id of a new row. Ids grow with time, so that new rows stand together in their index.
    fn row_id(&self, now: Timestamp) -> Uuid {
        self.settings.entropy.time_ordered_uuid(now)
    }

    /// The same store, counting in `metrics`.
    #[must_use]
    pub fn with_metrics(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics, ..self }
    }

    /// The same store without a time limit on write transactions, for work that nobody waits for.
    #[must_use]
    pub fn without_time_limit(&self) -> Self {
        let database = match self.database.clone() {
            Database::Sqlite(file) => {
                Database::Sqlite(SqliteConnections { writer: file.writer.without_limit(), ..file })
            }
            Database::Postgres(server) => {
                Database::Postgres(PostgresServer { connections: server.connections.without_limit(), ..server })
            }
        };
        Self { database, ..self.clone() }
    }

    /// The same store for batch workers, whose connections to PostgreSQL are their own: these open on the workers' runtime,
    /// and no other work keeps them busy.
    #[must_use]
    pub fn for_batch_workers(&self) -> Self {
        let database = match self.database.clone() {
            Database::Postgres(server) => {
                Database::Postgres(PostgresServer { connections: server.batch_connections.clone(), ..server })
            }
            file @ Database::Sqlite(_) => file,
        };
        Self { database, ..self.clone() }
    }

    /// Batches of claims that may be in flight at once. SQLite has one writer; PostgreSQL works on some while others wait
    /// for their commits.
    #[must_use]
    pub fn claim_workers(&self) -> usize {
        match self.database {
            Database::Sqlite(_) => 1,
            Database::Postgres(_) => claim_workers(self.pool().limit) as usize,
        }
    }

    /// `sqlite` or `postgres`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.database {
            Database::Sqlite(_) => "sqlite",
            Database::Postgres(_) => "postgres",
        }
    }

    /// The database connections of this moment.
    #[must_use]
    pub fn pool(&self) -> PoolLevels {
        match &self.database {
            Database::Sqlite(file) => PoolLevels::of(&file.writer).plus(PoolLevels::of(&file.readers)),
            Database::Postgres(server) => {
                PoolLevels::of(&server.connections).plus(PoolLevels::of(&server.batch_connections))
            }
        }
    }

    /// What is known of the database's availability for writing.
    #[must_use]
    pub fn health(&self) -> &Arc<Health> {
        match &self.database {
            Database::Sqlite(file) => file.writer.health(),
            Database::Postgres(server) => server.connections.health(),
        }
    }

    /// Checks that the database answers, and if SQLite could not write, that it can again.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.read().await?.query(sql::PING).execute().await?;
        if let Database::Sqlite(file) = &self.database {
            file.readers.health().held();
            if let Some(lost) = file.writer.health().lost_at() {
                let mut tx = self.begin().await?;
                tx.query(sql::TRY_TO_WRITE).execute().await?;
                tx.commit().await?;
                // What is left of a full disk may take this small write and no other.
                if lost.elapsed() < SETTLED {
                    return Err(StoreError::unsettled());
                }
                file.writer.health().held();
            }
        }
        Ok(())
    }

    /// Closes all connections after the statements in flight.
    pub async fn close(&self) {
        match &self.database {
            Database::Sqlite(file) => {
                file.readers.pool().close().await;
                file.writer.pool().close().await;
                if let Some(lock) = &file.lock {
                    lock.release();
                }
            }
            Database::Postgres(server) => {
                server.batch_connections.pool().close().await;
                server.connections.pool().close().await;
            }
        }
    }

    /// Begins a write transaction. It ends with [`Tx::commit`], or is rolled back when it is dropped.
    async fn begin(&self) -> Result<Tx<'_>, StoreError> {
        Ok(match &self.database {
            Database::Sqlite(file) => {
                let mut connection = file.writer.acquire(&self.metrics).await?;
                connection.begin().await?;
                Tx::Sqlite(connection)
            }
            Database::Postgres(server) => {
                let mut connection = server.connections.acquire(&self.metrics).await?;
                connection.begin().await?;
                Tx::Postgres(connection)
            }
        })
    }

    /// A connection for reading. Each statement on it sees what is committed when it starts.
    async fn read(&self) -> Result<Tx<'_>, StoreError> {
        Ok(match &self.database {
            Database::Sqlite(file) => Tx::Sqlite(file.readers.acquire(&self.metrics).await?),
            Database::Postgres(server) => Tx::Postgres(server.connections.acquire(&self.metrics).await?),
        })
    }
}
