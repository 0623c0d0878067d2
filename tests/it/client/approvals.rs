//! Signing in to a locked account.

use std::time::Duration;

use sealwire_client::{
    Approval, ApprovalState, Code, Event, Server as Library, SignIn, protocol::approvals::PendingApproval,
};

use super::{Device, at, code};
use crate::support::{Server, TestApp};

const EMAIL: &str = "alice@example.org";

/// Asks to sign in on a new device. The request is stored and read back, as an app does over a restart.
async fn request(app: &TestApp, server: &Library) -> Approval {
    // A request is decided by devices that are older.
    app.advance(Duration::from_mins(1));
    let (challenge, code) = code(app, EMAIL).await;
    let SignIn::Approval(approval) = server.sign_in(&challenge, &code).device_name("Tablet").await.unwrap() else {
        panic!("a locked account asks for an approval")
    };
    serde_json::from_value(serde_json::to_value(&approval).unwrap()).unwrap()
}

async fn requested(device: &mut Device) -> PendingApproval {
    device
        .event("a request", |event| match event {
            Event::ApprovalRequested(pending) => Some(*pending),
            _ => None,
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_device_waits_until_another_one_approves() {
    let app = TestApp::with_clock(&[]);
    let server = at(app.address());
    let mut old = Device::join(&app, EMAIL).await;
    let key = old.client.new_recovery_key();
    old.client.lock_account(&key, None, None).await.unwrap();
    let status = old.client.account_status().await.unwrap();
    assert_eq!((status.locked, status.wait_s), (true, Some(7 * 24 * 3600)));

    // A wrong number denies.
    let approval = request(&app, &server).await;
    assert!(matches!(server.approval(&approval).await.unwrap(), ApprovalState::Pending { .. }));
    let pending = requested(&mut old).await;
    assert_eq!((pending.request_id, pending.device_name.as_deref()), (approval.request_id, Some("Tablet")));
    let wrong = if approval.number == "00" { "01" } else { "00" };
    let error = old.client.approve(pending.request_id, wrong).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Denied));
    let error = server.wait_for_approval(&approval).await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), (Some(Code::Denied), false));

    // So does a person.
    let approval = request(&app, &server).await;
    old.client.deny(approval.request_id).await.unwrap();
    assert_eq!(server.approval(&approval).await.unwrap_err().code(), Some(Code::Denied));

    // The right number approves, while the new device waits.
    let approval = request(&app, &server).await;
    let waiting = tokio::spawn({
        let (server, sign_in) = (server.clone(), SignIn::Approval(approval.clone()));
        async move { sign_in.finish(&server, |_| {}).await }
    });
    old.client.approve(approval.request_id, &approval.number).await.unwrap();
    let session = waiting.await.unwrap().unwrap();
    let new = Device::start(&server, session).await;
    assert_eq!(new.client.devices().await.unwrap()[1].name.as_deref(), Some("Tablet"));
    assert_eq!(server.approval(&approval).await.unwrap_err().code(), Some(Code::NotFound), "its session was used");

    // With the recovery key nobody has to approve.
    let (challenge, code) = code(&app, EMAIL).await;
    let error = server.sign_in(&challenge, &code).recovery_key(&[7; 32]).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::InvalidCode));
    let sign_in = server.sign_in(&challenge, &code).recovery_key(&key).await.unwrap();
    assert!(matches!(sign_in, SignIn::Session(_)));

    old.client.unlock_account(Some(&key)).await.unwrap();
    assert!(!old.client.account_status().await.unwrap().locked);
}
