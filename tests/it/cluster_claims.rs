//! Claims on two nodes with one PostgreSQL: each key is handed out once, and none is lost or wasted, even if a node or
//! PostgreSQL crashes.

use std::{
    collections::{BTreeMap, HashMap},
    ops::RangeInclusive,
    sync::Arc,
};

use sealwire::domain::Suite;
use serde_json::{Value, json};
use sqlx::{Connection, Executor};
use tokio::{
    sync::{Mutex, MutexGuard},
    task::JoinHandle,
};
use uuid::Uuid;

use crate::support::{
    Cluster, Codec, KeySet, Person, RowLock, Server, Services, Socket,
    claiming::{
        Endpoint, HandedOut, Owner, PendingClaim, assert_each_level_announced_once, claim_through_crashes,
        lock_when_at_most, owners, pending_claims,
    },
    eventually, sign_in,
};

const OWNERS: usize = 50;
const KEYS: u32 = 400;
const CLAIMERS: usize = 64;
const UNLIMITED: &[(&str, &str)] = &[("LIMITS__CLAIM_BURST", "0")];

/// Claimers that run on two nodes.
struct Claiming {
    queue: Arc<Mutex<Vec<PendingClaim>>>,
    handed_out: Arc<Mutex<HandedOut>>,
    claimers: Vec<JoinHandle<usize>>,
    total: usize,
}

impl Claiming {
    /// Starts 64 claimers, half of them on each node, which claim every key of the owners.
    async fn start(cluster: &Cluster, owners: &[Owner], each: u32) -> Self {
        let wanted = pending_claims(owners, each);
        let total = wanted.len();
        let queue = Arc::new(Mutex::new(wanted));
        let handed_out = Arc::new(Mutex::new(HandedOut::default()));
        let addresses = [cluster.nodes[0].address(), cluster.nodes[1].address()];
        let mut claimers = Vec::new();
        for index in 0..CLAIMERS {
            let person = sign_in(&cluster.nodes[index % 2], &format!("claimer{index}@example.org")).await;
            let endpoints =
                vec![Endpoint { address: addresses[index % 2] }, Endpoint { address: addresses[(index + 1) % 2] }];
            claimers.push(tokio::spawn(claim_through_crashes(endpoints, person, queue.clone(), handed_out.clone())));
        }
        Self { queue, handed_out, claimers, total }
    }

    /// Waits until half of the keys are claimed or about to be. No other claim starts while the returned guard lives.
    async fn half_done(&self) -> MutexGuard<'_, Vec<PendingClaim>> {
        lock_when_at_most(&self.queue, self.total / 2).await
    }

    /// Waits for the claimers, and asserts that every key was handed out exactly once. Returns the number of repeats.
    async fn finish(self, owners: &[Owner], each: u32) -> usize {
        let mut retried = 0;
        for claimer in self.claimers {
            retried += claimer.await.unwrap();
        }
        self.handed_out.lock().await.assert_complete(owners, each);
        retried
    }
}

