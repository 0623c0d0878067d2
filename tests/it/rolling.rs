//! Rolling restarts: nodes restart one after the other under load. A request without a reply can be repeated, and no
//! request is lost or done twice.

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
/// How often each client must reconnect at least: at every restart except the first, when it may be on the other node.
const RECONNECTS: usize = 2 * ROUNDS - 1;
/// Requests of each kind that a client has in flight at the same time.
const PARALLEL: u32 = 4;

/// The address of a node that restarts.
struct NodeAddress(SocketAddr);

impl Server for NodeAddress {
    fn address(&self) -> SocketAddr {
        self.0
    }

    fn mail(&self) -> &Path {
        unreachable!("used only to connect")
    }
}

/// Totals over all clients.
#[derive(Default)]
struct Tally {
    published: AtomicUsize,
    claimed: AtomicUsize,
    unanswered: AtomicUsize,
    /// Requests that were refused with a retryable error.
    refused: AtomicUsize,
    /// Number of closed sockets by close code.
    closes: Mutex<BTreeMap<u16, usize>>,
    /// Device and key id → the claim that got it.
    handed_out: Mutex<BTreeMap<(String, u64), Uuid>>,
}

/// A device that publishes its own keys and claims those of others.
struct Client {
    person: Person,
    addresses: Vec<SocketAddr>,
    /// Index of the node that it is connected to.
    at: usize,
    socket: Socket,
    tally: Arc<Tally>,
}

impl Client {
    /// Sends all requests in parallel, and repeats those that are refused or left unanswered by a close, until all have
    /// succeeded. Returns op, parameters and result of each.
    async fn request_all(&mut self, mut requests: Vec<(&'static str, Value)>) -> Vec<(&'static str, Value, Value)> {
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
                self.reconnect().await;
            } else if let Some(wait) = wait {
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
        }
        answers
    }

    /// Connects to another node, after the wait that the server has asked for.
    async fn reconnect(&mut self) {
        let code = self.socket.close_code().await;
        *self.tally.closes.lock().await.entry(code).or_default() += 1;
        let draining = self.socket.take_event("server.draining");
        // A socket that was just being opened is closed without the event.
        let wait = draining.map_or(0, |draining| draining["reconnect_in_ms"].as_u64().unwrap());
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let (addresses, token, mut next) = (&self.addresses, &self.person.token, self.at);
        let (at, socket) = eventually("a node accepts the connection", || {
            next = (next + 1) % addresses.len();
            let at = next;
            async move { Some((at, Socket::try_connect(&NodeAddress(addresses[at]), token, Codec::MsgPack).await?)) }
        })
        .await;
        (self.at, self.socket) = (at, socket);
    }

    /// Publishes keys and claims as many of others until `stop` is set. Returns the ids of the keys that are stored.
    async fn work(&mut self, seed: usize, users: &[String], stop: &AtomicBool) -> BTreeSet<u64> {
        let mut keys = KeySet::new(Suite::SignalX3dh, seed as u64);
        let mut stored = BTreeSet::new();
        self.request_all(vec![("keys.publish", keys.complete([]))]).await;
        let mut round = 0;
        while !stop.load(Ordering::Relaxed) {
            let first = 1 + round * PARALLEL;
            let mut requests: Vec<_> = (first..first + PARALLEL)
                .map(|id| ("keys.publish", json!({ "one_time_prekeys": [keys.prekey(id)] })))
                .collect();
            requests.extend((0..PARALLEL).map(|index| {
                let user = &users[(seed + (first + index) as usize) % users.len()];
                ("keys.claim", json!({ "user_id": user, "claim_id": Uuid::new_v4() }))
            }));
            for (op, params, answer) in self.request_all(requests).await {
                if op == "keys.publish" {
                    let id = params["one_time_prekeys"][0]["key_id"].as_u64().unwrap();
                    if answer["one_time"]["over_cap"] == json!([id]) {
                        // The pool is full, because no client has claimed from it for a while.
                        continue;
                    }
                    // A repeat finds the key that the first attempt stored, unissued or issued.
                    let kinds = ["accepted", "duplicate", "already_issued"];
                    assert!(kinds.iter().any(|kind| answer["one_time"][kind] == json!([id])), "{answer}");
                    stored.insert(id);
                    self.tally.published.fetch_add(1, Ordering::Relaxed);
                } else {
                    let claim: Uuid = params["claim_id"].as_str().unwrap().parse().unwrap();
                    self.add_claimed_keys(claim, &answer).await;
                }
            }
            round += 1;
        }
        stored
    }

