//! Promises 1 to 5: a one-time prekey is handed out at most once, none is lost, repeats burn nothing, owners are told.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use sealwire::domain::Suite;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::support::{Codec, KeySet, Person, Server, ServerProcess, Socket, TestApp, sign_in};

const OWNERS: usize = 50;
const KEYS: u32 = 200;
const CLAIMERS: usize = 64;
/// The levels that a pool is announced at under the default threshold.
const LEVELS: [u64; 4] = [20, 10, 5, 0];

/// A device with a pool of keys.
struct Owner {
    person: Person,
    socket: Socket,
}

async fn owners(server: &impl Server, count: usize) -> Vec<Owner> {
    let mut owners = Vec::new();
    for index in 0..count {
        let person = sign_in(server, &format!("owner{index}@example.org")).await;
        let socket = Socket::connect(server, &person.token, Codec::MsgPack).await;
        let mut keys = KeySet::new(Suite::SignalX3dh, index as u64);
        socket.request("keys.publish", keys.complete(1..=KEYS / 2)).await;
        let more: Vec<Value> = (KEYS / 2 + 1..=KEYS).map(|id| keys.prekey(id)).collect();
        socket.request("keys.publish", json!({ "one_time_prekeys": more })).await;
        owners.push(Owner { person, socket });
    }
    owners
}

/// One claim to be made: by whom is up to the test, from whom and under which id is not.
#[derive(Clone)]
struct Intent {
    user: String,
    claim: Uuid,
}

/// Every key of every owner is wanted once, in an order that mixes the owners.
fn intents(owners: &[Owner], each: u32) -> Vec<Intent> {
    (0..each)
        .flat_map(|_| owners.iter().map(|owner| Intent { user: owner.person.user.clone(), claim: Uuid::new_v4() }))
        .collect()
}

/// What was handed out: device → key ids, every one with the intent that got it.
#[derive(Default)]
struct Handed {
    keys: BTreeMap<String, BTreeMap<u64, Uuid>>,
}

impl Handed {
    /// Notes a claim's answer, which must hold exactly one claimed key.
    fn note(&mut self, intent: &Intent, answer: &Value) {
        let bundles = answer["bundles"].as_array().unwrap();
        assert_eq!(bundles.len(), 1, "{answer}");
        let bundle = &bundles[0];
        assert_eq!(bundle["one_time"], "claimed", "{bundle}");
        let device = bundle["device_id"].as_str().unwrap().to_owned();
        let key = bundle["one_time_prekey"]["key_id"].as_u64().unwrap();
        let before = self.keys.entry(device).or_default().insert(key, intent.claim);
        assert!(before.is_none_or(|claim| claim == intent.claim), "key {key} was handed out twice");
    }

    fn assert_complete(&self, owners: &[Owner], each: u32) {
        assert_eq!(self.keys.len(), owners.len());
        for (device, keys) in &self.keys {
            assert_eq!(keys.keys().copied().collect::<Vec<_>>(), (1..=u64::from(each)).collect::<Vec<_>>(), "{device}");
            let claims: HashSet<_> = keys.values().collect();
            assert_eq!(claims.len(), keys.len(), "one claim got two keys of {device}");
        }
    }
}

