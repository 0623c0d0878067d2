//! Who stays connected, and who is told what when: displacement, slow readers, heartbeat, and the events about keys and
//! devices.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sealwire::domain::{Suite, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    Codec, KeySet, Person, ServerProcess, Socket, TestApp, eventually,
    raw::{CLOSE, PING, PONG, RawSocket, data, encode, frame},
    sign_in, sign_in_as,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_displaces_the_older() {
    let app = TestApp::start(&[]);
    let token = sign_in(&app, "twice@example.org").await.token;
    let mut older = Socket::connect(&app, &token, Codec::Json).await;
    for round in 0..50 {
        let newer = Socket::connect(&app, &token, Codec::ALL[round % 2]).await;
        assert_eq!(older.close_code().await, 4503);
        newer.settle().await;
        older = newer;
    }
    // At the same moment: whichever opened last survives, alone.
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
                socket.settle().await;
            }
        }
        let survivors = sockets.iter().filter(|socket| !socket.is_closed()).count();
        assert_eq!(survivors, 1, "the newest connection stays");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_ask_and_do_not_read_cost_little_and_disturb_nobody() {
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
    // First as many long replies as may be under way, then short ones without end: what they come to together is more
    // than twice the bound.
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
        socket.send_meanwhile(flood.clone());
        flooders.push(socket);
    }
    for _ in 0..200 {
        other.request("keys.fetch", fetch.clone()).await;
        assert_bounded();
    }
    // Whoever reads at last gets every reply, once.
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
    other.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stays_away_for_a_minute_is_closed_as_a_slow_consumer_and_can_come_back() {
    // More replies than the kernel's buffers and the outbox take together.
    const REQUESTS: u64 = 250_000;
    let app = TestApp::start(&[("SERVER__OUTBOX_BYTES", "65536")]);
    let person = sign_in(&app, "away@example.org").await;
    let (mut socket, _) = RawSocket::connect(&app, &person.token, Codec::Json).await;
    let request = |id: u64| data(Codec::Json, &encode(Codec::Json, &json!({ "id": id, "op": "x" })));
    socket.send_meanwhile((1..=REQUESTS).flat_map(request).collect());
    // That time passes is what is tested; the Close frame waits half a minute for its reader.
    tokio::time::sleep(Duration::from_secs(70)).await;
    assert_eq!(socket.close_code().await, 4002);
    Socket::connect(&app, &person.token, Codec::Json).await.settle().await;
}

/// Hears a socket's pings, two of them if it answers, else all until it is closed. Gives when they came, when and how it
/// ended, counted from before the connection, or the socket that is still open.
async fn listen(app: &TestApp, person: Person, answers: bool) -> (Vec<Duration>, Result<RawSocket, (Duration, u16)>) {
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
    const SLACK: Duration = Duration::from_secs(8);
    let seconds = Duration::from_secs;
    let app = TestApp::start(&[]);
    let mut people = Vec::new();
    for index in 0..8 {
        people.push(sign_in(&app, &format!("idle{index}@example.org")).await);
    }
    let listened = join_all(people.into_iter().zip(0..).map(|(person, index)| listen(&app, person, index < 2))).await;
    for (index, (pings, end)) in listened.into_iter().enumerate() {
        assert!(pings.len() >= 2 && pings[0] <= seconds(25) + SLACK, "pings of {index}: {pings:?}");
        for pair in pings.windows(2) {
            let between = pair[1].saturating_sub(pair[0]);
            assert!(between >= seconds(20) && between <= seconds(25) + SLACK, "pings of {index}: {pings:?}");
        }
        // By now more than a minute is over for all of them.
        match end {
            Ok(mut answering) => assert!(answering.status(1).await["result"].is_object()),
            Err((after, code)) => {
                assert_eq!((code, index < 2), (4001, false), "socket {index} after {after:?}");
                assert!(after >= seconds(60) && after <= seconds(60) + SLACK, "closed after {after:?}");
            }
        }
    }
}

/// An owner of a pool, somebody who claims from it, and what the owner is told.
struct Pool {
    app: TestApp,
    owner: Person,
    socket: Socket,
    keys: KeySet,
    claimer: Socket,
    next_id: u32,
}

