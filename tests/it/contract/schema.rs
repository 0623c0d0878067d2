//! SQLite and PostgreSQL have the same tables and columns, and every SQL statement can be prepared on its engine.

use std::collections::BTreeMap;

use sealwire::store::sql::{self, Sql};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, SqlStr, postgres::PgConnectOptions, sqlite::SqliteConnectOptions};

/// `table.column` → whether it may be NULL
type Columns = BTreeMap<String, bool>;

#[tokio::test(flavor = "multi_thread")]
async fn every_sql_statement_can_be_prepared_on_its_engine() {
    let statements = sql::all_statements();
    assert!(statements.len() > 80, "{}", statements.len());
    let fresh = super::sqlite().await;
    let mut sqlite = fresh.url.parse::<SqliteConnectOptions>().unwrap().connect().await.unwrap();
    let fresh = super::postgres().await;
    let mut postgres = fresh.url.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
    for (name, Sql { sqlite: on_sqlite, postgres: on_postgres }) in statements {
        assert!(!on_sqlite.is_empty() || !on_postgres.is_empty(), "{name}");
        let prepared = sqlite.prepare(SqlStr::from_static(on_sqlite)).await;
        assert!(on_sqlite.is_empty() || prepared.is_ok(), "{name} on SQLite: {:?}", prepared.err());
        let prepared = postgres.prepare(SqlStr::from_static(on_postgres)).await;
        assert!(on_postgres.is_empty() || prepared.is_ok(), "{name} on PostgreSQL: {:?}", prepared.err());
    }
}

/// A parameter that is a whole `LIMIT` lets SQLite prepare the statement again at each use.
#[test]
fn statements_of_connects_and_claims_are_prepared_once_on_sqlite() {
    let often = [
        "SESSIONS_BY_TOKENS",
        "OPEN_CONNECTIONS_AT_ONCE",
        "TOUCH_DEVICES",
        "STATUS_OF_MANY",
        "TARGETS_OF_MANY",
        "COUNT_ONE_TIME",
        "COUNT_PQ",
    ];
    let statements = sql::all_statements();
    let of_claims = sql::claims::ALL.iter().map(|(name, _)| *name);
    for name in often.into_iter().chain(of_claims) {
        let text = statements.iter().find(|(known, _)| *known == name).expect(name).1.sqlite;
        for limit in text.split(" LIMIT $").skip(1) {
            let rest = limit.trim_start_matches(|digit: char| digit.is_ascii_digit());
            assert!(rest.starts_with(" + "), "{name}: LIMIT ${limit}");
        }
    }
}

/// The cost of a claim must not depend on how many keys are stored.
#[tokio::test(flavor = "multi_thread")]
async fn claims_on_sqlite_find_keys_only_through_indexes() {
    let fresh = super::sqlite().await;
    let mut connection = fresh.url.parse::<SqliteConnectOptions>().unwrap().connect().await.unwrap();
    let mut steps = String::new();
    let bundles = ["TARGETS_OF_MANY", "DEVICES_OF_MANY", "LAST_RESORTS_OF_MANY", "COUNT_ONE_TIME", "COUNT_PQ"];
    let of_bundles = sql::keys::ALL.iter().filter(|(name, _)| bundles.contains(name));
    let texts = sql::claims::ALL.iter().chain(of_bundles).map(|(name, text)| (name, text.sqlite));
    for (name, text) in texts.filter(|(_, text)| !text.is_empty()) {
        let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {text}")))
            .fetch_all(&mut connection)
            .await
            .unwrap();
        for (.., step) in plan {
            let table = step.strip_prefix("SCAN ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
            let stored = ["one_time_prekeys", "pq_prekeys", "devices", "identity_keys", "next"].contains(&table);
            assert!(!stored, "{name} scans a whole table: {step}");
            // With its first column alone the index would lead to every tombstone of the device.
            assert!(!step.ends_with("idx_ot_prekeys_device_used (device_id=?)"), "{name}: {step}");
            steps += &step;
        }
    }
    let index_steps = [
        "idx_ot_prekeys_device_used (device_id=? AND used=? AND rowid>?)",
        "pq_prekeys_fifo (device_id=? AND (created_at,key_id)>(?,?))",
    ];
    for index_step in index_steps {
        assert!(steps.contains(index_step), "{index_step} is not in {steps}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_and_postgres_have_the_same_tables_and_columns() {
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
