//! The settings of PostgreSQL sessions. They are startup parameters of each connection or, behind a pooler in
//! transaction mode, are set at the beginning of each transaction. They are read back when the store is opened, because
//! a pooler may drop them without an error.

use sqlx::PgConnection;

use super::{StoreError, sql};

/// How long a statement waits for a row that another transaction has locked. A little more than PostgreSQL's default
/// `deadlock_timeout` of a second, so that a deadlock is found first: its transaction can be repeated.
const LOCK_TIMEOUT: &str = "1100ms";
/// Time limit of a statement. Less than `pool::OPERATION_LIMIT`, so that the server ends a slow statement before the
/// client gives up on its connection.
const STATEMENT_TIMEOUT: &str = "9s";
/// After this time PostgreSQL ends a transaction whose node sends nothing, for example because it lost its network, and
/// so releases its locks. More than `pool::OPERATION_LIMIT`, so that a node ends its own transactions first.
const IDLE_TIMEOUT: &str = "15s";

/// Name and value of each setting.
pub const SESSION_SETTINGS: [(&str, &str); 5] = [
    ("lock_timeout", LOCK_TIMEOUT),
    ("statement_timeout", STATEMENT_TIMEOUT),
    ("idle_in_transaction_session_timeout", IDLE_TIMEOUT),
    ("synchronous_commit", "on"),
    // The statements of requests all use indexes. Without this, a sequential scan planned while a table was almost
    // empty would stay in the plan cache.
    ("enable_seqscan", "off"),
];

macro_rules! begin_with_settings {
    () => {
        "BEGIN; SET LOCAL lock_timeout = '1100ms'; SET LOCAL statement_timeout = '9s'; \
        SET LOCAL idle_in_transaction_session_timeout = '15s'; SET LOCAL synchronous_commit = on; \
        SET LOCAL enable_seqscan = off"
    };
}

/// Several times what a batch of mail usually takes, so that a batch of another node is waited for, in the order in which
/// PostgreSQL grants locks. It delays a batch once for each mailbox that stays locked longer.
macro_rules! brief_lock_wait {
    () => {
        "SET LOCAL lock_timeout = '100ms'"
    };
}

/// Begins a transaction with the same settings.
pub const BEGIN_WITH_SETTINGS: &str = begin_with_settings!();

/// Begins a transaction whose statements hardly wait for locked rows.
pub const BEGIN_WITH_BRIEF_LOCK_WAIT: &str = concat!("BEGIN; ", brief_lock_wait!());

/// The same with the other settings.
pub const BEGIN_WITH_SETTINGS_AND_BRIEF_LOCK_WAIT: &str = concat!(begin_with_settings!(), "; ", brief_lock_wait!());

/// Checks that the settings hold on a connection, in its current transaction.
///
/// # Errors
/// [`StoreError::Pooler`] names the first that does not.
pub async fn check_settings(connection: &mut PgConnection) -> Result<(), StoreError> {
    for (name, expected) in SESSION_SETTINGS {
        let setting = sqlx::query_as(sql::CURRENT_SETTING.postgres).persistent(false);
        let (value,): (String,) = setting.bind(name).fetch_one(&mut *connection).await?;
        if value != expected {
            return Err(StoreError::Pooler(format!("{name} is {value} instead of {expected}")));
        }
    }
    Ok(())
}

/// Checks that two connections are two sessions of PostgreSQL: neither overwrites a setting of the other. A pooler in
/// transaction mode may run the statements of both on the same server connection.
///
/// # Errors
/// [`StoreError::Pooler`]
pub async fn check_sessions(one: &mut PgConnection, other: &mut PgConnection) -> Result<(), StoreError> {
    const ATTEMPTS: usize = 5;
    for _ in 0..ATTEMPTS {
        // Not prepared: behind a pooler, a prepared statement may be missing, which is another error.
        sqlx::raw_sql("SET sealwire.session = 'one'").execute(&mut *one).await?;
        sqlx::raw_sql("SET sealwire.session = 'other'").execute(&mut *other).await?;
        let check = "DO $$ BEGIN IF current_setting('sealwire.session', TRUE) IS DISTINCT FROM 'one' THEN \
            RAISE EXCEPTION 'session lost'; END IF; END $$";
        match sqlx::raw_sql(check).execute(&mut *one).await {
            Ok(_) => {}
            Err(sqlx::Error::Database(error)) if error.message() == "session lost" => {
                return Err(StoreError::Pooler("a pooler may run each transaction on another connection".to_owned()));
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
