//! Web Push, with a service that verifies and a user agent that decrypts.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hyper::Version;
use ring::signature::ECDSA_P256_SHA256_FIXED;
use sealwire_push::{Nonce, Notification, Outcome, Payload, Reason, Urgency};

use crate::support::{
    Jwt, NOW, Script, Service, Speaks, UserAgent, answer, answer_with, sender, sender_with_names, subscribe, wake,
    web_push_settings,
};

#[tokio::test]
async fn a_user_agent_decrypts_what_the_service_verified() {
    let service = Service::start(Speaks::Http1, |_| answer(201, "")).await;
    let sender = sender(web_push_settings());
    let (first, second) = (UserAgent::new(), UserAgent::new());
    let endpoint = service.url("/push/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV?a=b");
    assert_eq!(sender.send(&first.target(&endpoint, &sender), &wake()).await, Outcome::Delivered);
    let confirm = Notification {
        payload: Payload::Confirm { nonce: Nonce::new([0xfb; 16]) },
        urgency: Urgency::Normal,
        time_to_live: Duration::from_mins(10),
    };
    assert_eq!(sender.send(&second.target(&endpoint, &sender), &confirm).await, Outcome::Delivered);

    let received = service.received();
    for request in received.iter() {
        assert_eq!(request.path, "/push/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV?a=b");
        assert_eq!(request.header("content-encoding"), "aes128gcm");
        let authorization = request.header("authorization").strip_prefix("vapid t=").unwrap();
        let (token, key) = authorization.split_once(", k=").unwrap();
        assert_eq!(Some(key), sender.vapid_public_key());
        let token = Jwt::parse(token);
        token.verify(&ECDSA_P256_SHA256_FIXED, &URL_SAFE_NO_PAD.decode(key).unwrap());
        let origin = format!("http://{}", service.address);
        let claims = serde_json::json!({"aud": origin, "exp": NOW + 43_200, "sub": "mailto:operator@example.test"});
        assert_eq!(token.claims, claims);
    }
    let of = |index: usize| ["ttl", "urgency", "topic"].map(|name| received[index].header(name).to_owned());
    assert_eq!(of(0), ["3600", "high", "sealwire-wake"]);
    assert_eq!(of(1), ["600", "normal", "sealwire-confirm"]);
    assert_eq!(received[0].body.len(), received[1].body.len());
    assert_eq!(first.decrypt(&received[0].body), r#"{"sealwire":"wake"}"#);
    assert_eq!(second.decrypt(&received[1].body), r#"{"sealwire":"confirm","nonce":"-_v7-_v7-_v7-_v7-_v7-w"}"#);
}

#[tokio::test]
async fn https_is_spoken_in_either_version_with_a_valid_certificate() {
    for (speaks, version) in [(Speaks::Https1, Version::HTTP_11), (Speaks::Https2, Version::HTTP_2)] {
        let service = Service::start(speaks, |_| answer(201, "")).await;
        let sender = sender_with_names(web_push_settings(), &Script::new(&[&["127.0.0.1"]]));
        let valid = subscribe(&service.https_url("push.example.test", "/a"), &sender);
        assert_eq!(sender.send(&valid, &wake()).await, Outcome::Delivered);
        let literal = subscribe(&service.https_url("127.0.0.1", "/b"), &sender);
        assert_eq!(sender.send(&literal, &wake()).await, Outcome::Delivered);
        let other = subscribe(&service.https_url("other.example.test", "/c"), &sender);
        assert_eq!(sender.send(&other, &wake()).await, Outcome::Later { wait: None, reason: Reason::Tls });
        let received: Vec<_> =
            service.received().iter().map(|request| (request.path.clone(), request.version)).collect();
        assert_eq!(received, [("/a".to_owned(), version), ("/b".to_owned(), version)]);
    }
}

#[tokio::test]
async fn answers_decide_what_happens_next() {
    let service = Service::start(Speaks::Http1, |request| match request.path.as_str() {
        "/gone" => answer(410, "gone"),
        "/unknown" => answer(404, ""),
        "/many" => answer_with(429, "retry-after", "17"),
        "/down" => answer_with(503, "retry-after", "Fri, 15 Jan 2027 08:02:00 GMT"),
        "/broken" => answer(500, ""),
        "/other-key" => answer(403, "the key does not match the subscription"),
        _ => answer(202, ""),
    })
    .await;
    let sender = sender(web_push_settings());
    let later = |seconds, reason| Outcome::Later { wait: Some(Duration::from_secs(seconds)), reason };
    for (path, outcome) in [
        ("/", Outcome::Delivered),
        ("/gone", Outcome::Gone),
        ("/unknown", Outcome::Gone),
        ("/many", later(17, Reason::RateLimited)),
        ("/down", later(120, Reason::ServerError)),
        ("/broken", Outcome::Later { wait: None, reason: Reason::ServerError }),
        ("/other-key", Outcome::Failed(Reason::Rejected)),
    ] {
        assert_eq!(sender.send(&subscribe(&service.url(path), &sender), &wake()).await, outcome, "{path}");
    }
}

#[tokio::test]
async fn connections_are_kept_once_an_origin_is_proven() {
    let service = Service::start(Speaks::Http1, |_| answer(201, "created")).await;
    let sender = sender(web_push_settings());
    let target = subscribe(&service.url("/"), &sender);
    for _ in 0..40 {
        assert_eq!(sender.send(&target, &wake()).await, Outcome::Delivered);
    }
    // 32 answers prove an origin, each over a connection of its own.
    assert_eq!(service.connections(), 33);
}

#[tokio::test]
async fn what_is_not_configured_is_not_sent() {
    let sender = sender(crate::support::settings());
    assert_eq!(sender.kinds(), []);
    assert_eq!(sender.vapid_public_key(), None);
    let service = Service::start(Speaks::Http1, |_| answer(201, "")).await;
    let outcome = sender.send(&subscribe(&service.url("/"), &sender), &wake()).await;
    assert_eq!(outcome, Outcome::Failed(Reason::NotConfigured));
    assert_eq!(service.connections(), 0);
}
