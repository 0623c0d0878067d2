//! `sessions.list` and `sessions.end`.

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{EMAIL, assert_ended, connect, delete_session, session_of};
use crate::support::{Person, Socket, TestApp, code, sign_in, sign_in_as};

async fn sessions(socket: &Socket) -> Vec<Value> {
    socket.request("sessions.list", json!({})).await["sessions"].as_array().unwrap().clone()
}

/// The ids of the listed sessions, and which of them is marked as current.
async fn ids(socket: &Socket) -> (Vec<String>, Vec<bool>) {
    let listed = sessions(socket).await;
    let id = |session: &Value| session["session_id"].as_str().unwrap().to_owned();
    (listed.iter().map(id).collect(), listed.iter().map(|session| session["current"].as_bool().unwrap()).collect())
}

async fn sign_in_again(app: &TestApp, person: &Person) -> Person {
    sign_in_as(app, EMAIL, json!({ "device": { "id": person.device } })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_list_returns_the_valid_sessions_of_the_user() {
    let app = TestApp::with_clock(&[("AUTH__SESSION_DAYS", "1")]);
    let first = sign_in(&app, EMAIL).await;
    app.advance(Duration::from_hours(1));
    let phone = sign_in(&app, EMAIL).await;
    app.advance(Duration::from_hours(1));
    let again = sign_in_again(&app, &first).await;
    sign_in(&app, "other@example.org").await;
    let socket = connect(&app, &phone.token).await;
    let listed = sessions(&socket).await;
    let expected = [(&first, false), (&phone, true), (&again, false)];
    assert_eq!(listed.len(), 3);
    for (listed, (person, current)) in listed.iter().zip(expected) {
        assert_eq!(listed.as_object().unwrap().len(), 6);
        assert_eq!((&listed["session_id"], &listed["device_id"]), (&json!(person.session), &json!(person.device)));
        assert_eq!(listed["current"], current);
        assert_eq!(listed["last_seen"].is_string(), current, "the other device has never connected");
    }
    assert_eq!(listed[1]["created_at"], "2026-06-01T13:00:00.000000Z");
    assert_eq!(listed[1]["expires_at"], "2026-06-02T13:00:00.000000Z");
    app.advance(Duration::from_hours(22));
    assert_eq!(ids(&socket).await.0, [phone.session, again.session], "the first session has expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_and_its_renewal_are_one_entry_until_the_renewed_token_is_used() {
    let app = TestApp::start(&[]);
    let phone = sign_in(&app, EMAIL).await;
    let laptop = sign_in(&app, EMAIL).await;
    let (by, other) = (connect(&app, &phone.token).await, connect(&app, &laptop.token).await);
    let renewed = by.request("session.renew", json!({})).await;
    let newer = renewed["session_id"].as_str().unwrap().to_owned();
    let listed = sessions(&other).await;
    assert_eq!(listed[1]["session_id"], newer);
    assert_eq!(listed[1]["expires_at"], renewed["expires_at"]);
    assert_eq!(ids(&by).await, (vec![laptop.session.clone(), newer.clone()], vec![false, true]));
    // The old token is still valid, and its session is the same entry.
    let old = connect(&app, &phone.token).await;
    assert_eq!(ids(&old).await, (vec![laptop.session.clone(), newer.clone()], vec![false, true]));
    let new = connect(&app, renewed["token"].as_str().unwrap()).await;
    assert_eq!(ids(&new).await, (vec![laptop.session, newer], vec![false, true]));
}

#[tokio::test(flavor = "multi_thread")]
async fn ending_a_session_closes_its_socket_and_leaves_its_device() {
    let app = TestApp::start(&[]);
    let phone = sign_in(&app, EMAIL).await;
    let laptop = sign_in(&app, EMAIL).await;
    let (by, ended) = (connect(&app, &phone.token).await, connect(&app, &laptop.token).await);
    let again = sign_in_again(&app, &laptop).await;
    assert_eq!(by.request("sessions.end", json!({ "session_id": laptop.session })).await, json!({}));
    assert_ended(&ended, "logout", 4500).await;
    assert_eq!(session_of(&app, &laptop.token).await, None);
    assert_eq!(session_of(&app, &again.token).await, Some(again.session));
    assert_eq!(by.request("devices.list", json!({})).await["devices"].as_array().unwrap().len(), 2);
    let repeated = by.refused("sessions.end", json!({ "session_id": laptop.session })).await;
    assert_eq!(code(&repeated), "not_found");
    let other = sign_in(&app, "other@example.org").await;
    let others = other.session.clone();
    for foreign in [other.session.clone(), Uuid::nil().to_string()] {
        assert_eq!(code(&by.refused("sessions.end", json!({ "session_id": foreign })).await), "not_found");
    }
    assert_eq!(session_of(&app, &other.token).await.as_deref(), Some(others.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn ending_either_session_of_a_renewal_ends_both() {
    let app = TestApp::start(&[]);
    let phone = sign_in(&app, EMAIL).await;
    let by = connect(&app, &phone.token).await;
    for end_newer in [true, false] {
        let laptop = sign_in(&app, EMAIL).await;
        let socket = connect(&app, &laptop.token).await;
        let renewed = socket.request("session.renew", json!({})).await;
        let id = if end_newer { renewed["session_id"].clone() } else { json!(laptop.session) };
        by.request("sessions.end", json!({ "session_id": id })).await;
        assert_ended(&socket, "logout", 4500).await;
        for token in [laptop.token.as_str(), renewed["token"].as_str().unwrap()] {
            assert_eq!(session_of(&app, token).await, None);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_of_the_request_can_be_ended_by_either_id_of_a_renewal() {
    let app = TestApp::start(&[]);
    for end_newer in [true, false] {
        let phone = sign_in(&app, EMAIL).await;
        let socket = connect(&app, &phone.token).await;
        let renewed = socket.request("session.renew", json!({})).await;
        let id = if end_newer { renewed["session_id"].clone() } else { json!(phone.session) };
        assert_eq!(socket.request("sessions.end", json!({ "session_id": id })).await, json!({}));
        assert_ended(&socket, "logout", 4500).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_31st_session_of_a_device_ends_the_oldest() {
    let app = TestApp::start(&[]);
    let first = sign_in(&app, EMAIL).await;
    let socket = connect(&app, &first.token).await;
    let watcher = connect(&app, &sign_in(&app, EMAIL).await.token).await;
    for _ in 0..29 {
        sign_in_again(&app, &first).await;
        let changed = watcher.event("sessions.changed").await;
        assert_eq!(changed["ended"], json!([]));
    }
    socket.barrier().await;
    let last = sign_in_again(&app, &first).await;
    let changed = watcher.event("sessions.changed").await;
    let expected = json!({ "device_id": first.device, "opened": [last.session], "ended": [first.session] });
    assert_eq!(changed, expected);
    assert_ended(&socket, "logout", 4500).await;
    assert_eq!(delete_session(&app, &first.token).await, reqwest::StatusCode::UNAUTHORIZED);
    assert_eq!(sessions(&watcher).await.len(), 31);
}
