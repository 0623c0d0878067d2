//! Opening a database: its options, its lock, its tables.

use std::{path::Path, str::FromStr, sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions, Connection, PgConnection, SqliteConnection,
    pool::PoolOptions,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::time::timeout;

use super::{
    Postgres, Sqlite, Store, StoreError, lane_connections,
    reach::{PATIENCE, Reach},
    run::Connections,
    sql,
};

/// Page cache of each SQLite reader (negative: KiB). Small, since the operating system caches the same pages for all.
const READER_CACHE: &str = "-256";
/// How long a PostgreSQL statement waits for a row that another transaction holds.
const LOCK_TIMEOUT: &str = "5s";
/// How long a PostgreSQL statement may take in all. Less than a run, so that it is the server that ends one which is slow.
const STATEMENT_TIMEOUT: &str = "9s";
/// How long PostgreSQL keeps the locks of a node from which it hears nothing more. More than a run.
const IDLE_TIMEOUT: &str = "15s";
/// A connection that has idled for longer is tried out before it is used: the server may have gone meanwhile.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// How long its answer may take.
const PING_TIME: Duration = Duration::from_secs(1);

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
            .busy_timeout(PATIENCE);
        if let Some(folder) = options.get_filename().parent().filter(|folder| *folder != Path::new("")) {
            std::fs::create_dir_all(folder).map_err(sqlx::Error::Io)?;
        }
        let pool = || SqlitePoolOptions::new().acquire_timeout(PATIENCE).test_before_acquire(false);
        let writer: SqlitePoolOptions = pool().max_connections(1).before_acquire(|writer: &mut SqliteConnection, _| {
            // SQLite ends a transaction by itself where the disk is full or fails. sqlx does not notice, and takes the
            // connection to be in a transaction from then on.
            Box::pin(async move { Ok(!writer.is_in_transaction()) })
        });
        let writer = writer.connect_with(options.clone()).await?;
        sqlx::migrate!("migrations/sqlite").run(&writer).await.map_err(sqlx::Error::from)?;
        let readers = options.read_only(true).pragma("cache_size", READER_CACHE);
        // Readers never wait for each other or for the writer, so more of them than cores would only hold memory.
        let cores = std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
        let readers = pool().max_connections(max_connections.clamp(1, cores)).connect_with(readers).await?;
        let (writer, readers) = (Connections::to_file(writer), Connections::to_file(readers));
        Ok(Self::Sqlite(Sqlite { writer, readers, metrics: Arc::default() }))
    }

    async fn open_postgres(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url)?.application_name("sealwire").options([
            ("lock_timeout", LOCK_TIMEOUT),
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("idle_in_transaction_session_timeout", IDLE_TIMEOUT),
            ("synchronous_commit", "on"),
            // Every statement has an index. A plan that was made while a table was all but empty would be kept.
            ("enable_seqscan", "off"),
        ]);
        let reach = Arc::new(Reach::default());
        let known = reach.clone();
        let pool: PgPoolOptions = PoolOptions::new()
            .acquire_timeout(PATIENCE)
            .test_before_acquire(false)
            .before_acquire(move |connection: &mut PgConnection, meta| {
                // What idled when the server was found to be away leads nowhere, and asking it would take its time.
                let is_stale = known.lost_at().is_some_and(|lost| lost.elapsed() < meta.idle_for);
                Box::pin(async move {
                    let is_trusted = meta.idle_for < TRUSTED_IDLE;
                    Ok(!is_stale && (is_trusted || matches!(timeout(PING_TIME, connection.ping()).await, Ok(Ok(())))))
                })
            });
        let in_lanes = lane_connections(max_connections);
        let others = max_connections.saturating_sub(in_lanes).max(1);
        let lanes = pool.clone().max_connections(in_lanes).connect_lazy_with(options.clone());
        let pool = pool.max_connections(others).connect_with(options).await?;
        let mut connection = pool.acquire().await?;
        // A migration takes as long as it does, and so does waiting for another node's: sqlx holds an advisory lock, so
        // nodes that start together migrate once.
        sqlx::query(sql::NO_TIMEOUTS).execute(&mut *connection).await?;
        sqlx::migrate!("migrations/postgres").run(&mut *connection).await.map_err(StoreError::from_migration)?;
        connection.close().await?;
        let lanes = Connections::to_server(lanes, reach.clone());
        Ok(Self::Postgres(Postgres {
            connections: Connections::to_server(pool, reach),
            lanes,
            metrics: Arc::default(),
        }))
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
}
