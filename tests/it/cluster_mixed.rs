//! Random operations of many devices on the same few users: a conflict between transactions must never reach a client. A
//! row that stays locked for a second may, as `unavailable`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use sealwire::domain::Suite;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    metrics::value,
    support::{Cluster, Codec, KeySet, Person, ServerProcess, Services, Socket, code, http::confirmation, sign_in},
};

/// Users, each with several devices, which operate on all users, their own included.
const USERS: usize = 6;
const DEVICES: usize = 4;
/// Number of all operations: more than so few users make in a busy hour.
const OPERATIONS: usize = 12_000;

/// Turns off the limits that would refuse some of the operations.
const SETTINGS: &[(&str, &str)] =
    &[("LIMITS__CLAIM_BURST", "0"), ("LIMITS__FIND_PER_USER_HOUR", "0"), ("AUTH__MAX_DEVICES", "100")];

/// Errors that a client may get because of what other devices do.
const EXPECTED: &[&str] = &["session_revoked", "unknown_device", "not_found", "unauthorized", "incomplete_keys"];

#[derive(Default)]
struct Tally {
    done: AtomicUsize,
    refused: Mutex<BTreeMap<String, usize>>,
    unavailable: AtomicUsize,
    ended: AtomicUsize,
}

impl Tally {
    fn add_refusal(&self, op: &str, error: &Value) {
        let code = code(error).to_owned();
        if code == "unavailable" {
            self.unavailable.fetch_add(1, Ordering::Relaxed);
            return;
        }
        assert!(EXPECTED.contains(&code.as_str()), "{op}: {error}");
        *self.refused.lock().unwrap().entry(code).or_default() += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_conflict_between_transactions_reaches_a_client() {
    let cluster = Arc::new(Cluster::start(&Services::shared(), 2, SETTINGS).await);
    let tally = Arc::new(Tally::default());
    let users: Arc<Mutex<Vec<String>>> = Arc::new(Mutex::new(vec![String::new(); USERS]));
    // Two codes that are mailed to one address at the same time cannot be told apart, so the devices of a user sign in
    // one after another.
    let sign_in_locks: Vec<_> = (0..USERS).map(|_| Arc::new(tokio::sync::Mutex::new(()))).collect();
    let mut workers = Vec::new();
    for index in 0..USERS * DEVICES {
        let (cluster, tally, users) = (cluster.clone(), tally.clone(), users.clone());
        let sign_in_lock = sign_in_locks[index % USERS].clone();
        workers.push(tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(index as u64);
            while tally.done.load(Ordering::Relaxed) < OPERATIONS {
                let email = format!("person{}@example.org", index % USERS);
                let node = &cluster.nodes[rng.random_range(0..2)];
                let person = {
                    let _guard = sign_in_lock.lock().await;
                    sign_in(node, &email).await
                };
                users.lock().unwrap()[index % USERS].clone_from(&person.user);
                if let Some(socket) = Socket::try_connect(node, &person.token, Codec::ALL[index % 2]).await {
                    operate(&socket, node, &sign_in_lock, &person, &users, &tally, &mut rng).await;
                    tally.ended.fetch_add(1, Ordering::Relaxed);
                    // Revokes itself, so that the user does not reach the device limit.
                    if let Some(Err(error)) =
                        socket.try_request("devices.revoke", json!({ "device_id": person.device })).await
                    {
                        tally.add_refusal("devices.revoke", &error);
                    }
                }
            }
        }));
    }
    for worker in workers {
        worker.await.unwrap();
    }
    let unavailable = tally.unavailable.load(Ordering::Relaxed);
    let mut lock_timeouts = 0.0;
    for node in &cluster.nodes {
        lock_timeouts += value(node.admin(), "sealwire_lock_timeouts_total").await;
    }
    assert!(
        f64::from(u32::try_from(unavailable).unwrap()) <= lock_timeouts,
        "{unavailable} for {lock_timeouts} timeouts"
    );
    println!(
        "{} operations on {} devices; {unavailable} waited for a locked row in vain; refused: {:?}",
        tally.done.load(Ordering::Relaxed),
        tally.ended.load(Ordering::Relaxed),
        tally.refused.lock().unwrap()
    );
}

/// Makes random operations as one device, some in parallel, until the socket closes or 60 rounds are done.
async fn operate(
    socket: &Socket,
    node: &ServerProcess,
    code_lock: &tokio::sync::Mutex<()>,
    person: &Person,
    users: &Mutex<Vec<String>>,
    tally: &Tally,
    rng: &mut StdRng,
) {
    let mut keys = KeySet::new(Suite::SignalX3dh, rng.random());
    let mut key_id = 0;
    let mut claims = Vec::new();
    for step in 0..60 {
        let mut operations: Vec<(&str, Value)> = Vec::new();
        let mut deleting = None;
        for _ in 0..rng.random_range(1..4) {
            let user = {
                // The users who have signed in by now, at least this one.
                let users = users.lock().unwrap();
                let known: Vec<&String> = users.iter().filter(|user| !user.is_empty()).collect();
                known[rng.random_range(0..known.len())].clone()
            };
            operations.push(match rng.random_range(0..100) {
                _ if step == 0 => ("keys.publish", keys.complete([])),
                0..30 => {
                    key_id += 3;
                    let more: Vec<Value> = (key_id - 2..=key_id).map(|id| keys.prekey(id)).collect();
                    ("keys.publish", json!({ "one_time_prekeys": more }))
                }
                30..70 => {
                    let claim = match claims.last() {
                        Some(claim) if rng.random_bool(0.3) => *claim,
                        _ => Uuid::new_v4(),
                    };
                    claims.push(claim);
                    ("keys.claim", json!({ "user_id": user, "claim_id": claim }))
                }
                70..80 => ("keys.fetch", json!({ "user_id": user })),
                80..90 => ("session.renew", json!({})),
                90..95 => ("devices.rename", json!({ "name": format!("name {step}") })),
                95..97 => ("devices.list", json!({})),
                97 => ("users.find", json!({ "email": person.email })),
                98 => match another_device(socket, person).await {
                    Some(device) => ("devices.revoke", json!({ "device_id": device })),
                    None => ("devices.list", json!({})),
                },
                _ if deleting.is_none() && rng.random_bool(0.3) => {
                    // Until the account is deleted, no other device of the user deletes it: no code would be mailed then.
                    deleting = Some(code_lock.lock().await);
                    match socket.try_request("keys.status", json!({})).await {
                        Some(Ok(_)) => ("account.delete", confirmation(node, &person.email, "delete").await),
                        _ => return,
                    }
                }
                _ => ("session.logout", json!({})),
            });
        }
        let run =
            operations.iter().map(|(op, params)| async move { (op, socket.try_request(op, params.clone()).await) });
        for (op, answer) in futures_util::future::join_all(run).await {
            match answer {
                Some(Ok(_)) => {}
                Some(Err(error)) => tally.add_refusal(op, &error),
                None => return,
            }
            tally.done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn another_device(socket: &Socket, person: &Person) -> Option<Value> {
    let list = socket.try_request("devices.list", json!({})).await?.ok()?;
    let devices = list["devices"].as_array()?;
    devices.iter().map(|device| device["device_id"].clone()).find(|id| *id != json!(person.device))
}
