//! A request is approved or denied by a device, or answered by the recovery key.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{
    EMAIL, RECOVERY_KEY, approving, ask, assert_pending, assert_poll_refused, collect, denying, devices,
    expect_waiting, locked_account, pending, publish, right_code,
};
use crate::support::{
    Codec, Server, ServerProcess, Socket, TestApp, code, eventually,
    http::{call, mails, person, post, proof},
    keys::base64,
    sign_in,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_device_sees_the_request_and_approves_it_with_the_number() {
    let app = TestApp::start(&[]);
    let phone = locked_account(&app, EMAIL).await;
    let approval = ask(&app, EMAIL, json!({ "device": { "name": "tablet", "registration_id": 77 } })).await;
    let requested = phone.socket.event("devices.requested").await;
    assert_eq!(
        requested,
        json!({
            "request_id": approval["request_id"], "kind": "device", "device_name": "tablet",
            "client_network": "127.0.0.0/24", "created_at": requested["created_at"],
            "decides_at": approval["decides_at"],
        })
    );
    let status = phone.socket.request("account.status", json!({})).await;
    assert_eq!(status["pending"], json!([requested]));
    assert_pending(&app, &approval).await;
    assert_eq!(devices(&phone.socket).await, std::slice::from_ref(&phone.person.device));

    assert_eq!(phone.socket.request("devices.decide", approving(&approval)).await, json!({}));
    let changed = phone.socket.event("devices.changed").await;
    let first = collect(&app, EMAIL, &approval).await;
    let second = collect(&app, EMAIL, &approval).await;
    assert_eq!((&first.token, &first.session), (&second.token, &second.session), "a poll can be repeated");
    assert_eq!(changed, json!({ "added": [first.device], "removed": [] }));
    let list = phone.socket.request("devices.list", json!({})).await;
    let tablet = list["devices"].as_array().unwrap().iter().find(|one| one["device_id"] == first.device).unwrap();
    assert_eq!((&tablet["name"], &tablet["registration_id"]), (&json!("tablet"), &json!(77)));

    let socket = Socket::connect(&app, &first.token, Codec::Json).await;
    assert_eq!(socket.welcome["device_id"], first.device);
    assert_poll_refused(&app, &approval, 404, "not_found").await;
    assert_eq!(
        phone.socket.request("devices.decide", approving(&approval)).await,
        json!({}),
        "the same decision again"
    );
    assert_eq!(code(&phone.socket.refused("devices.decide", denying(&approval)).await), "not_found");
    assert!(pending(&phone.socket).await.is_empty());
    eventually("the new device is mailed", || async {
        mails(app.mail()).iter().any(|mail| mail.contains("Name: tablet")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_connects_later_sees_the_request_after_each_welcome_while_it_is_pending() {
    let app = TestApp::start(&[]);
    let phone = locked_account(&app, EMAIL).await;
    let token = phone.person.token.clone();
    drop(phone);
    let approval = ask(&app, EMAIL, json!({})).await;
    for codec in [Codec::Json, Codec::MsgPack] {
        let socket = Socket::connect(&app, &token, codec).await;
        let requested = socket.event("devices.requested").await;
        assert_eq!((&requested["request_id"], &requested["device_name"]), (&approval["request_id"], &Value::Null));
        socket.barrier().await;
        assert!(socket.seen_events("devices.requested").len() <= 1, "once for each connection");
    }
    let socket = Socket::connect(&app, &token, Codec::Json).await;
    socket.request("devices.decide", approving(&approval)).await;
    collect(&app, EMAIL, &approval).await;
    let socket = Socket::connect(&app, &token, Codec::Json).await;
    socket.barrier().await;
    assert!(socket.take_event("devices.requested").is_none(), "it is decided");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_number_denies_the_request_and_no_number_decides_nothing() {
    let app = TestApp::start(&[]);
    let phone = locked_account(&app, EMAIL).await;
    let approval = ask(&app, EMAIL, json!({})).await;
    for number in [Value::Null, json!(""), json!("7"), json!("007"), json!("x1")] {
        let params = json!({ "request_id": approval["request_id"], "approve": true, "number": number });
        let error = phone.socket.refused("devices.decide", params).await;
        assert_eq!((code(&error), &error["details"]["path"]), ("bad_request", &json!("number")));
    }
    assert_pending(&app, &approval).await;
    let right: u32 = approval["number"].as_str().unwrap().parse().unwrap();
    let wrong = json!({
        "request_id": approval["request_id"], "approve": true, "number": format!("{:02}", (right + 1) % 100),
    });
    for _ in 0..2 {
        let error = phone.socket.refused("devices.decide", wrong.clone()).await;
        assert_eq!((code(&error), &error["retryable"]), ("denied", &json!(false)));
    }
    assert_eq!(code(&phone.socket.refused("devices.decide", approving(&approval)).await), "not_found");
    assert_poll_refused(&app, &approval, 403, "denied").await;
    assert_eq!(devices(&phone.socket).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_request_stays_denied_for_seven_days() {
    let app = TestApp::with_clock(&[]);
    let phone = locked_account(&app, EMAIL).await;
    app.advance(Duration::from_secs(1));
    let body = right_code(&app, EMAIL, json!({})).await;
    let approval = expect_waiting(&post(&app, "/v1/auth/verify", body.clone()).await);
    for _ in 0..2 {
        assert_eq!(phone.socket.request("devices.decide", denying(&approval)).await, json!({}));
    }
    assert_eq!(code(&phone.socket.refused("devices.decide", approving(&approval)).await), "not_found");
    assert_eq!(expect_waiting(&post(&app, "/v1/auth/verify", body.clone()).await), approval, "the same answer");
    app.advance(Duration::from_hours(7 * 24));
    assert_poll_refused(&app, &approval, 403, "denied").await;
    let late = post(&app, "/v1/auth/verify", body).await;
    assert_eq!((late.0.as_u16(), code(&late.1["error"])), (401, "invalid_code"), "the challenge has expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_published_device_older_than_the_request_decides() {
    let app = TestApp::start(&[]);
    let phone = locked_account(&app, EMAIL).await;
    let first = ask(&app, EMAIL, json!({})).await;
    let second = ask(&app, EMAIL, json!({})).await;
    phone.socket.request("devices.decide", approving(&first)).await;
    let younger = collect(&app, EMAIL, &first).await;
    let younger = publish(&app, younger).await;
    let error = younger.socket.refused("devices.decide", denying(&second)).await;
    assert_eq!((code(&error), &error["details"]["allowed_at"]), ("device_too_new", &second["decides_at"]));
    assert!(younger.socket.take_event("devices.requested").is_none());
    let third = ask(&app, EMAIL, json!({})).await;
    assert_eq!(younger.socket.event("devices.requested").await["request_id"], third["request_id"]);
    younger.socket.request("devices.decide", denying(&third)).await;
    let unknown = json!({ "request_id": younger.person.device, "approve": false });
    assert_eq!(code(&phone.socket.refused("devices.decide", unknown).await), "not_found");
    assert_pending(&app, &second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_never_published_neither_decides_nor_signs_in_again_without_approval() {
    let app = TestApp::start(&[]);
    let silent = sign_in(&app, EMAIL).await;
    let phone = locked_account(&app, EMAIL).await;
    let approval = ask(&app, EMAIL, json!({ "device": { "id": silent.device } })).await;
    let socket = Socket::connect(&app, &silent.token, Codec::Json).await;
    assert_eq!(code(&socket.refused("devices.decide", approving(&approval)).await), "device_too_new");
    phone.socket.request("devices.decide", approving(&approval)).await;
    let again = collect(&app, EMAIL, &approval).await;
    assert_eq!(again.device, silent.device);
    assert_ne!(again.session, silent.session);
    assert_eq!(devices(&phone.socket).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_device_limit_is_judged_at_the_decision_and_never_shown_to_the_new_device() {
    let app = TestApp::start(&[("AUTH__MAX_DEVICES", "2")]);
    let phone = locked_account(&app, EMAIL).await;
    let other = ask(&app, EMAIL, json!({})).await;
    phone.socket.request("devices.decide", approving(&other)).await;
    let other = collect(&app, EMAIL, &other).await;
    let approval = ask(&app, EMAIL, json!({})).await;
    let error = phone.socket.refused("devices.decide", approving(&approval)).await;
    assert_eq!((code(&error), error["details"]["devices"].as_array().unwrap().len()), ("device_limit", 2));
    assert_pending(&app, &approval).await;
    let mut unknown = approving(&approval);
    unknown["replace_device_id"] = approval["request_id"].clone();
    assert_eq!(code(&phone.socket.refused("devices.decide", unknown).await), "unknown_device");
    assert_pending(&app, &approval).await;

    let mut replacing = approving(&approval);
    replacing["replace_device_id"] = json!(other.device);
    phone.socket.request("devices.decide", replacing).await;
    let new = collect(&app, EMAIL, &approval).await;
    assert_eq!(devices(&phone.socket).await, [phone.person.device.clone(), new.device]);
    let (status, _) = call(&app, reqwest::Method::GET, "/v1/auth/session", Some(&other.token), None).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_device_that_a_request_replaces_needs_its_proof_at_once_and_is_revoked_at_the_decision() {
    let app = TestApp::start(&[]);
    let phone = locked_account(&app, EMAIL).await;
    let approval = ask(&app, EMAIL, json!({})).await;
    phone.socket.request("devices.decide", approving(&approval)).await;
    let old = collect(&app, EMAIL, &approval).await;
    let mut old = publish(&app, old).await;
    let mut body = right_code(&app, EMAIL, json!({ "replace_device_id": old.person.device })).await;
    let refused = post(&app, "/v1/auth/verify", body.clone()).await;
    assert_eq!((refused.0.as_u16(), code(&refused.1["error"])), (403, "proof_required"));
    let proof = proof(body["challenge_id"].as_str().unwrap(), &old.person.device, &mut old.keys);
    body["device"] = json!({ "proof": proof });
    let approval = expect_waiting(&post(&app, "/v1/auth/verify", body).await);
    assert!(!old.socket.is_closed());
    phone.socket.request("devices.decide", approving(&approval)).await;
    assert_eq!(old.socket.close_code().await, 4502);
    let new = collect(&app, EMAIL, &approval).await;
    assert_eq!(devices(&phone.socket).await, [phone.person.device.clone(), new.device]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recovery_key_signs_in_at_once_and_a_wrong_one_counts_as_a_guess() {
    let app = TestApp::start(&[]);
    let phone = locked_account(&app, EMAIL).await;
    let others = [ask(&app, EMAIL, json!({})).await, ask(&app, EMAIL, json!({})).await];
    let mut body = right_code(&app, EMAIL, json!({})).await;
    let own = expect_waiting(&post(&app, "/v1/auth/verify", body.clone()).await);
    for wrong in ["", "*", &base64(&[1; 32]), &base64(&RECOVERY_KEY[..31])] {
        body["recovery_key"] = json!(wrong);
        let refused = post(&app, "/v1/auth/verify", body.clone()).await;
        assert_eq!((refused.0.as_u16(), code(&refused.1["error"])), (401, "invalid_code"));
    }
    assert_pending(&app, &own).await;
    body["recovery_key"] = json!(base64(&RECOVERY_KEY));
    let (status, signed_in) = post(&app, "/v1/auth/verify", body.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{signed_in}");
    let tablet = person(EMAIL, &signed_in);
    assert_poll_refused(&app, &own, 403, "denied").await;
    for other in &others {
        assert_pending(&app, other).await;
    }
    assert_eq!(devices(&phone.socket).await, [phone.person.device.clone(), tablet.device.clone()]);
    let used = post(&app, "/v1/auth/verify", body).await;
    assert_eq!((used.0.as_u16(), code(&used.1["error"])), (401, "invalid_code"));

    let mut guessed = right_code(&app, EMAIL, json!({ "recovery_key": base64(&[1; 32]) })).await;
    for _ in 0..5 {
        let refused = post(&app, "/v1/auth/verify", guessed.clone()).await;
        assert_eq!(code(&refused.1["error"]), "invalid_code");
    }
    guessed["recovery_key"] = json!(base64(&RECOVERY_KEY));
    let refused = post(&app, "/v1/auth/verify", guessed).await;
    assert_eq!((refused.0.as_u16(), code(&refused.1["error"])), (429, "too_many_attempts"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_needs_the_poll_token_of_its_request() {
    let app = TestApp::start(&[
        ("LIMITS__POLL_FAILURES_PER_NETWORK_MINUTE", "2"),
        ("LIMITS__VERIFY_PER_NETWORK_MINUTE", "1"),
    ]);
    locked_account(&app, EMAIL).await;
    let [one, two] = [ask(&app, EMAIL, json!({})).await, ask(&app, EMAIL, json!({})).await];
    let mut foreign = one.clone();
    foreign["poll_token"] = two["poll_token"].clone();
    let mut unknown = one.clone();
    unknown["request_id"] = json!("67e55044-10b1-426f-9247-bb680e5fe0c8");
    assert_poll_refused(&app, &foreign, 404, "not_found").await;
    assert_poll_refused(&app, &unknown, 404, "not_found").await;
    assert_poll_refused(&app, &unknown, 429, "rate_limited").await;
    for _ in 0..10 {
        assert_pending(&app, &one).await;
    }
    // Junk polls take no guess at a code from the network.
    ask(&app, EMAIL, json!({})).await;
    let (status, body) = post(&app, "/v1/auth/approval", json!({ "request_id": one["request_id"] })).await;
    assert_eq!((status.as_u16(), &body["error"]["details"]["path"]), (400, &json!("poll_token")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_and_its_answer_survive_the_death_of_the_node() {
    let mut server = ServerProcess::start(&[]).await;
    let phone = locked_account(&server, EMAIL).await;
    let body = right_code(&server, EMAIL, json!({ "device": { "name": "tablet" } })).await;
    let approval = expect_waiting(&post(&server, "/v1/auth/verify", body.clone()).await);
    server.kill();
    server.restart().await;
    assert_eq!(expect_waiting(&post(&server, "/v1/auth/verify", body.clone()).await), approval, "the lost answer");
    let socket = Socket::connect(&server, &phone.person.token, Codec::Json).await;
    socket.request("devices.decide", approving(&approval)).await;
    let first = collect(&server, EMAIL, &approval).await;
    server.kill();
    server.restart().await;
    let second = collect(&server, EMAIL, &approval).await;
    assert_eq!((&first.token, &first.device), (&second.token, &second.device));
    assert_eq!(expect_waiting(&post(&server, "/v1/auth/verify", body).await), approval);
    let socket = Socket::connect(&server, &second.token, Codec::Json).await;
    assert_eq!(devices(&socket).await.len(), 2);
    server.kill();
    server.restart().await;
    assert_poll_refused(&server, &approval, 404, "not_found").await;
}
