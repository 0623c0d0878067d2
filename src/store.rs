//! Database access. Each operation is one method, written once for SQLite and PostgreSQL; it uses at most one
//! transaction unless its comment says otherwise.
//!
//! To add an operation, put its SQL into the matching file under `sql` and its method into the matching file here. A
//! write takes a transaction from `Store::begin` inside `Store::retrying`, takes its row locks first (`locks`) and then
//! checks the caller's session (`sessions::authorize`), so that a session that has ended changes nothing from that
//! commit on. A read takes a connection from `Store::read`.

mod access;
mod account_lock;
mod accounts;
mod approvals;
mod batcher;
mod bundles;
mod challenges;
mod claims;
mod connections;
mod device_age;
mod device_status;
mod devices;
mod error;
mod fair_permits;
mod fair_queue;
mod health;
mod keys;
mod locks;
mod mailbox;
mod migrations;
mod nodes;
mod open;
mod pool;
mod push;
mod retry;
mod rows;
mod seed;
mod session_settings;
mod sessions;
mod sign_in;
mod signed_in;
pub mod sql;
mod sweep;
mod tx;
mod user_queues;
mod users;

use std::{sync::Arc, time::Duration};

pub use account_lock::AccountStatus;
pub use accounts::DeviceRecord;
pub use approvals::{ApprovalRequested, ApprovalState, Approved, ApprovedSession, Decided, Decision, DueApproval};
pub use batcher::{BatchItem, BatchWorkers, Batcher, Beside, PendingAnswer};
pub use challenges::{
    CodeDecision, CodeHistory, CountedGuess, GuessFrom, NetworkTag, NewChallenge, PastChallenge, Trust,
};
pub use claims::{BlockedClaim, ClaimAnswer, ClaimRequest, Claims};
pub use connections::{ConnectionRegistration, ConnectionState, RegisteredConnection};
pub use device_status::{DeviceStatus, StatusRequest};
pub use devices::RevokedDevice;
pub use error::StoreError;
pub use fair_permits::{FairPermit, FairPermits};
pub use health::DatabaseHealth;
pub use keys::{PublishOutcome, PublishReport};
pub use mailbox::{AcceptedMessage, AckRequest, DeferredMail, MailAnswer, MailRequest, Mailboxes, SendRequest};
pub use open::may_write;
pub use push::{DueWakeUp, NewPushTarget, PushRegistration, SettledWakeUp};
pub use retry::BatchOutcome;
pub use seed::SeedDevice;
pub use sessions::{EndedSessions, FoundSession, NewSession, PresentedSession, SessionRecord, TokenLookup};
pub use sign_in::{SignIn, SignInOutcome};
pub use signed_in::{NewDevice, SignedIn};
pub use sweep::Cutoff;
pub use user_queues::{Place, UserQueues};
pub use users::{AddressChange, DeletedAccount};

use uuid::Uuid;

use crate::{clock::Entropy, domain::Timestamp, metrics::Metrics};
use open::FileLock;
use pool::DatabasePool;
use tx::Tx;

/// How long after a failed write `ping` still reports a SQLite file as unavailable.
const WRITE_RECOVERY: Duration = Duration::from_secs(5);

/// Maximum number of claims per transaction on SQLite. Chosen with `loadtest/claims`: 512 gained nothing over 256.
const CLAIMS_PER_SQLITE_BATCH: usize = 256;
/// The same on PostgreSQL. Chosen together with the number of workers.
const CLAIMS_PER_POSTGRES_BATCH: usize = 128;
/// Maximum number of claim batches in flight on PostgreSQL. Measured with `loadtest/claims`: six gained nothing over
/// four.
const CLAIM_WORKERS: u32 = 4;
/// Connections for the other batch workers (mail, connects, disconnects), and one spare, because a returned connection
/// is checked before it can be taken again.
const OTHER_BATCH_CONNECTIONS: u32 = 4;

/// Store settings, fixed when it is opened.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// Maximum number of open database connections.
    pub max_connections: u32,
    /// If the URL of the database leads to a pooler in transaction mode: the URL of PostgreSQL itself, for migrations.
    pub pooler: Option<String>,
    /// Low-water mark: the number of unissued keys in a pool at or below which its owner gets `prekeys.low`.
    pub low_watermark: u32,
    /// While a user has a published device of this age, younger ones may not disturb the others. Zero turns it off.
    pub device_age: Duration,
    /// Source of the ids of new rows.
    pub entropy: Entropy,
}

/// The open database. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Store {
    database: Database,
    migrated: usize,
    settings: StoreSettings,
    metrics: Arc<Metrics>,
}

#[derive(Clone, Debug)]
enum Database {
    /// One file, served by one node.
    Sqlite(SqlitePools),
    /// A database server, shared by any number of nodes.
    Postgres(PostgresPools),
}

