//! Whoever asks too much of one socket.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::people;
use crate::support::{
    Codec, Member, Socket, TestApp,
    mailing::message,
    problem::assert_problem,
    raw::{RawSocket, TEXT, frame},
    sign_in,
};

/// Fifty requests at once, then five a second.
const FIVE_A_SECOND: &[(&str, &str)] =
    &[("LIMITS__REQUESTS_PER_CONNECTION_SECOND", "5"), ("LIMITS__SENDS_PER_DEVICE_SECOND", "0")];
const BURST: u64 = 50;

/// A request as a frame of a kibibyte, most of it blank.
fn padded(id: u32, op: &str) -> Vec<u8> {
    frame(TEXT, format!("{:<1024}", json!({ "id": id, "op": op }).to_string()).as_bytes())
}

fn frames(ids: std::ops::RangeInclusive<u32>) -> Vec<u8> {
    ids.flat_map(|id| padded(id, "keys.status")).collect()
}

/// For how long a refused request is to wait.
fn told(error: &Value) -> Duration {
    assert_problem(error, "rate_limited", "a request over the rate");
    let ms = error["retry_after_ms"].as_u64().expect("when to try again");
    // What a request costs and the deepest debt, at what five requests a second earn.
    assert!((1..=(10 + 51 + 1) * 20).contains(&ms), "{ms}");
    Duration::from_millis(ms)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_requests_is_refused_and_then_read_slowly_and_nobody_else_notices() {
    let app = TestApp::start(FIVE_A_SECOND);
    let people = people(&app, 2).await;
    let (mut flooder, _) = RawSocket::connect(&app, &people[0].token, Codec::Json).await;
    let other = Socket::connect(&app, &people[1].token, Codec::MsgPack).await;
    // More than the buffers on both sides hold: where refusing were free, all of it would be read.
    let flood = frames(1..=30_000);
    let few = async || {
        for _ in 0..20 {
            other.barrier().await;
        }
    };
    tokio::join!(flooder.send_until_stuck(&flood), few());
    // The rest of the flood is still there.
    few().await;
    let (mut done, mut refused) = (0, 0);
    while done + refused < 200 {
        let reply = flooder.message().await.expect("the socket stays open");
        if reply.get("result").is_some() {
            done += 1;
            continue;
        }
        told(&reply["error"]);
        assert!(reply["id"].as_u64().unwrap() > BURST, "the burst is free: {reply}");
        refused += 1;
    }
    assert!(done >= BURST && refused > done, "{done} were done, {refused} refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_as_told_gets_through_and_what_was_refused_has_not_happened() {
    let app = TestApp::start(FIVE_A_SECOND);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    let (mut accepted, mut refused) = (Vec::new(), Vec::new());
    let mut next = 1000;
    while refused.is_empty() {
        assert!(accepted.len() < 1000, "nothing is refused");
        // Fewer than may be unanswered.
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
                refused.push((accepted.remove(at), told(error)));
            }
        }
    }
    let ((_, params), wait) = refused.pop().unwrap();
    sleep(wait).await;
    let sent = alice.socket.request("messages.send", params.clone()).await;
    assert_eq!(sent["duplicate"], false, "it had been refused");
    for (_, params) in accepted.iter().chain([&(0, params)]) {
        let arrived = bob.socket.event("message").await;
        assert_eq!(
            arrived["content"], params["messages"][0]["content"],
            "in the order of the frames, and nothing else"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_behind_a_renewal_waits_for_nothing() {
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
            told(error);
            assert!(id > BURST, "{reply}");
        }
    }
    assert!(seen.into_iter().eq(1..=60));
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_turns_the_rate_off() {
    let app = TestApp::start(&[("LIMITS__REQUESTS_PER_CONNECTION_SECOND", "0")]);
    let person = sign_in(&app, "alice@example.org").await;
    let socket = Socket::connect(&app, &person.token, Codec::Json).await;
    for _ in 0..10 {
        join_all((0..50).map(|_| socket.barrier())).await;
    }
}