async fn assert_exhausted(node: &impl Server, owner: &Owner) {
    let person = sign_in(node, "latecomer@example.org").await;
    let socket = Socket::connect(node, &person.token, Codec::Json).await;
    let answer =
        socket.request("keys.claim", json!({ "user_id": owner.person.user, "claim_id": Uuid::new_v4() })).await;
    assert_eq!(answer["bundles"][0]["one_time"], "exhausted");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_hand_out_twenty_thousand_keys_once_each_and_announce_each_level_once() {
    let services = Services::shared();
    let cluster = Cluster::start(&services, 2, UNLIMITED).await;
    let owners = owners(&cluster.nodes[0], OWNERS, KEYS).await;
    let claiming = Claiming::start(&cluster, &owners, KEYS).await;
    claiming.finish(&owners, KEYS).await;
    for owner in &owners {
        let events = eventually("the owner got the event of an empty pool", || async {
            let events = owner.socket.seen_events("prekeys.low");
            events.last().is_some_and(|event| event["remaining"] == 0).then_some(events)
        })
        .await;
        assert_each_level_announced_once(&events, &owner.person.email);
    }
    assert_exhausted(&cluster.nodes[1], &owners[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_lost_or_wasted_if_a_node_is_killed() {
    let services = Services::shared();
    let mut cluster = Cluster::start(&services, 2, UNLIMITED).await;
    let owners = owners(&cluster.nodes[0], OWNERS, KEYS).await;
    let claiming = Claiming::start(&cluster, &owners, KEYS).await;
    let queue_guard = claiming.half_done().await;
    cluster.nodes[1].kill();
    drop(queue_guard);
    let retried = claiming.finish(&owners, KEYS).await;
    assert!(retried > 0, "no claim was interrupted by the kill");
    assert_exhausted(&cluster.nodes[0], &owners[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_lost_or_wasted_if_postgres_is_killed() {
    let services = Services::private();
    let cluster = Cluster::start(&services, 2, UNLIMITED).await;
    let owners = owners(&cluster.nodes[0], OWNERS, KEYS).await;
    let claiming = Claiming::start(&cluster, &owners, KEYS).await;
    drop(claiming.half_done().await);
    services.control("kill", "postgres").await;
    services.control("start", "postgres").await;
    claiming.finish(&owners, KEYS).await;
    assert_exhausted(&cluster.nodes[1], &owners[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_locked_by_a_transaction_that_rolls_back_are_not_lost_or_reported_as_exhausted() {
    const FEW: u32 = 40;
    let services = Services::shared();
    let cluster = Cluster::start(&services, 2, UNLIMITED).await;
    let owners = owners(&cluster.nodes[0], 10, FEW).await;
    let mut rival = cluster.sql().await;
    rival.execute("BEGIN").await.unwrap();
    rival.execute("SELECT id FROM one_time_prekeys WHERE key_id % 4 = 0 FOR UPDATE").await.unwrap();
    let claiming = Claiming::start(&cluster, &owners, FEW).await;
    eventually("only the locked keys are left", || async {
        let handed_out: usize = claiming.handed_out.lock().await.keys.values().map(BTreeMap::len).sum();
        (handed_out == 10 * (FEW as usize * 3 / 4)).then_some(())
    })
    .await;
    rival.execute("ROLLBACK").await.unwrap();
    rival.close().await.unwrap();
    claiming.finish(&owners, FEW).await;
    assert_exhausted(&cluster.nodes[0], &owners[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_of_a_claim_on_another_node_get_the_same_key() {
    let services = Services::shared();
    let cluster = Cluster::start(&services, 2, UNLIMITED).await;
    let owners = owners(&cluster.nodes[0], 1, 100).await;
    let person = sign_in(&cluster.nodes[0], "claimer@example.org").await;
    // One device has one connection at a time, so the repeats come from a connection that moves between the nodes.
    let mut keys: HashMap<Uuid, Value> = HashMap::new();
    for round in 0..20 {
        let socket = Socket::connect(&cluster.nodes[round % 2], &person.token, Codec::Json).await;
        let claim = if round % 2 == 0 { Uuid::new_v4() } else { *keys.keys().last().unwrap() };
        let params = json!({ "user_id": owners[0].person.user, "claim_id": claim });
        let repeats =
            futures_util::future::join_all((0..8).map(|_| socket.request("keys.claim", params.clone()))).await;
        let key = keys.entry(claim).or_insert_with(|| repeats[0].clone());
        assert!(repeats.iter().all(|answer| answer == key));
    }
    let status = owners[0].socket.request("keys.status", json!({})).await;
    assert_eq!(status["one_time"], 90);
}

/// An owner who gets `prekeys.low` events, and a claimer.
struct LowPool {
    owner: Person,
    socket: Socket,
    claimer: Socket,
}

impl LowPool {
    async fn claim(&self) {
        self.claimer.request("keys.claim", json!({ "user_id": self.owner.user, "claim_id": Uuid::new_v4() })).await;
    }

    /// Makes a claim, and a publish between the claim's count of the pool and its announcement of that count. Both need
    /// the device's row, which is locked until both wait for it.
    async fn claim_while_publishing(&self, cluster: &Cluster, more: Value) {
        const LOCK: &str = "SELECT id FROM devices WHERE id = $1 FOR NO KEY UPDATE";
        let mut row_lock = RowLock::lock(cluster, LOCK, &self.owner.device).await;
        let publish = self.socket.request("keys.publish", more);
        let claim_after_it = async {
            row_lock.wait_for_waiters(1).await;
            let release_the_row = async {
                row_lock.wait_for_waiters(2).await;
                row_lock.release().await;
            };
            tokio::join!(self.claim(), release_the_row);
        };
        tokio::join!(publish, claim_after_it);
    }

    /// Returns the counts and pool versions of the events that the owner got since the last call.
    async fn levels(&self) -> Vec<(u64, u64)> {
        self.socket.barrier().await;
        std::iter::from_fn(|| self.socket.take_event("prekeys.low"))
            .map(|event| {
                assert_eq!((&event["kind"], &event["threshold"]), (&json!("one_time"), &json!(20)));
                (event["remaining"].as_u64().unwrap(), event["pool_version"].as_u64().unwrap())
            })
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_between_the_count_of_a_claim_and_its_announcement_is_taken_into_account() {
    let cluster = Cluster::start(&Services::shared(), 1, UNLIMITED).await;
    let node = &cluster.nodes[0];
    let owner = sign_in(node, "owner@example.org").await;
    let socket = Socket::connect(node, &owner.token, Codec::Json).await;
    let claimer = sign_in(node, "claimer@example.org").await;
    let claimer = Socket::connect(node, &claimer.token, Codec::Json).await;
    let mut keys = KeySet::new(Suite::SignalPqxdh, 1);
    let status = socket.request("keys.publish", keys.complete(1..=21)).await["status"].clone();
    assert_eq!((&status["one_time"], &status["pool_version"]), (&json!(21), &json!(1)));
    let mut more =
        |ids: RangeInclusive<u32>| json!({ "one_time_prekeys": ids.map(|id| keys.prekey(id)).collect::<Vec<_>>() });
    let pool = LowPool { owner, socket, claimer };

    // From 21 to 20 and back to 21: nothing to announce. The next claim reaches the level for the first time.
    pool.claim_while_publishing(&cluster, more(22..=22)).await;
    assert_eq!(pool.levels().await, []);
    pool.claim().await;
    assert_eq!(pool.levels().await, [(20, 2)]);

    // From 11 to 10 and up to 15.
    for _ in 11..20 {
        pool.claim().await;
    }
    pool.claim_while_publishing(&cluster, more(23..=27)).await;
    assert_eq!(pool.levels().await, []);
    for _ in 10..15 {
        pool.claim().await;
    }
    assert_eq!(pool.levels().await, [(10, 3)]);

    // From 6 to 5, which a publish of other keys does not change: announced at once, with the current version.
    for _ in 6..10 {
        pool.claim().await;
    }
    let other = json!({ "pq_one_time": [keys.pq_prekey(2)] });
    pool.claim_while_publishing(&cluster, other).await;
    assert_eq!(pool.levels().await, [(5, 4)]);
}
