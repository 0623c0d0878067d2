//! `devices.list`, `devices.rename` and `users.find`.

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{EMAIL, connect};
use crate::support::{TestApp, code, eventually, sign_in, sign_in_as};

#[tokio::test(flavor = "multi_thread")]
async fn devices_list_returns_the_active_devices() {
    let app = TestApp::start(&[]);
    let named = json!({ "device": { "name": "phone", "registration_id": 42 } });
    let phone = sign_in_as(&app, EMAIL, named).await;
    let tablet = sign_in(&app, EMAIL).await;
    let revoked = sign_in(&app, EMAIL).await;
    let socket = connect(&app, &phone.token).await;
    socket.request("devices.revoke", json!({ "device_id": revoked.device })).await;
    let list = socket.request("devices.list", Value::Null).await;
    let devices = list["devices"].as_array().unwrap().clone();
    assert_eq!(devices.len(), 2);
    assert_eq!((&devices[0]["device_id"], &devices[1]["device_id"]), (&json!(phone.device), &json!(tablet.device)));
    assert_eq!((&devices[0]["name"], &devices[1]["name"]), (&json!("phone"), &Value::Null));
    assert_eq!((&devices[0]["current"], &devices[1]["current"]), (&json!(true), &json!(false)));
    assert_eq!(devices[0]["registration_id"], 42);
    assert_eq!(devices[1]["last_seen"], Value::Null, "it has never connected");
    let seen = devices[0]["last_seen"].as_str().unwrap();
    assert!(seen.ends_with('Z') && seen >= devices[0]["created_at"].as_str().unwrap());

    let connected = connect(&app, &tablet.token).await;
    let last_seen = || async {
        let list = socket.request("devices.list", json!({})).await;
        list["devices"][1]["last_seen"].as_str().map(str::to_owned)
    };
    let at_connect = last_seen().await.expect("it has been seen");
    drop(connected);
    eventually("its disconnect updates `last_seen`", || async {
        last_seen().await.filter(|at_disconnect| at_disconnect.as_str() > at_connect.as_str())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_can_rename_only_their_own_devices() {
    let app = TestApp::start(&[]);
    let phone = sign_in(&app, EMAIL).await;
    let tablet = sign_in(&app, EMAIL).await;
    let revoked = sign_in(&app, EMAIL).await;
    let other = sign_in(&app, "other@example.org").await;
    let socket = connect(&app, &phone.token).await;
    socket.request("devices.revoke", json!({ "device_id": revoked.device })).await;
    let longest = "名".repeat(64);
    assert_eq!(socket.request("devices.rename", json!({ "name": "phone" })).await, json!({}));
    socket.request("devices.rename", json!({ "device_id": tablet.device, "name": longest })).await;
    let names = || async {
        let list = socket.request("devices.list", json!({})).await;
        list["devices"].as_array().unwrap().iter().map(|device| device["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names().await, [json!("phone"), json!(longest)]);
    for device in [&other.device, &revoked.device, &Uuid::from_u128(7).to_string()] {
        let error = socket.refused("devices.rename", json!({ "device_id": device, "name": "mine" })).await;
        assert_eq!(code(&error), "unknown_device");
    }
    for params in [
        json!({}),
        json!({ "name": "" }),
        json!({ "name": "x".repeat(65) }),
        json!({ "name": "a\0b" }),
        json!({ "name": 5 }),
        json!({ "name": null }),
        json!({ "name": "x", "device_id": 5 }),
    ] {
        assert_eq!(code(&socket.refused("devices.rename", params.clone()).await), "bad_request", "{params}");
    }
    assert_eq!(names().await, [json!("phone"), json!(longest)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_found_by_any_spelling_of_the_address() {
    let app = TestApp::start(&[]);
    let bob = sign_in(&app, "bob@example.org").await;
    let socket = connect(&app, &sign_in(&app, EMAIL).await.token).await;
    for spelled in ["bob@example.org", " BOB@Example.ORG\n"] {
        assert_eq!(socket.request("users.find", json!({ "email": spelled })).await, json!({ "user_id": bob.user }));
    }
    assert_eq!(code(&socket.refused("users.find", json!({ "email": "carol@example.org" })).await), "not_found");
    for params in [json!({}), json!({ "email": "bob" }), json!({ "email": null }), json!({ "email": "b\0@c.d" })] {
        assert_eq!(code(&socket.refused("users.find", params).await), "bad_request");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_may_look_up_a_limited_number_of_addresses_an_hour() {
    let app = TestApp::with_clock(&[("LIMITS__FIND_PER_USER_HOUR", "3")]);
    let phone = connect(&app, &sign_in(&app, EMAIL).await.token).await;
    let tablet = connect(&app, &sign_in(&app, EMAIL).await.token).await;
    let other = connect(&app, &sign_in(&app, "bob@example.org").await.token).await;
    let known = json!({ "email": EMAIL });
    for socket in [&phone, &tablet] {
        socket.request("users.find", known.clone()).await;
    }
    phone.refused("users.find", json!({ "email": "carol@example.org" })).await;
    app.advance(Duration::from_mins(1));
    for socket in [&phone, &tablet] {
        let error = socket.refused("users.find", known.clone()).await;
        assert_eq!(code(&error), "rate_limited", "unknown addresses count, and all devices share one limit");
        assert_eq!((&error["retryable"], &error["retry_after_ms"]), (&json!(true), &json!(59 * 60 * 1000)));
    }
    other.request("users.find", known.clone()).await;
    app.advance(Duration::from_mins(59));
    phone.request("users.find", known).await;
}
