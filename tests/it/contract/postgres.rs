//! Behaviour of the store that exists only on PostgreSQL.

use std::{
    fmt::Debug,
    mem,
    sync::{Arc, Mutex},
    time::Duration,
};

use sealwire::{
    domain::{
        AccessKey, AccessSettings, Caller, DeviceId, Email, Refusal, UserId,
        access::{NewAccess, Strangers},
        bundle::UsableSuites,
        envelope::{MailboxBounds, MailboxSize},
        keyed_buckets::DrainLimit,
    },
    store::{Claims, ConnectionRegistration, MailRequest, Mailboxes, SendRequest, Store, TokenLookup},
};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection, postgres::PgConnectOptions};
use tracing::{
    Dispatch, Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
};
use uuid::Uuid;

use super::{
    settings,
    suite::{email, hash, later, mail, mailbox, request},
};
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
    let status = mailbox(&store, device).await;
    assert_eq!((status.waiting, status.expired_total), (3, 0));
    other.execute("SELECT pg_advisory_unlock(7166182912861)").await.unwrap();
    assert_eq!(store.expire_mail(mail::after_expiry()).await.unwrap(), 3);
    let status = mailbox(&store, device).await;
    assert_eq!((status.waiting, status.expired_total), (0, 3));
}

/// The statements that the driver logs on this thread, in order.
#[derive(Clone, Default)]
struct Statements(Arc<Mutex<Vec<String>>>);

impl Statements {
    fn take(&self) -> Vec<String> {
        mem::take(&mut self.0.lock().unwrap())
    }

    /// Two dispatchers that log into this. With a single one, tracing would turn a log call off for all threads if
    /// another thread reaches it first.
    fn dispatches(&self) -> [Dispatch; 2] {
        [0; 2].map(|_| Dispatch::new(tracing_subscriber::registry().with(self.clone())))
    }
}

impl<S: Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "sqlx::query" {
            let mut text = StatementText(String::new());
            event.record(&mut text);
            self.0.lock().unwrap().push(text.0);
        }
    }
}

/// The text of a logged statement, without the numbers of rows and the time.
struct StatementText(String);

