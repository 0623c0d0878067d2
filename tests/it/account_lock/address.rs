//! Under a lock a change of the address is decided like a new device.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Device, EMAIL, WEEK_S, approving, ask, collect, denying, locked_account, pending, publish};
use crate::support::{
    Server, TestApp, code, eventually,
    http::{challenge_for, mails},
    sign_in,
};

const NEW: &str = "alice@new.example";
const TICK: Duration = Duration::from_secs(1);

/// The parameters of `account.change_email` with a right code.
async fn change(server: &impl Server, to: &str) -> Value {
    let (challenge_id, code) = challenge_for(server, to, "change_email").await;
    json!({ "email": to, "challenge_id": challenge_id, "code": code })
}

/// Asks for a change of the address. Returns the approval.
async fn ask_to_change(device: &Device, params: &Value) -> Value {
    let reply = device.socket.request("account.change_email", params.clone()).await;
    let approval = reply["approval"].clone();
    let mut fields: Vec<_> = approval.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["decides_at", "number", "request_id"], "it is not polled");
    approval
}

/// Whether an account has this address.
async fn is_known(device: &Device, email: &str) -> bool {
    device.socket.try_request("users.find", json!({ "email": email })).await.expect("connected").is_ok()
}

fn mails_to(app: &TestApp, email: &str, subject: &str) -> usize {
    let mails = mails(app.mail());
    let is_it = |mail: &&String| mail.contains(&format!("To: {email}\r\n")) && mail.contains(subject);
    mails.iter().filter(is_it).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_device_approves_a_change_of_the_address_with_the_number() {
    let app = TestApp::start(&[]);
    let phone = locked_account(&app, EMAIL).await;
    let tablet = ask(&app, EMAIL, json!({ "device": { "name": "tablet" } })).await;
    phone.socket.event("devices.requested").await;
    phone.socket.request("devices.decide", approving(&tablet)).await;
    let tablet = publish(&app, collect(&app, EMAIL, &tablet).await).await;

    let params = change(&app, NEW).await;
    let approval = ask_to_change(&tablet, &params).await;
    let requested = phone.socket.event("devices.requested").await;
    assert_eq!(
        (&requested["kind"], &requested["request_id"], &requested["device_name"]),
        (&json!("change_email"), &approval["request_id"], &json!("tablet"))
    );
    assert_eq!(tablet.socket.event("devices.requested").await, requested);
    assert_eq!(ask_to_change(&tablet, &params).await, approval, "the same code gives the same request");
    assert_eq!(pending(&phone.socket).await.len(), 1);
    assert!(is_known(&phone, EMAIL).await && !is_known(&phone, NEW).await);
    eventually("the mail about the request", || async {
        (mails_to(&app, EMAIL, "Subject: A request waits for your approval") == 2).then_some(())
    })
    .await;

    assert_eq!(phone.socket.request("devices.decide", approving(&approval)).await, json!({}));
    assert!(!is_known(&phone, EMAIL).await && is_known(&phone, NEW).await);
    assert_eq!(phone.socket.request("devices.decide", approving(&approval)).await, json!({}), "the same decision");
    eventually("the mail to the old address", || async {
        (mails_to(&app, EMAIL, "Subject: The address of your account was changed") == 1).then_some(())
    })
    .await;
    assert!(pending(&phone.socket).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_change_of_the_address_changes_nothing() {
    let app = TestApp::start(&[]);
    let phone = locked_account(&app, EMAIL).await;
    let params = change(&app, NEW).await;
    let approval = ask_to_change(&phone, &params).await;
    assert_eq!(phone.socket.request("devices.decide", denying(&approval)).await, json!({}));
    assert_eq!(code(&phone.socket.refused("devices.decide", approving(&approval)).await), "not_found");
    assert_eq!(ask_to_change(&phone, &params).await, approval, "the code makes no second request");
    assert!(pending(&phone.socket).await.is_empty());
    assert!(is_known(&phone, EMAIL).await && !is_known(&phone, NEW).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_address_is_approved_by_time() {
    let app = TestApp::with_clock(&[]);
    let phone = locked_account(&app, EMAIL).await;
    app.advance(TICK);
    ask_to_change(&phone, &change(&app, NEW).await).await;
    app.advance(Duration::from_secs(WEEK_S));
    eventually("the mail to the old address", || async {
        (mails_to(&app, EMAIL, "Subject: The address of your account was changed") == 1).then_some(())
    })
    .await;
    assert!(is_known(&phone, NEW).await && !is_known(&phone, EMAIL).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_refused_at_the_request_and_at_the_decision() {
    let app = TestApp::with_clock(&[]);
    let phone = locked_account(&app, EMAIL).await;
    app.advance(TICK);
    sign_in(&app, "taken@example.org").await;
    let params = change(&app, "taken@example.org").await;
    for _ in 0..7 {
        let error = phone.socket.refused("account.change_email", params.clone()).await;
        assert_eq!(code(&error), "email_taken", "the code stays usable");
    }
    assert!(pending(&phone.socket).await.is_empty());

    let approval = ask_to_change(&phone, &change(&app, NEW).await).await;
    sign_in(&app, NEW).await;
    for _ in 0..2 {
        let error = phone.socket.refused("devices.decide", approving(&approval)).await;
        assert_eq!(code(&error), "email_taken");
        assert_eq!(pending(&phone.socket).await.len(), 1, "it stays pending");
    }
    app.advance(Duration::from_secs(WEEK_S));
    eventually("the request is decided", || async { pending(&phone.socket).await.is_empty().then_some(()) }).await;
    assert_eq!(code(&phone.socket.refused("devices.decide", approving(&approval)).await), "not_found", "it is denied");
    assert!(is_known(&phone, EMAIL).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_to_the_present_address_needs_no_approval() {
    let app = TestApp::start(&[]);
    let phone = locked_account(&app, EMAIL).await;
    let params = change(&app, EMAIL).await;
    assert_eq!(phone.socket.request("account.change_email", params).await, json!({}));
    assert!(pending(&phone.socket).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_the_address_and_new_devices_share_the_limit_of_pending_requests() {
    let app = TestApp::start(&[]);
    let phone = locked_account(&app, EMAIL).await;
    ask(&app, EMAIL, json!({})).await;
    for to in ["one@new.example", "two@new.example"] {
        ask_to_change(&phone, &change(&app, to).await).await;
    }
    let error = phone.socket.refused("account.change_email", change(&app, "three@new.example").await).await;
    assert_eq!((code(&error), &error["retryable"]), ("rate_limited", &json!(true)));
    assert_eq!(pending(&phone.socket).await.len(), 3);
}
