//! The rows of a database, and whether the counters of its mailboxes are right.

use sqlx::{
    AssertSqlSafe, ConnectOptions, PgConnection, SqliteConnection, postgres::PgConnectOptions,
    sqlite::SqliteConnectOptions,
};

/// A connection to a database of either kind that belongs to no server.
pub enum Database {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Database {
    /// Connects to the database of this URL.
    pub async fn connect(url: &str) -> Self {
        match url.strip_prefix("sqlite://") {
            Some(path) => Self::Sqlite(SqliteConnectOptions::new().filename(path).connect().await.unwrap()),
            None => Self::Postgres(url.parse::<PgConnectOptions>().unwrap().connect().await.unwrap()),
        }
    }

    /// Runs a statement.
    pub async fn run(&mut self, text: &'static str) {
        match self {
            Self::Sqlite(connection) => sqlx::raw_sql(text).execute(connection).await.map(drop),
            Self::Postgres(connection) => sqlx::raw_sql(text).execute(connection).await.map(drop),
        }
        .unwrap();
    }

    /// Returns the only number that a query selects.
    pub async fn number(&mut self, text: &str) -> i64 {
        let query = AssertSqlSafe(text.to_owned());
        let (number,) = match self {
            Self::Sqlite(connection) => sqlx::query_as(query).fetch_one(connection).await.unwrap(),
            Self::Postgres(connection) => sqlx::query_as(query).fetch_one(connection).await.unwrap(),
        };
        number
    }
}

/// Mailboxes whose counters differ from what their envelopes are.
const WRONG_MAILBOXES: &str = "SELECT COUNT(*) FROM mailboxes LEFT JOIN (SELECT device_id, COUNT(*) AS n, \
    SUM(OCTET_LENGTH(content)) AS size, SUM(CASE WHEN from_stranger THEN 1 ELSE 0 END) AS strange, \
    SUM(CASE WHEN from_stranger THEN OCTET_LENGTH(content) ELSE 0 END) AS strange_size FROM messages GROUP BY device_id) \
    AS held ON held.device_id = mailboxes.device_id WHERE count <> COALESCE(n, 0) OR bytes <> COALESCE(size, 0) \
    OR stranger_count <> COALESCE(strange, 0) OR stranger_bytes <> COALESCE(strange_size, 0)";

/// The shares of mailboxes that no node of an earlier version has changed since; with a condition to be added.
const SHARES: &str = "SELECT COUNT(*) FROM mailbox_shares AS shares JOIN mailboxes ON \
    mailboxes.device_id = shares.device_id AND counted_seq = next_seq AND counted_count = mailboxes.count \
    LEFT JOIN (SELECT device_id, sender_user, COUNT(*) AS n, SUM(OCTET_LENGTH(content)) AS size FROM messages \
    GROUP BY device_id, sender_user) AS held \
    ON held.device_id = shares.device_id AND held.sender_user = shares.sender_user WHERE ";

/// Asserts that all counters are right, in one statement each, and returns the number of shares.
pub async fn assert_exact(database: &mut Database) -> i64 {
    assert_eq!(database.number(WRONG_MAILBOXES).await, 0, "mailboxes have wrong counters");
    let wrong = "shares.count <> COALESCE(n, 0) OR shares.bytes <> COALESCE(size, 0)";
    assert_eq!(database.number(&format!("{SHARES}{wrong}")).await, 0, "shares are wrong");
    database.number(&format!("{SHARES}TRUE")).await
}
