//! Access keys, and what strangers may do: senders who do not show the recipient's key or, while there is none, whose
//! account is young.

mod records;
mod refused;
mod strangers;
mod throwaways;

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{ConnectOptions, Executor, postgres::PgConnectOptions};
use uuid::Uuid;

use crate::support::{
    Codec, KeySet, Member, Person, Services, Settings, Socket, TestApp, keys::base64, mailing::message,
    problem::assert_problem, sign_in,
};
use sealwire::domain::Suite;

/// The access key of the tests.
fn key() -> String {
    base64(&[7; 16])
}

/// A server with a manual clock on a new database of each engine.
async fn on_both_engines(settings: Settings<'_>) -> [TestApp; 2] {
    let url = Services::shared().database().await;
    let secret = base64(&[1; 32]);
    let on_postgres: Vec<(&str, &str)> =
        settings.iter().copied().chain([("DATABASE__URL", url.as_str()), ("AUTH__SECRET", &secret)]).collect();
    [TestApp::with_clock(settings), TestApp::with_clock(&on_postgres)]
}

/// The same request with the access key.
fn showing(mut params: Value, key: &str) -> Value {
    params["access"] = key.into();
    params
}

/// A request that must be a `bad_request` for this field.
async fn assert_bad_field(socket: &Socket, op: &str, params: Value, path: &str) {
    let error = socket.refused(op, params).await;
    assert_eq!((&error["code"], &error["details"]["path"]), (&json!("bad_request"), &json!(path)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn access_settings_are_checked() {
    let app = TestApp::start(&[]);
    for codec in Codec::ALL {
        let bob = Member::join(&app, &format!("bob.{codec:?}@example.org"), codec).await;
        let set = async |params: Value| assert_eq!(bob.socket.request("access.set", params).await, json!({}));
        set(json!({ "strangers": "allow" })).await;
        set(json!({ "strangers": "limit", "key": null, "sealed": true })).await;
        set(json!({ "strangers": "refuse", "key": key() })).await;
        set(json!({ "strangers": "refuse", "key": key().trim_end_matches('=') })).await;
        for (params, path) in [
            (json!({ "key": key() }), "strangers"),
            (json!({ "strangers": "everybody" }), "strangers"),
            (json!({ "strangers": 1 }), "strangers"),
            (json!({ "strangers": "refuse" }), "key"),
            (json!({ "strangers": "limit", "key": base64(&[7; 15]) }), "key"),
            (json!({ "strangers": "limit", "key": base64(&[7; 17]) }), "key"),
            (json!({ "strangers": "limit", "key": "*" }), "key"),
            (json!({ "strangers": "limit", "key": 7 }), "key"),
            (json!({ "strangers": "limit", "sealed": "yes" }), "sealed"),
        ] {
            assert_bad_field(&bob.socket, "access.set", params, path).await;
        }
        // A malformed key that is shown is a wrong one; another type than text is an error.
        let anyone = Uuid::new_v4();
        for (op, params) in [
            ("messages.send", json!({ "message_id": anyone, "to": bob.person.user, "messages": [] })),
            ("keys.claim", json!({ "user_id": bob.person.user, "claim_id": anyone })),
            ("keys.fetch", json!({ "user_id": bob.person.user })),
        ] {
            for malformed in ["", "*", "AAAA", "a\0"] {
                bob.socket.request(op, showing(params.clone(), malformed)).await;
            }
            let mut wrong = params;
            wrong["access"] = 7.into();
            assert_bad_field(&bob.socket, op, wrong, "access").await;
        }
        let features = bob.socket.welcome["features"].as_array().unwrap();
        assert!(features.contains(&json!("access")) && features.contains(&json!("blocks")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_young_device_may_not_change_access_settings() {
    for app in on_both_engines(&[]).await {
        let old = Member::join(&app, "bob@example.org", Codec::Json).await;
        app.advance(Duration::from_hours(73));
        let new = Member::join(&app, "bob@example.org", Codec::Json).await;
        let params = json!({ "strangers": "refuse", "key": key() });
        assert_eq!(new.socket.refused("access.set", params.clone()).await["code"], "device_too_new");
        let stranger = sign_in(&app, "alice@example.org").await;
        let stranger = Socket::connect(&app, &stranger.token, Codec::Json).await;
        stranger.request("keys.fetch", json!({ "user_id": old.person.user })).await;
        old.socket.request("access.set", params).await;
        assert_eq!(stranger.refused("keys.fetch", json!({ "user_id": old.person.user })).await["code"], "not_found");
    }
}
