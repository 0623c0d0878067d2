//! Invalid tokens: a network may present a limited number of them, and a valid token is served all the same.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{StreamExt, future::join_all, stream};
use reqwest::{Client, Method, StatusCode};
use serde_json::Value;
use sqlx::Executor;
use uuid::Uuid;

use crate::{
    auth::BEHIND_A_PROXY,
    metrics::wait_for_sample,
    support::{Cluster, RowLock, Server, Services, TestApp, http::call, problem::assert_problem, sign_in},
};

const FIVE: (&str, &str) = ("LIMITS__SESSION_FAILURES_PER_NETWORK_MINUTE", "5");

/// A well-formed token that was never issued.
fn invalid() -> String {
    let bytes = [Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes()].concat();
    base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, bytes)
}

/// A request with a token from this client address. Returns the status, the seconds of `Retry-After` and the body.
async fn present(
    server: &impl Server,
    method: Method,
    path: &str,
    client: &str,
    token: &str,
) -> (StatusCode, Option<u64>, Value) {
    let mut request = Client::new().request(method, format!("http://{}{path}", server.address()));
    if path.ends_with("socket") {
        let upgrade = [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")];
        request = upgrade.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        request = request.header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    }
    let response = request.header("X-Forwarded-For", client).bearer_auth(token).send().await.unwrap();
    let status = response.status();
    let wait = response.headers().get("retry-after").map(|wait| wait.to_str().unwrap().parse().unwrap());
    (status, wait, serde_json::from_str(&response.text().await.unwrap()).unwrap_or(Value::Null))
}

async fn look_up(server: &impl Server, client: &str, token: &str) -> StatusCode {
    present(server, Method::GET, "/v1/auth/session", client, token).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_may_present_a_limited_number_of_invalid_tokens_a_minute() {
    let app = TestApp::with_clock(&[BEHIND_A_PROXY, FIVE]);
    let person = sign_in(&app, "alice@example.org").await;
    for client in 1..=5 {
        assert_eq!(look_up(&app, "192.0.2.7", &person.token).await, StatusCode::OK, "it counts no successes");
        assert_eq!(look_up(&app, &format!("192.0.2.{client}"), &invalid()).await, StatusCode::UNAUTHORIZED);
    }
    for (method, path) in
        [(Method::GET, "/v1/auth/session"), (Method::DELETE, "/v1/auth/session"), (Method::GET, "/v1/socket")]
    {
        let (status, wait, body) = present(&app, method, path, "192.0.2.200", &invalid()).await;
        assert_eq!(status.as_u16(), assert_problem(&body["error"], "rate_limited", path), "{body}");
        assert_eq!(wait, Some(60));
    }
    wait_for_sample(app.admin(), "sealwire_session_failures_limited_total", 3.0..=3.0).await;
    assert_eq!(look_up(&app, "192.0.2.200", &person.token).await, StatusCode::OK, "a valid token is served");
    assert_eq!(look_up(&app, "192.0.3.1", &invalid()).await, StatusCode::UNAUTHORIZED, "from another network");
    app.advance(std::time::Duration::from_mins(1));
    assert_eq!(look_up(&app, "192.0.2.1", &invalid()).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn wider_ipv6_networks_have_a_limit_of_invalid_tokens_too() {
    let app = TestApp::with_clock(&[BEHIND_A_PROXY, FIVE]);
    let person = sign_in(&app, "alice@example.org").await;
    for narrow in 0..8 {
        let client = format!("2001:db8:{narrow:x}::1");
        for _ in 0..5 {
            assert_eq!(look_up(&app, &client, &invalid()).await, StatusCode::UNAUTHORIZED);
        }
        assert_eq!(look_up(&app, &client, &invalid()).await, StatusCode::TOO_MANY_REQUESTS);
    }
    assert_eq!(look_up(&app, "2001:db8:ff::1", &invalid()).await, StatusCode::TOO_MANY_REQUESTS, "the /40");
    assert_eq!(look_up(&app, "2001:db8:100::1", &invalid()).await, StatusCode::UNAUTHORIZED, "another /40");
    assert_eq!(look_up(&app, "2001:db8:ff::1", &person.token).await, StatusCode::OK);
}

async fn assert_invalid_tokens_lock_nobody_out(server: &impl Server) {
    let person = sign_in(server, "alice@example.org").await;
    let work = async || {
        for _ in 0..50 {
            assert_eq!(look_up(server, "192.0.2.200", &person.token).await, StatusCode::OK);
        }
    };
    work().await;
    let is_over = AtomicBool::new(false);
    let flood = stream::iter(0..32).for_each_concurrent(None, |client| {
        let is_over = &is_over;
        async move {
            while !is_over.load(Ordering::Relaxed) {
                let status = look_up(server, &format!("192.0.2.{client}"), &invalid()).await;
                assert!([StatusCode::UNAUTHORIZED, StatusCode::TOO_MANY_REQUESTS].contains(&status), "{status}");
            }
        }
    });
    let bystander = async {
        work().await;
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(flood, bystander);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_that_floods_with_invalid_tokens_locks_nobody_out_on_sqlite() {
    assert_invalid_tokens_lock_nobody_out(&TestApp::start(&[BEHIND_A_PROXY, FIVE])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_that_floods_with_invalid_tokens_locks_nobody_out_on_postgres() {
    let cluster = Cluster::start(&Services::shared(), 1, &[BEHIND_A_PROXY, FIVE]).await;
    assert_invalid_tokens_lock_nobody_out(&cluster.nodes[0]).await;
}

const DEVICE: &str = "SELECT id FROM devices WHERE id = $1 FOR UPDATE";

/// Locks the table of sessions, so that every look-up of a token waits.
async fn lock_sessions(cluster: &Cluster) -> sqlx::PgConnection {
    let mut holding = cluster.sql().await;
    holding.execute("BEGIN").await.unwrap();
    holding.execute("LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE").await.unwrap();
    holding
}

#[tokio::test(flavor = "multi_thread")]
async fn four_look_ups_run_at_a_time_for_networks_over_the_limit() {
    let cluster =
        Cluster::start(&Services::shared(), 1, &[BEHIND_A_PROXY, FIVE, ("DATABASE__MAX_CONNECTIONS", "20")]).await;
    let node = &cluster.nodes[0];
    let person = sign_in(node, "alice@example.org").await;
    for network in 0..2 {
        for _ in 0..5 {
            let status = look_up(node, &format!("192.0.{network}.1"), &invalid()).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED);
        }
    }
    let mut row_lock = RowLock::lock(&cluster, DEVICE, &person.device).await;
    let mut table_lock = lock_sessions(&cluster).await;
    let flood = join_all(
        (0..60).map(|client| async move { look_up(node, &format!("192.0.{}.{client}", client % 2), &invalid()).await }),
    );
    let mut watching = cluster.sql().await;
    let watch = async {
        // Look-ups at the same time share a statement.
        row_lock.wait_for_waiters(1).await;
        for _ in 0..50 {
            let (status, body) = call(node, Method::GET, "/readyz", None, None).await;
            assert_eq!(status, StatusCode::OK, "{body}");
            let (waiting,): (i64,) = sqlx::query_as(
                "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
            )
            .fetch_one(&mut watching)
            .await
            .unwrap();
            assert!(waiting <= 4, "{waiting} look-ups wait in the database");
        }
        table_lock.execute("ROLLBACK").await.unwrap();
    };
    tokio::join!(flood, watch);
    row_lock.release().await;
    assert_eq!(look_up(node, "192.0.1.1", &person.token).await, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn look_ups_of_one_token_run_one_at_a_time() {
    let cluster = Cluster::start(&Services::shared(), 1, &[("DATABASE__MAX_CONNECTIONS", "20")]).await;
    let node = &cluster.nodes[0];
    let (attacker, other) = (sign_in(node, "attacker@example.org").await, sign_in(node, "bob@example.org").await);
    let mut row_lock = RowLock::lock(&cluster, DEVICE, &attacker.device).await;
    let mut table_lock = lock_sessions(&cluster).await;
    let flood = join_all((0..100).map(|_| look_up(node, "127.0.0.1", &attacker.token)));
    let watch = async {
        row_lock.wait_for_waiters(1).await;
        let others = join_all((0..3).map(|_| look_up(node, "127.0.0.1", &other.token)));
        let watch = async {
            // Theirs wait in the same queue for the next statement.
            row_lock.wait_for_waiters(1).await;
            wait_for_sample(node.admin(), "sealwire_user_queue_full_total", 35.0..=35.0).await;
            table_lock.execute("ROLLBACK").await.unwrap();
        };
        tokio::join!(others, watch).0
    };
    let (flood, _) = tokio::join!(flood, watch);
    let refused = flood.iter().filter(|status| **status == StatusCode::SERVICE_UNAVAILABLE).count();
    assert!(refused >= 35, "one runs and 64 wait: {refused} were refused");
    row_lock.release().await;
    for person in [&attacker, &other] {
        assert_eq!(look_up(node, "127.0.0.1", &person.token).await, StatusCode::OK);
    }
}
