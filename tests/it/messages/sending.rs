//! Sending: which messages are accepted, and for which devices they are stored.

use std::{collections::HashMap, time::Duration};

use futures_util::future::join_all;
use sealwire::domain::Suite;
use serde_json::{Value, json};
use sqlx::{ConnectOptions, sqlite::SqliteConnectOptions};
use uuid::Uuid;

use crate::support::{
    Codec, KeySet, Member, Socket, TestApp,
    http::confirmation,
    mailing::{content, message},
    problem::assert_problem,
    sign_in,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_reaches_every_device_and_is_deleted_once_acked() {
    for (ours, theirs) in [(Codec::Json, Codec::MsgPack), (Codec::MsgPack, Codec::Json)] {
        let app = TestApp::with_clock(&[]);
        let alice = Member::join(&app, "alice@example.org", ours).await;
        let phone = Member::join(&app, "bob@example.org", theirs).await;
        let mut laptop = Member::join(&app, "bob@example.org", theirs).await;
        let id = Uuid::new_v4();
        let sent = alice
            .socket
            .request(
                "messages.send",
                json!({ "message_id": id, "to": phone.person.user, "messages": [
                    { "device_id": laptop.person.device, "type": 0, "content": content("for the laptop") },
                    { "device_id": phone.person.device, "type": 255, "content": content("for the phone") },
                ] }),
            )
            .await;
        let accepted_at = "2026-06-01T12:00:00.000000Z";
        assert_eq!(sent, json!({ "accepted_at": accepted_at, "duplicate": false, "stored": 2, "undelivered": [] }));
        for (member, kind, text) in [(&phone, 255, "for the phone"), (&laptop, 0, "for the laptop")] {
            let expected = json!({
                "seq": 1, "message_id": id, "from": { "user_id": alice.person.user, "device_id": alice.person.device },
                "type": kind, "content": content(text), "accepted_at": accepted_at, "ephemeral": false,
            });
            assert_eq!(member.socket.event("message").await, expected);
        }
        assert_eq!(phone.socket.request("messages.ack", json!({ "seqs": [1, 1, 2, 0] })).await, json!({ "acked": 1 }));
        assert_eq!(phone.socket.request("messages.ack", json!({ "seqs": [1] })).await, json!({ "acked": 0 }));
        assert_eq!(phone.socket.request("messages.ack", json!({ "seqs": [] })).await, json!({ "acked": 0 }));

        // An unacked message is sent again on the next connection, an acked one is not.
        laptop.reconnect(&app, theirs).await;
        assert_eq!(laptop.socket.welcome["mailbox"], json!({ "waiting": 1, "expired_total": 0 }));
        laptop.receives("for the laptop").await;
        laptop.reconnect(&app, theirs).await;
        assert_eq!(laptop.socket.welcome["mailbox"], json!({ "waiting": 0, "expired_total": 0 }));
        assert_eq!(laptop.socket.event("mailbox.drained").await, json!({}));
        assert_eq!(laptop.socket.take_event("message"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_messages_arrive_in_the_order_of_their_frames() {
    let app = TestApp::start(&[("LIMITS__SENDS_PER_DEVICE_SECOND", "0"), ("LIMITS__SENDS_PER_PAIR_SECOND", "0")]);
    let bob = Member::join(&app, "bob@example.org", Codec::MsgPack).await;
    let alice = Member::join(&app, "alice@example.org", Codec::MsgPack).await;
    let carol = Member::join(&app, "carol@example.org", Codec::Json).await;
    let rounds = 5;
    for round in 0..rounds {
        let sends = |from: &'static str, member: &'_ Member| {
            let frames: Vec<_> = (0..60)
                .map(|n| {
                    let id = round * 100 + n + 1000;
                    // Some requests are refused at once; even so, later ones must not overtake earlier ones.
                    let params = match n % 7 {
                        6 => json!({ "message_id": 5 }),
                        _ => message(&[&bob.person], &format!("{from} {round} {n}")),
                    };
                    (member.socket.expect_reply(id), json!({ "id": id, "op": "messages.send", "params": params }))
                })
                .collect();
            frames
        };
        let (one, two) = (sends("alice", &alice), sends("carol", &carol));
        let send = async |member: &Member, codec: Codec, frames: Vec<(_, Value)>| {
            let mut replies = Vec::new();
            for (reply, frame) in frames {
                member.socket.send(codec.encode(&frame)).await;
                replies.push(reply);
            }
            join_all(replies).await
        };
        let (one, two) = futures_util::join!(send(&alice, Codec::MsgPack, one), send(&carol, Codec::Json, two));
        for reply in one.into_iter().chain(two) {
            let reply: Value = reply.unwrap();
            assert!(reply.get("result").is_some() || reply["error"]["code"] == "bad_request", "{reply}");
        }
    }
    let expected: Vec<(u32, u32)> =
        (0..rounds).flat_map(|round| (0..60).filter(|n| n % 7 != 6).map(move |n| (round, n))).collect();
    let mut places = HashMap::<String, usize>::new();
    for seq in 1..=2 * expected.len() {
        let message = bob.socket.event("message").await;
        assert_eq!(message["seq"], seq);
        bob.ack(&[&message]).await;
        let from = message["from"]["device_id"].as_str().unwrap().to_owned();
        let name = if from == alice.person.device { "alice" } else { "carol" };
        let place = places.entry(from).or_default();
        let (round, n) = expected[*place];
        *place += 1;
        assert_eq!(message["content"], content(&format!("{name} {round} {n}")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_must_name_exactly_the_addressable_devices() {
    let app = TestApp::with_clock(&[]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let other = Member::join(&app, "alice@example.org", Codec::Json).await;
    let phone = Member::join(&app, "bob@example.org", Codec::Json).await;
    let laptop = Member::join(&app, "bob@example.org", Codec::Json).await;
    let silent = sign_in(&app, "bob@example.org").await;
    let revoked = Member::join(&app, "bob@example.org", Codec::Json).await;
    phone.socket.request("devices.revoke", json!({ "device_id": revoked.person.device })).await;

    let sorted = |ids: &[&str]| {
        let mut ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        ids.sort();
        json!(ids)
    };
    let (p, l) = (phone.person.device.as_str(), laptop.person.device.as_str());
    let foreign = Uuid::new_v4().to_string();
    let cases: [(Vec<&str>, Vec<&str>, Vec<&str>); 8] = [
        (vec![], vec![p, l], vec![]),
        (vec![p], vec![l], vec![]),
        (vec![p, l, p], vec![], vec![p]),
        (vec![p, l, &silent.device], vec![], vec![&silent.device]),
        (vec![p, l, &revoked.person.device], vec![], vec![&revoked.person.device]),
        (vec![p, l, &foreign], vec![], vec![&foreign]),
        (
            vec![p, l, &alice.person.device, &other.person.device],
            vec![],
            vec![&alice.person.device, &other.person.device],
        ),
        (vec![p, p, &foreign], vec![l], vec![p, &foreign]),
    ];
    for (named, missing, extra) in cases {
        let messages: Vec<Value> =
            named.iter().map(|device| json!({ "device_id": device, "type": 1, "content": content("x") })).collect();
        let params = json!({ "message_id": Uuid::new_v4(), "to": phone.person.user, "messages": messages });
        for ephemeral in [false, true] {
            let mut params = params.clone();
            params["ephemeral"] = ephemeral.into();
            let error = alice.socket.refused("messages.send", params).await;
            assert_problem(&error, "devices_mismatch", "a wrong list of devices");
            assert_eq!(error["details"], json!({ "missing": sorted(&missing), "extra": sorted(&extra) }), "{named:?}");
        }
    }
    // None of these messages was stored.
    alice.send(&[&phone.person, &laptop.person], "right").await;
    assert_eq!(phone.receives("right").await["seq"], 1);
    assert_eq!(laptop.receives("right").await["seq"], 1);

    // A message to oneself names the other devices, not the sending one.
    alice.send(&[&other.person], "to myself").await;
    other.receives("to myself").await;
    let error = alice.socket.refused("messages.send", message(&[&other.person, &alice.person], "x")).await;
    assert_eq!(error["details"], json!({ "missing": [], "extra": [alice.person.device] }));

    // Nothing can be sent to a user without addressable devices.
    let lonely = sign_in(&app, "lonely@example.org").await;
    let to_no_device = |to: &str| json!({ "message_id": Uuid::new_v4(), "to": to, "messages": [] });
    let mut ephemeral = to_no_device(&lonely.user);
    ephemeral["ephemeral"] = true.into();
    for params in [to_no_device(&lonely.user), ephemeral, message(&[&lonely], "x")] {
        assert_problem(&alice.socket.refused("messages.send", params).await, "no_devices", "no addressable device");
    }
    // Without other devices, a message to oneself is accepted and stores nothing.
    let alone = Member::join(&app, "alone@example.org", Codec::Json).await;
    let sent = alone.socket.request("messages.send", to_no_device(&alone.person.user)).await;
    assert_eq!((&sent["stored"], &sent["undelivered"]), (&json!(0), &json!([])));
    let error = alice.socket.refused("messages.send", to_no_device(&Uuid::new_v4().to_string())).await;
    assert_problem(&error, "not_found", "an unknown recipient");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_an_expired_signed_prekey_may_be_left_out() {
    let app = TestApp::with_clock(&[("KEYS__SIGNED_PREKEY_DAYS", "1"), ("AUTH__SESSION_DAYS", "60")]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let stale = Member::join(&app, "bob@example.org", Codec::Json).await;
    app.advance(Duration::from_hours(25));
    let fresh = Member::join(&app, "bob@example.org", Codec::Json).await;
    alice.send(&[&fresh.person], "without it").await;
    fresh.receives("without it").await;
    alice.send(&[&stale.person, &fresh.person], "with it").await;
    fresh.receives("with it").await;
    assert_eq!(stale.receives("with it").await["seq"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_a_device_deletes_its_mailbox_and_messages_outlive_their_sender() {
    let app = TestApp::start(&[]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let phone = Member::join(&app, "bob@example.org", Codec::Json).await;
    let laptop = Member::join(&app, "bob@example.org", Codec::Json).await;
    alice.send(&[&phone.person, &laptop.person], "before").await;
    phone.socket.request("devices.revoke", json!({ "device_id": laptop.person.device })).await;
    assert_eq!(laptop.socket.close_code().await, 4502);
    alice.send(&[&phone.person], "after").await;
    alice.socket.request("account.delete", confirmation(&app, "alice@example.org", "delete").await).await;
    assert_eq!(alice.socket.close_code().await, 4506);
    assert_eq!(phone.receives("before").await["from"]["user_id"], alice.person.user.as_str());
    phone.receives("after").await;
    let left = sqlx::query_as::<_, (i64, i64)>(
        "SELECT (SELECT COUNT(*) FROM messages), (SELECT SUM(count + bytes) FROM mailboxes)",
    );
    let file = format!("sqlite://{}", app.database().display());
    let mut database = file.parse::<SqliteConnectOptions>().unwrap().connect().await.unwrap();
    assert_eq!(left.fetch_one(&mut database).await.unwrap(), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_messages_and_acks_are_refused_and_the_largest_valid_ones_accepted() {
    for codec in Codec::ALL {
        let app = TestApp::start(&[]);
        let alice = Member::join(&app, "alice@example.org", codec).await;
        let bob = Member::join(&app, "bob@example.org", codec).await;
        let good = message(&[&bob.person], "fine");
        let with = |path: &[&str], value: Value| {
            let mut params = good.clone();
            let mut at = &mut params;
            for key in path {
                at = match key.parse::<usize>() {
                    Ok(index) => &mut at[index],
                    Err(_) => &mut at[*key],
                };
            }
            *at = value;
            params
        };
        for (params, code) in [
            (with(&["messages", "0", "content"], "".into()), "bad_request"),
            (with(&["messages", "0", "type"], 256.into()), "bad_request"),
            (with(&["messages", "0", "type"], (-1).into()), "bad_request"),
            (with(&["ttl_s"], 59.into()), "bad_request"),
            (with(&["ttl_s"], 2_592_001.into()), "bad_request"),
            (with(&["ephemeral"], "yes".into()), "bad_request"),
            (with(&["messages", "0", "content"], content(&"x".repeat(32 * 1024 + 1)).into()), "payload_too_large"),
        ] {
            assert_problem(&alice.socket.refused("messages.send", params).await, code, "a bad message");
        }
        let many: Vec<u64> = (1..=1001).collect();
        let error = alice.socket.refused("messages.ack", json!({ "seqs": many })).await;
        assert_problem(&error, "bad_request", "too many seqs");
        let most: Vec<u64> = (1..=1000).collect();
        assert_eq!(alice.socket.request("messages.ack", json!({ "seqs": most })).await, json!({ "acked": 0 }));
        let largest = json!({ "seqs": [9_007_199_254_740_991_u64] });
        assert_eq!(alice.socket.request("messages.ack", largest).await, json!({ "acked": 0 }));

        // The largest content, with the shortest and the longest `ttl_s`.
        for ttl in [60, 2_592_000] {
            let mut params = message(&[&bob.person], &"x".repeat(32 * 1024));
            params["ttl_s"] = ttl.into();
            alice.socket.request("messages.send", params).await;
            bob.receives(&"x".repeat(32 * 1024)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_may_send_fifty_messages_a_second() {
    let app = TestApp::with_clock(&[]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    for n in 0..50 {
        alice.send(&[&bob.person], &n.to_string()).await;
    }
    let error = alice.socket.refused("messages.send", message(&[&bob.person], "one too many")).await;
    assert_problem(&error, "rate_limited", "the 51st");
    assert_eq!(error["retry_after_ms"], 20);
    bob.send(&[&alice.person], "another device has a limit of its own").await;
    app.advance(Duration::from_millis(20));
    alice.send(&[&bob.person], "later").await;
    let error = alice.socket.refused("messages.send", message(&[&bob.person], "too soon")).await;
    assert_problem(&error, "rate_limited", "immediately after it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_can_skip_a_device_that_uses_another_suite() {
    let app = TestApp::start(&[]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let phone = Member::join(&app, "bob@example.org", Codec::Json).await;
    let bot = sign_in(&app, "bob@example.org").await;
    let bot_socket = Socket::connect(&app, &bot.token, Codec::Json).await;
    bot_socket.request("keys.publish", KeySet::new(Suite::Ed25519X3dh, 7).complete([1])).await;

    // Alice's client does not support the bot's suite; the bot's keys are not used up.
    for op in ["keys.fetch", "keys.claim"] {
        let params_for = |suites: Value| json!({ "user_id": bot.user, "claim_id": Uuid::new_v4(), "suites": suites });
        let answer = alice.socket.request(op, params_for(json!(["signal-x3dh", "a-later-one"]))).await;
        assert_eq!(answer["bundles"].as_array().unwrap().len(), 1, "{answer}");
        assert_eq!(answer["bundles"][0]["device_id"], json!(phone.person.device));
        assert_eq!(answer["unavailable"], json!([{ "device_id": bot.device, "reason": "other_suite" }]));
        let answer = alice.socket.request(op, params_for(json!(["a-later-one"]))).await;
        assert_eq!((answer["bundles"].clone(), answer["unavailable"].as_array().unwrap().len()), (json!([]), 2));
        let error = alice.socket.refused(op, params_for(json!([]))).await;
        assert_problem(&error, "bad_request", "no suite");
        assert_eq!(error["details"]["path"], "suites");
    }
    assert_eq!(bot_socket.request("keys.status", json!({})).await["one_time"], 1, "no key of the device was used up");

    // Without `skip` the device counts as missing; with it the message is sent.
    let mut params = message(&[&phone.person], "hello");
    let error = alice.socket.refused("messages.send", params.clone()).await;
    assert_eq!(error["details"], json!({ "missing": [bot.device], "extra": [] }));
    params["skip"] = json!([bot.device, Uuid::new_v4()]);
    let sent = alice.socket.request("messages.send", params.clone()).await;
    assert_eq!((&sent["stored"], &sent["undelivered"]), (&json!(1), &json!([])));
    phone.receives("hello").await;
    // `skip` is not remembered: a repeat that names the device is stored for it too, and both are counted.
    params["skip"] = Value::Null;
    params["messages"].as_array_mut().unwrap().push(json!({ "device_id": bot.device, "type": 3, "content": "aGk=" }));
    let again = alice.socket.request("messages.send", params.clone()).await;
    assert_eq!((&again["duplicate"], &again["stored"]), (&json!(true), &json!(2)));
    assert_eq!(bot_socket.event("message").await["content"], "aGk=");

    params["skip"] = json!([Uuid::new_v4(), bot.device]);
    let error = alice.socket.refused("messages.send", params.clone()).await;
    assert_eq!((&error["code"], &error["details"]["path"]), (&json!("bad_request"), &json!("skip[1]")));
    params["skip"] = json!(vec![Uuid::new_v4(); 101]);
    assert_eq!(alice.socket.refused("messages.send", params).await["details"]["path"], "skip");

    // All devices may be skipped; an unknown id skips none.
    let to_no_device =
        |skip: Value| json!({ "message_id": Uuid::new_v4(), "to": bot.user, "messages": [], "skip": skip });
    let sent = alice.socket.request("messages.send", to_no_device(json!([phone.person.device, bot.device]))).await;
    assert_eq!(sent["stored"], 0);
    let error = alice.socket.refused("messages.send", to_no_device(json!([Uuid::new_v4()]))).await;
    assert_problem(&error, "devices_mismatch", "no device is named or skipped");
}