impl Pool {
    async fn new(suite: Suite, low_watermark: Option<&str>) -> Self {
        let mut settings = vec![("LIMITS__CLAIM_BURST", "0")];
        settings.extend(low_watermark.map(|mark| ("KEYS__LOW_WATERMARK", mark)));
        let app = TestApp::start(&settings);
        let owner = sign_in(&app, "owner@example.org").await;
        let socket = Socket::connect(&app, &owner.token, Codec::MsgPack).await;
        let claimer = sign_in(&app, "claimer@example.org").await;
        let claimer = Socket::connect(&app, &claimer.token, Codec::Json).await;
        Self { app, owner, socket, keys: KeySet::new(suite, 3), claimer, next_id: 1 }
    }

    /// Publishes so many keys, completing the set at the first time.
    async fn add(&mut self, count: u32, pq: u32) {
        let ids = self.next_id..self.next_id + count.max(pq);
        let mut params = if self.next_id == 1 { self.keys.complete([]) } else { json!({}) };
        let one_time: Vec<Value> = ids.clone().take(count as usize).map(|id| self.keys.prekey(id)).collect();
        params["one_time_prekeys"] = json!(one_time);
        if pq > 0 {
            params["pq_one_time"] =
                json!(ids.clone().take(pq as usize).map(|id| self.keys.pq_prekey(id)).collect::<Vec<_>>());
        }
        self.next_id = ids.end;
        self.socket.request("keys.publish", params).await;
    }

    async fn claim(&self) {
        self.claimer.request("keys.claim", json!({ "user_id": self.owner.user, "claim_id": Uuid::new_v4() })).await;
    }

    /// What the owner was told since it was last asked: kind and count, with threshold and version checked.
    async fn told(&self) -> Vec<(String, u64)> {
        let status = self.socket.request("keys.status", json!({})).await;
        let events = std::iter::from_fn(|| self.socket.take_event("prekeys.low"));
        events
            .map(|event| {
                assert_eq!(event["threshold"], status["threshold"]);
                assert_eq!(event["pool_version"], status["pool_version"]);
                assert_eq!(event.as_object().unwrap().len(), 4, "{event}");
                (event["kind"].as_str().unwrap().to_owned(), event["remaining"].as_u64().unwrap())
            })
            .collect()
    }

    /// Claims one key at a time and gives the counts at which the owner was told.
    async fn levels(&self, claims: u32) -> Vec<u64> {
        let mut levels = Vec::new();
        for _ in 0..claims {
            self.claim().await;
            let told = self.told().await;
            let status = self.socket.request("keys.status", json!({})).await;
            assert!(told.len() <= 1 && told.iter().all(|(_, remaining)| status["one_time"] == *remaining), "{told:?}");
            levels.extend(told.into_iter().map(|(_, remaining)| remaining));
        }
        levels
    }

    async fn reconnect(&mut self) {
        self.socket = Socket::connect(&self.app, &self.owner.token, Codec::Json).await;
    }
}

fn one_time(remaining: u64) -> (String, u64) {
    ("one_time".to_owned(), remaining)
}

