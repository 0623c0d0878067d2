//! A connection to either database, and statements on it.
//!
//! Parameters have types that both databases encode, and rows are read into types that both decode. So an operation is
//! written once as an async function; only its SQL may differ ([`Sql`]).

use std::fmt::Write;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::de::DeserializeOwned;
use sqlx::{
    Database, Encode, FromRow, Postgres, Row, Sqlite, Type, postgres::PgRow, query::Query as Statement,
    sqlite::SqliteRow,
};
use uuid::Uuid;

use super::{StoreError, pool::PooledConnection, sql::Sql};

/// A connection for one operation: in a write transaction if it comes from `Store::begin`, for statements that each
/// commit by themselves if it comes from `Store::statements`, for reading if it comes from `Store::read`. Dropping it rolls back an uncommitted transaction.
pub enum Tx<'c> {
    Sqlite(PooledConnection<'c, Sqlite>),
    Postgres(PooledConnection<'c, Postgres>),
}

impl<'c> Tx<'c> {
    /// A statement to bind parameters to and to run.
    pub fn query(&mut self, text: Sql) -> Query<'_, 'c> {
        match self {
            Self::Sqlite(connection) => Query {
                is_noop: text.sqlite.is_empty(),
                statement: BoundStatement::Sqlite(connection, sqlx::query(text.sqlite)),
            },
            Self::Postgres(connection) => {
                // Behind a pooler, the next transaction may run on a connection without this prepared statement.
                let statement = sqlx::query(text.postgres).persistent(!connection.is_pooled());
                Query { is_noop: text.postgres.is_empty(), statement: BoundStatement::Postgres(connection, statement) }
            }
        }
    }

    /// Commits the transaction.
    ///
    /// # Errors
    /// After [`StoreError::Unavailable`] it is unknown whether the transaction was committed.
    pub async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(mut connection) => connection.commit().await,
            Self::Postgres(mut connection) => connection.commit().await,
        }
    }

    /// Ends statements of `Store::statements`, or of `Store::read` on PostgreSQL. Each has already taken effect, unless
    /// they run in a transaction, which this commits.
    ///
    /// # Errors
    /// After [`StoreError::Unavailable`] it is unknown whether they took effect.
    pub async fn end_statements(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(mut connection) => connection.end_statements().await,
            Self::Postgres(mut connection) => connection.end_statements().await,
        }
    }

    /// Whether no other transaction can write before this one ends (SQLite). What it counts is then still true right
    /// after its commit.
    pub fn is_sole_writer(&self) -> bool {
        matches!(self, Self::Sqlite(_))
    }
}

/// A value that can be a parameter on both databases.
pub trait BindValue<'v>: Encode<'v, Sqlite> + Type<Sqlite> + Encode<'v, Postgres> + Type<Postgres> {}
impl<'v, T: Encode<'v, Sqlite> + Type<Sqlite> + Encode<'v, Postgres> + Type<Postgres>> BindValue<'v> for T {}

/// A row that can be read from both databases: a tuple in the order of the columns.
pub trait DecodeRow: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> {}
impl<T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow>> DecodeRow for T {}

/// A column of a list of rows that is bound as a parameter.
pub enum Column<'v> {
    Ids(Vec<Uuid>),
    Integers(Vec<i64>),
    Times(Vec<DateTime<Utc>>),
    OptionalTimes(Vec<Option<DateTime<Utc>>>),
    Bytes(Vec<&'v [u8]>),
    /// Texts that JSON need not escape.
    Texts(Vec<String>),
}

impl Column<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Ids(values) => values.len(),
            Self::Integers(values) => values.len(),
            Self::Times(values) => values.len(),
            Self::OptionalTimes(values) => values.len(),
            Self::Bytes(values) => values.len(),
            Self::Texts(values) => values.len(),
        }
    }
}

/// A statement with its parameters so far.
#[must_use = "a statement does nothing until it is run"]
pub struct Query<'t, 'c> {
    /// Whether the statement is skipped and returns no rows: it does not exist on this database, or a list is empty.
    is_noop: bool,
    statement: BoundStatement<'t, 'c>,
}

