//! Pools of database connections, and the connection that an operation takes from a pool.
//!
//! sqlx sets no timeout on its sockets, and a database server can stop answering without closing them. So each
//! operation has ten seconds. A server connection whose statement did not finish is closed rather than returned: the
//! pool would ping the server and might wait forever.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use sqlx::{IntoArguments, PgConnection, Pool, Postgres, Sqlite, SqliteConnection, pool::PoolConnection, query::Query};
use tokio::{
    runtime::Handle,
    time::{Instant, error::Elapsed, timeout, timeout_at},
};

use super::{
    StoreError,
    health::DatabaseHealth,
    session_settings::{BEGIN_WITH_BRIEF_LOCK_WAIT, BEGIN_WITH_SETTINGS, BEGIN_WITH_SETTINGS_AND_BRIEF_LOCK_WAIT},
};
use crate::metrics::Metrics;

/// How long an operation may use a connection, counted from when it gets it.
const OPERATION_LIMIT: Duration = Duration::from_secs(10);
/// How long a returned connection may take for the rollback, and again for the pool's check. After that it is closed.
const RETURN_LIMIT: Duration = Duration::from_secs(2);

/// Differences between the databases other than their SQL.
pub trait Engine: sqlx::Database<Arguments: IntoArguments<Self>> {
    /// Starts a write transaction.
    const BEGIN: &'static str;
    /// Starts a transaction behind a pooler, with the session settings, which a pooler does not keep.
    const BEGIN_POOLED: &'static str;
    /// Whether this is a server rather than a file. Any answer from a server proves that it is available; reading a
    /// file does not prove that it can be written.
    const IS_SERVER: bool;

    /// Runs a command without parameters or rows.
    fn command(
        connection: &mut Self::Connection,
        text: &'static str,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Runs a statement and returns the number of rows that it wrote.
    fn execute(
        connection: &mut Self::Connection,
        query: Query<'static, Self, Self::Arguments>,
    ) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    /// Runs a statement and returns its rows.
    fn fetch_all(
        connection: &mut Self::Connection,
        query: Query<'static, Self, Self::Arguments>,
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;
}

impl Engine for Sqlite {
    // A plain BEGIN takes the write lock only at the first write, which fails if another connection has written since.
    const BEGIN: &'static str = "BEGIN IMMEDIATE";
    const BEGIN_POOLED: &'static str = Self::BEGIN;
    const IS_SERVER: bool = false;

    async fn command(connection: &mut SqliteConnection, text: &'static str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(text).execute(connection).await.map(drop)
    }

    async fn execute(
        connection: &mut SqliteConnection,
        query: Query<'static, Self, Self::Arguments>,
    ) -> Result<u64, sqlx::Error> {
        Ok(query.execute(connection).await?.rows_affected())
    }

    async fn fetch_all(
        connection: &mut SqliteConnection,
        query: Query<'static, Self, Self::Arguments>,
    ) -> Result<Vec<Self::Row>, sqlx::Error> {
        query.fetch_all(connection).await
    }
}

impl Engine for Postgres {
    const BEGIN: &'static str = "BEGIN";
    const BEGIN_POOLED: &'static str = BEGIN_WITH_SETTINGS;
    const IS_SERVER: bool = true;

    async fn command(connection: &mut PgConnection, text: &'static str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(text).execute(connection).await.map(drop)
    }

    async fn execute(
        connection: &mut PgConnection,
        query: Query<'static, Self, Self::Arguments>,
    ) -> Result<u64, sqlx::Error> {
        Ok(query.execute(connection).await?.rows_affected())
    }

    async fn fetch_all(
        connection: &mut PgConnection,
        query: Query<'static, Self, Self::Arguments>,
    ) -> Result<Vec<Self::Row>, sqlx::Error> {
        query.fetch_all(connection).await
    }
}

/// A connection pool with the health of its database. Clones share both.
pub struct DatabasePool<DB: Engine> {
    pool: Pool<DB>,
    health: Arc<DatabaseHealth>,
    limit: Option<Duration>,
    /// Whether a pooler may run each transaction on another server connection.
    is_pooled: bool,
}

impl<DB: Engine> Clone for DatabasePool<DB> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), health: self.health.clone(), limit: self.limit, is_pooled: self.is_pooled }
    }
}

