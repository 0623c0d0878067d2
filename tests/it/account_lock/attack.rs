//! Somebody who reads the owner's mail attacks a locked account, from many networks and over two nodes.

use std::collections::HashSet;

use futures_util::future::join_all;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, Executor};

use super::{
    EMAIL, approving, ask, assert_pending, assert_poll_refused, collect, denying, devices, expect_waiting,
    locked_account, pending, poll, right_code,
};
use crate::metrics::value;
use crate::support::{
    Cluster, Member, RowLock, Server, ServerProcess, Services, Settings, Socket, code, eventually, http::mails,
    mailing::message,
};

/// The nodes take the client's address from `X-Forwarded-For`.
const BEHIND_A_PROXY: Settings<'static> = &[("SERVER__TRUSTED_PROXIES", "127.0.0.0/8")];

/// Redeems a code from the network with this number.
async fn redeem_from(node: &ServerProcess, network: usize, body: &Value) -> (StatusCode, Value) {
    let request = Client::new()
        .post(format!("http://{}/v1/auth/verify", node.address()))
        .header("X-Forwarded-For", format!("203.0.{network}.7"))
        .body(body.to_string());
    let response = request.send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

fn request_mails(cluster: &Cluster) -> usize {
    let all = cluster.nodes.iter().flat_map(|node| mails(node.mail()));
    all.filter(|mail| mail.contains("Subject: A request waits for your approval")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_parallel_requests_of_a_thief_get_no_session_and_no_more_than_three_places() {
    let cluster = Cluster::start(&Services::shared(), 2, BEHIND_A_PROXY).await;
    let [first, second] = &cluster.nodes[..] else { panic!() };
    let phone = locked_account(first, EMAIL).await;
    let keys = phone.socket.request("keys.status", json!({ "digest": true })).await;
    let bob = Member::join(second, "bob@example.org", crate::support::Codec::Json).await;
    bob.send(&[&phone.person], "for Alice alone").await;
    let envelope = phone.socket.event("message").await;

    let mut bodies = Vec::new();
    for round in 0..50 {
        bodies.push(right_code(&cluster.nodes[round % 2], EMAIL, json!({ "device": { "name": "thief" } })).await);
    }
    let mut requests = HashSet::new();
    for (round, expected) in [3, 3, 3, 1, 0].into_iter().enumerate() {
        let attempts =
            bodies.iter().enumerate().map(|(at, body)| redeem_from(&cluster.nodes[(at + round) % 2], at, body));
        let mut made = Vec::new();
        for answer in join_all(attempts).await {
            if answer.0 == StatusCode::TOO_MANY_REQUESTS {
                assert_eq!(code(&answer.1["error"]), "rate_limited");
            } else {
                let approval = expect_waiting(&answer);
                if requests.insert(approval["request_id"].as_str().unwrap().to_owned()) {
                    made.push(approval);
                }
            }
        }
        assert_eq!(made.len(), expected, "round {round}");
        assert_eq!(pending(&phone.socket).await.len(), expected);
        let shown: HashSet<String> = join_all((0..expected).map(|_| phone.socket.event("devices.requested")))
            .await
            .into_iter()
            .map(|event| event["request_id"].as_str().unwrap().to_owned())
            .collect();
        for approval in &made {
            assert!(shown.contains(approval["request_id"].as_str().unwrap()), "every request is shown");
            // The answers come from both nodes while the device decides on one.
            let (denied, polls) = tokio::join!(
                phone.socket.request("devices.decide", denying(approval)),
                join_all(cluster.nodes.iter().map(|node| poll(node, approval)))
            );
            assert_eq!(denied, json!({}));
            assert!(polls.iter().all(|(status, _)| matches!(status.as_u16(), 202 | 403)), "{polls:?}");
            for node in &cluster.nodes {
                assert_poll_refused(node, approval, 403, "denied").await;
            }
        }
    }
    assert_eq!(requests.len(), 10, "ten requests are made in a day");
    eventually("each request is mailed", || async { (request_mails(&cluster) >= 10).then_some(()) }).await;
    assert_eq!(request_mails(&cluster), 10);

    assert_eq!(devices(&phone.socket).await, std::slice::from_ref(&phone.person.device));
    assert_eq!(phone.socket.request("keys.status", json!({ "digest": true })).await, keys);
    let acked = phone.socket.request("messages.ack", json!({ "seqs": [envelope["seq"]] })).await;
    assert_eq!(acked["acked"], 1, "nobody else has acked the message");
    let named = bob.socket.request("messages.send", message(&[&phone.person], "still one device")).await;
    assert_eq!(named["stored"], 1);
    let mut sql = cluster.sql().await;
    let (sessions,): (i64,) =
        sqlx::query_as("SELECT COUNT(*) FROM sessions JOIN users ON users.id = user_id WHERE email = $1")
            .bind(EMAIL)
            .fetch_one(&mut sql)
            .await
            .unwrap();
    assert_eq!(sessions, 1);
    sql.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_time_has_come_is_approved_once_however_many_nodes_are_polled() {
    let cluster = Cluster::start(&Services::shared(), 2, &[]).await;
    let phone = locked_account(&cluster.nodes[0], EMAIL).await;
    let approval = ask(&cluster.nodes[1], EMAIL, json!({})).await;
    let mut sql = cluster.sql().await;
    sql.execute("UPDATE approvals SET decides_at = NOW() - INTERVAL '1 second'").await.unwrap();
    sql.close().await.unwrap();
    let polls = join_all((0..20).map(|at| collect(&cluster.nodes[at % 2], EMAIL, &approval))).await;
    assert!(polls.iter().all(|one| (&one.token, &one.device) == (&polls[0].token, &polls[0].device)));
    assert_eq!(devices(&phone.socket).await, [phone.person.device.clone(), polls[0].device.clone()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_of_a_request_occupy_one_database_connection_however_many_there_are() {
    const POLLS: usize = 200;
    let cluster = Cluster::start(&Services::shared(), 1, &[]).await;
    let node = &cluster.nodes[0];
    let _phone = locked_account(node, EMAIL).await;
    let approval = ask(node, EMAIL, json!({})).await;
    let bystander = Member::join(node, "bob@example.org", crate::support::Codec::Json).await;
    // Polls take as long as the table is locked, up to a second each.
    let mut lock = RowLock::lock_approvals(&cluster).await;
    let polls = join_all((0..POLLS).map(|_| poll(node, &approval)));
    let others = async {
        eventually("64 polls wait and more are refused", || async {
            (value(node.admin(), "sealwire_user_queue_full_total").await > 50.0).then_some(())
        })
        .await;
        for _ in 0..50 {
            bystander.socket.request("devices.list", json!({})).await;
        }
        // One poll, and the tasks that look at requests and sweep them.
        let waiting = lock.waiters().await;
        assert!(waiting <= 4, "{waiting} connections are occupied");
        lock.release().await;
    };
    let (answers, ()) = tokio::join!(polls, others);
    let mut pending = 0;
    for (status, body) in answers {
        match status.as_u16() {
            202 => pending += 1,
            503 => assert_eq!(code(&body["error"]), "unavailable"),
            other => panic!("{other}: {body}"),
        }
    }
    assert!((1..=POLLS - 50).contains(&pending), "{pending} were answered");
    assert_pending(node, &approval).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_devices_that_decide_differently_at_the_same_time_agree_on_one_decision() {
    let cluster = Cluster::start(&Services::shared(), 2, &[]).await;
    let phone = locked_account(&cluster.nodes[0], EMAIL).await;
    let tablet = ask(&cluster.nodes[1], EMAIL, json!({})).await;
    phone.socket.event("devices.requested").await;
    phone.socket.request("devices.decide", approving(&tablet)).await;
    let tablet = super::publish(&cluster.nodes[1], collect(&cluster.nodes[1], EMAIL, &tablet).await).await;
    for round in 0..8 {
        let approval = ask(&cluster.nodes[round % 2], EMAIL, json!({})).await;
        for socket in [&phone.socket, &tablet.socket] {
            assert_eq!(socket.event("devices.requested").await["request_id"], approval["request_id"]);
        }
        let before = devices(&phone.socket).await.len();
        let (approved, denied) = tokio::join!(
            phone.socket.try_request("devices.decide", approving(&approval)),
            tablet.socket.try_request("devices.decide", denying(&approval))
        );
        let (approved, denied) = (approved.unwrap(), denied.unwrap());
        assert_ne!(approved.is_ok(), denied.is_ok(), "{approved:?} {denied:?}");
        let lost = approved.as_ref().err().or(denied.as_ref().err()).unwrap();
        assert_eq!(code(lost), "not_found");
        if approved.is_ok() {
            let new = collect(&cluster.nodes[0], EMAIL, &approval).await;
            phone.socket.request("devices.revoke", json!({ "device_id": new.device })).await;
        } else {
            assert_poll_refused(&cluster.nodes[1], &approval, 403, "denied").await;
            assert_eq!(devices(&phone.socket).await.len(), before);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_answers_for_the_one_that_took_the_request_and_died() {
    let mut cluster = Cluster::start(&Services::shared(), 2, &[]).await;
    let phone = locked_account(&cluster.nodes[0], EMAIL).await;
    let body = right_code(&cluster.nodes[1], EMAIL, json!({})).await;
    let approval =
        expect_waiting(&crate::support::http::post(&cluster.nodes[1], "/v1/auth/verify", body.clone()).await);
    assert_eq!(phone.socket.event("devices.requested").await["request_id"], approval["request_id"]);
    cluster.nodes[1].kill();
    let node = &cluster.nodes[0];
    assert_eq!(expect_waiting(&crate::support::http::post(node, "/v1/auth/verify", body).await), approval);
    assert_pending(node, &approval).await;
    phone.socket.request("devices.decide", approving(&approval)).await;
    let tablet = collect(node, EMAIL, &approval).await;
    Socket::connect(node, &tablet.token, crate::support::Codec::MsgPack).await;
}
