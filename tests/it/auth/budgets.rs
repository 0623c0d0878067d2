//! The two budgets of an address: strangers cannot use up the codes of the owner.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;

use super::{BEHIND_A_PROXY, code_for, code_with, offered_bits, post_as, sign_in_from};
use crate::support::{
    Cluster, RowLock, Server, ServerProcess, Services, TestApp, eventually, http::codes, work::solve,
};

const ALICE: &str = "alice@example.org";
const HOME: &str = "192.0.2.1";
/// The defaults, which the tests otherwise turn off.
const LIMITS: [(&str, &str); 4] = [
    BEHIND_A_PROXY,
    ("LIMITS__OTP_PER_EMAIL_NETWORK_HOUR", "3"),
    ("LIMITS__OTP_PER_EMAIL_HOUR", "10"),
    ("LIMITS__OTP_PER_EMAIL_DAY", "30"),
];

/// Asks for codes from many networks until the next request of a network is refused, and then pays for some.
async fn attack(server: &impl Server, paid: usize) {
    let (mut sent, before) = (0, codes(server.mail(), ALICE).len());
    for network in 0.. {
        let client = format!("203.0.{network}.1");
        let answer = code_for(server, ALICE, &client).await;
        if answer.0 == StatusCode::ACCEPTED {
            sent += 1;
            continue;
        }
        offered_bits(&answer);
        break;
    }
    assert_eq!(sent, 9, "the first sign-in of the address was one of ten");
    for _ in 0..paid {
        let refused = code_for(server, ALICE, "203.0.99.1").await;
        assert_eq!(code_with(server, ALICE, "203.0.99.1", &solve(&refused.1)).await.0, StatusCode::ACCEPTED);
    }
    // Otherwise a sign-in would take one of these codes for its own.
    eventually("the codes are mailed", || async {
        (codes(server.mail(), ALICE).len() == before + sent + paid).then_some(())
    })
    .await;
}

