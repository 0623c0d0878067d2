//! What can go wrong in the store.

use thiserror::Error;

use crate::domain::Refusal;

/// A store operation that did not happen: its transaction was rolled back.
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
    /// A defect: a statement or a row is not what the code takes it to be.
    #[error("database error: {0}")]
    Internal(#[source] sqlx::Error),
}

/// `SQLite` primary result codes that are about the machine, not about the statement: BUSY, LOCKED, NOMEM, INTERRUPT,
/// IOERR, FULL, CANTOPEN, PROTOCOL, READONLY.
const SQLITE_OUT_OF_REACH: [u32; 9] = [5, 6, 7, 9, 10, 13, 14, 15, 8];

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let unavailable = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed => true,
            sqlx::Error::Database(database) => {
                let code = database.code().and_then(|code| code.parse::<u32>().ok());
                // Extended codes keep the primary one in their low byte.
                code.is_some_and(|code| SQLITE_OUT_OF_REACH.contains(&(code & 0xff)))
            }
            _ => false,
        };
        if unavailable { Self::Unavailable(error) } else { Self::Internal(error) }
    }
}

impl StoreError {
    /// What the client is told.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal.clone(),
            Self::Unavailable(_) | Self::Overloaded => Refusal::Unavailable,
            Self::Internal(_) => Refusal::Internal,
        }
    }
}
