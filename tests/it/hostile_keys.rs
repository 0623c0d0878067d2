//! `keys.publish`: invalid keys and signatures, values out of bounds, and the rules of the pools.

use std::time::Duration;

use sealwire::domain::Suite;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Codec, KeySet, Socket, TestApp, keys::base64, problem::assert_problem, sign_in};

/// The order of the base point, little-endian (RFC 8032, 5.1).
const L: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// All encodings of u-coordinates of small order (RFC 7748, 7; the list of cr.yp.to/ecdh.html), without the top bit.
fn low_order_points() -> Vec<[u8; 32]> {
    let small = |first: u8| {
        let mut point = [0; 32];
        point[0] = first;
        point
    };
    let near_p = |first: u8| {
        let mut point = [0xff; 32];
        (point[0], point[31]) = (first, 0x7f);
        point
    };
    let order_eight = [
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    ]
    .map(|hex| std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()));
    [small(0), small(1), near_p(0xec), near_p(0xed), near_p(0xee)].into_iter().chain(order_eight).collect()
}

/// Returns the key in the suite's encoding.
fn serialized(suite: Suite, point: &[u8]) -> Vec<u8> {
    if suite == Suite::Ed25519X3dh { point.to_vec() } else { [&[5], point].concat() }
}

/// Returns invalid X25519 keys in the suite's encoding, each with what is wrong with it.
fn bad_curve_keys(suite: Suite) -> Vec<(String, Vec<u8>)> {
    let good = serialized(suite, &[9; 32]);
    let mut keys = vec![
        ("empty".to_owned(), vec![]),
        ("short".to_owned(), good[..good.len() - 1].to_vec()),
        ("long".to_owned(), [&good[..], &[0]].concat()),
    ];
    if suite == Suite::Ed25519X3dh {
        keys.push(("with a type byte".to_owned(), [&[5], &good[..]].concat()));
    } else {
        keys.push(("without its type byte".to_owned(), good[1..].to_vec()));
        for byte in [0, 4, 6, 0x85] {
            keys.push((format!("type byte {byte}"), [&[byte], &good[1..]].concat()));
        }
    }
    for mut point in low_order_points() {
        for _ in 0..2 {
            keys.push((format!("low order {point:x?}"), serialized(suite, &point)));
            point[31] ^= 0x80;
        }
    }
    keys
}

/// Replaces S by S + L. The verification equation still holds, but a verifier must refuse it (RFC 8032, 5.1.7).
fn with_s_plus_l(mut signature: Vec<u8>) -> Vec<u8> {
    let sign = signature[63] & 0x80;
    signature[63] &= 0x7f;
    let mut carry = 0;
    for (byte, l) in signature[32..].iter_mut().zip(L) {
        let sum = u16::from(*byte) + u16::from(l) + carry;
        (*byte, carry) = (sum.to_le_bytes()[0], sum >> 8);
    }
    signature[63] |= sign;
    signature
}

/// Returns invalid signatures of the key, each with what is wrong with it.
fn bad_signatures(keys: &mut KeySet, key: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let good = keys.sign(key);
    let flipped = |at: usize| {
        let mut signature = good.clone();
        signature[at] ^= 1;
        signature
    };
    let other_key = keys.public_key();
    vec![
        ("empty", vec![]),
        ("63 bytes", good[..63].to_vec()),
        ("65 bytes", [&good[..], &[0]].concat()),
        ("zeros", vec![0; 64]),
        ("R flipped", flipped(0)),
        ("S flipped", flipped(32)),
        ("the sign of A flipped", {
            let mut signature = good.clone();
            signature[63] ^= 0x80;
            signature
        }),
        ("S + L", with_s_plus_l(good.clone())),
        ("over another key", keys.sign(&other_key)),
        ("over the key without its first byte", keys.sign(&key[1..])),
        ("by another identity", KeySet::new(keys.suite, 999).sign(key)),
    ]
}

