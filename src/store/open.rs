//! Opens a database: connection options, the lock of a SQLite file, migrations.

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
    Database, PostgresPools, SqlitePools, Store, StoreError, StoreSettings, batch_connections,
    error::POOLER,
    health::{ACQUIRE_TIMEOUT, DatabaseHealth},
    migrations::{ON_POSTGRES, ON_SQLITE},
    pool::{DatabasePool, TRUSTED_IDLE},
    session_settings::{BEGIN_WITH_SETTINGS, SESSION_SETTINGS, check_sessions, check_settings},
    sql,
};
use crate::sqlite_file::SqliteFile;

/// Page cache of each SQLite reader (negative: KiB). Small, since the operating system caches the same pages for all.
const READER_CACHE: &str = "-256";
/// Page cache of the SQLite writer. Holds what a batch changes; with less, pages are written to the log several times in
/// one transaction.
const WRITER_CACHE: &str = "-4096";
/// Number of pages in the log after which SQLite copies them to the database file. A page that changes often is copied
/// once for many changes. With pages of 4 KiB the log grows to 16 MiB.
const PAGES_PER_CHECKPOINT: &str = "4096";
/// Time limit of that ping.
const PING_TIME: Duration = Duration::from_secs(1);

/// File lock of the one process that may serve a database file or migrate it. The operating system releases it when the
/// process ends.
#[derive(Debug)]
pub struct FileLock {
    /// The lock of this database.
    own: File,
    /// The lock file of earlier versions, which databases in one folder share. Earlier versions lock it exclusively and
    /// this one takes a shared lock, so an earlier and a later version cannot serve a file together.
    legacy: File,
}

impl FileLock {
    /// Locks a database file; `None` if another process has locked it.
    fn take(file: &SqliteFile) -> Result<Option<Self>, StoreError> {
        let Some(own) = lock(&file.lock(), file.database(), File::try_lock)? else { return Ok(None) };
        let legacy = lock(&file.legacy_lock(), file.database(), File::try_lock_shared)?;
        Ok(legacy.map(|legacy| Self { own, legacy }))
    }

    /// Releases the lock before the process ends.
    pub fn release(&self) {
        if let Err(error) = self.own.unlock().and(self.legacy.unlock()) {
            tracing::warn!(%error, "cannot release the lock of the database file before the process ends");
        }
    }
}

