//! Draining: a server that stops answers the requests that it has begun, and ends in time whatever its clients do.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use sealwire::{app::AppError, domain::Suite};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, SqliteConnection};

use crate::{
    metrics::wait_for_sample,
    support::{
        Codec, KeySet, Server, ServerProcess, Socket, TestApp, eventually,
        http::{call, mails},
        raw::{HANDSHAKE, RawSocket, data, encode, request_upgrade},
        sign_in,
    },
};

/// Takes the write lock of a server's SQLite file, so that every write waits until the connection is closed.
pub async fn lock_writes(database: &Path) -> SqliteConnection {
    let url = format!("sqlite://{}", database.display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    connection.execute("BEGIN IMMEDIATE").await.unwrap();
    connection
}

/// Connects a client that floods the server with requests and reads nothing, so that no Close frame can reach it.
async fn connect_non_reading_client(server: &impl Server) -> RawSocket {
    let person = sign_in(server, "flooder@example.org").await;
    let (mut socket, _) = RawSocket::connect(server, &person.token, Codec::Json).await;
    let request = |id: u64| data(Codec::Json, &encode(Codec::Json, &json!({ "id": id, "op": "x" })));
    // More replies than the kernel's buffers and the outbox take together.
    let flood = (1..=250_000).flat_map(request).collect::<Vec<u8>>();
    let mut rest = &flood[..];
    loop {
        let sent = socket.send_until_stuck(rest).await;
        if sent == 0 {
            return socket;
        }
        rest = &rest[sent..];
        // On a busy machine the server may not have run yet. It has stopped reading from this client if it answers
        // other requests and still reads no more here.
        for _ in 0..100 {
            call(server, Method::GET, "/healthz", None, None).await;
        }
    }
}

/// Waits until `/readyz` reports that the server is draining.
pub async fn wait_until_draining(server: &impl Server) {
    eventually("the server is draining", || async {
        let (status, body) = call(server, Method::GET, "/readyz", None, None).await;
        (status == StatusCode::SERVICE_UNAVAILABLE && body["reasons"] == json!(["draining"])).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_server_answers_requests_that_were_begun_and_sends_accepted_mails() {
    let mut server = ServerProcess::start(&[("SERVER__DRAIN_S", "30")]).await;
    let person = sign_in(&server, "busy@example.org").await;
    let idle = Socket::connect(&server, &sign_in(&server, "idle@example.org").await.token, Codec::Json).await;
    let busy = Socket::connect(&server, &person.token, Codec::MsgPack).await;
    let mut keys = KeySet::new(Suite::SignalX3dh, 1);
    busy.request("keys.publish", keys.complete([])).await;

    let lock = lock_writes(&server.path("sealwire.db")).await;
    let mut replies = Vec::new();
    for id in 1001..=1010 {
        replies.push(busy.expect_reply(id));
        let params = json!({ "one_time_prekeys": [keys.prekey(id)] });
        busy.send(Codec::MsgPack.encode(&json!({ "id": id, "op": "keys.publish", "params": params }))).await;
    }
    // Reads do not wait for the lock: once this is answered, the server has begun the requests before it.
    busy.request("devices.list", json!({})).await;
    let address = server.address();
    let code = tokio::spawn(async move {
        let url = format!("http://{address}/v1/auth/otp");
        let body = json!({ "email": "mailed@example.org" }).to_string();
        reqwest::Client::new().post(url).body(body).send().await.unwrap().status()
    });
    // The ten publishes and the request for a code.
    wait_for_sample(server.admin(), "sealwire_work_under_way", 11.0..=11.0).await;

    server.send_sigterm();
    wait_until_draining(&server).await;
    assert_eq!(idle.close_code().await, 4000, "an idle socket is closed at once");
    busy.event("server.draining").await;
    assert!(!busy.is_closed(), "its requests are not answered yet");
    // Now the server accepts no new requests and no new sockets, but it still answers other HTTP requests.
    let late = busy.expect_reply(2000);
    busy.send(Codec::MsgPack.encode(&json!({ "id": 2000, "op": "devices.list", "params": {} }))).await;
    let bearer = format!("Bearer {}", person.token);
    let (refused, _) = request_upgrade(&server, &[&HANDSHAKE[..], &[("authorization", &bearer)]].concat()).await;
    assert_eq!((refused.status, &refused.body["error"]["code"]), (503, &json!("unavailable")));
    assert!(refused.header("retry-after").is_some());
    let (status, _) = call(&server, Method::GET, "/v1/auth/session", Some(&person.token), None).await;
    assert_eq!(status, StatusCode::OK);

    lock.close().await.unwrap();
    for reply in replies {
        assert_eq!(reply.await.unwrap()["result"]["one_time"]["accepted"].as_array().map(Vec::len), Some(1));
    }
    assert_eq!(busy.close_code().await, 4000);
    assert!(late.await.is_err(), "a request after the start of the drain is not answered");
    assert_eq!(code.await.unwrap(), StatusCode::ACCEPTED);
    assert_eq!(server.stopped().await.code(), Some(0));
    let mailed = mails(server.mail()).iter().filter(|mail| mail.contains("mailed@example.org")).count();
    assert_eq!(mailed, 1, "a mail for an accepted request is sent before the server ends");
    server.restart().await;
    let again = Socket::connect(&server, &person.token, Codec::Json).await;
    assert_eq!(again.welcome["keys"]["one_time"], 10, "what was answered is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sockets_are_closed_in_batches_with_spread_reconnect_times() {
    const SOCKETS: usize = 600;
    let mut server = ServerProcess::start(&[]).await;
    let out = server.path("devices.jsonl");
    let count = SOCKETS.to_string();
    server.command(&["seed", "--users", &count, "--devices", "1", "--prekeys", "1", "--out", out.to_str().unwrap()]);
    let text = std::fs::read_to_string(out).unwrap();
    let tokens: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["token"].as_str().unwrap().to_owned())
        .collect();
    let mut sockets = Vec::new();
    for some in tokens.chunks(100) {
        sockets.extend(join_all(some.iter().map(|token| Socket::connect(&server, token, Codec::Json))).await);
    }
    server.send_sigterm();
    let mut waits = Vec::new();
    for socket in &sockets {
        waits.push(socket.event("server.draining").await["reconnect_in_ms"].as_u64().unwrap());
        assert_eq!(socket.close_code().await, 4000);
    }
    assert_eq!(server.stopped().await.code(), Some(0));
    // The reconnect times are spread over five seconds, with a fair share in each. The bounds are more than six
    // standard deviations away.
    for second in 0..5 {
        let share = waits.iter().filter(|wait| **wait / 1000 == second).count();
        assert!(share > SOCKETS / 10 && share < SOCKETS / 3, "second {second}: {share} of {SOCKETS}");
    }
    assert!(waits.iter().all(|wait| *wait <= 5000));
    // No socket of the second batch of 256 was closed before the pause after the first batch, and so on. The times are
    // those in the server's log, because clients may read much later.
    let log = std::fs::read_to_string(server.path("server.log")).unwrap();
    let times = |message: &str| {
        let entries = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let entries = entries.filter(|entry| entry["fields"]["message"] == message);
        let mut times: Vec<DateTime<Utc>> =
            entries.map(|entry| entry["timestamp"].as_str().unwrap().parse().unwrap()).collect();
        times.sort_unstable();
        times
    };
    // The pauses of 50 ms are counted from before the first batch.
    let (began, closed) = (times("stopping")[0], times("socket closed"));
    assert_eq!(closed.len(), SOCKETS);
    for (batch, first) in closed.iter().step_by(256).enumerate().skip(1) {
        let since = (*first - began).num_milliseconds();
        assert!(since >= 50 * i64::try_from(batch).unwrap(), "batch {batch} came after {since} ms");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_cannot_delay_the_stop() {
    let mut server = ServerProcess::start(&[("SERVER__DRAIN_S", "6"), ("SERVER__OUTBOX_BYTES", "65536")]).await;
    let _non_reading_client = connect_non_reading_client(&server).await;
    // A connection that never finishes its request could delay the stop, too.
    let dangling = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    dangling.try_write(b"POST /v1/auth/otp HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{").unwrap();
    let person = sign_in(&server, "polite@example.org").await;
    let polite = Socket::connect(&server, &person.token, Codec::Json).await;
    let began = Instant::now();
    server.send_sigterm();
    assert_eq!(polite.close_code().await, 4000);
    let (status, _) = call(&server, Method::GET, "/healthz", None, None).await;
    assert_eq!(status, StatusCode::OK, "the listener stays open as long as sockets are open");
    assert_eq!(server.stopped().await.code(), Some(0), "a stop by a signal is a success");
    // Much longer than six seconds, for a busy machine. Without the limit, the client that does not read could stay for
    // a minute.
    assert!(began.elapsed() < Duration::from_secs(40), "it took {:?}", began.elapsed());
    let log = std::fs::read_to_string(server.path("server.log")).unwrap();
    assert!(log.contains("some sockets did not close in time"), "the client did not delay the stop: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_stops_the_server_at_once() {
    let mut server = ServerProcess::start(&[("SERVER__DRAIN_S", "600"), ("SERVER__OUTBOX_BYTES", "65536")]).await;
    let _non_reading_client = connect_non_reading_client(&server).await;
    let person = sign_in(&server, "polite@example.org").await;
    let polite = Socket::connect(&server, &person.token, Codec::Json).await;
    wait_for_sample(server.admin(), "sealwire_open_sockets", 2.0..=2.0).await;
    server.send_sigterm();
    wait_until_draining(&server).await;
    assert_eq!(polite.close_code().await, 4000);
    // All devices are disconnected, and the server waits for the socket of the client that does not read.
    wait_for_sample(server.admin(), "sealwire_open_sockets", 1.0..=1.0).await;
    wait_for_sample(server.admin(), "sealwire_connected_devices", 0.0..=0.0).await;
    // Shortly after the first signal, another one is not counted as a second.
    let stopped = eventually("a signal counts as the second one", || {
        server.send_sigterm();
        let stopped = server.try_stopped();
        async move { stopped }
    })
    .await;
    assert_eq!(stopped.code(), Some(1), "an interrupted drain is a failure");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_loses_a_background_task_drains_and_fails() {
    let app = TestApp::start(&[]);
    let person = sign_in(&app, "alice@example.org").await;
    let socket = Socket::connect(&app, &person.token, Codec::Json).await;
    app.tasks.spawn("canary", async { panic!("a defect") });
    socket.event("server.draining").await;
    assert_eq!(socket.close_code().await, 4000);
    assert!(matches!(app.ended().await, Err(AppError::TaskEnded("canary"))));
}