enum BoundStatement<'t, 'c> {
    Sqlite(&'t mut PooledConnection<'c, Sqlite>, Statement<'static, Sqlite, <Sqlite as Database>::Arguments>),
    Postgres(&'t mut PooledConnection<'c, Postgres>, Statement<'static, Postgres, <Postgres as Database>::Arguments>),
}

impl Query<'_, '_> {
    /// Binds the next parameter.
    pub fn bind<'v>(self, value: impl BindValue<'v>) -> Self {
        let statement = match self.statement {
            BoundStatement::Sqlite(connection, statement) => BoundStatement::Sqlite(connection, statement.bind(value)),
            BoundStatement::Postgres(connection, statement) => {
                BoundStatement::Postgres(connection, statement.bind(value))
            }
        };
        Self { statement, ..self }
    }

    /// Binds a list of ids: an array on PostgreSQL, a JSON list of hexadecimal texts on SQLite.
    pub fn bind_ids(self, ids: &[Uuid]) -> Self {
        let is_noop = self.is_noop || ids.is_empty();
        let statement = match self.statement {
            BoundStatement::Sqlite(connection, statement) => {
                let list: Vec<String> = ids.iter().map(|id| format!("\"{}\"", id.simple())).collect();
                BoundStatement::Sqlite(connection, statement.bind(format!("[{}]", list.join(","))))
            }
            BoundStatement::Postgres(connection, statement) => {
                BoundStatement::Postgres(connection, statement.bind(ids))
            }
        };
        Self { is_noop, statement }
    }

    /// Binds a list of rows, given as columns of equal length. On PostgreSQL each column is an array. On SQLite the
    /// rows are one JSON list of lists, with ids as hexadecimal text and times as text. There a value of a byte column
    /// becomes an offset and a length into one more parameter, which holds all bytes.
    pub fn bind_rows<const N: usize>(self, columns: [Column<'_>; N]) -> Self {
        let is_noop = self.is_noop || columns.iter().all(|column| column.len() == 0);
        let statement = match self.statement {
            BoundStatement::Sqlite(connection, mut statement) => {
                let (rows, bytes) = json_rows(&columns);
                statement = statement.bind(rows);
                if columns.iter().any(|column| matches!(column, Column::Bytes(_))) {
                    statement = statement.bind(bytes);
                }
                BoundStatement::Sqlite(connection, statement)
            }
            BoundStatement::Postgres(connection, mut statement) => {
                for column in columns {
                    statement = match column {
                        Column::Ids(values) => statement.bind(values),
                        Column::Integers(values) => statement.bind(values),
                        Column::Times(values) => statement.bind(values),
                        Column::OptionalTimes(values) => statement.bind(values),
                        Column::Bytes(values) => statement.bind(values),
                        Column::Texts(values) => statement.bind(values),
                    };
                }
                BoundStatement::Postgres(connection, statement)
            }
        };
        Self { is_noop, statement }
    }

    /// Runs the statement and returns the number of rows that it wrote.
    pub async fn execute(self) -> Result<u64, StoreError> {
        match self.statement {
            _ if self.is_noop => Ok(0),
            BoundStatement::Sqlite(connection, statement) => connection.execute(statement).await,
            BoundStatement::Postgres(connection, statement) => connection.execute(statement).await,
        }
    }

    /// Runs the statement and returns all rows.
    pub async fn fetch_all<R: DecodeRow>(self) -> Result<Vec<R>, StoreError> {
        match self.statement {
            _ if self.is_noop => Ok(Vec::new()),
            BoundStatement::Sqlite(connection, statement) => read_rows(&connection.fetch_all(statement).await?),
            BoundStatement::Postgres(connection, statement) => read_rows(&connection.fetch_all(statement).await?),
        }
    }

    /// Runs a statement whose rows SQLite returns as one JSON list of lists, in a single row. sqlx would pass each row to this
    /// thread by itself, with an allocation for each of its values, and wake the thread for each. PostgreSQL returns the
    /// rows as usual.
    pub async fn fetch_packed<R: DecodeRow + DeserializeOwned>(self) -> Result<Vec<R>, StoreError> {
        match self.statement {
            _ if self.is_noop => Ok(Vec::new()),
            BoundStatement::Sqlite(..) => self.fetch_json().await,
            BoundStatement::Postgres(connection, statement) => read_rows(&connection.fetch_all(statement).await?),
        }
    }

    /// Runs a statement that exists only on SQLite, and returns its rows as JSON like [`Self::fetch_packed`]. It may consist
    /// of several statements, of which only the last returns something.
    pub async fn fetch_json<R: DeserializeOwned>(self) -> Result<Vec<R>, StoreError> {
        match self.statement {
            BoundStatement::Sqlite(connection, statement) if !self.is_noop => {
                let row = connection.fetch_one(statement).await?;
                Ok(serde_json::from_str(row.try_get(0)?).map_err(|error| sqlx::Error::Decode(error.into()))?)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Runs the statement and returns the first row, if there is one.
    pub async fn fetch_optional<R: DecodeRow>(self) -> Result<Option<R>, StoreError> {
        Ok(self.fetch_all().await?.into_iter().next())
    }

    /// Runs a statement that always returns a row, and returns the first one.
    pub async fn fetch_one<R: DecodeRow>(self) -> Result<R, StoreError> {
        self.fetch_optional().await?.ok_or_else(|| sqlx::Error::RowNotFound.into())
    }
}

fn read_rows<DbRow: sqlx::Row, R: for<'r> FromRow<'r, DbRow>>(rows: &[DbRow]) -> Result<Vec<R>, StoreError> {
    Ok(rows.iter().map(R::from_row).collect::<Result<_, _>>()?)
}

/// The rows of these columns as JSON, and the concatenated bytes of their byte columns.
fn json_rows(columns: &[Column<'_>]) -> (String, Vec<u8>) {
    let rows = columns.iter().map(Column::len).min().unwrap_or_default();
    let mut json = String::with_capacity(2 + rows * columns.len() * 36);
    let mut all_bytes = Vec::new();
    json.push('[');
    for row in 0..rows {
        json.push_str(if row == 0 { "[" } else { ",[" });
        for (place, column) in columns.iter().enumerate() {
            if place > 0 {
                json.push(',');
            }
            // Writing to a string cannot fail.
            let _ = match column {
                Column::Ids(values) => write!(json, "\"{}\"", values[row].simple()),
                Column::Integers(values) => write!(json, "{}", values[row]),
                Column::Times(values) => write!(json, "\"{}\"", sqlite_time(values[row])),
                Column::Texts(values) => write!(json, "\"{}\"", values[row]),
                Column::OptionalTimes(values) => match values[row] {
                    Some(at) => write!(json, "\"{}\"", sqlite_time(at)),
                    None => write!(json, "null"),
                },
                Column::Bytes(values) => {
                    let offset = all_bytes.len();
                    all_bytes.extend_from_slice(values[row]);
                    write!(json, "{offset},{}", values[row].len())
                }
            };
        }
        json.push(']');
    }
    json.push(']');
    (json, all_bytes)
}

/// A time in the text form that sqlx writes into SQLite, whose text order is the order of the times.
fn sqlite_time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, false)
}

#[cfg(test)]
mod tests {
    use sqlx::sqlite::SqliteArgumentsBuffer;

    use super::*;
    use crate::domain::Timestamp;

    #[test]
    fn times_have_the_text_form_that_the_driver_writes() {
        for text in ["2026-06-01T12:00:00Z", "2026-06-01T12:00:00.5Z", "2026-06-01T12:00:00.123456Z"] {
            let at = Timestamp::parse(text).unwrap().to_utc();
            let mut buffer = SqliteArgumentsBuffer::default();
            assert!(!Encode::<Sqlite>::encode(at, &mut buffer).unwrap().is_null());
            assert!(format!("{buffer:?}").contains(&format!("{:?}", sqlite_time(at))), "{buffer:?}");
        }
    }

    #[test]
    fn rows_become_one_json_list_and_one_run_of_bytes() {
        let at = Timestamp::parse("2026-06-01T12:00:00.5Z").unwrap().to_utc();
        let (json, bytes) = json_rows(&[
            Column::Ids(vec![Uuid::from_u128(1), Uuid::from_u128(0xab)]),
            Column::Bytes(vec![b"one", b""]),
            Column::Integers(vec![-7, i64::MAX]),
            Column::Times(vec![at, at]),
            Column::OptionalTimes(vec![Some(at), None]),
        ]);
        let time = "2026-06-01T12:00:00.500+00:00";
        let expected = serde_json::json!([
            ["00000000000000000000000000000001", 0, 3, -7, time, time],
            ["000000000000000000000000000000ab", 3, 0, i64::MAX, time, null],
        ]);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), expected);
        assert_eq!(bytes, b"one");
        assert_eq!(json_rows(&[Column::Ids(Vec::new())]).0, "[]");
    }
}
