//! Behaviour of the store that exists only on PostgreSQL.

use sealwire::store::Store;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection, postgres::PgConnectOptions};

use super::{settings, suite::mail};
use crate::support::Services;

async fn connect(url: &str) -> PgConnection {
    url.parse::<PgConnectOptions>().unwrap().connect().await.unwrap()
}

/// The store answers only after the commit has reached the disk, whatever the defaults of the database, the role or the
/// PostgreSQL server are.
#[tokio::test(flavor = "multi_thread")]
async fn commits_are_synchronous_even_if_the_database_defaults_to_asynchronous() {
    let url = Services::shared().database().await;
    let name = url.rsplit_once('/').unwrap().1;
    let off = format!("ALTER DATABASE {name} SET synchronous_commit = off");
    connect(&url).await.execute(AssertSqlSafe(off)).await.unwrap();
    let mut outside = connect(&url).await;
    let (shown,): (String,) = sqlx::query_as("SHOW synchronous_commit").fetch_one(&mut outside).await.unwrap();
    assert_eq!(shown, "off", "the default of other clients");

    let store = Store::open(&url, settings(4)).await.unwrap();
    outside
        .execute(
            "CREATE TABLE seen (synchronous TEXT); \
             CREATE FUNCTION note() RETURNS TRIGGER LANGUAGE plpgsql AS \
             $$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$; \
             CREATE TRIGGER note AFTER INSERT ON messages FOR EACH ROW EXECUTE FUNCTION note();",
        )
        .await
        .unwrap();
    mail::fill(&store, 3).await;
    let seen: Vec<(String,)> = sqlx::query_as("SELECT synchronous FROM seen").fetch_all(&mut outside).await.unwrap();
    assert_eq!(seen, vec![("on".to_owned(),); 3]);
}

/// While one node deletes expired mail, the other nodes skip the deletion and do not wait.
#[tokio::test(flavor = "multi_thread")]
async fn one_node_at_a_time_deletes_expired_mail() {
    let url = Services::shared().database().await;
    let store = Store::open(&url, settings(4)).await.unwrap();
    let device = mail::fill(&store, 3).await;
    let mut other = connect(&url).await;
    other.execute("SELECT pg_advisory_lock(7166182912861)").await.unwrap();
    assert_eq!(store.expire_mail(mail::after_expiry()).await.unwrap(), 0);
    let status = store.mailbox(device).await.unwrap();
    assert_eq!((status.waiting, status.expired_total), (3, 0));
    other.execute("SELECT pg_advisory_unlock(7166182912861)").await.unwrap();
    assert_eq!(store.expire_mail(mail::after_expiry()).await.unwrap(), 3);
    let status = store.mailbox(device).await.unwrap();
    assert_eq!((status.waiting, status.expired_total), (0, 3));
}