/// Opens and locks a file; `None` if another process has locked it.
fn lock(
    path: &Path,
    database: &Path,
    lock: impl FnOnce(&File) -> Result<(), TryLockError>,
) -> Result<Option<File>, StoreError> {
    let failed = |error| file_error(path, &error);
    let file = owner_only().open(path).map_err(failed)?;
    if let Ok(owner) = database.metadata() {
        // If root runs a command, the server must still be able to open the lock file. Only root can change an owner.
        let _ = fchown(&file, Some(owner.uid()), Some(owner.gid()));
    }
    match lock(&file) {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Options that open a file for reading and writing, and create it readable by its owner only.
fn owner_only() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

/// Whether this process may write the file or folder at `path` or, if it does not exist, create it and its missing
/// parent folders.
#[must_use]
pub fn may_write(path: &Path) -> bool {
    let exists = |path: &&Path| path.exists();
    let here = Path::new(".");
    let nearest = path.ancestors().map(|path| if path == Path::new("") { here } else { path }).find(exists);
    nearest.is_some_and(|nearest| {
        let is_place = nearest == path || nearest.is_dir();
        is_place && rustix::fs::access(nearest, rustix::fs::Access::WRITE_OK).is_ok()
    })
}

/// An error that names the file.
fn file_error(path: &Path, error: &io::Error) -> StoreError {
    sqlx::Error::Io(io::Error::new(error.kind(), format!("{}: {error}", path.display()))).into()
}

/// Creates a database file and its folder, accessible to their owner only, unless they exist. SQLite creates its other
/// files (`-wal`, `-shm`) with the mode of the database file.
fn create_file(file: &Path) -> io::Result<()> {
    if file.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if let Some(folder) = file.parent().filter(|folder| *folder != Path::new("")) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    owner_only().open(file)?;
    Ok(())
}

impl Store {
    /// Opens the database at `url` and migrates it. A SQLite file is locked, so that no other process can serve it.
    ///
    /// # Errors
    /// If it cannot be opened or migrated; [`StoreError::InUse`] if another process serves the SQLite file.
    pub async fn open(url: &str, settings: StoreSettings) -> Result<Self, StoreError> {
        if url.starts_with("sqlite:") {
            Self::open_sqlite(url, settings, true).await
        } else {
            Self::open_postgres(url, settings).await
        }
    }

    /// Like [`Self::open`], for a command that may run while a server has a SQLite file open. It migrates the file only
    /// if no server does.
    ///
    /// # Errors
    /// If it cannot be opened or migrated; [`StoreError::InUse`] if it needs a migration while a server has it open.
    pub async fn open_beside_server(url: &str, settings: StoreSettings) -> Result<Self, StoreError> {
        if url.starts_with("sqlite:") {
            Self::open_sqlite(url, settings, false).await
        } else {
            Self::open_postgres(url, settings).await
        }
    }

    async fn open_sqlite(url: &str, settings: StoreSettings, exclusive: bool) -> Result<Self, StoreError> {
        let file = SqliteFile::from_url(url)?;
        let options = file
            .options()
            .clone()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(ACQUIRE_TIMEOUT);
        let database = file.database();
        create_file(database).map_err(|error| file_error(database, &error))?;
        let lock = FileLock::take(&file)?;
        let in_use = || StoreError::InUse(database.display().to_string());
        if exclusive && lock.is_none() {
            return Err(in_use());
        }
        // Migrations replace tables. With foreign keys enforced, dropping the old table would delete the rows that
        // refer to it.
        let mut migrating = options.clone().foreign_keys(false).connect().await?;
        let migrated = pending_on_sqlite(&mut migrating).await?;
        if lock.is_none() && migrated > 0 {
            return Err(in_use());
        }
        ON_SQLITE.run(&mut migrating).await.map_err(StoreError::from_migration)?;
        migrating.close().await?;
        let pool = || SqlitePoolOptions::new().acquire_timeout(ACQUIRE_TIMEOUT).test_before_acquire(false);
        // Statements that change many pages keep a journal of their own. In files, its writes would be half of all.
        let writer = options.clone().pragma("temp_store", "MEMORY").pragma("cache_size", WRITER_CACHE);
        let writer = writer.pragma("wal_autocheckpoint", PAGES_PER_CHECKPOINT);
        let writer = pool().max_connections(1).connect_with(writer).await?;
        let readers = options.read_only(true).pragma("cache_size", READER_CACHE);
        // Readers never wait for each other or for the writer, so more readers than cores would only use memory.
        let cores = std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
        let probe = pool().max_connections(1).connect_with(readers.clone()).await?;
        let readers = pool().max_connections(settings.max_connections.clamp(1, cores)).connect_with(readers).await?;
        let writer = DatabasePool::new(writer, Arc::default());
        let readers = DatabasePool::new(readers, Arc::default());
        let probe = DatabasePool::new(probe, readers.health().clone());
        let pools = SqlitePools { writer, readers, probe, lock: lock.map(Arc::new) };
        Ok(Self { migrated, ..Self::over(Database::Sqlite(pools), settings) })
    }

    async fn open_postgres(url: &str, settings: StoreSettings) -> Result<Self, StoreError> {
        let is_pooled = settings.pooler.is_some();
        let options = session_options(url, is_pooled)?;
        let health = Arc::new(DatabaseHealth::default());
        let pool_health = health.clone();
        let pool: PgPoolOptions = PoolOptions::new()
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(move |connection: &mut PgConnection, meta| {
                // A connection that was idle when the server was last found unreachable is probably dead, and a ping
                // would take up to its time limit.
                let is_stale = pool_health.last_outage_at().is_some_and(|at| at.elapsed() < meta.idle_for)
                    || pool_health.may_refuse_writes(meta.age);
                Box::pin(async move {
                    let is_trusted = meta.idle_for < TRUSTED_IDLE;
                    Ok(!is_stale && (is_trusted || matches!(timeout(PING_TIME, connection.ping()).await, Ok(Ok(())))))
                })
            });
        let for_batches = batch_connections(settings.max_connections);
        let others = settings.max_connections.saturating_sub(for_batches).max(1);
        let batch_pool = pool.clone().max_connections(for_batches).connect_lazy_with(options.clone());
        // Not through the pool, which would retry for ten seconds and then report only a timeout.
        check_connection(&options, is_pooled).await?;
        let mut direct = match &settings.pooler {
            Some(url) => connect(&postgres_options(url)?).await?,
            None => connect(&options).await?,
        };
        let migrated = pending_on_postgres(&mut direct).await?;
        // No time limits: a migration may be slow. sqlx takes an advisory lock, so if nodes start together, one
        // migrates and the others wait for it here.
        sqlx::query(sql::NO_TIMEOUTS.postgres).execute(&mut direct).await?;
        ON_POSTGRES.run(&mut direct).await.map_err(StoreError::from_migration)?;
        if is_pooled {
            check_same_database(&mut direct, &options).await?;
        }
        direct.close().await?;
        let probe = pool.clone().max_connections(1).connect_lazy_with(options.clone());
        let probe = DatabasePool::new(probe, health.clone()).behind_pooler(is_pooled);
        let pool = pool.max_connections(others).connect_lazy_with(options);
        let batch_connections = DatabasePool::new(batch_pool, health.clone()).behind_pooler(is_pooled);
        let connections = DatabasePool::new(pool, health).behind_pooler(is_pooled);
        let pools = PostgresPools { connections, batch_connections, probe };
        Ok(Self { migrated, ..Self::over(Database::Postgres(pools), settings) })
    }

    /// Checks the form of a URL, without a connection.
    ///
    /// # Errors
    /// [`StoreError::Url`] or [`StoreError::PostgresUrl`] if it names neither a SQLite file nor a PostgreSQL database.
    pub fn check_url(url: &str) -> Result<(), StoreError> {
        if url.starts_with("sqlite:") {
            Ok(SqliteFile::from_url(url).map(drop)?)
        } else {
            postgres_options(url).map(drop)
        }
    }

    /// Checks the database at `url` without changing it. Returns a text for the operator: its state, and whether a start
    /// would migrate it. `pooler` is as in [`StoreSettings`].
    ///
    /// # Errors
    /// If the database cannot be reached, does not answer within ten seconds, is read-only or is not Sealwire's; if its
    /// migrations do not match this version, or the role has no privilege to apply those that are due; or if a pooler
    /// drops the session settings.
    pub async fn inspect(url: &str, pooler: Option<&str>) -> Result<&'static str, StoreError> {
        let inspected = timeout(ACQUIRE_TIMEOUT, async {
            if url.starts_with("sqlite:") { inspect_sqlite(url).await } else { inspect_postgres(url, pooler).await }
        });
        inspected.await.unwrap_or_else(|_| Err(StoreError::timed_out()))
    }
}

async fn inspect_sqlite(url: &str) -> Result<&'static str, StoreError> {
    let file = SqliteFile::from_url(url)?;
    let database = file.database();
    if !may_write(database) {
        return Err(file_error(database, &io::ErrorKind::PermissionDenied.into()));
    }
    if !database.exists() {
        return Ok("the database file does not exist yet; the server creates it when it starts");
    }
    if database.is_dir() {
        return Err(file_error(database, &io::ErrorKind::IsADirectory.into()));
    }
    let mut connection = file.options().clone().create_if_missing(false).read_only(true).connect().await?;
    Ok(match pending_on_sqlite(&mut connection).await? {
        0 => "the database file can be opened",
        _ => "the database file can be opened; a start brings its tables up to date",
    })
}

