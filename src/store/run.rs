//! Runs: what is done over one connection, a read or a transaction. Each has a time limit, since a database may fall
//! silent without a word, and each tells what it learned of the database's reach.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use sqlx::{Database, Pool, pool::PoolConnection};
use tokio::{
    runtime::Handle,
    time::{error::Elapsed, timeout},
};

use super::{StoreError, reach::Reach};

/// How long a run may take once it has its connection.
pub const RUN_LIMIT: Duration = Duration::from_secs(10);

/// How long a server may take to show that a connection which comes back is still one. Beyond it the connection is closed.
const RETURN_LIMIT: Duration = Duration::from_secs(2);

/// Connections of one kind.
pub struct Connections<DB: Database> {
    pool: Pool<DB>,
    reach: Arc<Reach>,
    /// Whether they lead to a server. Then any answer shows that it is there, and a connection that was left in the
    /// middle is closed: the server may never answer. A file's connections finish by themselves, and that one can
    /// read it, or write nothing into it, does not show that it can be written.
    to_server: bool,
    limit: Duration,
}

impl<DB: Database> Clone for Connections<DB> {
    fn clone(&self) -> Self {
        let Self { pool, reach, to_server, limit } = self;
        Self { pool: pool.clone(), reach: reach.clone(), to_server: *to_server, limit: *limit }
    }
}

impl<DB: Database> fmt::Debug for Connections<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("pool", &self.pool).field("reach", &self.reach).finish_non_exhaustive()
    }
}

impl<DB: Database> Connections<DB> {
    /// To a file.
    pub fn to_file(pool: Pool<DB>) -> Self {
        Self { pool, reach: Arc::default(), to_server: false, limit: RUN_LIMIT }
    }

    /// To a server, whose pool knows its reach too.
    pub fn to_server(pool: Pool<DB>, reach: Arc<Reach>) -> Self {
        Self { pool, reach, to_server: true, limit: RUN_LIMIT }
    }

    /// Lets runs take as long as they do.
    pub fn unhurried(self) -> Self {
        Self { limit: Duration::MAX, ..self }
    }

    /// The pool that they come from.
    pub fn pool(&self) -> &Pool<DB> {
        &self.pool
    }

    /// What is known of the database's reach.
    pub fn reach(&self) -> &Arc<Reach> {
        &self.reach
    }

    /// How long a run may take.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Takes a connection for one run.
    pub async fn lease(&self) -> Result<Lease<'_, DB>, StoreError> {
        let acquired = timeout(self.reach.patience(), self.pool.acquire()).await;
        match acquired.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok(connection) => Ok(Lease { connection, of: self, ended: false }),
            Err(error) => {
                // Whatever it is, a wrong password or a file that cannot be opened: the database is out of reach.
                let error = StoreError::Unavailable(error);
                match &error {
                    StoreError::Unavailable(sqlx::Error::PoolClosed) => {}
                    // There is one writer, and many may wait for it.
                    StoreError::Unavailable(sqlx::Error::PoolTimedOut) if !self.to_server => {
                        self.reach.complain(&error);
                    }
                    _ => self.reach.lost(&error),
                }
                Err(error)
            }
        }
    }
}

/// A connection for one run.
pub struct Lease<'c, DB: Database> {
    connection: PoolConnection<DB>,
    of: &'c Connections<DB>,
    ended: bool,
}

impl<DB: Database> Lease<'_, DB> {
    /// Gives the connection back with the outcome of the run, or closes it where the time was up.
    pub fn end<T>(mut self, outcome: Result<Result<T, StoreError>, Elapsed>) -> Result<T, StoreError> {
        let reach = &self.of.reach;
        let Ok(outcome) = outcome else {
            let error = StoreError::silent();
            if self.of.to_server {
                reach.lost(&error);
            } else {
                reach.complain(&error);
            }
            return Err(error);
        };
        self.ended = true;
        match &outcome {
            Err(error @ StoreError::Unavailable(_)) if error.is_out_of_reach() => reach.lost(error),
            Err(error @ StoreError::Unavailable(_)) => reach.complain(error),
            _ if self.of.to_server => reach.held(),
            _ => {}
        }
        outcome
    }
}

impl<DB: Database> Deref for Lease<'_, DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &Self::Target {
        &self.connection
    }
}

impl<DB: Database> DerefMut for Lease<'_, DB> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.connection
    }
}

impl<DB: Database> Drop for Lease<'_, DB> {
    fn drop(&mut self) {
        if !self.of.to_server {
            return;
        }
        // The pool asks the server whether it is still there, and would wait for ever.
        if !self.ended {
            // The run was given up in the middle.
            self.connection.close_on_drop();
        } else if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(timeout(RETURN_LIMIT, self.connection.return_to_pool()));
        }
    }
}

/// Runs a block on one of these connections and gives its result.
macro_rules! run {
    ($connections:expr, |$connection:ident| $body:expr) => {
        async {
            let connections = &$connections;
            let mut lease = connections.lease().await?;
            let outcome = {
                let $connection = &mut *lease;
                let run = async { Ok::<_, $crate::store::StoreError>($body) };
                tokio::time::timeout(connections.limit(), run).await
            };
            lease.end(outcome)
        }
        .await
    };
}

/// Runs a block in a transaction on one of these connections, commits, and gives its result. An error in the block rolls
/// back.
macro_rules! commit {
    ($engine:expr, $connections:expr, $begin:literal, |$tx:ident| $body:expr) => {{
        let began = tokio::time::Instant::now();
        let outcome = $crate::store::run::run!($connections, |connection| {
            let mut transaction = sqlx::Connection::begin_with(connection, $begin).await?;
            let value = {
                let $tx = &mut *transaction;
                let run = async { Ok::<_, $crate::store::StoreError>($body) };
                run.await?
            };
            transaction.commit().await?;
            value
        });
        if outcome.is_ok() {
            $engine.metrics.transaction_seconds.observe(began.elapsed().as_secs_f64());
        }
        outcome
    }};
}

/// Evaluates a block on a connection for reading; an error in it is the caller's.
macro_rules! read {
    ($store:expr, |$db:ident| $body:expr) => {
        match $store {
            $crate::store::Store::Sqlite(engine) => $crate::store::run::run!(engine.readers, |$db| $body)?,
            $crate::store::Store::Postgres(engine) => $crate::store::run::run!(engine.connections, |$db| $body)?,
        }
    };
}

/// Evaluates a block in a write transaction, which is committed; an error in it rolls back and is the caller's. On
/// PostgreSQL the block runs again where it lost to another transaction (serialization failure, deadlock), so it must not
/// consume what it captures.
macro_rules! transaction {
    ($store:expr, |$tx:ident| $body:block) => {
        match $store {
            $crate::store::Store::Sqlite(engine) => {
                $crate::store::run::commit!(engine, engine.writer, "BEGIN IMMEDIATE", |$tx| $body)?
            }
            $crate::store::Store::Postgres(engine) => $crate::store::run::attempt!(engine, |$tx| $body),
        }
    };
}

/// The PostgreSQL half of [`transaction`].
macro_rules! attempt {
    ($engine:expr, |$tx:ident| $body:block) => {{
        let mut tries = 1;
        loop {
            match $crate::store::run::commit!($engine, $engine.connections, "BEGIN", |$tx| $body) {
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

pub(super) use {attempt, commit, read, run, transaction};
