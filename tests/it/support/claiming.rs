//! Many claimers who want every key of many owners, and the books that are kept of what they get.

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

/// The levels that a pool is announced at under the default threshold.
const LEVELS: [u64; 4] = [20, 10, 5, 0];

/// A device with a pool of keys.
pub struct Owner {
    pub person: Person,
    pub socket: Socket,
}

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

/// One claim to be made: by whom is up to the test, from whom and under which id is not.
#[derive(Clone)]
pub struct Intent {
    pub user: String,
    pub claim: Uuid,
}

/// Every key of every owner is wanted once, in an order that mixes the owners.
pub fn intents(owners: &[Owner], each: u32) -> Vec<Intent> {
    (0..each)
        .flat_map(|_| owners.iter().map(|owner| Intent { user: owner.person.user.clone(), claim: Uuid::new_v4() }))
        .collect()
}

/// Waits until at most so many intents are left, and keeps the claimers from them as long as the guard lives.
pub async fn shrunk_to(queue: &Mutex<Vec<Intent>>, left: usize) -> MutexGuard<'_, Vec<Intent>> {
    let guard = eventually("the queue shrinks", || async {
        let guard = queue.lock().await;
        (guard.len() <= left).then_some(guard)
    })
    .await;
    assert!(!guard.is_empty(), "nothing is left to be claimed");
    guard
}

/// What was handed out: device → key ids, every one with the intent that got it.
#[derive(Default)]
pub struct Handed {
    pub keys: BTreeMap<String, BTreeMap<u64, Uuid>>,
}

impl Handed {
    /// Notes a claim's answer, which must hold exactly one claimed key.
    pub fn note(&mut self, intent: &Intent, answer: &Value) {
        let bundles = answer["bundles"].as_array().unwrap();
        assert_eq!(bundles.len(), 1, "{answer}");
        let bundle = &bundles[0];
        assert_eq!(bundle["one_time"], "claimed", "{bundle}");
        let device = bundle["device_id"].as_str().unwrap().to_owned();
        let key = bundle["one_time_prekey"]["key_id"].as_u64().unwrap();
        let before = self.keys.entry(device).or_default().insert(key, intent.claim);
        assert!(before.is_none_or(|claim| claim == intent.claim), "key {key} was handed out twice");
    }

    pub fn assert_complete(&self, owners: &[Owner], each: u32) {
        assert_eq!(self.keys.len(), owners.len());
        for (device, keys) in &self.keys {
            assert_eq!(keys.keys().copied().collect::<Vec<_>>(), (1..=u64::from(each)).collect::<Vec<_>>(), "{device}");
            let claims: HashSet<_> = keys.values().collect();
            assert_eq!(claims.len(), keys.len(), "one claim got two keys of {device}");
        }
    }
}

/// No level may be told twice, counts may only fall, and an empty pool must have been told.
pub fn assert_told_once(events: &[Value], owner: &str) {
    let mut reached = 0;
    for event in events {
        assert_eq!(event["kind"], "one_time");
        assert_eq!(event["threshold"], 20);
        let remaining = event["remaining"].as_u64().unwrap();
        let depth = LEVELS.iter().filter(|level| remaining <= **level).count();
        assert!(depth > reached, "{owner} was told of a level again: {events:?}");
        reached = depth;
    }
    assert_eq!(reached, LEVELS.len(), "{owner} was not told that the pool is empty: {events:?}");
}

/// Only the address of a server that the test may stop meanwhile.
pub struct Endpoint {
    pub address: SocketAddr,
}

impl Server for Endpoint {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn mail(&self) -> &Path {
        unreachable!("nobody signs in here")
    }
}

/// Claims until the queue is empty, repeating what got no reply with the same id on a new connection; and repeats every
/// tenth that did, which must bring the same key. Gives the number of claims that had to be repeated.
pub async fn claim_through_crashes(
    endpoints: Vec<Endpoint>,
    person: Person,
    queue: Arc<Mutex<Vec<Intent>>>,
    handed: Arc<Mutex<Handed>>,
) -> usize {
    let mut retried = 0;
    let mut done = 0;
    // The nodes take turns: what one did not answer is repeated on the next.
    let mut endpoints = endpoints.iter().cycle();
    let mut socket = connect_patiently(&mut endpoints, &person).await;
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
                    socket = connect_patiently(&mut endpoints, &person).await;
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

/// Connects to the first of the nodes, in turn, that takes the connection.
pub async fn connect_patiently<'a>(endpoints: &mut impl Iterator<Item = &'a Endpoint>, person: &Person) -> Socket {
    eventually("a node takes the connection", || {
        let endpoint = endpoints.next();
        async move { Socket::try_connect(endpoint?, &person.token, Codec::Json).await }
    })
    .await
}
