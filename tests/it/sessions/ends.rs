//! How a session ends (logout, expiry, revocation, account deletion), and that its requests are refused afterwards.

use std::{collections::HashMap, time::Duration};

use futures_util::{SinkExt, future::join_all};
use reqwest::StatusCode;
use sealwire::domain::Suite;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use super::{EMAIL, assert_ended, connect, delete_session, open_stream, read_to_close, session_of};
use crate::support::{Codec, KeySet, Socket, TestApp, code, http::confirmation, sign_in};

/// Sends one request on a fresh socket and expects its reply, then the event, then the close, and nothing else.
async fn assert_reply_event_close(op: &str, params: Value, reason: &str, close: u16, app: &TestApp) -> String {
    let person = sign_in(app, EMAIL).await;
    let params = match params.as_str() {
        Some("device") => json!({ "device_id": person.device }),
        Some("session") => json!({ "session_id": person.session }),
        Some("code") => confirmation(app, EMAIL, "delete").await,
        _ => params,
    };
    let mut stream = open_stream(app, &person).await;
    stream.send(Message::text(json!({ "id": 7, "op": op, "params": params }).to_string())).await.unwrap();
    let (frames, code) = read_to_close(&mut stream).await;
    let expected =
        [json!({ "id": 7, "result": {} }), json!({ "event": "session.revoked", "data": { "reason": reason } })];
    assert_eq!(frames, expected, "{op}");
    assert_eq!(code, close, "{op}");
    assert_eq!(session_of(app, &person.token).await, None);
    person.device
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_ends_its_session_gets_the_reply_then_the_event_then_the_close() {
    let app = TestApp::start(&[]);
    assert_reply_event_close("session.logout", Value::Null, "logout", 4500, &app).await;
    assert_reply_event_close("sessions.end", json!("session"), "logout", 4500, &app).await;
    let other = connect(&app, &sign_in(&app, EMAIL).await.token).await;
    let device = assert_reply_event_close("devices.revoke", json!("device"), "device_revoked", 4502, &app).await;
    other.event("devices.changed").await;
    assert_eq!(other.event("devices.changed").await, json!({ "added": [], "removed": [device] }));
    assert_reply_event_close("account.delete", json!("code"), "account_deleted", 4506, &app).await;
    assert_ended(&other, "account_deleted", 4506).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logged_out_device_can_sign_in_again() {
    let app = TestApp::start(&[]);
    let person = sign_in(&app, EMAIL).await;
    connect(&app, &person.token).await.request("session.logout", json!({})).await;
    assert_eq!(session_of(&app, &person.token).await, None);
    assert!(Socket::try_connect(&app, &person.token, Codec::Json).await.is_none());
    let again = crate::support::sign_in_as(&app, EMAIL, json!({ "device": { "id": person.device } })).await;
    assert_eq!(again.device, person.device);
    connect(&app, &again.token).await.barrier().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_the_session_over_http_closes_its_socket() {
    let app = TestApp::start(&[]);
    let person = sign_in(&app, EMAIL).await;
    let socket = connect(&app, &person.token).await;
    assert_eq!(delete_session(&app, &person.token).await, StatusCode::NO_CONTENT);
    assert_ended(&socket, "logout", 4500).await;
    assert_eq!(delete_session(&app, &person.token).await, StatusCode::UNAUTHORIZED);
    assert_eq!(delete_session(&app, "nonsense").await, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_session_closes_its_socket_within_five_seconds() {
    // 8.64 seconds: long enough to sign in and connect on a busy machine. The test needs real time.
    let app = TestApp::start(&[("AUTH__SESSION_DAYS", "0.0001")]);
    let person = sign_in(&app, EMAIL).await;
    let mut stream = open_stream(&app, &person).await;
    let lifetime = Duration::from_millis(8640);
    let (frames, code) = timeout(lifetime + Duration::from_secs(5), read_to_close(&mut stream)).await.unwrap();
    assert_eq!(frames, [json!({ "event": "session.revoked", "data": { "reason": "expired" } })]);
    assert_eq!(code, 4501);
    assert_eq!(session_of(&app, &person.token).await, None);
    assert!(Socket::try_connect(&app, &person.token, Codec::Json).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_an_expired_session_are_refused_even_before_its_socket_closes() {
    let app = TestApp::with_clock(&[("AUTH__SESSION_DAYS", "1")]);
    let person = sign_in(&app, EMAIL).await;
    let socket = connect(&app, &person.token).await;
    app.advance(Duration::from_hours(24));
    for (op, params) in [
        ("devices.list", json!({})),
        ("devices.rename", json!({ "name": "phone" })),
        ("devices.revoke", json!({ "device_id": person.device })),
        ("users.find", json!({ "email": EMAIL })),
        ("keys.status", json!({})),
        ("keys.publish", KeySet::new(Suite::SignalX3dh, 1).complete(1..=2)),
        ("keys.fetch", json!({ "user_id": person.user })),
        ("keys.claim", json!({ "user_id": person.user, "claim_id": Uuid::from_u128(7) })),
        ("session.renew", json!({})),
        ("session.logout", json!({})),
        ("account.delete", json!({})),
    ] {
        match socket.try_request(op, params).await {
            Some(answer) => assert_eq!(code(&answer.unwrap_err()), "session_revoked", "{op}"),
            // The heartbeat, which comes at a random moment, has closed the socket first.
            None => return assert_eq!(socket.close_code().await, 4501),
        }
    }
    assert_eq!(session_of(&app, &person.token).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_a_device_closes_its_socket_and_notifies_the_other_devices() {
    let app = TestApp::start(&[]);
    let [phone, tablet, laptop] = [sign_in(&app, EMAIL).await, sign_in(&app, EMAIL).await, sign_in(&app, EMAIL).await];
    let (by, third, revoked) =
        (connect(&app, &phone.token).await, connect(&app, &tablet.token).await, connect(&app, &laptop.token).await);
    revoked.request("keys.publish", KeySet::new(Suite::SignalX3dh, 1).complete(1..=5)).await;
    by.request("devices.revoke", json!({ "device_id": laptop.device })).await;
    assert_ended(&revoked, "device_revoked", 4502).await;
    assert_eq!(revoked.take_event("devices.changed"), None);
    assert_eq!(session_of(&app, &laptop.token).await, None);
    for socket in [&by, &third] {
        assert_eq!(socket.event("devices.changed").await, json!({ "added": [], "removed": [laptop.device] }));
        socket.barrier().await;
        assert_eq!(socket.take_event("devices.changed"), None);
    }
    let claim = json!({ "user_id": phone.user, "device_ids": [laptop.device], "claim_id": Uuid::from_u128(7) });
    let claimed = by.request("keys.claim", claim).await;
    let unavailable = json!([{ "device_id": laptop.device, "reason": "revoked" }]);
    assert_eq!(claimed, json!({ "bundles": [], "unavailable": unavailable }));

    let other = sign_in(&app, "other@example.org").await;
    let others_socket = connect(&app, &other.token).await;
    for device in [&laptop.device, &other.device, &Uuid::from_u128(7).to_string()] {
        assert_eq!(code(&by.refused("devices.revoke", json!({ "device_id": device })).await), "unknown_device");
    }
    for params in [json!({}), json!({ "device_id": "x" }), json!({ "device_id": null })] {
        assert_eq!(code(&by.refused("devices.revoke", params).await), "bad_request");
    }
    others_socket.barrier().await;
    by.barrier().await;
    assert_eq!(by.take_event("devices.changed"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_an_account_ends_the_sessions_of_all_its_devices() {
    let app = TestApp::start(&[]);
    let mut sockets = Vec::new();
    let mut logins = Vec::new();
    for _ in 0..3 {
        logins.push(sign_in(&app, EMAIL).await);
    }
    for person in &logins {
        sockets.push(connect(&app, &person.token).await);
    }
    let other = connect(&app, &sign_in(&app, "bob@example.org").await.token).await;
    sockets[0].request("keys.publish", KeySet::new(Suite::SignalX3dh, 1).complete(1..=5)).await;
    let found = other.request("users.find", json!({ "email": EMAIL })).await;
    assert_eq!(found, json!({ "user_id": logins[0].user }));
    assert_eq!(sockets[1].request("account.delete", confirmation(&app, EMAIL, "delete").await).await, json!({}));
    for socket in &sockets {
        assert_ended(socket, "account_deleted", 4506).await;
        assert_eq!(socket.take_event("session.revoked"), None);
    }
    for person in &logins {
        assert_eq!(session_of(&app, &person.token).await, None);
    }
    assert_eq!(code(&other.refused("users.find", json!({ "email": EMAIL })).await), "not_found");
    assert_eq!(code(&other.refused("keys.fetch", json!({ "user_id": logins[0].user })).await), "not_found");

    let anew = sign_in(&app, EMAIL).await;
    assert_ne!(anew.user, logins[0].user, "signing in again creates a new user");
    let socket = connect(&app, &anew.token).await;
    assert_eq!(socket.request("devices.list", json!({})).await["devices"].as_array().unwrap().len(), 1);
    assert_eq!(other.request("users.find", json!({ "email": EMAIL })).await, json!({ "user_id": anew.user }));
}

/// Requests before the logout may succeed; requests after it are refused.
#[tokio::test(flavor = "multi_thread")]
async fn requests_racing_with_a_logout_succeed_or_get_session_revoked() {
    let app = TestApp::start(&[]);
    let watcher = connect(&app, &sign_in(&app, EMAIL).await.token).await;
    let mut outcomes: HashMap<String, usize> = HashMap::new();
    for _ in 0..20 {
        let person = sign_in(&app, EMAIL).await;
        let socket = connect(&app, &person.token).await;
        let rename = |index: usize| socket.try_request("devices.rename", json!({ "name": format!("name {index}") }));
        let (deleted, answers) = tokio::join!(delete_session(&app, &person.token), join_all((0..40).map(rename)));
        assert_eq!(deleted, StatusCode::NO_CONTENT);
        assert_ended(&socket, "logout", 4500).await;
        for answer in &answers {
            let outcome = match answer {
                Some(Ok(result)) => result.to_string(),
                Some(Err(error)) => code(error).to_owned(),
                None => "closed".to_owned(),
            };
            *outcomes.entry(outcome).or_default() += 1;
        }
        watcher.request("devices.revoke", json!({ "device_id": person.device })).await;
    }
    let known = ["{}", "session_revoked", "closed"];
    assert!(outcomes.keys().all(|outcome| known.contains(&outcome.as_str())), "{outcomes:?}");
}
