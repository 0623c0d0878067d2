//! The lock of an account: a new device needs an approval by another device, the recovery key, or time.

mod address;
mod attack;
mod changing;
mod decisions;
mod waiting;

use reqwest::StatusCode;
use sealwire::domain::Suite;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{
    Codec, KeySet, Person, Server, Socket,
    http::{challenge, person, post},
    keys::base64,
    sign_in,
};

const EMAIL: &str = "alice@example.org";
/// The recovery key of the locked accounts.
const RECOVERY_KEY: [u8; 32] = [42; 32];
const WEEK_S: u64 = 7 * 24 * 3600;

/// A device that has published and is connected.
struct Device {
    person: Person,
    socket: Socket,
    keys: KeySet,
}

/// Signs in on a new device, connects it and publishes keys.
async fn published_device(server: &impl Server, email: &str) -> Device {
    publish(server, sign_in(server, email).await).await
}

async fn publish(server: &impl Server, person: Person) -> Device {
    let socket = Socket::connect(server, &person.token, Codec::Json).await;
    let mut keys = KeySet::new(Suite::SignalX3dh, 1);
    socket.request("keys.publish", keys.complete(1..=3)).await;
    Device { person, socket, keys }
}

fn hash_of(recovery_key: &[u8]) -> String {
    base64(&Sha256::digest(recovery_key))
}

/// A published device of an account that it has locked.
async fn locked_account(server: &impl Server, email: &str) -> Device {
    let device = published_device(server, email).await;
    device.socket.request("account.lock", json!({ "recovery_key_hash": hash_of(&RECOVERY_KEY) })).await;
    device
}

/// A challenge whose code was mailed, with the body that redeems it.
async fn right_code(server: &impl Server, email: &str, more: Value) -> Value {
    let (challenge_id, code) = challenge(server, email).await;
    let mut body = json!({ "challenge_id": challenge_id, "email": email, "code": code });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Enters a right code for a new device, which must have to wait. Returns the approval.
async fn ask(server: &impl Server, email: &str, more: Value) -> Value {
    let body = right_code(server, email, more).await;
    expect_waiting(&post(server, "/v1/auth/verify", body).await)
}

/// Checks the response to a sign-in that has to wait, and returns its approval.
fn expect_waiting((status, body): &(StatusCode, Value)) -> Value {
    assert_eq!(*status, StatusCode::ACCEPTED, "{body}");
    let approval = body["approval"].clone();
    let mut fields: Vec<_> = approval.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["decides_at", "number", "poll_token", "request_id"]);
    let number = approval["number"].as_str().unwrap();
    assert!(number.len() == 2 && number.bytes().all(|byte| byte.is_ascii_digit()), "{number}");
    approval
}

async fn poll(server: &impl Server, approval: &Value) -> (StatusCode, Value) {
    let body = json!({ "request_id": approval["request_id"], "poll_token": approval["poll_token"] });
    post(server, "/v1/auth/approval", body).await
}

/// Polls an approved request. Returns the device that it signed in.
async fn collect(server: &impl Server, email: &str, approval: &Value) -> Person {
    let (status, body) = poll(server, approval).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    person(email, &body)
}

async fn assert_pending(server: &impl Server, approval: &Value) {
    let (status, body) = poll(server, approval).await;
    assert_eq!(
        (status, &body),
        (StatusCode::ACCEPTED, &json!({ "approval": { "decides_at": approval["decides_at"] } }))
    );
}

async fn assert_poll_refused(server: &impl Server, approval: &Value, status: u16, code: &str) {
    let (actual, body) = poll(server, approval).await;
    assert_eq!((actual.as_u16(), body["error"]["code"].as_str().unwrap()), (status, code), "{body}");
}

fn approving(approval: &Value) -> Value {
    json!({ "request_id": approval["request_id"], "approve": true, "number": approval["number"] })
}

fn denying(approval: &Value) -> Value {
    json!({ "request_id": approval["request_id"], "approve": false })
}

/// The ids of the pending requests, as `account.status` has them.
async fn pending(socket: &Socket) -> Vec<String> {
    let status = socket.request("account.status", json!({})).await;
    let ids = status["pending"].as_array().unwrap().iter();
    ids.map(|request| request["request_id"].as_str().unwrap().to_owned()).collect()
}

/// The ids of the active devices.
async fn devices(socket: &Socket) -> Vec<String> {
    let list = socket.request("devices.list", json!({})).await;
    let ids = list["devices"].as_array().unwrap().iter();
    ids.map(|device| device["device_id"].as_str().unwrap().to_owned()).collect()
}
