//! The sweep that wakes devices: services that hang, kinds that a node cannot send, refused credentials, and stops.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};

use super::{ON, content_of, register, seeded, wakes, woken};
use crate::{
    metrics::Scrape,
    support::{
        Codec, Member, Person, ServerProcess, Services, Socket, TestApp,
        app_push::AppPushService,
        eventually,
        push_service::{Answer, PushService, Subscription},
    },
};

/// The key of APNs, with its identifiers.
fn apns_settings<'a>(key: &'a str, url: &'a str) -> [(&'a str, &'a str); 5] {
    [
        ("PUSH__APNS_KEY", key),
        ("PUSH__APNS_KEY_ID", "ABCDE12345"),
        ("PUSH__APNS_TEAM_ID", "TEAM123456"),
        ("PUSH__APNS_URL", url),
        ("PUSH__APNS_SANDBOX_URL", url),
    ]
}

fn apns_target(token: &str) -> Value {
    json!({ "kind": "apns", "token": token, "topic": "org.example.chat" })
}

/// Registers a device token of APNs, and confirms it. Returns the path of its pushes.
async fn register_apns(socket: &Socket, service: &AppPushService, token: &str) -> String {
    let path = format!("/3/device/{token}");
    socket.request("push.register", apns_target(token)).await;
    let confirm = service.arrived(&path, 1).await.remove(0);
    socket.request("push.confirm", json!({ "nonce": content_of(&confirm)["nonce"] })).await;
    path
}

/// Devices with confirmed subscriptions, which are spread over these services.
async fn subscribed(server: &ServerProcess, services: &[PushService], devices: usize) -> Vec<(Person, Subscription)> {
    let mut all = Vec::new();
    let seeded: Vec<(usize, Person)> = seeded(server, devices).into_iter().enumerate().collect();
    for some in seeded.chunks(32) {
        let registered = join_all(some.iter().map(async |(n, person)| {
            let service = &services[n % services.len()];
            let socket = Socket::connect(server, &person.token, Codec::Json).await;
            let subscription = service.subscribe();
            register(&socket, service, &subscription).await;
            (person.clone(), subscription)
        }));
        all.extend(registered.await);
    }
    all
}

async fn sqlite(server: &ServerProcess) -> SqliteConnection {
    let url = format!("sqlite://{}", server.path("sealwire.db").display());
    SqliteConnection::connect(&url).await.unwrap()
}

const NO_LIMITS: [(&str, &str); 3] = [
    ("LIMITS__SENDS_PER_DEVICE_SECOND", "0"),
    ("LIMITS__REQUESTS_PER_CONNECTION_SECOND", "0"),
    ("LIMITS__CONNECTS_PER_NETWORK_SECOND", "0"),
];

/// More devices than unproven services have places are due at services that hang; then one of APNs, and one of a service of
/// Web Push that the operator trusts.
#[tokio::test(flavor = "multi_thread")]
async fn services_that_hang_do_not_delay_those_that_the_operator_trusts() {
    let (apns, honest) = (AppPushService::start().await, PushService::start().await);
    let (key, url) = (sealwire_push::VapidKey::generate().unwrap(), apns.url());
    let trusted = honest.address.to_string();
    let mut settings = vec![ON[0], ("PUSH__AFTER_MS", "600000"), ("PUSH__TRUSTED_SERVICES", &trusted)];
    settings.extend(apns_settings(&key, &url));
    settings.extend(NO_LIMITS);
    let server = ServerProcess::start(&settings).await;
    let hostile = join_all((0..40).map(|_| PushService::start())).await;
    let victims = subscribed(&server, &hostile, 1100).await;
    for (n, (_, subscription)) in victims.iter().enumerate() {
        hostile[n % hostile.len()].answer(subscription, Answer::Never);
    }
    let alice = Member::join(&server, "alice@example.org", Codec::Json).await;
    let bob = Member::join(&server, "bob@example.org", Codec::Json).await;
    let carol = Member::join(&server, "carol@example.org", Codec::Json).await;
    let subscription = honest.subscribe();
    register(&bob.socket, &honest, &subscription).await;
    let path = register_apns(&carol.socket, &apns, &"ab".repeat(32)).await;
    let people: Vec<&Person> = victims.iter().map(|(person, _)| person).chain([&bob.person, &carol.person]).collect();
    for some in people.chunks(32) {
        join_all(some.iter().map(async |person| alice.send(&[person], "hello").await)).await;
    }
    let before: usize = hostile.iter().map(PushService::connections).sum();
    // Those of the hostile services first.
    let due = "UPDATE mailboxes SET wake_at = strftime('%Y-%m-%dT%H:%M:%S', 'now', \
        CASE WHEN push_kind = 'webpush' AND device_id <> unhex(?) THEN '-60 seconds' ELSE '-1 seconds' END) || '.000000+00:00' \
        WHERE wake_at IS NOT NULL";
    let device = bob.person.device.replace('-', "");
    let mut database = sqlite(&server).await;
    let moved = sqlx::query(due).bind(device).execute(&mut database).await.unwrap();
    assert_eq!(moved.rows_affected(), 1102);
    woken(&honest, &subscription, 1).await;
    apns.arrived(&path, 2).await;
    let tried = hostile.iter().map(PushService::connections).sum::<usize>() - before;
    assert!(tried <= 512, "{tried} pushes to services that hang have been tried before");
}

