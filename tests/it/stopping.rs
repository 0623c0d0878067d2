//! What makes a server stop (a signal, or the loss of a listener), and how it stops then.

use std::sync::atomic::Ordering;

use reqwest::Method;
use rustix::process::Signal;
use sealwire::{app::AppError, domain::Suite};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::{
    drain::{lock_writes, wait_until_draining},
    support::{
        Codec, KeySet, Server, ServerProcess, Socket, TestApp, eventually,
        http::{call, post},
        mail_server::MailServer,
        sign_in,
    },
};

/// Connects a device and publishes its keys.
async fn connect_device(server: &impl Server, email: &str) -> (Socket, KeySet) {
    let socket = Socket::connect(server, &sign_in(server, email).await.token, Codec::Json).await;
    let mut keys = KeySet::new(Suite::SignalX3dh, 1);
    socket.request("keys.publish", keys.complete([])).await;
    (socket, keys)
}

/// Sends a request that waits while a test holds the write lock.
async fn send_waiting_request(socket: &Socket, keys: &mut KeySet) -> oneshot::Receiver<Value> {
    let reply = socket.expect_reply(1001);
    let params = json!({ "one_time_prekeys": [keys.prekey(1)] });
    socket.send(Codec::Json.encode(&json!({ "id": 1001, "op": "keys.publish", "params": params }))).await;
    // Reads do not wait for the lock: once this is answered, the server has begun the request before it.
    socket.request("devices.list", json!({})).await;
    reply
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_request_hangs_still_gets_the_close_frame() {
    let mut server = ServerProcess::start(&[("SERVER__DRAIN_S", "6")]).await;
    let (socket, mut keys) = connect_device(&server, "alice@example.org").await;
    let _never_released = lock_writes(&server.path("sealwire.db")).await;
    let reply = send_waiting_request(&socket, &mut keys).await;
    server.send_sigterm();
    socket.event("server.draining").await;
    assert_eq!(socket.close_code().await, 4000);
    // A client that has received the Close frame closes the TCP connection.
    drop(socket);
    assert!(reply.await.is_err(), "the request is unanswered");
    assert_eq!(server.stopped().await.code(), Some(0));
    let log = std::fs::read_to_string(server.path("server.log")).unwrap();
    assert!(log.contains("some sockets are closed without their replies"), "{log}");
    assert!(!log.contains("some sockets did not close in time"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_stops_the_server_like_sigterm() {
    let mut server = ServerProcess::start(&[]).await;
    let person = sign_in(&server, "alice@example.org").await;
    let socket = Socket::connect(&server, &person.token, Codec::Json).await;
    server.send_signal(Signal::INT);
    socket.event("server.draining").await;
    assert_eq!(socket.close_code().await, 4000);
    assert_eq!(server.stopped().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_signals_count_as_one() {
    let mut server = ServerProcess::start(&[("SERVER__DRAIN_S", "60")]).await;
    let (socket, mut keys) = connect_device(&server, "alice@example.org").await;
    let lock = lock_writes(&server.path("sealwire.db")).await;
    let reply = send_waiting_request(&socket, &mut keys).await;
    // The server does not run while the signals are sent, so it gets all of them at the same moment.
    server.send_signal(Signal::STOP);
    for signal in [Signal::TERM, Signal::INT, Signal::TERM] {
        server.send_signal(signal);
    }
    server.send_signal(Signal::CONT);
    wait_until_draining(&server).await;
    sqlx::Connection::close(lock).await.unwrap();
    assert!(reply.await.unwrap()["result"].is_object(), "the server takes the time to answer");
    assert_eq!(socket.close_code().await, 4000);
    assert_eq!(server.stopped().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_loses_the_operators_listener_drains_and_fails() {
    let mail = MailServer::start().await;
    let app = TestApp::start(&[("SERVER__DRAIN_S", "60")]);
    let late = TestApp::start(&[("MAILER__URL", &mail.url())]);
    let (socket, mut keys) = connect_device(&app, "alice@example.org").await;
    let lock = lock_writes(&app.database()).await;
    let reply = send_waiting_request(&socket, &mut keys).await;
    app.stopper.admin.stop(false).await;
    socket.event("server.draining").await;
    sqlx::Connection::close(lock).await.unwrap();
    assert!(reply.await.unwrap()["result"].is_object(), "a request that was begun is answered");
    assert_eq!(socket.close_code().await, 4000);
    assert!(matches!(app.ended().await, Err(AppError::TaskEnded("admin listener"))));

    // The server also waits for a mail that it is still trying to send.
    mail.state.refuse_with.store(451, Ordering::SeqCst);
    post(&late, "/v1/auth/otp", json!({ "email": "alice@example.org" })).await;
    mail.state.wait_for_refusals(2).await;
    mail.state.refuse_with.store(0, Ordering::SeqCst);
    late.stopper.admin.stop(false).await;
    assert!(matches!(late.ended().await, Err(AppError::TaskEnded("admin listener"))));
    assert_eq!(mail.state.mails().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_loses_its_clients_listener_fails() {
    let app = TestApp::start(&[]);
    app.stopper.server.stop(true).await;
    assert!(matches!(app.ended().await, Err(AppError::TaskEnded("listener"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_shows_a_drain_and_the_memory_still_in_use() {
    let app = TestApp::start(&[("SERVER__DRAIN_S", "60")]);
    let (socket, mut keys) = connect_device(&app, "alice@example.org").await;
    // A reply is sent before its request's memory is released.
    eventually("no memory is in use", || async {
        let now = crate::admin::status(&app).await;
        (now["memory"]["budget_used_bytes"] == 0).then_some(())
    })
    .await;
    let lock = lock_writes(&app.database()).await;
    let reply = send_waiting_request(&socket, &mut keys).await;
    let stopper = app.stopper.clone();
    let stopping = tokio::spawn(async move { stopper.stop().await });
    let now = eventually("the status shows the drain", || async {
        let now = crate::admin::status(&app).await;
        (now["reasons"] == json!(["draining"])).then_some(now)
    })
    .await;
    assert_eq!(now["status"], "not_ready");
    assert!(now["memory"]["budget_used_bytes"].as_u64().unwrap() > 100, "a request is in memory: {now}");
    let metrics = reqwest::get(format!("http://{}/metrics", app.admin())).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("\nsealwire_draining 1\n"), "{metrics}");
    assert_eq!(call(&app, Method::GET, "/readyz", None, None).await.0, 503);
    sqlx::Connection::close(lock).await.unwrap();
    reply.await.unwrap();
    stopping.await.unwrap();
    app.ended().await.unwrap();
}
