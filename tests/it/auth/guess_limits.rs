//! Limits on wrong guesses: by address over days, and by network.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{BEHIND_A_PROXY, Mailed, code_for, code_with, offered_bits, post_as, refusal, sign_in_from};
use crate::{
    metrics::value,
    support::{
        Cluster, Codec, Server, ServerProcess, Services, Socket, TestApp, eventually,
        http::{challenge_for, codes, mails},
        sign_in,
        work::solve,
    },
};

const ALICE: &str = "alice@example.org";
const HOME: &str = "192.0.2.1";
const AWAY: &str = "198.51.100.1";
const ATTACKER: &str = "203.0.113.1";

/// Requests a code from this client address, without a proof.
async fn mailed(server: &impl Server, email: &str, client: &str) -> Mailed {
    let before = codes(server.mail(), email);
    let (status, asked) = code_for(server, email, client).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{asked}");
    let code = eventually("a mail with a code", || async {
        codes(server.mail(), email).into_iter().find(|code| !before.contains(code))
    })
    .await;
    Mailed { id: asked["challenge_id"].as_str().unwrap().to_owned(), email: email.to_owned(), code }
}

/// Enters a code from this client address.
async fn enter(server: &impl Server, mailed: &Mailed, code: &str, client: &str, proof: &Value) -> (StatusCode, Value) {
    let body = json!({ "challenge_id": mailed.id, "email": mailed.email, "code": code, "proof": proof });
    post_as(server, "/v1/auth/verify", client, None, &body).await
}

/// Makes wrong guesses at codes that are requested from the owner's network, so that they need no proof.
async fn guess_wrong(server: &impl Server, guesses: u32) {
    guess_wrong_at(server, ALICE, HOME, guesses).await;
}

/// Makes wrong guesses at codes for an address that are requested from this client address.
async fn guess_wrong_at(server: &impl Server, email: &str, client: &str, guesses: u32) {
    for first in (0..guesses).step_by(5) {
        let mailed = mailed(server, email, client).await;
        for guess in first..(first + 5).min(guesses) {
            let answer = enter(server, &mailed, &mailed.wrong(guess), ATTACKER, &Value::Null).await;
            assert_eq!(refusal(&answer), (401, "invalid_code"));
        }
    }
}

