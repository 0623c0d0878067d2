//! Random input: whatever comes in, the decoders do not panic and the server stays up.

use std::{
    collections::HashSet,
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering},
    },
};

use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use reqwest::Method;
use sealwire::{domain::Timestamp, edge};
use sealwire_protocol::{
    Codec as Format,
    devices::{RenameDeviceRequest, RevokeDeviceRequest},
    frame::RequestOutline,
    keys::{ClaimKeysRequest, FetchKeysRequest, KeysStatusRequest, PublishKeysRequest},
    messages::{AckMessagesRequest, SendMessageRequest},
    users::FindUserRequest,
};
use serde_json::{Map, Value, json};

use crate::support::{
    Codec, Person, TestApp,
    http::call,
    raw::{RawSocket, data, encode, frame},
    sign_in,
};

/// Reads the bytes as a frame and as the parameters of every op.
fn read(format: Format, bytes: &[u8]) {
    let Ok(request) = RequestOutline::decode(format, bytes) else { return };
    let _ = request.params::<KeysStatusRequest>(format, bytes);
    let _ = request
        .params::<RenameDeviceRequest>(format, bytes)
        .map(|params| edge::accounts::device_name("name", &params.name).map(str::len));
    let _ = request.params::<RevokeDeviceRequest>(format, bytes);
    let _ = request.params::<FindUserRequest>(format, bytes).map(|params| edge::accounts::email(&params.email));
    let _ =
        request.params::<FetchKeysRequest>(format, bytes).map(|params| edge::keys::named_devices(params.device_ids));
    let _ =
        request.params::<ClaimKeysRequest>(format, bytes).map(|params| edge::keys::named_devices(params.device_ids));
    let publish = request.params::<PublishKeysRequest>(format, bytes);
    let _ = publish.map(|params| {
        edge::keys::publish_request(params)
            .verify(None, HashSet::new(), Timestamp::parse("2026-01-01T00:00:00Z").unwrap())
            .is_ok()
    });
    let _ = request
        .params::<SendMessageRequest<'_>>(format, bytes)
        .map(|params| edge::messages::message(params, format, bytes).map(|message| message.envelopes.len()));
    let _ = request.params::<AckMessagesRequest>(format, bytes).map(edge::messages::acked_seqs);
}

const NAMES: [&str; 29] = [
    "id",
    "op",
    "params",
    "device_id",
    "device_ids",
    "user_id",
    "claim_id",
    "name",
    "email",
    "suite",
    "identity_key",
    "signed_prekey",
    "one_time_prekeys",
    "pq_last_resort",
    "pq_one_time",
    "key_id",
    "public_key",
    "signature",
    "expires_at",
    "message_id",
    "to",
    "messages",
    "type",
    "content",
    "ttl_s",
    "seqs",
    "x",
    "",
    "\0",
];

const WORDS: [&str; 11] = [
    "keys.publish",
    "messages.send",
    "keys.claim",
    "devices.rename",
    "signal-pqxdh",
    "ed25519-x3dh",
    "AAAA",
    "a@example.org",
    "2026-07-01T12:00:00Z",
    "67e55044-10b1-426f-9247-bb680e5fe0c8",
    "\u{10ffff}\0",
];

/// Values that look like parts of requests.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..300_u32).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        proptest::sample::select(&WORDS[..]).prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::vec((proptest::sample::select(&NAMES[..]), inner), 0..6).prop_map(|fields| {
                Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_decoders_do_not_panic_on_random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for format in Format::ALL {
            read(format, &bytes);
        }
    }

    #[test]
    fn the_decoders_do_not_panic_on_random_and_damaged_requests(
        params in value(),
        op in proptest::sample::select(&WORDS[..]),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let request = json!({ "id": 1, "op": op, "params": params });
        for (format, codec) in [(Format::Json, Codec::Json), (Format::MsgPack, Codec::MsgPack)] {
            let mut bytes = encode(codec, &request);
            read(format, &bytes);
            for (at, byte) in &damage {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
            read(format, &bytes);
        }
    }
}

/// Counts the panics of the server's own code in this process, not those of tests, which fail because of them.
fn panics() -> usize {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let in_tests = panic.location().is_some_and(|location| location.file().starts_with("tests/"));
            if !in_tests {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            usual(panic);
        }));
    });
    PANICS.load(Ordering::SeqCst)
}

