//! Delivery: the backlog after a connect, live messages, acks, redelivery and flow control.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::{
    metrics::wait_for_sample,
    support::{
        Codec, Member, PATIENCE, Person, ServerProcess, Socket, TestApp, eventually,
        mailing::{content, message},
        socket::{Stream, connect_raw},
    },
};

/// Sends numbered messages in order, up to 50 at a time without waiting for the replies.
async fn send_many(from: &Member, to: &Person, numbers: std::ops::Range<u32>, pad: usize) {
    let all: Vec<u32> = numbers.collect();
    for some in all.chunks(50) {
        let mut replies = Vec::new();
        for n in some {
            let params = message(&[to], &text(*n, pad));
            let id = 100_000 + n;
            replies.push(from.socket.expect_reply(id));
            from.socket.send(Codec::Json.encode(&json!({ "id": id, "op": "messages.send", "params": params }))).await;
        }
        for reply in replies {
            let reply = reply.await.unwrap();
            assert!(reply.get("result").is_some(), "{reply}");
        }
    }
}

fn text(n: u32, pad: usize) -> String {
    format!("{n}:{}", "x".repeat(pad))
}

fn assert_message(message: &Value, n: u32, pad: usize) {
    assert_eq!((&message["seq"], &message["content"]), (&json!(n), &json!(content(&text(n, pad)))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_arrives_in_order_and_mailbox_drained_follows_it() {
    let app = TestApp::start(&[("LIMITS__SENDS_PER_DEVICE_SECOND", "0"), ("LIMITS__SENDS_PER_PAIR_SECOND", "0")]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let mut bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    assert_eq!(bob.socket.event("mailbox.drained").await, json!({}));
    drop(bob.socket);
    send_many(&alice, &bob.person, 1..601, 0).await;

    bob.socket = Socket::connect(&app, &bob.person.token, Codec::Json).await;
    assert_eq!(bob.socket.welcome["mailbox"], json!({ "waiting": 600, "expired_total": 0 }));
    let mut unacked = Vec::new();
    for n in 1..=256 {
        let message = bob.socket.event("message").await;
        assert_message(&message, n, 0);
        unacked.push(message);
    }
    // Without an ack, no further message is sent.
    bob.socket.barrier().await;
    assert_eq!(bob.socket.take_event("message"), None, "at most 256 messages are unacked");
    assert_eq!(bob.socket.take_event("mailbox.drained"), None);
    // Live messages come after the backlog.
    send_many(&alice, &bob.person, 601..621, 0).await;
    bob.ack(&unacked.iter().collect::<Vec<_>>()).await;
    for n in 257..=620 {
        let message = bob.socket.event("message").await;
        assert_message(&message, n, 0);
        bob.ack(&[&message]).await;
    }
    bob.socket.event("mailbox.drained").await;
    assert_eq!(bob.socket.take_event("mailbox.drained"), None, "sent once");
    bob.reconnect(&app, Codec::Json).await;
    assert_eq!(bob.socket.welcome["mailbox"]["waiting"], 0);
}

/// Reads the next event or reply of a raw connection.
async fn next_frame(stream: &mut Stream) -> Value {
    loop {
        match timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap() {
            Message::Text(text) => break serde_json::from_str(&text).unwrap(),
            other => assert!(other.is_ping(), "{other:?}"),
        }
    }
}

/// Reads the next frame, which must be the message with this number.
async fn assert_next_message(stream: &mut Stream, n: u32) {
    let frame = next_frame(stream).await;
    assert_eq!(frame["event"], "message", "{frame}");
    assert_message(&frame["data"], n, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn mailbox_drained_comes_after_the_backlog_and_before_live_messages() {
    // At most this many messages are sent without an ack; the rest of a longer backlog waits for acks.
    const WINDOW: u32 = 256;
    const BACKLOG: u32 = 300;
    const ALL: u32 = BACKLOG + 40;
    let app = TestApp::start(&[("LIMITS__SENDS_PER_DEVICE_SECOND", "0"), ("LIMITS__SENDS_PER_PAIR_SECOND", "0")]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await.person;
    send_many(&alice, &bob, 1..BACKLOG + 1, 0).await;
    let mut stream = connect_raw(&app, Some(&bob.token), "sealwire.v1.json").await.unwrap();
    assert_eq!(next_frame(&mut stream).await["data"]["mailbox"]["waiting"], BACKLOG);
    assert_eq!(next_frame(&mut stream).await["event"], "prekeys.low");
    for n in 1..=WINDOW {
        assert_next_message(&mut stream, n).await;
    }
    send_many(&alice, &bob, BACKLOG + 1..ALL + 1, 0).await;
    let ack = json!({ "id": 7, "op": "messages.ack", "params": { "seqs": (1..=WINDOW).collect::<Vec<_>>() } });
    stream.send(Codec::Json.encode(&ack)).await.unwrap();
    assert_eq!(next_frame(&mut stream).await, json!({ "id": 7, "result": { "acked": WINDOW } }));
    for n in WINDOW + 1..=BACKLOG {
        assert_next_message(&mut stream, n).await;
    }
    assert_eq!(next_frame(&mut stream).await, json!({ "event": "mailbox.drained", "data": {} }));
    for n in BACKLOG + 1..=ALL {
        assert_next_message(&mut stream, n).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_welcome_counts_the_backlog_correctly_during_concurrent_sends() {
    const EACH: u32 = 40;
    let app = TestApp::start(&[("LIMITS__SENDS_PER_DEVICE_SECOND", "0"), ("LIMITS__SENDS_PER_PAIR_SECOND", "0")]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let mut bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    for round in 0..=EACH / 2 {
        // Some messages (more in each round) are sent before the connect, the others concurrently with it.
        let (start, before) = (round * EACH + 1, 2 * round);
        send_many(&alice, &bob.person, start..start + before, 0).await;
        let connect = async { connect_raw(&app, Some(&bob.person.token), "sealwire.v1.json").await.unwrap() };
        let concurrent_sends = send_many(&alice, &bob.person, start + before..start + EACH, 0);
        let (mut stream, ()) = tokio::join!(connect, concurrent_sends);
        let welcome = next_frame(&mut stream).await;
        assert_eq!(next_frame(&mut stream).await["event"], "prekeys.low");
        let backlog = u32::try_from(welcome["data"]["mailbox"]["waiting"].as_u64().unwrap()).unwrap();
        assert!((before..=EACH).contains(&backlog), "round {round}: {backlog}");
        for n in 0..EACH {
            if n == backlog {
                assert_eq!(next_frame(&mut stream).await["event"], "mailbox.drained", "round {round}");
            }
            assert_next_message(&mut stream, start + n).await;
        }
        if backlog == EACH {
            assert_eq!(next_frame(&mut stream).await["event"], "mailbox.drained", "round {round}");
        }
        bob.reconnect(&app, Codec::Json).await;
        let seqs: Vec<u32> = (start..start + EACH).collect();
        assert_eq!(bob.socket.request("messages.ack", json!({ "seqs": seqs })).await, json!({ "acked": EACH }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unacked_messages_fill_at_most_half_the_outbox() {
    let app = TestApp::start(&[
        ("LIMITS__SENDS_PER_DEVICE_SECOND", "0"),
        ("LIMITS__SENDS_PER_PAIR_SECOND", "0"),
        ("SERVER__OUTBOX_BYTES", "262144"),
    ]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let bob = Member::join(&app, "bob@example.org", Codec::MsgPack).await;
    let pad = 30_000;
    send_many(&alice, &bob.person, 1..31, pad).await;
    let mut got = Vec::new();
    for n in 1..=4 {
        let message = bob.socket.event("message").await;
        assert_message(&message, n, pad);
        got.push(message);
    }
    bob.socket.barrier().await;
    assert_eq!(bob.socket.take_event("message"), None, "four messages fit into 131072 bytes");
    // Each ack allows one more message.
    for n in 5..=30 {
        bob.ack(&[&got.remove(0)]).await;
        let message = bob.socket.event("message").await;
        assert_message(&message, n, pad);
        got.push(message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_unacked_for_a_minute_is_sent_again() {
    let app = TestApp::start(&[]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    let began = Instant::now();
    for n in ["one", "two", "three"] {
        alice.send(&[&bob.person], n).await;
    }
    let first = bob.socket.event("message").await;
    let second = bob.socket.event("message").await;
    bob.socket.event("message").await;
    bob.ack(&[&second]).await;
    let again = tokio::time::timeout(Duration::from_secs(100), async {
        loop {
            if let Some(message) = bob.socket.take_event("message") {
                return message;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    assert_eq!(again.await.expect("sent again after a minute"), first);
    assert!(began.elapsed() >= Duration::from_mins(1), "not before a minute has passed");
    bob.receives("three").await;
    bob.ack(&[&first]).await;
    assert_eq!(bob.socket.take_event("message"), None, "an acked message is not sent again");
    wait_for_sample(app.admin(), "sealwire_redeliveries_total", 2.0..=2.0).await;
    wait_for_sample(app.admin(), "sealwire_deliveries_total", 3.0..=3.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_reconnects_during_its_backlog_gets_every_message() {
    // Every ninth message, a new connection displaces the previous one in the middle of the backlog.
    let app = TestApp::start(&[("LIMITS__SENDS_PER_DEVICE_SECOND", "0"), ("LIMITS__SENDS_PER_PAIR_SECOND", "0")]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let mut bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    send_many(&alice, &bob.person, 1..101, 0).await;
    let mut next = 1;
    while next <= 100 {
        let message = bob.socket.event("message").await;
        assert_message(&message, next, 0);
        bob.ack(&[&message]).await;
        next += 1;
        if next % 9 == 0 {
            bob.reconnect(&app, Codec::Json).await;
        }
    }
    let emptied = eventually("the mailbox is empty", || async {
        let socket = Socket::connect(&app, &bob.person.token, Codec::Json).await;
        (socket.welcome["mailbox"]["waiting"] == 0).then_some(())
    });
    emptied.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_is_disconnected_and_gets_every_message_later() {
    // All messages together are larger than the bound on the server's memory.
    const MESSAGES: u32 = 4000;
    const PAD: usize = 20_000;
    const BOUND: usize = 64 * 1024 * 1024;
    let settings = [
        ("LIMITS__SENDS_PER_DEVICE_SECOND", "0"),
        ("LIMITS__SENDS_PER_PAIR_SECOND", "0"),
        ("MAILBOX__MAX_PER_SENDER", "10000"),
        ("MAILBOX__MAX_BYTES", "268435456"),
        ("MAILBOX__MAX_BYTES_PER_SENDER", "268435456"),
    ];
    let server = ServerProcess::start(&settings).await;
    let alice = Member::join(&server, "alice@example.org", Codec::Json).await;
    let carol = Member::join(&server, "carol@example.org", Codec::MsgPack).await;
    let mut bob = Member::join(&server, "bob@example.org", Codec::Json).await;
    let mut stalled = connect_raw(&server, Some(&bob.person.token), "sealwire.v1.json").await.unwrap();
    assert_eq!(bob.socket.close_code().await, 4503);
    let before = server.resident_bytes();
    send_many(&alice, &bob.person, 1..MESSAGES + 1, PAD).await;
    // The stalled connection is closed a minute after it last took any bytes.
    let began = Instant::now();
    let closed = || std::fs::read_to_string(server.path("server.log")).unwrap().contains("\"code\":4002");
    let mut rounds = 0;
    while !closed() {
        assert!(began.elapsed() < Duration::from_mins(2), "a slow reader is closed");
        let text = format!("meanwhile {rounds}");
        alice.send(&[&carol.person], &text).await;
        carol.receives(&text).await;
        let grown = server.resident_bytes().saturating_sub(before);
        assert!(grown < BOUND, "memory grew by {grown} bytes");
        rounds += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let code = loop {
        if let Message::Close(Some(close)) = stalled.next().await.unwrap().unwrap() {
            break u16::from(close.code);
        }
    };
    assert_eq!(code, 4002);
    bob.reconnect(&server, Codec::MsgPack).await;
    assert_eq!(bob.socket.welcome["mailbox"]["waiting"], MESSAGES);
    for n in 1..=MESSAGES {
        let message = bob.socket.event("message").await;
        assert_message(&message, n, PAD);
        bob.ack(&[&message]).await;
    }
    bob.socket.event("mailbox.drained").await;
}
