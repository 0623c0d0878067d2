//! Every SQL statement, written once. Most use the subset that SQLite and PostgreSQL share: `$n` parameters,
//! `RETURNING`, `ON CONFLICT`, partial indexes, times as parameters. If the two must differ, both forms are side by
//! side.
//!
//! Lists differ most. On PostgreSQL a list of ids is an array, and a list of rows is one array per column. On SQLite
//! both are JSON texts, with ids in hexadecimal and each value of a byte column as offset and length into a second
//! parameter. See `Query::bind_ids` and `Query::bind_rows`.
//!
//! SQLite prepares a statement again whenever a parameter is bound that is a whole `LIMIT`, since the plan may depend on it. So
//! those of connects and claims have `LIMIT $n + 0` there.
//!
//! A test prepares every statement on its database.

/// One statement in both dialects. An empty text means that the database needs no such statement.
#[derive(Clone, Copy, Debug)]
pub struct Sql {
    /// The text for SQLite.
    pub sqlite: &'static str,
    /// The text for PostgreSQL.
    pub postgres: &'static str,
}

/// One text for both databases.
const fn both(text: &'static str) -> Sql {
    Sql { sqlite: text, postgres: text }
}

/// A text for each database.
const fn per_dialect(sqlite: &'static str, postgres: &'static str) -> Sql {
    Sql { sqlite, postgres }
}

/// For PostgreSQL only, where other transactions write at the same time.
const fn postgres(text: &'static str) -> Sql {
    Sql { sqlite: "", postgres: text }
}

/// For SQLite only.
const fn sqlite(text: &'static str) -> Sql {
    Sql { sqlite: text, postgres: "" }
}

/// Declares the statements of a file, and the list of them for the tests.
macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = $sql:expr;)*) => {
        $($(#[$doc])* pub const $name: Sql = $sql;)*
        /// The statements of this file, each with its name.
        pub const ALL: &[(&str, Sql)] = &[$((stringify!($name), $name),)*];
    };
}

pub mod access;
pub mod accounts;
pub mod approvals;
pub mod challenges;
pub mod claims;
pub mod keys;
pub mod locks;
pub mod mailbox;
pub mod nodes;
pub mod push;
pub mod sweeps;

statements! {
    /// On PostgreSQL it locks a row, which a read-only server refuses, and changes no data.
    PING = per_dialect(
        "SELECT 1",
        "SELECT 1 FROM nodes WHERE id = '00000000-0000-0000-0000-000000000000' FOR KEY SHARE");
    /// Writes a page of the file without changing any data.
    TRY_TO_WRITE = sqlite("PRAGMA user_version = 0");
    MIGRATIONS = both("SELECT version, success, checksum FROM _sqlx_migrations");
    /// Whether the table of applied migrations exists, and whether a table has a name that the first migration uses.
    HAS_MIGRATIONS = per_dialect(
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = '_sqlx_migrations'), \
        EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name IN ('users', 'devices', 'sessions'))",
        "SELECT to_regclass('_sqlx_migrations') IS NOT NULL, \
        COALESCE(to_regclass('users'), to_regclass('devices'), to_regclass('sessions')) IS NOT NULL");
    CURRENT_SETTING = postgres("SELECT current_setting($1)");
    NO_TIMEOUTS =
        postgres("SELECT set_config('lock_timeout', '0', FALSE), set_config('statement_timeout', '0', FALSE)");
    /// For the rest of the transaction, waits for row locks only briefly.
    SHORT_LOCK_WAIT = postgres("SET LOCAL lock_timeout = '10ms'");
    /// Whether the role may create the extension, whether it exists, whether the role may create tables, and whether the
    /// server is read-only.
    MAY_MIGRATE = postgres("SELECT has_database_privilege(current_database(), 'CREATE'), \
        EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'uuid-ossp'), \
        COALESCE(has_schema_privilege(current_schema(), 'CREATE'), FALSE), \
        current_setting('transaction_read_only') = 'on'");
}

/// All statements, each with its name.
#[must_use]
pub fn all_statements() -> Vec<(&'static str, Sql)> {
    [
        ALL,
        access::ALL,
        accounts::ALL,
        approvals::ALL,
        challenges::ALL,
        claims::ALL,
        keys::ALL,
        locks::ALL,
        mailbox::ALL,
        nodes::ALL,
        push::ALL,
        sweeps::ALL,
    ]
    .concat()
}
