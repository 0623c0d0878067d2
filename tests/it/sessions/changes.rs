//! The event `sessions.changed`, and the mails about sign-ins and revocations.

use serde_json::{Value, json};

use super::{EMAIL, connect, delete_session, session_of};
use crate::support::{
    Person, Server, Socket, TestApp, eventually, http::confirmation, http::mails, sign_in, sign_in_as,
};

fn changed(device: &str, opened: &[&str], ended: &[&str]) -> Value {
    json!({ "device_id": device, "opened": opened, "ended": ended })
}

/// Takes the only `sessions.changed` that a socket has got.
async fn assert_changed(sockets: &[&Socket], expected: &Value) {
    for socket in sockets {
        assert_eq!(socket.event("sessions.changed").await, *expected);
        socket.barrier().await;
        assert_eq!(socket.take_event("sessions.changed"), None);
    }
}

async fn assert_unchanged(sockets: &[&Socket]) {
    for socket in sockets {
        socket.barrier().await;
        assert_eq!(socket.take_event("sessions.changed"), None);
    }
}

async fn sign_in_again(app: &TestApp, person: &Person) -> Person {
    sign_in_as(app, EMAIL, json!({ "device": { "id": person.device } })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_connected_devices_learn_of_each_session_that_opens_or_ends() {
    let app = TestApp::start(&[]);
    let stranger = connect(&app, &sign_in(&app, "other@example.org").await.token).await;
    let first = sign_in(&app, EMAIL).await;
    let phone = connect(&app, &first.token).await;
    let second = sign_in(&app, EMAIL).await;
    assert_changed(&[&phone], &changed(&second.device, &[&second.session], &[])).await;
    let laptop = connect(&app, &second.token).await;
    assert_unchanged(&[&laptop]).await;

    let again = sign_in_again(&app, &second).await;
    assert_changed(&[&phone, &laptop], &changed(&second.device, &[&again.session], &[])).await;
    delete_session(&app, &again.token).await;
    assert_changed(&[&phone, &laptop], &changed(&second.device, &[], &[&again.session])).await;

    let again = sign_in_again(&app, &second).await;
    assert_changed(&[&phone, &laptop], &changed(&second.device, &[&again.session], &[])).await;
    phone.request("sessions.end", json!({ "session_id": again.session })).await;
    assert_changed(&[&phone, &laptop], &changed(&second.device, &[], &[&again.session])).await;

    laptop.request("session.logout", json!({})).await;
    assert_changed(&[&phone], &changed(&second.device, &[], &[&second.session])).await;
    assert_unchanged(&[&stranger]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_by_http_is_announced_before_its_socket_closes() {
    let app = TestApp::start(&[]);
    let person = sign_in(&app, EMAIL).await;
    let socket = connect(&app, &person.token).await;
    delete_session(&app, &person.token).await;
    assert_eq!(socket.event("sessions.changed").await, changed(&person.device, &[], &[&person.session]));
    assert_eq!(socket.close_code().await, 4500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_and_the_first_use_of_its_token_are_not_announced() {
    let app = TestApp::start(&[]);
    let first = sign_in(&app, EMAIL).await;
    let phone = connect(&app, &first.token).await;
    let second = sign_in(&app, EMAIL).await;
    phone.event("sessions.changed").await;
    let laptop = connect(&app, &second.token).await;
    let renewed = laptop.request("session.renew", json!({})).await;
    assert_unchanged(&[&phone, &laptop]).await;
    let newer = renewed["session_id"].as_str().unwrap();
    assert_eq!(session_of(&app, renewed["token"].as_str().unwrap()).await.as_deref(), Some(newer));
    assert_eq!(session_of(&app, &second.token).await, None);
    assert_unchanged(&[&phone, &laptop]).await;
    let pending = laptop.request("session.renew", json!({})).await;
    laptop.request("session.logout", json!({})).await;
    let event = phone.event("sessions.changed").await;
    let mut ended: Vec<&str> = event["ended"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    ended.sort_unstable();
    let mut pair = [newer, pending["session_id"].as_str().unwrap()];
    pair.sort_unstable();
    assert_eq!(ended, pair, "both sessions of an unfinished renewal");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_and_a_replacement_end_the_sessions_of_a_device() {
    let app = TestApp::start(&[]);
    let first = sign_in(&app, EMAIL).await;
    let phone = connect(&app, &first.token).await;
    let second = sign_in(&app, EMAIL).await;
    let third = sign_in(&app, EMAIL).await;
    for _ in 0..2 {
        phone.event("sessions.changed").await;
    }
    let laptop = connect(&app, &second.token).await;
    phone.request("devices.revoke", json!({ "device_id": second.device })).await;
    let ended = changed(&second.device, &[], &[&second.session]);
    assert_changed(&[&phone], &ended).await;
    assert_eq!(laptop.event("sessions.changed").await, ended, "before it is closed");
    assert_eq!(laptop.close_code().await, 4502);

    let fourth = sign_in_as(&app, EMAIL, json!({ "replace_device_id": third.device })).await;
    assert_eq!(phone.event("sessions.changed").await, changed(&third.device, &[], &[&third.session]));
    assert_changed(&[&phone], &changed(&fourth.device, &[&fourth.session], &[])).await;
}

/// The subjects of all mails but those with codes, in alphabetical order.
fn notices(app: &TestApp) -> Vec<String> {
    let mails = mails(app.mail());
    let subjects = mails.iter().map(|mail| mail.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap());
    let mut notices: Vec<_> = subjects.filter(|subject| !subject.starts_with("Your code")).map(str::to_owned).collect();
    notices.retain(|subject| subject != "Your sign-in code");
    notices.sort_unstable();
    notices
}

async fn assert_notices(app: &TestApp, expected: &[&str]) {
    eventually("the expected mails", || async { (notices(app).len() >= expected.len()).then_some(()) }).await;
    assert_eq!(notices(app), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_happens_to_an_account_is_mailed_but_the_first_sign_in() {
    const ADDED: &str = "A device was added to your account";
    const AGAIN: &str = "A device signed in to your account again";
    const REMOVED: &str = "A device was removed from your account";
    const CHANGED: &str = "The address of your account was changed";
    const DELETED: &str = "Your account was deleted";
    let app = TestApp::start(&[]);
    let phone = sign_in_as(&app, EMAIL, json!({ "device": { "name": "My phone 12345678" } })).await;
    let socket = connect(&app, &phone.token).await;
    sign_in_again(&app, &phone).await;
    assert_notices(&app, &[AGAIN]).await;
    let mail = mails(app.mail()).into_iter().find(|mail| mail.contains(AGAIN)).unwrap();
    assert!(mail.contains(&format!("To: {EMAIL}\r\n")) && mail.contains("Name: My phone\r\n"), "{mail}");
    let laptop = sign_in(&app, EMAIL).await;
    assert_notices(&app, &[AGAIN, ADDED]).await;
    let tablet = sign_in_as(&app, EMAIL, json!({ "replace_device_id": laptop.device })).await;
    assert_notices(&app, &[AGAIN, ADDED, ADDED, REMOVED]).await;
    socket.request("devices.revoke", json!({ "device_id": tablet.device })).await;
    assert_notices(&app, &[AGAIN, ADDED, ADDED, REMOVED, REMOVED]).await;
    let mut change = confirmation(&app, "new@example.org", "change_email").await;
    change["email"] = json!("new@example.org");
    socket.request("account.change_email", change).await;
    assert_notices(&app, &[AGAIN, ADDED, ADDED, REMOVED, REMOVED, CHANGED]).await;
    socket.request("account.delete", confirmation(&app, "new@example.org", "delete").await).await;
    assert_notices(&app, &[AGAIN, ADDED, ADDED, REMOVED, REMOVED, CHANGED, DELETED]).await;
    let mail = mails(app.mail()).into_iter().find(|mail| mail.contains(DELETED)).unwrap();
    assert!(mail.contains("To: new@example.org\r\n"), "{mail}");
}
