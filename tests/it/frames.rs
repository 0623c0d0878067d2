//! What is not the protocol closes with the right code, what is goes on: frames, upgrades, and requests in flight.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use uuid::Uuid;

use crate::support::{
    Codec, KeySet, Person, TestApp, eventually,
    raw::{BINARY, CLOSE, HANDSHAKE, PING, PONG, RawSocket, TEXT, data, encode, frame, header, knock},
    sign_in,
};

const PROTOCOL_ERROR: u16 = 4504;
const TOO_LARGE: u16 = 4505;
const LIMIT: usize = 512 * 1024;

/// Sends each of these byte strings on a connection of its own, which must close with the code.
async fn assert_closes(app: &TestApp, token: &str, codec: Codec, code: u16, cases: &[(&str, Vec<u8>)]) {
    for (what, bytes) in cases {
        let (mut socket, _) = RawSocket::connect(app, token, codec).await;
        socket.send(bytes).await;
        assert_eq!(socket.close_code().await, code, "{codec:?}: {what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_is_no_request_closes_with_4504() {
    let app = TestApp::start(&[]);
    let token = sign_in(&app, "frames@example.org").await.token;
    let ids =
        [json!(null), json!(0), json!(-1), json!(1.5), json!("1"), json!(4_294_967_296_u64), json!([1]), json!({})];
    for codec in Codec::ALL {
        let whole = |value: &Value| data(codec, &encode(codec, value));
        let good = encode(codec, &json!({ "id": 1, "op": "keys.status", "params": {} }));
        let other = if codec == Codec::Json { BINARY } else { TEXT };
        let mut cases = vec![
            ("nothing", data(codec, b"")),
            ("the other kind", frame(other, &good)),
            ("no map", whole(&json!([1, "keys.status", {}]))),
            ("a number", whole(&json!(7))),
            ("no id", whole(&json!({ "op": "keys.status", "params": {} }))),
            ("a value behind it", data(codec, &[&good[..], &good[..]].concat())),
            ("a byte behind it", data(codec, &[&good[..], b"1"].concat())),
            ("half of it", data(codec, &good[..good.len() / 2])),
            ("nothing but nesting", data(codec, &vec![if codec == Codec::Json { b'[' } else { 0x91 }; 100_000])),
        ];
        cases.extend(ids.iter().map(|id| ("a wrong id", whole(&json!({ "id": id, "op": "keys.status" })))));
        assert_closes(&app, &token, codec, PROTOCOL_ERROR, &cases).await;
    }
    let float = b"\x82\xa2id\xcb\x3f\xf0\0\0\0\0\0\0\xa2op\xabkeys.status";
    let never = b"\x82\xa2id\x01\xa2op\xc1";
    let huge = b"\x82\xa2id\x01\xa2op\xdb\xff\xff\xff\xffkeys.status";
    let pack = [float.as_slice(), never, huge].map(|bytes| ("malformed MessagePack", frame(BINARY, bytes)));
    assert_closes(&app, &token, Codec::MsgPack, PROTOCOL_ERROR, &pack).await;
    let text =
        ["{\"id\":1.0}", "{\"id\":1e0}", "{\"id\":1,\"id\":2,\"op\":\"keys.status\"}", "{'id':1}", "{\"id\":1,}"]
            .map(|text| ("malformed JSON", frame(TEXT, text.as_bytes())));
    assert_closes(&app, &token, Codec::Json, PROTOCOL_ERROR, &text).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breach_of_rfc_6455_closes_with_4504() {
    let app = TestApp::start(&[]);
    let token = sign_in(&app, "frames@example.org").await.token;
    let unfinished = || frame(0x01, b"{\"id\":1,");
    let close = |payload: &[u8]| frame(CLOSE, payload);
    let cases = [
        ("unmasked", b"\x81\x02{}".to_vec()),
        ("unmasked ping", b"\x89\x00".to_vec()),
        ("RSV1", frame(0xc1, b"{}")),
        ("RSV2", frame(0xa1, b"{}")),
        ("RSV3", frame(0x91, b"{}")),
        ("reserved data opcode", frame(0x83, b"{}")),
        ("reserved control opcode", frame(0x8b, b"")),
        ("fragmented ping", frame(0x09, b"")),
        ("fragmented close", frame(0x08, b"")),
        ("ping of 126 bytes", frame(PING, &[7; 126])),
        ("pong of 126 bytes", frame(PONG, &[7; 126])),
        ("continuation without a start", frame(0x80, b"{}")),
        ("message within a message", [unfinished(), frame(TEXT, b"{}")].concat()),
        ("short length in two bytes", b"\x81\xfe\x00\x02maskab".to_vec()),
        ("short length in eight bytes", b"\x81\xff\0\0\0\0\0\0\x00\x02maskab".to_vec()),
        ("top bit of the length", [&b"\x81\xff\x80\0\0\0\0\0\0\0"[..], b"mask"].concat()),
        ("invalid UTF-8", frame(TEXT, b"{\"id\":1,\"op\":\"\xff\"}")),
        ("UTF-8 surrogate", frame(TEXT, b"{\"id\":1,\"op\":\"\xed\xa0\x80\"}")),
        ("UTF-8 cut off", frame(TEXT, b"\xe2\x82")),
        ("invalid UTF-8 over fragments", [frame(0x01, b"{\"id\":1,\"op\":\"\xe2"), frame(0x80, b"\x28\"}")].concat()),
        ("close with half a code", close(b"\x03")),
        ("close with code 999", close(&999_u16.to_be_bytes())),
        ("close with code 1005", close(&1005_u16.to_be_bytes())),
        ("close with code 5000", close(&5000_u16.to_be_bytes())),
        ("close with invalid UTF-8", close(b"\x03\xe8\xff")),
    ];
    assert_closes(&app, &token, Codec::Json, PROTOCOL_ERROR, &cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_over_the_limit_closes_with_4505_as_soon_as_it_says_so() {
    let app = TestApp::start(&[]);
    let token = sign_in(&app, "frames@example.org").await.token;
    let half = vec![b' '; LIMIT / 2];
    let cases = [
        ("one byte too many", header(TEXT, LIMIT as u64 + 1)),
        ("200 MB", header(BINARY, 200_000_000)),
        ("2^62", header(TEXT, 1 << 62)),
        ("together", [frame(0x01, &half), frame(0x00, &half), header(0x80, 1)].concat()),
        ("with a ping between", [frame(0x01, &half), frame(PING, b""), header(0x80, LIMIT as u64)].concat()),
        ("in an unfinished part", [frame(0x01, b" "), header(0x00, LIMIT as u64)].concat()),
    ];
    let started = Instant::now();
    assert_closes(&app, &token, Codec::Json, TOO_LARGE, &cases).await;
    assert!(started.elapsed() < Duration::from_secs(20), "a close waited for the payload");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_of_exactly_the_limit_is_served_whole_and_in_parts() {
    let app = TestApp::start(&[]);
    let token = sign_in(&app, "frames@example.org").await.token;
    for codec in Codec::ALL {
        let (mut socket, _) = RawSocket::connect(&app, &token, codec).await;
        let request = |id: u32, filling: usize| {
            encode(codec, &json!({ "id": id, "op": "keys.status", "x": " ".repeat(filling) }))
        };
        let full = |id| request(id, 100_000 + LIMIT - request(id, 100_000).len());
        assert_eq!(full(1).len(), LIMIT);
        socket.send(&data(codec, &full(1))).await;
        assert!(socket.reply(1).await["result"].is_object());
        let opcode = if codec == Codec::Json { 0x01 } else { 0x02 };
        let mut parts = Vec::new();
        for (index, part) in full(2).chunks(50_000).enumerate() {
            parts.extend(frame(if index == 0 { opcode } else { 0x00 }, part));
            parts.extend(frame(PING, b"between"));
        }
        parts.extend(frame(0x80, b""));
        socket.send(&parts).await;
        assert!(socket.reply(2).await["result"].is_object());
        // Byte by byte, so that every header and character is cut.
        let wrong = encode(codec, &json!({ "id": 3, "op": "devices.rename", "params": { "name": "é".repeat(65) } }));
        let mut bytes = frame(opcode, &wrong[..7]);
        bytes.extend(wrong[7..].chunks(1).flat_map(|byte| frame(0x00, byte)));
        bytes.extend(frame(0x80, b""));
        for byte in bytes.chunks(1) {
            socket.send(byte).await;
        }
        assert_eq!(socket.reply(3).await["error"]["code"], "bad_request");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_nesting_is_survived() {
    let app = TestApp::start(&[]);
    let token = sign_in(&app, "frames@example.org").await.token;
    let depth = 100_000;
    let json = format!(r#"{{"id":1,"op":"keys.status","params":{{"x":{}{}}}}}"#, "[".repeat(depth), "]".repeat(depth));
    let mut pack = b"\x83\xa2id\x01\xa2op\xabkeys.status\xa6params\x81\xa1x".to_vec();
    pack.extend(vec![0x91; depth]);
    pack.push(0xc0);
    for (codec, bytes) in [(Codec::Json, json.into_bytes()), (Codec::MsgPack, pack)] {
        let (mut socket, _) = RawSocket::connect(&app, &token, codec).await;
        socket.send(&data(codec, &bytes)).await;
        // An unknown field is ignored, unless its nesting makes the frame undecodable.
        match socket.message().await {
            Some(reply) => assert!(reply["result"].is_object(), "{reply}"),
            None => assert_eq!(codec, Codec::MsgPack),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_are_answered_with_their_payload_and_a_close_is_echoed() {
    let app = TestApp::start(&[]);
    let token = sign_in(&app, "frames@example.org").await.token;
    let (mut socket, _) = RawSocket::connect(&app, &token, Codec::Json).await;
    for length in [0, 1, 124, 125] {
        let payload: Vec<u8> = (0..length).collect();
        socket.send(&frame(PING, &payload)).await;
        loop {
            match socket.frame().await.expect("a pong") {
                (PONG, answer) => break assert_eq!(answer, payload),
                (PING, _) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    socket.send(&frame(PONG, b"unasked")).await;
    assert!(socket.status(1).await["result"].is_object());
    for payload in [&b""[..], b"\x03\xe8", b"\x0f\xa0bye", &[&b"\x03\xe8"[..], &[b'x'; 123]].concat()] {
        let (mut socket, _) = RawSocket::connect(&app, &token, Codec::MsgPack).await;
        socket.send(&[frame(CLOSE, payload), vec![0xff; 40]].concat()).await;
        assert_eq!(socket.frame().await, Some((CLOSE, payload.to_vec())));
        assert_eq!(socket.frame().await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_pings_is_no_trouble() {
    const PINGS: u32 = 50_000;
    let app = TestApp::start(&[]);
    let token = sign_in(&app, "frames@example.org").await.token;
    let (mut socket, _) = RawSocket::connect(&app, &token, Codec::Json).await;
    let flood: Vec<u8> = (1..=PINGS).flat_map(|n| frame(PING, &n.to_be_bytes())).collect();
    socket.send(&flood).await;
    socket.send(&data(Codec::Json, &encode(Codec::Json, &json!({ "id": 1, "op": "keys.status" })))).await;
    let (mut last, mut replied) = (0, false);
    while last < PINGS || !replied {
        match socket.frame().await.expect("the socket stays open") {
            (PONG, payload) => {
                let n = u32::from_be_bytes(payload.try_into().unwrap());
                assert!(n > last, "pong {n} after {last}");
                last = n;
            }
            (TEXT, _) => replied = true,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_welcome_is_the_first_frame_and_has_the_fields_of_the_contract() {
    let app = TestApp::with_clock(&[]);
    let person = sign_in(&app, "frames@example.org").await;
    let Person { user, device, session, token, .. } = &person;
    let none = json!({
        "suite": null, "identity_key": null, "signed_prekey": null, "pq_last_resort": null,
        "one_time": 0, "pq_one_time": 0, "threshold": 20, "pool_version": 0,
    });
    for codec in Codec::ALL {
        let (_, welcome) = RawSocket::connect(&app, token, codec).await;
        let expected = json!({ "event": "welcome", "data": {
            "session_id": session, "user_id": user, "device_id": device,
            "expires_at": "2026-07-01T12:00:00.000000Z", "server_time": "2026-06-01T12:00:00.000000Z",
            "heartbeat_s": 25,
            "limits": { "frame_bytes": LIMIT, "content_bytes": 32768, "in_flight": 64 },
            "keys": none,
            "mailbox": { "waiting": 0, "expired_total": 0 },
        }});
        assert_eq!(welcome, expected, "{codec:?}");
    }
}

/// The database's one writer, held by the test: claims wait in flight until it is dropped.
struct HeldWriter(SqliteConnection);

impl HeldWriter {
    async fn take(app: &TestApp) -> Self {
        let mut connection = SqliteConnectOptions::new().filename(app.database()).connect().await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await.unwrap();
        Self(connection)
    }

    async fn release(mut self) {
        sqlx::query("ROLLBACK").execute(&mut self.0).await.unwrap();
        self.0.close().await.unwrap();
    }
}

fn claim(id: u32, user: &str) -> Value {
    json!({ "id": id, "op": "keys.claim", "params": { "user_id": user, "claim_id": Uuid::from_u128(id.into()) } })
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_requests_wait_and_each_request_gets_one_reply() {
    let app = TestApp::start(&[("LIMITS__CLAIM_BURST", "0")]);
    let person = sign_in(&app, "frames@example.org").await;
    let owner = sign_in(&app, "owner@example.org").await;
    let (mut keys, _) = RawSocket::connect(&app, &owner.token, Codec::Json).await;
    let set = KeySet::new(sealwire::domain::Suite::SignalX3dh, 1).complete(1..=80);
    keys.say(&json!({ "id": 1, "op": "keys.publish", "params": set })).await;
    keys.reply(1).await;
    for codec in Codec::ALL {
        let (mut socket, _) = RawSocket::connect(&app, &person.token, codec).await;
        let held = HeldWriter::take(&app).await;
        let claims = |ids: std::ops::RangeInclusive<u32>| -> Vec<u8> {
            ids.flat_map(|id| data(codec, &encode(codec, &claim(id, &owner.user)))).collect()
        };
        socket.send(&claims(1..=10)).await;
        // Ten wait; others pass them.
        socket.say(&json!({ "id": 100, "op": "keys.nonsense" })).await;
        assert_eq!(socket.reply(100).await["error"]["code"], "unknown_op");
        socket.say(&json!({ "id": 100, "op": "keys.fetch", "params": {} })).await;
        assert_eq!(socket.reply(100).await["error"]["code"], "bad_request");
        assert!(socket.status(101).await["result"].is_object());
        socket.send(&claims(11..=80)).await;
        for id in 65..=80 {
            let reply = socket.message().await.unwrap();
            assert_eq!(reply["id"], id, "{reply}");
            assert_eq!(reply["error"]["code"], "too_many_in_flight");
            assert_eq!(reply["error"]["retryable"], true);
        }
        held.release().await;
        let mut replies = std::collections::BTreeSet::new();
        for _ in 1..=64 {
            let reply = socket.message().await.unwrap();
            assert!(reply["result"]["bundles"].is_array(), "{reply}");
            assert!(replies.insert(reply["id"].as_u64().unwrap()), "a second reply: {reply}");
        }
        assert!(replies.into_iter().eq(1..=64));
        // An answered id may be used again.
        assert!(socket.status(1).await["result"].is_object());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_in_flight_already_closes_with_4504() {
    let app = TestApp::start(&[]);
    let person = sign_in(&app, "frames@example.org").await;
    let (mut socket, _) = RawSocket::connect(&app, &person.token, Codec::Json).await;
    let held = HeldWriter::take(&app).await;
    socket.say(&claim(7, &person.user)).await;
    socket.say(&json!({ "id": 7, "op": "keys.status" })).await;
    assert_eq!(socket.close_code().await, PROTOCOL_ERROR);
    held.release().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reply_comes_first_then_the_event_then_the_close() {
    let app = TestApp::start(&[]);
    for (op, code, reason) in [("session.logout", 4500, "logout"), ("account.delete", 4506, "account_deleted")] {
        let token = sign_in(&app, "frames@example.org").await.token;
        let (mut socket, _) = RawSocket::connect(&app, &token, Codec::MsgPack).await;
        socket.say(&json!({ "id": 9, "op": op })).await;
        assert_eq!(socket.message().await.unwrap(), json!({ "id": 9, "result": {} }));
        let revoked = json!({ "event": "session.revoked", "data": { "reason": reason } });
        assert_eq!(socket.message().await.unwrap(), revoked);
        assert_eq!(socket.frame().await.unwrap().1[..2], u16::to_be_bytes(code));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_vanish_leave_their_places() {
    let app = TestApp::start(&[("SERVER__MAX_CONNECTIONS", "2")]);
    let token = sign_in(&app, "frames@example.org").await.token;
    let bearer = format!("Bearer {token}");
    let headers = [&HANDSHAKE[..], &[("authorization", bearer.as_str())]].concat();
    let connect = || async {
        let (answer, socket) = knock(&app, &headers).await;
        (answer.status == 101).then_some(socket)
    };
    for round in 0..12 {
        let mut socket = eventually("a place is free", connect).await;
        assert!(socket.message().await.is_some(), "the welcome");
        match round % 3 {
            0 => socket.reset(),
            1 => drop(socket),
            _ => {
                socket.shutdown().await;
                while socket.frame().await.is_some() {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_refuses_sockets_and_serves_http() {
    let app = TestApp::start(&[("SERVER__MAX_CONNECTIONS", "2")]);
    let mut people = Vec::new();
    for index in 0..3 {
        people.push(sign_in(&app, &format!("frames{index}@example.org")).await);
    }
    let (mut first, _) = RawSocket::connect(&app, &people[0].token, Codec::Json).await;
    let (_second, _) = RawSocket::connect(&app, &people[1].token, Codec::Json).await;
    let bearer = format!("Bearer {}", people[2].token);
    let headers = [&HANDSHAKE[..], &[("authorization", bearer.as_str())]].concat();
    let (answer, _) = knock(&app, &headers).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.body["error"]["code"], "unavailable");
    assert!(answer.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().unwrap() >= 1));
    assert_eq!(knock(&app, &HANDSHAKE).await.0.status, 401, "the token is looked at before the room");
    sign_in(&app, "frames3@example.org").await;
    first.send(&frame(CLOSE, b"")).await;
    first.close_code().await;
    eventually("the place is free again", || async { (knock(&app, &headers).await.0.status == 101).then_some(()) })
        .await;
}

/// What is tried, its headers, and the status and code that answer.
type Case = (&'static str, Vec<(String, String)>, u16, &'static str);

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_is_refused_for_the_documented_reasons_in_the_documented_order() {
    let app = TestApp::start(&[]);
    let token = sign_in(&app, "frames@example.org").await.token;
    let bearer = format!("Bearer {token}");
    let offer = format!("sealwire.token.{token}");
    let stranger = format!("Bearer {}", "A".repeat(43));
    let own = format!("http://{}", crate::support::Server::address(&app));
    let (auth, protocol) = ("authorization", "sec-websocket-protocol");
    let with = |more: &[(&'static str, &str)]| -> Vec<(String, String)> {
        let all = HANDSHAKE.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let replaced = |name: &str| more.iter().any(|(other, _)| *other == name);
        let all = all.enumerate().filter(|(at, (name, _))| *at >= HANDSHAKE.len() || !replaced(name));
        all.map(|(_, header)| header).filter(|(_, value)| !value.is_empty()).collect()
    };
    let (both, json, both_token) = (
        "x, sealwire.v1.json, sealwire.v1.msgpack",
        "sealwire.v1.json",
        format!("sealwire.v1.msgpack, {offer}, sealwire.v1.json"),
    );
    let bad_offer = format!("{json}, sealwire.token.x");
    let table: Vec<Case> = vec![
        ("no subprotocol", with(&[(auth, &bearer)]), 101, ""),
        ("first known one offered", with(&[(auth, &bearer), (protocol, both)]), 101, json),
        ("token offered", with(&[(protocol, &both_token)]), 101, "sealwire.v1.msgpack"),
        ("header counts first", with(&[(auth, &stranger), (protocol, &both_token)]), 401, "unauthorized"),
        ("own origin", with(&[(auth, &bearer), ("origin", &own)]), 101, ""),
        ("foreign origin", with(&[("origin", "https://evil.example"), ("upgrade", "")]), 403, "forbidden_origin"),
        ("no Upgrade", with(&[(auth, &bearer), ("upgrade", "")]), 400, "bad_request"),
        ("other Upgrade", with(&[(auth, &bearer), ("upgrade", "h2c")]), 400, "bad_request"),
        ("no Connection", with(&[(auth, &bearer), ("connection", "")]), 400, "bad_request"),
        ("version 12", with(&[(auth, &bearer), ("sec-websocket-version", "12")]), 400, "bad_request"),
        ("no version", with(&[(auth, &bearer), ("sec-websocket-version", "")]), 400, "bad_request"),
        ("no key", with(&[(auth, &bearer), ("sec-websocket-key", "")]), 400, "bad_request"),
        ("unknown subprotocols", with(&[(auth, &bearer), (protocol, "chat, sealwire.v2.json")]), 400, "bad_request"),
        ("a token alone", with(&[(protocol, &offer)]), 400, "bad_request"),
        ("form before token", with(&[(auth, "Bearer x"), (protocol, "chat")]), 400, "bad_request"),
        ("no token", with(&[]), 401, "unauthorized"),
        ("unknown token", with(&[(auth, &stranger)]), 401, "unauthorized"),
        ("short token", with(&[(auth, &bearer[..40])]), 401, "unauthorized"),
        ("other scheme", with(&[(auth, &format!("Basic {token}"))]), 401, "unauthorized"),
        ("bad token offered", with(&[(protocol, &bad_offer)]), 401, "unauthorized"),
    ];
    for (what, headers, status, word) in &table {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let (answer, _) = knock(&app, &headers).await;
        assert_eq!(answer.status, *status, "{what}: {}", answer.body);
        if *status == 101 {
            assert_eq!(answer.header(protocol).unwrap_or_default(), *word, "{what}");
            continue;
        }
        assert_eq!(answer.body["error"]["code"], *word, "{what}");
        if what.contains("version") {
            assert_eq!(answer.header("sec-websocket-version"), Some("13"), "{what}");
        }
    }
}
