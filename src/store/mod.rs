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
mod prekeys;
mod rows;
mod seed;
pub mod sql;

use std::{path::Path, str::FromStr, sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions, PgConnection, PgPool, SqlitePool,
    pool::PoolOptions,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

pub use accounts::{NewChallenge, NewDevice, NewSession, PastChallenge, Presented, Redemption, SignIn};
pub use batch::Batcher;
pub use claims::{ClaimAnswer, ClaimBatch, ClaimRequest, Short};
pub use devices::{Connection, DeviceRecord, NewConnection, Standing};
pub use error::StoreError;
pub use mailbox::{Accepted, AckRequest, MailAnswer, MailBatch, MailRequest, SendRequest};
pub use prekeys::{PublishOutcome, PublishReport, ResolvedPublish};
pub use seed::SeedDevice;

/// How long a statement waits for the writer before the client is told `unavailable`.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Rows that a sweep handles in one transaction.
const SWEEP_STEP: i64 = 500;

/// Page cache of each SQLite reader (negative: KiB). Small, since the operating system caches the same pages for all.
const READER_CACHE: &str = "-256";
/// How long a PostgreSQL statement waits for a row that another transaction holds.
const LOCK_TIMEOUT: &str = "5s";
/// How long a PostgreSQL statement may take in all.
const STATEMENT_TIMEOUT: &str = "20s";
/// A connection that has idled for longer is tried out before it is used: the server may have gone meanwhile.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// Batches of claims that PostgreSQL works on at once. Measured with `loadtest/claims`: six gained nothing over four.
const CLAIM_LANES: u32 = 4;
/// Connections for mail, for devices that connect and that part, and one more: one that comes back is tried out first.
const OTHER_LANES: u32 = 4;
/// Runs of a transaction that lost to another before its client is told `unavailable`.
const CONFLICT_TRIES: u32 = 4;

/// Runs one expression on a connection for reading.
macro_rules! read {
    ($store:expr, |$db:ident| $body:expr) => {
        match $store {
            $crate::store::Store::Sqlite(engine) => {
                let $db = &engine.readers;
                $body
            }
            $crate::store::Store::Postgres(engine) => {
                let $db = &engine.pool;
                $body
            }
        }
    };
}

/// Runs a block in a write transaction and commits; an error in the block rolls back. On PostgreSQL the block runs again
/// where it lost to another transaction (serialization failure, deadlock), so it must not consume what it captures.
macro_rules! transaction {
    ($store:expr, |$tx:ident| $body:block) => {
        match $store {
            $crate::store::Store::Sqlite(engine) => {
                let began = tokio::time::Instant::now();
                let mut transaction = engine.writer.begin_with("BEGIN IMMEDIATE").await?;
                let value = {
                    let $tx = &mut *transaction;
                    let run = async { Ok::<_, $crate::store::StoreError>($body) };
                    run.await?
                };
                transaction.commit().await?;
                engine.metrics.transaction_seconds.observe(began.elapsed().as_secs_f64());
                value
            }
            $crate::store::Store::Postgres(engine) => $crate::store::attempt!(engine, |$tx| $body),
        }
    };
}

/// The PostgreSQL half of [`transaction`].
macro_rules! attempt {
    ($engine:expr, |$tx:ident| $body:block) => {{
        let mut tries = 1;
        loop {
            let began = tokio::time::Instant::now();
            let run = async {
                let mut transaction = $engine.pool.begin().await?;
                let value = {
                    let $tx = &mut *transaction;
                    let run = async { Ok::<_, $crate::store::StoreError>($body) };
                    run.await?
                };
                transaction.commit().await?;
                $engine.metrics.transaction_seconds.observe(began.elapsed().as_secs_f64());
                Ok::<_, $crate::store::StoreError>(value)
            };
            match run.await {
                Err($crate::store::StoreError::Conflict(error)) if tries < $crate::store::CONFLICT_TRIES => {
                    tracing::debug!(%error, tries, "a transaction lost to another and runs again");
                    $engine.metrics.store_retries.inc();
                    tries += 1;
                }
                outcome => break outcome?,
            }
        }
    }};
}

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
use {attempt, authorize, read, serialize, transaction};

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
    writer: SqlitePool,
    readers: SqlitePool,
    metrics: Arc<Metrics>,
}