impl<DB: Engine> fmt::Debug for DatabasePool<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabasePool").field("pool", &self.pool).field("health", &self.health).finish_non_exhaustive()
    }
}

impl<DB: Engine> DatabasePool<DB> {
    /// `health` is shared by all pools of one database.
    pub fn new(pool: Pool<DB>, health: Arc<DatabaseHealth>) -> Self {
        Self { pool, health, limit: Some(OPERATION_LIMIT), is_pooled: false }
    }

    /// The same pool. `is_pooled` is whether a pooler may run each transaction on another server connection.
    pub fn behind_pooler(self, is_pooled: bool) -> Self {
        Self { is_pooled, ..self }
    }

    /// The same pool without the time limit on operations.
    pub fn without_limit(self) -> Self {
        Self { limit: None, ..self }
    }

    /// The sqlx pool.
    pub fn pool(&self) -> &Pool<DB> {
        &self.pool
    }

    /// The health of the database.
    pub fn health(&self) -> &Arc<DatabaseHealth> {
        &self.health
    }

    /// Takes a connection from the pool. The duration of its transactions is recorded in `metrics`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if there is none within [`DatabaseHealth::acquire_timeout`].
    pub async fn acquire<'c>(&'c self, metrics: &'c Metrics) -> Result<PooledConnection<'c, DB>, StoreError> {
        let began = Instant::now();
        let acquired = timeout(self.health.acquire_timeout(), self.pool.acquire()).await;
        match acquired.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok(connection) => Ok(PooledConnection {
                connection: Some(connection),
                source: self,
                metrics,
                began,
                deadline: self.limit.map(|limit| Instant::now() + limit),
                is_busy: false,
                refuses_writes: false,
                in_transaction: false,
            }),
            Err(error) => {
                // Whatever the cause (a wrong password, a file that cannot be opened), no operation can use the
                // database.
                let error = StoreError::Unavailable(error);
                match &error {
                    StoreError::Unavailable(sqlx::Error::PoolClosed) => {}
                    // SQLite has one writer. A long queue for it is not an outage.
                    StoreError::Unavailable(sqlx::Error::PoolTimedOut) if !DB::IS_SERVER => {
                        self.health.log_failure(&error);
                    }
                    _ => self.health.record_outage(&error),
                }
                Err(error)
            }
        }
    }
}

/// A connection in use by one operation. Dropping it rolls back an open transaction and returns the connection to its
/// pool. A server connection with an unfinished statement, or to a server that refuses to write, is closed instead.
pub struct PooledConnection<'c, DB: Engine> {
    /// `None` only during `drop`.
    connection: Option<PoolConnection<DB>>,
    source: &'c DatabasePool<DB>,
    metrics: &'c Metrics,
    began: Instant,
    deadline: Option<Instant>,
    /// Whether a statement was sent whose answer was not read.
    is_busy: bool,
    /// Whether its server refused to write, so that the connection is closed rather than returned.
    refuses_writes: bool,
    in_transaction: bool,
}

