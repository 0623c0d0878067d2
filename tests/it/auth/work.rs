//! Proofs of work: a client that has reached a limit of codes or guesses may exceed it with one.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{BEHIND_A_PROXY, Mailed, code_for, code_with, offered_bits, post_as};
use crate::{
    metrics::value,
    support::{Cluster, ServerProcess, Services, TestApp, work::solve},
};

const ALICE: &str = "alice@example.org";
const HERE: &str = "192.0.2.1";
const ONE_CODE_AN_HOUR: (&str, &str) = ("LIMITS__OTP_PER_EMAIL_HOUR", "1");

/// Asks for codes until one is refused, and returns the refusal.
async fn refused_code(app: &TestApp) -> (StatusCode, Value) {
    assert_eq!(code_for(app, ALICE, HERE).await.0, StatusCode::ACCEPTED);
    code_for(app, ALICE, HERE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_code_beyond_the_limit_costs_a_proof_that_is_twice_as_hard() {
    let app = TestApp::with_clock(&[BEHIND_A_PROXY, ONE_CODE_AN_HOUR]);
    let mut refused = refused_code(&app).await;
    for bits in [18, 19] {
        assert_eq!(offered_bits(&refused), Some(bits));
        let error = &refused.1["error"];
        assert_eq!((&error["retryable"], &error["retry_after_ms"]), (&json!(true), &json!(3_600_000)));
        let proof = &error["details"]["proof"];
        assert_eq!(super::fields(proof), ["algorithm", "bits", "salt"]);
        assert_eq!(proof["salt"].as_str().unwrap().len(), 32, "24 bytes of unpadded base64url");
        let paid = code_with(&app, ALICE, HERE, &solve(&refused.1)).await;
        assert_eq!(paid.0, StatusCode::ACCEPTED, "{}", paid.1);
        refused = code_for(&app, ALICE, HERE).await;
    }
    let offered = value(app.admin(), "sealwire_proofs_total{outcome=\"offered\"}").await;
    let accepted = value(app.admin(), "sealwire_proofs_total{outcome=\"accepted\"}").await;
    assert!((offered, accepted) == (3.0, 2.0), "{offered} {accepted}");
    // Paid codes use nothing up: in an hour, the next code is free again.
    app.advance(Duration::from_hours(1));
    assert_eq!(code_for(&app, ALICE, HERE).await.0, StatusCode::ACCEPTED);
    assert_eq!(offered_bits(&code_for(&app, ALICE, HERE).await), Some(20), "24 hours are not over");
    app.advance(Duration::from_hours(23));
    refused_code(&app).await;
    assert_eq!(offered_bits(&code_for(&app, ALICE, HERE).await), Some(18));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_stale_or_spent_proof_gets_a_fresh_one() {
    let app = TestApp::with_clock(&[BEHIND_A_PROXY, ONE_CODE_AN_HOUR]);
    let refused = refused_code(&app).await;
    let right = solve(&refused.1);
    let salt = right["salt"].as_str().unwrap();
    let mut forged = URL_SAFE_NO_PAD.decode(salt).unwrap();
    forged[4] = 1;
    let forged = URL_SAFE_NO_PAD.encode(forged);
    let long = URL_SAFE_NO_PAD.encode([0; 33]);
    let malformed =
        [json!(7), json!("proof"), json!([salt]), json!({}), json!({ "salt": salt }), json!({ "nonce": 7 })];
    let wrong = [
        json!({ "salt": salt, "nonce": "" }),
        json!({ "salt": salt, "nonce": long }),
        json!({ "salt": salt, "nonce": "*" }),
        json!({ "salt": forged, "nonce": right["nonce"] }),
        json!({ "salt": "AAAA", "nonce": right["nonce"] }),
    ];
    for proof in malformed.iter().chain(&wrong) {
        let answer = code_with(&app, ALICE, HERE, proof).await;
        assert_eq!(offered_bits(&answer), Some(18), "{proof}");
        assert_ne!(answer.1["error"]["details"]["proof"]["salt"], salt);
    }
    // It holds for this address, network and action only.
    assert_eq!(code_for(&app, "bob@example.org", HERE).await.0, StatusCode::ACCEPTED);
    assert_eq!(offered_bits(&code_with(&app, "bob@example.org", HERE, &right).await), Some(18));
    assert_eq!(offered_bits(&code_with(&app, ALICE, "198.51.100.1", &right).await), Some(18));
    // The last second counts: a salt holds whole seconds.
    app.advance(Duration::from_secs(299));
    assert_eq!(code_with(&app, ALICE, "192.0.2.200", &right).await.0, StatusCode::ACCEPTED, "the same network");
    assert_eq!(offered_bits(&code_with(&app, ALICE, HERE, &right).await), Some(19), "spent");
    let later = solve(&code_for(&app, ALICE, HERE).await.1);
    app.advance(Duration::from_mins(5));
    assert_eq!(offered_bits(&code_with(&app, ALICE, HERE, &later).await), Some(19), "stale");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_that_is_not_needed_is_ignored_and_not_spent() {
    let app = TestApp::with_clock(&[BEHIND_A_PROXY, ONE_CODE_AN_HOUR]);
    let proof = solve(&refused_code(&app).await.1);
    for unneeded in [&proof, &json!(7)] {
        app.advance(Duration::from_mins(1));
        let other = if *unneeded == proof { "carol@example.org" } else { "dave@example.org" };
        assert_eq!(code_with(&app, other, HERE, unneeded).await.0, StatusCode::ACCEPTED);
    }
    assert_eq!(code_with(&app, ALICE, HERE, &proof).await.0, StatusCode::ACCEPTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_exceeds_the_limits_of_a_network_too() {
    let app = TestApp::with_clock(&[
        BEHIND_A_PROXY,
        ("LIMITS__OTP_PER_NETWORK_HOUR", "1"),
        ("LIMITS__VERIFY_PER_NETWORK_MINUTE", "1"),
    ]);
    assert_eq!(code_for(&app, "neighbour@example.org", HERE).await.0, StatusCode::ACCEPTED);
    let refused = code_for(&app, ALICE, HERE).await;
    assert_eq!(offered_bits(&refused), Some(18));
    let (status, asked) = code_with(&app, ALICE, HERE, &solve(&refused.1)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{asked}");
    let id = asked["challenge_id"].as_str().unwrap().to_owned();
    let code = crate::support::eventually("the mail", || async {
        crate::support::http::codes(crate::support::Server::mail(&app), ALICE).into_iter().next()
    })
    .await;
    let mailed = Mailed { id, email: ALICE.to_owned(), code };
    let verify = |code: String, proof: Value| {
        let body = json!({ "challenge_id": mailed.id, "email": ALICE, "code": code, "proof": proof });
        let app = &app;
        async move { post_as(app, "/v1/auth/verify", HERE, None, &body).await }
    };
    // A neighbour has made the only guess of this minute.
    let junk = json!({ "challenge_id": uuid::Uuid::nil(), "email": "x@example.org", "code": "12345678" });
    assert_eq!(super::refusal(&post_as(&app, "/v1/auth/verify", HERE, None, &junk).await), (401, "invalid_code"));
    let refused = verify(mailed.code.clone(), Value::Null).await;
    assert_eq!(offered_bits(&refused), Some(19), "a code was paid for");
    assert_eq!(refused.1["error"]["retry_after_ms"], 60_000);
    let proof = solve(&refused.1);
    let as_otp = code_with(&app, ALICE, HERE, &proof).await;
    assert_eq!(offered_bits(&as_otp), Some(19), "a proof for one action is wrong for another");
    assert_eq!(super::refusal(&verify(mailed.wrong(1), proof.clone()).await), (401, "invalid_code"));
    assert_eq!(offered_bits(&verify(mailed.code.clone(), proof).await), Some(19), "the wrong guess has spent it");
    assert_eq!(mailed.attempts(&app).await, 1);
    // Whoever guesses at a challenge that does not exist pays, too.
    let mut unknown = junk.clone();
    unknown["email"] = json!(ALICE);
    unknown["proof"] = solve(&verify(mailed.code.clone(), Value::Null).await.1);
    assert_eq!(super::refusal(&post_as(&app, "/v1/auth/verify", HERE, None, &unknown).await), (401, "invalid_code"));
    offered_bits(&post_as(&app, "/v1/auth/verify", HERE, None, &unknown).await);
    let fresh = solve(&verify(mailed.code.clone(), Value::Null).await.1);
    assert_eq!(verify(mailed.code.clone(), fresh).await.0, StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_can_ask_every_stranger_for_a_proof() {
    let app = TestApp::with_clock(&[BEHIND_A_PROXY, ("LIMITS__SIGNUP_PROOF_BITS", "3"), ONE_CODE_AN_HOUR]);
    let refused = code_for(&app, ALICE, HERE).await;
    assert_eq!(offered_bits(&refused), Some(3));
    let proof = solve(&refused.1);
    assert_eq!(code_with(&app, ALICE, HERE, &proof).await.0, StatusCode::ACCEPTED);
    assert_eq!(offered_bits(&code_with(&app, ALICE, HERE, &proof).await), Some(18), "the limit asks for more");
}

/// Spends one proof on all of the servers at once. One of them accepts it.
async fn spend_at_once(nodes: &[&ServerProcess], proof: &Value) {
    let answers = futures_util::future::join_all(nodes.iter().map(|node| code_with(*node, ALICE, HERE, proof))).await;
    let (accepted, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|(status, _)| *status == StatusCode::ACCEPTED);
    assert_eq!(accepted.len(), 1, "{refused:?}");
    assert!(refused.iter().all(|refused| offered_bits(refused) == Some(19)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_of_one_node_is_accepted_once_by_all_nodes() {
    let cluster = Cluster::start(&Services::shared(), 2, &[BEHIND_A_PROXY, ONE_CODE_AN_HOUR]).await;
    let [one, two] = &cluster.nodes[..] else { panic!("two nodes") };
    assert_eq!(code_for(one, ALICE, HERE).await.0, StatusCode::ACCEPTED);
    let proof = solve(&code_for(two, ALICE, HERE).await.1);
    spend_at_once(&[one, two, one, two, one, two], &proof).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_proof_stays_spent_over_a_restart() {
    let mut server = ServerProcess::start(&[BEHIND_A_PROXY, ONE_CODE_AN_HOUR]).await;
    assert_eq!(code_for(&server, ALICE, HERE).await.0, StatusCode::ACCEPTED);
    let proof = solve(&code_for(&server, ALICE, HERE).await.1);
    spend_at_once(&[&server, &server], &proof).await;
    server.kill();
    server.restart().await;
    assert_eq!(offered_bits(&code_with(&server, ALICE, HERE, &proof).await), Some(19));
}

/// The example of `docs/protocol.md` is right.
#[test]
fn the_worked_example_has_the_bits_that_it_says() {
    use sha2::{Digest, Sha256};
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/protocol.md")).unwrap();
    let section = document.split_once("\n### Proofs of work\n").unwrap().1.split_once("\n### ").unwrap().0;
    let examples: Vec<Value> = crate::docs::fences(section)
        .into_iter()
        .filter(|(language, _)| *language == "json")
        .map(|(_, text)| serde_json::from_str(text).unwrap())
        .collect();
    let (offer, proof) = (&examples[0]["error"]["details"]["proof"], &examples[1]["proof"]);
    assert_eq!(offer["salt"], proof["salt"]);
    let bytes = |text: &Value| URL_SAFE_NO_PAD.decode(text.as_str().unwrap()).unwrap();
    assert_eq!(bytes(&proof["nonce"]), 350_750u64.to_be_bytes());
    let hash = Sha256::new().chain_update(bytes(&proof["salt"])).chain_update(bytes(&proof["nonce"])).finalize();
    let zeros = u64::from_be_bytes(hash[..8].try_into().unwrap()).leading_zeros();
    assert_eq!(u64::from(zeros), offer["bits"].as_u64().unwrap());
    let stated = section.split('`').find(|text| text.len() == 64).unwrap();
    let bytes = (0..32).map(|byte| u8::from_str_radix(&stated[2 * byte..2 * byte + 2], 16).unwrap());
    assert_eq!(bytes.collect::<Vec<_>>(), hash.to_vec());
}
