//! Many devices that claim every one-time key of many owners, and a record that detects keys handed out twice.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use sealwire::domain::Suite;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;

use super::{Codec, KeySet, Person, Server, Socket, eventually, sign_in};

/// The pool levels at which `prekeys.low` is sent under the default threshold.
const LEVELS: [u64; 4] = [20, 10, 5, 0];

/// A device with a pool of one-time keys.
pub struct Owner {
    pub person: Person,
    pub socket: Socket,
}

/// Creates devices with one-time prekeys `1..=each` of their own.
pub async fn owners(server: &impl Server, count: usize, each: u32) -> Vec<Owner> {
    let mut owners = Vec::new();
    for index in 0..count {
        let person = sign_in(server, &format!("owner{index}@example.org")).await;
        let socket = Socket::connect(server, &person.token, Codec::MsgPack).await;
        let mut keys = KeySet::new(Suite::SignalX3dh, index as u64);
        socket.request("keys.publish", keys.complete([])).await;
        let ids: Vec<u32> = (1..=each).collect();
        for some in ids.chunks(100) {
            let more: Vec<Value> = some.iter().map(|id| keys.prekey(*id)).collect();
            socket.request("keys.publish", json!({ "one_time_prekeys": more })).await;
        }
        owners.push(Owner { person, socket });
    }
    owners
}

/// A claim to be made by any of the claimers: the owner and the claim id are fixed.
#[derive(Clone)]
pub struct PendingClaim {
    pub user: String,
    pub claim: Uuid,
}

/// Returns one claim for each key of each owner, alternating between owners.
pub fn pending_claims(owners: &[Owner], each: u32) -> Vec<PendingClaim> {
    (0..each)
        .flat_map(|_| {
            owners.iter().map(|owner| PendingClaim { user: owner.person.user.clone(), claim: Uuid::new_v4() })
        })
        .collect()
}

/// Waits until at most `left` claims are queued. The guard that it returns stops the claimers while it is held.
pub async fn lock_when_at_most(queue: &Mutex<Vec<PendingClaim>>, left: usize) -> MutexGuard<'_, Vec<PendingClaim>> {
    let guard = eventually("the queue is short enough", || async {
        let guard = queue.lock().await;
        (guard.len() <= left).then_some(guard)
    })
    .await;
    assert!(!guard.is_empty(), "expected claims to be left in the queue");
    guard
}

/// The keys that were handed out: device → key id → claim id.
#[derive(Default)]
pub struct HandedOut {
    pub keys: BTreeMap<String, BTreeMap<u64, Uuid>>,
}

impl HandedOut {
    /// Records the answer to a claim, which must hold exactly one claimed key.
    pub fn note(&mut self, intent: &PendingClaim, answer: &Value) {
        let bundles = answer["bundles"].as_array().unwrap();
        assert_eq!(bundles.len(), 1, "{answer}");
        let bundle = &bundles[0];
        assert_eq!(bundle["one_time"], "claimed", "{bundle}");
        let device = bundle["device_id"].as_str().unwrap().to_owned();
        let key = bundle["one_time_prekey"]["key_id"].as_u64().unwrap();
        let before = self.keys.entry(device).or_default().insert(key, intent.claim);
        assert!(before.is_none_or(|claim| claim == intent.claim), "key {key} was handed out twice");
    }

    /// Asserts that every key was handed out, each to a claim of its own.
    pub fn assert_complete(&self, owners: &[Owner], each: u32) {
        assert_eq!(self.keys.len(), owners.len());
        for (device, keys) in &self.keys {
            assert_eq!(keys.keys().copied().collect::<Vec<_>>(), (1..=u64::from(each)).collect::<Vec<_>>(), "{device}");
            let claims: HashSet<_> = keys.values().collect();
            assert_eq!(claims.len(), keys.len(), "one claim got two keys of {device}");
        }
    }
}

/// Asserts that no level was announced twice, counts only fell, and the empty pool was announced.
pub fn assert_each_level_announced_once(events: &[Value], owner: &str) {
    let mut reached = 0;
    for event in events {
        assert_eq!(event["kind"], "one_time");
        assert_eq!(event["threshold"], 20);
        let remaining = event["remaining"].as_u64().unwrap();
        let depth = LEVELS.iter().filter(|level| remaining <= **level).count();
        assert!(depth > reached, "{owner} got the same level twice: {events:?}");
        reached = depth;
    }
    assert_eq!(reached, LEVELS.len(), "{owner} got no event for the empty pool: {events:?}");
}

/// The address of a server that the test may stop while clients use it.
pub struct Endpoint {
    pub address: SocketAddr,
}

impl Server for Endpoint {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn mail(&self) -> &Path {
        unreachable!("an endpoint is not used for signing in")
    }
}

/// Claims until the queue is empty. A claim without a reply is repeated with the same id, on a new connection if the old
/// one closed. Every tenth successful claim is repeated too, and must return the same key.
///
/// Returns the number of claims that had to be repeated.
pub async fn claim_through_crashes(
    endpoints: Vec<Endpoint>,
    person: Person,
    queue: Arc<Mutex<Vec<PendingClaim>>>,
    handed_out: Arc<Mutex<HandedOut>>,
) -> usize {
    let mut retried = 0;
    let mut done = 0;
    // Each reconnect goes to the next node, so a claim that one node did not answer is repeated on another.
    let mut endpoints = endpoints.iter().cycle();
    let mut socket = connect_with_retries(&mut endpoints, &person).await;
    loop {
        let Some(intent) = queue.lock().await.pop() else { return retried };
        let params = json!({ "user_id": intent.user, "claim_id": intent.claim });
        let answer = loop {
            match socket.try_request("keys.claim", params.clone()).await {
                Some(Ok(answer)) => break answer,
                Some(Err(error)) => {
                    assert_eq!(error["code"], "unavailable", "{error}");
                    retried += 1;
                    tokio::time::sleep(Duration::from_millis(error["retry_after_ms"].as_u64().unwrap() / 4)).await;
                }
                None => {
                    retried += 1;
                    socket = connect_with_retries(&mut endpoints, &person).await;
                }
            }
        };
        handed_out.lock().await.note(&intent, &answer);
        done += 1;
        if done % 10 == 0
            && let Some(Ok(again)) = socket.try_request("keys.claim", params).await
        {
            assert_eq!(again, answer, "expected a repeated claim to return the same answer");
        }
    }
}

/// Tries the nodes in turn until one accepts the connection.
pub async fn connect_with_retries<'a>(endpoints: &mut impl Iterator<Item = &'a Endpoint>, person: &Person) -> Socket {
    eventually("a node accepts the connection", || {
        let endpoint = endpoints.next();
        async move { Socket::try_connect(endpoint?, &person.token, Codec::Json).await }
    })
    .await
}