/// No level may be told twice, counts may only fall, and an empty pool must have been told.
fn assert_told_once(events: &[Value], owner: &str) {
    let mut reached = 0;
    for event in events {
        assert_eq!(event["kind"], "one_time");
        assert_eq!(event["threshold"], 20);
        assert_eq!(event["pool_version"], 2, "{owner}");
        let remaining = event["remaining"].as_u64().unwrap();
        let depth = LEVELS.iter().filter(|level| remaining <= **level).count();
        assert!(depth > reached, "{owner} was told of a level again: {events:?}");
        reached = depth;
    }
    assert_eq!(reached, LEVELS.len(), "{owner} was not told that the pool is empty: {events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_sockets_claim_ten_thousand_keys_each_exactly_once() {
    let app = Arc::new(TestApp::start(&[("LIMITS__CLAIM_BURST", "0")]));
    let owners = owners(&*app, OWNERS).await;
    let queue = Arc::new(Mutex::new(intents(&owners, KEYS)));
    let handed = Arc::new(Mutex::new(Handed::default()));
    let mut claimers = Vec::new();
    for index in 0..CLAIMERS {
        let person = sign_in(&*app, &format!("claimer{index}@example.org")).await;
        let (app, queue, handed) = (app.clone(), queue.clone(), handed.clone());
        let codec = Codec::ALL[index % 2];
        claimers.push(tokio::spawn(async move {
            let socket = Socket::connect(&*app, &person.token, codec).await;
            loop {
                let Some(intent) = queue.lock().await.pop() else { break };
                let answer =
                    socket.request("keys.claim", json!({ "user_id": intent.user, "claim_id": intent.claim })).await;
                handed.lock().await.note(&intent, &answer);
            }
            socket
        }));
    }
    let mut sockets = Vec::new();
    for claimer in claimers {
        sockets.push(claimer.await.unwrap());
    }
    handed.lock().await.assert_complete(&owners, KEYS);
    let last =
        sockets[0].request("keys.claim", json!({ "user_id": owners[0].person.user, "claim_id": Uuid::new_v4() })).await;
    assert_eq!(last["bundles"][0]["one_time"], "exhausted");
    assert_eq!(last["bundles"][0]["one_time_prekey"], Value::Null);
    for owner in &owners {
        owner.socket.settle().await;
        let events: Vec<Value> = std::iter::from_fn(|| owner.socket.take_event("prekeys.low")).collect();
        // The one after the welcome came before the first publish, so there is none of it.
        assert_told_once(&events, &owner.person.email);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_and_burns_no_key() {
    let mut server = ServerProcess::start(&[("LIMITS__CLAIM_BURST", "0")]).await;
    let owners = owners(&server, OWNERS).await;
    let total = OWNERS * KEYS as usize;
    let queue = Arc::new(Mutex::new(intents(&owners, KEYS)));
    let handed = Arc::new(Mutex::new(Handed::default()));
    let mut people = Vec::new();
    for index in 0..CLAIMERS {
        people.push(sign_in(&server, &format!("claimer{index}@example.org")).await);
    }
    let endpoint = Arc::new(Endpoint { address: server.address() });
    let claimers: Vec<_> = people
        .into_iter()
        .map(|person| {
            let (endpoint, queue, handed) = (endpoint.clone(), queue.clone(), handed.clone());
            tokio::spawn(claim_through_crashes(endpoint, person, queue, handed))
        })
        .collect();
    crate::support::eventually("half of the keys are claimed", || async {
        (queue.lock().await.len() <= total / 2).then_some(())
    })
    .await;
    server.kill();
    server.restart().await;
    let mut retried = 0;
    for claimer in claimers {
        retried += claimer.await.unwrap();
    }
    assert!(retried > 0, "the server was killed while nobody waited for a reply");
    handed.lock().await.assert_complete(&owners, KEYS);
}

/// Only the address of a server that the test may stop meanwhile.
struct Endpoint {
    address: std::net::SocketAddr,
}

impl Server for Endpoint {
    fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    fn mail(&self) -> &std::path::Path {
        unreachable!("nobody signs in here")
    }
}

/// Claims until the queue is empty, repeating what got no reply with the same id on a new connection; and repeats every
/// tenth that did, which must bring the same key. Gives the number of claims that had to be repeated.
async fn claim_through_crashes(
    endpoint: Arc<Endpoint>,
    person: Person,
    queue: Arc<Mutex<Vec<Intent>>>,
    handed: Arc<Mutex<Handed>>,
) -> usize {
    let mut retried = 0;
    let mut done = 0;
    let mut socket = connect_patiently(&endpoint, &person).await;
    loop {
        let Some(intent) = queue.lock().await.pop() else { return retried };
        let params = json!({ "user_id": intent.user, "claim_id": intent.claim });
        let answer = loop {
            match socket.try_request("keys.claim", params.clone()).await {
                Some(answer) => break answer.unwrap(),
                None => {
                    retried += 1;
                    socket = connect_patiently(&endpoint, &person).await;
                }
            }
        };
        handed.lock().await.note(&intent, &answer);
        done += 1;
        if done % 10 == 0
            && let Some(Ok(again)) = socket.try_request("keys.claim", params).await
        {
            assert_eq!(again, answer, "a repeat brings the same");
        }
    }
}

async fn connect_patiently(endpoint: &Endpoint, person: &Person) -> Socket {
    crate::support::eventually("the server is back", || Socket::try_connect(endpoint, &person.token, Codec::Json)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_repeats_of_one_claim_get_one_key() {
    let app = TestApp::start(&[]);
    let owner = &owners(&app, 1).await[0];
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
async fn past_the_drain_limit_a_bundle_comes_without_a_key() {
    let app = TestApp::with_clock(&[]);
    let owner = &owners(&app, 1).await[0];
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
