//! What makes a server stop, and that it stops in good order whichever it was.

use std::sync::atomic::Ordering;

use reqwest::Method;
use rustix::process::Signal;
use sealwire::{app::AppError, domain::Suite};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::{
    drain::{draining, lock_writing},
    support::{
        Codec, KeySet, Server, ServerProcess, Socket, TestApp, eventually,
        http::{call, post},
        mail_server::MailServer,
        sign_in,
    },
};

/// A connected device, one of whose requests waits for whoever holds the lock for writing.
async fn busy(server: &impl Server, email: &str) -> (Socket, KeySet) {
    let socket = Socket::connect(server, &sign_in(server, email).await.token, Codec::Json).await;
    let mut keys = KeySet::new(Suite::SignalX3dh, 1);
    socket.request("keys.publish", keys.complete([])).await;
    (socket, keys)
}

/// Sends a request that has to wait.
async fn begin(socket: &Socket, keys: &mut KeySet) -> oneshot::Receiver<Value> {
    let reply = socket.expect_reply(1001);
    let params = json!({ "one_time_prekeys": [keys.prekey(1)] });
    socket.send(Codec::Json.encode(&json!({ "id": 1001, "op": "keys.publish", "params": params }))).await;
    // Reads are not held up: once this is answered, the one before it is under way.
    socket.request("devices.list", json!({})).await;
    reply
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_hangs_does_not_keep_its_client_from_the_close() {
    let mut server = ServerProcess::start(&[("SERVER__DRAIN_S", "6")]).await;
    let (socket, mut keys) = busy(&server, "alice@example.org").await;
    let _never_released = lock_writing(&server.path("sealwire.db")).await;
    let reply = begin(&socket, &mut keys).await;
    server.send_sigterm();
    socket.event("server.draining").await;
    assert_eq!(socket.close_code().await, 4000);
    // A client that has its Close frame ends TCP.
    drop(socket);
    assert!(reply.await.is_err(), "the request is unanswered");
    assert_eq!(server.stopped().await.code(), Some(0));
    let log = std::fs::read_to_string(server.path("server.log")).unwrap();
    assert!(log.contains("some sockets are closed without their replies"), "{log}");
    assert!(!log.contains("some sockets did not close in time"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_stops_as_sigterm_does() {
    let mut server = ServerProcess::start(&[]).await;
    let person = sign_in(&server, "alice@example.org").await;
    let socket = Socket::connect(&server, &person.token, Codec::Json).await;
    server.send_signal(Signal::INT);
    socket.event("server.draining").await;
    assert_eq!(socket.close_code().await, 4000);
    assert_eq!(server.stopped().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_that_come_together_are_one_order() {
    let mut server = ServerProcess::start(&[("SERVER__DRAIN_S", "60")]).await;
    let (socket, mut keys) = busy(&server, "alice@example.org").await;
    let lock = lock_writing(&server.path("sealwire.db")).await;
    let reply = begin(&socket, &mut keys).await;
    // It does not run while they are sent, so it gets all of them at the same moment.
    server.send_signal(Signal::STOP);
    for signal in [Signal::TERM, Signal::INT, Signal::TERM] {
        server.send_signal(signal);
    }
    server.send_signal(Signal::CONT);
    draining(&server).await;
    sqlx::Connection::close(lock).await.unwrap();
    assert!(reply.await.unwrap()["result"].is_object(), "it was given the time to answer");
    assert_eq!(socket.close_code().await, 4000);
    assert_eq!(server.stopped().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_loses_the_operators_listener_answers_first_and_fails() {
    let mail = MailServer::start().await;
    let app = TestApp::start(&[("SERVER__DRAIN_S", "60")]);
    let late = TestApp::start(&[("MAILER__URL", &mail.url())]);
    let (socket, mut keys) = busy(&app, "alice@example.org").await;
    let lock = lock_writing(&app.database()).await;
    let reply = begin(&socket, &mut keys).await;
    app.stopper.admin.stop(false).await;
    socket.event("server.draining").await;
    sqlx::Connection::close(lock).await.unwrap();
    assert!(reply.await.unwrap()["result"].is_object(), "what was begun is answered");
    assert_eq!(socket.close_code().await, 4000);
    assert!(matches!(app.ended().await, Err(AppError::TaskEnded("admin listener"))));

    // Also what is at work behind both listeners is waited for.
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

/// What the operator sees of a drain.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_shows_in_the_status_with_what_is_still_held() {
    let app = TestApp::start(&[("SERVER__DRAIN_S", "60")]);
    let (socket, mut keys) = busy(&app, "alice@example.org").await;
    // A reply is sent before its request's memory is given back.
    eventually("no memory is in use", || async {
        let now = crate::admin::status(&app).await;
        (now["memory"]["budget_used_bytes"] == 0).then_some(())
    })
    .await;
    let lock = lock_writing(&app.database()).await;
    let reply = begin(&socket, &mut keys).await;
    let stopper = app.stopper.clone();
    let stopping = tokio::spawn(async move { stopper.stop().await });
    let now = eventually("the drain shows", || async {
        let now = crate::admin::status(&app).await;
        (now["reasons"] == json!(["draining"])).then_some(now)
    })
    .await;
    assert_eq!(now["status"], "not_ready");
    assert!(now["memory"]["budget_used_bytes"].as_u64().unwrap() > 100, "a request is held: {now}");
    let metrics = reqwest::get(format!("http://{}/metrics", app.admin())).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("\nsealwire_draining 1\n"), "{metrics}");
    assert_eq!(call(&app, Method::GET, "/readyz", None, None).await.0, 503);
    sqlx::Connection::close(lock).await.unwrap();
    reply.await.unwrap();
    stopping.await.unwrap();
    app.ended().await.unwrap();
}
