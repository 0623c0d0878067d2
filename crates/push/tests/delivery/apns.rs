//! APNs, with a service that speaks HTTP/2 only and verifies.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::Version;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use sealwire_push::{
    ApnsKey, ApnsSettings, ApnsTarget, Kind, Nonce, Notification, Outcome, Payload, Reason, Settings, Target, Urgency,
    VapidKey,
};
use tokio::task::JoinSet;

use crate::support::{
    Answer, Clock, Jwt, NOW, Received, Script, Service, Speaks, answer, answer_with, sender, sender_with_clock,
    sender_with_names, settings, wake,
};

const TOKEN: &str = "00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0";

struct Key {
    text: String,
    public: Vec<u8>,
}

impl Key {
    fn new() -> Self {
        let text = VapidKey::generate().unwrap();
        let der = STANDARD.decode(text.as_str()).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &SystemRandom::new()).unwrap();
        let public = key.public_key().as_ref().to_vec();
        Self { text: format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----", text.as_str()), public }
    }

    fn settings(&self, host: String, sandbox_host: String) -> Settings {
        let apns = ApnsSettings {
            key: ApnsKey::parse(&self.text).unwrap(),
            key_id: "ABC123DEFG".into(),
            team_id: "DEF123GHIJ".into(),
            host,
            sandbox_host,
            alert: "New message".into(),
        };
        Settings { apns: Some(apns), ..settings() }
    }

    fn verify(&self, request: &Received) -> Jwt {
        let token = Jwt::parse(request.header("authorization").strip_prefix("bearer ").unwrap());
        token.verify(&ECDSA_P256_SHA256_FIXED, &self.public);
        token
    }
}

fn target(is_sandbox: bool) -> Target {
    Target::Apns(ApnsTarget::parse(TOKEN, "org.example.app", is_sandbox).unwrap())
}

