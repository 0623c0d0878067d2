//! Each deployment has its own channels on the bus. Payloads of others are dropped, and nodes report that they are
//! degraded if the bus does not connect them. Also covers Redis Sentinel.

use std::{
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
};

use reqwest::Method;
use sqlx::Executor;
use tempfile::TempDir;
use uuid::Uuid;

use crate::{
    metrics::value,
    support::{Cluster, Codec, Member, ServerProcess, Services, eventually, http::call},
};

async fn readiness(node: &ServerProcess) -> (String, String) {
    let (_, body) = call(node, Method::GET, "/readyz", None, None).await;
    let reasons = body["reasons"].as_array().unwrap().iter().map(|reason| reason.as_str().unwrap());
    (body["status"].as_str().unwrap().to_owned(), reasons.collect::<Vec<_>>().join("; "))
}

async fn wait_for_readiness(node: &ServerProcess, status: &str, reason: &str) {
    eventually(&format!("{status}: {reason}"), || async {
        let (actual, reasons) = readiness(node).await;
        (actual == status && reasons.contains(reason)).then_some(())
    })
    .await;
}

/// The channels that have subscribers. A Redis that is being promoted ends its connections, so asking it may fail.
fn channels(redis: &str) -> redis::RedisResult<Vec<String>> {
    redis::cmd("PUBSUB").arg("CHANNELS").arg("*").query(&mut redis::Client::open(redis)?)
}

