//! An accepted message arrives, in order, whatever happens to nodes, Redis and PostgreSQL meanwhile.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::{ConnectOptions, postgres::PgConnectOptions, sqlite::SqliteConnectOptions};

use crate::support::{
    Cluster, Codec, Member, Server, ServerProcess, Services, Settings, Socket,
    mailing::{content, message},
    traffic::{Traffic, user_pairs, wait_until_empty},
};

const NO_LIMIT: Settings = &[("LIMITS__SENDS_PER_DEVICE_SECOND", "0"), ("LIMITS__SENDS_PER_PAIR_SECOND", "0")];

/// Ends the run, and asserts that it had enough messages and disconnections to be a test.
async fn finish(traffic: Traffic, what: &str) {
    let ledger = traffic.report(what).await;
    let ledger = ledger.lock().unwrap();
    assert!(
        ledger.accepted() > 100 && ledger.closes.values().sum::<usize>() > 10,
        "too few messages or disconnections"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_devices_lose_no_message_while_nodes_redis_and_postgres_fail_in_turn() {
    let services = Services::private();
    let mut cluster = Cluster::start(&services, 2, NO_LIMIT).await;
    let user_pairs = user_pairs(&cluster.nodes[0], 20).await;
    let addresses: Vec<_> = cluster.nodes.iter().map(Server::address).collect();
    let traffic = Traffic::start(&addresses, &user_pairs, Duration::from_millis(150));
    traffic.all_make_progress(5).await;
    for node in 0..2 {
        cluster.nodes[node].kill();
        traffic.all_make_progress(5).await;
        cluster.nodes[node].restart().await;
        traffic.all_make_progress(20).await;
    }
    services.control("stop", "redis").await;
    // The outage lasts for two passes of the reconcile.
    tokio::time::sleep(Duration::from_secs(10)).await;
    traffic.all_make_progress(20).await;
    services.control("start", "redis").await;
    traffic.all_make_progress(20).await;
    services.control("restart", "postgres").await;
    traffic.all_make_progress(20).await;
    traffic.finish_writing().await;
    let mut database = cluster.database.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
    wait_until_empty!(database);
    finish(traffic, "two nodes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_on_sqlite_loses_no_message_if_it_is_killed() {
    let mut server = ServerProcess::start(NO_LIMIT).await;
    let user_pairs = user_pairs(&server, 4).await;
    let traffic = Traffic::start(&[server.address()], &user_pairs, Duration::from_millis(5));
    for _ in 0..4 {
        traffic.all_make_progress(50).await;
        server.kill();
        server.restart().await;
    }
    traffic.finish_writing().await;
    let file = format!("sqlite://{}", server.path("sealwire.db").display());
    let mut database = file.parse::<SqliteConnectOptions>().unwrap().connect().await.unwrap();
    wait_until_empty!(database);
    finish(traffic, "one node").await;
}

/// Sends without waiting for replies.
async fn pipeline(socket: &Socket, codec: Codec, params: &[Value], first_id: u32) {
    for (id, params) in (first_id..).zip(params) {
        drop(socket.expect_reply(id));
        socket.send(codec.encode(&json!({ "id": id, "op": "messages.send", "params": params }))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_sender_that_moves_between_nodes_arrive_in_order() {
    const ROUNDS: usize = 40;
    const EACH: usize = 12;
    let services = Services::shared();
    let cluster = Cluster::start(&services, 2, NO_LIMIT).await;
    let bob = Member::join(&cluster.nodes[0], "bob@example.org", Codec::Json).await;
    let mut alice = Member::join(&cluster.nodes[1], "alice@example.org", Codec::MsgPack).await;
    let mut seen = Vec::new();
    for round in 0..ROUNDS {
        // Half of the messages are in flight when the device reconnects. It then sends all, so it repeats these.
        let texts: Vec<String> = (0..2 * EACH).map(|n| format!("{round} {n}")).collect();
        let params: Vec<Value> = texts.iter().map(|text| message(&[&bob.person], text)).collect();
        pipeline(&alice.socket, Codec::MsgPack, &params[..EACH], 1000).await;
        let before = std::mem::replace(
            &mut alice.socket,
            Socket::connect(&cluster.nodes[round % 2], &alice.person.token, Codec::MsgPack).await,
        );
        for params in &params {
            alice.socket.request("messages.send", params.clone()).await;
        }
        drop(before);
        for text in &texts {
            let arrived = bob.socket.event("message").await;
            assert_eq!(arrived["content"], content(text), "round {round}: {seen:?}");
            seen.push(arrived["seq"].clone());
            bob.ack(&[&arrived]).await;
        }
    }
    assert_eq!(seen.len(), ROUNDS * 2 * EACH);
    assert_eq!(seen.last(), Some(&json!(seen.len())), "nothing was stored twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_between_nodes_arrive_with_and_without_redis() {
    let services = Services::private();
    let cluster = Cluster::start(&services, 2, NO_LIMIT).await;
    let alice = Member::join(&cluster.nodes[0], "alice@example.org", Codec::Json).await;
    let bob = Member::join(&cluster.nodes[1], "bob@example.org", Codec::Json).await;
    for n in 0..20 {
        alice.send(&[&bob.person], &n.to_string()).await;
    }
    let mut ephemeral = message(&[&bob.person], "typing");
    ephemeral["ephemeral"] = true.into();
    alice.socket.request("messages.send", ephemeral.clone()).await;
    for n in 0..20 {
        bob.receives(&n.to_string()).await;
    }
    assert_eq!(bob.socket.event("message").await["ephemeral"], true, "after the messages that were sent before it");
    services.control("stop", "redis").await;
    for n in 20..25 {
        alice.send(&[&bob.person], &n.to_string()).await;
    }
    // This message is not stored, and no signal can announce it, so it is lost.
    alice.socket.request("messages.send", ephemeral).await;
    for n in 20..25 {
        bob.receives(&n.to_string()).await;
    }
    services.control("start", "redis").await;
    alice.send(&[&bob.person], "back").await;
    bob.receives("back").await;
    assert_eq!(bob.socket.take_event("message"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_repeats_on_two_nodes_store_one_message() {
    let services = Services::shared();
    let cluster = Cluster::start(&services, 2, NO_LIMIT).await;
    let alice = Member::join(&cluster.nodes[0], "alice@example.org", Codec::Json).await;
    let bob = Member::join(&cluster.nodes[1], "bob@example.org", Codec::Json).await;
    for round in 0..30 {
        let params = message(&[&bob.person], &round.to_string());
        let old = Socket::connect(&cluster.nodes[0], &alice.person.token, Codec::Json).await;
        pipeline(&old, Codec::Json, std::slice::from_ref(&params), 7).await;
        let new = Socket::connect(&cluster.nodes[1], &alice.person.token, Codec::Json).await;
        let repeats = join_all((0..4).map(|_| new.request("messages.send", params.clone()))).await;
        assert!(repeats.iter().filter(|answer| answer["duplicate"] == false).count() <= 1, "{repeats:?}");
        assert_eq!(bob.receives(&round.to_string()).await["seq"], round + 1);
    }
}
