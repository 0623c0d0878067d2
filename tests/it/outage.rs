//! Outages of the database: what clients and operators see during the outage, and that everything works again after it.

use std::{
    collections::HashSet,
    fs,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, Message};
use uuid::Uuid;

use crate::support::{
    Codec, Member, Person, Server, ServerProcess, Services, eventually,
    http::{call, post},
    mailing::{content, message},
    problem::assert_problem,
    proxy::Proxy,
    sign_in,
    socket::connect_raw,
};

const READY: &str = "/readyz";
const SECRET: &str = "c2VhbHdpcmUtdGVzdC1zZWNyZXQtMzItYnl0ZXMtISE=";

/// The longest time until a request gets `unavailable`, however many requests wait: ten seconds, and more for a busy
/// machine.
const BOUND: Duration = Duration::from_secs(25);

fn assert_unavailable(error: &Value, what: &str) {
    assert_problem(error, "unavailable", what);
    assert!(error["retry_after_ms"].as_u64().is_some_and(|wait| wait > 0), "{what}: {error}");
}

/// Sends all requests at once on the socket of a device. Each must be refused as `unavailable`. Returns how long the
/// slowest took.
async fn assert_all_unavailable(member: &Member, requests: &[(&str, Value)]) -> Duration {
    let began = Instant::now();
    join_all(requests.iter().map(|(op, params)| async move {
        assert_unavailable(&member.socket.refused(op, params.clone()).await, op);
    }))
    .await;
    began.elapsed()
}

/// Returns a rename with a new name, because the server does not write an unchanged one.
fn rename(me: &Person) -> Value {
    json!({ "device_id": me.device, "name": Uuid::new_v4() })
}

/// Returns requests that read or write the store.
fn requests(me: &Person, peer: &Person) -> Vec<(&'static str, Value)> {
    vec![
        ("messages.send", message(&[peer], "lost?")),
        ("messages.ack", json!({ "seqs": [1] })),
        ("keys.claim", json!({ "user_id": peer.user, "claim_id": Uuid::new_v4() })),
        ("devices.rename", rename(me)),
        ("session.renew", json!({})),
    ]
}

