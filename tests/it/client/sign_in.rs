//! Signing in with the library.

use sealwire::domain::Suite;
use sealwire_client::{Code, CodePurpose, End, HttpError};

use super::{Device, at, code, new_code, session, sign_in};
use crate::{
    metrics::value,
    support::{KeySet, Server, TestApp, http::codes},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_code_signs_in_a_new_device_with_its_name_and_number() {
    let app = TestApp::start(&[]);
    let server = at(app.address());
    let (challenge, code) = code(&app, "alice@example.org").await;
    let wrong = if code == "00000000" { "11111111" } else { "00000000" };
    let error = server.sign_in(&challenge, wrong).await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), (Some(Code::InvalidCode), false));

    // The challenge can be stored until the person has typed the code.
    let challenge = serde_json::from_str(&serde_json::to_string(&challenge).unwrap()).unwrap();
    let spaced = format!("{} {}", &code[..4], &code[4..]);
    let sign_in = server.sign_in(&challenge, &spaced).device_name("Alice's phone").registration_id(4242);
    let session = session(sign_in.await.unwrap());
    let checked = server.check_session(session.token()).await.unwrap();
    assert_eq!((checked.user_id, checked.device_id), (session.user_id, session.device_id));
    let device = Device::start(&server, session).await;
    let devices = device.client.devices().await.unwrap();
    assert_eq!((devices[0].name.as_deref(), devices[0].registration_id), (Some("Alice's phone"), 4242));
    device.client.rename_device(device.id(), "Alice's old phone").await.unwrap();
    assert_eq!(device.client.devices().await.unwrap()[0].name.as_deref(), Some("Alice's old phone"));
    assert_eq!(device.client.sessions().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_device_limit_the_person_chooses_a_device_to_replace() {
    let app = TestApp::start(&[("AUTH__MAX_DEVICES", "1")]);
    let old = sign_in(&app, "alice@example.org").await;
    let server = at(app.address());
    let (challenge, code) = code(&app, "alice@example.org").await;
    let error = server.sign_in(&challenge, &code).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::DeviceLimit));
    let devices = error.replaceable_devices().unwrap();
    assert_eq!(devices[0].device_id, old.device_id);
    let new = session(server.sign_in(&challenge, &code).replacing(devices[0].device_id).await.unwrap());
    assert_ne!(new.device_id, old.device_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_has_published_signs_in_again_with_a_proof() {
    let app = TestApp::start(&[]);
    let server = at(app.address());
    for suite in [Suite::SignalX3dh, Suite::Ed25519X3dh] {
        let email = format!("{suite}@example.org");
        let mut keys = KeySet::new(suite, 1);
        let device = Device::start(&server, sign_in(&app, &email).await).await;
        device.client.publish_keys(serde_json::from_value(keys.complete([])).unwrap()).await.unwrap();
        device.client.log_out().await.unwrap();

        let (challenge, code) = code(&app, &email).await;
        let again = server.sign_in(&challenge, &code).as_device(device.id());
        for wrong in [again, again.proof(b"not a signature")] {
            let error = wrong.await.unwrap_err();
            assert_eq!((error.code(), error.retryable()), (Some(Code::ProofRequired), false));
        }
        let proof = keys.sign(&challenge.proof_message(device.id()));
        let session = session(again.proof(&proof).await.unwrap());
        assert_eq!(session.device_id, device.id());
        let device = Device::start(&server, session).await;
        assert!(device.client.connected().await.unwrap().keys.identity_key.is_some(), "it has its keys");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_address_is_refused() {
    let app = TestApp::start(&[]);
    let error = at(app.address()).request_code("nobody").await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), (Some(Code::BadRequest), false));
    let error = at(app.address()).request_code("a\0@example.org").await.unwrap_err();
    assert!(matches!(error, HttpError::InvalidText(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn proofs_of_work_are_computed_if_the_server_asks_for_them() {
    let app = TestApp::start(&[("LIMITS__SIGNUP_PROOF_BITS", "12"), ("LIMITS__VERIFY_PER_NETWORK_MINUTE", "1")]);
    let server = at(app.address());
    let accepted = "sealwire_proofs_total{outcome=\"accepted\"}";
    let (challenge, code) = code(&app, "alice@example.org").await;
    assert!(value(app.admin(), accepted).await > 0.0, "every code costs a proof");
    let before = value(app.admin(), accepted).await;

    // The wrong guess uses up the minute of the network.
    let wrong = if code == "00000000" { "11111111" } else { "00000000" };
    assert_eq!(server.sign_in(&challenge, wrong).await.unwrap_err().code(), Some(Code::InvalidCode));
    let session = session(server.sign_in(&challenge, &code).await.unwrap());
    assert!(value(app.admin(), accepted).await > before);

    // Codes in requests on a socket are guesses, too.
    let mut device = Device::start(&server, session).await;
    let earlier = codes(app.mail(), "alice@example.org");
    let challenge = server.request_code_for("alice@example.org", CodePurpose::Delete).await.unwrap();
    let code = new_code(app.mail(), "alice@example.org", &earlier).await;
    let wrong = if code == "00000000" { "11111111" } else { "00000000" };
    let error = device.client.delete_account(&challenge, wrong).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::InvalidCode));
    device.client.delete_account(&challenge, &code).await.unwrap();
    assert_eq!(device.ended().await, End::AccountDeleted);
    assert!(value(app.admin(), accepted).await > before + 1.0, "a wrong guess is paid for, but not accepted");
}