fn pq(remaining: u64) -> (String, u64) {
    ("pq_one_time".to_owned(), remaining)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_falling_pool_is_announced_once_a_level_and_again_after_it_rose() {
    let mut pool = Pool::new(Suite::SignalX3dh, None).await;
    pool.add(22, 0).await;
    assert_eq!(pool.levels(24).await, [20, 10, 5, 0], "two claims found nothing, and were no news");
    pool.add(12, 0).await;
    assert_eq!(pool.levels(4).await, [10], "20 was not risen above");
    pool.add(2, 0).await;
    assert_eq!(pool.levels(4).await, [0; 0], "10 was reached, not risen above");
    pool.add(1, 0).await;
    assert_eq!(pool.levels(7).await, [5, 0]);
    pool.add(21, 0).await;
    assert_eq!(pool.levels(1).await, [20]);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_thresholds_have_fewer_levels() {
    for (mark, levels) in [("0", &[0][..]), ("1", &[1, 0]), ("3", &[3, 1, 0])] {
        let mut pool = Pool::new(Suite::Ed25519X3dh, Some(mark)).await;
        pool.add(5, 0).await;
        assert_eq!(pool.levels(5).await, levels, "under {mark}");
        pool.reconnect().await;
        assert_eq!(pool.told().await, [one_time(0)], "under {mark}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_pools_are_told_of_and_again_after_each_welcome() {
    let mut pool = Pool::new(Suite::SignalPqxdh, Some("3")).await;
    pool.reconnect().await;
    assert_eq!(pool.told().await, [], "it is not addressable yet");
    pool.add(4, 5).await;
    pool.reconnect().await;
    assert_eq!(pool.told().await, [], "neither is low");
    pool.claim().await;
    assert_eq!(pool.told().await, [one_time(3)]);
    pool.claim().await;
    assert_eq!(pool.told().await, [pq(3)]);
    pool.reconnect().await;
    assert_eq!(pool.told().await, [one_time(2), pq(3)]);
    pool.claim().await;
    assert_eq!(pool.told().await, [one_time(1)], "the one after the welcome was no announcement");
    pool.claim().await;
    let mut told = pool.told().await;
    told.sort();
    assert_eq!(told, [one_time(0), pq(1)]);
    pool.add(0, 9).await;
    pool.reconnect().await;
    assert_eq!(pool.told().await, [one_time(0)], "a publish speaks for its own pool");
}

/// Publishes a signed prekey that expires then.
async fn rotate(socket: &Socket, keys: &mut KeySet, key_id: u32, expires_at: Timestamp) {
    let mut key = keys.signed_prekey(key_id);
    key["expires_at"] = json!(expires_at);
    socket.request("keys.publish", json!({ "signed_prekey": key })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_an_expiring_signed_prekey_is_told_until_it_rotates() {
    const DAY: Duration = Duration::from_hours(24);
    let app = TestApp::start(&[]);
    let token = sign_in(&app, "owner@example.org").await.token;
    let mut socket = Socket::connect(&app, &token, Codec::Json).await;
    let now = || Timestamp::parse(socket.welcome["server_time"].as_str().unwrap()).unwrap();
    let (soon, later) = (now() + DAY * 2, now() + DAY * 80);
    let mut keys = KeySet::new(Suite::SignalX3dh, 1);
    socket.request("keys.publish", keys.complete([1])).await;
    rotate(&socket, &mut keys, 7, soon).await;
    let expected = json!({ "key_id": 7, "expires_at": soon });
    assert_eq!(socket.event("signed_prekey.expiring").await, expected);
    for _ in 0..2 {
        socket = Socket::connect(&app, &token, Codec::MsgPack).await;
        assert_eq!(socket.event("signed_prekey.expiring").await, expected);
        let more = keys.prekey(2);
        socket.request("keys.publish", json!({ "one_time_prekeys": [more] })).await;
        assert_eq!(socket.take_event("signed_prekey.expiring"), None, "told once a connection");
    }
    rotate(&socket, &mut keys, 8, later).await;
    socket.settle().await;
    assert_eq!(socket.take_event("signed_prekey.expiring"), None);
    let started = Instant::now();
    socket = Socket::connect(&app, &token, Codec::Json).await;
    socket.settle().await;
    assert_eq!(socket.take_event("signed_prekey.expiring"), None);
    // When the moment comes, which is in two seconds.
    let moment = Timestamp::parse(socket.welcome["server_time"].as_str().unwrap()).unwrap() + Duration::from_secs(2);
    rotate(&socket, &mut keys, 9, moment + DAY * 3).await;
    assert_eq!(socket.event("signed_prekey.expiring").await["key_id"], 9);
    assert!(started.elapsed() >= Duration::from_secs(2), "before its moment");
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_rotations_are_told_of_in_their_order() {
    let app = TestApp::start(&[]);
    let token = sign_in(&app, "owner@example.org").await.token;
    let socket = Socket::connect(&app, &token, Codec::Json).await;
    let mut keys = KeySet::new(Suite::SignalX3dh, 1);
    socket.request("keys.publish", keys.complete([1])).await;
    let soon = Timestamp::parse(socket.welcome["server_time"].as_str().unwrap()).unwrap() + Duration::from_hours(48);
    let mut replies = Vec::new();
    for key_id in 2..40_u32 {
        let mut key = keys.signed_prekey(key_id);
        key["expires_at"] = json!(soon);
        // Some are refused, which takes no time at all.
        let key = if key_id % 5 == 0 { json!({ "key_id": key_id }) } else { key };
        let id = 1000 + key_id;
        replies.push(socket.expect_reply(id));
        let request = json!({ "id": id, "op": "keys.publish", "params": { "signed_prekey": key } });
        socket.send(Codec::Json.encode(&request)).await;
    }
    for reply in replies {
        reply.await.unwrap();
    }
    for key_id in (2..40_u32).filter(|key_id| key_id % 5 != 0) {
        assert_eq!(socket.event("signed_prekey.expiring").await["key_id"], key_id);
    }
    assert_eq!(socket.request("keys.status", json!({})).await["signed_prekey"]["key_id"], 39);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_signed_prekey_is_not_served_until_it_is_replaced() {
    let app = TestApp::with_clock(&[]);
    let owner = sign_in(&app, "owner@example.org").await;
    let socket = Socket::connect(&app, &owner.token, Codec::Json).await;
    let claimer = sign_in(&app, "claimer@example.org").await;
    let claimer = Socket::connect(&app, &claimer.token, Codec::MsgPack).await;
    let now = Timestamp::parse(socket.welcome["server_time"].as_str().unwrap()).unwrap();
    let hour = Duration::from_hours(1);
    let mut keys = KeySet::new(Suite::SignalX3dh, 1);
    socket.request("keys.publish", keys.complete(1..=3)).await;
    rotate(&socket, &mut keys, 2, now + hour).await;
    let ask = async |op: &str, named: bool| {
        let mut params = json!({ "user_id": owner.user, "claim_id": Uuid::new_v4() });
        if named {
            params["device_ids"] = json!([owner.device]);
        }
        claimer.request(op, params).await
    };
    app.advance(hour.saturating_sub(Duration::from_micros(1)));
    assert_eq!(ask("keys.claim", false).await["bundles"][0]["signed_prekey"]["key_id"], 2);
    app.advance(Duration::from_micros(1));
    let expired = json!({
        "bundles": [], "unavailable": [{ "device_id": owner.device, "reason": "signed_prekey_expired" }],
    });
    for op in ["keys.fetch", "keys.claim"] {
        assert_eq!(ask(op, false).await, expired, "{op}");
        assert_eq!(ask(op, true).await, expired, "{op}");
    }
    let status = socket.request("keys.status", json!({})).await;
    assert_eq!((&status["one_time"], &status["signed_prekey"]["key_id"]), (&json!(2), &json!(2)));
    rotate(&socket, &mut keys, 3, now + hour * 2).await;
    let bundle = ask("keys.claim", true).await["bundles"][0].clone();
    assert_eq!((&bundle["signed_prekey"]["key_id"], &bundle["one_time_prekey"]["key_id"]), (&json!(3), &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_hear_of_the_others_that_come_and_go() {
    let app = TestApp::start(&[]);
    let connect = async |person: &Person| Socket::connect(&app, &person.token, Codec::Json).await;
    let heard = async |socket: &Socket| {
        socket.settle().await;
        std::iter::from_fn(|| socket.take_event("devices.changed")).collect::<Vec<_>>()
    };
    let changed = |added: &[&Person], removed: &[&Person]| {
        let ids = |people: &[&Person]| people.iter().map(|person| person.device.clone()).collect::<Vec<_>>();
        json!({ "added": ids(added), "removed": ids(removed) })
    };
    let first = sign_in(&app, "me@example.org").await;
    let first_socket = connect(&first).await;
    let second = sign_in(&app, "me@example.org").await;
    let second_socket = connect(&second).await;
    assert_eq!(first_socket.event("devices.changed").await, changed(&[&second], &[]));
    assert_eq!(heard(&second_socket).await, [] as [Value; 0]);
    // Another session of a device, another user, a new name: no news.
    sign_in_as(&app, "me@example.org", json!({ "device": { "id": second.device } })).await;
    sign_in(&app, "you@example.org").await;
    first_socket.request("devices.rename", json!({ "device_id": second.device, "name": "x" })).await;
    assert_eq!(heard(&first_socket).await, [] as [Value; 0]);
    let third = sign_in_as(&app, "me@example.org", json!({ "replace_device_id": second.device })).await;
    assert_eq!(first_socket.event("devices.changed").await, changed(&[&third], &[&second]));
    assert_eq!(second_socket.event("session.revoked").await, json!({ "reason": "device_revoked" }));
    assert_eq!(second_socket.close_code().await, 4502);
    let third_socket = connect(&third).await;
    first_socket.request("devices.revoke", json!({ "device_id": third.device })).await;
    assert_eq!(first_socket.event("devices.changed").await, changed(&[], &[&third]));
    assert_eq!(third_socket.event("session.revoked").await, json!({ "reason": "device_revoked" }));
    assert_eq!(third_socket.close_code().await, 4502);
    assert_eq!(third_socket.take_event("devices.changed"), None);
    assert_eq!(heard(&first_socket).await, [] as [Value; 0]);
}