/// Returns random bytes, or a request with random damage.
fn hostile_payload(rng: &mut StdRng, codec: Codec) -> Vec<u8> {
    let length = rng.random_range(0..200);
    let mut random = vec![0; length];
    rng.fill_bytes(&mut random);
    if rng.random_bool(0.3) {
        return random;
    }
    let pick = |rng: &mut StdRng| WORDS[rng.random_range(0..WORDS.len())];
    let mut params = Map::new();
    for _ in 0..rng.random_range(0..6) {
        let value = match rng.random_range(0..6) {
            0 => json!(rng.random::<u32>()),
            1 => json!([pick(rng), pick(rng)]),
            2 => json!({ "key_id": rng.random::<u32>(), "public_key": pick(rng), "signature": pick(rng) }),
            3 => json!([{ "key_id": rng.random::<u16>(), "public_key": pick(rng) }]),
            4 => Value::Null,
            _ => json!(pick(rng)),
        };
        params.insert(NAMES[rng.random_range(0..NAMES.len())].to_owned(), value);
    }
    let mut bytes = encode(codec, &json!({ "id": rng.random_range(1..1000), "op": pick(rng), "params": params }));
    for _ in 0..rng.random_range(0..3) {
        let at = rng.random_range(0..bytes.len());
        bytes[at] = rng.random();
    }
    bytes
}

async fn fuzz(app: &TestApp, person: &Person, codec: Codec, frames: u32) {
    const PROBE_IDS: u32 = 1_000_000;
    let mut rng = StdRng::seed_from_u64(codec as u64 + 7);
    let (mut socket, _) = RawSocket::connect(app, &person.token, codec).await;
    for n in 0..frames {
        let payload = hostile_payload(&mut rng, codec);
        let mut bytes = data(codec, &payload);
        if rng.random_bool(0.1) {
            // Some frames are hostile to the WebSocket layer, too.
            bytes = frame(rng.random(), &payload[..payload.len().min(100)]);
        }
        socket.send(&bytes).await;
        // Either the socket stays open, as the next request shows, or it closes with the right code.
        socket.send_value(&json!({ "id": PROBE_IDS + n, "op": "keys.status" })).await;
        let is_open = loop {
            match socket.frame().await {
                Some((0x88, payload)) => {
                    let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                    let expected = [4504, 4505].contains(&code) || bytes[0] & 0x0f == 0x08;
                    assert!(expected, "closed with {code} over {bytes:x?}");
                    break false;
                }
                Some((0x81 | 0x82, reply)) => {
                    let reply: Value = match codec {
                        Codec::Json => serde_json::from_slice(&reply).unwrap(),
                        Codec::MsgPack => rmp_serde::from_slice(&reply).unwrap(),
                    };
                    if reply["id"] == PROBE_IDS + n {
                        break true;
                    }
                    assert_ne!(reply["error"]["code"], "internal", "{:?}", String::from_utf8_lossy(&bytes));
                }
                Some(_) => {}
                None => panic!("no Close frame over {bytes:x?}"),
            }
        };
        if !is_open {
            socket = RawSocket::connect(app, &person.token, codec).await.0;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_receives_random_input_stays_up() {
    let before = panics();
    let app = TestApp::start(&[("LIMITS__FIND_PER_USER_HOUR", "0")]);
    let (one, two) = (sign_in(&app, "one@example.org").await, sign_in(&app, "two@example.org").await);
    tokio::join!(fuzz(&app, &one, Codec::Json, 400), fuzz(&app, &two, Codec::MsgPack, 400));
    // Bytes without any framing.
    let mut rng = StdRng::seed_from_u64(99);
    for _ in 0..50 {
        let (mut socket, _) = RawSocket::connect(&app, &one.token, Codec::Json).await;
        let length = rng.random_range(1..300);
        let mut bytes = vec![0; length];
        rng.fill_bytes(&mut bytes);
        socket.send(&bytes).await;
        socket.shutdown().await;
        while socket.frame().await.is_some() {}
    }
    let (status, _) = call(&app, Method::GET, "/healthz", None, None).await;
    assert_eq!(status, 200);
    let (mut socket, _) = RawSocket::connect(&app, &two.token, Codec::MsgPack).await;
    assert!(socket.status(1).await["result"].is_object());
    assert_eq!(panics(), before, "the server's code has panicked");
}
