//! The shares of strangers: a part of each mailbox, and a number of one-time keys an hour of each device.

use sqlx::Row;

use super::*;
use crate::support::{Cluster, RowLock, Server, ServerProcess, eventually, mailing::content};

/// Two envelopes of each mailbox for strangers. The manual clock would not give back the rate of sends.
const SHARE: Settings = &[
    ("MAILBOX__MAX_ENVELOPES", "8"),
    ("MAILBOX__STRANGER_SHARE", "0.25"),
    ("LIMITS__SENDS_PER_DEVICE_SECOND", "0"),
    ("LIMITS__SENDS_PER_PAIR_SECOND", "0"),
];

/// Replies to a claim of the keys of one device, under a new claim id.
async fn claim(by: &Socket, of: &Person, access: Option<&str>) -> Value {
    let mut params = json!({ "user_id": of.user, "device_ids": [of.device], "claim_id": Uuid::new_v4() });
    if let Some(access) = access {
        params["access"] = access.into();
    }
    by.request("keys.claim", params).await["bundles"][0]["one_time"].clone()
}

/// Publishes a complete set with one-time keys `1..=count`.
async fn publish(socket: &Socket, suite: Suite, count: u32) {
    let mut keys = KeySet::new(suite, Uuid::new_v4().as_u64_pair().0);
    socket.request("keys.publish", keys.complete(1..=count)).await;
}

async fn join(app: &impl Server, name: &str) -> Member {
    Member::join(app, &format!("{name}@example.org"), Codec::Json).await
}