/// Pools on one file: one writer, several readers. WAL mode; every commit is synced.
#[derive(Clone, Debug)]
struct SqlitePools {
    writer: DatabasePool<sqlx::Sqlite>,
    readers: DatabasePool<sqlx::Sqlite>,
    /// One connection only for `Store::ping`, so that a node is ready however busy the others are.
    probe: DatabasePool<sqlx::Sqlite>,
    /// Set in the process that serves the file.
    lock: Option<Arc<FileLock>>,
}

/// Pools on one server. Every connection reads and writes.
#[derive(Clone, Debug)]
struct PostgresPools {
    connections: DatabasePool<sqlx::Postgres>,
    /// Only for the batch workers, and opened on their runtime.
    batch_connections: DatabasePool<sqlx::Postgres>,
    /// One connection only for `Store::ping`, so that a node is ready however busy the others are.
    probe: DatabasePool<sqlx::Postgres>,
}

/// A snapshot of the number of database connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUsage {
    /// Open connections.
    pub open: u32,
    /// Open connections that are not in use.
    pub idle: u32,
    /// The maximum number of open connections.
    pub limit: u32,
}

impl PoolUsage {
    fn of<DB: pool::Engine>(connections: &DatabasePool<DB>) -> Self {
        let pool = connections.pool();
        let open = pool.size();
        // The pool counts without a lock: a connection that is being opened may count as idle already, and one that is
        // taken at the moment it is returned can make the count underflow.
        let idle = u32::try_from(connections.idle()).map_or(0, |idle| idle.min(open));
        Self { open, idle, limit: pool.options().get_max_connections() }
    }

    fn plus(self, other: Self) -> Self {
        Self { open: self.open + other.open, idle: self.idle + other.idle, limit: self.limit + other.limit }
    }
}

/// Number of claim batches in flight at once, if there are `max_connections` in total.
fn claim_workers(max_connections: u32) -> u32 {
    (max_connections.saturating_sub(OTHER_BATCH_CONNECTIONS) / 3).clamp(1, CLAIM_WORKERS)
}

/// Number of connections reserved for the batch workers, if there are `max_connections` in total.
fn batch_connections(max_connections: u32) -> u32 {
    claim_workers(max_connections) + OTHER_BATCH_CONNECTIONS
}

impl Store {
    /// A store on an open database, with its own metrics.
    fn over(database: Database, settings: StoreSettings) -> Self {
        Self { database, migrated: 0, settings, metrics: Arc::default() }
    }

    /// The number of migrations that were applied when the store was opened.
    #[must_use]
    pub fn migrated(&self) -> usize {
        self.migrated
    }

    /// The id of a new row. Ids grow with time, so that new rows are adjacent in the index.
    fn row_id(&self, now: Timestamp) -> Uuid {
        self.settings.entropy.time_ordered_uuid(now)
    }

