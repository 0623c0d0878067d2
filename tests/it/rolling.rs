//! Rolling restarts: nodes go and come back one after the other while clients work, and no client has to wonder what
//! became of a request.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use sealwire::domain::Suite;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::{
    metrics::value,
    support::{
        Cluster, Codec, KeySet, Person, Server, Services, Socket, eventually, sign_in,
        traffic::{Traffic, user_pairs, wait_until_empty},
    },
};

const CLIENTS: usize = 12;
/// Users who write to each other, with two devices each.
const WRITERS: usize = 5;
const ROUNDS: usize = 2;
/// How often each of them is sent away, at least: always but for the first time, when it may be on the other node.
const MOVES: usize = 2 * ROUNDS - 1;
/// Requests of a client that are under way together.
const TOGETHER: u32 = 4;

/// The address of a node that comes and goes.
struct Door(SocketAddr);

impl Server for Door {
    fn address(&self) -> SocketAddr {
        self.0
    }

    fn mail(&self) -> &Path {
        unreachable!("nobody signs in here")
    }
}

/// What all clients saw.
#[derive(Default)]
struct Tally {
    published: AtomicUsize,
    claimed: AtomicUsize,
    unanswered: AtomicUsize,
    /// Requests that were refused for the moment (`retryable`).
    refused: AtomicUsize,
    /// How sockets ended, by code.
    closes: Mutex<BTreeMap<u16, usize>>,
    /// Device and key id → the claim that got it.
    handed_out: Mutex<BTreeMap<(String, u64), Uuid>>,
}

/// A device that publishes its own keys and claims those of others until it is told to stop.
struct Client {
    person: Person,
    doors: Vec<SocketAddr>,
    /// Which node it is connected to.
    at: usize,
    socket: Socket,
    tally: Arc<Tally>,
}

