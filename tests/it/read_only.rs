//! A read-only PostgreSQL, as after a failover: the node is not ready, and recovers without a restart.

use reqwest::{Method, StatusCode};
use serde_json::json;
use sqlx::{ConnectOptions, Executor, postgres::PgConnectOptions};

use crate::{
    metrics::value,
    support::{Cluster, Codec, Member, Server, Services, eventually, http::call, problem::assert_problem},
};

async fn is_ready(server: &impl Server) -> bool {
    call(server, Method::GET, "/readyz", None, None).await.0 == StatusCode::OK
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_database_makes_the_node_not_ready_until_it_is_writable_again() {
    let services = Services::private();
    let cluster = Cluster::start(&services, 1, &[]).await;
    let node = &cluster.nodes[0];
    let alice = Member::join(node, "alice@example.org", Codec::Json).await;
    let bob = Member::join(node, "bob@example.org", Codec::Json).await;
    alice.send(&[&bob.person], "before").await;
    bob.receives("before").await;
    let admin: PgConnectOptions = cluster.database.parse().unwrap();
    // Like a primary that became a standby: connections stay open, but can only read.
    let read_only = async |on: bool| {
        let mut connection = admin.connect().await.unwrap();
        connection.execute("SET default_transaction_read_only = off").await.unwrap();
        let value = if on { "on" } else { "off" };
        for statement in
            [format!("ALTER SYSTEM SET default_transaction_read_only = {value}"), "SELECT pg_reload_conf()".to_owned()]
        {
            connection.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
        }
    };
    read_only(true).await;
    eventually("the node is not ready", async || (!is_ready(node).await).then_some(())).await;
    assert!(value(node.admin(), "sealwire_database_up").await < 1.0);
    for (op, params) in [
        ("messages.send", crate::support::mailing::message(&[&bob.person], "lost?")),
        ("devices.rename", json!({ "device_id": alice.person.device, "name": "x" })),
    ] {
        assert_problem(&alice.socket.refused(op, params).await, "unavailable", op);
    }
    // Reads succeed, but do not make the node ready.
    for _ in 0..20 {
        alice.socket.request("keys.status", json!({})).await;
        alice.socket.request("devices.list", json!({})).await;
    }
    assert!(!is_ready(node).await);
    read_only(false).await;
    eventually("the node is ready", async || is_ready(node).await.then_some(())).await;
    for round in 0..20 {
        let text = format!("after {round}");
        alice.send(&[&bob.person], &text).await;
        bob.receives(&text).await;
    }
    assert!(value(node.admin(), "sealwire_database_up").await > 0.0);
}
