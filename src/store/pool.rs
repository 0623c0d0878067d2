//! Pools of database connections, and the connection that an operation takes from a pool.
//!
//! sqlx sets no timeout on its sockets, and a database server can stop answering without closing them. So each
//! operation has ten seconds. A server connection whose statement did not finish is closed rather than returned: the
//! pool would ping the server and might wait forever.
//!
//! sqlx pings a connection each time it is returned to its pool: a round trip to the server, or two thread switches on
//! SQLite. So a connection whose statements have all succeeded is kept here for a second, to be used again without a
//! ping, and is only then returned to sqlx.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{
    IntoArguments, PgConnection, Pool, Postgres, Sqlite, SqliteConnection,
    pool::PoolConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{Instant, error::Elapsed, sleep, timeout, timeout_at},
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
/// A connection that has been idle for longer is pinged before it is used, because the server may have closed it.
pub const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// How long a connection may be used again and again before it is returned to sqlx, which closes old ones.
const LONGEST_USE: Duration = Duration::from_mins(1);

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
    /// One for each connection of the pool. Held while a connection is in use, but not while it is kept.
    permits: Arc<Semaphore>,
    kept: Arc<Mutex<KeptConnections<DB>>>,
    health: Arc<DatabaseHealth>,
    limit: Option<Duration>,
    /// Whether a pooler may run each transaction on another server connection.
    is_pooled: bool,
}

impl<DB: Engine> Clone for DatabasePool<DB> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            permits: self.permits.clone(),
            kept: self.kept.clone(),
            health: self.health.clone(),
            limit: self.limit,
            is_pooled: self.is_pooled,
        }
    }
}

/// Connections that were in use less than [`TRUSTED_IDLE`] ago.
struct KeptConnections<DB: Engine> {
    /// The one that was in use last is the last.
    connections: Vec<KeptConnection<DB>>,
    /// Returns connections to sqlx that have been idle for longer.
    returning: Option<JoinHandle<()>>,
}

struct KeptConnection<DB: Engine> {
    connection: PoolConnection<DB>,
    /// When sqlx handed it out.
    taken_at: Instant,
    idle_since: Instant,
}

impl<DB: Engine> fmt::Debug for DatabasePool<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabasePool").field("pool", &self.pool).field("health", &self.health).finish_non_exhaustive()
    }
}

