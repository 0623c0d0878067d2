//! The migrations of both databases, in order. sqlx stores their checksums in the database, so a released file must
//! never change.
//!
//! They are listed by hand because sqlx's macros would compile both drivers a second time.

use std::sync::LazyLock;

use sqlx::{
    SqlStr,
    migrate::{Migration, MigrationType, Migrator},
};

/// The migrations of SQLite. They need a connection that does not enforce foreign keys.
pub static ON_SQLITE: LazyLock<Migrator> = LazyLock::new(|| {
    migrator(&[
        ("accounts and keys", include_str!("../../migrations/sqlite/0001_accounts_and_keys.sql")),
        ("mailbox", include_str!("../../migrations/sqlite/0002_mailbox.sql")),
        ("text and defaults", include_str!("../../migrations/sqlite/0003_text_and_defaults.sql")),
        ("ended sessions", include_str!("../../migrations/sqlite/0004_ended_sessions.sql")),
        ("nodes", include_str!("../../migrations/sqlite/0005_nodes.sql")),
        ("code purposes", include_str!("../../migrations/sqlite/0006_code_purposes.sql")),
        ("access", include_str!("../../migrations/sqlite/0007_access.sql")),
        ("lock and approvals", include_str!("../../migrations/sqlite/0008_lock_and_approvals.sql")),
        ("fair codes", include_str!("../../migrations/sqlite/0009_fair_codes.sql")),
        ("wrong guesses", include_str!("../../migrations/sqlite/0010_wrong_guesses.sql")),
        ("mailbox shares", include_str!("../../migrations/sqlite/0011_mailbox_shares.sql")),
        ("push", include_str!("../../migrations/sqlite/0012_push.sql")),
        ("untagged addresses", include_str!("../../migrations/sqlite/0013_untagged_addresses.sql")),
        ("message owners", include_str!("../../migrations/sqlite/0014_message_owners.sql")),
        ("order of one time prekeys", include_str!("../../migrations/sqlite/0015_order_of_one_time_prekeys.sql")),
    ])
});

/// The migrations of PostgreSQL.
pub static ON_POSTGRES: LazyLock<Migrator> = LazyLock::new(|| {
    migrator(&[
        ("accounts and keys", include_str!("../../migrations/postgres/0001_accounts_and_keys.sql")),
        ("mailbox", include_str!("../../migrations/postgres/0002_mailbox.sql")),
        ("text and defaults", include_str!("../../migrations/postgres/0003_text_and_defaults.sql")),
        ("ended sessions", include_str!("../../migrations/postgres/0004_ended_sessions.sql")),
        ("nodes", include_str!("../../migrations/postgres/0005_nodes.sql")),
        ("code purposes", include_str!("../../migrations/postgres/0006_code_purposes.sql")),
        ("access", include_str!("../../migrations/postgres/0007_access.sql")),
        ("lock and approvals", include_str!("../../migrations/postgres/0008_lock_and_approvals.sql")),
        ("fair codes", include_str!("../../migrations/postgres/0009_fair_codes.sql")),
        ("wrong guesses", include_str!("../../migrations/postgres/0010_wrong_guesses.sql")),
        ("mailbox shares", include_str!("../../migrations/postgres/0011_mailbox_shares.sql")),
        ("push", include_str!("../../migrations/postgres/0012_push.sql")),
        ("untagged addresses", include_str!("../../migrations/postgres/0013_untagged_addresses.sql")),
        ("message owners", include_str!("../../migrations/postgres/0014_message_owners.sql")),
    ])
});

/// Numbers migrations from 1. Each runs in one transaction with the row that records it.
fn migrator(texts: &[(&'static str, &'static str)]) -> Migrator {
    let migration = |(version, (description, text)): (i64, &(&'static str, &'static str))| {
        Migration::new(version, (*description).into(), MigrationType::Simple, SqlStr::from_static(text), false)
    };
    Migrator::with_migrations((1..).zip(texts).map(migration).collect())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn every_migration_file_is_listed_under_its_number_and_name() {
        for (folder, migrator) in [("sqlite", &ON_SQLITE), ("postgres", &ON_POSTGRES)] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(folder);
            let mut files: Vec<String> =
                fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
            files.sort();
            let named = |one: &Migration| format!("{:04}_{}.sql", one.version, one.description.replace(' ', "_"));
            assert_eq!(migrator.iter().map(named).collect::<Vec<_>>(), files);
        }
    }
}
