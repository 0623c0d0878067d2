//! FCM, with a service that grants access tokens and verifies what it is asked with.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaKeyPair};
use sealwire_push::{
    FcmSettings, FcmTarget, Kind, Limits, Nonce, Notification, Outcome, Payload, Reason, ServiceAccount, Settings,
    Target, Urgency,
};
use tokio::task::JoinSet;

use crate::support::{Answer, Clock, Jwt, NOW, Received, Service, Speaks, answer, sender_with_clock, settings, wake};

const KEY: &str = include_str!("keys/account-key.pem");

fn target() -> Target {
    Target::Fcm(FcmTarget::parse("bk3RNwTe3H0:CI2k_HHwgIpoDKCIZvvDMExUdFQ3P1").unwrap())
}

fn fcm_settings(service: &Service) -> Settings {
    let account = serde_json::json!({
        "type": "service_account",
        "project_id": "sealwire-test",
        "private_key_id": "key-1",
        "private_key": KEY,
        "client_email": "push@sealwire-test.example",
        "token_uri": service.url("/token"),
    });
    let account = ServiceAccount::parse(&account.to_string()).unwrap();
    Settings { fcm: Some(FcmSettings { account, host: service.url("") }), ..settings() }
}

/// A service that grants the access tokens `access-1`, `access-2` and so on, and answers messages by `respond`.
async fn start(respond: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> (Service, Arc<AtomicUsize>) {
    let granted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&granted);
    let service = Service::start(Speaks::Http1, move |request| {
        if request.path == "/token" {
            let number = count.fetch_add(1, SeqCst) + 1;
            return answer(
                200,
                &format!(r#"{{"access_token":"access-{number}","expires_in":3599,"token_type":"Bearer"}}"#),
            );
        }
        respond(request)
    })
    .await;
    (service, granted)
}

#[tokio::test]
async fn a_message_is_sent_with_the_access_token_of_the_account() {
    let (service, _) = start(|_| answer(200, r#"{"name":"projects/sealwire-test/messages/0:1"}"#)).await;
    let sender = sender_with_clock(fcm_settings(&service), &Clock::new());
    assert_eq!(sender.kinds(), [Kind::Fcm]);
    assert_eq!(sender.send(&target(), &wake()).await, Outcome::Delivered);
    let confirm = Notification {
        payload: Payload::Confirm { nonce: Nonce::new([0; 16]) },
        urgency: Urgency::Normal,
        time_to_live: Duration::from_mins(10),
    };
    assert_eq!(sender.send(&target(), &confirm).await, Outcome::Delivered);

    let received = service.received();
    assert_eq!(received.len(), 3);
    let asked = &received[0];
    assert_eq!(asked.header("content-type"), "application/x-www-form-urlencoded");
    let form = std::str::from_utf8(&asked.body).unwrap();
    let grant = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=";
    let assertion = Jwt::parse(form.strip_prefix(grant).unwrap());
    assertion.verify(&RSA_PKCS1_2048_8192_SHA256, &public_key());
    assert_eq!(assertion.header, serde_json::json!({"alg": "RS256", "typ": "JWT", "kid": "key-1"}));
    let claims = serde_json::json!({
        "iss": "push@sealwire-test.example",
        "scope": "https://www.googleapis.com/auth/firebase.messaging",
        "aud": service.url("/token"),
        "iat": NOW,
        "exp": NOW + 3600,
    });
    assert_eq!(assertion.claims, claims);

    for request in &received[1..] {
        assert_eq!(request.path, "/v1/projects/sealwire-test/messages:send");
        assert_eq!(request.header("authorization"), "Bearer access-1");
        assert_eq!(request.header("content-type"), "application/json");
    }
    let token = "bk3RNwTe3H0:CI2k_HHwgIpoDKCIZvvDMExUdFQ3P1";
    let expected = serde_json::json!({"message": {
        "token": token,
        "data": {"sealwire": "wake"},
        "android": {"priority": "HIGH", "ttl": "3600s", "collapse_key": "sealwire-wake"},
    }});
    assert_eq!(received[1].json(), expected);
    let expected = serde_json::json!({"message": {
        "token": token,
        "data": {"sealwire": "confirm", "nonce": "AAAAAAAAAAAAAAAAAAAAAA"},
        "android": {"priority": "NORMAL", "ttl": "600s", "collapse_key": "sealwire-confirm"},
    }});
    assert_eq!(received[2].json(), expected);
}

fn public_key() -> Vec<u8> {
    let base64: String = KEY.lines().filter(|line| !line.starts_with("-----")).collect();
    RsaKeyPair::from_pkcs8(&STANDARD.decode(base64).unwrap()).unwrap().public().as_ref().to_vec()
}

#[tokio::test]
async fn many_sends_ask_for_one_access_token_until_it_ends() {
    let (service, granted) = start(|_| answer(200, "{}")).await;
    let clock = Clock::new();
    let sender = sender_with_clock(fcm_settings(&service), &clock);
    let send_all = async || {
        let mut sends = JoinSet::new();
        for _ in 0..50 {
            let sender = sender.clone();
            sends.spawn(async move { sender.send(&target(), &wake()).await });
        }
        for outcome in sends.join_all().await {
            assert_eq!(outcome, Outcome::Delivered);
        }
    };
    send_all().await;
    assert_eq!(granted.load(SeqCst), 1);
    clock.advance(3298);
    send_all().await;
    assert_eq!(granted.load(SeqCst), 1);
    clock.advance(1);
    send_all().await;
    assert_eq!(granted.load(SeqCst), 2);
}

#[tokio::test]
async fn a_refused_access_token_is_renewed_once() {
    let (service, granted) = start(|request| {
        let is_new = request.header("authorization") == "Bearer access-2";
        answer(if is_new { 200 } else { 401 }, "{}")
    })
    .await;
    let sender = sender_with_clock(fcm_settings(&service), &Clock::new());
    assert_eq!(sender.send(&target(), &wake()).await, Outcome::Delivered);
    assert_eq!(sender.send(&target(), &wake()).await, Outcome::Delivered);
    assert_eq!(granted.load(SeqCst), 2);

    let (service, granted) = start(|_| answer(401, "{}")).await;
    let sender = sender_with_clock(fcm_settings(&service), &Clock::new());
    let refused = Outcome::Later { wait: None, reason: Reason::Credentials };
    assert_eq!(sender.send(&target(), &wake()).await, refused);
    assert_eq!((granted.load(SeqCst), service.received().len()), (2, 4));
}

#[tokio::test]
async fn a_refused_account_sends_nothing_and_is_not_asked_for_each_message() {
    let service = Service::start(Speaks::Http1, |_| answer(400, r#"{"error":"invalid_grant"}"#)).await;
    let sender = sender_with_clock(fcm_settings(&service), &Clock::new());
    for _ in 0..10 {
        let refused = Outcome::Later { wait: None, reason: Reason::Credentials };
        assert_eq!(sender.send(&target(), &wake()).await, refused);
    }
    let received = service.received();
    assert!(received.iter().all(|request| request.path == "/token"));
    assert!(received.len() < 10, "{} requests", received.len());
}

#[tokio::test]
async fn a_token_service_that_hangs_is_asked_by_one_send_at_a_time() {
    let service = Service::raw(|stream| async move {
        let _stream = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let limits = Limits { timeout: Duration::from_millis(500), ..Limits::default() };
    let sender = sender_with_clock(Settings { limits, ..fcm_settings(&service) }, &Clock::new());
    let mut sends = JoinSet::new();
    for _ in 0..16 {
        let sender = sender.clone();
        sends.spawn(async move { sender.send(&target(), &wake()).await });
    }
    for outcome in sends.join_all().await {
        assert_eq!(outcome, Outcome::Later { wait: None, reason: Reason::Timeout });
    }
    assert_eq!(service.connections(), 1);
}

#[tokio::test]
async fn refusals_decide_what_happens_next() {
    let next = Arc::new(std::sync::Mutex::new(None));
    let answers = Arc::clone(&next);
    let (service, _) = start(move |_| answers.lock().unwrap().take().unwrap()).await;
    let sender = sender_with_clock(fcm_settings(&service), &Clock::new());
    let error = |status, code: &str| {
        let details =
            format!(r#"[{{"@type":"type.googleapis.com/google.firebase.fcm.v1.FcmError","errorCode":"{code}"}}]"#);
        answer(status, &format!(r#"{{"error":{{"code":{status},"details":{details}}}}}"#))
    };
    let mut many = error(429, "QUOTA_EXCEEDED");
    many.headers_mut().insert("retry-after", "60".parse().unwrap());
    let later = |wait, reason| Outcome::Later { wait, reason };
    for (refusal, outcome) in [
        (error(404, "UNREGISTERED"), Outcome::Gone),
        (answer(404, "<html>"), later(None, Reason::Credentials)),
        (error(400, "INVALID_ARGUMENT"), Outcome::Failed(Reason::Rejected)),
        (error(403, "SENDER_ID_MISMATCH"), Outcome::Failed(Reason::Rejected)),
        (many, later(Some(Duration::from_mins(1)), Reason::RateLimited)),
        (error(503, "UNAVAILABLE"), later(None, Reason::ServerError)),
        (answer(200, "garbage"), Outcome::Delivered),
    ] {
        let shown = format!("{refusal:?}");
        *next.lock().unwrap() = Some(refusal);
        assert_eq!(sender.send(&target(), &wake()).await, outcome, "{shown}");
    }
}
