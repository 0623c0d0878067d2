//! The details of `bad_request`: the path of the invalid field and what is expected there.

use serde_json::{Value, json};

use crate::support::{Codec, KeySet, Socket, TestApp, http::post, problem::assert_problem, sign_in};

const ID: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";
const SECRET: &str = "what the client sent";

/// Checks code and details; `path` is null if no single field is at fault.
fn assert_fault(error: &Value, path: &Value, what: &str) {
    assert_problem(error, "bad_request", what);
    assert_eq!(error["details"]["path"], *path, "{what}: {error}");
    if path.is_null() {
        assert!(error.get("details").is_none(), "{what}: {error}");
    } else {
        let expected = error["details"]["expected"].as_str().unwrap_or_default();
        assert!(!expected.is_empty() && error["details"].as_object().unwrap().len() == 2, "{what}: {error}");
    }
    assert!(!error.to_string().contains(SECRET), "the error does not repeat the value: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_over_the_socket_names_the_field() {
    let app = TestApp::start(&[]);
    let token = sign_in(&app, "alice@example.org").await.token;
    let mut keys = KeySet::new(sealwire::domain::Suite::SignalX3dh, 1);
    let good = keys.complete([1, 2]);
    let with = |pointer: &str, value: Value| {
        let mut set = good.clone();
        *set.pointer_mut(pointer).unwrap() = value;
        set
    };
    let message = |field: &str, value: Value| {
        let mut message = json!({ "device_id": ID, "type": 1, "content": "aGk=" });
        message[field] = value;
        json!({ "message_id": ID, "to": ID, "messages": [message] })
    };
    let many: Vec<String> = (0..101).map(|id| uuid::Uuid::from_u128(id).to_string()).collect();
    let mut twice = good.clone();
    twice["one_time_prekeys"][1]["key_id"] = twice["one_time_prekeys"][0]["key_id"].clone();
    let table = [
        ("keys.fetch", json!({}), json!("user_id")),
        ("keys.fetch", json!({ "user_id": SECRET }), json!("user_id")),
        ("keys.fetch", json!({ "user_id": 5 }), json!("user_id")),
        ("keys.fetch", json!({ "user_id": ID, "device_ids": {} }), json!("device_ids")),
        ("keys.fetch", json!({ "user_id": ID, "device_ids": [ID, SECRET] }), json!("device_ids[1]")),
        ("keys.fetch", json!({ "user_id": ID, "device_ids": many }), json!("device_ids")),
        ("keys.fetch", json!([]), Value::Null),
        ("users.find", json!({ "email": SECRET }), json!("email")),
        ("devices.rename", json!({ "device_id": ID, "name": "" }), json!("name")),
        (
            "keys.publish",
            with("/one_time_prekeys/1/public_key", json!(SECRET)),
            json!("one_time_prekeys[1].public_key"),
        ),
        ("keys.publish", with("/one_time_prekeys/1", json!({ "key_id": 1 })), json!("one_time_prekeys[1].public_key")),
        ("keys.publish", with("/one_time_prekeys/1/key_id", json!(-1)), json!("one_time_prekeys[1].key_id")),
        (
            "keys.publish",
            with("/one_time_prekeys/1/key_id", json!(4_000_000_000u32)),
            json!("one_time_prekeys[1].key_id"),
        ),
        ("keys.publish", with("/one_time_prekeys", json!(SECRET)), json!("one_time_prekeys")),
        ("keys.publish", with("/signed_prekey/key_id", json!(4_000_000_000u32)), json!("signed_prekey.key_id")),
        ("keys.publish", with("/suite", json!(SECRET)), json!("suite")),
        ("keys.publish", twice, json!("one_time_prekeys[1].key_id")),
        ("messages.send", message("content", json!(5)), json!("messages[0].content")),
        ("messages.send", message("content", json!("")), json!("messages[0].content")),
        ("messages.send", message("type", json!(256)), json!("messages[0].type")),
        ("messages.send", message("device_id", Value::Null), json!("messages[0].device_id")),
        ("messages.send", json!({ "message_id": ID, "to": ID, "ttl_s": 1, "messages": [] }), json!("ttl_s")),
        ("messages.ack", json!({ "seqs": [1, SECRET] }), json!("seqs[1]")),
        ("messages.ack", json!({ "seqs": [1, (1u64 << 53)] }), json!("seqs[1]")),
    ];
    for codec in Codec::ALL {
        let socket = Socket::connect(&app, &token, codec).await;
        for (op, params, path) in &table {
            let what = format!("{codec:?} {op} {params}");
            assert_fault(&socket.refused(op, params.clone()).await, path, &what);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_over_http_names_the_field() {
    let app = TestApp::start(&[]);
    let verify = |field: &str, value: Value| {
        let mut body = json!({ "challenge_id": ID, "email": "alice@example.org", "code": "12345678", "device": {} });
        let (parent, name) = field.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[name] = value;
        body
    };
    let table = [
        ("/v1/auth/otp", json!({}), json!("email")),
        ("/v1/auth/otp", json!({ "email": SECRET }), json!("email")),
        ("/v1/auth/otp", json!({ "email": 5 }), json!("email")),
        ("/v1/auth/otp", json!([]), Value::Null),
        ("/v1/auth/otp", json!(SECRET), Value::Null),
        ("/v1/auth/verify", verify("/challenge_id", json!(SECRET)), json!("challenge_id")),
        ("/v1/auth/verify", verify("/code", json!(SECRET)), json!("code")),
        ("/v1/auth/verify", verify("/device", json!([])), json!("device")),
        ("/v1/auth/verify", verify("/device/name", json!("")), json!("device.name")),
        ("/v1/auth/verify", verify("/device/id", json!(SECRET)), json!("device.id")),
        ("/v1/auth/verify", verify("/device/registration_id", json!(0)), json!("device.registration_id")),
        ("/v1/auth/verify", verify("/replace_device_id", json!(7)), json!("replace_device_id")),
    ];
    for (path, body, field) in table {
        let (status, answer) = post(&app, path, body.clone()).await;
        assert_eq!(status, 400, "{path} {body}: {answer}");
        assert_fault(&answer["error"], &field, &format!("{path} {body}"));
    }
}