impl Visit for StatementText {
    fn record_str(&mut self, field: &Field, value: &str) {
        if ["summary", "db.statement"].contains(&field.name()) {
            self.0.push_str(value);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

/// The statements of each request about a user, and the refusals.
async fn requests(
    store: &Store,
    by: &Caller,
    of: &Caller,
    address: &Email,
    statements: &Statements,
) -> Vec<(Refusal, Vec<String>)> {
    let size = |envelopes| MailboxSize { envelopes, bytes: 1 << 20 };
    let bounds = MailboxBounds { all: size(10), per_sender: size(1), strangers: Some(size(2)) };
    let claims = Claims::new(store.clone(), DrainLimit::new(1, Duration::from_hours(1)), 20);
    let refused = |refusal: Option<Refusal>| (refusal.expect("refused"), statements.take());
    let mut all = Vec::new();
    statements.take();
    let found = store.find_user(by, address).await.unwrap();
    all.push(refused(found.is_none().then_some(Refusal::NotFound)));
    let other = DeviceId(Uuid::new_v4());
    for devices in [None, Some(vec![of.device, other])] {
        let suites = UsableSuites::default();
        let fetched = store.fetch(by, of.user, devices.as_deref(), &suites, None, later(10)).await;
        all.push(refused(fetched.unwrap_err().refusal().into()));
        let mut batch =
            claims.claim(vec![sealwire::store::ClaimRequest { devices, ..request(by, of.user, later(10)) }]).await;
        all.push(refused(batch.answers.remove(0).unwrap_err().refusal().into()));
    }
    let send = mail::send(by, &[of], "text");
    let ephemeral = SendRequest { ephemeral: true, ..send.clone() };
    let skipping = SendRequest { envelopes: Vec::new(), skipped: vec![of.device], ..send.clone() };
    let wrong_key = SendRequest { access: Some(AccessKey([8; 16])), ..send.clone() };
    for request in [send, ephemeral, skipping, wrong_key] {
        let mut batch =
            Mailboxes::new(store.clone(), bounds, mail::WAKE_AFTER).serve(vec![MailRequest::Send(request)]).await;
        all.push(refused(batch.answers.remove(0).unwrap_err().refusal().into()));
    }
    all
}

/// However many devices connect at once, the look-ups of their tokens take one statement, their connects two, and their
/// disconnects one. Only a device that connects twice needs another.
#[tokio::test]
async fn connects_of_a_batch_share_their_statements() {
    let statements = Statements::default();
    let dispatches = statements.dispatches();
    let _logging = tracing::dispatcher::set_default(&dispatches[0]);
    let store = Store::open(&Services::shared().database().await, settings(1)).await.unwrap();
    let mut devices = Vec::new();
    for name in ["alice", "bob", "carol"] {
        devices.push(mail::member(&store, name).await);
    }
    let lookups = devices.iter().map(|caller| TokenLookup { hash: hash(caller.session), now: later(1) });
    let unknown = TokenLookup { hash: [9; 32], now: later(1) };
    statements.take();
    let found = store.look_up_tokens(lookups.chain([unknown]).collect()).await;
    assert_eq!(statements.take().len(), 1);
    let found = found.into_iter().map(|found| found.unwrap().and_then(|found| found.presented_before()));
    let found: Vec<_> = found.map(|session| session.map(|session| session.caller)).collect();
    assert_eq!(found, [Some(devices[0]), Some(devices[1]), Some(devices[2]), None]);

    let connect = |caller: &Caller| ConnectionRegistration { caller: *caller, now: later(2) };
    let opened = store.register_connections(devices.iter().map(connect).collect()).await;
    assert_eq!(statements.take().len(), 2);
    let opened: Vec<_> = opened.into_iter().map(Result::unwrap).collect();
    assert!(opened.iter().all(|one| one.epoch == 1 && one.keys.suite.is_some() && one.mailbox.waiting == 0));
    let (alice, bob) = (&devices[0], &devices[1]);
    let opened = store.register_connections([alice, bob, alice].map(connect).to_vec()).await;
    assert_eq!(statements.take().len(), 3);
    assert_eq!(opened.into_iter().map(|one| one.unwrap().epoch).collect::<Vec<_>>(), [2, 2, 3]);

    store.touch_devices(&devices.iter().map(|caller| (caller.device, later(3))).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(statements.take().len(), 1);
    for caller in &devices {
        assert_eq!(store.list_devices(caller, later(4)).await.unwrap()[0].last_seen, Some(later(3)));
    }
}

/// The statements decide which rows are read and locked, and so how long an answer takes.
#[tokio::test]
async fn a_user_who_refuses_a_caller_takes_the_statements_of_one_that_does_not_exist() {
    let statements = Statements::default();
    let dispatches = statements.dispatches();
    let _logging = tracing::dispatcher::set_default(&dispatches[0]);
    let url = Services::shared().database().await;
    let store = Store::open(&url, settings(1)).await.unwrap();
    let (alice, bob) = (mail::member(&store, "alice").await, mail::member(&store, "bob").await);
    let settings = AccessSettings { key: Some(AccessKey([7; 16])), strangers: Strangers::Refuse };
    store.set_access(&bob, &NewAccess { settings, sealed: false }, later(1)).await.unwrap();
    store.add_block(&bob, alice.user, later(1)).await.unwrap();
    let nobody = Caller { user: UserId(Uuid::new_v4()), device: DeviceId(Uuid::new_v4()), ..bob };
    let of_bob = requests(&store, &alice, &bob, &email("bob"), &statements).await;
    let of_nobody = requests(&store, &alice, &nobody, &email("nobody"), &statements).await;
    assert_eq!(of_bob, of_nobody);
    assert!(of_bob.iter().all(|(refusal, run)| *refusal == Refusal::NotFound && !run.is_empty()), "{of_bob:?}");
    // It is the statements of the store that are compared.
    let looked_up = |run: &[String]| run.iter().filter(|text| text.contains("block_count")).count();
    assert_eq!(of_bob.iter().filter(|(_, run)| looked_up(run) > 0).count(), 8, "{of_bob:?}");
}
