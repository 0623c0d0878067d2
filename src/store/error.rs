//! What can go wrong in the store.

use sqlx::{error::DatabaseError, migrate::MigrateError, postgres::PgDatabaseError, sqlite::SqliteError};
use thiserror::Error;

use crate::{domain::Refusal, sqlite_file::SqliteUrlError};

/// A store operation that failed. Nothing of it was written, unless it is [`StoreError::Unavailable`] and the connection was
/// lost in the moment of the commit.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The rules say no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The database cannot be reached, is full or is too busy.
    #[error("database unavailable: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// The work queue is full or its worker has stopped.
    #[error("the store is overloaded or stopped")]
    Overloaded,
    /// Another transaction won; running this one again may succeed.
    #[error("the transaction lost to another: {0}")]
    Conflict(#[source] sqlx::Error),
    /// A value that the database does not take (classes 22 and 23): one item of a batch is poisoned.
    #[error("the database does not take a value: {0}")]
    Data(#[source] sqlx::Error),
    /// The database refuses what a migration needs.
    #[error("the database refuses the migration: {0}")]
    Migration(String),
    /// The tables are not such as this version makes them.
    #[error("the database does not fit this version of sealwire: {0}")]
    Schema(String),
    /// Another process serves the file.
    #[error("{0} is in use by a running server; a SQLite file is for one, and its tables change while none runs")]
    InUse(String),
    /// The URL names no SQLite file that a server can be run on.
    #[error(transparent)]
    Url(#[from] SqliteUrlError),
    /// A defect: a statement or a row is not what the code takes it to be.
    #[error("database error: {0}")]
    Internal(#[source] sqlx::Error),
}

/// SQLite's primary code for a violated constraint.
const SQLITE_CONSTRAINT: u32 = 19;
/// SQLite's primary result codes that are about the machine, not about the statement: BUSY, LOCKED, NOMEM, INTERRUPT,
/// IOERR, FULL, CANTOPEN, PROTOCOL, READONLY.
const SQLITE_OUT_OF_REACH: [u32; 9] = [5, 6, 7, 9, 10, 13, 14, 15, 8];

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed => Self::Unavailable(error),
            sqlx::Error::Database(database) => {
                let code = database.code().unwrap_or_default().into_owned();
                if database.try_downcast_ref::<PgDatabaseError>().is_some() {
                    Self::from_sqlstate(&code, error)
                } else {
                    Self::from_sqlite_code(code.parse().unwrap_or_default(), error)
                }
            }
            _ => Self::Internal(error),
        }
    }
}

impl StoreError {
    /// Sorts by SQLSTATE (PostgreSQL documentation, appendix A).
    fn from_sqlstate(code: &str, error: sqlx::Error) -> Self {
        match code {
            "40001" | "40P01" => Self::Conflict(error),
            // Timeouts of locks, statements and idle transactions, and a server that is stopping, starting, full or
            // read-only.
            "55P03" | "57014" | "25P03" | "57P01" | "57P02" | "57P03" | "25006" => Self::Unavailable(error),
            _ if code.starts_with("08") || code.starts_with("53") || code.starts_with("58") => Self::Unavailable(error),
            _ if code.starts_with("22") || code.starts_with("23") => Self::Data(error),
            _ => Self::Internal(error),
        }
    }

    fn from_sqlite_code(code: u32, error: sqlx::Error) -> Self {
        // Extended codes keep the primary one in their low byte.
        match code & 0xff {
            primary if SQLITE_OUT_OF_REACH.contains(&primary) => Self::Unavailable(error),
            SQLITE_CONSTRAINT => Self::Data(error),
            _ => Self::Internal(error),
        }
    }

    /// Says plainly what the role lacks.
    pub(super) fn may_not_migrate() -> Self {
        Self::Migration(
            "the extension uuid-ossp and the tables need the CREATE privilege on the database and its schema; \
             grant it to this role, or have an owner run: CREATE EXTENSION \"uuid-ossp\""
                .to_owned(),
        )
    }

    /// A migration was applied that this version does not know.
    pub(super) fn newer(migration: i64) -> Self {
        Self::Schema(format!(
            "migration {migration} is of a newer one; run that, or restore the backup from before the upgrade"
        ))
    }

    /// A migration was applied in another form.
    pub(super) fn other(migration: i64) -> Self {
        Self::Schema(format!("migration {migration} was applied in another form"))
    }

    /// A migration was begun and did not end.
    pub(super) fn unfinished(migration: i64) -> Self {
        Self::Schema(format!("migration {migration} was begun and did not end well; restore the backup from before"))
    }

    /// The database did not answer in time.
    pub(super) fn silent() -> Self {
        let silence = std::io::Error::new(std::io::ErrorKind::TimedOut, "it did not answer for ten seconds");
        Self::Unavailable(sqlx::Error::Io(silence))
    }

    /// The database failed a moment ago.
    pub(super) fn unsettled() -> Self {
        Self::Unavailable(sqlx::Error::Io(std::io::Error::other("a write failed a moment ago")))
    }

    /// Says plainly what a migration lacks.
    pub(super) fn from_migration(error: MigrateError) -> Self {
        let refused =
            |error: &sqlx::Error| error.as_database_error().and_then(DatabaseError::code).is_some_and(|c| c == "42501");
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) if refused(&error) => {
                Self::may_not_migrate()
            }
            MigrateError::VersionMissing(version) => Self::newer(version),
            MigrateError::VersionMismatch(version) => Self::other(version),
            MigrateError::Dirty(version) => Self::unfinished(version),
            other => sqlx::Error::from(other).into(),
        }
    }

    /// Whether the database was not even reached, or its file cannot be written, so that trying again at once is of no use.
    #[must_use]
    pub fn is_out_of_reach(&self) -> bool {
        use sqlx::Error::{BeginFailed, Database, PoolClosed, PoolTimedOut};
        match self {
            Self::Unavailable(PoolTimedOut | PoolClosed | BeginFailed) => true,
            Self::Unavailable(Database(error)) => error.try_downcast_ref::<SqliteError>().is_some(),
            _ => false,
        }
    }

    /// What the client is told.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal.clone(),
            Self::Unavailable(_) | Self::Conflict(_) | Self::Overloaded => Refusal::Unavailable,
            Self::Data(_)
            | Self::Migration(_)
            | Self::Schema(_)
            | Self::InUse(_)
            | Self::Url(_)
            | Self::Internal(_) => Refusal::Internal,
        }
    }
}

/// The same failure for every item of a batch.
pub(super) fn fail_all<T>(error: &StoreError, items: usize) -> Vec<Result<T, StoreError>> {
    // `Health` logs an unavailable database, once a minute.
    if !matches!(error, StoreError::Unavailable(_)) {
        tracing::error!(%error, items, "a batch failed");
    }
    std::iter::repeat_with(|| Err(StoreError::Refused(error.refusal()))).take(items).collect()
}