/// A device that publishes keys.
struct Publisher {
    app: TestApp,
    user: String,
    socket: Socket,
    keys: KeySet,
}

impl Publisher {
    async fn new(app: TestApp, suite: Suite, codec: Codec) -> Self {
        let person = sign_in(&app, "owner@example.org").await;
        let socket = Socket::connect(&app, &person.token, codec).await;
        Self { app, user: person.user, socket, keys: KeySet::new(suite, 5) }
    }

    async fn publish(&self, params: Value) -> Value {
        self.socket.request("keys.publish", params).await
    }

    async fn status(&self) -> Value {
        self.socket.request("keys.status", json!({})).await
    }

    /// Publishes keys that must be refused and must change nothing. Returns the details of the error.
    async fn refused(&self, params: Value, code: &str, what: &str) -> Value {
        let before = self.status().await;
        let error = self.socket.refused("keys.publish", params).await;
        assert_problem(&error, code, what);
        assert_eq!(self.status().await, before, "{what}");
        error["details"].clone()
    }

    /// Publishes a bad key beside a good one: both must be refused, and the details must name the bad one.
    async fn assert_key_is_refused(&self, field: &str, key: Value, code: &str, what: &str) {
        let what = format!("{field} {what}");
        let mut params = json!({ field: if field.ends_with("time") || field.ends_with("keys") { json!([key]) } else { key.clone() } });
        // The good key, which must not be stored either.
        let mut more = KeySet::new(self.keys.suite, 77);
        let pool = params.as_object_mut().unwrap().entry("one_time_prekeys").or_insert_with(|| json!([]));
        pool.as_array_mut().unwrap().insert(0, more.prekey(4000));
        let details = self.refused(params, code, &what).await;
        assert_eq!(details, json!({ "field": field, "key_id": key["key_id"] }), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_keys_and_signatures_are_refused_and_named_in_the_error() {
    for suite in Suite::ALL {
        let codec = if suite == Suite::SignalX3dh { Codec::MsgPack } else { Codec::Json };
        let mut owner = Publisher::new(TestApp::start(&[]), suite, codec).await;
        let mut bad_identities = bad_curve_keys(suite);
        if suite == Suite::Ed25519X3dh {
            // Identity keys of this suite are y-coordinates: add one that is off the curve, one that is not canonical,
            // and those of small order.
            bad_identities.retain(|(_, key)| key.len() != 32);
            let mut y = [0; 32];
            for (first, last) in [(0, 0), (1, 0), (2, 0), (1, 0x80), (0, 0x80)] {
                (y[0], y[31]) = (first, last);
                bad_identities.push((format!("y = {y:x?}"), y.to_vec()));
            }
        }
        for (what, key) in bad_identities {
            let mut first = owner.keys.complete(1..=3);
            first["identity_key"] = json!(base64(&key));
            let details = owner.refused(first, "invalid_key", &what).await;
            assert_eq!(details, json!({ "field": "identity_key", "key_id": null }), "{what}");
        }
        let complete = owner.keys.complete(1..=3);
        owner.publish(complete).await;
        for (what, key) in bad_curve_keys(suite) {
            let plain = json!({ "key_id": 5000, "public_key": base64(&key) });
            owner.assert_key_is_refused("one_time_prekeys", plain, "invalid_key", &what).await;
            let signed = owner.keys.signed(5001, &key);
            owner.assert_key_is_refused("signed_prekey", signed, "invalid_key", &what).await;
        }
        let key = owner.keys.public_key();
        for (what, signature) in bad_signatures(&mut owner.keys, &key) {
            let signed = json!({ "key_id": 5002, "public_key": base64(&key), "signature": base64(&signature) });
            owner.assert_key_is_refused("signed_prekey", signed, "invalid_signature", what).await;
        }
        if suite.has_pq() {
            assert_bad_pq_keys_are_refused(&mut owner).await;
        } else {
            let pq = KeySet::new(Suite::SignalPqxdh, 6).pq_prekey(1);
            owner
                .refused(json!({ "pq_last_resort": pq }), "bad_request", "a last-resort key in a suite without PQ")
                .await;
            owner
                .refused(json!({ "pq_one_time": [pq] }), "bad_request", "one-time PQ keys in a suite without PQ")
                .await;
            let empty = owner.publish(json!({ "pq_one_time": [], "pq_last_resort": null })).await;
            assert_eq!(empty["status"], owner.status().await);
        }
    }
}

async fn assert_bad_pq_keys_are_refused(owner: &mut Publisher) {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let good = STANDARD.decode(owner.keys.pq_prekey(1)["public_key"].as_str().unwrap()).unwrap();
    let over_modulus = {
        let mut key = good.clone();
        // The first coefficient becomes 3329, the modulus itself.
        (key[1], key[2]) = (0x01, (key[2] & 0xf0) | 0x0d);
        key
    };
    let bad = [
        ("truncated", good[..1568].to_vec()),
        ("long", [&good[..], &[0]].concat()),
        ("without its type byte", good[1..].to_vec()),
        ("type byte 5", [&[5], &good[1..]].concat()),
        ("type byte 7", [&[7], &good[1..]].concat()),
        ("a curve key", owner.keys.public_key()),
        ("empty", vec![]),
        ("a coefficient of q", over_modulus),
        ("all ones", [&[0x0a][..], &[0xff; 1568]].concat()),
    ];
    for field in ["pq_last_resort", "pq_one_time"] {
        for (what, key) in &bad {
            let signed = owner.keys.signed(5003, key);
            owner.assert_key_is_refused(field, signed, "invalid_key", what).await;
        }
        for (what, signature) in bad_signatures(&mut owner.keys, &good) {
            let signed = json!({ "key_id": 5004, "public_key": base64(&good), "signature": base64(&signature) });
            owner.assert_key_is_refused(field, signed, "invalid_signature", what).await;
        }
    }
    let kyber = owner.keys.signed(2, &[&[8], &good[1..]].concat());
    owner.publish(json!({ "pq_last_resort": kyber })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_publish_must_be_complete_and_fixes_suite_and_identity_key() {
    let mut owner = Publisher::new(TestApp::start(&[]), Suite::SignalPqxdh, Codec::Json).await;
    let complete = owner.keys.complete(1..=2);
    for part in ["suite", "identity_key", "signed_prekey", "pq_last_resort"] {
        let mut params = complete.clone();
        params.as_object_mut().unwrap().remove(part);
        owner.refused(params.clone(), "incomplete_keys", part).await;
        params[part] = Value::Null;
        owner.refused(params, "incomplete_keys", part).await;
    }
    owner.refused(json!({}), "incomplete_keys", "nothing").await;
    owner.refused(json!({ "suite": "signal-pqxdh ", "identity_key": "BQ" }), "bad_request", "no such suite").await;
    owner.publish(complete.clone()).await;
    owner.publish(complete).await;
    let same = json!({ "suite": "signal-pqxdh", "identity_key": base64(&owner.keys.identity) });
    assert_eq!(owner.publish(same).await["status"], owner.status().await);
    let other_key = base64(&owner.keys.public_key());
    for other in
        [json!({ "suite": "signal-x3dh" }), json!({ "identity_key": other_key }), json!({ "identity_key": "" })]
    {
        owner.refused(other.clone(), "identity_conflict", &other.to_string()).await;
    }
    let both =
        json!({ "suite": "ed25519-x3dh", "identity_key": other_key, "one_time_prekeys": [owner.keys.prekey(9)] });
    owner.refused(both, "identity_conflict", "another suite and identity key, and a prekey").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_with_values_out_of_bounds_is_a_bad_request() {
    let app = TestApp::with_clock(&[]);
    let mut owner = Publisher::new(app, Suite::SignalX3dh, Codec::MsgPack).await;
    let complete = owner.keys.complete(1..=3);
    owner.publish(complete).await;
    let keys =
        |count: u32| (100..100 + count).map(|id| json!({ "key_id": id, "public_key": "AAAA" })).collect::<Vec<_>>();
    owner.refused(json!({ "one_time_prekeys": keys(101) }), "bad_request", "101 keys").await;
    owner.refused(json!({ "one_time_prekeys": keys(5000) }), "bad_request", "5000 keys").await;
    let twice = [owner.keys.prekey(7), owner.keys.prekey(8), owner.keys.prekey(7)];
    owner.refused(json!({ "one_time_prekeys": twice }), "bad_request", "an id twice").await;
    for id in [1_u64 << 31, u64::from(u32::MAX), 1 << 32, u64::MAX] {
        let mut key = owner.keys.prekey(1);
        key["key_id"] = json!(id);
        owner.refused(json!({ "one_time_prekeys": [key] }), "bad_request", "an id out of range").await;
        let mut key = owner.keys.signed_prekey(1);
        key["key_id"] = json!(id);
        owner.refused(json!({ "signed_prekey": key }), "bad_request", "an id out of range").await;
    }
    for text in ["=", "A", "AA=", "AAAA====", "AA-_", "AA AA", "AAAA\n", "é"] {
        let key = json!({ "key_id": 1, "public_key": text });
        owner.refused(json!({ "one_time_prekeys": [key] }), "bad_request", text).await;
    }
    let with = |mut key: Value, expires_at: &str| {
        key["expires_at"] = json!(expires_at);
        json!({ "signed_prekey": key })
    };
    // The clock is at 2026-06-01T12:00:00Z.
    for at in [
        "2026-06-01T12:00:00Z",
        "2026-06-01T11:59:59.999999Z",
        "1970-01-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "2026-08-30T12:00:00.000001Z",
        "9999-12-31T23:59:59Z",
        "2026-06-31T12:00:00Z",
        "2026-07-01",
        "2026-07-01T12:00:00",
        "1782907200",
        "tomorrow",
        "",
    ] {
        let key = owner.keys.signed_prekey(2);
        owner.refused(with(key, at), "bad_request", at).await;
    }
    for (id, at, shown) in [
        (2, "2026-06-01T12:00:00.000001Z", "2026-06-01T12:00:00.000001Z"),
        (3, "2026-08-30T12:00:00Z", "2026-08-30T12:00:00.000000Z"),
        (4, "2026-06-30T23:59:60Z", "2026-06-30T23:59:59.999999Z"),
    ] {
        let key = owner.keys.signed_prekey(id);
        assert_eq!(owner.publish(with(key, at)).await["status"]["signed_prekey"]["expires_at"], shown);
    }
    let without_expiry = owner.keys.signed_prekey(5);
    let status = owner.publish(json!({ "signed_prekey": without_expiry })).await["status"].clone();
    assert_eq!(status["signed_prekey"], json!({ "key_id": 5, "expires_at": "2026-07-01T12:00:00.000000Z" }));
    owner.app.advance(Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_reports_the_outcome_of_each_key_and_the_pool_version_counts_changes() {
    let app = TestApp::start(&[("LIMITS__CLAIM_BURST", "0")]);
    let mut owner = Publisher::new(app, Suite::SignalPqxdh, Codec::Json).await;
    let claimer = sign_in(&owner.app, "claimer@example.org").await;
    let claimer = Socket::connect(&owner.app, &claimer.token, Codec::MsgPack).await;
    let complete = owner.keys.complete([]);
    assert_eq!(owner.publish(complete).await["status"]["pool_version"], 0, "no pool has changed");
    let first: Vec<Value> = (0..100).map(|id| owner.keys.prekey(id)).collect();
    let pq = owner.keys.pq_prekey(0);
    let pq_keys = |ids: std::ops::Range<u32>| -> Vec<Value> {
        let with_id = |id| {
            let mut key = pq.clone();
            key["key_id"] = json!(id);
            key
        };
        ids.map(with_id).collect()
    };
    let outcome = owner.publish(json!({ "one_time_prekeys": first, "pq_one_time": pq_keys(0..100) })).await;
    assert_eq!(outcome["one_time"]["accepted"].as_array().unwrap().len(), 100);
    assert_eq!(outcome["status"]["pool_version"], 1, "each publish adds one");
    let bundle = claimer.request("keys.claim", json!({ "user_id": owner.user, "claim_id": Uuid::nil() })).await;
    assert_eq!(bundle["bundles"][0]["one_time_prekey"], first[0]);
    let again = [first[0].clone(), owner.keys.prekey(1), first[2].clone()];
    let outcome = owner.publish(json!({ "one_time_prekeys": again, "pq_one_time": pq_keys(0..2) })).await;
    let none: [u32; 0] = [];
    let sorted = json!({ "accepted": none, "duplicate": [2], "conflict": [1], "already_issued": [0], "over_cap": none, "withdrawn": none });
    assert_eq!(outcome["one_time"], sorted);
    assert_eq!(outcome["pq_one_time"]["already_issued"], json!([0]));
    assert_eq!(outcome["pq_one_time"]["duplicate"], json!([1]));
    assert_eq!(outcome["status"]["pool_version"], 1, "nothing was added");
    let unpadded = json!({ "key_id": 2, "public_key": first[2]["public_key"].as_str().unwrap().trim_end_matches('=') });
    let outcome = owner.publish(json!({ "one_time_prekeys": [unpadded] })).await;
    assert_eq!(outcome["one_time"]["duplicate"], json!([2]));
    // The pool has 99 unissued keys; 401 more fit.
    for hundred in 1..=4 {
        let keys: Vec<Value> = (hundred * 100..(hundred + 1) * 100).map(|id| owner.keys.prekey(id)).collect();
        owner
            .publish(json!({ "one_time_prekeys": keys, "pq_one_time": pq_keys(hundred * 100..(hundred + 1) * 100) }))
            .await;
    }
    let last = [
        owner.keys.prekey(2_147_483_647),
        owner.keys.prekey(600),
        first[3].clone(),
        owner.keys.prekey(0),
        owner.keys.prekey(4),
    ];
    let outcome = owner.publish(json!({ "one_time_prekeys": last, "pq_one_time": pq_keys(599..601) })).await;
    let sorted = json!({
        "accepted": [2_147_483_647], "duplicate": [3], "conflict": [4], "already_issued": [0], "over_cap": [600],
        "withdrawn": none,
    });
    assert_eq!(outcome["one_time"], sorted);
    assert_eq!(outcome["pq_one_time"]["accepted"], json!([599]));
    assert_eq!(outcome["pq_one_time"]["over_cap"], json!([600]));
    let status = &outcome["status"];
    assert_eq!((&status["one_time"], &status["pq_one_time"]), (&json!(500), &json!(500)));
    assert_eq!(status["pool_version"], 6);
    // The signed prekey and the last-resort key are replaced, and do not belong to the pools.
    let (signed, last_resort) = (owner.keys.signed_prekey(9), owner.keys.pq_prekey(0));
    let outcome = owner.publish(json!({ "signed_prekey": signed, "pq_last_resort": last_resort })).await;
    assert_eq!(outcome["status"]["pool_version"], 6);
    let fetched = claimer.request("keys.fetch", json!({ "user_id": owner.user })).await["bundles"][0].clone();
    assert_eq!(fetched["signed_prekey"]["public_key"], signed["public_key"]);
    assert_eq!(fetched["pq_prekey"]["public_key"], last_resort["public_key"]);
    assert_eq!(fetched["pq_prekey"]["last_resort"], true);
}