async fn assert_the_owner_signs_in(server: &impl Server) {
    let first = sign_in_from(server, ALICE, HOME, None).await;
    attack(server, 1).await;
    offered_bits(&code_for(server, ALICE, "198.51.100.1").await);
    // From home, and with a token from anywhere, the attack changes nothing.
    let token = first["token"].as_str().unwrap();
    sign_in_from(server, ALICE, HOME, None).await;
    sign_in_from(server, ALICE, "198.51.100.1", Some(token)).await;
    let known = code_for(server, ALICE, "198.51.100.99").await;
    assert_eq!(known.0, StatusCode::ACCEPTED, "this network is known now");
    // They share one budget, which has the same limits.
    for client in ["192.0.2.1", "198.51.100.1"] {
        while code_for(server, ALICE, client).await.0 == StatusCode::ACCEPTED {}
    }
    for network in 0..10 {
        let body = json!({ "email": ALICE });
        let answer = post_as(server, "/v1/auth/otp", &format!("10.0.{network}.1"), Some(token), &body).await;
        if answer.0 != StatusCode::ACCEPTED {
            assert_eq!(offered_bits(&answer), Some(18), "the paid codes of strangers make it no harder");
            return;
        }
    }
    panic!("the budget of the owner has no limit");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_signs_in_while_an_attacker_has_spent_every_code_on_sqlite() {
    assert_the_owner_signs_in(&TestApp::start(&LIMITS)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_signs_in_while_an_attacker_has_spent_every_code_on_postgres() {
    let cluster = Cluster::start(&Services::shared(), 1, &LIMITS).await;
    assert_the_owner_signs_in(&cluster.nodes[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_that_flood_do_not_keep_an_owner_with_a_token_from_a_code() {
    const ELSEWHERE: &str = "198.51.100.1";
    const VICTIM: &str = "victim@example.org";
    let settings = [BEHIND_A_PROXY, ("LIMITS__OTP_PER_NETWORK_HOUR", "1"), ("LIMITS__OTP_PER_EMAIL_HOUR", "2")];
    let cluster = Cluster::start(&Services::shared(), 1, &settings).await;
    let node = &cluster.nodes[0];
    // This takes the only code of the network.
    let alice = sign_in_from(node, ALICE, HOME, None).await;
    assert_eq!(code_for(node, "neighbour@example.org", ELSEWHERE).await.0, StatusCode::ACCEPTED);
    let mallory = sign_in_from(node, "mallory@example.org", "203.0.113.9", None).await;
    let mallory = mallory["token"].as_str().unwrap();
    // A request with a token of the address.
    let owner = async || {
        let body = json!({ "email": ALICE });
        post_as(node, "/v1/auth/otp", HOME, Some(alice["token"].as_str().unwrap()), &body).await
    };
    assert_eq!(owner().await.0, StatusCode::ACCEPTED);
    let mut lock = RowLock::lock_address(&cluster, VICTIM).await;
    // Far more than the four places of networks over their limit, each of which is held for a second: what waits for one
    // of them for two seconds is refused.
    let flood = (0..30).flat_map(|_| [HOME, ELSEWHERE]).map(|client| async move {
        let body = json!({ "email": VICTIM });
        post_as(node, "/v1/auth/otp", client, Some(mallory), &body).await
    });
    let served = async {
        lock.wait_for_waiters(4).await;
        owner().await
    };
    let (flood, (status, body)) = tokio::join!(futures_util::future::join_all(flood), served);
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    let without_place = flood.iter().filter(|answer| answer.0 == StatusCode::TOO_MANY_REQUESTS).count();
    assert!(without_place > 30, "{without_place} found no place, so there was no flood");
    lock.release().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_token_of_the_owner_is_trusted() {
    let app = TestApp::start(&LIMITS);
    let alice = sign_in_from(&app, ALICE, HOME, None).await;
    let mallory = sign_in_from(&app, "mallory@example.org", "203.0.200.1", None).await;
    attack(&app, 0).await;
    let ask = |token: String| {
        let body = json!({ "email": ALICE });
        let app = &app;
        async move { post_as(app, "/v1/auth/otp", "198.51.100.1", Some(&token), &body).await }
    };
    for token in [mallory["token"].as_str().unwrap(), &"x".repeat(43), "malformed"] {
        offered_bits(&ask(token.to_owned()).await);
    }
    let token = alice["token"].as_str().unwrap().to_owned();
    assert_eq!(ask(token.clone()).await.0, StatusCode::ACCEPTED);
    let logout = crate::support::http::call(&app, reqwest::Method::DELETE, "/v1/auth/session", Some(&token), None);
    assert_eq!(logout.await.0, StatusCode::NO_CONTENT);
    offered_bits(&ask(token).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_is_known_for_ninety_days_and_to_the_exact_address() {
    let app = TestApp::with_clock(&[BEHIND_A_PROXY, ("LIMITS__SIGNUP_PROOF_BITS", "1")]);
    let sign_in = async |email: &str, client: &str| {
        let refused = code_for(&app, email, client).await;
        assert_eq!(offered_bits(&refused), Some(1));
        let before = codes(app.mail(), email);
        let (_, asked) = code_with(&app, email, client, &solve(&refused.1)).await;
        let code =
            eventually("a code", || async { codes(app.mail(), email).into_iter().find(|code| !before.contains(code)) })
                .await;
        let verify = json!({ "challenge_id": asked["challenge_id"], "email": email, "code": code });
        assert_eq!(post_as(&app, "/v1/auth/verify", client, None, &verify).await.0, StatusCode::CREATED);
    };
    sign_in(ALICE, "2001:db8:1::1").await;
    assert_eq!(code_for(&app, ALICE, "2001:db8:1:ffff::1").await.0, StatusCode::ACCEPTED);
    for (email, client) in
        [(ALICE, "2001:db8:2::1"), ("alice+x@example.org", "2001:db8:1::1"), ("bob@example.org", "2001:db8:1::1")]
    {
        assert_eq!(offered_bits(&code_for(&app, email, client).await), Some(1), "{email} {client}");
    }
    app.advance(Duration::from_hours(90 * 24 - 1));
    assert_eq!(code_for(&app, ALICE, "2001:db8:1::1").await.0, StatusCode::ACCEPTED);
    app.advance(Duration::from_hours(1));
    assert_eq!(offered_bits(&code_for(&app, ALICE, "2001:db8:1::1").await), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tagged_address_shares_the_codes_of_the_untagged_one() {
    let app = TestApp::start(&[BEHIND_A_PROXY, ("LIMITS__OTP_PER_EMAIL_HOUR", "3")]);
    for tag in ["", "+a", "+a+b"] {
        let email = format!("alice{tag}@example.org");
        assert_eq!(code_for(&app, &email, HOME).await.0, StatusCode::ACCEPTED);
    }
    for tag in ["", "+a", "+new"] {
        offered_bits(&code_for(&app, &format!("alice{tag}@example.org"), HOME).await);
    }
    assert_eq!(code_for(&app, "alicia+a@example.org", HOME).await.0, StatusCode::ACCEPTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_are_shared_by_the_nodes_and_kept_over_a_restart() {
    let cluster = Cluster::start(&Services::shared(), 2, &LIMITS).await;
    let first = sign_in_from(&cluster.nodes[0], ALICE, HOME, None).await;
    attack(&cluster.nodes[1], 0).await;
    let mut nodes = cluster.nodes;
    nodes[0].kill();
    nodes[0].restart().await;
    for node in &nodes {
        assert_owner_gets_codes(node, first["token"].as_str().unwrap()).await;
    }
}

async fn assert_owner_gets_codes(node: &ServerProcess, token: &str) {
    offered_bits(&code_for(node, ALICE, "203.0.150.1").await);
    sign_in_from(node, ALICE, HOME, None).await;
    sign_in_from(node, ALICE, "203.0.151.1", Some(token)).await;
}