impl Client {
    /// Has requests answered, all at once: what the close left unanswered is repeated where the client comes back.
    async fn insist(&mut self, mut requests: Vec<(&'static str, Value)>) -> Vec<(&'static str, Value, Value)> {
        let mut answers = Vec::new();
        while !requests.is_empty() {
            let socket = &self.socket;
            let asked = requests.into_iter().map(|(op, params)| async move {
                let answer = socket.try_request(op, params.clone()).await;
                (op, params, answer)
            });
            requests = Vec::new();
            let mut wait = None;
            for (op, params, answer) in futures_util::future::join_all(asked).await {
                match answer {
                    Some(Ok(answer)) => answers.push((op, params, answer)),
                    Some(Err(error)) => {
                        assert_eq!(error["retryable"], true, "{op}: {error}");
                        self.tally.refused.fetch_add(1, Ordering::Relaxed);
                        wait = Some(error["retry_after_ms"].as_u64().unwrap_or(100));
                        requests.push((op, params));
                    }
                    None => {
                        self.tally.unanswered.fetch_add(1, Ordering::Relaxed);
                        requests.push((op, params));
                    }
                }
            }
            if self.socket.is_closed() {
                self.come_back().await;
            } else if let Some(wait) = wait {
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
        }
        answers
    }

    /// Connects to another node, when it was told to.
    async fn come_back(&mut self) {
        let code = self.socket.close_code().await;
        *self.tally.closes.lock().await.entry(code).or_default() += 1;
        let told = self.socket.take_event("server.draining");
        // A socket that was just being opened is closed without the event.
        let wait = told.map_or(0, |told| told["reconnect_in_ms"].as_u64().unwrap());
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let (doors, token, mut next) = (&self.doors, &self.person.token, self.at);
        let (at, socket) = eventually("a node takes the connection", || {
            next = (next + 1) % doors.len();
            let at = next;
            async move { Some((at, Socket::try_connect(&Door(doors[at]), token, Codec::MsgPack).await?)) }
        })
        .await;
        (self.at, self.socket) = (at, socket);
    }

    /// Publishes keys and claims as many of others, again and again. Gives the ids that it was told are stored.
    async fn work(&mut self, seed: usize, users: &[String], stop: &AtomicBool) -> BTreeSet<u64> {
        let mut keys = KeySet::new(Suite::SignalX3dh, seed as u64);
        let mut stored = BTreeSet::new();
        self.insist(vec![("keys.publish", keys.complete([]))]).await;
        let mut round = 0;
        while !stop.load(Ordering::Relaxed) {
            let first = 1 + round * TOGETHER;
            let mut requests: Vec<_> = (first..first + TOGETHER)
                .map(|id| ("keys.publish", json!({ "one_time_prekeys": [keys.prekey(id)] })))
                .collect();
            requests.extend((0..TOGETHER).map(|index| {
                let user = &users[(seed + (first + index) as usize) % users.len()];
                ("keys.claim", json!({ "user_id": user, "claim_id": Uuid::new_v4() }))
            }));
            for (op, params, answer) in self.insist(requests).await {
                if op == "keys.publish" {
                    let id = params["one_time_prekeys"][0]["key_id"].as_u64().unwrap();
                    if answer["one_time"]["over_cap"] == json!([id]) {
                        // Nobody has claimed of this one for a while; it may hold no more.
                        continue;
                    }
                    // A repeat finds what the first try stored, unissued or issued.
                    let kinds = ["accepted", "duplicate", "already_issued"];
                    assert!(kinds.iter().any(|kind| answer["one_time"][kind] == json!([id])), "{answer}");
                    stored.insert(id);
                    self.tally.published.fetch_add(1, Ordering::Relaxed);
                } else {
                    let claim: Uuid = params["claim_id"].as_str().unwrap().parse().unwrap();
                    self.note(claim, &answer).await;
                }
            }
            round += 1;
        }
        stored
    }

    async fn note(&self, claim: Uuid, answer: &Value) {
        for bundle in answer["bundles"].as_array().unwrap() {
            let Some(key) = bundle["one_time_prekey"]["key_id"].as_u64() else { continue };
            let device = bundle["device_id"].as_str().unwrap().to_owned();
            let before = self.tally.handed_out.lock().await.insert((device, key), claim);
            assert_eq!(before, None, "a key was handed out twice");
            self.tally.claimed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Waits until everybody is connected and has got some more done.
async fn all_make_progress(cluster: &Cluster, tally: &Tally, traffic: &Traffic) {
    let everybody = f64::from(u32::try_from(CLIENTS + 2 * WRITERS).unwrap());
    eventually("everybody is back", || async {
        let connected = cluster.nodes.iter().map(|node| value(node.admin(), "sealwire_connected_devices"));
        let connected: f64 = futures_util::future::join_all(connected).await.into_iter().sum();
        (connected >= everybody).then_some(())
    })
    .await;
    let done = || (tally.published.load(Ordering::Relaxed), traffic.ledger.lock().unwrap().accepted());
    let (published, accepted) = done();
    eventually("the clients get on", || async {
        let now = done();
        (now.0 > published + 10 * CLIENTS && now.1 > accepted + 20 * WRITERS).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_restart_one_by_one_under_load_and_no_request_is_lost() {
    let settings = [
        ("LIMITS__CLAIM_BURST", "0"),
        ("LIMITS__SENDS_PER_DEVICE_SECOND", "0"),
        ("DATABASE__MAX_CONNECTIONS", "8"),
        ("SERVER__DRAIN_S", "20"),
    ];
    let mut cluster = Cluster::start(&Services::shared(), 2, &settings).await;
    let doors: Vec<_> = cluster.nodes.iter().map(Server::address).collect();
    let (tally, stop) = (Arc::new(Tally::default()), Arc::new(AtomicBool::new(false)));
    let mut people = Vec::new();
    for index in 0..CLIENTS {
        people.push(sign_in(&cluster.nodes[index % 2], &format!("person{index}@example.org")).await);
    }
    let users: Arc<Vec<String>> = Arc::new(people.iter().map(|person| person.user.clone()).collect());
    let mut working = Vec::new();
    for (index, person) in people.iter().enumerate() {
        let socket = Socket::connect(&cluster.nodes[index % 2], &person.token, Codec::MsgPack).await;
        let mut client =
            Client { person: person.clone(), doors: doors.clone(), at: index % 2, socket, tally: tally.clone() };
        let (users, stop) = (users.clone(), stop.clone());
        working.push(tokio::spawn(async move {
            let stored = client.work(index, &users, &stop).await;
            (client, stored)
        }));
    }

    let writers = user_pairs(&cluster.nodes[0], WRITERS).await;
    let traffic = Traffic::start(&doors, &writers, Duration::from_millis(5));

    for _ in 0..ROUNDS {
        for node in 0..cluster.nodes.len() {
            all_make_progress(&cluster, &tally, &traffic).await;
            assert_eq!(cluster.nodes[node].terminate().await.code(), Some(0));
            cluster.nodes[node].restart().await;
        }
    }
    all_make_progress(&cluster, &tally, &traffic).await;
    stop.store(true, Ordering::Relaxed);
    traffic.finish_writing().await;
    let mut database = cluster.sql().await;
    wait_until_empty!(database);

    let (mut stored, mut left) = (0, 0);
    for client in futures_util::future::join_all(working).await {
        let (client, ids) = client.unwrap();
        let status = client.socket.request("keys.status", json!({})).await;
        let unissued = status["one_time"].as_u64().unwrap();
        let handed_out = tally.handed_out.lock().await;
        let issued = handed_out.keys().filter(|(device, _)| *device == client.person.device).count() as u64;
        assert_eq!(unissued + issued, ids.len() as u64, "every key that was accepted is there or in somebody's hands");
        (stored, left) = (stored + ids.len(), left + unissued);
    }
    let closes = tally.closes.lock().await.clone();
    println!(
        "{stored} keys published, {} claimed, {left} left; {} requests unanswered at a close and {} refused for the \
         moment, all repeated; closes {closes:?}",
        tally.claimed.load(Ordering::Relaxed),
        tally.unanswered.load(Ordering::Relaxed),
        tally.refused.load(Ordering::Relaxed),
    );
    assert_eq!(closes.keys().copied().collect::<Vec<_>>(), [4000], "only a draining node closes: {closes:?}");
    assert!(closes[&4000] >= CLIENTS * MOVES, "every client moved again and again: {closes:?}");
    assert!(tally.claimed.load(Ordering::Relaxed) > CLIENTS, "claims got keys");
    let ledger = traffic.report("messages").await;
    let ledger = ledger.lock().unwrap();
    assert_eq!(ledger.closes.keys().copied().collect::<Vec<_>>(), [4000], "of those who write, too");
    assert!(ledger.closes[&4000] >= 2 * WRITERS * MOVES, "every device moved again and again: {:?}", ledger.closes);
}
