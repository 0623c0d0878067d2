//! Signing in on a new device, on an existing one, or on one that replaces another; and the limit on their number.

use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Mailed, fields, refusal};
use crate::support::{
    Codec, Person, Server, Socket, TestApp, eventually,
    http::{call, mails, person},
    sign_in, sign_in_as,
};

const EMAIL: &str = "alice@example.org";
const MAX_THREE_DEVICES: (&str, &str) = ("AUTH__MAX_DEVICES", "3");

/// Signs in on a new device for each of these names.
async fn sign_in_on(app: &TestApp, names: &[&str]) -> Vec<Person> {
    let mut logins = Vec::new();
    for name in names {
        logins.push(sign_in_as(app, EMAIL, json!({ "device": { "name": name } })).await);
    }
    logins
}

async fn connect(app: &TestApp, person: &Person) -> Socket {
    Socket::connect(app, &person.token, Codec::MsgPack).await
}

async fn devices(socket: &Socket) -> Vec<Value> {
    socket.request("devices.list", json!({})).await["devices"].as_array().unwrap().clone()
}

async fn status_of(app: &TestApp, token: &str) -> StatusCode {
    call(app, reqwest::Method::GET, "/v1/auth/session", Some(token), None).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_at_the_device_limit_lists_the_devices_and_leaves_the_code_valid() {
    let app = TestApp::start(&[MAX_THREE_DEVICES]);
    let logins = sign_in_on(&app, &["phone", "tablet"]).await;
    let nameless = sign_in(&app, EMAIL).await;
    connect(&app, &logins[0]).await;
    let mailed = Mailed::to(&app, EMAIL).await;
    mailed.guess_wrong(&app, 4).await;
    for _ in 0..3 {
        let refused = mailed.redeem(&app, json!({})).await;
        assert_eq!(refusal(&refused), (409, "device_limit"));
        assert_eq!(refused.1["error"]["retryable"], false);
        let offered = refused.1["error"]["details"]["devices"].as_array().unwrap().clone();
        let expected = [(&logins[0], json!("phone")), (&logins[1], json!("tablet")), (&nameless, Value::Null)];
        assert_eq!(offered.len(), 3);
        for (offered, (person, name)) in offered.iter().zip(expected) {
            assert_eq!(fields(offered), ["device_id", "last_seen", "name"]);
            assert_eq!(offered["device_id"], person.device);
            assert_eq!(offered["name"], name);
            assert_eq!(offered["last_seen"].is_string(), person.device == logins[0].device, "{offered}");
        }
        assert_eq!(mailed.attempts(&app).await, 4, "the refused sign-in is not counted as an attempt");
    }
    let (status, body) = mailed.redeem(&app, json!({ "replace_device_id": nameless.device })).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    assert_eq!(body["user_id"], nameless.user);
    assert_eq!(mailed.attempts(&app).await, 5);
    assert_eq!(refusal(&mailed.redeem(&app, json!({})).await), (401, "invalid_code"));
}

/// Replaces a device, and checks what that device, the others and the new one see of it.
async fn assert_replaced(app: &TestApp, others: &[&Person], replaced: &Person) {
    let mailed = Mailed::to(app, EMAIL).await;
    let mut sockets = Vec::new();
    for other in others {
        sockets.push(connect(app, other).await);
    }
    let leaving = connect(app, replaced).await;
    let (status, body) = mailed.redeem(app, json!({ "replace_device_id": replaced.device })).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    let new = person(EMAIL, &body);
    assert_eq!(new.user, replaced.user);
    assert!(leaving.event("session.revoked").await == json!({ "reason": "device_revoked" }));
    assert_eq!(leaving.close_code().await, 4502);
    assert_eq!(leaving.take_event("devices.changed"), None);
    for socket in &sockets {
        let changed = socket.event("devices.changed").await;
        assert_eq!(changed, json!({ "added": [new.device], "removed": [replaced.device] }));
        socket.barrier().await;
        assert_eq!(socket.take_event("devices.changed"), None, "one event reports both");
    }
    assert_eq!(status_of(app, &replaced.token).await, StatusCode::UNAUTHORIZED);
    let new_socket = connect(app, &new).await;
    let listed: Vec<_> = devices(&new_socket).await.iter().map(|device| device["device_id"].clone()).collect();
    let expected: Vec<_> = others.iter().map(|other| json!(other.device)).chain([json!(new.device)]).collect();
    assert_eq!(listed, expected);
    assert_eq!(new_socket.take_event("devices.changed"), None, "a new device gets no event about itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_can_be_replaced_at_the_device_limit() {
    let app = TestApp::start(&[MAX_THREE_DEVICES]);
    let logins = sign_in_on(&app, &["phone", "tablet", "laptop"]).await;
    assert_replaced(&app, &[&logins[0], &logins[2]], &logins[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_can_be_replaced_below_the_device_limit() {
    let app = TestApp::start(&[]);
    let logins = sign_in_on(&app, &["phone", "tablet"]).await;
    assert_replaced(&app, &[&logins[1]], &logins[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_sign_ins_cannot_exceed_the_device_limit() {
    let app = TestApp::start(&[MAX_THREE_DEVICES]);
    let first = sign_in(&app, EMAIL).await;
    let mut challenges = Vec::new();
    for _ in 0..8 {
        challenges.push(Mailed::to(&app, EMAIL).await);
    }
    let answers = join_all(challenges.iter().map(|mailed| mailed.redeem(&app, json!({})))).await;
    let (created, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|(status, _)| *status == StatusCode::CREATED);
    assert_eq!(created.len(), 2);
    assert!(refused.iter().all(|answer| refusal(answer) == (409, "device_limit")), "{refused:?}");
    assert_eq!(devices(&connect(&app, &first).await).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_parallel_replacements_of_a_device_succeeds() {
    let app = TestApp::start(&[MAX_THREE_DEVICES]);
    let logins = sign_in_on(&app, &["phone", "tablet", "laptop"]).await;
    let mut challenges = Vec::new();
    for _ in 0..4 {
        challenges.push(Mailed::to(&app, EMAIL).await);
    }
    let exchange = json!({ "replace_device_id": logins[2].device });
    let answers = join_all(challenges.iter().map(|mailed| mailed.redeem(&app, exchange.clone()))).await;
    assert_eq!(answers.iter().filter(|(status, _)| *status == StatusCode::CREATED).count(), 1);
    assert_eq!(answers.iter().filter(|answer| refusal(answer) == (404, "unknown_device")).count(), 3);
    assert_eq!(devices(&connect(&app, &logins[0]).await).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_device_is_announced_to_the_users_other_devices() {
    let app = TestApp::start(&[]);
    let phone = sign_in(&app, EMAIL).await;
    let socket = connect(&app, &phone).await;
    let tablet = sign_in(&app, EMAIL).await;
    assert_eq!(socket.event("devices.changed").await, json!({ "added": [tablet.device], "removed": [] }));
    socket.barrier().await;
    assert_eq!(socket.take_event("devices.changed"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_can_sign_in_again_with_its_id() {
    let app = TestApp::start(&[("AUTH__MAX_DEVICES", "1")]);
    let device = json!({ "name": "phone", "registration_id": 16380 });
    let first = sign_in_as(&app, EMAIL, json!({ "device": device })).await;
    let socket = connect(&app, &first).await;
    let again = json!({ "device": { "id": first.device, "registration_id": 1 } });
    let second = sign_in_as(&app, EMAIL, again).await;
    assert_eq!((&second.user, &second.device), (&first.user, &first.device));
    assert_ne!(second.session, first.session);
    let listed = devices(&socket).await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["registration_id"], 16380, "a device keeps its registration id");
    assert_eq!(socket.take_event("devices.changed"), None);
    for token in [&first.token, &second.token] {
        assert_eq!(status_of(&app, token).await, StatusCode::OK, "both sessions are valid");
    }
    let (status, _) = call(&app, reqwest::Method::DELETE, "/v1/auth/session", Some(&second.token), None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    socket.barrier().await;
    assert_eq!(status_of(&app, &first.token).await, StatusCode::OK, "ending the second session does not end the first");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_with_a_foreign_or_revoked_device_is_refused() {
    let app = TestApp::start(&[]);
    let phone = sign_in(&app, EMAIL).await;
    let revoked = sign_in(&app, EMAIL).await;
    let other = sign_in(&app, "other@example.org").await;
    let (socket, others_socket) = (connect(&app, &phone).await, connect(&app, &other).await);
    socket.request("devices.revoke", json!({ "device_id": revoked.device })).await;
    socket.event("devices.changed").await;
    let mailed = Mailed::to(&app, EMAIL).await;
    mailed.guess_wrong(&app, 4).await;
    for device in [&other.device, &revoked.device, &Uuid::from_u128(7).to_string()] {
        for more in [json!({ "device": { "id": device } }), json!({ "replace_device_id": device })] {
            let refused = mailed.redeem(&app, more.clone()).await;
            assert_eq!(refusal(&refused), (404, "unknown_device"), "{more}");
            assert_eq!(mailed.attempts(&app).await, 4);
        }
    }
    assert_eq!(devices(&socket).await.len(), 1);
    assert_eq!(devices(&others_socket).await.len(), 1);
    assert_eq!(socket.take_event("devices.changed"), None);
    assert_eq!(mailed.redeem(&app, json!({})).await.0, StatusCode::CREATED, "the code stays usable");
    assert_eq!(devices(&socket).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_sign_in_with_a_foreign_device_creates_no_user() {
    let app = TestApp::start(&[]);
    let other = sign_in(&app, "other@example.org").await;
    let socket = connect(&app, &other).await;
    let mailed = Mailed::to(&app, EMAIL).await;
    let refused = mailed.redeem(&app, json!({ "device": { "id": other.device } })).await;
    assert_eq!(refusal(&refused), (404, "unknown_device"));
    assert_eq!(socket.refused("users.find", json!({ "email": EMAIL })).await["code"], "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn device_names_and_registration_ids_are_stored_and_the_server_chooses_missing_ids() {
    let app = TestApp::start(&[]);
    let longest = "é".repeat(64);
    let mut last = None;
    for (device, name, registration_id) in [
        (json!({ "name": longest, "registration_id": 1 }), json!(longest), Some(1)),
        (json!({ "name": "x", "registration_id": 16380 }), json!("x"), Some(16380)),
        (json!({ "id": null, "name": null, "registration_id": null }), Value::Null, None),
        (Value::Null, Value::Null, None),
    ] {
        let person = sign_in_as(&app, EMAIL, json!({ "device": device, "replace_device_id": null })).await;
        let socket = connect(&app, &person).await;
        let listed = devices(&socket).await.pop().unwrap();
        assert_eq!(fields(&listed), ["created_at", "current", "device_id", "last_seen", "name", "registration_id"]);
        assert_eq!(listed["device_id"], person.device);
        assert_eq!(listed["current"], true);
        assert_eq!(listed["name"], name);
        let kept = listed["registration_id"].as_u64().unwrap();
        match registration_id {
            Some(chosen) => assert_eq!(kept, chosen),
            None => assert!((1..=16380).contains(&kept), "the server picked {kept}"),
        }
        last = Some(socket);
    }
    assert_eq!(devices(&last.unwrap()).await.len(), 4);
}

/// Nothing in the mail may look like a code, whatever the name of the new device is.
#[tokio::test(flavor = "multi_thread")]
async fn every_added_device_but_the_first_is_reported_by_mail() {
    let app = TestApp::start(&[]);
    let device_mails = || -> Vec<String> {
        mails(app.mail()).into_iter().filter(|mail| mail.contains("Subject: A device was added")).collect()
    };
    let first = sign_in_as(&app, EMAIL, json!({ "device": { "name": "first" } })).await;
    sign_in_as(&app, EMAIL, json!({ "device": { "id": first.device } })).await;
    sign_in_as(&app, EMAIL, json!({ "device": { "name": "Your code is 12345678\r\n\r\nبيت" } })).await;
    let mail = eventually("the mail", || async { device_mails().pop() }).await;
    assert_eq!(device_mails().len(), 1, "no mail about the first device and its second session");
    assert!(mail.contains(&format!("To: {EMAIL}\r\n")));
    let (head, text) = mail.split_once("\r\n\r\n").unwrap();
    let subject = head.lines().find(|line| line.starts_with("Subject: ")).unwrap();
    for shown in [subject, text] {
        assert!(shown.split(|c: char| !c.is_ascii_digit()).all(|group| group.len() != 8), "{mail}");
    }
    sign_in_as(&app, EMAIL, json!({ "replace_device_id": first.device })).await;
    eventually("the mail about the replacement", || async { (device_mails().len() == 2).then_some(()) }).await;
}
