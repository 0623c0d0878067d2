//! What every connection to PostgreSQL is set to. The settings are sent at connect or, behind a pooler that pools
//! transactions, at the begin of each transaction. A start reads them back: a pooler may drop them without an error.

use sqlx::PgConnection;

use super::{StoreError, sql};

/// How long a statement waits for a row that another transaction has locked.
const LOCK_TIMEOUT: &str = "5s";
/// Time limit of a statement. Less than `pool::OPERATION_LIMIT`, so that the server ends a slow statement before the
/// client gives up on its connection.
const STATEMENT_TIMEOUT: &str = "9s";
/// After this time PostgreSQL ends the idle transaction of a node that has gone silent and releases its locks. More
/// than `pool::OPERATION_LIMIT`.
const IDLE_TIMEOUT: &str = "15s";

/// The settings by name.
pub const SESSION_SETTINGS: [(&str, &str); 5] = [
    ("lock_timeout", LOCK_TIMEOUT),
    ("statement_timeout", STATEMENT_TIMEOUT),
    ("idle_in_transaction_session_timeout", IDLE_TIMEOUT),
    ("synchronous_commit", "on"),
    // Every statement has an index. Without this, a sequential scan planned while a table was almost empty would stay
    // cached.
    ("enable_seqscan", "off"),
];

/// Begins a transaction with the same settings.
pub const BEGIN_WITH_SETTINGS: &str = "BEGIN; SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '9s'; \
    SET LOCAL idle_in_transaction_session_timeout = '15s'; SET LOCAL synchronous_commit = on; \
    SET LOCAL enable_seqscan = off";

/// Checks that the settings hold on a connection, in its current transaction.
///
/// # Errors
/// [`StoreError::Schema`] names the first that does not.
pub async fn check_settings(connection: &mut PgConnection) -> Result<(), StoreError> {
    for (name, expected) in SESSION_SETTINGS {
        let setting = sqlx::query_as(sql::CURRENT_SETTING.postgres).persistent(false);
        let (value,): (String,) = setting.bind(name).fetch_one(&mut *connection).await?;
        if value != expected {
            return Err(StoreError::Pooler(format!("{name} is {value} although {expected} was asked for")));
        }
    }
    Ok(())
}

/// Checks that what one of two connections sets for its session is not seen by the other, as it is if a pooler gives both the
/// same connection to PostgreSQL by turns.
///
/// # Errors
/// [`StoreError::Pooler`]
pub async fn check_sessions(one: &mut PgConnection, other: &mut PgConnection) -> Result<(), StoreError> {
    const TURNS: usize = 5;
    for _ in 0..TURNS {
        // Plain text: a prepared statement would fail in its own way.
        sqlx::raw_sql("SET sealwire.session = 'one'").execute(&mut *one).await?;
        sqlx::raw_sql("SET sealwire.session = 'other'").execute(&mut *other).await?;
        let kept = "DO $$ BEGIN IF current_setting('sealwire.session', TRUE) IS DISTINCT FROM 'one' THEN \
            RAISE EXCEPTION 'session lost'; END IF; END $$";
        let lost = sqlx::raw_sql(kept).execute(&mut *one).await;
        match lost {
            Ok(_) => {}
            Err(sqlx::Error::Database(error)) if error.message() == "session lost" => {
                return Err(StoreError::Pooler("it gives each transaction to another connection".to_owned()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_gets_the_settings_of_a_session() {
        for (name, value) in SESSION_SETTINGS {
            let set = [format!("SET LOCAL {name} = {value}"), format!("SET LOCAL {name} = '{value}'")];
            assert!(set.iter().any(|set| BEGIN_WITH_SETTINGS.contains(set)), "{name}");
        }
        assert_eq!(BEGIN_WITH_SETTINGS.matches("SET LOCAL").count(), SESSION_SETTINGS.len());
    }
}
