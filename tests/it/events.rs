//! Events: `prekeys.low`, `signed_prekey.expiring` and `devices.changed`.

use std::time::{Duration, Instant};

use sealwire::domain::{Suite, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Codec, KeySet, Person, Socket, TestApp, sign_in, sign_in_as};

/// An owner of pools, and a claimer.
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

    /// Publishes this many one-time prekeys of each kind; the first call publishes a complete set.
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

    /// Returns kind and count of the `prekeys.low` events since the last call. Threshold and version must be as in the
    /// status.
    async fn low_events(&self) -> Vec<(String, u64)> {
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

    /// Claims one key at a time, and returns the counts at which the owner got an event.
    async fn levels(&self, claims: u32) -> Vec<u64> {
        let mut levels = Vec::new();
        for _ in 0..claims {
            self.claim().await;
            let low_events = self.low_events().await;
            let status = self.socket.request("keys.status", json!({})).await;
            assert!(
                low_events.len() <= 1 && low_events.iter().all(|(_, remaining)| status["one_time"] == *remaining),
                "{low_events:?}"
            );
            levels.extend(low_events.into_iter().map(|(_, remaining)| remaining));
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
async fn a_falling_pool_is_announced_once_per_level_and_again_after_a_rise() {
    let mut pool = Pool::new(Suite::SignalX3dh, None).await;
    pool.add(22, 0).await;
    assert_eq!(pool.levels(24).await, [20, 10, 5, 0], "two claims found no key and announced nothing");
    pool.add(12, 0).await;
    assert_eq!(pool.levels(4).await, [10], "the pool did not rise above 20");
    pool.add(2, 0).await;
    assert_eq!(pool.levels(4).await, [0; 0], "the pool rose to 10, not above it");
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
        assert_eq!(pool.low_events().await, [one_time(0)], "under {mark}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn low_pools_of_both_kinds_are_announced_at_once_and_after_each_welcome() {
    let mut pool = Pool::new(Suite::SignalPqxdh, Some("3")).await;
    pool.reconnect().await;
    assert_eq!(pool.low_events().await, [], "the device has published no keys yet");
    pool.add(4, 5).await;
    pool.reconnect().await;
    assert_eq!(pool.low_events().await, [], "neither pool is low");
    pool.claim().await;
    assert_eq!(pool.low_events().await, [one_time(3)]);
    pool.claim().await;
    assert_eq!(pool.low_events().await, [pq(3)]);
    pool.reconnect().await;
    assert_eq!(pool.low_events().await, [one_time(2), pq(3)]);
    pool.claim().await;
    assert_eq!(pool.low_events().await, [one_time(1)], "the event after the welcome does not replace that of a level");
    pool.claim().await;
    let mut low_events = pool.low_events().await;
    low_events.sort();
    assert_eq!(low_events, [one_time(0), pq(1)]);
    pool.add(0, 9).await;
    pool.reconnect().await;
    assert_eq!(pool.low_events().await, [one_time(0)], "a publish affects only its own pool");
}

/// Publishes a signed prekey with this expiry.
async fn rotate(socket: &Socket, keys: &mut KeySet, key_id: u32, expires_at: Timestamp) {
    let mut key = keys.signed_prekey(key_id);
    key["expires_at"] = json!(expires_at);
    socket.request("keys.publish", json!({ "signed_prekey": key })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiring_signed_prekey_is_announced_on_each_connection_until_it_is_replaced() {
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
        assert_eq!(socket.take_event("signed_prekey.expiring"), None, "sent once per connection");
    }
    rotate(&socket, &mut keys, 8, later).await;
    socket.barrier().await;
    assert_eq!(socket.take_event("signed_prekey.expiring"), None);
    let started = Instant::now();
    socket = Socket::connect(&app, &token, Codec::Json).await;
    socket.barrier().await;
    assert_eq!(socket.take_event("signed_prekey.expiring"), None);
    // The event is sent when the prekey has three days left, which for this one is in two seconds.
    let moment = Timestamp::parse(socket.welcome["server_time"].as_str().unwrap()).unwrap() + Duration::from_secs(2);
    rotate(&socket, &mut keys, 9, moment + DAY * 3).await;
    assert_eq!(socket.event("signed_prekey.expiring").await["key_id"], 9);
    assert!(started.elapsed() >= Duration::from_secs(2), "not before three days are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_signed_prekeys_are_announced_in_order() {
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
        // Some are refused at once, which must not change the order.
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
    let request = async |op: &str, named: bool| {
        let mut params = json!({ "user_id": owner.user, "claim_id": Uuid::new_v4() });
        if named {
            params["device_ids"] = json!([owner.device]);
        }
        claimer.request(op, params).await
    };
    app.advance(hour.saturating_sub(Duration::from_micros(1)));
    assert_eq!(request("keys.claim", false).await["bundles"][0]["signed_prekey"]["key_id"], 2);
    app.advance(Duration::from_micros(1));
    let expired = json!({
        "bundles": [], "unavailable": [{ "device_id": owner.device, "reason": "signed_prekey_expired" }],
    });
    for op in ["keys.fetch", "keys.claim"] {
        assert_eq!(request(op, false).await, expired, "{op}");
        assert_eq!(request(op, true).await, expired, "{op}");
    }
    let status = socket.request("keys.status", json!({})).await;
    assert_eq!((&status["one_time"], &status["signed_prekey"]["key_id"]), (&json!(2), &json!(2)));
    rotate(&socket, &mut keys, 3, now + hour * 2).await;
    let bundle = request("keys.claim", true).await["bundles"][0].clone();
    assert_eq!((&bundle["signed_prekey"]["key_id"], &bundle["one_time_prekey"]["key_id"]), (&json!(3), &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_get_an_event_about_added_and_removed_devices_of_their_user() {
    let app = TestApp::start(&[]);
    let connect = async |person: &Person| Socket::connect(&app, &person.token, Codec::Json).await;
    let changes = async |socket: &Socket| {
        socket.barrier().await;
        std::iter::from_fn(|| socket.take_event("devices.changed")).collect::<Vec<_>>()
    };
    let changed = |added: &[&Person], removed: &[&Person]| {
        let ids = |devices: &[&Person]| devices.iter().map(|person| person.device.clone()).collect::<Vec<_>>();
        json!({ "added": ids(added), "removed": ids(removed) })
    };
    let first = sign_in(&app, "me@example.org").await;
    let first_socket = connect(&first).await;
    let second = sign_in(&app, "me@example.org").await;
    let second_socket = connect(&second).await;
    assert_eq!(first_socket.event("devices.changed").await, changed(&[&second], &[]));
    assert_eq!(changes(&second_socket).await, [] as [Value; 0]);
    // Another session of a device, another user or a new name is not announced.
    sign_in_as(&app, "me@example.org", json!({ "device": { "id": second.device } })).await;
    sign_in(&app, "you@example.org").await;
    first_socket.request("devices.rename", json!({ "device_id": second.device, "name": "x" })).await;
    assert_eq!(changes(&first_socket).await, [] as [Value; 0]);
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
    assert_eq!(changes(&first_socket).await, [] as [Value; 0]);
}
