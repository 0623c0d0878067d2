//! The seven tables of the given schema exist exactly as specified. The one deviation is TIMESTAMPTZ for TIMESTAMP
//! (docs/architecture.md says why). All other columns, indexes and tables are additions.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{ConnectOptions, Executor, postgres::PgConnectOptions, sqlite::SqliteConnectOptions};

/// Tables with an `id` column.
const WITH_ID: [&str; 6] = ["users", "devices", "sessions", "email_otps", "signed_prekeys", "one_time_prekeys"];
const TEXT_COLUMNS: [&str; 6] = [
    "email_otps.otp_hash",
    "sessions.token_hash",
    "identity_keys.public_key",
    "signed_prekeys.public_key",
    "signed_prekeys.signature",
    "one_time_prekeys.public_key",
];
/// Index name, table and columns.
const INDEXES: [(&str, &str, &str); 6] = [
    ("idx_email_otps_email_created", "email_otps", "(email, created_at DESC)"),
    ("idx_sessions_token_hash", "sessions", "(token_hash)"),
    ("idx_sessions_device_id", "sessions", "(device_id)"),
    ("idx_devices_user_id", "devices", "(user_id)"),
    ("idx_signed_prekeys_device", "signed_prekeys", "(device_id)"),
    ("idx_ot_prekeys_device_used", "one_time_prekeys", "(device_id, used)"),
];

/// Type, whether NULL is allowed, and default of a column.
type Column = (String, bool, Option<String>);

fn column(kind: &str, default: Option<&str>) -> Column {
    (kind.to_owned(), false, default.map(str::to_owned))
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_has_the_columns_defaults_and_indexes_of_the_given_schema() {
    let fresh = super::postgres().await;
    let mut connection = fresh.url.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
    let columns: Vec<(String, String, bool, Option<String>)> = sqlx::query_as(
        "SELECT table_name || '.' || column_name, data_type::TEXT, is_nullable = 'YES', column_default::TEXT \
         FROM information_schema.columns WHERE table_schema = 'public'",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let columns: BTreeMap<String, Column> =
        columns.into_iter().map(|(name, kind, nullable, default)| (name, (kind, nullable, default))).collect();
    for table in WITH_ID {
        assert_eq!(columns[&format!("{table}.id")], column("uuid", Some("uuid_generate_v4()")), "{table}");
    }
    for table in WITH_ID.into_iter().chain(["identity_keys"]) {
        let created_at = column("timestamp with time zone", Some("now()"));
        assert_eq!(columns[&format!("{table}.created_at")], created_at, "{table}");
    }
    for name in TEXT_COLUMNS {
        assert_eq!(columns[name], column("text", None), "{name}");
    }
    let primary: BTreeSet<(String, String)> = sqlx::query_as(
        "SELECT key.table_name::TEXT, key.column_name::TEXT FROM information_schema.table_constraints AS given \
         JOIN information_schema.key_column_usage AS key USING (constraint_schema, constraint_name) \
         WHERE constraint_type = 'PRIMARY KEY' AND given.table_schema = 'public'",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap()
    .into_iter()
    .collect();
    for table in WITH_ID {
        assert!(primary.contains(&(table.to_owned(), "id".to_owned())), "{table}");
    }
    let indexes: BTreeMap<String, String> =
        sqlx::query_as("SELECT indexname::TEXT, indexdef FROM pg_indexes WHERE schemaname = 'public'")
            .fetch_all(&mut connection)
            .await
            .unwrap()
            .into_iter()
            .collect();
    for (name, table, over) in INDEXES {
        assert_eq!(indexes[name], format!("CREATE INDEX {name} ON public.{table} USING btree {over}"));
    }
    connection.execute("INSERT INTO users (email) VALUES ('by.hand@example.org')").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_has_the_text_columns_defaults_and_indexes_of_the_given_schema() {
    let fresh = super::sqlite().await;
    let mut connection = fresh.url.parse::<SqliteConnectOptions>().unwrap().connect().await.unwrap();
    let columns: BTreeMap<String, (String, Option<String>)> = sqlx::query_as(
        "SELECT tables.name || '.' || columns.name, columns.type, columns.dflt_value FROM sqlite_schema AS tables \
         JOIN pragma_table_info(tables.name) AS columns WHERE tables.type = 'table'",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap()
    .into_iter()
    .map(|(name, kind, default): (String, String, Option<String>)| (name, (kind, default)))
    .collect();
    for table in WITH_ID {
        let (_, default) = &columns[&format!("{table}.id")];
        assert_eq!(default.as_deref(), Some("randomblob(16)"), "{table}");
    }
    for table in WITH_ID.into_iter().chain(["identity_keys"]) {
        let (_, default) = &columns[&format!("{table}.created_at")];
        assert!(default.as_deref().is_some_and(|default| default.starts_with("strftime(")), "{table}");
    }
    for name in TEXT_COLUMNS {
        assert_eq!(columns[name].0, "TEXT", "{name}");
    }
    for (name, table, over) in INDEXES {
        let sql: String = sqlx::query_scalar("SELECT sql FROM sqlite_schema WHERE type = 'index' AND name = $1")
            .bind(name)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(sql, format!("CREATE INDEX {name} ON {table} {over}"));
    }
    // A time written by the default can be read like any other.
    connection.execute("INSERT INTO users (email) VALUES ('by.hand@example.org')").await.unwrap();
    let (id, created_at): (Vec<u8>, chrono::DateTime<chrono::Utc>) =
        sqlx::query_as("SELECT id, created_at FROM users").fetch_one(&mut connection).await.unwrap();
    assert_eq!(id.len(), 16);
    assert!(created_at.timestamp() > 0);
}
