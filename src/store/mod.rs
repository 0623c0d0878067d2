//! The database. `Store` is a closed enum over engines; every operation is one method, one transaction at most, over
//! texts that stand in `sql`.
//!
//! To add an operation: its text goes into `sql.rs`, its method into the file of its subject (`accounts`, `devices`,
//! `prekeys`), written over `read!` or `transaction!`, which run the one body on whichever engine is open. A method that
//! changes anything starts with [`authorize!`], so that a revoked session changes nothing, whatever the bus has heard.
//!
//! Lock order: sessions, devices, keys.

mod accounts;
mod batch;
mod devices;
mod error;
mod prekeys;
mod rows;
mod seed;
mod sql;

use std::{path::Path, str::FromStr, time::Duration};

use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

pub use accounts::{NewChallenge, NewDevice, NewSession, PastChallenge, Presented, Redemption, SignIn};
pub use batch::Batcher;
pub use devices::{Connection, DeviceRecord, NewConnection};
pub use error::StoreError;
pub use prekeys::{ClaimBatch, ClaimRequest, PublishOutcome, PublishReport, ResolvedPublish};
pub use seed::SeedDevice;

/// How long a statement waits for the writer before the client is told `unavailable`.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Rows that a sweep handles in one transaction.
const SWEEP_STEP: i64 = 500;

/// Runs one expression on a connection for reading.
macro_rules! read {
    ($store:expr, |$db:ident| $body:expr) => {
        match $store {
            $crate::store::Store::Sqlite(engine) => {
                let $db = &engine.readers;
                $body
            }
        }
    };
}

/// Runs a block in a write transaction and commits; an error in the block rolls back.
macro_rules! transaction {
    ($store:expr, |$tx:ident| $body:block) => {
        match $store {
            $crate::store::Store::Sqlite(engine) => {
                let mut transaction = engine.writer.begin_with("BEGIN IMMEDIATE").await?;
                let value = {
                    let $tx = &mut *transaction;
                    let run = async { Ok::<_, $crate::store::StoreError>($body) };
                    run.await?
                };
                transaction.commit().await?;
                value
            }
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

use {authorize, read, transaction};

/// The open database. Clones share its connections.
#[derive(Clone, Debug)]
pub enum Store {
    /// One file, for one node.
    Sqlite(Sqlite),
}

/// The embedded engine: write-ahead log, every commit synced, one writer, several readers.
#[derive(Clone, Debug)]
pub struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Store {
    /// Opens the database that the URL names and brings its tables up to date.
    ///
    /// # Errors
    /// Where the file cannot be opened or migrated.
    pub async fn open(url: &str, max_connections: u32) -> Result<Self, StoreError> {
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
        let readers = pool().max_connections(max_connections.max(1)).connect_with(options.read_only(true)).await?;
        Ok(Self::Sqlite(Sqlite { writer, readers }))
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// Where it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        read!(self, |db| sqlx::query("SELECT 1 FROM users LIMIT 1").fetch_optional(db).await)?;
        Ok(())
    }

    /// Closes all connections after the statements in flight.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(engine) => {
                engine.readers.close().await;
                engine.writer.close().await;
            }
        }
    }
}
