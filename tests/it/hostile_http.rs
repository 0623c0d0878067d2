//! Invalid input over HTTP: every endpoint and every field of its body gets the documented error.

use reqwest::{Client, Method};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    hostile::{
        FieldType::{Map, Number, Text},
        PLACEHOLDER, World, field, hostile_versions, optional, without_placeholder,
    },
    support::{
        Codec, Server, TestApp,
        http::{call, challenge, post},
        problem::assert_problem,
        sign_in, sign_in_as,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_every_http_body_refuses_invalid_values() {
    let app = TestApp::start(&[("LIMITS__VERIFY_PER_NETWORK_MINUTE", "0")]);
    let verify = |more: Value| {
        let mut body = json!({ "challenge_id": Uuid::nil(), "email": "me@example.org", "code": "12345678" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let fields = [
        field("otp", json!({ "email": PLACEHOLDER }), Text),
        optional("otp", json!({ "email": "me@example.org", "purpose": PLACEHOLDER }), Text),
        field("verify", verify(json!({ "challenge_id": PLACEHOLDER })), Text),
        field("verify", verify(json!({ "email": PLACEHOLDER })), Text),
        field("verify", verify(json!({ "code": PLACEHOLDER })), Text),
        optional("verify", verify(json!({ "device": PLACEHOLDER })), Map),
        optional("verify", verify(json!({ "device": { "id": PLACEHOLDER } })), Text),
        optional("verify", verify(json!({ "device": { "name": PLACEHOLDER } })), Text),
        optional("verify", verify(json!({ "device": { "registration_id": PLACEHOLDER } })), Number),
        optional("verify", verify(json!({ "replace_device_id": PLACEHOLDER })), Text),
    ];
    let send = |path: String, body: Vec<u8>| {
        let url = format!("http://{}{path}", app.address());
        async move {
            let response = Client::new().post(url).body(body).send().await.unwrap();
            (response.status().as_u16(), response.json::<Value>().await.unwrap())
        }
    };
    let assert_bad = async |path: String, body: Vec<u8>| {
        let shown: String = String::from_utf8_lossy(&body).chars().take(200).collect();
        let (status, answer) = send(path, body).await;
        assert_eq!(assert_problem(&answer["error"], "bad_request", &shown), status, "{shown}");
    };
    for field in &fields {
        let path = format!("/v1/auth/{}", field.op);
        for body in hostile_versions(Codec::Json, field, &field.request) {
            assert_bad(path.clone(), body).await;
        }
        if !field.optional {
            assert_bad(path, without_placeholder(&field.request).to_string().into_bytes()).await;
        }
    }
    let id = Uuid::nil();
    let wrong = [
        json!({ "code": "1234567" }),
        json!({ "code": "123456789" }),
        json!({ "code": "1234567x" }),
        json!({ "code": "" }),
        json!({ "device": { "registration_id": 0 } }),
        json!({ "device": { "registration_id": 16381 } }),
        json!({ "device": { "name": "" } }),
        json!({ "device": { "name": "x".repeat(65) } }),
        json!({ "device": { "id": id }, "replace_device_id": id }),
    ];
    for more in wrong {
        assert_bad("/v1/auth/verify".to_owned(), verify(more).to_string().into_bytes()).await;
    }
    for path in ["/v1/auth/otp", "/v1/auth/verify"] {
        for body in [&b""[..], b"null", b"[]", b"{}", b"\"x\"", b"{", b"{}{}", b"\xff\xfe", b"{\"email\":\"\xff\"}"] {
            assert_bad(path.to_owned(), body.to_vec()).await;
        }
        let padded = |length: usize| [b"{}".to_vec(), vec![b' '; length - 2]].concat();
        assert_bad(path.to_owned(), padded(64 * 1024)).await;
        let (status, answer) = send(path.to_owned(), padded(64 * 1024 + 1)).await;
        assert_eq!((assert_problem(&answer["error"], "payload_too_large", path), status), (413, 413));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_are_not_found_and_invalid_tokens_are_unauthorized() {
    let app = TestApp::start(&[]);
    let token = sign_in(&app, "me@example.org").await.token;
    let nowhere = [
        (Method::GET, "/"),
        (Method::GET, "/v1"),
        (Method::GET, "/v1/auth"),
        (Method::GET, "/v1/auth/otp"),
        (Method::PUT, "/v1/auth/otp"),
        (Method::GET, "/v1/auth/verify"),
        (Method::POST, "/v1/auth/session"),
        (Method::GET, "/v1/auth/session/"),
        (Method::GET, "/v1/auth/%73ession%00"),
        (Method::POST, "/v1/socket"),
        (Method::DELETE, "/v1/socket"),
        (Method::POST, "/healthz"),
        (Method::GET, "/status"),
        (Method::GET, "/metrics"),
    ];
    for (method, path) in nowhere {
        let what = format!("{method} {path}");
        let (status, body) = call(&app, method, path, Some(&token), None).await;
        assert_eq!(assert_problem(&body["error"], "not_found", &what), status.as_u16(), "{what}");
    }
    let (short, long, padded) = (&token[1..], format!("{token}A"), format!("{token}="));
    let tokens = [None, Some(""), Some("x"), Some(short), Some(&long), Some(&padded), Some(&"A".repeat(5_000))];
    for token in tokens {
        for method in [Method::GET, Method::DELETE] {
            let (status, body) = call(&app, method, "/v1/auth/session", token, None).await;
            assert_eq!(assert_problem(&body["error"], "unauthorized", "a bad token"), status.as_u16());
        }
    }
    assert_eq!(call(&app, Method::GET, "/v1/auth/session", Some(&token), None).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_with_a_foreign_device_changes_nothing_and_the_code_stays_usable() {
    let world = World::new(Codec::Json).await;
    let World { app, me, revoked, other, .. } = &world;
    let before = world.state().await;
    let (challenge_id, code) = challenge(app, &me.email).await;
    let request = |more: Value| {
        let mut body = json!({ "challenge_id": challenge_id, "email": me.email, "code": code });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let refuse = async |body: Value, code: &str| {
        let (status, answer) = post(app, "/v1/auth/verify", body.clone()).await;
        assert_eq!(assert_problem(&answer["error"], code, &body.to_string()), status.as_u16());
    };
    // More than five requests: none of them counts as an attempt.
    for _ in 0..3 {
        for device in [&other.device, &revoked.device, &Uuid::nil().to_string()] {
            refuse(request(json!({ "device": { "id": device } })), "unknown_device").await;
            refuse(request(json!({ "replace_device_id": device })), "unknown_device").await;
        }
        refuse(request(json!({ "challenge_id": Uuid::nil() })), "invalid_code").await;
        refuse(request(json!({ "email": other.email })), "invalid_code").await;
        refuse(request(json!({ "code": "1234" })), "bad_request").await;
    }
    assert_eq!(world.state().await, before);
    let wrong = if code == "00000000" { "00000001" } else { "00000000" };
    for _ in 0..4 {
        refuse(request(json!({ "code": wrong })), "invalid_code").await;
    }
    let spaced = format!(" {} - {} ", &code[..4], &code[4..]);
    let (status, answer) = post(app, "/v1/auth/verify", request(json!({ "code": spaced }))).await;
    assert_eq!((status.as_u16(), &answer["user_id"]), (201, &json!(me.user)), "{answer}");
    let before = world.state().await;
    refuse(request(json!({})), "invalid_code").await;
    let (challenge_id, code) = challenge(app, &me.email).await;
    let guess = |code: &str| json!({ "challenge_id": challenge_id, "email": me.email, "code": code });
    let wrong = if code == "00000000" { "00000001" } else { "00000000" };
    for _ in 0..5 {
        refuse(guess(wrong), "invalid_code").await;
    }
    refuse(guess(&code), "too_many_attempts").await;
    refuse(guess(wrong), "too_many_attempts").await;
    sign_in_as(app, "third@example.org", json!({ "device": { "name": "x".repeat(64), "registration_id": 16380 } }))
        .await;
    assert_eq!(world.state().await, before);
}