/// Returns the number of mails about guesses.
fn notices(server: &impl Server) -> usize {
    let all = mails(server.mail());
    all.iter().filter(|mail| mail.contains("Subject: Somebody tries to guess your sign-in codes")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_the_twentieth_wrong_guess_codes_for_strangers_cost_proofs_until_the_owner_signs_in() {
    let app = TestApp::with_clock(&[BEHIND_A_PROXY]);
    let first = sign_in_from(&app, ALICE, HOME, None).await;
    guess_wrong(&app, 19).await;
    assert_eq!(code_for(&app, ALICE, AWAY).await.0, StatusCode::ACCEPTED);
    assert_eq!(notices(&app), 0);
    guess_wrong(&app, 1).await;
    eventually("the owner is mailed", || async { (notices(&app) == 1).then_some(()) }).await;
    let refused = code_for(&app, ALICE, AWAY).await;
    assert_eq!(offered_bits(&refused), Some(18));
    assert_eq!(refused.1["error"]["retry_after_ms"], 24 * 3_600_000);
    assert_eq!(offered_bits(&code_for(&app, "alice+tag@example.org", AWAY).await), Some(18));
    let paid = code_with(&app, ALICE, AWAY, &solve(&refused.1)).await;
    assert_eq!(paid.0, StatusCode::ACCEPTED);
    assert_eq!(offered_bits(&code_for(&app, ALICE, AWAY).await), Some(19));
    // Neither the owner's network nor a token needs one, and signing in ends it.
    let body = json!({ "email": ALICE });
    let token = first["token"].as_str().unwrap();
    assert_eq!(post_as(&app, "/v1/auth/otp", AWAY, Some(token), &body).await.0, StatusCode::ACCEPTED);
    guess_wrong(&app, 5).await;
    sign_in_from(&app, ALICE, HOME, None).await;
    assert_eq!(code_for(&app, ALICE, AWAY).await.0, StatusCode::ACCEPTED);
    assert_eq!(notices(&app), 1, "once");
    guess_wrong(&app, 20).await;
    eventually("the owner is mailed again", || async { (notices(&app) == 2).then_some(()) }).await;
    offered_bits(&code_for(&app, ALICE, AWAY).await);
    app.advance(Duration::from_hours(24));
    assert_eq!(code_for(&app, ALICE, AWAY).await.0, StatusCode::ACCEPTED, "a day later");
    let wrong = value(app.admin(), "sealwire_wrong_guesses_total").await;
    assert!((wrong - 45.0).abs() < f64::EPSILON, "{wrong}");
}

/// Guesses at an address with a tag that nobody has; then its owners have been mailed.
async fn guess_at_another_tag(server: &impl Server) {
    for email in [ALICE, "alice+chat@example.org", "alicia@example.org", "alice@other.example"] {
        sign_in_from(server, email, HOME, None).await;
    }
    guess_wrong_at(server, "alice+x@example.org", AWAY, 20).await;
    assert_eq!(offered_bits(&code_for(server, ALICE, AWAY).await), Some(18));
    let to = |address: &str| {
        let (subject, to) = ("Subject: Somebody tries to guess your sign-in codes", format!("To: {address}\r\n"));
        mails(server.mail()).iter().filter(|mail| mail.contains(subject) && mail.contains(&to)).count()
    };
    eventually("both owners are mailed", || async {
        (to(ALICE) == 1 && to("alice+chat@example.org") == 1).then_some(())
    })
    .await;
    assert_eq!(notices(server), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_at_any_tag_of_an_address_are_mailed_to_its_owners() {
    guess_at_another_tag(&TestApp::start(&[BEHIND_A_PROXY])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_at_any_tag_of_an_address_are_mailed_to_its_owners_on_postgres() {
    guess_at_another_tag(&Cluster::start(&Services::shared(), 1, &[BEHIND_A_PROXY]).await.nodes[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_mailed_about_an_address_without_a_user() {
    let app = TestApp::start(&[]);
    for _ in 0..4 {
        Mailed::to(&app, ALICE).await.guess_wrong(&app, 5).await;
    }
    let (status, refused) = crate::support::http::post(&app, "/v1/auth/otp", json!({ "email": ALICE })).await;
    assert_eq!(offered_bits(&(status, refused)), Some(18));
    crate::support::sign_in(&app, "bob@example.org").await;
    assert_eq!(notices(&app), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_the_hundredth_wrong_guess_in_thirty_days_the_proof_is_one_of_24_bits() {
    let app = TestApp::with_clock(&[BEHIND_A_PROXY]);
    sign_in_from(&app, ALICE, HOME, None).await;
    for _ in 0..10 {
        guess_wrong(&app, 10).await;
        app.advance(Duration::from_hours(25));
    }
    let refused = code_for(&app, ALICE, AWAY).await;
    assert_eq!(offered_bits(&refused), Some(24));
    let wait = Duration::from_hours(24 * 30 - 250);
    assert_eq!(refused.1["error"]["retry_after_ms"], json!(wait.as_millis()));
    app.advance(wait);
    assert_eq!(code_for(&app, ALICE, AWAY).await.0, StatusCode::ACCEPTED, "the first guesses are 30 days old");
    guess_wrong(&app, 10).await;
    assert_eq!(offered_bits(&code_for(&app, ALICE, AWAY).await), Some(24));
    sign_in_from(&app, ALICE, HOME, None).await;
    assert_eq!(code_for(&app, ALICE, AWAY).await.0, StatusCode::ACCEPTED, "the owner has signed in");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_may_make_a_limited_number_of_wrong_guesses_a_day() {
    let app = TestApp::with_clock(&[
        BEHIND_A_PROXY,
        ("LIMITS__VERIFY_PER_NETWORK_MINUTE", "1000"),
        ("LIMITS__WRONG_GUESSES_PER_NETWORK_DAY", "3"),
    ]);
    for person in 0..5 {
        sign_in_from(&app, &format!("user{person}@example.org"), ATTACKER, None).await;
    }
    // Each guess is at another address: only the network has them in common.
    for person in 0..3 {
        let mailed = mailed(&app, &format!("user{person}@example.org"), HOME).await;
        let wrong = enter(&app, &mailed, &mailed.wrong(0), ATTACKER, &Value::Null).await;
        assert_eq!(refusal(&wrong), (401, "invalid_code"));
    }
    let last = mailed(&app, "user4@example.org", HOME).await;
    let refused = enter(&app, &last, &last.code, "203.0.113.200", &Value::Null).await;
    assert_eq!(offered_bits(&refused), Some(18), "even the right code");
    assert_eq!(refused.1["error"]["retry_after_ms"], 24 * 3_600_000);
    assert_eq!(last.attempts(&app).await, 0);
    let paid = enter(&app, &last, &last.wrong(0), ATTACKER, &solve(&refused.1)).await;
    assert_eq!(refusal(&paid), (401, "invalid_code"));
    let fresh = enter(&app, &last, &last.code, ATTACKER, &Value::Null).await;
    assert_eq!(enter(&app, &last, &last.code, ATTACKER, &solve(&fresh.1)).await.0, StatusCode::CREATED);
    sign_in_from(&app, "user4@example.org", HOME, None).await;
    app.advance(Duration::from_hours(24));
    sign_in_from(&app, "user4@example.org", ATTACKER, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wider_ipv6_networks_have_a_limit_of_wrong_guesses_too() {
    let app = TestApp::with_clock(&[
        BEHIND_A_PROXY,
        ("LIMITS__VERIFY_PER_NETWORK_MINUTE", "1000"),
        ("LIMITS__WRONG_GUESSES_PER_NETWORK_DAY", "1"),
    ]);
    for narrow in 0..8 {
        let email = format!("user{narrow}@example.org");
        let mailed = mailed(&app, &email, HOME).await;
        let client = format!("2001:db8:{narrow:x}::1");
        assert_eq!(refusal(&enter(&app, &mailed, &mailed.wrong(0), &client, &Value::Null).await).1, "invalid_code");
        offered_bits(&enter(&app, &mailed, &mailed.wrong(0), &client, &Value::Null).await);
    }
    let mailed = mailed(&app, ALICE, HOME).await;
    offered_bits(&enter(&app, &mailed, &mailed.code, "2001:db8:ff::1", &Value::Null).await);
    assert_eq!(enter(&app, &mailed, &mailed.code, "2001:db8:100::1", &Value::Null).await.0, StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_guesses_count_on_all_nodes_and_over_a_restart() {
    let limits = [
        BEHIND_A_PROXY,
        ("LIMITS__VERIFY_PER_NETWORK_MINUTE", "1000"),
        ("LIMITS__WRONG_GUESSES_PER_NETWORK_DAY", "20"),
    ];
    let cluster = Cluster::start(&Services::shared(), 2, &limits).await;
    let mut nodes: Vec<ServerProcess> = cluster.nodes;
    sign_in_from(&nodes[0], ALICE, HOME, None).await;
    guess_wrong(&nodes[0], 10).await;
    guess_wrong(&nodes[1], 10).await;
    nodes[0].kill();
    nodes[0].restart().await;
    for node in &nodes {
        assert_eq!(offered_bits(&code_for(node, ALICE, AWAY).await), Some(18));
        let mailed = mailed(node, "bob@example.org", AWAY).await;
        assert_eq!(offered_bits(&enter(node, &mailed, &mailed.code, ATTACKER, &Value::Null).await), Some(18));
    }
    eventually("one node mails the owner", || async { (notices(&nodes[0]) + notices(&nodes[1]) == 1).then_some(()) })
        .await;
    sign_in_from(&nodes[1], ALICE, HOME, None).await;
    assert_eq!(code_for(&nodes[0], ALICE, AWAY).await.0, StatusCode::ACCEPTED);
}

/// A code for `account.delete` or `account.change_email`.
struct OpCode {
    op: &'static str,
    mailed: Mailed,
}

impl OpCode {
    async fn to_delete(server: &impl Server) -> Self {
        let (id, code) = challenge_for(server, ALICE, "delete").await;
        Self { op: "account.delete", mailed: Mailed { id, email: ALICE.to_owned(), code } }
    }

    async fn to_change(server: &impl Server) -> Self {
        let (id, code) = challenge_for(server, NEW, "change_email").await;
        Self { op: "account.change_email", mailed: Mailed { id, email: NEW.to_owned(), code } }
    }

    async fn enter(&self, socket: &Socket, code: &str, proof: Value) -> Result<Value, Value> {
        let Mailed { id, email, .. } = &self.mailed;
        let params = json!({ "challenge_id": id, "email": email, "code": code, "proof": proof });
        socket.try_request(self.op, params).await.expect("the socket stays open")
    }

    async fn guess_wrong(&self, socket: &Socket, guess: u32) {
        let error = self.enter(socket, &self.mailed.wrong(guess), Value::Null).await.unwrap_err();
        assert_eq!(error["code"], "invalid_code", "{error}");
    }
}

const NEW: &str = "alice@new.example";
const SIX_A_DAY: [(&str, &str); 2] =
    [("LIMITS__VERIFY_PER_NETWORK_MINUTE", "1000"), ("LIMITS__WRONG_GUESSES_PER_NETWORK_DAY", "6")];

/// Makes six wrong guesses over one node, after which the network may make none over another.
async fn ops_use_up_the_guesses_of_a_network(first: &impl Server, second: &impl Server) {
    let person = sign_in(first, ALICE).await;
    let sockets =
        [first_socket(first, &person.token).await, first_socket(second, &sign_in(second, ALICE).await.token).await];
    let [delete, change] = [OpCode::to_delete(first).await, OpCode::to_change(first).await];
    for guess in 0..3 {
        delete.guess_wrong(&sockets[0], guess).await;
        change.guess_wrong(&sockets[0], guess).await;
    }
    // A right code is compared only if somebody pays for it, in `verify` too.
    let bob = Mailed::to(second, "bob@example.org").await;
    let (status, body) = bob.redeem(second, json!({})).await;
    assert_eq!(offered_bits(&(status, body)), Some(18));
    for (one, socket) in [(&delete, &sockets[1]), (&change, &sockets[0])] {
        let refused = one.enter(socket, &one.mailed.code, Value::Null).await.unwrap_err();
        assert_eq!((&refused["code"], &refused["details"]["proof"]["bits"]), (&json!("rate_limited"), &json!(18)));
        let paid = solve(&json!({ "error": refused }));
        let wrong = one.enter(socket, &one.mailed.wrong(3), paid.clone()).await.unwrap_err();
        assert_eq!(wrong["code"], "invalid_code", "{wrong}");
        let spent = one.enter(socket, &one.mailed.code, paid).await.unwrap_err();
        assert_eq!(spent["code"], "rate_limited", "{spent}");
        if one.op == "account.change_email" {
            assert_eq!(one.enter(socket, &one.mailed.code, solve(&json!({ "error": spent }))).await, Ok(json!({})));
        }
    }
}

async fn first_socket(server: &impl Server, token: &str) -> Socket {
    Socket::connect(server, token, Codec::Json).await
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_codes_in_ops_count_for_the_network() {
    let app = TestApp::start(&SIX_A_DAY);
    ops_use_up_the_guesses_of_a_network(&app, &app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_codes_in_ops_count_for_the_network_on_all_nodes() {
    let cluster = Cluster::start(&Services::shared(), 2, &SIX_A_DAY).await;
    ops_use_up_the_guesses_of_a_network(&cluster.nodes[0], &cluster.nodes[1]).await;
}

/// Makes twenty wrong guesses at codes for an address over one node, after which strangers pay for codes over another.
async fn ops_use_up_the_guesses_at_an_address(first: &impl Server, second: &impl Server) {
    let socket = first_socket(first, &sign_in(first, ALICE).await.token).await;
    for challenge in 0..4 {
        let change = OpCode::to_change(first).await;
        for guess in 0..5 {
            change.guess_wrong(&socket, 5 * challenge + guess).await;
        }
    }
    assert_eq!(offered_bits(&code_for(second, NEW, AWAY).await), Some(18));
    assert_eq!(code_for(second, "bob@new.example", AWAY).await.0, StatusCode::ACCEPTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_codes_in_ops_count_for_the_address() {
    let app = TestApp::start(&[]);
    ops_use_up_the_guesses_at_an_address(&app, &app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_codes_in_ops_count_for_the_address_on_all_nodes() {
    let cluster = Cluster::start(&Services::shared(), 2, &[]).await;
    ops_use_up_the_guesses_at_an_address(&cluster.nodes[0], &cluster.nodes[1]).await;
}
