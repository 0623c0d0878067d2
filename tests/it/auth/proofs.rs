//! A device that has published signs in again, or is replaced while it is in use, only with a proof of its identity key.

use std::time::Duration;

use reqwest::StatusCode;
use sealwire::domain::Suite;
use serde_json::{Value, json};

use super::{Mailed, refusal};
use crate::support::{
    Codec, KeySet, Person, Socket, TestApp,
    http::{codes, proof, proved},
    keys::base64,
    sign_in,
};

const EMAIL: &str = "alice@example.org";
const SUITES: [Suite; 3] = [Suite::SignalPqxdh, Suite::SignalX3dh, Suite::Ed25519X3dh];

/// Signs in on a new device, and publishes keys.
async fn published_device(app: &TestApp, email: &str, suite: Suite, seed: u64) -> (Person, KeySet) {
    let device = sign_in(app, email).await;
    let mut keys = KeySet::new(suite, seed);
    let socket = Socket::connect(app, &device.token, Codec::Json).await;
    socket.request("keys.publish", keys.complete(1..=3)).await;
    (device, keys)
}

/// Redeems the code for this device five times more often than guesses are allowed, each time without success.
async fn assert_proof_required(app: &TestApp, mailed: &Mailed, more: &Value) {
    for _ in 0..6 {
        let refused = mailed.redeem(app, more.clone()).await;
        assert_eq!(refusal(&refused), (403, "proof_required"), "{more}");
        assert_eq!(refused.1["error"]["retryable"], false);
    }
    assert_eq!(mailed.attempts(app).await, 0, "the guess is given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_device_signs_in_again_with_a_proof_in_its_suite() {
    for suite in SUITES {
        let app = TestApp::start(&[]);
        let (device, mut keys) = published_device(&app, EMAIL, suite, 1).await;
        let (other, mut others) = published_device(&app, EMAIL, suite, 2).await;
        let earlier = Mailed::to(&app, EMAIL).await;
        let mailed = Mailed::to(&app, EMAIL).await;
        let of = |proof: Value| json!({ "device": { "id": device.device, "proof": proof } });
        let right = proof(&mailed.id, &device.device, &mut keys);
        let wrong = [
            json!({ "device": { "id": device.device } }),
            of(Value::Null),
            of(json!("")),
            of(json!("not base64 *")),
            of(json!(base64(&[7; 64]))),
            of(json!(right[..right.len() - 4])),
            of(json!(proof(&earlier.id, &device.device, &mut keys))),
            of(json!(proof(&mailed.id, &other.device, &mut keys))),
            of(json!(proof(&mailed.id, &device.device, &mut others))),
            json!({ "device": { "id": device.device }, "proof": right }),
        ];
        for more in &wrong {
            assert_proof_required(&app, &mailed, more).await;
        }
        let (status, body) = mailed.redeem(&app, of(json!(right))).await;
        assert_eq!((status, &body["device_id"]), (StatusCode::CREATED, &json!(device.device)), "{suite:?}: {body}");
        let replayed = mailed.redeem(&app, of(json!(right))).await;
        assert_eq!(refusal(&replayed), (401, "invalid_code"), "a proof belongs to one challenge");

        let socket = Socket::connect(&app, body["token"].as_str().unwrap(), Codec::MsgPack).await;
        let devices = socket.request("devices.list", json!({})).await;
        assert_eq!(devices["devices"].as_array().unwrap().len(), 2, "refused sign-ins add no device");
        assert_eq!(socket.welcome["keys"]["identity_key"], base64(&keys.identity));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_proof_ends_no_session_and_changes_no_key() {
    let app = TestApp::start(&[]);
    let (device, _) = published_device(&app, EMAIL, Suite::SignalPqxdh, 1).await;
    let socket = Socket::connect(&app, &device.token, Codec::Json).await;
    let before = socket.request("keys.status", json!({ "digest": true })).await;
    let mailed = Mailed::to(&app, EMAIL).await;
    assert_proof_required(&app, &mailed, &json!({ "device": { "id": device.device } })).await;
    assert_proof_required(&app, &mailed, &json!({ "replace_device_id": device.device })).await;
    assert_eq!(socket.request("keys.status", json!({ "digest": true })).await, before);
    assert!(!socket.is_closed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_never_published_needs_no_proof() {
    let app = TestApp::start(&[]);
    let device = sign_in(&app, EMAIL).await;
    Socket::connect(&app, &device.token, Codec::Json).await;
    let (status, body) = Mailed::to(&app, EMAIL).await.redeem(&app, json!({ "device": { "id": device.device } })).await;
    assert_eq!((status, &body["device_id"]), (StatusCode::CREATED, &json!(device.device)), "{body}");
    let (status, _) = Mailed::to(&app, EMAIL).await.redeem(&app, json!({ "replace_device_id": device.device })).await;
    assert_eq!(status, StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_in_use_is_replaced_only_with_its_proof_and_one_unused_for_seven_days_without() {
    let week_s = 7 * 24 * 3600;
    for (unused_for, needs_proof) in [(week_s - 1, true), (week_s, false)] {
        let app = TestApp::with_clock(&[]);
        let (old, mut keys) = published_device(&app, EMAIL, Suite::Ed25519X3dh, 1).await;
        let (other, mut others) = published_device(&app, EMAIL, Suite::Ed25519X3dh, 2).await;
        app.advance(Duration::from_secs(unused_for));
        let mailed = Mailed::to(&app, EMAIL).await;
        let replacing = |device: Value| json!({ "replace_device_id": old.device, "device": device });
        if needs_proof {
            assert_proof_required(&app, &mailed, &json!({ "replace_device_id": old.device })).await;
            let foreign = proof(&mailed.id, &old.device, &mut others);
            assert_proof_required(&app, &mailed, &replacing(json!({ "proof": foreign }))).await;
            let of_other = proof(&mailed.id, &other.device, &mut keys);
            assert_proof_required(&app, &mailed, &replacing(json!({ "proof": of_other }))).await;
        }
        let more = if needs_proof {
            replacing(json!({ "proof": proof(&mailed.id, &old.device, &mut keys), "name": "new" }))
        } else {
            json!({ "replace_device_id": old.device })
        };
        let (status, body) = mailed.redeem(&app, more).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        assert_ne!(body["device_id"], old.device);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_stays_connected_for_weeks_counts_as_in_use() {
    let app = TestApp::with_clock(&[("AUTH__SESSION_DAYS", "60")]);
    let (old, _) = published_device(&app, EMAIL, Suite::SignalX3dh, 1).await;
    let socket = Socket::connect(&app, &old.token, Codec::Json).await;
    app.advance(Duration::from_hours(8 * 24));
    // The node records once in a while which devices are connected.
    crate::support::eventually("the device is seen", || async {
        let list = socket.request("devices.list", json!({})).await;
        let seen = list["devices"][0]["last_seen"].as_str().unwrap().to_owned();
        seen.starts_with("2026-06-09").then_some(())
    })
    .await;
    let mailed = Mailed::to(&app, EMAIL).await;
    assert_proof_required(&app, &mailed, &json!({ "replace_device_id": old.device })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_a_device_exists_is_judged_before_its_proof() {
    let app = TestApp::start(&[]);
    let (_, mut keys) = published_device(&app, EMAIL, Suite::SignalX3dh, 1).await;
    let (foreign, _) = published_device(&app, "bob@example.org", Suite::SignalX3dh, 2).await;
    let mailed = Mailed::to(&app, EMAIL).await;
    let device = proved(&mailed.id, &foreign.device, &mut keys);
    assert_eq!(refusal(&mailed.redeem(&app, json!({ "device": device })).await), (404, "unknown_device"));
    assert_eq!(codes(crate::support::Server::mail(&app), EMAIL).len(), 2);
}