/// Two nodes, of which one has no key for Web Push yet: it leaves those wake-ups to the other one.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lacks_a_kind_leaves_its_wake_ups_to_others() {
    let services = Services::shared();
    let (apns, web) = (AppPushService::start().await, PushService::start().await);
    let (apns_key, url) = (sealwire_push::VapidKey::generate().unwrap(), apns.url());
    let vapid_key = sealwire_push::VapidKey::generate().unwrap();
    let database = services.database().await;
    let mut settings = vec![
        ON[0],
        ON[1],
        ("DATABASE__URL", &*database),
        ("BUS__URL", &*services.redis),
        ("AUTH__SECRET", "c2VhbHdpcmUtdGVzdC1zZWNyZXQtMzItYnl0ZXMtISE="),
    ];
    settings.extend(apns_settings(&apns_key, &url));
    let old = ServerProcess::start(&settings).await;
    settings.push(("PUSH__VAPID_KEY", &vapid_key));
    let mut new = ServerProcess::start(&settings).await;

    let alice = Member::join(&old, "alice@example.org", Codec::Json).await;
    let bob = Member::join(&new, "bob@example.org", Codec::Json).await;
    let subscription = web.subscribe();
    register(&bob.socket, &web, &subscription).await;
    new.terminate().await;
    alice.send(&[&bob.person], "hello").await;
    // The old node wakes a device that became due later, so it has looked at Bob's wake-up.
    let carol = Member::join(&old, "carol@example.org", Codec::Json).await;
    let path = register_apns(&carol.socket, &apns, &"ab".repeat(32)).await;
    alice.send(&[&carol.person], "hello").await;
    apns.arrived(&path, 2).await;
    new.restart().await;
    woken(&web, &subscription, 1).await;
}

/// What a service of the operator refuses is counted so that an alert fires; what services of clients do is not.
#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_are_counted_apart_from_what_clients_cause() {
    let (apns, honest) = (AppPushService::start().await, PushService::start().await);
    let (key, url, trusted) = (sealwire_push::VapidKey::generate().unwrap(), apns.url(), honest.address.to_string());
    let mut settings = vec![ON[0], ON[1], ("PUSH__TRUSTED_SERVICES", &*trusted)];
    settings.extend(apns_settings(&key, &url));
    let app = TestApp::with_clock(&settings);
    let hostile = PushService::start().await;
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let mut phones = Vec::new();
    for n in 0..4 {
        let member = Member::join(&app, &format!("phone{n}@example.org"), Codec::Json).await;
        let path = register_apns(&member.socket, &apns, &format!("a{n}").repeat(32)).await;
        apns.answer(&path, 403, json!({ "reason": "InvalidProviderToken" }));
        phones.push(member);
    }
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    let subscription = honest.subscribe();
    register(&bob.socket, &honest, &subscription).await;
    let mallory = Member::join(&app, "mallory@example.org", Codec::Json).await;
    let hostile_subscription = hostile.subscribe();
    register(&mallory.socket, &hostile, &hostile_subscription).await;
    hostile.answer(&hostile_subscription, Answer::Status(500, ""));
    for member in phones.iter().chain([&bob, &mallory]) {
        alice.send(&[&member.person], "hello").await;
    }
    let counted = async |labels: &[&str]| Scrape::of(app.admin()).await.sum("sealwire_pushes_total", labels);
    let refused = ["kind=\"apns\"", "service=\"trusted\"", "reason=\"credentials\""];
    eventually("more refusals than the alert PushCredentials needs", || async {
        app.advance(Duration::from_mins(10));
        (counted(&refused).await > 30.0).then_some(())
    })
    .await;
    woken(&honest, &subscription, 1).await;
    assert!(counted(&["service=\"other\"", "outcome=\"later\"", "reason=\"server_error\""]).await >= 1.0);
    assert!(counted(&["kind=\"webpush\"", "service=\"trusted\"", "outcome=\"accepted\""]).await >= 1.0);
    for outcome in ["later", "rejected", "given_up"] {
        let outcome = format!("outcome=\"{outcome}\"");
        assert!(counted(&["kind=\"webpush\"", "service=\"trusted\"", &outcome]).await < 1.0, "{outcome}");
    }
}

/// Twenty devices are due at a service that hangs: 16 pushes are under way, the others wait for their turn.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_gives_back_the_wake_ups_that_it_has_not_sent() {
    let settings = [ON[0], ON[1], NO_LIMITS[0], NO_LIMITS[1], NO_LIMITS[2]];
    let mut server = ServerProcess::start(&settings).await;
    let service = [PushService::start().await];
    let devices = subscribed(&server, &service, 20).await;
    for (_, subscription) in &devices {
        service[0].answer(subscription, Answer::Never);
    }
    let alice = Member::join(&server, "alice@example.org", Codec::Json).await;
    join_all(devices.iter().map(async |(person, _)| alice.send(&[person], "hello").await)).await;
    let mut database = sqlite(&server).await;
    eventually("all are taken, and as many are sent as a service has places", || async {
        let sent: usize = devices.iter().map(|(_, one)| wakes(&service[0].pushes(one))).sum();
        let mut database = sqlite(&server).await;
        let taken = "SELECT COUNT(*) FROM mailboxes WHERE julianday(wake_at) > julianday('now') + 15.0 / 86400";
        let (taken,): (i64,) = sqlx::query_as(taken).fetch_one(&mut database).await.unwrap();
        (sent == 16 && taken == 20).then_some(())
    })
    .await;
    assert!(server.terminate().await.success());
    let given_back = "SELECT COUNT(*) FROM mailboxes \
        WHERE julianday(wake_at) < (SELECT MAX(julianday(wake_at)) FROM mailboxes) - 10.0 / 86400";
    let (given_back,): (i64,) = sqlx::query_as(given_back).fetch_one(&mut database).await.unwrap();
    assert_eq!(given_back, 4);
}
