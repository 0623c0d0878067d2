//! Promise 10: bad input gets the typed error of the table, and changes nothing. Every op and every endpoint, every
//! field of theirs, both codecs.

use std::sync::atomic::{AtomicU32, Ordering};

use sealwire::domain::Suite;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use crate::support::{Codec, KeySet, Person, Socket, TestApp, problem::assert_problem, raw::encode, sign_in};

/// Stands where a hostile value goes; replaced after encoding, so that values without a JSON form can be written too.
pub const PLACE: &str = "<the hostile value>";

/// What a field takes besides.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    Text,
    Number,
    List,
    /// A list of numbers.
    Numbers,
    Map,
    Truth,
    /// What MessagePack calls bin.
    Bytes,
}

use Takes::{Bytes, List, Map, Number, Numbers, Text, Truth};

/// Hostile values as they stand in a frame, with the kind that would take their type.
const JSON: &[(&str, Option<Takes>)] = &[
    ("true", Some(Truth)),
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

const MSGPACK: &[(&[u8], Option<Takes>)] = &[
    (b"\xc3", Some(Truth)),
    (b"\x05", Some(Number)),
    (b"\xff", None),
    (b"\xd3\x80\0\0\0\0\0\0\0", None),
    (b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", None),
    (b"\xca\x3f\x80\0\0", None),
    (b"\xcb\x7f\xf0\0\0\0\0\0\0", None),
    (b"\xa3x\0y", None),
    // A str that is no UTF-8.
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

/// A field of an op or a body: the request with [`PLACE`] in it, what it takes, and whether it may be absent or null.
pub struct Field {
    pub op: &'static str,
    pub request: Value,
    pub takes: Takes,
    pub optional: bool,
}

pub fn field(op: &'static str, request: Value, takes: Takes) -> Field {
    Field { op, request, takes, optional: false }
}

pub fn optional(op: &'static str, request: Value, takes: Takes) -> Field {
    Field { op, request, takes, optional: true }
}

/// The encodings of a request with every hostile value in its place that must be refused there.
pub fn hostile_versions(codec: Codec, field: &Field, request: &Value) -> Vec<Vec<u8>> {
    let (bytes, place) = (encode(codec, request), encode(codec, &json!(PLACE)));
    let at = bytes.windows(place.len()).position(|part| part == place).expect("the place is there");
    let put = |value: &[u8]| [&bytes[..at], value, &bytes[at + place.len()..]].concat();
    let is_taken = |takes| takes == field.takes || (takes == List && field.takes == Numbers);
    let refused = |takes: &Option<Takes>| !takes.is_some_and(is_taken);
    let mut versions: Vec<_> = match codec {
        Codec::Json => {
            JSON.iter().filter(|(_, takes)| refused(takes)).map(|(value, _)| put(value.as_bytes())).collect()
        }
        Codec::MsgPack => MSGPACK.iter().filter(|(_, takes)| refused(takes)).map(|(value, _)| put(value)).collect(),
    };
    if !field.optional {
        versions.push(put(if codec == Codec::Json { b"null" } else { b"\xc0" }));
    }
    versions
}

/// Request ids that [`Socket`] does not use itself.
static NEXT_ID: AtomicU32 = AtomicU32::new(1_000_000);

/// Sends one frame, made for the id, and waits for its reply.
async fn ask(socket: &Socket, codec: Codec, frame: impl FnOnce(u32) -> Vec<u8>) -> Value {
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

/// A user with two devices, one of them revoked, and a stranger; all with keys.
pub struct World {
    pub app: TestApp,
    pub me: Person,
    pub socket: Socket,
    pub revoked: Person,
    pub stranger: Person,
}

impl World {
    pub async fn new(codec: Codec) -> Self {
        let app = TestApp::start(&[("LIMITS__FIND_PER_USER_HOUR", "0")]);
        let me = sign_in(&app, "me@example.org").await;
        let revoked = sign_in(&app, "me@example.org").await;
        let stranger = sign_in(&app, "stranger@example.org").await;
        for (seed, person) in [&me, &revoked, &stranger].into_iter().enumerate() {
            let socket = Socket::connect(&app, &person.token, Codec::Json).await;
            let keys = KeySet::new(Suite::SignalX3dh, seed as u64).complete(1..=30);
            socket.request("keys.publish", keys).await;
        }
        let socket = Socket::connect(&app, &me.token, codec).await;
        socket.request("devices.revoke", json!({ "device_id": revoked.device })).await;
        Self { app, me, socket, revoked, stranger }
    }

    /// What must not change, of both users.
    pub async fn state(&self) -> Value {
        let mut state = Vec::new();
        let stranger = Socket::connect(&self.app, &self.stranger.token, Codec::Json).await;
        for socket in [&self.socket, &stranger] {
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
        let user = &self.stranger.user;
        let key = |id: Value, key: Value| json!({ "one_time_prekeys": [{ "key_id": id, "public_key": key }] });
        let signed = |name: &str, part: &str| {
            let mut body = json!({ "key_id": 1, "public_key": "AAAA", "signature": "AAAA" });
            body[part] = json!(PLACE);
            json!({ name: if name.ends_with("one_time") { json!([body]) } else { body } })
        };
        let mut fields = vec![
            optional("devices.rename", json!({ "device_id": PLACE, "name": "x" }), Text),
            field("devices.rename", json!({ "name": PLACE }), Text),
            field("devices.revoke", json!({ "device_id": PLACE }), Text),
            field("users.find", json!({ "email": PLACE }), Text),
            field("keys.fetch", json!({ "user_id": PLACE }), Text),
            optional("keys.fetch", json!({ "user_id": user, "device_ids": PLACE }), List),
            field("keys.fetch", json!({ "user_id": user, "device_ids": [PLACE] }), Text),
            field("keys.claim", json!({ "user_id": PLACE, "claim_id": Uuid::nil() }), Text),
            field("keys.claim", json!({ "user_id": user, "claim_id": PLACE }), Text),
            optional("keys.claim", json!({ "user_id": user, "claim_id": Uuid::nil(), "device_ids": PLACE }), List),
            field("keys.claim", json!({ "user_id": user, "claim_id": Uuid::nil(), "device_ids": [PLACE] }), Text),
            optional("keys.publish", json!({ "suite": PLACE }), Text),
            optional("keys.publish", json!({ "identity_key": PLACE }), Text),
            optional("keys.publish", json!({ "signed_prekey": PLACE }), Text),
            optional("keys.publish", json!({ "one_time_prekeys": PLACE }), List),
            optional("keys.publish", json!({ "pq_last_resort": PLACE }), Text),
            optional("keys.publish", json!({ "pq_one_time": PLACE }), List),
            field("keys.publish", json!({ "one_time_prekeys": [PLACE] }), Text),
            field("keys.publish", key(json!(PLACE), json!("AAAA")), Number),
            field("keys.publish", key(json!(1), json!(PLACE)), Text),
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
            body[name] = json!(PLACE);
            message("messages", json!([body]))
        };
        fields.extend([
            field("messages.send", message("message_id", json!(PLACE)), Text),
            field("messages.send", message("to", json!(PLACE)), Text),
            optional("messages.send", message("ephemeral", json!(PLACE)), Truth),
            // No number that stands here is a life span either.
            optional("messages.send", message("ttl_s", json!(PLACE)), Text),
            field("messages.send", message("messages", json!(PLACE)), List),
            field("messages.send", message("messages", json!([PLACE])), Text),
            field("messages.send", part("device_id"), Text),
            field("messages.send", part("type"), Number),
            field("messages.send", part("content"), Bytes),
            field("messages.ack", json!({ "seqs": PLACE }), Numbers),
            field("messages.ack", json!({ "seqs": [PLACE] }), Number),
        ]);
        fields
    }
}

/// The same map with the field that holds [`PLACE`] left out, wherever it is.
pub fn without_place(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, value)| **value != PLACE);
            Value::Object(kept.map(|(key, value)| (key.clone(), without_place(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_place).collect()),
        other => other.clone(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_every_op_refuses_what_it_does_not_take() {
    for codec in Codec::ALL {
        let world = World::new(codec).await;
        let before = world.state().await;
        for field in world.socket_fields() {
            let request = |id: u32| json!({ "id": id, "op": field.op, "params": field.request });
            for version in 0..hostile_versions(codec, &field, &request(1)).len() {
                let mut sent = String::new();
                let reply = ask(&world.socket, codec, |id| {
                    let bytes = hostile_versions(codec, &field, &request(id)).swap_remove(version);
                    sent = String::from_utf8_lossy(&bytes).into_owned();
                    bytes
                })
                .await;
                assert_problem(&reply["error"], "bad_request", &sent);
            }
            let missing = without_place(&field.request);
            let in_list = ["device_ids", "messages", "seqs"].iter().any(|list| field.request[list] == json!([PLACE]));
            if !field.optional && !in_list {
                let error = world.socket.refused(field.op, missing.clone()).await;
                assert_problem(&error, "bad_request", &format!("{} {missing}", field.op));
            }
        }
        assert_eq!(world.state().await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn op_and_params_of_a_wrong_type_are_bad_requests_and_unknown_ops_are_unknown() {
    const OPS: [&str; 13] = [
        "session.renew",
        "session.logout",
        "devices.list",
        "devices.rename",
        "devices.revoke",
        "users.find",
        "account.delete",
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
            let reply = ask(&world.socket, codec, |id| encode(codec, &json!({ "id": id, "op": op }))).await;
            assert_problem(&reply["error"], "bad_request", &op.to_string());
        }
        let long = "x".repeat(100_000);
        for op in ["", "keys", "KEYS.STATUS", " keys.status", "keys.status\n", "__proto__", "ключи", &long] {
            let error = world.socket.refused(op, json!({ "x": 1 })).await;
            assert_problem(&error, "unknown_op", op);
        }
        // Unknown fields are ignored, whatever is in them.
        let odd = json!({ "x": null, "": [1.5, -1, { "y": "\0" }], "user_id": "not even an id" });
        assert!(world.socket.request("keys.status", odd).await.is_object());
        assert_eq!(world.state().await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_is_known_by_its_name_alone_in_messagepack() {
    let world = World::new(Codec::MsgPack).await;
    let name = |key: &[u8]| {
        [b"\x83\xa2id\xce", &b"iiii"[..], b"\xa2op\xaedevices.rename\xa6params\x81", key, b"\xa1x"].concat()
    };
    for key in [&b"\x01"[..], b"\xc4\x04name"] {
        let reply = ask(&world.socket, Codec::MsgPack, |id| {
            let mut bytes = name(key);
            bytes[5..9].copy_from_slice(&id.to_be_bytes());
            bytes
        })
        .await;
        assert_problem(&reply["error"], "bad_request", "a field without a name");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_out_of_bounds_are_refused_and_those_at_the_bound_are_not() {
    for codec in Codec::ALL {
        let world = World::new(codec).await;
        let World { socket, stranger, .. } = &world;
        for name in [String::new(), "x".repeat(65), "é".repeat(65), "x".repeat(100_000)] {
            let error = socket.refused("devices.rename", json!({ "name": name })).await;
            assert_problem(&error, "bad_request", "a name out of bounds");
        }
        for name in ["x".to_owned(), "🔒".repeat(64)] {
            socket.request("devices.rename", json!({ "name": name })).await;
            assert_eq!(socket.request("devices.list", json!({})).await["devices"][0]["name"], name);
        }
        for op in ["keys.fetch", "keys.claim"] {
            let request =
                |ids: Vec<Uuid>| json!({ "user_id": stranger.user, "device_ids": ids, "claim_id": Uuid::nil() });
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
async fn what_belongs_to_others_or_is_gone_cannot_be_touched() {
    for codec in Codec::ALL {
        let world = World::new(codec).await;
        let World { app, me, socket, revoked, stranger } = &world;
        let before = world.state().await;
        let nobody = Uuid::from_u128(0xdead);
        for device in [&stranger.device, &revoked.device, &nobody.to_string()] {
            let error = socket.refused("devices.rename", json!({ "device_id": device, "name": "mine" })).await;
            assert_problem(&error, "unknown_device", "rename");
            let error = socket.refused("devices.revoke", json!({ "device_id": device })).await;
            assert_problem(&error, "unknown_device", "revoke");
        }
        let keyless = sign_in(app, "stranger@example.org").await;
        for op in ["keys.fetch", "keys.claim"] {
            let claim = Uuid::nil();
            let error = socket.refused(op, json!({ "user_id": nobody, "claim_id": claim })).await;
            assert_problem(&error, "not_found", op);
            let error = socket.refused(op, json!({ "user_id": stranger.device, "claim_id": claim })).await;
            assert_problem(&error, "not_found", "a device is no user");
            let ids = [&me.device, &revoked.device, &stranger.device, &nobody.to_string()];
            let answer = socket.request(op, json!({ "user_id": me.user, "device_ids": ids, "claim_id": claim })).await;
            assert_eq!(answer["bundles"], json!([]));
            let mut reasons: Vec<Value> = answer["unavailable"].as_array().unwrap().clone();
            reasons.sort_by_key(|one| ids.iter().position(|id| **id == one["device_id"]));
            let expected = ["unknown_device", "revoked", "unknown_device", "unknown_device"];
            let expected = ids.iter().zip(expected).map(|(id, reason)| json!({ "device_id": id, "reason": reason }));
            assert_eq!(reasons, expected.collect::<Vec<_>>());
            let request = json!({ "user_id": stranger.user, "device_ids": [keyless.device], "claim_id": claim });
            let none = json!([{ "device_id": keyless.device, "reason": "no_keys" }]);
            assert_eq!(socket.request(op, request).await["unavailable"], none);
            let all = socket.request(op, json!({ "user_id": me.user, "claim_id": claim })).await;
            assert_eq!(all, json!({ "bundles": [], "unavailable": [] }), "nobody but the asking device");
        }
        let error = socket.refused("users.find", json!({ "email": "nobody@example.org" })).await;
        assert_problem(&error, "not_found", "find");
        Socket::connect(app, &keyless.token, codec).await.request("session.logout", json!({})).await;
        let stranger_again = Socket::connect(app, &stranger.token, codec).await;
        stranger_again.request("devices.revoke", json!({ "device_id": keyless.device })).await;
        assert_eq!(world.state().await, before);
    }
}