impl<DB: Engine> PooledConnection<'_, DB> {
    /// Whether a pooler may run each transaction on another server connection.
    pub fn is_pooled(&self) -> bool {
        self.source.is_pooled
    }

    /// Begins a write transaction.
    pub async fn begin(&mut self) -> Result<(), StoreError> {
        self.begin_as(if self.is_pooled() { DB::BEGIN_POOLED } else { DB::BEGIN }).await
    }

    /// Begins a transaction with one of these commands.
    async fn begin_as(&mut self, text: &'static str) -> Result<(), StoreError> {
        // If one of several commands fails, the transaction has begun and must be ended.
        self.in_transaction = text != DB::BEGIN;
        let (deadline, connection) = self.start();
        let begun = within(deadline, DB::command(connection, text)).await;
        self.finish(begun)?;
        self.in_transaction = true;
        Ok(())
    }

    /// Commits the transaction. After [`StoreError::Unavailable`] it is unknown whether it was committed.
    pub async fn commit(&mut self) -> Result<(), StoreError> {
        let (deadline, connection) = self.start();
        let committed = within(deadline, DB::command(connection, "COMMIT")).await;
        self.finish(committed)?;
        self.in_transaction = false;
        self.metrics.transaction_seconds.observe(self.began.elapsed().as_secs_f64());
        Ok(())
    }

    /// See [`Engine::execute`].
    pub async fn execute(&mut self, query: Query<'static, DB, DB::Arguments>) -> Result<u64, StoreError> {
        let (deadline, connection) = self.start();
        let executed = within(deadline, DB::execute(connection, query)).await;
        self.finish(executed)
    }

    /// See [`Engine::fetch_all`].
    pub async fn fetch_all(&mut self, query: Query<'static, DB, DB::Arguments>) -> Result<Vec<DB::Row>, StoreError> {
        let (deadline, connection) = self.start();
        let fetched = within(deadline, DB::fetch_all(connection, query)).await;
        self.finish(fetched)
    }

    /// Marks the connection as busy, and returns it with the deadline of the operation.
    #[expect(clippy::expect_used, reason = "only `drop` takes the connection out")]
    fn start(&mut self) -> (Option<Instant>, &mut DB::Connection) {
        self.is_busy = true;
        (self.deadline, self.connection.as_mut().expect("the connection, until `drop`"))
    }

    /// Records what the outcome of a statement says about the health of the database.
    fn finish<T>(&mut self, outcome: Result<Result<T, sqlx::Error>, Elapsed>) -> Result<T, StoreError> {
        let health = &self.source.health;
        let Ok(outcome) = outcome else {
            let error = StoreError::timed_out();
            if DB::IS_SERVER {
                health.record_outage(&error);
            } else {
                health.log_failure(&error);
            }
            return Err(error);
        };
        self.is_busy = false;
        let outcome = outcome.map_err(StoreError::from);
        self.refuses_writes |= outcome.as_ref().is_err_and(StoreError::refuses_writes);
        if matches!(outcome, Err(StoreError::Locked(_))) {
            self.metrics.lock_timeouts.inc();
        }
        match &outcome {
            Err(error @ StoreError::Unavailable(_)) if error.is_outage() => health.record_outage(error),
            Err(error @ StoreError::Unavailable(_)) => health.log_failure(error),
            _ if DB::IS_SERVER => health.record_answer(),
            _ => {}
        }
        outcome
    }
}

/// Awaits a statement, at most until the deadline of its operation.
async fn within<T>(
    deadline: Option<Instant>,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<Result<T, sqlx::Error>, Elapsed> {
    match deadline {
        Some(deadline) => timeout_at(deadline, statement).await,
        None => Ok(statement.await),
    }
}

impl PooledConnection<'_, Postgres> {
    /// Begins a write transaction whose statements hardly wait for locked rows.
    pub async fn begin_with_brief_lock_wait(&mut self) -> Result<(), StoreError> {
        self.begin_as(if self.is_pooled() {
            BEGIN_WITH_SETTINGS_AND_BRIEF_LOCK_WAIT
        } else {
            BEGIN_WITH_BRIEF_LOCK_WAIT
        })
        .await
    }
}

impl<DB: Engine> Drop for PooledConnection<'_, DB> {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        if DB::IS_SERVER && (self.is_busy || self.refuses_writes) {
            connection.close_on_drop();
        } else if (DB::IS_SERVER || self.in_transaction)
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(return_to_pool(connection, self.in_transaction));
        }
    }
}

/// Returns a connection to its pool, or closes it if it is no longer usable.
async fn return_to_pool<DB: Engine>(mut connection: PoolConnection<DB>, in_transaction: bool) {
    if in_transaction {
        let rolled_back = timeout(RETURN_LIMIT, DB::command(&mut connection, "ROLLBACK")).await;
        // SQLite itself rolls back if the disk is full or fails. The ROLLBACK then fails, and a new connection is
        // opened later.
        if !matches!(rolled_back, Ok(Ok(()))) {
            connection.close_on_drop();
            return;
        }
    }
    let _ = timeout(RETURN_LIMIT, connection.return_to_pool()).await;
}