async fn inspect_postgres(url: &str, pooler: Option<&str>) -> Result<&'static str, StoreError> {
    let options = session_options(url, pooler.is_some())?;
    check_connection(&options, pooler.is_some()).await?;
    let mut connection = match pooler {
        Some(url) => connect(&postgres_options(url)?).await?,
        None => connect(&options).await?,
    };
    let (may_extend, is_extended, may_create, only_reads): (bool, bool, bool, bool) =
        sqlx::query_as(sql::MAY_MIGRATE.postgres).fetch_one(&mut connection).await?;
    if only_reads {
        return Err(StoreError::only_reads());
    }
    let pending = pending_on_postgres(&mut connection).await?;
    if pending > 0 && !(may_create && (may_extend || is_extended)) {
        return Err(StoreError::missing_privilege());
    }
    Ok(match pending {
        0 => "the database answers",
        _ => "the database answers; a start brings its tables up to date",
    })
}

/// The parameters of a PostgreSQL URL that sqlx knows. It ignores others, and logs their values.
const URL_PARAMETERS: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// Checks that sqlx knows all parameters of a URL, and that the files of the `ssl…` parameters exist.
///
/// # Errors
/// [`StoreError::PostgresUrl`], with the name of the parameter but not its value, which may be secret.
fn check_parameters(url: &str) -> Result<(), StoreError> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let is_known = URL_PARAMETERS.contains(&&*name) || (name.starts_with("options[") && name.ends_with(']'));
        if !is_known {
            return Err(StoreError::PostgresUrl(format!("unknown parameter {name}")));
        }
        let is_file = name.starts_with("ssl") && !name.ends_with("mode");
        if is_file && !Path::new(&*value).is_file() {
            return Err(StoreError::PostgresUrl(format!("{name} must be the path of a file that exists")));
        }
    }
    Ok(())
}

