//! Two or more nodes: a user's devices, and the connections of one device, are spread over them.

use std::sync::Arc;

use reqwest::StatusCode;
use serde_json::json;
use uuid::Uuid;

use crate::{
    metrics::value,
    support::{
        Cluster, Codec, RowLock, Server, Services, Socket, eventually,
        http::{call, challenge, confirmation, mails, post},
        sign_in, sign_in_as,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_start_together_apply_each_migration_once() {
    let cluster = Cluster::start(&Services::shared(), 3, &[]).await;
    let (applied, distinct): (i64, i64) =
        sqlx::query_as("SELECT COUNT(*), COUNT(DISTINCT version) FROM _sqlx_migrations WHERE success")
            .fetch_one(&mut cluster.sql().await)
            .await
            .unwrap();
    assert!(applied > 0);
    assert_eq!(applied, distinct);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_on_one_node_closes_the_socket_on_another_by_a_signal() {
    let cluster = Cluster::start(&Services::shared(), 2, &[]).await;
    let [(_, here), (there_person, there)] = cluster.two_devices("alice@example.org").await;
    let added = here.event("devices.changed").await;
    assert_eq!(added, json!({ "added": [there_person.device], "removed": [] }));
    here.request("devices.revoke", json!({ "device_id": there_person.device })).await;
    assert_eq!(there.event("session.revoked").await["reason"], "device_revoked");
    assert_eq!(there.close_code().await, 4502);
    // A signal closed it: the reconcile found nothing to repair.
    let repairs = value(cluster.nodes[1].admin(), "sealwire_reconcile_repairs_total{what=\"device_revoked\"}").await;
    assert!(repairs == 0.0, "the signal was lost");
    assert!(Socket::try_connect(&cluster.nodes[0], &there_person.token, Codec::Json).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn logout_renewal_and_account_deletion_take_effect_on_all_nodes() {
    let cluster = Cluster::start(&Services::shared(), 2, &[]).await;
    let [(one, here), (two, there)] = cluster.two_devices("alice@example.org").await;
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
    here.barrier().await;
    // A logout by HTTP on one node reaches the socket on the other.
    let (status, _) =
        call(&cluster.nodes[0], reqwest::Method::DELETE, "/v1/auth/session", Some(&two.token), None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(there.close_code().await, 4500);
    let again = Socket::connect(&cluster.nodes[1], token, Codec::MsgPack).await;
    assert_eq!(here.close_code().await, 4503);
    again.request("account.delete", confirmation(&cluster.nodes[0], "alice@example.org", "delete").await).await;
    assert_eq!(again.close_code().await, 4506);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_connects_to_both_nodes_at_once_keeps_the_newer_connection() {
    const ROUNDS: usize = 300;
    const DEVICES: usize = 6;
    const LOCK: &str = "SELECT id FROM devices WHERE id = $1 FOR NO KEY UPDATE";
    let cluster = Arc::new(Cluster::start(&Services::shared(), 2, &[]).await);
    let mut devices = Vec::new();
    for index in 0..DEVICES {
        devices.push(sign_in(&cluster.nodes[0], &format!("restless{index}@example.org")).await);
    }
    // Once in each order: both connections wait for the device's row, and get it in the order of their arrival.
    for (older, newer) in [(0, 1), (1, 0)] {
        let person = &devices[0];
        let mut row_lock = RowLock::lock(&cluster, LOCK, &person.device).await;
        let connect = |node: usize| Socket::connect(&cluster.nodes[node], &person.token, Codec::Json);
        let connect_after_it = async {
            row_lock.wait_for_waiters(1).await;
            let release_the_row = async {
                row_lock.wait_for_waiters(2).await;
                row_lock.release().await;
            };
            tokio::join!(connect(newer), release_the_row).0
        };
        let (displaced, kept) = tokio::join!(connect(older), connect_after_it);
        assert_eq!(displaced.close_code().await, 4503);
        kept.barrier().await;
    }
    // Then many times, in whatever order they arrive.
    let rounds = devices.into_iter().map(|person| {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            let mut database = cluster.sql().await;
            for round in 0..ROUNDS / DEVICES {
                let connect = |node: usize| Socket::connect(&cluster.nodes[node], &person.token, Codec::Json);
                let (one, two) = tokio::join!(connect(0), connect(1));
                let sockets = [one, two];
                // A node logs the epoch of a connection before it sends the welcome.
                let epochs = [0, 1].map(|node| *cluster.epochs(node, &person.device).last().unwrap());
                let newest = usize::from(epochs[1] > epochs[0]);
                let (stored,): (i64,) = sqlx::query_as("SELECT conn_epoch FROM devices WHERE id = $1")
                    .bind(Uuid::parse_str(&person.device).unwrap())
                    .fetch_one(&mut database)
                    .await
                    .unwrap();
                assert_eq!((epochs[newest], epochs[1 - newest]), (stored, stored - 1), "round {round}");
                assert_eq!(sockets[1 - newest].close_code().await, 4503, "round {round}: the older");
                sockets[newest].barrier().await;
            }
        })
    });
    for rounds in futures_util::future::join_all(rounds).await {
        rounds.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_five_of_fifty_parallel_guesses_on_two_nodes_are_evaluated() {
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
async fn a_code_entered_on_two_nodes_in_parallel_opens_one_session() {
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
async fn session_events_and_mails_come_from_any_node_to_any_node() {
    let cluster = Cluster::start(&Services::shared(), 2, &[]).await;
    let email = "alice@example.org";
    let [(one, here), (two, there)] = cluster.two_devices(email).await;
    here.event("sessions.changed").await;
    let again = sign_in_as(&cluster.nodes[0], email, json!({ "device": { "id": two.device } })).await;
    let opened = json!({ "device_id": two.device, "opened": [again.session], "ended": [] });
    for socket in [&here, &there] {
        assert_eq!(socket.event("sessions.changed").await, opened);
    }
    let listed = there.request("sessions.list", json!({})).await["sessions"].as_array().unwrap().len();
    assert_eq!(listed, 3);
    here.request("sessions.end", json!({ "session_id": again.session })).await;
    let ended = json!({ "device_id": two.device, "opened": [], "ended": [again.session] });
    for socket in [&here, &there] {
        assert_eq!(socket.event("sessions.changed").await, ended);
    }
    there.request("devices.revoke", json!({ "device_id": one.device })).await;
    let ended = json!({ "device_id": one.device, "opened": [], "ended": [one.session] });
    for socket in [&here, &there] {
        assert_eq!(socket.event("sessions.changed").await, ended);
    }
    assert_eq!(here.close_code().await, 4502);
    // Each node mails what it has done.
    for (node, subject) in [(0, "A device signed in to your account again"), (1, "A device was removed")] {
        let folder = cluster.nodes[node].mail();
        let mail = || async { mails(folder).into_iter().find(|mail| mail.contains(subject)) };
        assert!(eventually(subject, mail).await.contains(&format!("To: {email}\r\n")));
    }
    // A code that one node mails confirms on the other.
    let params = confirmation(&cluster.nodes[0], email, "delete").await;
    there.request("account.delete", params).await;
    assert_eq!(there.close_code().await, 4506);
}
