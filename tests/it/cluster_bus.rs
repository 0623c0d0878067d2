//! The bus between nodes: what holds if signals are lost, and how its subscriptions end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sealwire::domain::Suite;
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::support::{
    Cluster, Codec, KeySet, PATIENCE, Person, RowLock, Server, Services, Socket,
    claiming::{Endpoint, HandedOut, claim_through_crashes, owners, pending_claims},
    code, eventually,
    mailing::Member,
    raw::{CLOSE, HANDSHAKE, RawSocket, frame, request_upgrade},
    sign_in,
};

/// The longest delay that a lost signal may cause: the reconcile interval of 30 seconds, and the pass itself on a busy
/// machine.
const RECONCILE: Duration = Duration::from_mins(1);
/// The same while the bus is down and the interval is five seconds.
const RECONCILE_WITHOUT_BUS: Duration = Duration::from_secs(20);

/// Waits until a node has just reconciled, so that it will not do so again for about four seconds. For this it revokes
/// `device`, which is connected to that node, directly in the database: only a reconcile notices that.
async fn wait_for_reconcile(database: &mut PgConnection, device: &(Person, Socket)) {
    let (person, socket) = device;
    let revoked = sqlx::query("UPDATE devices SET revoked = TRUE WHERE id = $1")
        .bind(Uuid::parse_str(&person.device).unwrap())
        .execute(database)
        .await
        .unwrap();
    assert_eq!(revoked.rows_affected(), 1);
    assert_eq!(socket.close_code().await, 4502);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_a_revoked_device_is_refused_and_closed_at_the_next_reconcile() {
    const LOCK: &str = "SELECT id FROM devices WHERE id = $1 FOR UPDATE";
    const ATTEMPTS: usize = 5;
    let services = Services::private();
    let cluster = Cluster::start(&services, 2, &[]).await;
    let mut database = cluster.sql().await;
    let mut prepared = Vec::new();
    for index in 0..ATTEMPTS {
        let watch = sign_in(&cluster.nodes[1], &format!("watch{index}@example.org")).await;
        let watch_socket = Socket::connect(&cluster.nodes[1], &watch.token, Codec::Json).await;
        let [(_, here), (person, there)] = cluster.two_devices(&format!("alice{index}@example.org")).await;
        let mut keys = KeySet::new(Suite::SignalX3dh, 1);
        there.request("keys.publish", keys.complete(1..=5)).await;
        prepared.push(((watch, watch_socket), here, person, there, keys));
    }
    services.control("kill", "redis").await;
    cluster.wait_for_status("degraded").await;
    for (watch, here, person, there, mut keys) in prepared {
        wait_for_reconcile(&mut database, &watch).await;
        // The device's publish is in progress when the device is revoked, and continues after the revocation.
        let mut row_lock = RowLock::lock(&cluster, LOCK, &person.device).await;
        let revoke = here.request("devices.revoke", json!({ "device_id": person.device }));
        let publish_after_it = async {
            row_lock.wait_for_waiters(1).await;
            let release_the_row = async {
                row_lock.wait_for_waiters(2).await;
                row_lock.release().await;
            };
            let params = json!({ "one_time_prekeys": [keys.prekey(6)] });
            tokio::join!(there.try_request("keys.publish", params), release_the_row).0
        };
        let (_, publish) = tokio::join!(revoke, publish_after_it);
        let revoked = Instant::now();
        let claim =
            there.try_request("keys.claim", json!({ "user_id": person.user, "claim_id": Uuid::new_v4() })).await;
        let answers: Vec<_> = [publish, claim].into_iter().flatten().collect();
        for answer in &answers {
            assert_eq!(code(answer.as_ref().unwrap_err()), "session_revoked");
        }
        assert_eq!(there.close_code().await, 4502);
        assert!(revoked.elapsed() < RECONCILE_WITHOUT_BUS, "it took {:?}", revoked.elapsed());
        let (left,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM one_time_prekeys WHERE device_id = $1 AND NOT used")
            .bind(Uuid::parse_str(&person.device).unwrap())
            .fetch_one(&mut database)
            .await
            .unwrap();
        assert_eq!(left, 0);
        if answers.len() == 2 {
            return;
        }
        // This took so long that the next reconcile closed the socket first. Try another pair of devices.
    }
    panic!("this machine needs seconds for two requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_continue_without_redis_and_signals_work_again_after_the_outage() {
    const KEYS: u32 = 200;
    let services = Services::private();
    let cluster = Cluster::start(&services, 2, &[("LIMITS__CLAIM_BURST", "0")]).await;
    let owners = owners(&cluster.nodes[0], 20, KEYS).await;
    let queue = Arc::new(tokio::sync::Mutex::new(pending_claims(&owners, KEYS)));
    let handed_out = Arc::new(tokio::sync::Mutex::new(HandedOut::default()));
    let total = queue.lock().await.len();
    let mut devices = Vec::new();
    for index in 0..16 {
        devices.push(sign_in(&cluster.nodes[index % 2], &format!("claimer{index}@example.org")).await);
    }
    services.control("kill", "redis").await;
    let stopped = Instant::now();
    cluster.wait_for_status("degraded").await;
    let claimers: Vec<_> = devices
        .into_iter()
        .enumerate()
        .map(|(index, person)| {
            let endpoints = vec![Endpoint { address: cluster.nodes[index % 2].address() }];
            tokio::spawn(claim_through_crashes(endpoints, person, queue.clone(), handed_out.clone()))
        })
        .collect();
    eventually("claims continue", || async { (queue.lock().await.len() < total * 3 / 4).then_some(()) }).await;
    // Claims must continue during all of the outage.
    tokio::time::sleep_until((stopped + Duration::from_secs(10)).into()).await;
    services.control("start", "redis").await;
    for claimer in claimers {
        claimer.await.unwrap();
    }
    handed_out.lock().await.assert_complete(&owners, KEYS);
    cluster.wait_for_status("ready").await;
    // The owners' node got no signals about claims on the other node; the reconcile after the outage announces levels.
    for owner in &owners {
        eventually("the owner knows that the pool is empty", || async {
            owner.socket.seen_events("prekeys.low").last().filter(|event| event["remaining"] == 0).map(|_| ())
        })
        .await;
    }
    let [(_, here), (person, there)] = cluster.two_devices("after@example.org").await;
    here.request("devices.revoke", json!({ "device_id": person.device })).await;
    assert_eq!(there.close_code().await, 4502);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reconcile_makes_up_for_the_signals_of_a_node_that_crashed_after_its_commit() {
    let cluster = Cluster::start(&Services::shared(), 2, &[]).await;
    let [(revoked, revoked_socket), (low, low_socket)] = cluster.two_devices("alice@example.org").await;
    let deleted = sign_in(&cluster.nodes[0], "bob@example.org").await;
    let deleted_socket = Socket::connect(&cluster.nodes[0], &deleted.token, Codec::Json).await;
    let mut keys = KeySet::new(Suite::SignalX3dh, 1);
    low_socket.request("keys.publish", keys.complete(1..=30)).await;
    // The changes of a node that has committed them and crashed before it sent any signal.
    let mut database = cluster.sql().await;
    let id = |text: &str| Uuid::parse_str(text).unwrap();
    for (statement, id) in [
        ("UPDATE devices SET revoked = TRUE WHERE id = $1", id(&revoked.device)),
        ("UPDATE one_time_prekeys SET used = TRUE WHERE device_id = $1 AND key_id > 7", id(&low.device)),
        ("DELETE FROM users WHERE id = $1", id(&deleted.user)),
    ] {
        sqlx::query(statement).bind(id).execute(&mut database).await.unwrap();
    }
    let committed = Instant::now();
    assert_eq!(
        tokio::time::timeout(RECONCILE, revoked_socket.closed()).await.expect("closed within the interval"),
        4502
    );
    assert_eq!(deleted_socket.closed().await, 4506);
    let event = eventually("the owner gets the event", || async { low_socket.low_event(7) }).await;
    assert_eq!(event["kind"], "one_time");
    assert!(committed.elapsed() < RECONCILE, "it took {:?}", committed.elapsed());
}

/// The channel on which nodes are subscribed to the signals of a connected device.
fn channel_of(redis: &str, device: &str) -> String {
    let mut client = redis::Client::open(redis).unwrap();
    let pattern = format!("sealwire:*:device:{device}");
    let channels: Vec<String> = redis::cmd("PUBSUB").arg("CHANNELS").arg(pattern).query(&mut client).unwrap();
    let [channel] = &channels[..] else { panic!("{channels:?}") };
    channel.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bus_carries_small_messages_to_devices_on_other_nodes() {
    let services = Services::private();
    let cluster = Cluster::start(&services, 2, &[]).await;
    let alice = Member::join(&cluster.nodes[0], "alice@example.org", Codec::Json).await;
    let here = Member::join(&cluster.nodes[0], "here@example.org", Codec::MsgPack).await;
    let there = Member::join(&cluster.nodes[1], "there@example.org", Codec::MsgPack).await;
    let mut redis = redis::Client::open(services.redis.as_str()).unwrap().get_connection().unwrap();
    redis.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut listener = redis.as_pubsub();
    let large = "l".repeat(20_000);
    for (to, text, on_bus) in [(&there, "small", true), (&here, "on this node", false), (&there, &large, false)] {
        let channel = channel_of(&services.redis, &to.person.device);
        listener.subscribe(&channel).unwrap();
        alice.send(&[&to.person], text).await;
        let published = listener.get_message().unwrap();
        assert_eq!(published.get_channel_name(), channel);
        let payload = published.get_payload_bytes();
        assert_eq!(payload.windows(text.len()).any(|some| some == text.as_bytes()), on_bus, "{} bytes", payload.len());
        to.receives(text).await;
        listener.unsubscribe(&channel).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_connections_leave_no_subscription_behind() {
    const DEVICES: usize = 12;
    const ROUNDS: usize = 25;
    let services = Services::private();
    let cluster = Arc::new(Cluster::start(&services, 2, &[]).await);
    let mut redis = redis::Client::open(services.redis.as_str()).unwrap();
    let mut channels = || redis::cmd("PUBSUB").arg("CHANNELS").arg("*:device:*").query::<Vec<String>>(&mut redis);
    let mut devices = Vec::new();
    for index in 0..DEVICES {
        devices.push(sign_in(&cluster.nodes[0], &format!("fleeting{index}@example.org")).await);
    }
    let kept = sign_in(&cluster.nodes[0], "kept@example.org").await;
    let kept_socket = Socket::connect(&cluster.nodes[1], &kept.token, Codec::Json).await;
    let connections = devices.into_iter().map(|person| {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                let node = &cluster.nodes[round % 2];
                let (socket, _) = RawSocket::connect(node, &person.token, Codec::Json).await;
                match round % 5 {
                    // The socket is reset, dropped, closed, displaced, or reset before its welcome.
                    0 => socket.reset(),
                    1 => drop(socket),
                    2 => {
                        let mut socket = socket;
                        socket.send(&frame(CLOSE, &1000_u16.to_be_bytes())).await;
                        assert_eq!(socket.close_code().await, 1000);
                    }
                    3 => {
                        let other = &cluster.nodes[(round + 1) % 2];
                        let (_newer, _) = RawSocket::connect(other, &person.token, Codec::Json).await;
                        let mut socket = socket;
                        assert_eq!(socket.close_code().await, 4503);
                    }
                    _ => {
                        let bearer = format!("Bearer {}", person.token);
                        let (answer, socket) =
                            request_upgrade(node, &[&HANDSHAKE[..], &[("authorization", bearer.as_str())]].concat())
                                .await;
                        assert_eq!(answer.status, 101);
                        socket.reset();
                    }
                }
            }
        })
    });
    for done in futures_util::future::join_all(connections).await {
        done.unwrap();
    }
    let channel = channel_of(&services.redis, &kept.device);
    eventually("only the channel of the connected device has a subscription", || {
        let only = channels().unwrap() == [channel.clone()];
        async move { only.then_some(()) }
    })
    .await;
    drop(kept_socket);
    eventually("no channel has a subscription", || {
        let none = channels().unwrap().is_empty();
        async move { none.then_some(()) }
    })
    .await;
}
