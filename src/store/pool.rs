//! Pools of database connections, and the connection that one operation has taken out of a pool.
//!
//! sqlx sets no timeout on its sockets, and a database can fall silent without closing them. So each operation has ten
//! seconds on its connection. A connection to a server whose statement did not end is closed rather than given back: the
//! pool would ask the server whether it is still there, and wait for ever.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use sqlx::{IntoArguments, PgConnection, Pool, Postgres, Sqlite, SqliteConnection, pool::PoolConnection, query::Query};
use tokio::{
    runtime::Handle,
    time::{Instant, error::Elapsed, timeout, timeout_at},
};

use super::{StoreError, health::Health};
use crate::metrics::Metrics;

/// How long an operation may use its connection, from the moment it has it.
const OPERATION_LIMIT: Duration = Duration::from_secs(10);
/// How long a returned connection may take to roll back and to show that it is usable. After that it is closed.
const RETURN_LIMIT: Duration = Duration::from_secs(2);

/// What differs between the databases below the level of SQL.
pub trait Engine: sqlx::Database<Arguments: IntoArguments<Self>> {
    /// Starts a write transaction.
    const BEGIN: &'static str;
    /// Whether connections lead to a server rather than to a file. Any answer of a server proves that it is up. Reading
    /// a file does not prove that it can be written.
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
    // A transaction that begins by reading could not start to write once another has written.
    const BEGIN: &'static str = "BEGIN IMMEDIATE";
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

/// A pool with what is known of its database. Clones share both.
pub struct Connections<DB: Engine> {
    pool: Pool<DB>,
    health: Arc<Health>,
    limit: Option<Duration>,
}

impl<DB: Engine> Clone for Connections<DB> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), health: self.health.clone(), limit: self.limit }
    }
}

impl<DB: Engine> fmt::Debug for Connections<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("pool", &self.pool).field("health", &self.health).finish_non_exhaustive()
    }
}

impl<DB: Engine> Connections<DB> {
    /// `health` is shared by all pools of one database.
    pub fn new(pool: Pool<DB>, health: Arc<Health>) -> Self {
        Self { pool, health, limit: Some(OPERATION_LIMIT) }
    }

    /// The same connections without the time limit on operations.
    pub fn without_limit(self) -> Self {
        Self { limit: None, ..self }
    }

    /// The pool.
    pub fn pool(&self) -> &Pool<DB> {
        &self.pool
    }

    /// What is known of the database.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Takes a connection out of the pool. Transactions on it are counted in `metrics`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if there is none within [`Health::patience`].
    pub async fn acquire<'c>(&'c self, metrics: &'c Metrics) -> Result<Pooled<'c, DB>, StoreError> {
        let began = Instant::now();
        let acquired = timeout(self.health.patience(), self.pool.acquire()).await;
        match acquired.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok(connection) => Ok(Pooled {
                connection: Some(connection),
                source: self,
                metrics,
                began,
                deadline: self.limit.map(|limit| Instant::now() + limit),
                is_busy: false,
                in_transaction: false,
            }),
            Err(error) => {
                // A wrong password or a file that cannot be opened also means that nobody can use the database.
                let error = StoreError::Unavailable(error);
                match &error {
                    StoreError::Unavailable(sqlx::Error::PoolClosed) => {}
                    // A file has one writer, and many may wait for it.
                    StoreError::Unavailable(sqlx::Error::PoolTimedOut) if !DB::IS_SERVER => self.health.report(&error),
                    _ => self.health.lost(&error),
                }
                Err(error)
            }
        }
    }
}

/// A connection that one operation uses. Dropping it rolls an open transaction back and returns the connection to its
/// pool, or closes it if a server has not answered the last statement.
pub struct Pooled<'c, DB: Engine> {
    /// `None` only while it is dropped.
    connection: Option<PoolConnection<DB>>,
    source: &'c Connections<DB>,
    metrics: &'c Metrics,
    began: Instant,
    deadline: Option<Instant>,
    /// A statement was sent and its answer was not read.
    is_busy: bool,
    in_transaction: bool,
}

impl<DB: Engine> Pooled<'_, DB> {
    /// Begins a write transaction.
    pub async fn begin(&mut self) -> Result<(), StoreError> {
        let (deadline, connection) = self.start();
        let begun = within(deadline, DB::command(connection, DB::BEGIN)).await;
        self.finish(begun)?;
        self.in_transaction = true;
        Ok(())
    }

    /// Commits what was begun. After an error nobody knows whether it is committed.
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

    #[expect(clippy::expect_used, reason = "the connection is taken out in `drop` alone")]
    fn start(&mut self) -> (Option<Instant>, &mut DB::Connection) {
        self.is_busy = true;
        (self.deadline, self.connection.as_mut().expect("a connection that is not dropped"))
    }

    /// Reports what a statement has shown of the database.
    fn finish<T>(&mut self, outcome: Result<Result<T, sqlx::Error>, Elapsed>) -> Result<T, StoreError> {
        let health = &self.source.health;
        let Ok(outcome) = outcome else {
            let error = StoreError::silent();
            if DB::IS_SERVER {
                health.lost(&error);
            } else {
                health.report(&error);
            }
            return Err(error);
        };
        self.is_busy = false;
        let outcome = outcome.map_err(StoreError::from);
        match &outcome {
            Err(error @ StoreError::Unavailable(_)) if error.is_out_of_reach() => health.lost(error),
            Err(error @ StoreError::Unavailable(_)) => health.report(error),
            _ if DB::IS_SERVER => health.held(),
            _ => {}
        }
        outcome
    }
}

/// Awaits a statement, no longer than the operation may take.
async fn within<T>(
    deadline: Option<Instant>,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<Result<T, sqlx::Error>, Elapsed> {
    match deadline {
        Some(deadline) => timeout_at(deadline, statement).await,
        None => Ok(statement.await),
    }
}

impl<DB: Engine> Drop for Pooled<'_, DB> {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        if DB::IS_SERVER && self.is_busy {
            connection.close_on_drop();
        } else if (DB::IS_SERVER || self.in_transaction)
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(give_back(connection, self.in_transaction));
        }
    }
}

/// Returns a connection to its pool, or closes it if it cannot be used any more.
async fn give_back<DB: Engine>(mut connection: PoolConnection<DB>, in_transaction: bool) {
    if in_transaction {
        let rolled_back = timeout(RETURN_LIMIT, DB::command(&mut connection, "ROLLBACK")).await;
        // SQLite ends a transaction by itself if the disk is full or fails; there is nothing to roll back then.
        if !matches!(rolled_back, Ok(Ok(()))) {
            connection.close_on_drop();
            return;
        }
    }
    let _ = timeout(RETURN_LIMIT, connection.return_to_pool()).await;
}