    /// The same store, recording into `metrics`.
    #[must_use]
    pub fn with_metrics(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics, ..self }
    }

    /// The same store without a time limit on write transactions, for background work.
    #[must_use]
    pub fn without_time_limit(&self) -> Self {
        let database = match self.database.clone() {
            Database::Sqlite(file) => Database::Sqlite(SqlitePools { writer: file.writer.without_limit(), ..file }),
            Database::Postgres(server) => {
                Database::Postgres(PostgresPools { connections: server.connections.without_limit(), ..server })
            }
        };
        Self { database, ..self.clone() }
    }

    /// The same store for batch workers. On PostgreSQL it uses the connections reserved for them, which are opened on
    /// the workers' runtime and are never busy with other work.
    #[must_use]
    pub fn for_batch_workers(&self) -> Self {
        let database = match self.database.clone() {
            Database::Postgres(server) => {
                Database::Postgres(PostgresPools { connections: server.batch_connections.clone(), ..server })
            }
            file @ Database::Sqlite(_) => file,
        };
        Self { database, ..self.clone() }
    }

    /// Number of operations outside the batches that should run at a time: two thirds of the connections that they share
    /// with sign-ins and background work, and at least six.
    #[must_use]
    pub fn concurrent_operations(&self) -> usize {
        let connections = match &self.database {
            Database::Sqlite(file) => PoolUsage::of(&file.readers).limit,
            Database::Postgres(server) => PoolUsage::of(&server.connections).limit,
        };
        (connections * 2 / 3).max(6) as usize
    }

    /// Maximum number of claim batches in flight. SQLite has one writer; PostgreSQL can run some batches while others
    /// wait for their commits.
    #[must_use]
    pub fn claim_workers(&self) -> usize {
        match self.database {
            Database::Sqlite(_) => 1,
            Database::Postgres(_) => claim_workers(self.pool().limit) as usize,
        }
    }

    /// Maximum number of claims per transaction. SQLite runs one batch at a time, so larger ones share more there.
    #[must_use]
    pub fn claims_per_batch(&self) -> usize {
        match self.database {
            Database::Sqlite(_) => CLAIMS_PER_SQLITE_BATCH,
            Database::Postgres(_) => CLAIMS_PER_POSTGRES_BATCH,
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

    /// The current number of database connections, of all pools together but without the one for [`Self::ping`].
    #[must_use]
    pub fn pool(&self) -> PoolUsage {
        match &self.database {
            Database::Sqlite(file) => PoolUsage::of(&file.writer).plus(PoolUsage::of(&file.readers)),
            Database::Postgres(server) => {
                PoolUsage::of(&server.connections).plus(PoolUsage::of(&server.batch_connections))
            }
        }
    }

    /// The availability of the database, as the latest operations found it; on SQLite, for writing.
    #[must_use]
    pub fn health(&self) -> &Arc<DatabaseHealth> {
        match &self.database {
            Database::Sqlite(file) => file.writer.health(),
            Database::Postgres(server) => server.connections.health(),
        }
    }

    /// Checks that the database answers and can be written. On PostgreSQL this locks a row, which a read-only server
    /// refuses. On SQLite it writes a page, but only after a failed write.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it does not answer, is read-only, or if a write to SQLite failed less than five
    /// seconds ago.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let mut probe = match &self.database {
            Database::Sqlite(file) => Tx::Sqlite(file.probe.acquire(&self.metrics).await?),
            Database::Postgres(server) => {
                let mut connection = server.probe.acquire(&self.metrics).await?;
                if connection.is_pooled() {
                    connection.begin().await?;
                }
                Tx::Postgres(connection)
            }
        };
        probe.query(sql::PING).execute().await?;
        drop(probe);
        match &self.database {
            Database::Postgres(server) => server.connections.health().record_write(),
            Database::Sqlite(file) => {
                file.readers.health().record_answer();
                if let Some(failed_at) = file.writer.health().last_outage_at() {
                    let mut tx = self.begin().await?;
                    tx.query(sql::TRY_TO_WRITE).execute().await?;
                    tx.commit().await?;
                    // On an almost full disk this small write may succeed although larger ones fail.
                    if failed_at.elapsed() < WRITE_RECOVERY {
                        return Err(StoreError::still_failing());
                    }
                    file.writer.health().record_write();
                }
            }
        }
        Ok(())
    }

    /// Waits for the statements in flight, then closes all connections.
    pub async fn close(&self) {
        match &self.database {
            Database::Sqlite(file) => {
                file.probe.close().await;
                file.readers.close().await;
                file.writer.close().await;
                if let Some(lock) = &file.lock {
                    lock.release();
                }
            }
            Database::Postgres(server) => {
                server.probe.close().await;
                server.batch_connections.close().await;
                server.connections.close().await;
            }
        }
    }

    /// Begins a write transaction. Dropping it without [`Tx::commit`] rolls it back.
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
                let mut tx = Tx::Postgres(connection);
                if retry::has_waited_for_locks() {
                    tx.query(sql::SHORT_LOCK_WAIT).execute().await?;
                }
                tx
            }
        })
    }

    /// A connection for statements that each commit by themselves, which saves the round trips of a transaction. Only
    /// behind a pooler, and while row locks are waited for briefly, they run in one transaction. End it with
    /// [`Tx::end_statements`].
    async fn statements(&self) -> Result<Tx<'_>, StoreError> {
        Ok(match &self.database {
            Database::Sqlite(file) => Tx::Sqlite(file.writer.acquire(&self.metrics).await?),
            Database::Postgres(_) if retry::has_waited_for_locks() => self.begin().await?,
            Database::Postgres(_) => self.read().await?,
        })
    }

    /// Begins a write transaction like [`Self::begin`], whose statements hardly wait for locked rows.
    async fn begin_with_brief_lock_wait(&self) -> Result<Tx<'_>, StoreError> {
        match &self.database {
            Database::Postgres(server) if !retry::has_waited_for_locks() => {
                let mut connection = server.connections.acquire(&self.metrics).await?;
                connection.begin_with_brief_lock_wait().await?;
                Ok(Tx::Postgres(connection))
            }
            _ => self.begin().await,
        }
    }

    /// A connection for reading, without a transaction: each statement sees what is committed when it starts.
    async fn read(&self) -> Result<Tx<'_>, StoreError> {
        Ok(match &self.database {
            Database::Sqlite(file) => Tx::Sqlite(file.readers.acquire(&self.metrics).await?),
            Database::Postgres(server) => {
                let mut connection = server.connections.acquire(&self.metrics).await?;
                if connection.is_pooled() {
                    // Outside of a transaction, each statement could run on another connection to PostgreSQL.
                    connection.begin().await?;
                }
                Tx::Postgres(connection)
            }
        })
    }
}
