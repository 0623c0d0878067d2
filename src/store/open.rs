//! Opening a database: its options, its lock, its tables.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown},
    path::Path,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use sqlx::{
    ConnectOptions, Connection, PgConnection, SqliteConnection,
    migrate::Migrator,
    pool::PoolOptions,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::time::timeout;

use super::{
    Database, PostgresServer, SqliteConnections, Store, StoreError, StoreSettings, batch_connections,
    health::{Health, PATIENCE},
    migrations::{ON_POSTGRES, ON_SQLITE},
    pool::Connections,
    sql,
};
use crate::sqlite_file::SqliteFile;

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

/// Held by the one process that serves a database file or changes its tables. The operating system ends it with the
/// process at the latest.
#[derive(Debug)]
pub struct FileLock {
    /// This database's own.
    own: File,
    /// That of earlier versions, which databases may share: shared between newer versions, and exclusive to an older
    /// one, so that an older and a newer version keep each other away from a file.
    former: File,
}

impl FileLock {
    /// Takes the lock of a database file; `None` if another process has it.
    fn take(file: &SqliteFile) -> Result<Option<Self>, StoreError> {
        let Some(own) = lock(&file.lock(), file.database(), File::try_lock)? else { return Ok(None) };
        let former = lock(&file.former_lock(), file.database(), File::try_lock_shared)?;
        Ok(former.map(|former| Self { own, former }))
    }

    /// Releases it before the process ends.
    pub fn release(&self) {
        if let Err(error) = self.own.unlock().and(self.former.unlock()) {
            tracing::warn!(%error, "the lock of the database file stays until the process ends");
        }
    }
}

/// Opens and locks a file; `None` if another process keeps it locked.
fn lock(
    path: &Path,
    database: &Path,
    lock: impl FnOnce(&File) -> Result<(), TryLockError>,
) -> Result<Option<File>, StoreError> {
    let failed = |error| unusable(path, &error);
    let file = private().open(path).map_err(failed)?;
    if let Ok(owner) = database.metadata() {
        // A command that root runs must not keep the server out. Only root can give a file away.
        let _ = fchown(&file, Some(owner.uid()), Some(owner.gid()));
    }
    match lock(&file) {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Opens files; one that is made can be read by its owner alone.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

fn unusable(path: &Path, error: &io::Error) -> StoreError {
    sqlx::Error::Io(io::Error::new(error.kind(), format!("{}: {error}", path.display()))).into()
}

/// Makes the file and its folder for their owner alone, unless they exist. SQLite gives what it puts beside the file the
/// same mode.
fn prepare(file: &Path) -> io::Result<()> {
    if file.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if let Some(folder) = file.parent().filter(|folder| *folder != Path::new("")) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    private().open(file)?;
    Ok(())
}

impl Store {
    /// Opens the database that the URL names, brings its tables up to date, and keeps others from serving a SQLite file.
    ///
    /// # Errors
    /// Where it cannot be opened or migrated, or somebody serves it.
    pub async fn open(url: &str, settings: StoreSettings) -> Result<Self, StoreError> {
        if url.starts_with("sqlite:") {
            Self::open_sqlite(url, settings, true).await
        } else {
            Self::open_postgres(url, settings).await
        }
    }

    /// The same for work beside a server, who may serve a SQLite file meanwhile; its tables are up to date then.
    ///
    /// # Errors
    /// Where it cannot be opened or migrated, or tables would change under a server.
    pub async fn open_beside(url: &str, settings: StoreSettings) -> Result<Self, StoreError> {
        if url.starts_with("sqlite:") {
            Self::open_sqlite(url, settings, false).await
        } else {
            Self::open_postgres(url, settings).await
        }
    }

    async fn open_sqlite(url: &str, settings: StoreSettings, alone: bool) -> Result<Self, StoreError> {
        let file = SqliteFile::from_url(url)?;
        let options = file
            .options()
            .clone()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(PATIENCE);
        let database = file.database();
        prepare(database).map_err(|error| unusable(database, &error))?;
        let lock = FileLock::take(&file)?;
        let in_use = || StoreError::InUse(database.display().to_string());
        if alone && lock.is_none() {
            return Err(in_use());
        }
        // Migrations replace tables. A connection that enforces foreign keys would delete what refers to the old ones.
        let mut migrating = options.clone().foreign_keys(false).connect().await?;
        if lock.is_none() && is_behind(&mut migrating).await? {
            return Err(in_use());
        }
        ON_SQLITE.run(&mut migrating).await.map_err(StoreError::from_migration)?;
        migrating.close().await?;
        let pool = || SqlitePoolOptions::new().acquire_timeout(PATIENCE).test_before_acquire(false);
        let writer = pool().max_connections(1).connect_with(options.clone()).await?;
        let readers = options.read_only(true).pragma("cache_size", READER_CACHE);
        // Readers never wait for each other or for the writer, so more of them than cores would only hold memory.
        let cores = std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
        let readers = pool().max_connections(settings.max_connections.clamp(1, cores)).connect_with(readers).await?;
        let writer = Connections::new(writer, Arc::default());
        let readers = Connections::new(readers, Arc::default());
        Ok(Self::over(Database::Sqlite(SqliteConnections { writer, readers, lock: lock.map(Arc::new) }), settings))
    }

    async fn open_postgres(url: &str, settings: StoreSettings) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url)?.application_name("sealwire").options([
            ("lock_timeout", LOCK_TIMEOUT),
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("idle_in_transaction_session_timeout", IDLE_TIMEOUT),
            ("synchronous_commit", "on"),
            // Every statement has an index. A plan that was made while a table was all but empty would be kept.
            ("enable_seqscan", "off"),
        ]);
        let health = Arc::new(Health::default());
        let known = health.clone();
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
        let for_batches = batch_connections(settings.max_connections);
        let others = settings.max_connections.saturating_sub(for_batches).max(1);
        let batch_pool = pool.clone().max_connections(for_batches).connect_lazy_with(options.clone());
        let pool = pool.max_connections(others).connect_with(options).await?;
        let mut connection = pool.acquire().await?;
        // A migration takes as long as it does, and so does waiting for another node's: sqlx holds an advisory lock, so
        // nodes that start together migrate once.
        sqlx::query(sql::NO_TIMEOUTS.postgres).execute(&mut *connection).await?;
        ON_POSTGRES.run(&mut *connection).await.map_err(StoreError::from_migration)?;
        connection.close().await?;
        let batch_connections = Connections::new(batch_pool, health.clone());
        let connections = Connections::new(pool, health);
        Ok(Self::over(Database::Postgres(PostgresServer { connections, batch_connections }), settings))
    }

    /// Looks at the database that the URL names without changing anything in it, and says what a start would do.
    ///
    /// # Errors
    /// Where it cannot be reached, or a start would be refused.
    pub async fn inspect(url: &str) -> Result<&'static str, StoreError> {
        let inspected = timeout(PATIENCE, async {
            if url.starts_with("sqlite:") { inspect_sqlite(url).await } else { inspect_postgres(url).await }
        });
        inspected.await.unwrap_or_else(|_| Err(StoreError::silent()))
    }
}