    async fn add_claimed_keys(&self, claim: Uuid, answer: &Value) {
        for bundle in answer["bundles"].as_array().unwrap() {
            let Some(key) = bundle["one_time_prekey"]["key_id"].as_u64() else { continue };
            let device = bundle["device_id"].as_str().unwrap().to_owned();
            let before = self.tally.handed_out.lock().await.insert((device, key), claim);
            assert_eq!(before, None, "a key was handed out twice");
            self.tally.claimed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Waits until all clients are connected and have made progress.
async fn all_make_progress(cluster: &Cluster, tally: &Tally, traffic: &Traffic) {
    let all_devices = f64::from(u32::try_from(CLIENTS + 2 * WRITERS).unwrap());
    eventually("all devices are connected", || async {
        let connected = cluster.nodes.iter().map(|node| value(node.admin(), "sealwire_connected_devices"));
        let connected: f64 = futures_util::future::join_all(connected).await.into_iter().sum();
        (connected >= all_devices).then_some(())
    })
    .await;
    let done = || (tally.published.load(Ordering::Relaxed), traffic.ledger.lock().unwrap().accepted());
    let (published, accepted) = done();
    eventually("the clients make progress", || async {
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
        ("LIMITS__SENDS_PER_PAIR_SECOND", "0"),
        ("DATABASE__MAX_CONNECTIONS", "8"),
        ("SERVER__DRAIN_S", "20"),
    ];
    let mut cluster = Cluster::start(&Services::shared(), 2, &settings).await;
    let addresses: Vec<_> = cluster.nodes.iter().map(Server::address).collect();
    let (tally, stop) = (Arc::new(Tally::default()), Arc::new(AtomicBool::new(false)));
    let mut clients = Vec::new();
    for index in 0..CLIENTS {
        clients.push(sign_in(&cluster.nodes[index % 2], &format!("person{index}@example.org")).await);
    }
    let users: Arc<Vec<String>> = Arc::new(clients.iter().map(|person| person.user.clone()).collect());
    let mut working = Vec::new();
    for (index, person) in clients.iter().enumerate() {
        let socket = Socket::connect(&cluster.nodes[index % 2], &person.token, Codec::MsgPack).await;
        let mut client = Client {
            person: person.clone(),
            addresses: addresses.clone(),
            at: index % 2,
            socket,
            tally: tally.clone(),
        };
        let (users, stop) = (users.clone(), stop.clone());
        working.push(tokio::spawn(async move {
            let stored = client.work(index, &users, &stop).await;
            (client, stored)
        }));
    }

    let writers = user_pairs(&cluster.nodes[0], WRITERS).await;
    let traffic = Traffic::start(&addresses, &writers, Duration::from_millis(5));

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
        assert_eq!(unissued + issued, ids.len() as u64, "every accepted key is in the pool or handed out");
        (stored, left) = (stored + ids.len(), left + unissued);
    }
    let closes = tally.closes.lock().await.clone();
    println!(
        "{stored} keys published, {} claimed, {left} left; {} requests unanswered at a close and {} refused with a \
        retryable error, all repeated; closes {closes:?}",
        tally.claimed.load(Ordering::Relaxed),
        tally.unanswered.load(Ordering::Relaxed),
        tally.refused.load(Ordering::Relaxed),
    );
    assert_eq!(closes.keys().copied().collect::<Vec<_>>(), [4000], "only draining nodes close sockets: {closes:?}");
    assert!(closes[&4000] >= CLIENTS * RECONNECTS, "every client reconnects at each restart: {closes:?}");
    assert!(tally.claimed.load(Ordering::Relaxed) > CLIENTS, "claims got keys");
    let ledger = traffic.report("messages").await;
    let ledger = ledger.lock().unwrap();
    assert_eq!(
        ledger.closes.keys().copied().collect::<Vec<_>>(),
        [4000],
        "only draining nodes close the sockets of writers"
    );
    assert!(
        ledger.closes[&4000] >= 2 * WRITERS * RECONNECTS,
        "every writer reconnects at each restart: {:?}",
        ledger.closes
    );
}
