//! Blocks: messages of blocked senders are dropped, and nothing tells them so.

use serde_json::{Value, json};
use sqlx::{ConnectOptions, Executor, sqlite::SqliteConnectOptions};
use uuid::Uuid;

use crate::{
    metrics::{value, wait_for_sample},
    support::{
        Cluster, Codec, Member, RowLock, Services, Settings, Socket, TestApp,
        keys::base64,
        mailing::{content, message},
        raw::{RawSocket, data, encode},
        sign_in,
    },
};

/// A server on a new database of each engine.
async fn on_both_engines(settings: Settings<'_>) -> [TestApp; 2] {
    let url = Services::shared().database().await;
    let secret = base64(&[1; 32]);
    let on_postgres: Vec<(&str, &str)> =
        settings.iter().copied().chain([("DATABASE__URL", url.as_str()), ("AUTH__SECRET", &secret)]).collect();
    [TestApp::with_clock(settings), TestApp::with_clock(&on_postgres)]
}

/// A user with two devices.
struct Pair {
    phone: Member,
    laptop: Member,
}

impl Pair {
    async fn join(app: &TestApp, name: &str, codec: Codec) -> Self {
        let email = format!("{name}@example.org");
        Self { phone: Member::join(app, &email, codec).await, laptop: Member::join(app, &email, codec).await }
    }

    /// A message to both devices.
    fn message(&self, text: &str) -> Value {
        message(&[&self.phone.person, &self.laptop.person], text)
    }

    /// Replaces the ids of this user's devices, which differ from those of the other user's, and sorts lists of them.
    fn without_ids(&self, answer: &Value) -> String {
        let text = answer.to_string();
        let text = text.replace(&self.phone.person.device, "phone").replace(&self.laptop.person.device, "laptop");
        let mut answer: Value = serde_json::from_str(&text).unwrap();
        for list in ["missing", "extra"] {
            if let Some(Value::Array(ids)) = answer.pointer_mut(&format!("/details/{list}")) {
                ids.sort_by_key(ToString::to_string);
            }
        }
        answer.to_string()
    }