fn publish(redis: &str, channel: &str, payload: &[u8]) {
    let mut client = redis::Client::open(redis).unwrap();
    redis::cmd("PUBLISH").arg(channel).arg(payload).exec(&mut client).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_payloads_on_a_devices_channel_are_counted_and_dropped() {
    let services = Services::private();
    let cluster = Cluster::start(&services, 2, &[]).await;
    let alice = Member::join(&cluster.nodes[0], "alice@example.org", Codec::Json).await;
    let bob = Member::join(&cluster.nodes[1], "bob@example.org", Codec::Json).await;
    let all = channels(&services.redis).unwrap();
    let channel = all.iter().find(|name| name.ends_with(&bob.person.device)).expect("a channel of the device");
    let parts: Vec<&str> = channel.split(':').collect();
    assert_eq!((parts[0], parts[1].len(), parts[2]), ("sealwire", 16, "device"), "{channel}");
    assert!(!channel.contains(['{', '}']), "Redis Cluster would take braces for a hash tag");
    // Record a valid payload. It is published again with one byte changed and without its last byte.
    let mut listening = redis::Client::open(services.redis.as_str()).unwrap().get_connection().unwrap();
    let recorded = {
        let mut listener = listening.as_pubsub();
        listener.subscribe(channel).unwrap();
        alice.send(&[&bob.person], "for bob").await;
        listener.get_message().unwrap().get_payload_bytes().to_vec()
    };
    bob.receives("for bob").await;
    let rejected = || value(cluster.nodes[1].admin(), r#"sealwire_bus_signals_total{direction="rejected"}"#);
    assert!(rejected().await < 1.0);
    let mut changed = recorded.clone();
    changed[30] ^= 1;
    for payload in [&changed[..], &recorded[..recorded.len() - 1], b"", b"nonsense", &[0; 200]] {
        publish(&services.redis, channel, payload);
    }
    eventually("all invalid payloads are counted", || async { (rejected().await >= 5.0).then_some(()) }).await;
    bob.socket.barrier().await;
    assert!(!bob.socket.is_closed() && bob.socket.take_event("message").is_none());
    alice.send(&[&bob.person], "still delivered").await;
    bob.receives("still delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_deployments_on_one_redis_use_separate_channels() {
    let services = Services::private();
    let one = Cluster::start(&services, 2, &[]).await;
    let other_secret = ("AUTH__SECRET", "YW5vdGhlci1kZXBsb3ltZW50cy1zZWNyZXQtMzItYnk=");
    let database = services.database().await;
    let settings = [("DATABASE__URL", database.as_str()), ("BUS__URL", services.redis.as_str()), other_secret];
    let other = ServerProcess::start(&settings).await;
    let device = Member::join(&one.nodes[0], "alice@example.org", Codec::Json).await;
    let foreign = Member::join(&other, "alice@example.org", Codec::Json).await;
    let prefixes: std::collections::BTreeSet<String> = channels(&services.redis)
        .unwrap()
        .iter()
        .filter(|name| name.contains(":device:"))
        .map(|name| name.split(':').nth(1).unwrap().to_owned())
        .collect();
    assert_eq!(prefixes.len(), 2, "each deployment has its own prefix");
    for node in one.nodes.iter().chain([&other]) {
        assert_eq!(readiness(node).await.0, "ready");
    }
    drop((device, foreign));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_deployments_with_the_same_secret_and_redis_are_degraded() {
    let services = Services::private();
    let one = Cluster::start(&services, 1, &[]).await;
    let two = Cluster::start(&services, 1, &[]).await;
    for node in [&one.nodes[0], &two.nodes[0]] {
        wait_for_readiness(node, "degraded", "another deployment with the same auth.secret").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_on_two_redis_servers_are_degraded_and_still_deliver_within_seconds() {
    let (services, elsewhere) = (Services::private(), Services::private());
    let mut cluster = Cluster::start(&services, 1, &[]).await;
    let settings = [
        ("DATABASE__URL", cluster.database.as_str()),
        ("BUS__URL", elsewhere.redis.as_str()),
        ("AUTH__SECRET", "c2VhbHdpcmUtdGVzdC1zZWNyZXQtMzItYnl0ZXMtISE="),
    ];
    let separate = ServerProcess::start(&settings).await;
    cluster.nodes.push(separate);
    // Each node receives its own signals, which does not suffice to be ready.
    for node in &cluster.nodes {
        wait_for_readiness(node, "degraded", "the bus does not reach node").await;
    }
    let alice = Member::join(&cluster.nodes[0], "alice@example.org", Codec::Json).await;
    let bob = Member::join(&cluster.nodes[1], "bob@example.org", Codec::Json).await;
    alice.send(&[&bob.person], "by the database").await;
    bob.receives("by the database").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_makes_the_others_degraded_for_a_while_and_a_stopped_one_does_not() {
    let services = Services::private();
    let mut cluster = Cluster::start(&services, 3, &[]).await;
    let database = tokio::sync::Mutex::new(cluster.sql().await);
    let nodes = || async {
        let all = sqlx::query_as("SELECT id FROM nodes WHERE deployment IS NULL");
        let rows: Vec<(Uuid,)> = all.fetch_all(&mut *database.lock().await).await.unwrap();
        rows.len()
    };
    eventually("each node has a row", || async { (nodes().await == 3).then_some(()) }).await;
    assert!(cluster.nodes[2].terminate().await.success());
    assert_eq!(nodes().await, 2, "a node that stops deletes its row");
    cluster.nodes[1].kill();
    wait_for_readiness(&cluster.nodes[0], "degraded", "the bus does not reach node").await;
    wait_for_readiness(&cluster.nodes[0], "ready", "").await;
    let mut admin = cluster.sql().await;
    admin.execute("UPDATE nodes SET heartbeat = NOW() - INTERVAL '2 hours' WHERE deployment IS NULL").await.unwrap();
    eventually("the row of the killed node is deleted", || async { (nodes().await == 1).then_some(()) }).await;
}

/// A Redis Sentinel that watches one master under the name `chat`. It ends when this is dropped.
struct Sentinel {
    process: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Sentinel {
    async fn start(master: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The port is free now, and the kernel does not soon hand out the same port again.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let master_port = master.rsplit_once(':').unwrap().1.trim_end_matches('/');
        let settings = format!(
            "port {}\nbind 127.0.0.1\ndir {}\nsentinel monitor chat 127.0.0.1 {master_port} 1\n\
             sentinel down-after-milliseconds chat 60000\nsentinel failover-timeout chat 20000\n",
            address.port(),
            folder.path().display(),
        );
        let file = folder.path().join("sentinel.conf");
        std::fs::write(&file, settings).unwrap();
        let mut command = Command::new("redis-server");
        command.arg(&file).arg("--sentinel").stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
        let process = command.spawn().expect("redis-server, which scripts/services installs");
        let sentinel = Self { process, address, _folder: folder };
        eventually("the sentinel answers", || async { sentinel.ask::<Vec<String>>("GET-MASTER-ADDR-BY-NAME").ok() })
            .await;
        sentinel
    }

    fn ask<T: redis::FromRedisValue>(&self, command: &str) -> redis::RedisResult<T> {
        let mut client = redis::Client::open(format!("redis://{}", self.address))?;
        redis::cmd("SENTINEL").arg(command).arg("chat").query(&mut client)
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_the_nodes_use_the_redis_that_the_sentinels_name() {
    let (services, standby) = (Services::private(), Services::private());
    let port = |url: &str| url.rsplit_once(':').unwrap().1.trim_end_matches('/').to_owned();
    let mut replica = redis::Client::open(standby.redis.as_str()).unwrap();
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(port(&services.redis)).exec(&mut replica).unwrap();
    eventually("the replica is up to date", || {
        let info: String = redis::cmd("INFO").arg("replication").query(&mut replica).unwrap();
        async move { info.contains("master_link_status:up").then_some(()) }
    })
    .await;
    let sentinel = Sentinel::start(&services.redis).await;
    // Nothing listens on the first address.
    let url = format!("redis-sentinel://127.0.0.1:1,{}?master=chat", sentinel.address);
    let database = services.database().await;
    let settings = [
        ("DATABASE__URL", database.as_str()),
        ("BUS__URL", url.as_str()),
        ("AUTH__SECRET", "c2VhbHdpcmUtdGVzdC1zZWNyZXQtMzItYnl0ZXMtISE="),
    ];
    let nodes = [ServerProcess::start(&settings).await, ServerProcess::start(&settings).await];
    for node in &nodes {
        wait_for_readiness(node, "ready", "").await;
    }
    let alice = Member::join(&nodes[0], "alice@example.org", Codec::Json).await;
    let bob = Member::join(&nodes[1], "bob@example.org", Codec::Json).await;
    alice.send(&[&bob.person], "before").await;
    bob.receives("before").await;

    eventually("the failover begins", || async { sentinel.ask::<String>("FAILOVER").ok() }).await;
    let subscribed_devices = || {
        let channels = channels(&standby.redis).unwrap_or_default();
        channels.iter().filter(|name| name.contains(":device:")).count()
    };
    eventually("both nodes have subscribed at the new master", || async { (subscribed_devices() == 2).then_some(()) })
        .await;
    for node in &nodes {
        wait_for_readiness(node, "ready", "").await;
    }
    alice.send(&[&bob.person], "after").await;
    bob.receives("after").await;
}
