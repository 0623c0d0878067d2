//! Mailbox limits: number of messages, bytes, the share of one sender, and expiry.

use std::time::Duration;

use serde_json::json;

use crate::{
    metrics::wait_for_sample,
    support::{
        Codec, Member, Socket, TestApp, eventually,
        mailing::{content, message},
        problem::assert_problem,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_mailbox_does_not_block_delivery_to_other_devices() {
    let app = TestApp::start(&[("MAILBOX__MAX_ENVELOPES", "3")]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let phone = Member::join(&app, "bob@example.org", Codec::Json).await;
    let laptop = Member::join(&app, "bob@example.org", Codec::Json).await;
    let both = [&phone.person, &laptop.person];
    for n in 1..=3 {
        alice.send(&both, &n.to_string()).await;
        phone.receives(&n.to_string()).await;
    }
    let params = message(&both, "four");
    let full = json!([{ "device_id": laptop.person.device, "reason": "mailbox_full" }]);
    let sent = alice.socket.request("messages.send", params.clone()).await;
    assert_eq!((&sent["duplicate"], &sent["undelivered"]), (&json!(false), &full));
    phone.receives("four").await;
    let again = alice.socket.request("messages.send", params.clone()).await;
    assert_eq!((&again["duplicate"], &again["undelivered"]), (&json!(true), &full));

    // Once its mailbox has space, a repeat is stored for the device that was left out, and for no other.
    for n in 1..=3 {
        laptop.receives(&n.to_string()).await;
    }
    let again = alice.socket.request("messages.send", params.clone()).await;
    assert_eq!((&again["duplicate"], &again["undelivered"]), (&json!(true), &json!([])));
    assert_eq!(again["accepted_at"], sent["accepted_at"]);
    assert_eq!(laptop.receives("four").await["seq"], 4);
    assert_eq!(alice.socket.request("messages.send", params).await["undelivered"], json!([]));
    alice.send(&both, "five").await;
    assert_eq!(phone.receives("five").await["seq"], 5, "nothing was stored twice");

    // The send fails only if no mailbox had space, and then its id is not remembered.
    for n in 6..=8 {
        alice.send(&both, &n.to_string()).await;
    }
    laptop.socket.request("devices.revoke", json!({ "device_id": laptop.person.device })).await;
    let params = message(&[&phone.person], "nine");
    let error = alice.socket.refused("messages.send", params.clone()).await;
    assert_problem(&error, "mailbox_full", "no device could store it");
    assert!(error["retry_after_ms"].is_u64());
    phone.receives("6").await;
    assert_eq!(alice.socket.request("messages.send", params).await["duplicate"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn mailboxes_are_limited_in_bytes_per_sender_and_in_total() {
    let app = TestApp::start(&[("MAILBOX__MAX_BYTES", "65536"), ("MAILBOX__MAX_BYTES_PER_SENDER", "40000")]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let carol = Member::join(&app, "carol@example.org", Codec::Json).await;
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    let text = |bytes: usize| "x".repeat(bytes);
    alice.send(&[&bob.person], &text(20_000)).await;
    alice.send(&[&bob.person], &text(20_000)).await;
    let error = alice.socket.refused("messages.send", message(&[&bob.person], "x")).await;
    assert_problem(&error, "mailbox_full", "over the sender's share");
    carol.send(&[&bob.person], &text(25_536)).await;
    let error = carol.socket.refused("messages.send", message(&[&bob.person], "x")).await;
    assert_problem(&error, "mailbox_full", "over the mailbox's limit");
    bob.receives(&text(20_000)).await;
    alice.send(&[&bob.person], &text(20_000)).await;
    for bytes in [20_000, 25_536, 20_000] {
        bob.receives(&text(bytes)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sender_cannot_fill_a_mailbox() {
    let app = TestApp::start(&[("MAILBOX__MAX_PER_SENDER", "5"), ("MAILBOX__MAX_ENVELOPES", "8")]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let twin = Member::join(&app, "alice@example.org", Codec::Json).await;
    let carol = Member::join(&app, "carol@example.org", Codec::Json).await;
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    for n in 0..5 {
        // All devices of a user count against one share.
        let sender = if n % 2 == 0 { &alice } else { &twin };
        sender.send(&[&bob.person], &n.to_string()).await;
    }
    for sender in [&alice, &twin] {
        let error = sender.socket.refused("messages.send", message(&[&bob.person], "x")).await;
        assert_problem(&error, "mailbox_full", "over the sender's share");
    }
    for n in 5..8 {
        carol.send(&[&bob.person], &n.to_string()).await;
    }
    let error = carol.socket.refused("messages.send", message(&[&bob.person], "x")).await;
    assert_problem(&error, "mailbox_full", "over the mailbox's limit");
    for n in 0..8 {
        assert_eq!(bob.receives(&n.to_string()).await["seq"], n + 1);
    }
    alice.send(&[&bob.person], "again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unfetched_messages_expire_and_are_counted() {
    let app = TestApp::with_clock(&[("AUTH__SESSION_DAYS", "60")]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let mut bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    let mut short = message(&[&bob.person], "short");
    short["ttl_s"] = 60.into();
    alice.socket.request("messages.send", short.clone()).await;
    alice.send(&[&bob.person], "long").await;
    app.advance(Duration::from_secs(59));
    bob.reconnect(&app, Codec::Json).await;
    assert_eq!(bob.socket.event("message").await["content"], content("short"));
    app.advance(Duration::from_secs(1));
    // The expired message is not delivered and, after the sweep, not counted as waiting.
    bob.reconnect(&app, Codec::Json).await;
    assert_eq!(bob.socket.event("message").await["content"], content("long"));
    bob.socket = eventually("the sweep has deleted the expired message", || async {
        let socket = Socket::connect(&app, &bob.person.token, Codec::Json).await;
        (socket.welcome["mailbox"] == json!({ "waiting": 1, "expired_total": 1 })).then_some(socket)
    })
    .await;
    wait_for_sample(app.admin(), "sealwire_expired_envelopes_total", 1.0..=1.0).await;
    let seq = bob.receives("long").await["seq"].clone();
    assert_eq!(seq, 2);
    assert_eq!(bob.socket.request("messages.ack", json!({ "seqs": [1] })).await, json!({ "acked": 0 }));
    // A message is kept for thirty days, although its id is remembered only for one day.
    alice.send(&[&bob.person], "thirty days").await;
    app.advance(Duration::from_hours(30 * 24) - Duration::from_secs(1));
    bob.reconnect(&app, Codec::Json).await;
    assert_eq!(bob.receives("thirty days").await["seq"], 3);
    app.advance(Duration::from_secs(1));
    bob.reconnect(&app, Codec::Json).await;
    bob.socket.event("mailbox.drained").await;
    assert_eq!(bob.socket.take_event("message"), None, "kept for thirty days and no longer");
}