fn postgres_options(url: &str) -> Result<PgConnectOptions, StoreError> {
    check_parameters(url)?;
    let options = PgConnectOptions::from_str(url).map_err(|error| match error {
        sqlx::Error::Configuration(reason) => StoreError::PostgresUrl(reason.to_string()),
        other => other.into(),
    })?;
    Ok(options.application_name("sealwire"))
}

/// Opens a connection to PostgreSQL. An error names the server.
async fn connect(options: &PgConnectOptions) -> Result<PgConnection, StoreError> {
    let place = format!("{}:{}", options.get_host(), options.get_port());
    let reason = match timeout(ACQUIRE_TIMEOUT, options.connect()).await {
        Ok(Ok(connection)) => return Ok(connection),
        Ok(Err(sqlx::Error::Io(error))) => error.to_string(),
        Ok(Err(sqlx::Error::Database(error))) if error.message().contains("unsupported startup parameter") => {
            format!("{}; {POOLER}", error.message())
        }
        // Only the message: sqlx also shows the line in PostgreSQL's source code.
        Ok(Err(sqlx::Error::Database(error))) => error.message().to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer within ten seconds".to_owned(),
    };
    Err(StoreError::Connect { place, reason })
}

/// The options of the connections that serve requests.
fn session_options(url: &str, is_pooled: bool) -> Result<PgConnectOptions, StoreError> {
    let options = postgres_options(url)?;
    Ok(if is_pooled {
        // PgBouncer refuses startup parameters that it does not know. A prepared statement may be missing in the next
        // transaction, which may run on another connection.
        options.extra_float_digits(None).statement_cache_capacity(0)
    } else {
        options.options(SESSION_SETTINGS)
    })
}

