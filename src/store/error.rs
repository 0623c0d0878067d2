//! Errors of store operations.

use sqlx::{error::DatabaseError, migrate::MigrateError, postgres::PgDatabaseError, sqlite::SqliteError};
use thiserror::Error;

use crate::{domain::Refusal, sqlite_file::SqliteUrlError};

/// What to do if a connection goes through a pooler.
pub(super) const POOLER: &str = "if database.url leads to a PgBouncer in transaction mode, set database.pooler = true and \
    database.migrate_url; in session mode, make the settings defaults of the role, see docs/operations.md";

/// Why a store operation failed. It wrote nothing, except that after [`StoreError::Unavailable`] during a commit the
/// transaction may have been committed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The request breaks a rule of the server.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The database cannot be reached, is full or is too busy.
    #[error("database unavailable: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// The work queue is full or its worker has stopped.
    #[error("the store is overloaded or stopped")]
    Overloaded,
    /// A row was locked by another transaction for too long.
    #[error("a row is locked: {0}")]
    Locked(#[source] sqlx::Error),
    /// A serialization failure or deadlock; a retry may succeed.
    #[error("transaction conflict: {0}")]
    Conflict(#[source] sqlx::Error),
    /// The database rejects a value (SQLSTATE classes 22 and 23; SQLite: a constraint): an item of the batch is invalid
    /// or already stored.
    #[error("the database rejected a value: {0}")]
    Data(#[source] sqlx::Error),
    /// The database role does not have a privilege that a migration needs.
    #[error("cannot migrate the database: {0}")]
    Migration(String),
    /// The database cannot be used: its migrations do not match this version, it is not Sealwire's, it is read-only, or
    /// the two URLs of a pooled setup lead to different databases.
    #[error("{0}")]
    Schema(String),
    /// PostgreSQL cannot be reached when the store is opened.
    #[error("cannot connect to PostgreSQL at {place}: {reason}")]
    Connect {
        /// Host and port.
        place: String,
        /// The cause. It contains no password.
        reason: String,
    },
    /// A pooler between the server and PostgreSQL does not keep the settings or sessions that the server needs.
    #[error("the connection to PostgreSQL cannot be used: {0}; {POOLER}")]
    Pooler(String),
    /// The URL is not a PostgreSQL URL.
    #[error(
        "database.url and database.migrate_url take postgres://USER:PASSWORD@HOST:PORT/DATABASE, with a percent-encoded \
         password: {0}"
    )]
    PostgresUrl(String),
    /// Another process has locked the SQLite file.
    #[error(
        "{0} is in use by a running server; only one server can use a SQLite file, and it can be migrated only while none \
         runs"
    )]
    InUse(String),
    /// The URL does not name a SQLite file that the server can use.
    #[error(transparent)]
    Url(#[from] SqliteUrlError),
    /// A defect: a statement or a row is not what the code expects.
    #[error("database error: {0}")]
    Internal(#[source] sqlx::Error),
}

/// SQLite's primary code for a file that is not a database.
const SQLITE_NOTADB: u32 = 26;
/// SQLite's primary code for a violated constraint.
const SQLITE_CONSTRAINT: u32 = 19;
/// SQLite's primary result codes that have a cause outside the statement: BUSY, LOCKED, NOMEM, INTERRUPT,
/// IOERR, FULL, CANTOPEN, PROTOCOL, READONLY.
const SQLITE_UNAVAILABLE: [u32; 9] = [5, 6, 7, 9, 10, 13, 14, 15, 8];

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
    /// Classifies an error by its SQLSTATE (PostgreSQL documentation, appendix A).
    fn from_sqlstate(code: &str, error: sqlx::Error) -> Self {
        match code {
            "40001" | "40P01" => Self::Conflict(error),
            "55P03" => Self::Locked(error),
            // Timeouts of statements and idle transactions; a server that is stopping, starting or read-only.
            "57014" | "25P03" | "57P01" | "57P02" | "57P03" | "25006" => Self::Unavailable(error),
            _ if code.starts_with("08") || code.starts_with("53") || code.starts_with("58") => Self::Unavailable(error),
            _ if code.starts_with("22") || code.starts_with("23") => Self::Data(error),
            _ => Self::Internal(error),
        }
    }

    fn from_sqlite_code(code: u32, error: sqlx::Error) -> Self {
        // Extended codes keep the primary one in their low byte.
        match code & 0xff {
            primary if SQLITE_UNAVAILABLE.contains(&primary) => Self::Unavailable(error),
            SQLITE_CONSTRAINT => Self::Data(error),
            SQLITE_NOTADB => Self::foreign_database(),
            _ => Self::Internal(error),
        }
    }

    /// The role does not have a privilege that a migration needs.
    pub(super) fn missing_privilege() -> Self {
        Self::Migration(
            "the extension uuid-ossp and the tables need the CREATE privilege on the database and its schema; \
             grant it to this role, or have an owner run: CREATE EXTENSION \"uuid-ossp\""
                .to_owned(),
        )
    }

    /// The database has a migration that this version does not know.
    pub(super) fn unknown_migration(migration: i64) -> Self {
        Self::Schema(format!(
            "the database has migration {migration} of a newer version; run that version, or restore a backup from before the \
             upgrade"
        ))
    }

    /// The PostgreSQL server is read-only.
    pub(super) fn only_reads() -> Self {
        Self::Schema("the PostgreSQL server is read-only; set database.url to the primary server".to_owned())
    }

    /// The database is not Sealwire's, or the SQLite file is not a database.
    pub(super) fn foreign_database() -> Self {
        Self::Schema(
            "this is not a Sealwire database; set database.url to a Sealwire database or an empty one".to_owned(),
        )
    }

    /// The checksum of an applied migration differs from this version's.
    pub(super) fn changed_migration(migration: i64) -> Self {
        Self::Schema(format!(
            "migration {migration} of this version differs from the one that was applied to the database; run the version \
             that applied it, or restore a backup"
        ))
    }

    /// A migration was started and did not finish.
    pub(super) fn unfinished_migration(migration: i64) -> Self {
        Self::Schema(format!(
            "migration {migration} of the database did not finish; restore a backup from before the upgrade"
        ))
    }

    /// The database did not answer in time.
    pub(super) fn timed_out() -> Self {
        let timeout = std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer within ten seconds");
        Self::Unavailable(sqlx::Error::Io(timeout))
    }

    /// A write failed less than [`super::WRITE_RECOVERY`] ago.
    pub(super) fn still_failing() -> Self {
        Self::Unavailable(sqlx::Error::Io(std::io::Error::other("a write failed less than five seconds ago")))
    }

    /// Turns an error of sqlx's migrator into one that says what to do.
    pub(super) fn from_migration(error: MigrateError) -> Self {
        let lacks_privilege =
            |error: &sqlx::Error| error.as_database_error().and_then(DatabaseError::code).is_some_and(|c| c == "42501");
        let only_reads = |error: &sqlx::Error| {
            error.as_database_error().and_then(DatabaseError::code).is_some_and(|code| code == "25006")
        };
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) if only_reads(&error) => {
                Self::only_reads()
            }
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) if lacks_privilege(&error) => {
                Self::missing_privilege()
            }
            MigrateError::VersionMissing(version) => Self::unknown_migration(version),
            MigrateError::VersionMismatch(version) => Self::changed_migration(version),
            MigrateError::Dirty(version) => Self::unfinished_migration(version),
            other => sqlx::Error::from(other).into(),
        }
    }

    /// Whether an immediate retry is useless: the pool has no connection, or the database refuses to write. A
    /// broken connection does not count, because another may work.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        use sqlx::Error::{BeginFailed, Database, PoolClosed, PoolTimedOut};
        match self {
            Self::Unavailable(PoolTimedOut | PoolClosed | BeginFailed) => true,
            Self::Unavailable(Database(error)) => {
                error.try_downcast_ref::<SqliteError>().is_some() || self.refuses_writes()
            }
            _ => false,
        }
    }

    /// Whether a PostgreSQL server answered that it is read-only, as after a failover that demoted it.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.sqlstate() == Some("25006")
    }

    /// Whether a PostgreSQL server answered that it is read-only, or that it is starting or stopping (57P03). Its
    /// connections are not used again, because the primary may be another server.
    #[must_use]
    pub fn refuses_writes(&self) -> bool {
        matches!(self.sqlstate(), Some("25006" | "57P03"))
    }

    /// The SQLSTATE with which PostgreSQL temporarily refused a statement.
    fn sqlstate(&self) -> Option<&str> {
        let Self::Unavailable(sqlx::Error::Database(error)) = self else { return None };
        error.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::code)
    }

    /// The refusal that the client gets.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal.clone(),
            Self::Unavailable(_) | Self::Locked(_) | Self::Conflict(_) | Self::Overloaded => Refusal::Unavailable,
            Self::Data(_)
            | Self::Migration(_)
            | Self::Schema(_)
            | Self::InUse(_)
            | Self::Url(_)
            | Self::PostgresUrl(_)
            | Self::Pooler(_)
            | Self::Connect { .. }
            | Self::Internal(_) => Refusal::Internal,
        }
    }
}

/// Logs a failed batch, and returns the same error for every item.
pub(super) fn fail_all<T>(error: &StoreError, items: usize) -> Vec<Result<T, StoreError>> {
    // `DatabaseHealth` logs an unavailable database, at most once a minute.
    if !matches!(error, StoreError::Unavailable(_) | StoreError::Locked(_)) {
        tracing::error!(%error, items, "a batch failed");
    }
    std::iter::repeat_with(|| Err(StoreError::Refused(error.refusal()))).take(items).collect()
}
