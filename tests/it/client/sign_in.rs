//! Signing in with the library.

use std::sync::{Arc, Mutex};

use sealwire::domain::Suite;
use sealwire_client::{Code, HttpError, Server as Library};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::{Device, at, code, session, sign_in};
use crate::support::{KeySet, Server, TestApp};

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

/// A server that asks for a proof of work, and records the bodies of requests.
async fn asks_for_work() -> (Library, Arc<Mutex<Vec<Value>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = at(listener.local_addr().unwrap());
    let bodies = Arc::<Mutex<Vec<Value>>>::default();
    let seen = bodies.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut request = Vec::new();
            let body = loop {
                client.read_buf(&mut request).await.unwrap();
                let text = String::from_utf8_lossy(&request);
                if let Some(body) = text.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok()) {
                    break body;
                }
            };
            let body: Value = body;
            let proven = body.get("proof").is_some();
            seen.lock().unwrap().push(body);
            let (status, reply) = if proven {
                let id = "67e55044-10b1-426f-9247-bb680e5fe0c8";
                ("202 Accepted", json!({ "challenge_id": id, "expires_in_s": 600, "resend_in_s": 30 }))
            } else {
                let proof = json!({ "algorithm": "sha256-leading-zeros", "bits": 14, "salt": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYX" });
                let error = json!({ "code": "rate_limited", "message": "m", "retryable": true, "retry_after_ms": 1000, "details": { "proof": proof } });
                ("429 Too Many Requests", json!({ "error": error }))
            };
            let reply = reply.to_string();
            let response = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{reply}", reply.len());
            client.write_all(response.as_bytes()).await.unwrap();
        }
    });
    (server, bodies)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_of_work_is_computed_if_the_server_asks_for_it() {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let (server, bodies) = asks_for_work().await;
    let challenge = server.request_code("alice@example.org").await.unwrap();
    assert_eq!(challenge.expires_in.as_secs(), 600);
    let bodies = bodies.lock().unwrap().clone();
    assert_eq!(bodies.len(), 2);
    assert_eq!(bodies[0], json!({ "email": "alice@example.org", "purpose": "sign_in" }));
    assert_eq!((&bodies[1]["email"], &bodies[1]["purpose"]), (&json!("alice@example.org"), &json!("sign_in")));
    let decode = |name: &str| URL_SAFE_NO_PAD.decode(bodies[1]["proof"][name].as_str().unwrap()).unwrap();
    let hash: [u8; 32] = Sha256::digest([decode("salt"), decode("nonce")].concat()).into();
    assert_eq!((hash[0], hash[1] >> 2), (0, 0), "14 zero bits");
}
