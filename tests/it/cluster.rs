//! What must hold when a user's devices, and one device's connections, are spread over two nodes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::StatusCode;
use sealwire::domain::Suite;
use serde_json::{Value, json};
use sqlx::{ConnectOptions, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

use crate::support::{
    Cluster, Codec, KeySet, Person, Server, Services, Socket,
    claiming::{Endpoint, Handed, claim_through_crashes, intents, owners},
    code, eventually,
    http::{call, challenge, post},
    sign_in,
};

/// The longest that a lost signal may cost, with the pass itself.
const RECONCILE: Duration = Duration::from_secs(35);
/// The same while the bus is down.
const RECONCILE_WITHOUT_BUS: Duration = Duration::from_secs(10);

async fn sql(cluster: &Cluster) -> PgConnection {
    cluster.database.parse::<PgConnectOptions>().unwrap().connect().await.unwrap()
}

/// Two devices of one user, the first connected to the first node, the second to the second.
async fn two_devices(cluster: &Cluster, email: &str) -> [(Person, Socket); 2] {
    let mut devices = Vec::new();
    for node in &cluster.nodes[..2] {
        let person = sign_in(node, email).await;
        let socket = Socket::connect(node, &person.token, Codec::Json).await;
        devices.push((person, socket));
    }
    devices.try_into().ok().unwrap()
}

async fn readiness(node: &impl Server) -> Value {
    call(node, reqwest::Method::GET, "/readyz", None, None).await.1
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_start_together_migrate_once() {
    let cluster = Cluster::start(&Services::shared(), 3, &[]).await;
    let (applied, distinct): (i64, i64) =
        sqlx::query_as("SELECT COUNT(*), COUNT(DISTINCT version) FROM _sqlx_migrations WHERE success")
            .fetch_one(&mut sql(&cluster).await)
            .await
            .unwrap();
    assert!(applied > 0);
    assert_eq!(applied, distinct);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_on_one_node_closes_the_socket_on_the_other_within_a_second() {
    let cluster = Cluster::start(&Services::shared(), 2, &[]).await;
    let [(_, here), (there_person, there)] = two_devices(&cluster, "alice@example.org").await;
    let added = here.event("devices.changed").await;
    assert_eq!(added, json!({ "added": [there_person.device], "removed": [] }));
    let revoked = Instant::now();
    here.request("devices.revoke", json!({ "device_id": there_person.device })).await;
    assert_eq!(there.event("session.revoked").await["reason"], "device_revoked");
    assert_eq!(there.close_code().await, 4502);
    assert!(revoked.elapsed() < Duration::from_secs(1), "it took {:?}", revoked.elapsed());
    assert!(Socket::try_connect(&cluster.nodes[0], &there_person.token, Codec::Json).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn logout_renewal_and_account_deletion_cross_nodes() {
    let cluster = Cluster::start(&Services::shared(), 2, &[]).await;
    let [(one, here), (two, there)] = two_devices(&cluster, "alice@example.org").await;
    // Presented on the other node, the renewed token ends the old session everywhere.
    let renewed = here.request("session.renew", json!({})).await;
    let token = renewed["token"].as_str().unwrap();
    let session = |token: String| {
        let node = &cluster.nodes[1];
        async move { call(node, reqwest::Method::GET, "/v1/auth/session", Some(&token), None).await.0 }
    };
    assert_eq!(session(one.token.clone()).await, StatusCode::OK);
    assert_eq!(session(token.to_owned()).await, StatusCode::OK);
    assert_eq!(session(one.token.clone()).await, StatusCode::UNAUTHORIZED);
    here.settle().await;
    // A logout by HTTP on one node reaches the socket on the other.
    let (status, _) =
        call(&cluster.nodes[0], reqwest::Method::DELETE, "/v1/auth/session", Some(&two.token), None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(there.close_code().await, 4500);
    let again = Socket::connect(&cluster.nodes[1], token, Codec::MsgPack).await;
    assert_eq!(here.close_code().await, 4503);
    again.request("account.delete", json!({})).await;
    assert_eq!(again.close_code().await, 4506);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_a_revoked_socket_can_do_nothing_and_closes_at_the_next_reconcile() {
    let services = Services::private();
    let cluster = Cluster::start(&services, 2, &[]).await;
    let [(_, here), (there_person, there)] = two_devices(&cluster, "alice@example.org").await;
    let mut keys = KeySet::new(Suite::SignalX3dh, 1);
    there.request("keys.publish", keys.complete(1..=5)).await;
    services.control("kill", "redis").await;
    for node in &cluster.nodes {
        eventually("the node notices", || async { (readiness(node).await["status"] == "degraded").then_some(()) })
            .await;
    }
    let revoked = Instant::now();
    here.request("devices.revoke", json!({ "device_id": there_person.device })).await;
    let publish = there.try_request("keys.publish", json!({ "one_time_prekeys": [keys.prekey(6)] })).await;
    let claim =
        there.try_request("keys.claim", json!({ "user_id": there_person.user, "claim_id": Uuid::new_v4() })).await;
    // The socket may have closed already, if the reconcile was that quick; it may not have let anything through.
    for answer in [publish, claim].into_iter().flatten() {
        assert_eq!(code(&answer.unwrap_err()), "session_revoked");
    }
    assert_eq!(there.close_code().await, 4502);
    assert!(revoked.elapsed() < RECONCILE_WITHOUT_BUS, "it took {:?}", revoked.elapsed());
    let (left,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM one_time_prekeys WHERE NOT used")
        .fetch_one(&mut sql(&cluster).await)
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_connects_to_both_nodes_at_once_keeps_the_newer_connection() {
    const ROUNDS: usize = 300;
    let cluster = Arc::new(Cluster::start(&Services::shared(), 2, &[]).await);
    let mut people = Vec::new();
    for index in 0..6 {
        people.push(sign_in(&cluster.nodes[0], &format!("restless{index}@example.org")).await);
    }
    let rounds = people.into_iter().map(|person| {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            for round in 0..ROUNDS / 6 {
                let connect = |node: usize| Socket::try_connect(&cluster.nodes[node], &person.token, Codec::Json);
                let (one, two) = tokio::join!(connect(0), connect(1));
                let sockets: Vec<Socket> = [one, two].into_iter().flatten().collect();
                assert!(!sockets.is_empty(), "round {round}: neither connected");
                // One of them may have been displaced before its welcome; of two that had one, one is displaced.
                if sockets.len() == 2 {
                    eventually("one of two connections is displaced", || async {
                        sockets.iter().any(Socket::is_closed).then_some(())
                    })
                    .await;
                }
                let alive: Vec<&Socket> = sockets.iter().filter(|socket| !socket.is_closed()).collect();
                assert_eq!(alive.len(), 1, "round {round}");
                alive[0].settle().await;
                for socket in sockets.iter().filter(|socket| socket.is_closed()) {
                    assert_eq!(socket.close_code().await, 4503);
                }
            }
        })
    });
    for round in futures_util::future::join_all(rounds).await {
        round.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_guesses_over_both_nodes_five_are_evaluated() {
    let cluster = Cluster::start(&Services::shared(), 2, &[]).await;
    for round in 0..5 {
        let email = format!("guessed{round}@example.org");
        let (challenge_id, right) = challenge(&cluster.nodes[0], &email).await;
        let guesses = (0..50).map(|guess| {
            let wrong = format!("{:08}", (right.parse::<u32>().unwrap() + 1 + guess) % 100_000_000);
            let body = json!({ "challenge_id": challenge_id, "email": email, "code": wrong });
            post(&cluster.nodes[guess as usize % 2], "/v1/auth/verify", body)
        });
        let answers = futures_util::future::join_all(guesses).await;
        let count = |code: &str| answers.iter().filter(|(_, body)| body["error"]["code"] == code).count();
        assert_eq!((count("invalid_code"), count("too_many_attempts")), (5, 45));
        let body = json!({ "challenge_id": challenge_id, "email": email, "code": right });
        assert_eq!(post(&cluster.nodes[1], "/v1/auth/verify", body).await.1["error"]["code"], "too_many_attempts");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_right_codes_on_both_nodes_open_one_session() {
    let cluster = Cluster::start(&Services::shared(), 2, &[]).await;
    for round in 0..20 {
        let email = format!("twice{round}@example.org");
        let (challenge_id, code) = challenge(&cluster.nodes[0], &email).await;
        let body = json!({ "challenge_id": challenge_id, "email": email, "code": code });
        let verify = |node: usize| post(&cluster.nodes[node], "/v1/auth/verify", body.clone());
        let ((one, _), (two, _)) = tokio::join!(verify(0), verify(1));
        let mut statuses = [one, two];
        statuses.sort();
        assert_eq!(statuses, [StatusCode::CREATED, StatusCode::UNAUTHORIZED]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_seconds_without_redis_stop_nothing_and_all_is_well_after() {
    const KEYS: u32 = 200;
    let services = Services::private();
    let cluster = Cluster::start(&services, 2, &[("LIMITS__CLAIM_BURST", "0")]).await;
    let owners = owners(&cluster.nodes[0], 20, KEYS).await;
    let queue = Arc::new(tokio::sync::Mutex::new(intents(&owners, KEYS)));
    let handed = Arc::new(tokio::sync::Mutex::new(Handed::default()));
    let total = queue.lock().await.len();
    let mut people = Vec::new();
    for index in 0..16 {
        people.push(sign_in(&cluster.nodes[index % 2], &format!("claimer{index}@example.org")).await);
    }
    services.control("kill", "redis").await;
    let stopped = Instant::now();
    eventually("the nodes say so", || async {
        (readiness(&cluster.nodes[0]).await["status"] == "degraded").then_some(())
    })
    .await;
    let claimers: Vec<_> = people
        .into_iter()
        .enumerate()
        .map(|(index, person)| {
            let endpoints = vec![Endpoint { address: cluster.nodes[index % 2].address() }];
            tokio::spawn(claim_through_crashes(endpoints, person, queue.clone(), handed.clone()))
        })
        .collect();
    eventually("claims go on", || async { (queue.lock().await.len() < total * 3 / 4).then_some(()) }).await;
    // The outage is what is tested, so time has to pass.
    tokio::time::sleep_until((stopped + Duration::from_secs(10)).into()).await;
    services.control("start", "redis").await;
    for claimer in claimers {
        claimer.await.unwrap();
    }
    handed.lock().await.assert_complete(&owners, KEYS);
    for node in &cluster.nodes {
        eventually("the node is ready again", || async { (readiness(node).await["status"] == "ready").then_some(()) })
            .await;
    }
    // Owners on the one node were not told of claims on the other; the reconcile after the return tells them.
    for owner in &owners {
        eventually("the owner knows that the pool is empty", || async {
            owner.socket.seen_events("prekeys.low").last().filter(|event| event["remaining"] == 0).map(|_| ())
        })
        .await;
    }
    let [(_, here), (person, there)] = two_devices(&cluster, "after@example.org").await;
    here.request("devices.revoke", json!({ "device_id": person.device })).await;
    assert_eq!(there.close_code().await, 4502);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_dies_after_its_commit_costs_one_reconcile_interval() {
    let cluster = Cluster::start(&Services::shared(), 2, &[]).await;
    let [(revoked, revoked_socket), (low, low_socket)] = two_devices(&cluster, "alice@example.org").await;
    let deleted = sign_in(&cluster.nodes[0], "bob@example.org").await;
    let deleted_socket = Socket::connect(&cluster.nodes[0], &deleted.token, Codec::Json).await;
    let mut keys = KeySet::new(Suite::SignalX3dh, 1);
    low_socket.request("keys.publish", keys.complete(1..=30)).await;
    // What a node would have committed before it died, without a word to anybody.
    let mut database = sql(&cluster).await;
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
    let told = eventually("the owner is told", || async { low_socket.low_event(7) }).await;
    assert_eq!(told["kind"], "one_time");
    assert!(committed.elapsed() < RECONCILE, "it took {:?}", committed.elapsed());
}
