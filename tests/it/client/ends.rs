//! What ends a client, and what the app should do then.

use std::time::Duration;

use sealwire_client::{Code, CodePurpose, End, HttpError, RequestError, Session, protocol::auth::InvalidTokenReason};

use super::{Device, at, new_code, sign_in};
use crate::support::{Server, TestApp, http};

/// A session with another token.
fn with_token(session: &Session, token: &str) -> Session {
    let mut value = serde_json::to_value(session).unwrap();
    value["token"] = token.into();
    serde_json::from_value(value).unwrap()
}

/// Starts a client for the session, which ends at once. Returns why, after a check that HTTP says the same.
async fn refused(app: &TestApp, session: Session, reason: InvalidTokenReason) -> End {
    let server = at(app.address());
    let error = server.check_session(session.token()).await.err().unwrap();
    assert_eq!((error.code(), error.retryable()), (Some(Code::Unauthorized), false));
    assert_eq!(error.invalid_token_reason(), Some(reason));
    let mut device = Device::start(&server, session).await;
    let end = device.ended().await;
    assert_eq!(device.client.connected().await, Err(end.clone()));
    let error = device.client.devices().await.unwrap_err();
    assert!(matches!(&error, RequestError::Ended(how) if *how == end), "{error}");
    assert!(device.events.next().await.is_none());
    assert!(Session::load(&device.storage).await.unwrap().unwrap().has_ended());
    end
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_valid_ends_the_client_by_its_reason() {
    let app = TestApp::with_clock(&[]);
    let server = at(app.address());

    let session = sign_in(&app, "unknown@example.org").await;
    let stranger = with_token(&session, &"A".repeat(43));
    assert_eq!(refused(&app, stranger, InvalidTokenReason::Unknown).await, End::UnknownToken);

    let session = sign_in(&app, "logout@example.org").await;
    server.log_out(session.token()).await.unwrap();
    let end = refused(&app, session, InvalidTokenReason::LoggedOut).await;
    assert_eq!((end.clone(), end.must_sign_in(), end.must_wipe()), (End::LoggedOut, true, false));

    let old = sign_in(&app, "renewed@example.org").await;
    let mut device = Device::start(&server, old.clone()).await;
    device.client.renew_session().await.unwrap();
    server.check_session(device.client.session().token()).await.unwrap();
    device.client.stop().await;
    assert_eq!(device.ended().await, End::Stopped);
    assert_eq!(refused(&app, old, InvalidTokenReason::Superseded).await, End::Superseded);

    let lost = sign_in(&app, "lost@example.org").await;
    let other = Device::start(&server, sign_in(&app, "lost@example.org").await).await;
    other.client.revoke_device(lost.device_id).await.unwrap();
    let end = refused(&app, lost, InvalidTokenReason::DeviceRevoked).await;
    assert_eq!((end.clone(), end.must_sign_in(), end.must_wipe()), (End::DeviceRevoked, false, true));

    let gone = sign_in(&app, "gone@example.org").await;
    let other = Device::start(&server, sign_in(&app, "gone@example.org").await).await;
    delete_account(&app, &other, "gone@example.org").await;
    assert_eq!(refused(&app, gone, InvalidTokenReason::AccountDeleted).await, End::AccountDeleted);

    let session = sign_in(&app, "late@example.org").await;
    app.advance(Duration::from_hours(31 * 24));
    assert_eq!(refused(&app, session, InvalidTokenReason::Expired).await, End::Expired);
}

async fn delete_account(app: &TestApp, device: &Device, email: &str) {
    let before = http::codes(app.mail(), email);
    let challenge = at(app.address()).request_code_for(email, CodePurpose::Delete).await.unwrap();
    let code = new_code(app.mail(), email, &before).await;
    device.client.delete_account(&challenge, &code).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_client_ends_with_its_session() {
    let app = TestApp::start(&[]);
    let mut one = Device::join(&app, "alice@example.org").await;
    let mut other = Device::join(&app, "alice@example.org").await;
    one.client.revoke_device(other.id()).await.unwrap();
    assert_eq!(other.ended().await, End::DeviceRevoked);

    let session = one.client.session();
    one.client.log_out().await.unwrap();
    assert_eq!(one.ended().await, End::LoggedOut);

    let mut one = Device::start(&at(app.address()), sign_in(&app, "alice@example.org").await).await;
    assert_ne!(one.id(), session.device_id);
    delete_account(&app, &one, "alice@example.org").await;
    assert_eq!(one.ended().await, End::AccountDeleted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_connection_of_the_device_displaces_the_first() {
    let app = TestApp::start(&[]);
    let mut first = Device::join(&app, "alice@example.org").await;
    let second = Device::start(&at(app.address()), first.client.session()).await;
    second.client.connected().await.unwrap();
    assert_eq!(first.ended().await, End::Displaced);
    assert!(!Session::load(&first.storage).await.unwrap().unwrap().has_ended());
    // The first does not come back: the second stays.
    second.client.devices().await.unwrap();
    assert!(second.client.connected().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_be_reached_is_an_error_of_sign_in_that_can_be_repeated() {
    let nowhere = crate::support::server::ReservedPort::new();
    let error = at(nowhere.address).request_code("alice@example.org").await.unwrap_err();
    assert!(matches!(error, HttpError::Connect { .. }) && error.retryable(), "{error}");
    assert_eq!(error.code(), None);
}