/// Asserts the answers over HTTP without a database: sign-in is refused with a time to retry, and the node is healthy
/// but not ready.
async fn assert_http_is_unavailable(server: &impl Server) {
    let response = reqwest::Client::new()
        .post(format!("http://{}/v1/auth/otp", server.address()))
        .body(json!({ "email": "new@example.org" }).to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
    let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_unavailable(&body["error"], "otp");
    assert_not_ready(server).await;
}

async fn assert_not_ready(server: &impl Server) {
    let (status, body) = call(server, Method::GET, READY, None, None).await;
    let said = json!({ "status": "not_ready", "reasons": ["the store does not answer"] });
    assert_eq!((status, body), (StatusCode::SERVICE_UNAVAILABLE, said));
    assert_eq!(call(server, Method::GET, "/healthz", None, None).await.0, StatusCode::OK);
}

async fn wait_until_ready(server: &impl Server) {
    eventually("the node is ready", || async {
        call(server, Method::GET, READY, None, None).await.0.is_success().then_some(())
    })
    .await;
}

/// Asserts that an upgrade is refused with a time to retry.
async fn assert_upgrade_is_refused(server: &impl Server, person: &Person) {
    match connect_raw(server, Some(&person.token), "sealwire.v1.json").await {
        Err(tungstenite::Error::Http(response)) => {
            assert_eq!(response.status().as_u16(), 503);
            assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
        }
        other => panic!("not refused: {other:?}"),
    }
}

/// Returns the messages that a device has received, in order and without redeliveries, which it gets on a slow machine
/// because it does not ack.
fn envelopes(member: &Member) -> Vec<Value> {
    let mut seqs = HashSet::new();
    let seen = member.socket.seen_events("message").into_iter();
    seen.filter(|event| seqs.insert(event["seq"].as_i64().unwrap())).collect()
}

/// Returns the contents of the messages that a device has received.
fn texts(member: &Member) -> Vec<Value> {
    envelopes(member).into_iter().map(|event| event["content"].clone()).collect()
}

/// Repeats the messages on the same socket until each is accepted. Returns how many had been accepted before.
async fn repeat(member: &Member, sends: &[(&str, Value)]) -> usize {
    let mut duplicates = 0;
    for (op, params) in sends.iter().filter(|(op, _)| *op == "messages.send") {
        let accepted = eventually("a repeated send is accepted", || async {
            member.socket.try_request(op, params.clone()).await.unwrap().ok()
        })
        .await;
        duplicates += usize::from(accepted["duplicate"] == true);
    }
    duplicates
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_fail_on_a_full_disk_and_succeed_again_without_a_restart() {
    let server = ServerProcess::start(&[]).await;
    let alice = Member::join(&server, "alice@example.org", Codec::Json).await;
    let bob = Member::join(&server, "bob@example.org", Codec::MsgPack).await;
    let carol = sign_in(&server, "carol@example.org").await;
    alice.send(&[&bob.person], "first").await;
    bob.receives("first").await;

    let largest = ["sealwire.db", "sealwire.db-wal"].map(|name| fs::metadata(server.path(name)).unwrap().len());
    server.limit_file_size(Some(largest.into_iter().max().unwrap() + 256 * 1024));
    let mut accepted = Vec::new();
    let mut outage = Vec::new();
    // Large messages fill the disk, small ones the rest of it.
    for length in [20_000, 10] {
        loop {
            let text = format!("{} {}", accepted.len(), "x".repeat(length));
            let params = message(&[&bob.person], &text);
            match alice.socket.try_request("messages.send", params.clone()).await.unwrap() {
                Ok(_) => accepted.push(json!(content(&text))),
                Err(error) => {
                    assert_unavailable(&error, "messages.send");
                    outage.push(("messages.send", params));
                    break;
                }
            }
            assert!(accepted.len() < 200, "the disk does not fill");
        }
    }
    // Renames write least, so they fill what is still left.
    let rename = || rename(&alice.person);
    while alice.socket.try_request("devices.rename", rename()).await.unwrap().is_ok() {}
    assert_not_ready(&server).await;
    for _ in 0..3 {
        let mut some = requests(&alice.person, &bob.person);
        // These have nothing to write, so they succeed.
        some.retain(|(op, _)| !["messages.ack", "keys.claim"].contains(op));
        assert_all_unavailable(&alice, &some).await;
        outage.extend(some);
    }
    assert_http_is_unavailable(&server).await;
    let metrics = reqwest::get(format!("http://{}/metrics", server.admin())).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("\nsealwire_database_up 0\n"));
    // Reads still work, so the upgrade is accepted; the socket is closed because its connection cannot be registered.
    alice.socket.barrier().await;
    let mut socket = connect_raw(&server, Some(&carol.token), "sealwire.v1.json").await.unwrap();
    let close = loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Close(frame) => break u16::from(frame.unwrap().code),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(close, 4003);
    let log = fs::read_to_string(server.path("server.log")).unwrap();
    let causes: Vec<&str> = log.lines().filter(|line| line.contains("the database fails")).collect();
    assert!(matches!(causes.len(), 1 | 2), "once a minute: {causes:?}");
    assert!(causes[0].contains("disk I/O error") || causes[0].contains("full"), "{causes:?}");

    server.limit_file_size(None);
    wait_until_ready(&server).await;
    assert_eq!(repeat(&alice, &outage).await, 0, "refused messages were not stored");
    let again: Vec<Value> = outage
        .iter()
        .filter(|(op, _)| *op == "messages.send")
        .map(|(_, params)| params["messages"][0]["content"].clone())
        .collect();
    accepted.extend(again);
    eventually("all messages have arrived", || async { (texts(&bob).len() >= accepted.len()).then_some(()) }).await;
    assert_eq!(texts(&bob), accepted);
    let (status, _) = post(&server, "/v1/auth/otp", json!({ "email": "new@example.org" })).await;
    assert_eq!(status, StatusCode::ACCEPTED);
}

/// Checks what both kinds of PostgreSQL outage have in common, during the outage and after `back` has ended it. Returns
/// how many of the refused messages had been stored.
async fn assert_outage_is_survived(
    server: &impl Server,
    alice: &Member,
    bob: &Member,
    carol: &Person,
    back: impl AsyncFnOnce(),
) -> usize {
    let first = requests(&alice.person, &bob.person);
    let more: Vec<_> = (0..4).map(|n| ("messages.send", message(&[&bob.person], &n.to_string()))).collect();
    // Requests that arrive while the first ones wait for the database must not have to wait much longer.
    let (waited, behind) = tokio::join!(assert_all_unavailable(alice, &first), async {
        let queued = more.iter().enumerate().map(|(n, one)| async move {
            tokio::time::sleep(Duration::from_millis(500 * (n as u64 + 1))).await;
            assert_all_unavailable(alice, std::slice::from_ref(one)).await
        });
        join_all(queued).await.into_iter().max().unwrap()
    });
    assert!(waited < BOUND && behind < BOUND, "{waited:?}, {behind:?}");
    // By now the server knows of the outage.
    let later = requests(&alice.person, &bob.person);
    let waited = assert_all_unavailable(alice, &later).await;
    assert!(waited < Duration::from_secs(15), "{waited:?}");
    assert_http_is_unavailable(server).await;
    let began = Instant::now();
    assert_upgrade_is_refused(server, carol).await;
    assert!(began.elapsed() < BOUND);
    assert!(!alice.socket.is_closed() && !bob.socket.is_closed());

    back().await;
    wait_until_ready(server).await;
    let mut sends = first;
    sends.extend(more);
    sends.extend(later);
    let duplicates = repeat(alice, &sends).await;
    alice.send(&[&bob.person], "last").await;
    let sent = sends.iter().filter(|(op, _)| *op == "messages.send").count();
    eventually("all messages have arrived", || async {
        (texts(bob).last() == Some(&json!(content("last")))).then_some(())
    })
    .await;
    let seen = envelopes(bob);
    let ids: HashSet<&str> = seen.iter().map(|event| event["message_id"].as_str().unwrap()).collect();
    assert_eq!((seen.len(), ids.len()), (sent + 1, sent + 1), "each message arrives once");
    duplicates
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_fail_in_bounded_time_while_postgres_is_down_and_sockets_stay_open() {
    let services = Services::private();
    let database = services.database().await;
    let server = ServerProcess::start(&[("DATABASE__URL", &database), ("AUTH__SECRET", SECRET)]).await;
    let alice = Member::join(&server, "alice@example.org", Codec::Json).await;
    let bob = Member::join(&server, "bob@example.org", Codec::MsgPack).await;
    let carol = sign_in(&server, "carol@example.org").await;
    alice.send(&[&bob.person], "first").await;
    bob.receives("first").await;
    services.control("kill", "postgres").await;
    let back = async || services.control("start", "postgres").await;
    assert_eq!(assert_outage_is_survived(&server, &alice, &bob, &carol, back).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_fail_in_bounded_time_while_postgres_hangs_and_each_message_is_stored_once() {
    let database = Services::shared().database().await;
    let (front, rest) = database.split_once('@').unwrap();
    let (address, name) = rest.split_once('/').unwrap();
    let proxy = Proxy::start(address.parse().unwrap()).await;
    let database = format!("{front}@{}/{name}", proxy.address);
    let server = ServerProcess::start(&[("DATABASE__URL", &database), ("AUTH__SECRET", SECRET)]).await;
    let alice = Member::join(&server, "alice@example.org", Codec::Json).await;
    let bob = Member::join(&server, "bob@example.org", Codec::MsgPack).await;
    let carol = sign_in(&server, "carol@example.org").await;
    alice.send(&[&bob.person], "first").await;
    bob.receives("first").await;
    proxy.stop_forwarding();
    assert_outage_is_survived(&server, &alice, &bob, &carol, async || proxy.resume_forwarding()).await;
}
