//! Frames: malformed, oversized and incorrectly framed ones close the connection with the right code; valid ones are
//! served.

use serde_json::{Value, json};

use crate::support::{
    Codec, TestApp,
    raw::{BINARY, CLOSE, PING, PONG, RawSocket, TEXT, data, encode, frame, header},
    sign_in,
};

const PROTOCOL_ERROR: u16 = 4504;

const TOO_LARGE: u16 = 4505;

const LIMIT: usize = 512 * 1024;

/// Sends each byte string on a new connection, which must close with this code.
async fn assert_closes(app: &TestApp, token: &str, codec: Codec, code: u16, cases: &[(&str, Vec<u8>)]) {
    for (what, bytes) in cases {
        let (mut socket, _) = RawSocket::connect(app, token, codec).await;
        socket.send(bytes).await;
        assert_eq!(socket.close_code().await, code, "{codec:?}: {what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_is_not_a_request_closes_the_socket_with_4504() {
    let app = TestApp::start(&[]);
    let token = sign_in(&app, "frames@example.org").await.token;
    let ids =
        [json!(null), json!(0), json!(-1), json!(1.5), json!("1"), json!(4_294_967_296_u64), json!([1]), json!({})];
    for codec in Codec::ALL {
        let whole = |value: &Value| data(codec, &encode(codec, value));
        let good = encode(codec, &json!({ "id": 1, "op": "keys.status", "params": {} }));
        let other = if codec == Codec::Json { BINARY } else { TEXT };
        let mut cases = vec![
            ("an empty message", data(codec, b"")),
            ("the other frame type", frame(other, &good)),
            ("not a map", whole(&json!([1, "keys.status", {}]))),
            ("a number", whole(&json!(7))),
            ("no id", whole(&json!({ "op": "keys.status", "params": {} }))),
            ("a second request after the first", data(codec, &[&good[..], &good[..]].concat())),
            ("a byte after the request", data(codec, &[&good[..], b"1"].concat())),
            ("half of a request", data(codec, &good[..good.len() / 2])),
            ("only nesting", data(codec, &vec![if codec == Codec::Json { b'[' } else { 0x91 }; 100_000])),
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
async fn a_violation_of_rfc_6455_closes_the_socket_with_4504() {
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
async fn a_frame_over_the_size_limit_closes_the_socket_with_4505_before_its_payload() {
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
    // The payloads never come: if the server waited for one, it would close for silence, with another code.
    assert_closes(&app, &token, Codec::Json, TOO_LARGE, &cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_exactly_the_size_limit_is_served_whole_and_fragmented() {
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
        // Byte by byte, so that every header and character is split.
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
async fn deeply_nested_values_do_not_crash_the_server() {
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
async fn a_flood_of_pings_does_not_block_requests() {
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
