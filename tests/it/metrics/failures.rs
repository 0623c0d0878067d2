//! Metrics of failures, each of which the tests cause for real. `messages` tests the counters of redelivered and
//! expired messages.

use futures_util::{StreamExt, future::join_all, stream};
use reqwest::{Client, StatusCode};
use sealwire::domain::Suite;
use serde_json::{Value, json};
use sqlx::Executor;
use tokio::{net::TcpListener, time::timeout};
use uuid::Uuid;

use super::{Scrape, wait_for_sample};
use crate::support::{
    Cluster, Codec, KeySet, Member, PATIENCE, RowLock, Server, Services, Socket, TestApp, claiming::owners,
    mailing::content, sign_in,
};

const RETRIES: &str = "sealwire_store_retries_total";

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_loses_its_database_connection_is_retried() {
    let cluster = Cluster::start(&Services::shared(), 1, &[]).await;
    let node = &cluster.nodes[0];
    let owner = owners(node, 1, 2).await.remove(0);
    let alice = Member::join(node, "alice@example.org", Codec::Json).await;
    wait_for_sample(node.admin(), RETRIES, 0.0..=0.0).await;

    // A parallel run of the same claim, which is not committed yet.
    let parallel = "UPDATE one_time_prekeys SET used = TRUE, claimed_by = $1, claimed_at = NOW(), \
         claim_id = '3e1f2d4c-7777-4888-9999-102030405060' WHERE key_id = 1";
    let mut row_lock = RowLock::lock(&cluster, parallel, &alice.person.device).await;
    let claim = json!({ "user_id": owner.person.user, "claim_id": "3e1f2d4c-7777-4888-9999-102030405060" });
    let lose_connection = async {
        row_lock.wait_for_waiters(1).await;
        row_lock.terminate_waiters().await;
        wait_for_sample(node.admin(), RETRIES, 1.0..=1.0).await;
        row_lock.release().await;
    };
    let (answer, ()) = tokio::join!(alice.socket.request("keys.claim", claim), lose_connection);
    assert_eq!(answer["bundles"][0]["one_time"], "claimed");

    let mailbox = "SELECT device_id FROM mailboxes WHERE device_id = $1 FOR UPDATE";
    let mut row_lock = RowLock::lock(&cluster, mailbox, &owner.person.device).await;
    let lose_connection = async {
        row_lock.wait_for_waiters(1).await;
        row_lock.terminate_waiters().await;
        wait_for_sample(node.admin(), RETRIES, 2.0..=2.0).await;
        row_lock.release().await;
    };
    let to = [&owner.person];
    tokio::join!(alice.send(&to, "once"), lose_connection);
    let arrived = owner.socket.event("message").await;
    assert_eq!(arrived["seq"], 1);
    wait_for_sample(node.admin(), RETRIES, 2.0..=2.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_aborted_by_a_deadlock_is_retried() {
    let cluster = Cluster::start(&Services::shared(), 1, &[]).await;
    let node = &cluster.nodes[0];
    let person = sign_in(node, "alice@example.org").await;
    let socket = Socket::connect(node, &person.token, Codec::Json).await;
    let mut keys = KeySet::new(Suite::SignalX3dh, 1);
    socket.request("keys.publish", keys.complete([])).await;
    let device = Uuid::parse_str(&person.device).unwrap();

    // Another transaction has inserted the key and has not committed yet. PostgreSQL aborts the transaction whose
    // deadlock timeout ends first. Because this one is long, that is the server's transaction.
    let mut rival = cluster.sql().await;
    rival.execute("SET deadlock_timeout = '1h'; BEGIN").await.unwrap();
    sqlx::query(
        "INSERT INTO one_time_prekeys (id, device_id, public_key, created_at, key_id) VALUES ($1, $2, $3, NOW(), 1)",
    )
    .bind(Uuid::new_v4())
    .bind(device)
    .bind(vec![5_u8; 33])
    .execute(&mut rival)
    .await
    .unwrap();
    // The publish has locked its device and waits for the signed prekey that is locked here; the rival then waits for
    // the device.
    let signed = "SELECT id FROM signed_prekeys WHERE device_id = $1 FOR UPDATE";
    let mut row_lock = RowLock::lock(&cluster, signed, &person.device).await;
    let publish = socket.request("keys.publish", keys.complete([1]));
    let deadlock = async {
        row_lock.wait_for_waiters(1).await;
        let lock_device = async {
            sqlx::query("SELECT id FROM devices WHERE id = $1 FOR UPDATE")
                .bind(device)
                .execute(&mut rival)
                .await
                .unwrap();
            // It got the lock, so the server's transaction was aborted. It runs again, and waits for this lock in turn.
            rival.execute("ROLLBACK").await.unwrap();
        };
        let complete_the_cycle = async {
            row_lock.wait_for_waiters(2).await;
            row_lock.release().await;
        };
        tokio::join!(lock_device, complete_the_cycle);
    };
    let (published, ()) = tokio::join!(publish, deadlock);
    assert_eq!(published["one_time"]["accepted"], json!([1]), "the rival was rolled back");
    // More than one on a slow machine, on which the server's transaction waits longer than its lock timeout.
    wait_for_sample(node.admin(), RETRIES, 1.0..=f64::MAX).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mails_beyond_the_share_of_their_domain_are_dropped() {
    /// Mails to one domain that the server holds at most: being sent, or waiting to be sent.
    const HELD: u32 = 128;
    const DROPPED: u32 = 7;
    // A mail server that accepts connections and never answers, so that each attempt takes long.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("smtp://{}", silent.local_addr().unwrap());
    let app = TestApp::start(&[("MAILER__URL", &url)]);
    let client = Client::new();
    let otp = format!("http://{}/v1/auth/otp", app.address());
    let request_code = |index: u32| {
        let body = json!({ "email": format!("person{index}@example.org") }).to_string();
        client.post(&otp).body(body).send()
    };
    stream::iter((0..HELD + DROPPED).map(request_code))
        .buffer_unordered(32)
        .for_each(|answer| async { assert_eq!(answer.unwrap().status(), StatusCode::ACCEPTED) })
        .await;
    wait_for_sample(app.admin(), "sealwire_mails_total{outcome=\"dropped\"}", DROPPED.into()..=DROPPED.into()).await;
    let of_domain = "sealwire_mails_dropped_total{reason=\"domain\"}";
    wait_for_sample(app.admin(), of_domain, DROPPED.into()..=DROPPED.into()).await;
    let scrape = Scrape::of(app.admin()).await;
    for outcome in ["sent", "failed"] {
        let ended = scrape.value(&format!("sealwire_mails_total{{outcome=\"{outcome}\"}}"));
        assert!(ended.abs() < f64::EPSILON, "{outcome}: {ended}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_are_dropped_if_redis_hangs_and_the_queue_is_full() {
    const DEVICES: usize = 100;
    let services = Services::private();
    let settings = [
        ("LIMITS__SENDS_PER_DEVICE_SECOND", "0"),
        ("LIMITS__SENDS_PER_PAIR_SECOND", "0"),
        ("LIMITS__REQUESTS_PER_CONNECTION_SECOND", "0"),
    ];
    let cluster = Cluster::start(&services, 1, &settings).await;
    let node = &cluster.nodes[0];
    let out = node.path("seeded.jsonl");
    let (devices, file) = (DEVICES.to_string(), out.to_str().unwrap());
    node.command(&["seed", "--users", "1", "--devices", &devices, "--prekeys", "1", "--out", file]);
    let seeded = std::fs::read_to_string(out).unwrap();
    let seeded: Vec<Value> = seeded.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let alice = sign_in(node, "alice@example.org").await;
    let alice = Socket::connect(node, &alice.token, Codec::MsgPack).await;
    // Each message is 200 KiB and causes a signal to each of these devices, which may be connected to any node.
    let text = "x".repeat(2048);
    let messages: Vec<Value> = seeded
        .iter()
        .map(|device| json!({ "device_id": device["device_id"], "type": 0, "content": content(&text) }))
        .collect();
    let send = || {
        let to = &seeded[0]["user_id"];
        let params = json!({ "message_id": Uuid::new_v4(), "to": to, "ephemeral": true, "messages": messages });
        alice.request("messages.send", params)
    };
    let signals = |scrape: &Scrape| {
        ["published", "dropped"]
            .map(|what| scrape.value(&format!("sealwire_bus_signals_total{{direction=\"{what}\"}}")))
    };
    wait_for_sample(node.admin(), "sealwire_bus_up", 1.0..=1.0).await;
    let [before, none] = signals(&Scrape::of(node.admin()).await);
    assert!(none.abs() < f64::EPSILON);

    // Redis neither refuses nor answers. The connection to it waits two seconds at a time, and the queue fills up.
    services.control("pause", "redis").await;
    let mut sent = 0;
    let filling = async {
        loop {
            join_all((0..64).map(|_| send())).await;
            sent += 64;
            let now = signals(&Scrape::of(node.admin()).await);
            if now[1] > 0.0 {
                return now;
            }
        }
    };
    let [published, dropped] = timeout(PATIENCE, filling).await.expect("the queue is full");
    #[expect(clippy::cast_precision_loss, reason = "there are few")]
    let all = (sent * DEVICES) as f64;
    assert!(
        (published + dropped - before - all).abs() < f64::EPSILON,
        "each of {all} signals is published or dropped: {published} {dropped}"
    );
    services.control("resume", "redis").await;
    wait_for_sample(node.admin(), "sealwire_bus_up", 1.0..=1.0).await;
}