async fn is_full(sender: &Member, params: Value) {
    let error = sender.socket.refused("messages.send", params).await;
    assert_problem(&error, "mailbox_full", "over the share of strangers");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_share_a_part_of_a_mailbox_that_acks_and_expiry_give_back() {
    for app in on_both_engines(SHARE).await {
        let (bob, alice, carol, dave) =
            (join(&app, "bob").await, join(&app, "alice").await, join(&app, "carol").await, join(&app, "dave").await);
        bob.socket.request("access.set", json!({ "strangers": "limit", "key": key() })).await;
        let to_bob = |text: &str| message(&[&bob.person], text);
        alice.socket.request("messages.send", to_bob("one")).await;
        let mut short = showing(to_bob("two"), &base64(&[8; 16]));
        short["ttl_s"] = 60.into();
        carol.socket.request("messages.send", short).await;
        is_full(&alice, to_bob("three")).await;
        is_full(&carol, showing(to_bob("three"), "malformed")).await;
        // Senders who show the key still have room, and take none from strangers.
        for text in ["a", "b", "c"] {
            dave.socket.request("messages.send", showing(to_bob(text), &key())).await;
        }
        bob.receives("one").await;
        alice.socket.request("messages.send", to_bob("four")).await;
        is_full(&alice, to_bob("five")).await;
        app.advance(Duration::from_secs(61));
        eventually("an expired message gives its place back", || async {
            matches!(carol.socket.try_request("messages.send", to_bob("six")).await, Some(Ok(_))).then_some(())
        })
        .await;
        is_full(&carol, to_bob("seven")).await;
        // Acks of other messages give nothing back.
        assert_eq!(bob.socket.event("message").await["content"], content("two"), "delivered before it expired");
        for text in ["a", "b", "c"] {
            bob.receives(text).await;
        }
        is_full(&alice, to_bob("eight")).await;
        // Without the limit, strangers may fill the mailbox; what is in it still counts when the limit is back.
        bob.socket.request("access.set", json!({ "strangers": "allow", "key": key() })).await;
        alice.socket.request("messages.send", to_bob("nine")).await;
        bob.socket.request("access.set", json!({ "strangers": "limit", "key": key() })).await;
        for text in ["four", "six"] {
            is_full(&alice, to_bob("ten")).await;
            bob.receives(text).await;
        }
        alice.socket.request("messages.send", to_bob("eleven")).await;
        is_full(&alice, to_bob("twelve")).await;
        for text in ["nine", "eleven"] {
            bob.receives(text).await;
        }
        for text in ["x", "y"] {
            alice.socket.request("messages.send", to_bob(text)).await;
        }
        is_full(&alice, to_bob("z")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_share_is_used_up_does_not_keep_others_from_a_message() {
    for app in on_both_engines(SHARE).await {
        let (phone, laptop) = (join(&app, "bob").await, join(&app, "bob").await);
        let alice = join(&app, "alice").await;
        let both = [&phone.person, &laptop.person];
        for text in ["one", "two"] {
            alice.send(&both, text).await;
            laptop.receives(text).await;
        }
        let params = message(&both, "three");
        let sent = alice.socket.request("messages.send", params.clone()).await;
        let full = json!([{ "device_id": phone.person.device, "reason": "mailbox_full" }]);
        assert_eq!((&sent["stored"], &sent["undelivered"]), (&json!(1), &full));
        phone.receives("one").await;
        let sent = alice.socket.request("messages.send", params).await;
        assert_eq!((&sent["stored"], &sent["undelivered"]), (&json!(2), &json!([])));
        // A user's own devices are never strangers.
        for text in ["a", "b", "c", "d"] {
            laptop.send(&[&phone.person], text).await;
        }
        laptop.socket.request("devices.revoke", json!({ "device_id": phone.person.device })).await;
        assert_eq!(counters(&app).await, (1, 5), "a revoked device has an empty mailbox");
    }
}

/// The envelopes and bytes of strangers in all mailboxes.
async fn counters(app: &TestApp) -> (i64, i64) {
    const COUNTERS: &str = "SELECT CAST(SUM(stranger_count) AS BIGINT), CAST(SUM(stranger_bytes) AS BIGINT), \
        CAST(SUM(count) AS BIGINT) FROM mailboxes";
    if let Some(url) = app.postgres() {
        let mut connection = url.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
        let row = connection.fetch_one(COUNTERS).await.unwrap();
        (row.get(0), row.get(1))
    } else {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(app.database());
        let row = options.connect().await.unwrap().fetch_one(COUNTERS).await.unwrap();
        (row.get(0), row.get(1))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_an_account_is_a_stranger_for_seven_days() {
    for app in on_both_engines(SHARE).await {
        let (bob, alice) = (join(&app, "bob").await, join(&app, "alice").await);
        let to_bob = |text: &str| message(&[&bob.person], text);
        for text in ["one", "two"] {
            alice.socket.request("messages.send", to_bob(text)).await;
        }
        app.advance(Duration::from_hours(7 * 24) - Duration::from_secs(1));
        is_full(&alice, showing(to_bob("three"), &key())).await;
        app.advance(Duration::from_secs(1));
        alice.socket.request("messages.send", to_bob("three")).await;
        // A key makes a stranger of everybody who does not show it.
        bob.socket.request("access.set", json!({ "strangers": "limit", "key": key() })).await;
        is_full(&alice, to_bob("four")).await;
        alice.socket.request("messages.send", showing(to_bob("four"), &key())).await;
        // Another key cuts off those who know only the old one.
        bob.socket.request("access.set", json!({ "strangers": "limit", "key": base64(&[9; 16]) })).await;
        is_full(&alice, showing(to_bob("five"), &key())).await;
    }
}

const TWENTY: Settings = &[("LIMITS__CLAIM_BURST", "0"), ("LIMITS__STRANGER_KEYS_PER_DEVICE_HOUR", "20")];

#[tokio::test(flavor = "multi_thread")]
async fn strangers_take_at_most_twenty_keys_of_a_device_in_any_hour() {
    for app in on_both_engines(TWENTY).await {
        let (bob, alice, carol, dave) =
            (join(&app, "bob").await, join(&app, "alice").await, join(&app, "carol").await, join(&app, "dave").await);
        // The suite of this helper's devices has no PQ keys; this device claims both kinds.
        let phone = sign_in(&app, "bob@example.org").await;
        let socket = Socket::connect(&app, &phone.token, Codec::Json).await;
        publish(&socket, Suite::SignalPqxdh, 80).await;
        bob.socket.request("access.set", json!({ "strangers": "limit", "key": key() })).await;
        let both = [&alice.socket, &carol.socket];
        let claimed = async |count: usize| {
            let mut claimed = 0;
            for by in both.iter().cycle().take(count) {
                let outcome = claim(by, &phone, None).await;
                assert!(outcome == "claimed" || outcome == "limited", "{outcome}");
                claimed += usize::from(outcome == "claimed");
            }
            claimed
        };
        assert_eq!(claimed(8).await, 8);
        app.advance(Duration::from_mins(30));
        assert_eq!(claimed(20).await, 12, "twenty of all strangers together");
        // A repeat gets its key again and is not counted.
        let id = Uuid::new_v4();
        let params = json!({ "user_id": phone.user, "device_ids": [phone.device], "claim_id": id });
        assert_eq!(alice.socket.request("keys.claim", params.clone()).await["bundles"][0]["one_time"], "limited");
        // Known claimers find keys.
        assert_eq!(claim(&dave.socket, &phone, Some(&key())).await, "claimed");
        let shown = alice.socket.request("keys.claim", showing(params.clone(), &key())).await;
        assert_eq!(shown["bundles"][0]["one_time"], "claimed");
        assert_eq!(alice.socket.request("keys.claim", params.clone()).await, shown, "a repeat, now without the key");
        // Another device of the user has its own share; this one has no key to give, so nothing is counted.
        for _ in 0..25 {
            assert_eq!(claim(&carol.socket, &bob.person, None).await, "exhausted");
        }
        // The hour slides: after the first eight have left it, eight more, and not twenty.
        app.advance(Duration::from_mins(30) - Duration::from_secs(1));
        assert_eq!(claimed(2).await, 0);
        app.advance(Duration::from_secs(1));
        assert_eq!(claimed(20).await, 8);
        app.advance(Duration::from_mins(30));
        assert_eq!(claimed(20).await, 12);
        // Under `allow` only the limit of each user holds.
        bob.socket.request("access.set", json!({ "strangers": "allow", "key": key() })).await;
        assert_eq!(claimed(6).await, 6);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_both_kinds_counts_once() {
    for app in on_both_engines(&[("LIMITS__STRANGER_KEYS_PER_DEVICE_HOUR", "2")]).await {
        let bob = sign_in(&app, "bob@example.org").await;
        let socket = Socket::connect(&app, &bob.token, Codec::Json).await;
        let mut keys = KeySet::new(Suite::SignalPqxdh, 1);
        let mut complete = keys.complete(1..=1);
        complete["pq_one_time"] = [7, 8, 9].map(|id| keys.pq_prekey(id)).into();
        socket.request("keys.publish", complete).await;
        let alice = join(&app, "alice").await;
        let params = json!({ "user_id": bob.user, "claim_id": Uuid::new_v4() });
        let first = alice.socket.request("keys.claim", params.clone()).await["bundles"][0].clone();
        assert_eq!((&first["one_time"], &first["pq_prekey"]["key_id"]), (&json!("claimed"), &json!(7)));
        let second = json!({ "user_id": bob.user, "claim_id": Uuid::new_v4() });
        let reply = alice.socket.request("keys.claim", second.clone()).await["bundles"][0].clone();
        assert_eq!((&reply["one_time"], &reply["pq_prekey"]["key_id"]), (&json!("exhausted"), &json!(8)));
        let third = json!({ "user_id": bob.user, "claim_id": Uuid::new_v4() });
        let reply = alice.socket.request("keys.claim", third).await["bundles"][0].clone();
        assert_eq!((&reply["one_time"], &reply["pq_prekey"]["last_resort"]), (&json!("limited"), &json!(true)));
        // The second claim was counted when it took its PQ key, so its repeat may take a one-time key.
        let more = json!({ "one_time_prekeys": [keys.prekey(2)] });
        socket.request("keys.publish", more).await;
        let repeated = alice.socket.request("keys.claim", second).await["bundles"][0].clone();
        assert_eq!((&repeated["one_time"], &repeated["pq_prekey"]["key_id"]), (&json!("claimed"), &json!(8)));
    }
}

/// Bob with a published device and keys on the first node, and sockets of a stranger on each node.
async fn bob_and_strangers(cluster: &Cluster) -> (Person, Socket, [Socket; 2]) {
    let bob = sign_in(&cluster.nodes[0], "bob@example.org").await;
    let socket = Socket::connect(&cluster.nodes[0], &bob.token, Codec::Json).await;
    publish(&socket, Suite::SignalX3dh, 50).await;
    let mut strangers = Vec::new();
    for (node, name) in cluster.nodes.iter().zip(["alice", "carol"]) {
        let person = sign_in(node, &format!("{name}@example.org")).await;
        strangers.push(Socket::connect(node, &person.token, Codec::Json).await);
    }
    for _ in 0..19 {
        assert_eq!(claim(&strangers[0], &bob, None).await, "claimed");
    }
    (bob, socket, strangers.try_into().ok().unwrap())
}

/// The outcomes, sorted, of a claim of each stranger. `release` runs once both claims wait.
async fn claim_at_once(strangers: &[Socket; 2], bob: &Person, release: impl Future<Output = ()>) -> [Value; 2] {
    let (one, other, ()) = tokio::join!(claim(&strangers[0], bob, None), claim(&strangers[1], bob, None), release);
    let mut outcomes = [one, other];
    outcomes.sort_by_key(ToString::to_string);
    outcomes
}

const LAST_OF_TWENTY: [&str; 2] = ["claimed", "limited"];

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_together_let_strangers_take_twenty_keys_also_after_a_restart() {
    let mut cluster = Cluster::start(&Services::shared(), 2, TWENTY).await;
    let (bob, socket, strangers) = bob_and_strangers(&cluster).await;
    let lock = "SELECT device_id FROM stranger_claims WHERE device_id = $1 FOR UPDATE";
    let mut row_lock = RowLock::lock(&cluster, lock, &bob.device).await;
    let release = async {
        row_lock.wait_for_waiters(2).await;
        row_lock.release().await;
    };
    assert_eq!(claim_at_once(&strangers, &bob, release).await, LAST_OF_TWENTY);
    cluster.nodes[0].terminate().await;
    cluster.nodes[0].restart().await;
    let person = sign_in(&cluster.nodes[0], "dave@example.org").await;
    let dave = Socket::connect(&cluster.nodes[0], &person.token, Codec::Json).await;
    assert_eq!(claim(&dave, &bob, None).await, "limited");
    drop(socket);
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_of_strangers_that_wait_for_locked_keys_are_counted_too() {
    let cluster = Cluster::start(&Services::shared(), 2, TWENTY).await;
    let (bob, _socket, strangers) = bob_and_strangers(&cluster).await;
    let mut rival = cluster.sql().await;
    rival.execute("BEGIN").await.unwrap();
    rival.execute("SELECT id FROM one_time_prekeys WHERE NOT used FOR UPDATE").await.unwrap();
    let lock = "SELECT id FROM users WHERE id = $1 FOR UPDATE";
    let mut watcher = RowLock::lock(&cluster, lock, &bob.user).await;
    let release = async {
        // One waits for a key and holds the counts, the other waits for the counts.
        watcher.wait_for_waiters(2).await;
        rival.execute("ROLLBACK").await.unwrap();
    };
    assert_eq!(claim_at_once(&strangers, &bob, release).await, LAST_OF_TWENTY);
    watcher.release().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_share_of_strangers_in_a_mailbox_is_exact_over_two_nodes() {
    let cluster = Cluster::start(&Services::shared(), 2, SHARE).await;
    let bob = Member::join(&cluster.nodes[0], "bob@example.org", Codec::Json).await;
    let mut strangers = Vec::new();
    for (node, name) in cluster.nodes.iter().zip(["alice", "carol"]) {
        strangers.push(Member::join(node, &format!("{name}@example.org"), Codec::Json).await);
    }
    strangers[0].send(&[&bob.person], "one").await;
    let lock = "SELECT device_id FROM mailboxes WHERE device_id = $1 FOR UPDATE";
    let mut row_lock = RowLock::lock(&cluster, lock, &bob.person.device).await;
    let release = async {
        row_lock.wait_for_waiters(2).await;
        row_lock.release().await;
    };
    let send = |by: usize| strangers[by].socket.try_request("messages.send", message(&[&bob.person], "two"));
    let (one, other, ()) = tokio::join!(send(0), send(1), release);
    let outcomes = [one.unwrap(), other.unwrap()];
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    bob.receives("one").await;
    bob.receives("two").await;
    for (by, text) in [(0, "three"), (1, "four")] {
        strangers[by].send(&[&bob.person], text).await;
    }
    is_full(&strangers[1], message(&[&bob.person], "five")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_of_strangers_are_kept_over_a_restart() {
    let settings: Vec<(&str, &str)> = SHARE.iter().chain(TWENTY).copied().collect();
    let mut server = ServerProcess::start(&settings).await;
    let (bob, alice) = (join(&server, "bob").await, join(&server, "alice").await);
    let more: Vec<Value> =
        (1..=30).map(|id| KeySet::new(Suite::SignalX3dh, id).prekey(u32::try_from(id).unwrap())).collect();
    bob.socket.request("keys.publish", json!({ "one_time_prekeys": more })).await;
    for n in 0..20 {
        assert_eq!(claim(&alice.socket, &bob.person, None).await, "claimed", "{n}");
    }
    for text in ["one", "two"] {
        alice.send(&[&bob.person], text).await;
    }
    server.kill();
    server.restart().await;
    let carol = join(&server, "carol").await;
    assert_eq!(claim(&carol.socket, &bob.person, None).await, "limited");
    is_full(&carol, message(&[&bob.person], "three")).await;
}
