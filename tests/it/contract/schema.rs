//! The engines have the same tables and columns, and every SQL text can be prepared where it is used.

use std::collections::BTreeMap;

use sealwire::store::sql::{POSTGRES, SHARED, mailbox, many};
use sqlx::{ConnectOptions, Executor, SqlStr, postgres::PgConnectOptions, sqlite::SqliteConnectOptions};

/// table.column → whether it may be NULL
type Columns = BTreeMap<String, bool>;

#[tokio::test(flavor = "multi_thread")]
async fn every_text_can_be_prepared() {
    assert!(SHARED.len() > 40 && POSTGRES.len() > 10 && mailbox::sqlite::SQLITE.len() > 5);
    let fresh = super::sqlite().await;
    let mut sqlite = fresh.url.parse::<SqliteConnectOptions>().unwrap().connect().await.unwrap();
    let fresh = super::postgres().await;
    let mut postgres = fresh.url.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
    for (name, text) in SHARED.iter().chain(mailbox::SHARED).chain(mailbox::sqlite::SQLITE).chain(many::sqlite::SQLITE)
    {
        let prepared = sqlite.prepare(SqlStr::from_static(text)).await;
        assert!(prepared.is_ok(), "{name} on SQLite: {:?}", prepared.err());
    }
    let texts = [SHARED, POSTGRES, mailbox::SHARED, mailbox::POSTGRES, many::POSTGRES];
    for (name, text) in texts.into_iter().flatten() {
        let prepared = postgres.prepare(SqlStr::from_static(text)).await;
        assert!(prepared.is_ok(), "{name} on PostgreSQL: {:?}", prepared.err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_columns_and_nullability_are_the_same() {
    let fresh = super::sqlite().await;
    let mut connection = fresh.url.parse::<SqliteConnectOptions>().unwrap().connect().await.unwrap();
    let sqlite: Vec<(String, String, bool)> = sqlx::query_as(
        "SELECT tables.name, columns.name, NOT columns.\"notnull\" FROM sqlite_schema AS tables \
         JOIN pragma_table_info(tables.name) AS columns \
         WHERE tables.type = 'table' AND tables.name NOT LIKE 'sqlite_%' AND tables.name NOT LIKE '_sqlx_%'",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let fresh = super::postgres().await;
    let mut connection = fresh.url.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
    let postgres: Vec<(String, String, bool)> = sqlx::query_as(
        "SELECT table_name::TEXT, column_name::TEXT, is_nullable = 'YES' FROM information_schema.columns \
         WHERE table_schema = 'public' AND table_name NOT LIKE '\\_sqlx\\_%'",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let columns = |rows: Vec<(String, String, bool)>| -> Columns {
        rows.into_iter().map(|(table, column, nullable)| (format!("{table}.{column}"), nullable)).collect()
    };
    let (sqlite, postgres) = (columns(sqlite), columns(postgres));
    assert!(sqlite.len() > 40, "{sqlite:?}");
    assert_eq!(sqlite, postgres);
}