async fn start(respond: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> (Service, Settings, Key) {
    let service = Service::start(Speaks::Http2, respond).await;
    let key = Key::new();
    let settings = key.settings(service.url(""), service.url(""));
    (service, settings, key)
}

#[tokio::test]
async fn a_notification_has_the_headers_and_the_token_of_apns() {
    let (service, settings, key) = start(|_| answer(200, "")).await;
    let sender = sender(settings);
    assert_eq!(sender.kinds(), [Kind::Apns]);
    assert_eq!(sender.send(&target(false), &wake()).await, Outcome::Delivered);
    let confirm = Notification {
        payload: Payload::Confirm { nonce: Nonce::new([0; 16]) },
        urgency: Urgency::Normal,
        time_to_live: Duration::ZERO,
    };
    assert_eq!(sender.send(&target(false), &confirm).await, Outcome::Delivered);

    let received = service.received();
    for request in received.iter() {
        assert_eq!(request.version, Version::HTTP_2);
        assert_eq!(request.path, format!("/3/device/{TOKEN}"));
        assert_eq!(request.header("apns-topic"), "org.example.app");
        assert_eq!(request.header("apns-push-type"), "alert");
        let token = key.verify(request);
        assert_eq!(token.header, serde_json::json!({"alg": "ES256", "typ": "JWT", "kid": "ABC123DEFG"}));
        assert_eq!(token.claims, serde_json::json!({"iss": "DEF123GHIJ", "iat": NOW}));
    }
    let of = |index: usize| {
        ["apns-priority", "apns-expiration", "apns-collapse-id"].map(|name| received[index].header(name).to_owned())
    };
    assert_eq!(of(0), ["10".to_owned(), (NOW + 3600).to_string(), "sealwire-wake".to_owned()]);
    assert_eq!(of(1), ["5", "0", "sealwire-confirm"]);
    let aps = serde_json::json!({"alert": {"body": "New message"}, "mutable-content": 1});
    assert_eq!(received[0].json(), serde_json::json!({"aps": aps, "sealwire": "wake"}));
    let expected = serde_json::json!({"aps": aps, "sealwire": "confirm", "nonce": "AAAAAAAAAAAAAAAAAAAAAA"});
    assert_eq!(received[1].json(), expected);
    assert_eq!(received[0].headers["authorization"], received[1].headers["authorization"]);
}

#[tokio::test]
async fn many_notifications_share_one_connection() {
    let (service, settings, _) = start(|_| answer(200, "")).await;
    let sender = sender(settings);
    let mut sends = JoinSet::new();
    for _ in 0..100 {
        let sender = sender.clone();
        sends.spawn(async move { sender.send(&target(false), &wake()).await });
    }
    for outcome in sends.join_all().await {
        assert_eq!(outcome, Outcome::Delivered);
    }
    assert_eq!((service.received().len(), service.connections()), (100, 1));
}

#[tokio::test]
async fn apns_is_spoken_over_tls() {
    let service = Service::start(Speaks::Https2, |_| answer(200, "")).await;
    let host = service.https_url("push.example.test", "");
    let sender = sender_with_names(Key::new().settings(host.clone(), host), &Script::new(&[&["127.0.0.1"]]));
    assert_eq!(sender.send(&target(false), &wake()).await, Outcome::Delivered);
    assert_eq!(service.received()[0].version, Version::HTTP_2);
}

#[tokio::test]
async fn tokens_for_development_go_to_the_sandbox() {
    let host = Service::start(Speaks::Http2, |_| answer(200, "")).await;
    let sandbox = Service::start(Speaks::Http2, |_| answer(200, "")).await;
    let sender = sender(Key::new().settings(host.url(""), sandbox.url("")));
    assert_eq!(sender.send(&target(true), &wake()).await, Outcome::Delivered);
    assert_eq!((host.connections(), sandbox.received().len()), (0, 1));
    assert_eq!(sender.send(&target(false), &wake()).await, Outcome::Delivered);
    assert_eq!((host.received().len(), sandbox.received().len()), (1, 1));
}

#[tokio::test]
async fn the_token_is_renewed_after_fifty_minutes() {
    let (service, settings, key) = start(|_| answer(200, "")).await;
    let clock = Clock::new();
    let sender = sender_with_clock(settings, &clock);
    for pause in [0, 2999, 1] {
        clock.advance(pause);
        assert_eq!(sender.send(&target(false), &wake()).await, Outcome::Delivered);
    }
    let issued: Vec<_> = service.received().iter().map(|request| key.verify(request).claims["iat"].clone()).collect();
    assert_eq!(issued, [NOW, NOW, NOW + 3000]);
}

#[tokio::test]
async fn an_expired_token_is_renewed_at_once_but_not_more_often_than_apple_allows() {
    // The service's clock is ahead: it takes only tokens that are not older than the newest time it knows.
    let newest = Arc::new(std::sync::atomic::AtomicU64::new(NOW));
    let known = Arc::clone(&newest);
    let (service, settings, _) = start(move |request| {
        let token = Jwt::parse(request.header("authorization").strip_prefix("bearer ").unwrap());
        let is_new = token.claims["iat"].as_u64().unwrap() >= known.load(std::sync::atomic::Ordering::SeqCst);
        if is_new { answer(200, "") } else { answer(403, r#"{"reason":"ExpiredProviderToken"}"#) }
    })
    .await;
    let clock = Clock::new();
    let sender = sender_with_clock(settings, &clock);
    assert_eq!(sender.send(&target(false), &wake()).await, Outcome::Delivered);

    newest.store(NOW + 1, std::sync::atomic::Ordering::SeqCst);
    clock.advance(1199);
    let refused = Outcome::Later { wait: None, reason: Reason::Credentials };
    assert_eq!(sender.send(&target(false), &wake()).await, refused);
    assert_eq!(service.received().len(), 2, "no second try with the same token");
    clock.advance(1);
    assert_eq!(sender.send(&target(false), &wake()).await, Outcome::Delivered);
    assert_eq!(service.received().len(), 4);

    // A service that refuses new tokens too is not asked for ever.
    newest.store(u64::MAX, std::sync::atomic::Ordering::SeqCst);
    clock.advance(1200);
    assert_eq!(sender.send(&target(false), &wake()).await, refused);
    assert_eq!(service.received().len(), 6);
}

#[tokio::test]
async fn refusals_decide_what_happens_next() {
    let next = Arc::new(std::sync::Mutex::new(None));
    let answers = Arc::clone(&next);
    let (_service, settings, _) = start(move |_| answers.lock().unwrap().take().unwrap()).await;
    let sender = sender(settings);
    let later = |reason| Outcome::Later { wait: None, reason };
    let mut many = answer(429, r#"{"reason":"TooManyRequests"}"#);
    many.headers_mut().insert("retry-after", "9".parse().unwrap());
    let wait = Some(Duration::from_secs(9));
    for (refusal, outcome) in [
        (answer(410, r#"{"reason":"Unregistered","timestamp":1454948015990}"#), Outcome::Gone),
        (answer(400, r#"{"reason":"BadDeviceToken"}"#), Outcome::Gone),
        (answer(400, r#"{"reason":"DeviceTokenNotForTopic"}"#), Outcome::Failed(Reason::Rejected)),
        (answer(403, r#"{"reason":"InvalidProviderToken"}"#), later(Reason::Credentials)),
        (answer(404, r#"{"reason":"BadPath"}"#), Outcome::Failed(Reason::Rejected)),
        (many, Outcome::Later { wait, reason: Reason::RateLimited }),
        (answer(503, r#"{"reason":"Shutdown"}"#), later(Reason::ServerError)),
        (answer(500, "garbage"), later(Reason::ServerError)),
        (answer_with(307, "location", "https://push.example.org/"), Outcome::Failed(Reason::Redirected)),
    ] {
        let shown = format!("{refusal:?}");
        *next.lock().unwrap() = Some(refusal);
        assert_eq!(sender.send(&target(false), &wake()).await, outcome, "{shown}");
    }
}
