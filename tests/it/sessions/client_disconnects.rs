//! HTTP requests whose client disconnects before the answer. They take effect, and other connections are notified.

use std::{future::Future, time::Duration};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use super::{EMAIL, assert_ended, connect};
use crate::support::{Cluster, Person, RowLock, Server, ServerProcess, Services, Socket, http, sign_in};

/// With one worker, the answer to a later request shows that the worker has handled the disconnect.
const ONE_WORKER: &[(&str, &str)] = &[("SERVER__WORKERS", "1")];
const LOCK_USER: &str = "SELECT id FROM users WHERE id = $1 FOR UPDATE";
const LOCK_SESSION: &str = "SELECT id FROM sessions WHERE id = $1 FOR UPDATE";

/// Sends a request, and disconnects while the request waits for a locked row.
async fn send_and_disconnect(cluster: &Cluster, (lock, id): (&'static str, &str), head: &str, body: &Value) {
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

/// Waits for a notification that must come by a signal: so soon that no reconcile can be its cause.
async fn by_signal<T>(notification: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(15), notification).await.expect("notified by a signal")
}

async fn connect_device(node: &ServerProcess) -> (Person, Socket) {
    let person = sign_in(node, EMAIL).await;
    let socket = connect(node, &person.token).await;
    (person, socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_closes_the_socket_even_if_the_client_disconnects() {
    let cluster = Cluster::start(&Services::shared(), 1, ONE_WORKER).await;
    let (person, socket) = connect_device(&cluster.nodes[0]).await;
    let head = format!("DELETE /v1/auth/session HTTP/1.1\r\nAuthorization: Bearer {}", person.token);
    send_and_disconnect(&cluster, (LOCK_SESSION, &person.session), &head, &Value::Null).await;
    by_signal(assert_ended(&socket, "logout", 4500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_token_ends_the_old_session_even_if_the_client_disconnects() {
    let cluster = Cluster::start(&Services::shared(), 1, ONE_WORKER).await;
    let (person, socket) = connect_device(&cluster.nodes[0]).await;
    let renewed = socket.request("session.renew", json!({})).await;
    let old = connect(&cluster.nodes[0], &person.token).await;
    let head = format!("GET /v1/auth/session HTTP/1.1\r\nAuthorization: Bearer {}", renewed["token"].as_str().unwrap());
    send_and_disconnect(&cluster, (LOCK_SESSION, &person.session), &head, &Value::Null).await;
    by_signal(assert_ended(&old, "logout", 4500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replacing_a_device_notifies_all_devices_even_if_the_client_disconnects() {
    let cluster = Cluster::start(&Services::shared(), 1, ONE_WORKER).await;
    let node = &cluster.nodes[0];
    let (_, other_socket) = connect_device(node).await;
    let (replaced, replaced_socket) = connect_device(node).await;
    assert_eq!(other_socket.event("devices.changed").await, json!({ "added": [replaced.device], "removed": [] }));
    let (challenge_id, code) = http::challenge(node, EMAIL).await;
    let body =
        json!({ "challenge_id": challenge_id, "email": EMAIL, "code": code, "replace_device_id": replaced.device });
    send_and_disconnect(&cluster, (LOCK_USER, &replaced.user), "POST /v1/auth/verify HTTP/1.1", &body).await;
    by_signal(assert_ended(&replaced_socket, "device_revoked", 4502)).await;
    let changed = by_signal(other_socket.event("devices.changed")).await;
    assert_eq!(changed["removed"], json!([replaced.device]));
    assert_eq!(changed["added"].as_array().map(Vec::len), Some(1));
}