impl<DB: Engine> DatabasePool<DB> {
    /// `health` is shared by all pools of one database.
    pub fn new(pool: Pool<DB>, health: Arc<DatabaseHealth>) -> Self {
        let permits = Arc::new(Semaphore::new(pool.options().get_max_connections() as usize));
        let kept = Arc::new(Mutex::new(KeptConnections { connections: Vec::new(), returning: None }));
        Self { pool, permits, kept, health, limit: Some(OPERATION_LIMIT), is_pooled: false }
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
        let acquired = timeout(self.health.acquire_timeout(), self.take()).await;
        match acquired.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok((connection, taken_at, permit)) => Ok(PooledConnection {
                connection: Some(connection),
                taken_at,
                permit: Some(permit),
                source: self,
                metrics,
                began,
                deadline: self.limit.map(|limit| Instant::now() + limit),
                is_busy: false,
                fitness: Fitness::Sound,
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

impl<DB: Engine> DatabasePool<DB> {
    /// Takes a connection, and tells when sqlx handed it out.
    async fn take(&self) -> Result<(PoolConnection<DB>, Instant, OwnedSemaphorePermit), sqlx::Error> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
        if let Some(kept) = self.take_kept() {
            return Ok((kept.connection, kept.taken_at, permit));
        }
        let connection = self.pool.acquire().await?;
        Ok((connection, Instant::now(), permit))
    }

    /// Takes a kept connection that can be used without a ping.
    fn take_kept(&self) -> Option<KeptConnection<DB>> {
        let mut kept = self.kept().connections.pop()?;
        let found_dead = self.health.last_outage_at().is_some_and(|at| at > kept.idle_since);
        if self.pool.is_closed() || kept.idle_since.elapsed() >= TRUSTED_IDLE {
            return None;
        }
        if DB::IS_SERVER && (found_dead || self.health.may_refuse_writes(kept.taken_at.elapsed())) {
            kept.connection.close_on_drop();
            return None;
        }
        Some(kept)
    }

    /// Keeps a connection for the next operation. Gives it back if it has to be returned to sqlx instead.
    fn keep(&self, connection: PoolConnection<DB>, taken_at: Instant) -> Option<PoolConnection<DB>> {
        let mut kept = self.kept();
        if self.pool.is_closed() || taken_at.elapsed() >= LONGEST_USE {
            return Some(connection);
        }
        if kept.returning.as_ref().is_none_or(JoinHandle::is_finished) {
            let Ok(runtime) = Handle::try_current() else { return Some(connection) };
            kept.returning = Some(runtime.spawn(return_idle(self.kept.clone())));
        }
        kept.connections.push(KeptConnection { connection, taken_at, idle_since: Instant::now() });
        None
    }

    fn kept(&self) -> MutexGuard<'_, KeptConnections<DB>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of open connections that are not in use.
    pub fn idle(&self) -> usize {
        self.pool.num_idle() + self.kept().connections.len()
    }

    /// Waits for the operations in progress, then closes all connections.
    pub async fn close(&self) {
        // From this call on, none is kept.
        let closed = self.pool.close();
        let kept = std::mem::take(&mut self.kept().connections);
        drop(kept);
        closed.await;
    }
}

/// Returns kept connections to sqlx once they have been idle for [`TRUSTED_IDLE`], until none is kept.
async fn return_idle<DB: Engine>(kept: Arc<Mutex<KeptConnections<DB>>>) {
    loop {
        sleep(TRUSTED_IDLE).await;
        let idle: Vec<PoolConnection<DB>> = {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.connections.is_empty() {
                kept.returning = None;
                return;
            }
            let is_idle = |kept: &mut KeptConnection<DB>| kept.idle_since.elapsed() >= TRUSTED_IDLE;
            kept.connections.extract_if(.., is_idle).map(|kept| kept.connection).collect()
        };
        for connection in idle {
            return_to_pool(connection, false).await;
        }
    }
}

/// A connection in use by one operation. Dropping it rolls back an open transaction and returns the connection to its
/// pool. A server connection with an unfinished statement, or to a server that refuses to write, is closed instead.
pub struct PooledConnection<'c, DB: Engine> {
    /// `None` only during `drop`.
    connection: Option<PoolConnection<DB>>,
    /// When sqlx handed it out.
    taken_at: Instant,
    /// `None` only during `drop`.
    permit: Option<OwnedSemaphorePermit>,
    source: &'c DatabasePool<DB>,
    metrics: &'c Metrics,
    began: Instant,
    deadline: Option<Instant>,
    /// Whether a statement was sent whose answer was not read.
    is_busy: bool,
    fitness: Fitness,
    in_transaction: bool,
}

/// What the statements on a connection have shown of it, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fitness {
    /// All have succeeded.
    Sound,
    /// One failed. The connection may be broken, and sqlx pings it before it is used again.
    Suspect,
    /// Its server refused to write, so that the connection is closed rather than returned.
    RefusesWrites,
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

    /// Commits the transaction if there is one. Otherwise each statement has been committed already.
    pub async fn end_statements(&mut self) -> Result<(), StoreError> {
        if self.in_transaction {
            return self.commit().await;
        }
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
        let fitness = match &outcome {
            Ok(_) => Fitness::Sound,
            Err(error) if error.refuses_writes() => Fitness::RefusesWrites,
            Err(_) => Fitness::Suspect,
        };
        self.fitness = self.fitness.max(fitness);
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

impl PooledConnection<'_, Sqlite> {
    /// Runs a statement that returns a single row.
    pub async fn fetch_one(&mut self, query: Query<'static, Sqlite, SqliteArguments>) -> Result<SqliteRow, StoreError> {
        let (deadline, connection) = self.start();
        let fetched = within(deadline, query.fetch_one(connection)).await;
        self.finish(fetched)
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
        let permit = self.permit.take();
        if DB::IS_SERVER && (self.is_busy || self.fitness == Fitness::RefusesWrites) {
            connection.close_on_drop();
            return;
        }
        let is_clean = !self.is_busy && self.fitness == Fitness::Sound && !self.in_transaction;
        let connection = if is_clean { self.source.keep(connection, self.taken_at) } else { Some(connection) };
        if let Some(connection) = connection
            && (DB::IS_SERVER || self.in_transaction)
            && let Ok(runtime) = Handle::try_current()
        {
            let in_transaction = self.in_transaction;
            runtime.spawn(async move {
                return_to_pool(connection, in_transaction).await;
                drop(permit);
            });
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

#[cfg(test)]
mod tests {
    use sqlx::sqlite::SqlitePoolOptions;

    use super::*;

    async fn pool(folder: &tempfile::TempDir, connections: u32) -> DatabasePool<Sqlite> {
        let url = format!("sqlite://{}?mode=rwc", folder.path().join("x.db").display());
        let pool = SqlitePoolOptions::new().max_connections(connections).connect(&url).await.unwrap();
        DatabasePool::new(pool, Arc::default())
    }

    async fn run(connection: &mut PooledConnection<'_, Sqlite>, text: &'static str) {
        connection.execute(sqlx::query(text)).await.unwrap();
    }

    #[tokio::test]
    async fn the_connection_that_was_used_last_is_used_again() {
        let (folder, metrics) = (tempfile::tempdir().unwrap(), Metrics::new());
        let pool = pool(&folder, 2).await;
        run(&mut pool.acquire(&metrics).await.unwrap(), "CREATE TEMP TABLE mark (n)").await;
        assert_eq!(pool.kept().connections.len(), 1);
        assert_eq!(pool.idle(), 1);
        let mut first = pool.acquire(&metrics).await.unwrap();
        run(&mut first, "SELECT n FROM mark").await;
        let mut second = pool.acquire(&metrics).await.unwrap();
        assert!(second.execute(sqlx::query("SELECT n FROM mark")).await.is_err(), "another connection");
        assert_eq!(pool.idle(), 0);
    }

    #[tokio::test]
    async fn a_connection_in_a_transaction_is_rolled_back_before_it_is_used_again() {
        let (folder, metrics) = (tempfile::tempdir().unwrap(), Metrics::new());
        let pool = pool(&folder, 1).await;
        run(&mut pool.acquire(&metrics).await.unwrap(), "CREATE TABLE mark (n)").await;
        let mut dropped = pool.acquire(&metrics).await.unwrap();
        dropped.begin().await.unwrap();
        run(&mut dropped, "INSERT INTO mark VALUES (1)").await;
        drop(dropped);
        assert!(pool.kept().connections.is_empty());
        let mut next = pool.acquire(&metrics).await.unwrap();
        next.begin().await.unwrap();
        assert!(next.fetch_all(sqlx::query("SELECT n FROM mark")).await.unwrap().is_empty());
        next.commit().await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_with_a_failed_statement_is_not_kept() {
        let (folder, metrics) = (tempfile::tempdir().unwrap(), Metrics::new());
        let pool = pool(&folder, 1).await;
        let mut failing = pool.acquire(&metrics).await.unwrap();
        assert!(failing.execute(sqlx::query("SELECT * FROM nothing")).await.is_err());
        drop(failing);
        assert!(pool.kept().connections.is_empty());
        run(&mut pool.acquire(&metrics).await.unwrap(), "SELECT 1").await;
    }

    #[tokio::test]
    async fn kept_connections_are_closed_with_the_pool() {
        let (folder, metrics) = (tempfile::tempdir().unwrap(), Metrics::new());
        let pool = pool(&folder, 2).await;
        drop(pool.acquire(&metrics).await.unwrap());
        let in_use = pool.acquire(&metrics).await.unwrap();
        let closing = pool.clone();
        let closed = tokio::spawn(async move { closing.close().await });
        while !pool.pool.is_closed() {
            tokio::task::yield_now().await;
        }
        drop(in_use);
        closed.await.unwrap();
        assert!(pool.kept().connections.is_empty());
        assert!(matches!(pool.acquire(&metrics).await, Err(StoreError::Unavailable(sqlx::Error::PoolClosed))));
    }
}