/// The server for many nodes: every connection reads and writes.
#[derive(Clone, Debug)]
pub struct Postgres {
    pool: PgPool,
    /// For the lanes of batchers, on whose runtime it opens its connections.
    lanes: PgPool,
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
    /// Opens the database that the URL names and brings its tables up to date.
    ///
    /// # Errors
    /// Where it cannot be opened or migrated.
    pub async fn open(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        if url.starts_with("sqlite:") {
            Self::open_sqlite(url, max_connections).await
        } else {
            Self::open_postgres(url, max_connections).await
        }
    }

    async fn open_sqlite(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::from_str(url)?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        if let Some(folder) = options.get_filename().parent().filter(|folder| *folder != Path::new("")) {
            std::fs::create_dir_all(folder).map_err(sqlx::Error::Io)?;
        }
        let pool = || SqlitePoolOptions::new().acquire_timeout(BUSY_TIMEOUT).test_before_acquire(false);
        let writer = pool().max_connections(1).connect_with(options.clone()).await?;
        sqlx::migrate!("migrations/sqlite").run(&writer).await.map_err(sqlx::Error::from)?;
        let readers = options.read_only(true).pragma("cache_size", READER_CACHE);
        // Readers never wait for each other or for the writer, so more of them than cores would only hold memory.
        let cores = std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
        let readers = pool().max_connections(max_connections.clamp(1, cores)).connect_with(readers).await?;
        Ok(Self::Sqlite(Sqlite { writer, readers, metrics: Arc::default() }))
    }

    async fn open_postgres(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url)?.application_name("sealwire").options([
            ("lock_timeout", LOCK_TIMEOUT),
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("synchronous_commit", "on"),
            // Every statement has an index. A plan that was made while a table was all but empty would be kept.
            ("enable_seqscan", "off"),
        ]);
        let pool: PgPoolOptions = PoolOptions::new()
            .acquire_timeout(BUSY_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|connection: &mut PgConnection, meta| {
                Box::pin(async move {
                    use sqlx::Connection;
                    Ok(meta.idle_for < TRUSTED_IDLE || connection.ping().await.is_ok())
                })
            });
        let in_lanes = lane_connections(max_connections);
        let others = max_connections.saturating_sub(in_lanes).max(1);
        let lanes = pool.clone().max_connections(in_lanes).connect_lazy_with(options.clone());
        let pool = pool.max_connections(others).connect_with(options).await?;
        // sqlx holds an advisory lock while it migrates, so nodes that start together migrate once.
        sqlx::migrate!("migrations/postgres").run(&pool).await.map_err(StoreError::from_migration)?;
        Ok(Self::Postgres(Postgres { pool, lanes, metrics: Arc::default() }))
    }

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
            let idle = u32::try_from(pool.num_idle()).unwrap_or(u32::MAX);
            // Counted one after the other, so a connection that is just being opened may show as idle already.
            let open = pool.size().max(idle);
            PoolLevels { open, idle, limit: pool.options().get_max_connections() }
        }
        match self {
            Self::Sqlite(engine) => levels(&engine.writer).plus(levels(&engine.readers)),
            Self::Postgres(engine) => levels(&engine.pool).plus(levels(&engine.lanes)),
        }
    }

    /// Looks at the database that the URL names without changing anything in it, and says what a start would do.
    ///
    /// # Errors
    /// Where it cannot be reached, or a start would be refused.
    pub async fn inspect(url: &str) -> Result<&'static str, StoreError> {
        if url.starts_with("sqlite:") {
            let options = SqliteConnectOptions::from_str(url)?.create_if_missing(false).read_only(true);
            if !options.get_filename().exists() {
                return Ok("the database file does not exist yet; a start makes it");
            }
            let (_,): (i32,) = sqlx::query_as(sql::PING).fetch_one(&mut options.connect().await?).await?;
            return Ok("the database file can be opened");
        }
        let mut connection = PgConnectOptions::from_str(url)?.connect().await?;
        let (may_create, extended): (bool, bool) = sqlx::query_as(sql::MAY_MIGRATE).fetch_one(&mut connection).await?;
        if may_create || extended { Ok("the database answers") } else { Err(StoreError::may_not_migrate()) }
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// Where it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let _: Option<(i32,)> = read!(self, |db| sqlx::query_as(sql::PING).fetch_optional(db).await)?;
        Ok(())
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
            Self::Postgres(engine) => Self::Postgres(Postgres { pool: engine.lanes.clone(), ..engine.clone() }),
        }
    }

    /// Closes all connections after the statements in flight.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(engine) => {
                engine.readers.close().await;
                engine.writer.close().await;
            }
            Self::Postgres(engine) => {
                engine.lanes.close().await;
                engine.pool.close().await;
            }
        }
    }
}
