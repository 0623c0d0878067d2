//! Which connections stay open: displacement, slow readers and the heartbeat.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sealwire::domain::Suite;
use serde_json::json;

use crate::{
    metrics::wait_for_sample,
    support::{
        Codec, KeySet, Person, ServerProcess, Socket, TestApp, eventually,
        raw::{CLOSE, PING, PONG, RawSocket, data, encode, frame},
        sign_in,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_displaces_the_older() {
    let app = TestApp::start(&[]);
    let token = sign_in(&app, "twice@example.org").await.token;
    let mut older = Socket::connect(&app, &token, Codec::Json).await;
    for round in 0..50 {
        let newer = Socket::connect(&app, &token, Codec::ALL[round % 2]).await;
        assert_eq!(older.close_code().await, 4503);
        newer.barrier().await;
        older = newer;
    }
    // Several at the same moment: only the connection that was registered last stays open.
    for _ in 0..15 {
        let sockets = join_all((0..6).map(|_| Socket::try_connect(&app, &token, Codec::MsgPack))).await;
        let sockets: Vec<Socket> = sockets.into_iter().flatten().collect();
        eventually("all but one are closed", || async {
            (sockets.iter().filter(|socket| !socket.is_closed()).count() <= 1).then_some(())
        })
        .await;
        for socket in &sockets {
            if socket.is_closed() {
                assert_eq!(socket.close_code().await, 4503);
            } else {
                socket.barrier().await;
            }
        }
        let survivors = sockets.iter().filter(|socket| !socket.is_closed()).count();
        assert_eq!(survivors, 1, "the newest connection stays");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_use_bounded_memory_and_do_not_affect_others() {
    const FLOODERS: usize = 8;
    const REQUESTS: u64 = 120_000;
    const IN_FLIGHT: u64 = 64;
    const BOUND: usize = 64 * 1024 * 1024;
    let server = ServerProcess::start(&[]).await;
    let mut target = String::new();
    for seed in 0..5 {
        let owner = sign_in(&server, "owner@example.org").await;
        let socket = Socket::connect(&server, &owner.token, Codec::Json).await;
        socket.request("keys.publish", KeySet::new(Suite::SignalPqxdh, seed).complete(1..=5)).await;
        target = owner.user;
    }
    let other = sign_in(&server, "other@example.org").await;
    let other = Socket::connect(&server, &other.token, Codec::Json).await;
    let fetch = json!({ "user_id": target });
    other.request("keys.fetch", fetch.clone()).await;
    // First as many long replies as may be in flight, then very many short ones. Together they are more than twice the
    // bound.
    let request = |id: u64| match id {
        ..=IN_FLIGHT => json!({ "id": id, "op": "keys.fetch", "params": fetch }),
        _ => json!({ "id": id, "op": "x" }),
    };
    let flood: Vec<u8> = (1..=REQUESTS).flat_map(|id| data(Codec::Json, &encode(Codec::Json, &request(id)))).collect();
    let before = server.resident_bytes();
    let assert_bounded = || {
        let grown = server.resident_bytes().saturating_sub(before);
        assert!(grown < BOUND, "memory grew by {grown} bytes");
    };
    let mut flooders = Vec::new();
    for index in 0..FLOODERS {
        let person = sign_in(&server, &format!("flooder{index}@example.org")).await;
        let (socket, _) = RawSocket::connect(&server, &person.token, Codec::Json).await;
        socket.send_in_background(flood.clone());
        flooders.push(socket);
    }
    for _ in 0..200 {
        other.request("keys.fetch", fetch.clone()).await;
        assert_bounded();
    }
    // A client that reads after all gets every reply once.
    let mut late = flooders.pop().unwrap();
    let mut answered = vec![false; usize::try_from(REQUESTS).unwrap() + 1];
    for _ in 1..=REQUESTS {
        let reply = late.message().await.expect("the socket stays open");
        let id = reply["id"].as_u64().unwrap();
        assert!(!std::mem::replace(&mut answered[usize::try_from(id).unwrap()], true), "a second reply to {id}");
        match reply["error"]["code"].as_str() {
            None => assert_eq!(reply["result"]["bundles"].as_array().map(Vec::len), Some(5)),
            Some(code) => assert!(id > IN_FLIGHT && ["unknown_op", "too_many_in_flight"].contains(&code), "{reply}"),
        }
    }
    assert_bounded();
    other.barrier().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_for_half_a_minute_is_closed_and_can_reconnect() {
    // More replies than the kernel's buffers and the outbox take together.
    const REQUESTS: u64 = 250_000;
    let app = TestApp::start(&[("SERVER__OUTBOX_BYTES", "65536")]);
    let person = sign_in(&app, "away@example.org").await;
    let (mut socket, _) = RawSocket::connect(&app, &person.token, Codec::Json).await;
    let request = |id: u64| data(Codec::Json, &encode(Codec::Json, &json!({ "id": id, "op": "x" })));
    socket.send_in_background((1..=REQUESTS).flat_map(request).collect());
    // The Close frame waits half a minute for its reader.
    wait_for_sample(app.admin(), "sealwire_closes_total{code=\"4002\"}", 1.0..=1.0).await;
    assert_eq!(socket.close_code().await, 4002);
    Socket::connect(&app, &person.token, Codec::Json).await.barrier().await;
}

/// Connects and reads pings: two of them if `answers`, else all until the socket is closed. Returns when the pings
/// arrived, and either the open socket or time and code of the close. Times are counted from before the connect.
async fn collect_pings(
    app: &TestApp,
    person: Person,
    answers: bool,
) -> (Vec<Duration>, Result<RawSocket, (Duration, u16)>) {
    let started = Instant::now();
    let (mut socket, _) = RawSocket::connect(app, &person.token, Codec::Json).await;
    let mut pings = Vec::new();
    while !answers || pings.len() < 2 {
        match socket.frame().await.expect("a close has a frame") {
            (PING, payload) => {
                pings.push(started.elapsed());
                if answers {
                    socket.send(&frame(PONG, &payload)).await;
                }
            }
            (CLOSE, payload) => {
                return (pings, Err((started.elapsed(), u16::from_be_bytes(*payload.first_chunk().unwrap()))));
            }
            _ => {}
        }
    }
    (pings, Ok(socket))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_socket_is_pinged_and_a_silent_one_is_closed_after_a_minute() {
    // How late everything may be on a busy machine. It is less than the time between two pings.
    const SLACK: Duration = Duration::from_secs(20);
    let seconds = Duration::from_secs;
    let app = TestApp::start(&[]);
    let mut users = Vec::new();
    for index in 0..8 {
        users.push(sign_in(&app, &format!("idle{index}@example.org")).await);
    }
    let results =
        join_all(users.into_iter().zip(0..).map(|(person, index)| collect_pings(&app, person, index < 2))).await;
    for (index, (pings, end)) in results.into_iter().enumerate() {
        assert!(pings.len() >= 2 && pings[0] <= seconds(25) + SLACK, "pings of {index}: {pings:?}");
        for pair in pings.windows(2) {
            let between = pair[1].saturating_sub(pair[0]);
            assert!(
                between + SLACK / 2 >= seconds(25) && between <= seconds(25) + SLACK,
                "pings of {index}: {pings:?}"
            );
        }
        // By now more than a minute has passed for all of them.
        match end {
            Ok(mut answering) => assert!(answering.status(1).await["result"].is_object()),
            Err((after, code)) => {
                assert_eq!((code, index < 2), (4001, false), "socket {index} after {after:?}");
                assert!(after >= seconds(60) && after <= seconds(60) + SLACK, "closed after {after:?}");
            }
        }
    }
}