    /// The answers to all kinds of sends by `sender`, without times and ids.
    async fn answers_to(&self, sender: &Socket) -> Vec<String> {
        let first = self.message("first");
        let mut changed = first.clone();
        changed["messages"][1]["content"] = content("changed").into();
        let mut to_another = first.clone();
        to_another["to"] = Uuid::new_v4().to_string().into();
        let mut ephemeral = self.message("typing");
        ephemeral["ephemeral"] = true.into();
        let mut repeated_as_ephemeral = first.clone();
        repeated_as_ephemeral["ephemeral"] = true.into();
        let part = message(&[&self.phone.person], "part");
        let mut skipping = part.clone();
        skipping["skip"] = json!([self.laptop.person.device]);
        let mut completed = skipping.clone();
        let rest = json!({ "device_id": self.laptop.person.device, "type": 3, "content": content("rest") });
        completed["messages"].as_array_mut().unwrap().push(rest);
        completed["skip"] = json!([]);
        let mut foreign = self.message("foreign");
        foreign["messages"][0]["device_id"] = Uuid::nil().to_string().into();
        let mut empty = self.message("empty");
        empty["messages"] = json!([]);
        let sends = [
            first.clone(),
            first.clone(),
            changed,
            to_another,
            repeated_as_ephemeral,
            ephemeral,
            part,
            skipping.clone(),
            completed,
            skipping,
            foreign,
            empty,
            self.message("second"),
            first,
        ];
        let mut answers = Vec::new();
        for params in sends {
            let answer = match sender.try_request("messages.send", params).await.unwrap() {
                Ok(mut reply) => {
                    assert!(reply["accepted_at"].is_string());
                    reply["accepted_at"] = Value::Null;
                    reply
                }
                Err(error) => error,
            };
            answers.push(self.without_ids(&answer));
        }
        answers
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_sender_gets_the_answers_of_an_unblocked_one_and_nothing_is_delivered() {
    for app in on_both_engines(&[]).await {
        for codec in Codec::ALL {
            let name = |name: &str| format!("{name}.{codec:?}");
            let (bob, erin) =
                (Pair::join(&app, &name("bob"), codec).await, Pair::join(&app, &name("erin"), codec).await);
            let (alice, carol) = (
                Member::join(&app, &format!("{}@example.org", name("alice")), codec).await,
                Member::join(&app, &format!("{}@example.org", name("carol")), codec).await,
            );
            bob.laptop.socket.request("blocks.add", json!({ "user_id": alice.person.user })).await;
            let blocked = bob.answers_to(&alice.socket).await;
            assert_eq!(blocked, erin.answers_to(&alice.socket).await);
            assert!(blocked[0].contains("\"stored\":2") && blocked[1].contains("\"duplicate\":true"), "{blocked:?}");
            let conflicts = blocked.iter().filter(|answer| answer.contains("id_conflict")).count();
            let mismatches = blocked.iter().filter(|answer| answer.contains("devices_mismatch")).count();
            assert!(conflicts == 3 && mismatches == 3, "{blocked:?}");
            // Its claims and fetches are served as those of others.
            for (op, id) in [("keys.fetch", "ignored"), ("keys.claim", "claim_id")] {
                let params = |of: &Pair| json!({ "user_id": of.phone.person.user, id: Uuid::from_u128(1) });
                let reply = alice.socket.request(op, params(&bob)).await;
                assert_eq!(reply, carol.socket.request(op, params(&bob)).await);
                assert_eq!(reply["bundles"].as_array().unwrap().len(), 2);
            }
            // The first message that comes is of somebody else, and nothing else waits.
            carol.socket.request("messages.send", bob.message("of carol")).await;
            for device in [&bob.phone, &bob.laptop] {
                assert_eq!(device.receives("of carol").await["seq"], 1);
                let again = Socket::connect(&app, &device.person.token, codec).await;
                assert_eq!(again.welcome["mailbox"]["waiting"], 0);
                again.event("mailbox.drained").await;
                assert!(again.take_event("message").is_none());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_sender_is_answered_as_stored_even_if_the_mailbox_is_full() {
    for app in on_both_engines(&[("MAILBOX__MAX_ENVELOPES", "1")]).await {
        let (bob, erin) = (Pair::join(&app, "bob", Codec::Json).await, Pair::join(&app, "erin", Codec::Json).await);
        let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
        let carol = Member::join(&app, "carol@example.org", Codec::Json).await;
        carol.socket.request("messages.send", bob.message("fills it")).await;
        assert_eq!(alice.socket.refused("messages.send", bob.message("full")).await["code"], "mailbox_full");
        bob.phone.socket.request("blocks.add", json!({ "user_id": alice.person.user })).await;
        let send = async |to: &Pair, params: &Value| {
            let mut reply = alice.socket.request("messages.send", params.clone()).await;
            reply["accepted_at"] = Value::Null;
            to.without_ids(&reply)
        };
        let (to_bob, to_erin) = (bob.message("x"), erin.message("x"));
        for _ in 0..2 {
            assert_eq!(send(&bob, &to_bob).await, send(&erin, &to_erin).await);
        }
        // A message that was stored for one device only is completed by dropping it for the other.
        bob.phone.socket.request("blocks.remove", json!({ "user_id": alice.person.user })).await;
        bob.phone.receives("fills it").await;
        let partly = bob.message("partly");
        let reply = alice.socket.request("messages.send", partly.clone()).await;
        assert_eq!((&reply["stored"], reply["undelivered"].as_array().unwrap().len()), (&json!(1), 1));
        bob.phone.socket.request("blocks.add", json!({ "user_id": alice.person.user })).await;
        for _ in 0..2 {
            let reply = alice.socket.request("messages.send", partly.clone()).await;
            assert_eq!((&reply["stored"], &reply["undelivered"]), (&json!(2), &json!([])));
            bob.phone.socket.request("blocks.remove", json!({ "user_id": alice.person.user })).await;
        }
        bob.phone.receives("partly").await;
        bob.laptop.receives("fills it").await;
        alice.socket.request("messages.send", bob.message("new")).await;
        assert_eq!(bob.laptop.receives("new").await["seq"], 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_message_is_not_delivered_by_a_repeat_after_the_block() {
    for app in on_both_engines(&[]).await {
        let mut phone = Member::join(&app, "bob@example.org", Codec::Json).await;
        let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
        let block = json!({ "user_id": alice.person.user });
        phone.socket.request("blocks.add", block.clone()).await;
        let mut dropped = message(&[&phone.person], "dropped");
        alice.socket.request("messages.send", dropped.clone()).await;
        phone.socket.request("blocks.remove", block).await;
        let reply = alice.socket.request("messages.send", dropped.clone()).await;
        assert_eq!((&reply["duplicate"], &reply["stored"]), (&json!(true), &json!(1)));
        // Nor to a device that the repeat names for the first time.
        let laptop = Member::join(&app, "bob@example.org", Codec::Json).await;
        let part = message(&[&laptop.person], "dropped")["messages"][0].clone();
        dropped["messages"].as_array_mut().unwrap().push(part);
        for _ in 0..2 {
            let reply = alice.socket.request("messages.send", dropped.clone()).await;
            assert_eq!((&reply["duplicate"], &reply["stored"]), (&json!(true), &json!(2)));
        }
        alice.send(&[&phone.person, &laptop.person], "new").await;
        for device in [&phone, &laptop] {
            assert_eq!(device.receives("new").await["seq"], 1);
        }
        phone.reconnect(&app, Codec::Json).await;
        phone.socket.event("mailbox.drained").await;
        assert!(phone.socket.take_event("message").is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_kept_per_user_and_changed_repeatably() {
    for app in on_both_engines(&[]).await {
        for codec in Codec::ALL {
            let bob = Pair::join(&app, &format!("bob.{codec:?}"), codec).await;
            let (phone, laptop) = (&bob.phone.socket, &bob.laptop.socket);
            assert_eq!(phone.request("blocks.list", json!({})).await, json!({ "user_ids": [] }));
            let mut ids: Vec<String> = (0..3).map(|_| Uuid::new_v4().to_string()).collect();
            for id in [&ids[0], &ids[1], &ids[0], &ids[2]] {
                assert_eq!(phone.request("blocks.add", json!({ "user_id": id })).await, json!({}));
            }
            ids.sort();
            assert_eq!(laptop.request("blocks.list", json!({})).await, json!({ "user_ids": ids }));
            for _ in 0..2 {
                assert_eq!(laptop.request("blocks.remove", json!({ "user_id": ids[1] })).await, json!({}));
            }
            assert_eq!(phone.request("blocks.list", json!({})).await, json!({ "user_ids": [ids[0], ids[2]] }));
            for params in [json!({ "user_id": bob.phone.person.user }), json!({ "user_id": "bob" }), json!({})] {
                let error = phone.refused("blocks.add", params).await;
                assert_eq!((&error["code"], &error["details"]["path"]), (&json!("bad_request"), &json!("user_id")));
            }
            // The other user's blocks are its own.
            let alice = sign_in(&app, "alice@example.org").await;
            let alice = Socket::connect(&app, &alice.token, codec).await;
            assert_eq!(alice.request("blocks.list", json!({})).await, json!({ "user_ids": [] }));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_blocks_at_most_ten_thousand_others() {
    let app = TestApp::start(&[]);
    let bob = sign_in(&app, "bob@example.org").await;
    let socket = Socket::connect(&app, &bob.token, Codec::Json).await;
    let mut database = SqliteConnectOptions::new().filename(app.database()).connect().await.unwrap();
    for text in [
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 9999) \
         INSERT INTO blocks (user_id, blocked) SELECT users.id, randomblob(16) FROM users, n",
        "UPDATE users SET block_count = 9999",
    ] {
        database.execute(text).await.unwrap();
    }
    let last = json!({ "user_id": Uuid::new_v4() });
    for _ in 0..2 {
        socket.request("blocks.add", last.clone()).await;
    }
    let one_more = json!({ "user_id": Uuid::new_v4() });
    let error = socket.refused("blocks.add", one_more.clone()).await;
    assert_eq!((&error["code"], &error["details"]["path"]), (&json!("bad_request"), &json!("user_id")));
    for codec in Codec::ALL {
        let socket = Socket::connect(&app, &bob.token, codec).await;
        assert_eq!(socket.request("blocks.list", json!({})).await["user_ids"].as_array().unwrap().len(), 10_000);
    }
    // Replies of 390 KB each that are not read: the server does not prepare all of them.
    let (slow, _) = RawSocket::connect(&app, &bob.token, Codec::Json).await;
    let list = |id: u32| data(Codec::Json, &encode(Codec::Json, &json!({ "id": id, "op": "blocks.list" })));
    slow.send_in_background((1..=60).flat_map(list).collect());
    let used = "sealwire_memory_budget_used_bytes{direction=\"out\"}";
    wait_for_sample(app.admin(), used, 5e5..=1e9).await;
    let alice = sign_in(&app, "alice@example.org").await;
    let alice = Socket::connect(&app, &alice.token, Codec::Json).await;
    for _ in 0..100 {
        alice.barrier().await;
    }
    let used = value(app.admin(), used).await;
    assert!(used < 2e6, "{used} bytes");
    let socket = Socket::connect(&app, &bob.token, Codec::Json).await;
    socket.request("blocks.remove", last.clone()).await;
    socket.request("blocks.add", one_more).await;
    assert_eq!(socket.refused("blocks.add", last).await["code"], "bad_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_made_on_one_node_holds_on_the_other() {
    let cluster = Cluster::start(&Services::shared(), 2, &[]).await;
    let bob = Member::join(&cluster.nodes[0], "bob@example.org", Codec::Json).await;
    let alice = Member::join(&cluster.nodes[1], "alice@example.org", Codec::Json).await;
    let block = json!({ "user_id": alice.person.user });
    bob.socket.request("blocks.add", block.clone()).await;
    let mut alice = alice;
    let dropped = message(&[&bob.person], "dropped");
    assert_eq!(alice.socket.request("messages.send", dropped.clone()).await["stored"], 1);
    bob.socket.request("blocks.remove", block).await;
    // Nor does a repeat on another node deliver what was dropped.
    alice.reconnect(&cluster.nodes[0], Codec::Json).await;
    let repeated = alice.socket.request("messages.send", dropped).await;
    assert_eq!((&repeated["stored"], &repeated["duplicate"]), (&json!(1), &json!(true)));
    alice.send(&[&bob.person], "delivered").await;
    assert_eq!(bob.receives("delivered").await["seq"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_last_blocks_that_two_nodes_add_at_once_one_is_refused() {
    let cluster = Cluster::start(&Services::shared(), 2, &[]).await;
    let [(bob, phone), (_, laptop)] = cluster.two_devices("bob@example.org").await;
    let mut database = cluster.sql().await;
    for text in [
        "INSERT INTO blocks (user_id, blocked) \
         SELECT users.id, gen_random_uuid() FROM users, generate_series(1, 9999)",
        "UPDATE users SET block_count = 9999",
    ] {
        database.execute(text).await.unwrap();
    }
    let mut row_lock = RowLock::lock(&cluster, "SELECT id FROM users WHERE id = $1 FOR UPDATE", &bob.user).await;
    let release = async {
        row_lock.wait_for_waiters(2).await;
        row_lock.release().await;
    };
    let add = async |socket: &Socket| socket.try_request("blocks.add", json!({ "user_id": Uuid::new_v4() })).await;
    let (one, other, ()) = tokio::join!(add(&phone), add(&laptop), release);
    let outcomes = [one.unwrap(), other.unwrap()];
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    assert!(outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).all(|error| error["code"] == "bad_request"));
    assert_eq!(phone.request("blocks.list", json!({})).await["user_ids"].as_array().unwrap().len(), 10_000);
}
