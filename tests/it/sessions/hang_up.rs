//! Whoever hangs up before the answer has still done what it asked for, and the others hear of it.

use std::{future::Future, time::Duration};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use super::{EMAIL, assert_ended, connect};
use crate::support::{Cluster, Person, RowLock, Server, ServerProcess, Services, Socket, http, sign_in};

/// One worker, so that an answer to a later request shows that it has seen to everything before.
const ONE_WORKER: &[(&str, &str)] = &[("SERVER__WORKERS", "1")];
const LOCK_USER: &str = "SELECT id FROM users WHERE id = $1 FOR UPDATE";
const LOCK_SESSION: &str = "SELECT id FROM sessions WHERE id = $1 FOR UPDATE";

/// Sends a request and hangs up in the middle of it: while it waits for a row that somebody else holds.
async fn hang_up(cluster: &Cluster, (lock, id): (&'static str, &str), head: &str, body: &Value) {
    let node = &cluster.nodes[0];
    let mut row_lock = RowLock::lock(cluster, lock, id).await;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let mut stream = TcpStream::connect(node.address()).await.unwrap();
    let request = format!("{head}\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    row_lock.wait_for_waiters(1).await;
    stream.set_zero_linger().unwrap();
    drop(stream);
    for _ in 0..3 {
        reqwest::get(format!("http://{}/readyz", node.address())).await.unwrap();
    }
    row_lock.release().await;
}

/// The others hear of it by a signal, long before a reconcile would find it out.
async fn at_once<T>(told: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(15), told).await.expect("told at once")
}

async fn device(node: &ServerProcess) -> (Person, Socket) {
    let person = sign_in(node, EMAIL).await;
    let socket = connect(node, &person.token).await;
    (person, socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_closes_the_socket_though_nobody_waits_for_the_answer() {
    let cluster = Cluster::start(&Services::shared(), 1, ONE_WORKER).await;
    let (person, socket) = device(&cluster.nodes[0]).await;
    let head = format!("DELETE /v1/auth/session HTTP/1.1\r\nAuthorization: Bearer {}", person.token);
    hang_up(&cluster, (LOCK_SESSION, &person.session), &head, &Value::Null).await;
    at_once(assert_ended(&socket, "logout", 4500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_token_ends_the_old_session_though_nobody_waits_for_the_answer() {
    let cluster = Cluster::start(&Services::shared(), 1, ONE_WORKER).await;
    let (person, socket) = device(&cluster.nodes[0]).await;
    let renewed = socket.request("session.renew", json!({})).await;
    let old = connect(&cluster.nodes[0], &person.token).await;
    let head = format!("GET /v1/auth/session HTTP/1.1\r\nAuthorization: Bearer {}", renewed["token"].as_str().unwrap());
    hang_up(&cluster, (LOCK_SESSION, &person.session), &head, &Value::Null).await;
    at_once(assert_ended(&old, "logout", 4500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_device_and_the_others_are_told_though_nobody_waits_for_the_answer() {
    let cluster = Cluster::start(&Services::shared(), 1, ONE_WORKER).await;
    let node = &cluster.nodes[0];
    let (_, other_socket) = device(node).await;
    let (replaced, replaced_socket) = device(node).await;
    assert_eq!(other_socket.event("devices.changed").await, json!({ "added": [replaced.device], "removed": [] }));
    let (challenge_id, code) = http::challenge(node, EMAIL).await;
    let body =
        json!({ "challenge_id": challenge_id, "email": EMAIL, "code": code, "replace_device_id": replaced.device });
    hang_up(&cluster, (LOCK_USER, &replaced.user), "POST /v1/auth/verify HTTP/1.1", &body).await;
    at_once(assert_ended(&replaced_socket, "device_revoked", 4502)).await;
    let told = at_once(other_socket.event("devices.changed")).await;
    assert_eq!(told["removed"], json!([replaced.device]));
    assert_eq!(told["added"].as_array().map(Vec::len), Some(1));
}
