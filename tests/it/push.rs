//! Push wake-ups: targets and their confirmation, when a device is woken, and what push services may answer.

mod confirmations;
mod sweep;

use std::{
    fs,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::{
    metrics::Scrape,
    support::{
        Cluster, Codec, Member, Person, ServerProcess, Services, Socket, TestApp,
        app_push::{AppPush, AppPushService},
        code, eventually,
        push_service::{Answer, Push, PushService, Subscription, verified_claims},
    },
};

const ON: [(&str, &str); 2] = [("PUSH__ALLOW_INSECURE", "true"), ("PUSH__AFTER_MS", "100")];

/// Registers a subscription, and confirms it with the nonce that is pushed to it. Returns the nonce.
async fn register(socket: &Socket, service: &PushService, subscription: &Subscription) -> String {
    let before = service.pushes(subscription).len();
    let registered = socket.request("push.register", subscription.params()).await;
    assert_eq!(registered, json!({ "state": "unconfirmed" }));
    let pushes = service.arrived(subscription, before + 1).await;
    let plain = subscription.decrypt(&pushes[before]);
    assert_eq!(plain["sealwire"], "confirm");
    let confirmed = socket.request("push.confirm", json!({ "nonce": plain["nonce"] })).await;
    assert_eq!(confirmed, json!({ "state": "active" }));
    plain["nonce"].as_str().unwrap().to_owned()
}

/// A sender, and a receiver with a confirmed subscription that has closed its socket.
async fn away(app: &TestApp, service: &PushService) -> (Member, Member, Subscription) {
    let alice = Member::join(app, "alice@example.org", Codec::Json).await;
    let bob = Member::join(app, "bob@example.org", Codec::MsgPack).await;
    let subscription = service.subscribe();
    register(&bob.socket, service, &subscription).await;
    (alice, bob, subscription)
}

fn wakes(pushes: &[Push]) -> usize {
    pushes.iter().filter(|push| push.header("topic") == "sealwire-wake").count()
}

async fn woken(service: &PushService, subscription: &Subscription, times: usize) {
    eventually("the device is woken", || async { (wakes(&service.pushes(subscription)) >= times).then_some(()) }).await;
}

/// The number of pushes with this outcome so far.
async fn outcomes(admin: SocketAddr, outcome: &str) -> f64 {
    Scrape::of(admin).await.sum("sealwire_pushes_total", &[&format!("outcome=\"{outcome}\"")])
}

/// Connects again, and returns the state of the target in the welcome.
async fn reconnected(app: &TestApp, member: &mut Member) -> Value {
    member.reconnect(app, Codec::Json).await;
    member.socket.welcome["push"]["state"].clone()
}

/// Like [`reconnected`], with a connection of its own: the member's is closed.
async fn state(app: &TestApp, member: &Member) -> Value {
    let socket = Socket::connect(app, &member.person.token, Codec::Json).await;
    socket.welcome["push"]["state"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_is_confirmed_through_the_push_itself() {
    let app = TestApp::start(&ON);
    let service = PushService::start().await;
    let mut bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    let welcome = bob.socket.welcome.clone();
    assert!(welcome["features"].as_array().unwrap().contains(&json!("push")), "{welcome}");
    assert_eq!((&welcome["push"]["state"], &welcome["push"]["kinds"]), (&json!("none"), &json!(["webpush"])));
    let public_key = welcome["push"]["vapid_public_key"].as_str().unwrap();

    let subscription = service.subscribe();
    assert_eq!(bob.socket.request("push.register", subscription.params()).await, json!({ "state": "unconfirmed" }));
    let push = service.arrived(&subscription, 1).await.remove(0);
    assert_eq!(push.header("content-encoding"), "aes128gcm");
    assert_eq!((push.header("ttl"), push.header("urgency")), ("600", "high"));
    let claims = verified_claims(&push, public_key);
    assert_eq!(claims["aud"], format!("http://{}", service.address));
    assert_eq!(claims["sub"], "mailto:sealwire@localhost");
    let plain = subscription.decrypt(&push);
    assert_eq!(plain["nonce"].as_str().unwrap().len(), 22);
    assert_eq!(reconnected(&app, &mut bob).await, "unconfirmed");

    for nonce in ["", "x", "AAAAAAAAAAAAAAAAAAAAAA"] {
        assert_eq!(code(&bob.socket.refused("push.confirm", json!({ "nonce": nonce })).await), "not_found");
    }
    for _ in 0..2 {
        let confirmed = bob.socket.request("push.confirm", json!({ "nonce": plain["nonce"] })).await;
        assert_eq!(confirmed, json!({ "state": "active" }), "also when it is repeated");
    }
    assert_eq!(reconnected(&app, &mut bob).await, "active");

    // The same target again changes nothing, and nothing is sent.
    assert_eq!(bob.socket.request("push.register", subscription.params()).await, json!({ "state": "active" }));
    assert_eq!(bob.socket.request("push.test", json!({})).await, json!({}));
    let pushes = service.arrived(&subscription, 2).await;
    assert_eq!((pushes[1].header("topic"), pushes[1].header("ttl")), ("sealwire-wake", "21600"));
    assert_eq!(pushes[0].body.len(), pushes[1].body.len(), "the length does not show what a push says");
    assert_eq!(code(&bob.socket.refused("push.test", json!({})).await), "rate_limited");

    for _ in 0..2 {
        assert_eq!(bob.socket.request("push.remove", json!({})).await, json!({}), "also when it is repeated");
    }
    assert_eq!(reconnected(&app, &mut bob).await, "none");
    assert_eq!(code(&bob.socket.refused("push.confirm", json!({ "nonce": plain["nonce"] })).await), "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nonce_is_of_no_use_after_ten_minutes_and_a_device_registers_five_times_an_hour() {
    let app = TestApp::with_clock(&ON);
    let service = PushService::start().await;
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    let first = service.subscribe();
    bob.socket.request("push.register", first.params()).await;
    let push = service.arrived(&first, 1).await.remove(0);
    app.advance(Duration::from_mins(10));
    let nonce = first.decrypt(&push)["nonce"].clone();
    assert_eq!(code(&bob.socket.refused("push.confirm", json!({ "nonce": nonce })).await), "not_found");
    for _ in 0..4 {
        bob.socket.request("push.register", service.subscribe().params()).await;
    }
    let refused = bob.socket.refused("push.register", service.subscribe().params()).await;
    assert_eq!(code(&refused), "rate_limited");
    assert!(refused["retry_after_ms"].as_u64().unwrap() <= 3_000_000, "{refused}");
    app.advance(Duration::from_mins(50));
    bob.socket.request("push.register", service.subscribe().params()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_with_a_malformed_field_is_refused_with_the_field() {
    let app = TestApp::start(&[]);
    let service = PushService::start().await;
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    let params = |endpoint: &str| {
        let mut params = service.subscribe().params();
        params["endpoint"] = json!(endpoint);
        params
    };
    let with = |field: &str, wrong: Value| {
        let mut params = params("https://push.example/x");
        params[field] = wrong;
        params
    };
    let refused = async |params: Value, field: &str| {
        let error = bob.socket.refused("push.register", params.clone()).await;
        assert_eq!((code(&error), &error["details"]["path"]), ("bad_request", &json!(field)), "{params}: {error}");
        assert!(!error.to_string().contains("push.example"), "{error}");
    };
    for endpoint in [
        "http://push.example/",
        "https://127.0.0.1/",
        "https://10.0.0.1/",
        "https://169.254.169.254/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[64:ff9b::a00:1]/",
        "https://0x7f000001/",
        "https://localhost/",
        "https://user:password@push.example/",
        "file:///etc/passwd",
        "",
    ] {
        refused(params(endpoint), "endpoint").await;
    }
    refused(params(&format!("https://push.example/{}", "x".repeat(5000))), "endpoint").await;
    refused(with("p256dh", json!("AAAA")), "p256dh").await;
    refused(with("p256dh", json!("B".repeat(87))), "p256dh").await;
    refused(with("auth", json!("AAAA")), "auth").await;
    refused(with("auth", Value::Null), "auth").await;
    refused(with("kind", json!("pigeon")), "kind").await;
    refused(json!({ "kind": "fcm", "token": "x" }), "kind").await;
    refused(json!({ "kind": "apns", "token": "00", "topic": "a.b" }), "kind").await;
    assert_eq!(service.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_does_not_ack_is_woken_once_until_it_acks() {
    let app = TestApp::start(&ON);
    let service = PushService::start().await;
    let (alice, bob, subscription) = away(&app, &service).await;
    // Its socket is open, and it does not know that nobody reads it.
    for n in 0..20 {
        alice.send(&[&bob.person], &n.to_string()).await;
    }
    woken(&service, &subscription, 1).await;
    alice.send(&[&bob.person], "another").await;
    // Everything that is due is taken in one order, so a device that is woken later shows that Bob is not due.
    let carol = Member::join(&app, "carol@example.org", Codec::Json).await;
    let other = service.subscribe();
    register(&carol.socket, &service, &other).await;
    alice.send(&[&carol.person], "hello").await;
    woken(&service, &other, 1).await;
    assert_eq!(wakes(&service.pushes(&subscription)), 1);

    // Once it has acked everything, the next message wakes it again.
    for n in 0..20 {
        bob.receives(&n.to_string()).await;
    }
    bob.receives("another").await;
    alice.send(&[&bob.person], "later").await;
    woken(&service, &subscription, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_device_that_acks_in_time_nor_one_with_only_messages_that_are_not_urgent_is_woken() {
    let app = TestApp::start(&[("PUSH__ALLOW_INSECURE", "true"), ("PUSH__AFTER_MS", "3000")]);
    let service = PushService::start().await;
    let (alice, bob, subscription) = away(&app, &service).await;
    alice.send(&[&bob.person], "read at once").await;
    bob.receives("read at once").await;
    let mut quiet = crate::support::mailing::message(&[&bob.person], "not urgent");
    quiet["urgent"] = json!(false);
    alice.socket.request("messages.send", quiet).await;
    let mut ephemeral = crate::support::mailing::message(&[&bob.person], "ephemeral");
    ephemeral["ephemeral"] = json!(true);
    alice.socket.request("messages.send", ephemeral).await;
    let carol = Member::join(&app, "carol@example.org", Codec::Json).await;
    let other = service.subscribe();
    register(&carol.socket, &service, &other).await;
    alice.send(&[&carol.person], "urgent").await;
    woken(&service, &other, 1).await;
    assert_eq!(wakes(&service.pushes(&subscription)), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_woken_again_after_six_hours_while_its_messages_wait() {
    let app = TestApp::with_clock(&ON);
    let service = PushService::start().await;
    let (alice, bob, subscription) = away(&app, &service).await;
    alice.send(&[&bob.person], "hello").await;
    app.advance(Duration::from_millis(100));
    woken(&service, &subscription, 1).await;
    for times in 2..4 {
        // The outcome of the last push is written before the next one can be due.
        eventually("the device is woken again", || async {
            app.advance(Duration::from_mins(30));
            (wakes(&service.pushes(&subscription)) >= times).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_gone_is_removed_unless_the_device_has_registered_another_meanwhile() {
    let app = TestApp::start(&ON);
    let service = PushService::start().await;
    let (alice, bob, subscription) = away(&app, &service).await;
    service.answer(&subscription, Answer::Status(410, ""));
    alice.send(&[&bob.person], "hello").await;
    eventually("the target is removed", || async { (state(&app, &bob).await == "none").then_some(()) }).await;
    assert!(outcomes(app.admin(), "gone").await >= 1.0);

    // The next registration begins anew. While its push is unanswered, the device registers another target.
    let bob = Member::join(&app, "robert@example.org", Codec::Json).await;
    let old = service.subscribe();
    register(&bob.socket, &service, &old).await;
    let permits = Arc::new(Semaphore::new(0));
    service.answer(&old, Answer::Held(permits.clone(), 410));
    alice.send(&[&bob.person], "hello").await;
    woken(&service, &old, 1).await;
    let new = service.subscribe();
    register(&bob.socket, &service, &new).await;
    let before = outcomes(app.admin(), "gone").await;
    permits.add_permits(1);
    eventually("the answer has arrived", || async { (outcomes(app.admin(), "gone").await > before).then_some(()) })
        .await;
    alice.send(&[&bob.person], "again").await;
    woken(&service, &new, 1).await;
    assert_eq!(state(&app, &bob).await, "active");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_push_service_is_asked_again_after_the_time_that_it_names() {
    let app = TestApp::with_clock(&ON);
    let service = PushService::start().await;
    let (alice, bob, subscription) = away(&app, &service).await;
    service.answer(&subscription, Answer::Status(429, "retry-after: 120\r\n"));
    alice.send(&[&bob.person], "hello").await;
    app.advance(Duration::from_millis(100));
    woken(&service, &subscription, 1).await;
    eventually("the answer is counted", || async { (outcomes(app.admin(), "later").await >= 1.0).then_some(()) }).await;
    service.answer(&subscription, Answer::Status(201, ""));
    eventually("the failure is recorded", || async {
        let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}", app.database().display())).await.unwrap();
        let (failures,): (i64,) =
            sqlx::query_as("SELECT SUM(failures) FROM push_targets").fetch_one(&pool).await.unwrap();
        pool.close().await;
        (failures == 1).then_some(())
    })
    .await;
    app.advance(Duration::from_secs(119));
    // A device that becomes due now shows that Bob is not.
    let carol = Member::join(&app, "carol@example.org", Codec::Json).await;
    let other = service.subscribe();
    register(&carol.socket, &service, &other).await;
    alice.send(&[&carol.person], "hello").await;
    app.advance(Duration::from_millis(100));
    woken(&service, &other, 1).await;
    assert_eq!(wakes(&service.pushes(&subscription)), 1);
    app.advance(Duration::from_secs(1));
    woken(&service, &subscription, 2).await;
}

/// A push service that hangs, drips, answers garbage or redirects delays nobody else, and nothing is requested that it
/// leads to.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_push_service_affects_only_its_own_devices() {
    let app = TestApp::start(&ON);
    let (hostile, honest, elsewhere) =
        (PushService::start().await, PushService::start().await, PushService::start().await);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let target = format!("http://{}/push/x", elsewhere.address);
    let mut victims = Vec::new();
    for (n, answer) in [
        Answer::Never,
        Answer::Drip,
        Answer::Garbage,
        Answer::Redirect(target.clone()),
        Answer::Status(500, ""),
        Answer::Status(403, ""),
        Answer::Status(101, ""),
    ]
    .into_iter()
    .enumerate()
    {
        let member = Member::join(&app, &format!("victim{n}@example.org"), Codec::Json).await;
        let subscription = hostile.subscribe();
        register(&member.socket, &hostile, &subscription).await;
        hostile.answer(&subscription, answer);
        victims.push((member, subscription));
    }
    for (member, _) in &victims {
        alice.send(&[&member.person], "hello").await;
    }
    for (_, subscription) in &victims {
        woken(&hostile, subscription, 1).await;
    }
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    let subscription = honest.subscribe();
    register(&bob.socket, &honest, &subscription).await;
    alice.send(&[&bob.person], "hello").await;
    woken(&honest, &subscription, 1).await;
    assert_eq!(elsewhere.connections(), 0, "redirects are not followed");
    let failed = async |outcome: &str| outcomes(app.admin(), outcome).await;
    eventually("the failures are counted", || async {
        (failed("later").await + failed("rejected").await >= 4.0).then_some(())
    })
    .await;
    assert!(failed("accepted").await >= 9.0);
}

/// Names of this machine and of its network are not looked up at all. (Names with dots that lead there are refused when
/// they are looked up: see the tests of `sealwire-push`, which bring their own names.)
#[tokio::test(flavor = "multi_thread")]
async fn names_of_the_local_network_are_refused() {
    let app = TestApp::start(&[]);
    let service = PushService::start().await;
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    for name in ["localhost", "intranet", "printer."] {
        let mut params = service.subscribe().params();
        params["endpoint"] = json!(format!("https://{name}:{}/x", service.address.port()));
        let refused = bob.socket.refused("push.register", params).await;
        assert_eq!(refused["details"]["path"], "endpoint", "{name}");
    }
    assert_eq!(service.connections(), 0);
}

/// Literals are refused at registration, names when they are connected to.
#[tokio::test(flavor = "multi_thread")]
async fn no_push_is_sent_to_a_network_of_the_settings() {
    let app = TestApp::start(&[ON[0], ("PUSH__FORBIDDEN_NETWORKS", "127.0.0.0/8,::1")]);
    let service = PushService::start().await;
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    let port = service.address.port();
    let params = |host: &str| {
        let mut params = service.subscribe().params();
        params["endpoint"] = json!(format!("http://{host}:{port}/x"));
        params
    };
    for host in ["127.0.0.1", "127.1", "2130706433", "127.0.0.2", "[::1]"] {
        let refused = bob.socket.refused("push.register", params(host)).await;
        assert_eq!((code(&refused), &refused["details"]["path"]), ("bad_request", &json!("endpoint")), "{host}");
    }
    let registered = bob.socket.request("push.register", params("localhost")).await;
    assert_eq!(registered, json!({ "state": "unconfirmed" }));
    eventually("the push is rejected", || async { (outcomes(app.admin(), "rejected").await >= 1.0).then_some(()) })
        .await;
    assert_eq!(service.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_goes_with_its_device_and_its_account() {
    let app = TestApp::start(&ON);
    let service = PushService::start().await;
    let (alice, bob, subscription) = away(&app, &service).await;
    bob.socket.request("devices.revoke", json!({ "device_id": bob.person.device })).await;
    let left = || async {
        let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}", app.database().display())).await.unwrap();
        let (targets,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM push_targets").fetch_one(&pool).await.unwrap();
        pool.close().await;
        targets
    };
    assert_eq!(left().await, 0);
    let carol = Member::join(&app, "carol@example.org", Codec::Json).await;
    register(&carol.socket, &service, &service.subscribe()).await;
    assert_eq!(left().await, 1);
    let confirmation = crate::support::http::confirmation(&app, "carol@example.org", "delete").await;
    carol.socket.request("account.delete", confirmation).await;
    assert_eq!(left().await, 0);
    drop(alice);
    assert_eq!(wakes(&service.pushes(&subscription)), 0);
}

/// The JSON of a service account whose tokens this service gives out.
fn fcm_account(url: &str) -> Value {
    json!({
        "project_id": "chat-1",
        "client_email": "server@chat-1.iam.gserviceaccount.com",
        "token_uri": format!("{url}/token"),
        "private_key_id": "1",
        "private_key": include_str!("../../crates/push/tests/delivery/keys/account-key.pem"),
    })
}

#[test]
fn the_command_in_push_md_makes_a_key_that_the_settings_accept() {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/push.md")).unwrap();
    let command = text.lines().find(|line| line.starts_with("openssl genpkey")).unwrap();
    let made = std::process::Command::new("sh").args(["-c", command]).output().unwrap();
    sealwire_push::VapidKey::parse(std::str::from_utf8(&made.stdout).unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_logged_or_shown() {
    let (service, apps) = (PushService::start().await, AppPushService::start().await);
    let (apns_key, url) = (sealwire_push::VapidKey::generate().unwrap(), apps.url());
    let account = fcm_account(&url);
    let account_text = account.to_string();
    let server = ServerProcess::start(&[
        ON[0],
        ON[1],
        ("RUST_LOG", "trace"),
        ("PUSH__APNS_KEY", &apns_key),
        ("PUSH__APNS_KEY_ID", "ABCDE12345"),
        ("PUSH__APNS_TEAM_ID", "TEAM123456"),
        ("PUSH__APNS_URL", &url),
        ("PUSH__FCM_ACCOUNT", &account_text),
        ("PUSH__FCM_URL", &url),
    ])
    .await;
    let mut secrets = Vec::new();
    let alice = Member::join(&server, "alice@example.org", Codec::Json).await;
    let bob = Member::join(&server, "bob@example.org", Codec::Json).await;
    let subscription = service.subscribe();
    secrets.push(register(&bob.socket, &service, &subscription).await);
    secrets.extend(subscription.secrets());
    let (apns_token, fcm_token) = ("5ec4e7".repeat(12), "a-registration:5ec4e7-token");
    let apns_path = format!("/3/device/{apns_token}");
    let fcm_path = "/v1/projects/chat-1/messages:send";
    let carol = Member::join(&server, "carol@example.org", Codec::MsgPack).await;
    let dave = Member::join(&server, "dave@example.org", Codec::Json).await;
    for (member, target, path) in [
        (&carol, json!({ "kind": "apns", "token": apns_token, "topic": "org.example.chat" }), &*apns_path),
        (&dave, json!({ "kind": "fcm", "token": fcm_token }), fcm_path),
    ] {
        member.socket.request("push.register", target).await;
        let nonce = content_of(&apps.arrived(path, 1).await[0])["nonce"].as_str().unwrap().to_owned();
        member.socket.request("push.confirm", json!({ "nonce": nonce })).await;
        secrets.push(nonce);
        // A service may say in its answer what was sent to it.
        apps.answer(path, 400, json!({ "reason": apns_token, "error": { "message": fcm_token } }));
    }
    secrets.extend([apns_token, fcm_token.to_owned(), "an-access-token".to_owned(), apns_key.to_string()]);
    let private_key = account["private_key"].as_str().unwrap().lines().nth(3).unwrap();
    secrets.push(private_key.to_owned());

    service.answer(&subscription, Answer::Garbage);
    for member in [&bob, &carol, &dave] {
        alice.send(&[&member.person], "hello").await;
    }
    woken(&service, &subscription, 1).await;
    apps.arrived(&apns_path, 2).await;
    apps.arrived(fcm_path, 2).await;
    let failed = ["webpush", "apns", "fcm"].map(|kind| format!("kind=\"{kind}\""));
    eventually("the failures are counted", || async {
        let scrape = Scrape::of(server.admin()).await;
        let count = |kind: &str, outcome| scrape.sum("sealwire_pushes_total", &[kind, outcome]);
        let has_failed = |kind: &String| count(kind, "outcome=\"later\"") + count(kind, "outcome=\"rejected\"") >= 1.0;
        failed.iter().all(has_failed).then_some(())
    })
    .await;

    // What clients get wrong is not repeated either.
    let mut errors = String::new();
    let mut wrong = subscription.params();
    wrong["endpoint"] = json!(format!("{}#", subscription.endpoint));
    for params in [
        wrong,
        json!({ "kind": "apns", "token": format!("{}x", "5ec4e7".repeat(12)), "topic": "org.example.chat" }),
        json!({ "kind": "fcm", "token": format!("{fcm_token} ") }),
    ] {
        errors += &bob.socket.refused("push.register", params).await.to_string();
    }
    errors += &bob.socket.refused("push.confirm", json!({ "nonce": format!("{}x", secrets[0]) })).await.to_string();

    let log = fs::read_to_string(server.path("server.log")).unwrap();
    assert!(log.contains("a push has failed"));
    let shown = async |path: &str| {
        reqwest::get(format!("http://{}{path}", server.admin())).await.unwrap().text().await.unwrap()
    };
    let configured = server.command(&["check-config"]);
    let all = [log, shown("/status").await, shown("/metrics").await, errors, configured].concat();
    secrets.push(fs::read_to_string(server.path("sealwire.db-vapid")).unwrap().trim().to_owned());
    for secret in secrets {
        assert!(secret.len() > 10 && !all.contains(&secret), "{secret}");
    }
    assert_eq!(rustix::fs::stat(server.path("sealwire.db-vapid")).unwrap().st_mode & 0o777, 0o600);
}

/// Registers a target of an app, confirms it by the push to this path, and wakes its device. Returns the two pushes.
async fn wake_app(app: &TestApp, service: &AppPushService, member: &Member, target: Value, path: &str) -> [AppPush; 2] {
    let alice = Member::join(app, "alice@example.org", Codec::Json).await;
    assert_eq!(member.socket.request("push.register", target).await, json!({ "state": "unconfirmed" }));
    let confirm = service.arrived(path, 1).await.remove(0);
    let content = content_of(&confirm);
    assert_eq!(content["sealwire"], "confirm");
    let confirmed = member.socket.request("push.confirm", json!({ "nonce": content["nonce"] })).await;
    assert_eq!(confirmed, json!({ "state": "active" }));
    alice.send(&[&member.person], "hello").await;
    let wake = service.arrived(path, 2).await.remove(1);
    assert_eq!(content_of(&wake)["sealwire"], "wake");
    // Once it has acked, the next message wakes it again.
    member.receives("hello").await;
    alice.send(&[&member.person], "again").await;
    service.arrived(path, 3).await;
    [confirm, wake]
}

/// The fields of a push: under `data` for FCM, at the top level for APNs.
fn content_of(push: &AppPush) -> &Value {
    if push.body["message"].is_null() { &push.body } else { &push.body["message"]["data"] }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_on_a_device_of_apple_is_woken() {
    let service = AppPushService::start().await;
    let (url, key) = (service.url(), sealwire_push::VapidKey::generate().unwrap());
    let app = TestApp::start(&[
        ON[0],
        ON[1],
        ("PUSH__APNS_KEY", &key),
        ("PUSH__APNS_KEY_ID", "ABCDE12345"),
        ("PUSH__APNS_TEAM_ID", "TEAM123456"),
        ("PUSH__APNS_ALERT", "Neue Nachrichten"),
        ("PUSH__APNS_URL", "http://127.0.0.1:9"),
        ("PUSH__APNS_SANDBOX_URL", &url),
    ]);
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    assert_eq!(bob.socket.welcome["push"]["kinds"], json!(["webpush", "apns"]));
    let token = "ab".repeat(32);
    let path = format!("/3/device/{token}");
    let target = json!({ "kind": "apns", "token": token, "topic": "org.example.chat", "sandbox": true });
    let [confirm, wake] = wake_app(&app, &service, &bob, target, &path).await;
    assert_eq!(wake.body["aps"], json!({ "alert": { "body": "Neue Nachrichten" }, "mutable-content": 1 }));
    assert_eq!((&*wake.headers["apns-topic"], &*wake.headers["apns-push-type"]), ("org.example.chat", "alert"));
    assert_ne!(wake.headers["apns-collapse-id"], confirm.headers["apns-collapse-id"]);
    assert!(wake.headers["authorization"].starts_with("bearer "));

    service.answer(&path, 410, json!({ "reason": "Unregistered" }));
    bob.receives("again").await;
    let carol = Member::join(&app, "carol@example.org", Codec::Json).await;
    carol.send(&[&bob.person], "the last").await;
    eventually("the target is removed", || async { (state(&app, &bob).await == "none").then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_firebase_reaches_is_woken() {
    let service = AppPushService::start().await;
    let url = service.url();
    let account = fcm_account(&url);
    let app = TestApp::start(&[ON[0], ON[1], ("PUSH__FCM_ACCOUNT", &account.to_string()), ("PUSH__FCM_URL", &url)]);
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    assert_eq!(bob.socket.welcome["push"]["kinds"], json!(["webpush", "fcm"]));
    let path = "/v1/projects/chat-1/messages:send";
    let target = json!({ "kind": "fcm", "token": "a-registration:token" });
    let [_, wake] = wake_app(&app, &service, &bob, target, path).await;
    let message = &wake.body["message"];
    assert_eq!((&message["token"], &message["android"]["priority"]), (&json!("a-registration:token"), &json!("HIGH")));
    assert!(message["notification"].is_null(), "the app decides what is shown");
    assert_eq!(wake.headers["authorization"], "Bearer an-access-token");

    let unregistered =
        json!({ "@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": "UNREGISTERED" });
    service.answer(path, 404, json!({ "error": { "code": 404, "details": [unregistered] } }));
    bob.receives("again").await;
    let carol = Member::join(&app, "carol@example.org", Codec::Json).await;
    carol.send(&[&bob.person], "the last").await;
    eventually("the target is removed", || async { (state(&app, &bob).await == "none").then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_records_the_wake_ups_that_it_has_sent() {
    let mut server = ServerProcess::start(&ON).await;
    let service = PushService::start().await;
    let alice = Member::join(&server, "alice@example.org", Codec::Json).await;
    let bob = Member::join(&server, "bob@example.org", Codec::Json).await;
    let subscription = service.subscribe();
    register(&bob.socket, &service, &subscription).await;
    let permits = Arc::new(Semaphore::new(0));
    service.answer(&subscription, Answer::Held(permits.clone(), 201));
    alice.send(&[&bob.person], "hello").await;
    woken(&service, &subscription, 1).await;
    server.send_sigterm();
    bob.socket.close_code().await;
    permits.add_permits(1);
    assert!(server.stopped().await.success());
    let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}", server.path("sealwire.db").display())).await.unwrap();
    let (recorded,): (i64,) =
        sqlx::query_as("SELECT COUNT(*) FROM mailboxes WHERE wake_state = 1").fetch_one(&pool).await.unwrap();
    pool.close().await;
    assert_eq!(recorded, 1);
}

/// Two nodes: the one that accepted the messages is killed before the first wake-up is due, and the other one wakes each device
/// that has not acked once. The wake-ups are due after a minute, until the node is dead: then their times are moved to 1.5
/// seconds after the commits, so that no machine is too slow.
#[tokio::test(flavor = "multi_thread")]
async fn another_node_wakes_each_device_once_if_the_one_that_accepted_the_messages_dies() {
    const AWAY: usize = 1000;
    const PRESENT: usize = 50;
    let key = sealwire_push::VapidKey::generate().unwrap();
    let settings = [
        ON[0],
        ("PUSH__AFTER_MS", "60000"),
        ("PUSH__VAPID_KEY", key.as_str()),
        ("LIMITS__SENDS_PER_DEVICE_SECOND", "0"),
        ("LIMITS__REQUESTS_PER_CONNECTION_SECOND", "0"),
        ("LIMITS__CONNECTS_PER_NETWORK_SECOND", "0"),
    ];
    let mut cluster = Cluster::start(&Services::shared(), 2, &settings).await;
    cluster.wait_for_status("ready").await;
    let service = PushService::start().await;
    let alice = Member::join(&cluster.nodes[0], "alice@example.org", Codec::Json).await;
    let (mut away, mut present) = (Vec::new(), Vec::new());
    for some in seeded(&cluster.nodes[1], AWAY + PRESENT).chunks(64) {
        let registered = join_all(some.iter().map(async |person| {
            let socket = Socket::connect(&cluster.nodes[1], &person.token, Codec::Json).await;
            let subscription = service.subscribe();
            register(&socket, &service, &subscription).await;
            (Member { person: person.clone(), socket }, subscription)
        }));
        for (member, subscription) in registered.await {
            if present.len() < PRESENT {
                present.push((member, subscription));
            } else {
                away.push((member.person, subscription));
            }
        }
    }

    let people: Vec<&Person> =
        present.iter().map(|(member, _)| &member.person).chain(away.iter().map(|(person, _)| person)).collect();
    for some in people.chunks(32) {
        join_all(some.iter().map(async |person| alice.send(&[*person], "hello").await)).await;
    }
    join_all(present.iter().map(|(member, _)| member.receives("hello"))).await;
    cluster.nodes[0].kill();
    let due = Instant::now();
    let moved = sqlx::query("UPDATE mailboxes SET wake_at = wake_at - INTERVAL '58500 milliseconds'");
    moved.execute(&mut cluster.sql().await).await.unwrap();

    let times = |subscription: &Subscription| wakes(&service.pushes(subscription));
    eventually("every device that has not acked is woken", || async {
        away.iter().all(|(_, subscription)| times(subscription) > 0).then_some(())
    })
    .await;
    let mut delays: Vec<Duration> = away
        .iter()
        .flat_map(|(_, one)| service.pushes(one))
        .map(|push| push.at.saturating_duration_since(due))
        .collect();
    delays.sort_unstable();
    delays.drain(..delays.len() - AWAY);
    println!(
        "{AWAY} devices woken by the other node: half after {:?}, all after {:?}",
        delays[AWAY / 2],
        delays[AWAY - 1]
    );
    // What came of the pushes is recorded, so no wake-up is due again before six hours.
    eventually("the wake-ups are recorded", || async {
        let recorded = "SELECT COUNT(*) FROM mailboxes WHERE wake_state = 1 AND wake_at > NOW() + INTERVAL '5 hours'";
        let (recorded,): (i64,) = sqlx::query_as(recorded).fetch_one(&mut cluster.sql().await).await.unwrap();
        (recorded == i64::try_from(AWAY).unwrap()).then_some(())
    })
    .await;
    let due: (i64,) = sqlx::query_as("SELECT COUNT(*) FROM mailboxes WHERE wake_state <> 1 AND wake_at IS NOT NULL")
        .fetch_one(&mut cluster.sql().await)
        .await
        .unwrap();
    assert_eq!(due, (0,));
    for (person, subscription) in &away {
        assert_eq!(times(subscription), 1, "{}", person.device);
    }
    for (member, subscription) in &present {
        assert_eq!(times(subscription), 0, "{} has acked", member.person.device);
    }
}

/// Devices that are created in the store, each of its own user.
fn seeded(server: &ServerProcess, devices: usize) -> Vec<Person> {
    let (out, devices) = (server.path("devices.jsonl"), devices.to_string());
    server.command(&["seed", "--users", &devices, "--devices", "1", "--prekeys", "1", "--out", out.to_str().unwrap()]);
    let lines = fs::read_to_string(out).unwrap();
    let person = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = |field: &str| line[field].as_str().unwrap().to_owned();
        let (user, device, token) = (text("user_id"), text("device_id"), text("token"));
        Person { email: String::new(), user, device, session: String::new(), token }
    };
    lines.lines().map(person).collect()
}
