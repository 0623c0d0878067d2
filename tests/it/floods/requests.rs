//! Floods of requests on one socket.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::users;
use crate::support::{
    Codec, Member, Socket, TestApp,
    mailing::message,
    problem::assert_problem,
    raw::{RawSocket, TEXT, frame},
    sign_in,
};

/// Fifty requests at once, then five a second.
const FIVE_A_SECOND: &[(&str, &str)] = &[
    ("LIMITS__REQUESTS_PER_CONNECTION_SECOND", "5"),
    ("LIMITS__SENDS_PER_DEVICE_SECOND", "0"),
    ("LIMITS__SENDS_PER_PAIR_SECOND", "0"),
];
const BURST: u64 = 50;

/// Returns a request in a frame of one KiB, padded with spaces.
fn padded(id: u32, op: &str) -> Vec<u8> {
    frame(TEXT, format!("{:<1024}", json!({ "id": id, "op": op }).to_string()).as_bytes())
}

fn frames(ids: std::ops::RangeInclusive<u32>) -> Vec<u8> {
    ids.flat_map(|id| padded(id, "keys.status")).collect()
}

/// Returns how long the client must wait after a refused request.
fn retry_after(error: &Value) -> Duration {
    assert_problem(error, "rate_limited", "a request over the rate");
    let ms = error["retry_after_ms"].as_u64().expect("when to try again");
    // At most the cost of a request plus the largest debt, at a refill of five requests a second.
    assert!((1..=(10 + 51 + 1) * 20).contains(&ms), "{ms}");
    Duration::from_millis(ms)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_requests_is_refused_then_read_slowly_and_other_clients_are_served() {
    let app = TestApp::start(FIVE_A_SECOND);
    let users = users(&app, 2).await;
    let (mut flooder, _) = RawSocket::connect(&app, &users[0].token, Codec::Json).await;
    let other = Socket::connect(&app, &users[1].token, Codec::MsgPack).await;
    // More than the buffers on both sides hold. If refusing cost nothing, the server would read all of it.
    let flood = frames(1..=30_000);
    let few = async || {
        for _ in 0..20 {
            other.barrier().await;
        }
    };
    tokio::join!(flooder.send_until_stuck(&flood), few());
    // The rest of the flood is still unread.
    few().await;
    let (mut done, mut refused) = (0, 0);
    while done + refused < 200 {
        let reply = flooder.message().await.expect("the socket stays open");
        if reply.get("result").is_some() {
            done += 1;
            continue;
        }
        retry_after(&reply["error"]);
        assert!(reply["id"].as_u64().unwrap() > BURST, "the burst is free: {reply}");
        refused += 1;
    }
    assert!(done >= BURST && refused > done, "{done} were done, {refused} refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_has_no_effect_and_succeeds_after_the_wait() {
    let app = TestApp::start(FIVE_A_SECOND);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    let (mut accepted, mut refused) = (Vec::new(), Vec::new());
    let mut next = 1000;
    while refused.is_empty() {
        assert!(accepted.len() < 1000, "nothing is refused");
        // Fewer requests than may be in flight.
        let mut replies = Vec::new();
        for id in next..next + 60 {
            let params = message(&[&bob.person], &id.to_string());
            replies.push(alice.socket.expect_reply(id));
            let request = json!({ "id": id, "op": "messages.send", "params": params });
            alice.socket.send(Codec::Json.encode(&request)).await;
            accepted.push((id, params));
        }
        next += 60;
        for reply in join_all(replies).await {
            let reply = reply.unwrap();
            if let Some(error) = reply.get("error") {
                let at = accepted.iter().position(|(id, _)| reply["id"] == *id).unwrap();
                refused.push((accepted.remove(at), retry_after(error)));
            }
        }
    }
    let ((_, params), wait) = refused.pop().unwrap();
    sleep(wait).await;
    let sent = alice.socket.request("messages.send", params.clone()).await;
    assert_eq!(sent["duplicate"], false, "the refused message was not stored");
    for (_, params) in accepted.iter().chain([&(0, params)]) {
        let arrived = bob.socket.event("message").await;
        assert_eq!(
            arrived["content"], params["messages"][0]["content"],
            "in the order of the frames, without any refused message"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_pipelined_behind_a_renewal_get_one_reply_each_even_if_refused() {
    let app = TestApp::start(FIVE_A_SECOND);
    let person = sign_in(&app, "alice@example.org").await;
    let (mut socket, _) = RawSocket::connect(&app, &person.token, Codec::Json).await;
    socket.send(&[padded(1, "session.renew"), frames(2..=60)].concat()).await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 1..=60 {
        let reply = socket.message().await.expect("the socket stays open");
        let id = reply["id"].as_u64().unwrap();
        assert!(seen.insert(id), "a second reply: {reply}");
        if let Some(error) = reply.get("error") {
            retry_after(error);
            assert!(id > BURST, "{reply}");
        }
    }
    assert!(seen.into_iter().eq(1..=60));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_rate_of_zero_means_no_limit() {
    let app = TestApp::start(&[("LIMITS__REQUESTS_PER_CONNECTION_SECOND", "0")]);
    let person = sign_in(&app, "alice@example.org").await;
    let socket = Socket::connect(&app, &person.token, Codec::Json).await;
    for _ in 0..10 {
        join_all((0..50).map(|_| socket.barrier())).await;
    }
}