async fn inspect_sqlite(url: &str) -> Result<&'static str, StoreError> {
    let file = SqliteFile::from_url(url)?;
    let database = file.database();
    if !database.exists() {
        return Ok("the database file does not exist yet; a start makes it");
    }
    if database.is_dir() {
        return Err(unusable(database, &io::ErrorKind::IsADirectory.into()));
    }
    let mut connection = file.options().clone().create_if_missing(false).read_only(true).connect().await?;
    let (migrated,): (bool,) = sqlx::query_as(sql::HAS_MIGRATIONS.sqlite).fetch_one(&mut connection).await?;
    let mut applied: Vec<Applied> = Vec::new();
    if migrated {
        applied = sqlx::query_as(sql::MIGRATIONS.sqlite).fetch_all(&mut connection).await?;
    }
    Ok(match pending(&ON_SQLITE, &applied)? {
        0 => "the database file can be opened",
        _ => "the database file can be opened; a start brings its tables up to date",
    })
}

async fn inspect_postgres(url: &str) -> Result<&'static str, StoreError> {
    let mut connection = PgConnectOptions::from_str(url)?.connect().await?;
    let (may_create, extended): (bool, bool) =
        sqlx::query_as(sql::MAY_MIGRATE.postgres).fetch_one(&mut connection).await?;
    if !may_create && !extended {
        return Err(StoreError::may_not_migrate());
    }
    let (migrated,): (bool,) = sqlx::query_as(sql::HAS_MIGRATIONS.postgres).fetch_one(&mut connection).await?;
    let mut applied: Vec<Applied> = Vec::new();
    if migrated {
        applied = sqlx::query_as(sql::MIGRATIONS.postgres).fetch_all(&mut connection).await?;
    }
    Ok(match pending(&ON_POSTGRES, &applied)? {
        0 => "the database answers",
        _ => "the database answers; a start brings its tables up to date",
    })
}

/// Version, whether it ended well, checksum.
type Applied = (i64, bool, Vec<u8>);

/// How many migrations a start would apply.
fn pending(known: &Migrator, applied: &[Applied]) -> Result<usize, StoreError> {
    for (version, succeeded, checksum) in applied {
        match known.iter().find(|migration| migration.version == *version) {
            None => return Err(StoreError::newer(*version)),
            Some(migration) if migration.checksum != *checksum => return Err(StoreError::other(*version)),
            Some(_) if !succeeded => return Err(StoreError::unfinished(*version)),
            Some(_) => {}
        }
    }
    Ok(known.iter().filter(|migration| applied.iter().all(|(version, ..)| *version != migration.version)).count())
}

/// Whether a start would change the tables.
async fn is_behind(connection: &mut SqliteConnection) -> Result<bool, StoreError> {
    let (migrated,): (bool,) = sqlx::query_as(sql::HAS_MIGRATIONS.sqlite).fetch_one(&mut *connection).await?;
    if !migrated {
        return Ok(true);
    }
    let applied: Vec<Applied> = sqlx::query_as(sql::MIGRATIONS.sqlite).fetch_all(connection).await?;
    Ok(pending(&ON_SQLITE, &applied)? > 0)
}