/// Checks that connections can be opened and have the session settings. Without a pooler, also checks that each
/// connection is a session of its own.
async fn check_connection(options: &PgConnectOptions, is_pooled: bool) -> Result<(), StoreError> {
    let mut one = connect(options).await?;
    if is_pooled {
        sqlx::raw_sql(BEGIN_WITH_SETTINGS).execute(&mut one).await?;
        check_settings(&mut one).await?;
        sqlx::raw_sql("ROLLBACK").execute(&mut one).await?;
    } else {
        let mut other = connect(options).await?;
        check_sessions(&mut one, &mut other).await?;
        check_settings(&mut one).await?;
        other.close().await?;
    }
    Ok(one.close().await?)
}

/// Checks that `pooled` leads to the same database as `direct`, which has been migrated.
///
/// # Errors
/// [`StoreError::Schema`] if the database behind the pooler has another deployment id or none.
async fn check_same_database(direct: &mut PgConnection, pooled: &PgConnectOptions) -> Result<(), StoreError> {
    let mut pooled = connect(pooled).await?;
    sqlx::raw_sql(BEGIN_WITH_SETTINGS).execute(&mut pooled).await?;
    let id = || sqlx::query_as(sql::nodes::DEPLOYMENT.postgres).persistent(false);
    let (here,): (uuid::Uuid,) = id().fetch_one(direct).await?;
    let there: Result<(uuid::Uuid,), _> = id().fetch_one(&mut pooled).await;
    if there.is_ok_and(|(there,)| there == here) {
        return Ok(pooled.close().await?);
    }
    Err(StoreError::Schema("database.migrate_url and database.url lead to different databases".to_owned()))
}

/// Version, whether it succeeded, checksum.
type AppliedMigration = (i64, bool, Vec<u8>);

async fn pending_on_sqlite(connection: &mut SqliteConnection) -> Result<usize, StoreError> {
    let (has_migrations, has_tables): (bool, bool) =
        sqlx::query_as(sql::HAS_MIGRATIONS.sqlite).fetch_one(&mut *connection).await?;
    let mut applied: Vec<AppliedMigration> = Vec::new();
    if has_migrations {
        applied = sqlx::query_as(sql::MIGRATIONS.sqlite).fetch_all(connection).await?;
    }
    pending(&ON_SQLITE, &applied, has_tables)
}

async fn pending_on_postgres(connection: &mut PgConnection) -> Result<usize, StoreError> {
    let (has_migrations, has_tables): (bool, bool) =
        sqlx::query_as(sql::HAS_MIGRATIONS.postgres).fetch_one(&mut *connection).await?;
    let mut applied: Vec<AppliedMigration> = Vec::new();
    if has_migrations {
        applied = sqlx::query_as(sql::MIGRATIONS.postgres).fetch_all(connection).await?;
    }
    pending(&ON_POSTGRES, &applied, has_tables)
}

/// The number of migrations that a start would apply. `has_tables` is whether the database has a table with a name that
/// the first migration uses.
///
/// # Errors
/// [`StoreError::Schema`] if the database is not Sealwire's, or if an applied migration is unknown, differs from the
/// known one or did not finish.
fn pending(known: &Migrator, applied: &[AppliedMigration], has_tables: bool) -> Result<usize, StoreError> {
    let is_ours = |(version, _, checksum): &AppliedMigration| {
        known.iter().any(|migration| migration.version == *version && migration.checksum == *checksum)
    };
    let is_foreign = if applied.is_empty() { has_tables } else { !applied.iter().any(is_ours) };
    if is_foreign {
        return Err(StoreError::foreign_database());
    }
    for (version, succeeded, checksum) in applied {
        match known.iter().find(|migration| migration.version == *version) {
            None => return Err(StoreError::unknown_migration(*version)),
            Some(migration) if migration.checksum != *checksum => return Err(StoreError::changed_migration(*version)),
            Some(_) if !succeeded => return Err(StoreError::unfinished_migration(*version)),
            Some(_) => {}
        }
    }
    Ok(known.iter().filter(|migration| applied.iter().all(|(version, ..)| *version != migration.version)).count())
}
