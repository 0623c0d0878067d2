//! Claims on one node: a one-time prekey is handed out at most once, none is lost, repeats use up no key, and owners
//! get an event at each low level.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use serde_json::{Value, json};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::support::{
    Codec, Server, ServerProcess, Socket, TestApp,
    claiming::{
        Endpoint, HandedOut, assert_each_level_announced_once, claim_through_crashes, lock_when_at_most, owners,
        pending_claims,
    },
    sign_in,
};

const OWNERS: usize = 50;
const KEYS: u32 = 200;
const CLAIMERS: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_sockets_claim_each_of_ten_thousand_keys_exactly_once() {
    let app = Arc::new(TestApp::start(&[("LIMITS__CLAIM_BURST", "0")]));
    let owners = owners(&*app, OWNERS, KEYS).await;
    let queue = Arc::new(Mutex::new(pending_claims(&owners, KEYS)));
    let handed_out = Arc::new(Mutex::new(HandedOut::default()));
    let mut claimers = Vec::new();
    for index in 0..CLAIMERS {
        let person = sign_in(&*app, &format!("claimer{index}@example.org")).await;
        let (app, queue, handed_out) = (app.clone(), queue.clone(), handed_out.clone());
        let codec = Codec::ALL[index % 2];
        claimers.push(tokio::spawn(async move {
            let socket = Socket::connect(&*app, &person.token, codec).await;
            loop {
                let Some(intent) = queue.lock().await.pop() else { break };
                let answer =
                    socket.request("keys.claim", json!({ "user_id": intent.user, "claim_id": intent.claim })).await;
                handed_out.lock().await.note(&intent, &answer);
            }
            socket
        }));
    }
    let mut sockets = Vec::new();
    for claimer in claimers {
        sockets.push(claimer.await.unwrap());
    }
    handed_out.lock().await.assert_complete(&owners, KEYS);
    let last =
        sockets[0].request("keys.claim", json!({ "user_id": owners[0].person.user, "claim_id": Uuid::new_v4() })).await;
    assert_eq!(last["bundles"][0]["one_time"], "exhausted");
    assert_eq!(last["bundles"][0]["one_time_prekey"], Value::Null);
    for owner in &owners {
        owner.socket.barrier().await;
        let events: Vec<Value> = std::iter::from_fn(|| owner.socket.take_event("prekeys.low")).collect();
        // The owner connected before its first publish, so it got no event after its welcome.
        assert_each_level_announced_once(&events, &owner.person.email);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_lost_or_wasted_if_a_single_server_is_killed() {
    let mut server = ServerProcess::start(&[("LIMITS__CLAIM_BURST", "0")]).await;
    let owners = owners(&server, OWNERS, KEYS).await;
    let total = OWNERS * KEYS as usize;
    let queue = Arc::new(Mutex::new(pending_claims(&owners, KEYS)));
    let handed_out = Arc::new(Mutex::new(HandedOut::default()));
    let mut devices = Vec::new();
    for index in 0..CLAIMERS {
        devices.push(sign_in(&server, &format!("claimer{index}@example.org")).await);
    }
    let address = server.address();
    let claimers: Vec<_> = devices
        .into_iter()
        .map(|person| {
            let (queue, handed_out) = (queue.clone(), handed_out.clone());
            tokio::spawn(claim_through_crashes(vec![Endpoint { address }], person, queue, handed_out))
        })
        .collect();
    // The server is killed while the claimers cannot take the second half of the queue, so they notice the kill.
    let queue_guard = lock_when_at_most(&queue, total / 2).await;
    server.kill();
    drop(queue_guard);
    server.restart().await;
    let mut retried = 0;
    for claimer in claimers {
        retried += claimer.await.unwrap();
    }
    assert!(retried > 0, "no claim was interrupted by the kill");
    handed_out.lock().await.assert_complete(&owners, KEYS);
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_repeats_of_a_claim_get_the_same_key() {
    let app = TestApp::start(&[]);
    let owner = &owners(&app, 1, KEYS).await[0];
    let person = sign_in(&app, "claimer@example.org").await;
    let socket = Socket::connect(&app, &person.token, Codec::Json).await;
    let claim = Uuid::new_v4();
    let params = json!({ "user_id": owner.person.user, "claim_id": claim });
    let repeats = futures_util::future::join_all((0..32).map(|_| socket.request("keys.claim", params.clone()))).await;
    let keys: BTreeSet<u64> =
        repeats.iter().map(|answer| answer["bundles"][0]["one_time_prekey"]["key_id"].as_u64().unwrap()).collect();
    assert_eq!(keys.len(), 1);
    let status = owner.socket.request("keys.status", json!({})).await;
    assert_eq!(status["one_time"], KEYS - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_beyond_the_drain_limit_get_a_bundle_without_a_one_time_prekey() {
    let app = TestApp::with_clock(&[]);
    let owner = &owners(&app, 1, KEYS).await[0];
    let person = sign_in(&app, "claimer@example.org").await;
    let socket = Socket::connect(&app, &person.token, Codec::Json).await;
    let claim = |claim: Uuid| socket.request("keys.claim", json!({ "user_id": owner.person.user, "claim_id": claim }));
    let first = Uuid::new_v4();
    let mut outcomes: HashMap<String, usize> = HashMap::new();
    for index in 0..12 {
        let answer = claim(if index == 0 { first } else { Uuid::new_v4() }).await;
        *outcomes.entry(answer["bundles"][0]["one_time"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(outcomes, HashMap::from([("claimed".to_owned(), 10), ("limited".to_owned(), 2)]));
    let repeat = claim(first).await;
    assert_eq!(repeat["bundles"][0]["one_time"], "claimed", "a repeat is not limited");
    assert_eq!(owner.socket.request("keys.status", json!({})).await["one_time"], KEYS - 10);
    app.advance(std::time::Duration::from_secs(601));
    let later = claim(Uuid::new_v4()).await;
    assert_eq!(later["bundles"][0]["one_time"], "claimed");
    let fetched = socket.request("keys.fetch", json!({ "user_id": owner.person.user })).await;
    assert_eq!(fetched["bundles"][0]["one_time"], "not_requested");
}
