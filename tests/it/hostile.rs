//! Invalid input over the socket: every field of every op, in both codecs, gets the documented error and changes
//! nothing. `hostile_http` does the same over HTTP.

use std::sync::atomic::{AtomicU32, Ordering};

use sealwire::domain::Suite;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use crate::support::{Codec, KeySet, Person, Socket, TestApp, problem::assert_problem, raw::encode, sign_in};

/// Placeholder for a hostile value. It is replaced after encoding, so that bytes that `Value` cannot hold can be sent.
pub const PLACEHOLDER: &str = "<the hostile value>";

/// The type of values that a field accepts, apart from null if the field is optional.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum FieldType {
    Text,
    Number,
    List,
    /// A list of numbers.
    Numbers,
    Map,
    Bool,
    /// `bin` in MessagePack.
    Bytes,
}

use FieldType::{Bool, Bytes, List, Map, Number, Numbers, Text};

/// Encoded hostile values, each with the field type that accepts it, if any does.
const JSON: &[(&str, Option<FieldType>)] = &[
    ("true", Some(Bool)),
    ("5", Some(Number)),
    ("-5", None),
    ("1.5", None),
    ("1.0", None),
    ("1e400", None),
    ("9007199254740993", None),
    ("18446744073709551615", None),
    ("340282366920938463463374607431768211456", None),
    (r#""x\u0000y""#, None),
    (r#""\ud800""#, None),
    (r#""\udc00\ud800""#, None),
    ("[]", Some(List)),
    ("[[]]", None),
    ("[null]", None),
    ("[5]", Some(Numbers)),
    ("{}", Some(Map)),
];

const MSGPACK: &[(&[u8], Option<FieldType>)] = &[
    (b"\xc3", Some(Bool)),
    (b"\x05", Some(Number)),
    (b"\xff", None),
    (b"\xd3\x80\0\0\0\0\0\0\0", None),
    (b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", None),
    (b"\xca\x3f\x80\0\0", None),
    (b"\xcb\x7f\xf0\0\0\0\0\0\0", None),
    (b"\xa3x\0y", None),
    // A str that is not UTF-8.
    (b"\xa3\xed\xa0\x80", None),
    (b"\xa2\xff\xfe", None),
    (b"\xc4\x00", None),
    (b"\xc4\x04text", Some(Bytes)),
    (b"\xd4\x01x", None),
    (b"\xd6\xff\0\0\0\0", None),
    (b"\x90", Some(List)),
    (b"\x91\x90", None),
    (b"\x91\xc0", None),
    (b"\x91\x05", Some(Numbers)),
    (b"\x80", Some(Map)),
];

/// A field of an op or of an HTTP body: a request with [`PLACEHOLDER`] in that field, the type that the field accepts,
/// and whether it may be absent or null.
pub struct Field {
    pub op: &'static str,
    pub request: Value,
    pub accepts: FieldType,
    pub optional: bool,
}

pub fn field(op: &'static str, request: Value, accepts: FieldType) -> Field {
    Field { op, request, accepts, optional: false }
}

pub fn optional(op: &'static str, request: Value, accepts: FieldType) -> Field {
    Field { op, request, accepts, optional: true }
}

/// Encodes the request once with each hostile value that this field must refuse.
pub fn hostile_versions(codec: Codec, field: &Field, request: &Value) -> Vec<Vec<u8>> {
    let (bytes, place) = (encode(codec, request), encode(codec, &json!(PLACEHOLDER)));
    let at = bytes.windows(place.len()).position(|part| part == place).expect("the request contains the placeholder");
    let put = |value: &[u8]| [&bytes[..at], value, &bytes[at + place.len()..]].concat();
    let is_accepted = |accepts| accepts == field.accepts || (accepts == List && field.accepts == Numbers);
    let refused = |accepts: &Option<FieldType>| !accepts.is_some_and(is_accepted);
    let mut versions: Vec<_> = match codec {
        Codec::Json => {
            JSON.iter().filter(|(_, accepts)| refused(accepts)).map(|(value, _)| put(value.as_bytes())).collect()
        }
        Codec::MsgPack => MSGPACK.iter().filter(|(_, accepts)| refused(accepts)).map(|(value, _)| put(value)).collect(),
    };
    if !field.optional {
        versions.push(put(if codec == Codec::Json { b"null" } else { b"\xc0" }));
    }
    versions
}

/// Request ids beyond those that [`Socket`] uses itself.
static NEXT_ID: AtomicU32 = AtomicU32::new(1_000_000);

/// Sends the frame that `frame` makes for a new request id, and returns the reply.
async fn send_frame(socket: &Socket, codec: Codec, frame: impl FnOnce(u32) -> Vec<u8>) -> Value {
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let reply = socket.expect_reply(id);
    let bytes = frame(id);
    let shown = String::from_utf8_lossy(&bytes).into_owned();
    socket
        .send(match codec {
            Codec::Json => Message::text(String::from_utf8(bytes).unwrap()),
            Codec::MsgPack => Message::binary(bytes),
        })
        .await;
    reply.await.unwrap_or_else(|_| panic!("the socket closed over {shown}"))
}

/// A user with two devices, one of them revoked, and another user. All devices have published keys.
pub struct World {
    pub app: TestApp,
    pub me: Person,
    pub socket: Socket,
    pub revoked: Person,
    pub other: Person,
}

impl World {
    pub async fn new(codec: Codec) -> Self {
        let app = TestApp::start(&[("LIMITS__FIND_PER_USER_HOUR", "0")]);
        let me = sign_in(&app, "me@example.org").await;
        let revoked = sign_in(&app, "me@example.org").await;
        let other = sign_in(&app, "other@example.org").await;
        for (seed, person) in [&me, &revoked, &other].into_iter().enumerate() {
            let socket = Socket::connect(&app, &person.token, Codec::Json).await;
            let keys = KeySet::new(Suite::SignalX3dh, seed as u64).complete(1..=30);
            socket.request("keys.publish", keys).await;
        }
        let socket = Socket::connect(&app, &me.token, codec).await;
        socket.request("devices.revoke", json!({ "device_id": revoked.device })).await;
        Self { app, me, socket, revoked, other }
    }

    /// Returns the keys and devices of both users, which hostile input must not change.
    pub async fn state(&self) -> Value {
        let mut state = Vec::new();
        let other = Socket::connect(&self.app, &self.other.token, Codec::Json).await;
        for socket in [&self.socket, &other] {
            state.push(socket.request("keys.status", json!({})).await);
            let mut list = socket.request("devices.list", json!({})).await;
            for device in list["devices"].as_array_mut().unwrap() {
                device.as_object_mut().unwrap().remove("last_seen");
            }
            state.push(list);
        }
        Value::Array(state)
    }

    fn socket_fields(&self) -> Vec<Field> {
        let user = &self.other.user;
        let key = |id: Value, key: Value| json!({ "one_time_prekeys": [{ "key_id": id, "public_key": key }] });
        let signed = |name: &str, part: &str| {
            let mut body = json!({ "key_id": 1, "public_key": "AAAA", "signature": "AAAA" });
            body[part] = json!(PLACEHOLDER);
            json!({ name: if name.ends_with("one_time") { json!([body]) } else { body } })
        };
        let mut fields = vec![
            optional("devices.rename", json!({ "device_id": PLACEHOLDER, "name": "x" }), Text),
            field("devices.rename", json!({ "name": PLACEHOLDER }), Text),
            field("devices.revoke", json!({ "device_id": PLACEHOLDER }), Text),
            field("sessions.end", json!({ "session_id": PLACEHOLDER }), Text),
            optional("account.delete", json!({ "challenge_id": PLACEHOLDER, "code": "12345678" }), Text),
            optional("account.delete", json!({ "challenge_id": Uuid::nil(), "code": PLACEHOLDER }), Text),
            field("account.change_email", json!({ "email": PLACEHOLDER }), Text),
            optional("account.change_email", json!({ "email": "a@b.example", "challenge_id": PLACEHOLDER }), Text),
            optional("account.change_email", json!({ "email": "a@b.example", "code": PLACEHOLDER }), Text),
            field("users.find", json!({ "email": PLACEHOLDER }), Text),
            optional("access.set", json!({ "strangers": "limit", "key": PLACEHOLDER }), Text),
            field("access.set", json!({ "strangers": PLACEHOLDER }), Text),
            optional("access.set", json!({ "strangers": "limit", "sealed": PLACEHOLDER }), Bool),
            field("blocks.add", json!({ "user_id": PLACEHOLDER }), Text),
            field("blocks.remove", json!({ "user_id": PLACEHOLDER }), Text),
            field("keys.fetch", json!({ "user_id": PLACEHOLDER }), Text),
            optional("keys.fetch", json!({ "user_id": user, "device_ids": PLACEHOLDER }), List),
            field("keys.fetch", json!({ "user_id": user, "device_ids": [PLACEHOLDER] }), Text),
            field("keys.claim", json!({ "user_id": PLACEHOLDER, "claim_id": Uuid::nil() }), Text),
            field("keys.claim", json!({ "user_id": user, "claim_id": PLACEHOLDER }), Text),
            optional(
                "keys.claim",
                json!({ "user_id": user, "claim_id": Uuid::nil(), "device_ids": PLACEHOLDER }),
                List,
            ),
            field("keys.claim", json!({ "user_id": user, "claim_id": Uuid::nil(), "device_ids": [PLACEHOLDER] }), Text),
            optional("keys.publish", json!({ "suite": PLACEHOLDER }), Text),
            optional("keys.publish", json!({ "identity_key": PLACEHOLDER }), Text),
            optional("keys.publish", json!({ "signed_prekey": PLACEHOLDER }), Text),
            optional("keys.publish", json!({ "one_time_prekeys": PLACEHOLDER }), List),
            optional("keys.publish", json!({ "pq_last_resort": PLACEHOLDER }), Text),
            optional("keys.publish", json!({ "pq_one_time": PLACEHOLDER }), List),
            field("keys.publish", json!({ "one_time_prekeys": [PLACEHOLDER] }), Text),
            field("keys.publish", key(json!(PLACEHOLDER), json!("AAAA")), Number),
            field("keys.publish", key(json!(1), json!(PLACEHOLDER)), Text),
        ];
        for name in ["signed_prekey", "pq_last_resort", "pq_one_time"] {
            fields.push(field("keys.publish", signed(name, "key_id"), Number));
            fields.push(field("keys.publish", signed(name, "public_key"), Text));
            fields.push(field("keys.publish", signed(name, "signature"), Text));
        }
        fields.push(optional("keys.publish", signed("signed_prekey", "expires_at"), Text));
        let message = |name: &str, value: Value| {
            let mut params = json!({ "message_id": Uuid::nil(), "to": user, "messages": [] });
            params[name] = value;
            params
        };
        let part = |name: &str| {
            let mut body = json!({ "device_id": Uuid::nil(), "type": 1, "content": "AAAA" });
            body[name] = json!(PLACEHOLDER);
            message("messages", json!([body]))
        };
        fields.extend([
            field("messages.send", message("message_id", json!(PLACEHOLDER)), Text),
            field("messages.send", message("to", json!(PLACEHOLDER)), Text),
            optional("messages.send", message("ephemeral", json!(PLACEHOLDER)), Bool),
            // No number among the hostile values is a valid `ttl_s`.
            optional("messages.send", message("ttl_s", json!(PLACEHOLDER)), Text),
            field("messages.send", message("messages", json!(PLACEHOLDER)), List),
            field("messages.send", message("messages", json!([PLACEHOLDER])), Text),
            field("messages.send", part("device_id"), Text),
            field("messages.send", part("type"), Number),
            field("messages.send", part("content"), Bytes),
            field("messages.ack", json!({ "seqs": PLACEHOLDER }), Numbers),
            field("messages.ack", json!({ "seqs": [PLACEHOLDER] }), Number),
        ]);
        fields
    }
}

/// Returns the value without the field that holds [`PLACEHOLDER`], at any depth.
pub fn without_placeholder(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, value)| **value != PLACEHOLDER);
            Value::Object(kept.map(|(key, value)| (key.clone(), without_placeholder(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_placeholder).collect()),
        other => other.clone(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_every_op_refuses_invalid_values() {
    for codec in Codec::ALL {
        let world = World::new(codec).await;
        let before = world.state().await;
        for field in world.socket_fields() {
            let request = |id: u32| json!({ "id": id, "op": field.op, "params": field.request });
            for version in 0..hostile_versions(codec, &field, &request(1)).len() {
                let mut sent = String::new();
                let reply = send_frame(&world.socket, codec, |id| {
                    let bytes = hostile_versions(codec, &field, &request(id)).swap_remove(version);
                    sent = String::from_utf8_lossy(&bytes).into_owned();
                    bytes
                })
                .await;
                assert_problem(&reply["error"], "bad_request", &sent);
            }
            let missing = without_placeholder(&field.request);
            let in_list =
                ["device_ids", "messages", "seqs"].iter().any(|list| field.request[list] == json!([PLACEHOLDER]));
            if !field.optional && !in_list {
                let error = world.socket.refused(field.op, missing.clone()).await;
                assert_problem(&error, "bad_request", &format!("{} {missing}", field.op));
            }
        }
        assert_eq!(world.state().await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_ops_and_ops_or_params_of_the_wrong_type_are_refused() {
    const OPS: [&str; 20] = [
        "session.renew",
        "session.logout",
        "sessions.list",
        "sessions.end",
        "devices.list",
        "devices.rename",
        "devices.revoke",
        "users.find",
        "account.delete",
        "account.change_email",
        "access.set",
        "blocks.add",
        "blocks.remove",
        "blocks.list",
        "keys.publish",
        "keys.status",
        "keys.fetch",
        "keys.claim",
        "messages.send",
        "messages.ack",
    ];
    for codec in Codec::ALL {
        let world = World::new(codec).await;
        let before = world.state().await;
        for op in OPS {
            for params in [json!(5), json!("x"), json!([]), json!([{}]), json!(true), json!(1.5)] {
                let error = world.socket.refused(op, params.clone()).await;
                assert_problem(&error, "bad_request", &format!("{op} {params}"));
            }
        }
        for op in [json!(5), json!(null), json!(["keys.status"]), json!({}), json!(true), json!("keys.status\0")] {
            let reply = send_frame(&world.socket, codec, |id| encode(codec, &json!({ "id": id, "op": op }))).await;
            assert_problem(&reply["error"], "bad_request", &op.to_string());
        }
        let long = "x".repeat(100_000);
        for op in ["", "keys", "KEYS.STATUS", " keys.status", "keys.status\n", "__proto__", "ключи", &long] {
            let error = world.socket.refused(op, json!({ "x": 1 })).await;
            assert_problem(&error, "unknown_op", op);
        }
        // Unknown fields are ignored, whatever they contain.
        let odd = json!({ "x": null, "": [1.5, -1, { "y": "\0" }], "user_id": "not even an id" });
        assert!(world.socket.request("keys.status", odd).await.is_object());
        assert_eq!(world.state().await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messagepack_field_names_must_be_strings() {
    let world = World::new(Codec::MsgPack).await;
    let name = |key: &[u8]| {
        [b"\x83\xa2id\xce", &b"iiii"[..], b"\xa2op\xaedevices.rename\xa6params\x81", key, b"\xa1x"].concat()
    };
    for key in [&b"\x01"[..], b"\xc4\x04name"] {
        let reply = send_frame(&world.socket, Codec::MsgPack, |id| {
            let mut bytes = name(key);
            bytes[5..9].copy_from_slice(&id.to_be_bytes());
            bytes
        })
        .await;
        assert_problem(&reply["error"], "bad_request", "a field without a name");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_beyond_a_bound_are_refused_and_values_at_the_bound_accepted() {
    for codec in Codec::ALL {
        let world = World::new(codec).await;
        let World { socket, other, .. } = &world;
        for name in [String::new(), "x".repeat(65), "é".repeat(65), "x".repeat(100_000)] {
            let error = socket.refused("devices.rename", json!({ "name": name })).await;
            assert_problem(&error, "bad_request", "a name out of bounds");
        }
        for name in ["x".to_owned(), "🔒".repeat(64)] {
            socket.request("devices.rename", json!({ "name": name })).await;
            assert_eq!(socket.request("devices.list", json!({})).await["devices"][0]["name"], name);
        }
        for op in ["keys.fetch", "keys.claim"] {
            let request = |ids: Vec<Uuid>| json!({ "user_id": other.user, "device_ids": ids, "claim_id": Uuid::nil() });
            let distinct = |count: u128| (1..=count).map(Uuid::from_u128).collect::<Vec<_>>();
            assert_problem(&socket.refused(op, request(distinct(101))).await, "bad_request", "101 devices");
            assert_eq!(socket.request(op, request(distinct(100))).await["unavailable"].as_array().unwrap().len(), 100);
            let repeated = [distinct(100), distinct(100), vec![Uuid::from_u128(7); 1000]].concat();
            assert_eq!(socket.request(op, request(repeated)).await["unavailable"].as_array().unwrap().len(), 100);
            assert_eq!(socket.request(op, request(vec![])).await, json!({ "bundles": [], "unavailable": [] }));
        }
        let ids = ["", "x", "67e5504410b1426f9247bb680e5fe0c8", "{67e55044-10b1-426f-9247-bb680e5fe0c8}"];
        for id in ids {
            let error = socket.refused("devices.revoke", json!({ "device_id": id })).await;
            assert_problem(&error, "bad_request", id);
        }
        let long = format!("{}@{}.org", "a".repeat(64), "b.".repeat(100));
        for email in ["", "x", "a@", "@b", "a b@c.d", "a@b\r\nBcc: c@d.e", "a@b@c", &long] {
            let error = socket.refused("users.find", json!({ "email": email })).await;
            assert_problem(&error, "bad_request", email);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_revoked_and_unknown_devices_cannot_be_changed_or_claimed() {
    for codec in Codec::ALL {
        let world = World::new(codec).await;
        let World { app, me, socket, revoked, other } = &world;
        let before = world.state().await;
        let unknown = Uuid::from_u128(0xdead);
        for device in [&other.device, &revoked.device, &unknown.to_string()] {
            let error = socket.refused("devices.rename", json!({ "device_id": device, "name": "mine" })).await;
            assert_problem(&error, "unknown_device", "rename");
            let error = socket.refused("devices.revoke", json!({ "device_id": device })).await;
            assert_problem(&error, "unknown_device", "revoke");
        }
        let keyless = sign_in(app, "other@example.org").await;
        for op in ["keys.fetch", "keys.claim"] {
            let claim = Uuid::nil();
            let error = socket.refused(op, json!({ "user_id": unknown, "claim_id": claim })).await;
            assert_problem(&error, "not_found", op);
            let error = socket.refused(op, json!({ "user_id": other.device, "claim_id": claim })).await;
            assert_problem(&error, "not_found", "a device id in place of a user id");
            let ids = [&me.device, &revoked.device, &other.device, &unknown.to_string()];
            let answer = socket.request(op, json!({ "user_id": me.user, "device_ids": ids, "claim_id": claim })).await;
            assert_eq!(answer["bundles"], json!([]));
            let mut reasons: Vec<Value> = answer["unavailable"].as_array().unwrap().clone();
            reasons.sort_by_key(|one| ids.iter().position(|id| **id == one["device_id"]));
            let expected = ["unknown_device", "revoked", "unknown_device", "unknown_device"];
            let expected = ids.iter().zip(expected).map(|(id, reason)| json!({ "device_id": id, "reason": reason }));
            assert_eq!(reasons, expected.collect::<Vec<_>>());
            let request = json!({ "user_id": other.user, "device_ids": [keyless.device], "claim_id": claim });
            let none = json!([{ "device_id": keyless.device, "reason": "no_keys" }]);
            assert_eq!(socket.request(op, request).await["unavailable"], none);
            let all = socket.request(op, json!({ "user_id": me.user, "claim_id": claim })).await;
            assert_eq!(all, json!({ "bundles": [], "unavailable": [] }), "no device except the requesting one");
        }
        let error = socket.refused("users.find", json!({ "email": "nobody@example.org" })).await;
        assert_problem(&error, "not_found", "find");
        Socket::connect(app, &keyless.token, codec).await.request("session.logout", json!({})).await;
        let other_again = Socket::connect(app, &other.token, codec).await;
        other_again.request("devices.revoke", json!({ "device_id": keyless.device })).await;
        assert_eq!(world.state().await, before);
    }
}
