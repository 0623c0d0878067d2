//! Pools of one-time keys, over the socket: `replace`, `digest` and `expect_pool_version`.

use base64::{Engine, engine::general_purpose::STANDARD};
use sealwire::domain::Suite;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::support::{Codec, KeySet, Socket, TestApp, code, sign_in};

/// Computes the digest of published keys as `docs/protocol.md` defines it.
fn digest(one_time: &[&Value], pq_one_time: &[&Value], signed: &Value, last_resort: Option<&Value>) -> String {
    let mut hash = Sha256::new();
    let sorted = |keys: &[&Value]| {
        let mut keys: Vec<Value> = keys.iter().map(|key| (*key).clone()).collect();
        keys.sort_by_key(|key| key["key_id"].as_u64());
        keys
    };
    let parts = [
        ("one_time", sorted(one_time)),
        ("pq_one_time", sorted(pq_one_time)),
        ("signed", vec![signed.clone()]),
        ("pq_last_resort", last_resort.into_iter().cloned().collect()),
    ];
    for (kind, keys) in parts {
        for key in keys {
            hash.update(kind);
            hash.update(u32::try_from(key["key_id"].as_u64().unwrap()).unwrap().to_be_bytes());
            hash.update(STANDARD.decode(key["public_key"].as_str().unwrap()).unwrap());
        }
    }
    STANDARD.encode(hash.finalize())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_restored_from_a_backup_withdraws_the_keys_that_it_lost() {
    let app = TestApp::start(&[]);
    for codec in Codec::ALL {
        let owner = sign_in(&app, &format!("owner-{codec:?}@example.org")).await;
        let claimer = sign_in(&app, &format!("claimer-{codec:?}@example.org")).await;
        let socket = Socket::connect(&app, &owner.token, codec).await;
        assert!(socket.welcome["features"].as_array().unwrap().contains(&json!("replace")));
        let mut keys = KeySet::new(Suite::SignalPqxdh, 5);
        let mut backup = keys.complete(1..=3);
        backup["pq_one_time"] = json!([keys.pq_prekey(10), keys.pq_prekey(9)]);
        socket.request("keys.publish", backup.clone()).await;
        // These keys are not in the backup.
        let lost: Vec<_> = (4..=6).map(|id| keys.prekey(id)).collect();
        socket.request("keys.publish", json!({ "one_time_prekeys": lost })).await;

        let list = |field: &str| backup[field].as_array().unwrap().iter().collect::<Vec<_>>();
        let (signed, last_resort) = (&backup["signed_prekey"], &backup["pq_last_resort"]);
        let expected = digest(&list("one_time_prekeys"), &list("pq_one_time"), signed, Some(last_resort));
        let status = socket.request("keys.status", json!({ "digest": true })).await;
        assert_ne!(status["digest"], expected, "the server has keys that the device lost");
        let replacement = json!({
            "replace": true,
            "expect_pool_version": status["pool_version"],
            "one_time_prekeys": backup["one_time_prekeys"],
            "pq_one_time": backup["pq_one_time"],
        });
        let reply = socket.request("keys.publish", replacement.clone()).await;
        assert_eq!(reply["one_time"]["withdrawn"], json!([4, 5, 6]));
        assert_eq!(reply["one_time"]["duplicate"], json!([1, 2, 3]));
        assert_eq!(reply["pq_one_time"]["withdrawn"], json!([]));
        let status = socket.request("keys.status", json!({ "digest": true })).await;
        assert_eq!(status["digest"], expected);
        assert!(socket.request("keys.status", json!({})).await.get("digest").is_none());

        // A repeat of the replacement after another publish.
        socket.request("keys.publish", json!({ "one_time_prekeys": [keys.prekey(20)] })).await;
        let late = socket.refused("keys.publish", replacement).await;
        assert_eq!((code(&late), &late["retryable"]), ("pool_changed", &json!(false)));

        let claiming = Socket::connect(&app, &claimer.token, codec).await;
        let mut claimed = Vec::new();
        for _ in 0..4 {
            let params = json!({ "user_id": owner.user, "claim_id": Uuid::new_v4() });
            let bundles = claiming.request("keys.claim", params).await;
            claimed.push(bundles["bundles"][0]["one_time_prekey"]["key_id"].as_u64().unwrap());
        }
        assert_eq!(claimed, [1, 2, 3, 20], "none of the lost keys is claimed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_prekey_that_is_not_newer_is_refused_with_the_id_of_the_served_one() {
    let app = TestApp::start(&[]);
    let owner = sign_in(&app, "owner@example.org").await;
    let socket = Socket::connect(&app, &owner.token, Codec::MsgPack).await;
    let mut keys = KeySet::new(Suite::Ed25519X3dh, 5);
    socket.request("keys.publish", keys.complete([])).await;
    let served = keys.signed_prekey(7);
    socket.request("keys.publish", json!({ "signed_prekey": served })).await;
    for id in [6, 7] {
        let refused = socket.refused("keys.publish", json!({ "signed_prekey": keys.signed_prekey(id) })).await;
        assert_eq!(code(&refused), "stale_signed_prekey");
        assert_eq!((&refused["details"], &refused["retryable"]), (&json!({ "key_id": 7 }), &json!(false)));
    }
    socket.request("keys.publish", json!({ "signed_prekey": served })).await;
    let older = json!({ "signed_prekey": keys.signed_prekey(2), "replace": true });
    let reply = socket.request("keys.publish", older).await;
    assert_eq!(reply["status"]["signed_prekey"]["key_id"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_costs_as_much_as_fifty_requests_but_never_more_than_a_full_burst() {
    for (rate, digests) in [("10", 2), ("1", 1)] {
        let app = TestApp::start(&[("LIMITS__REQUESTS_PER_CONNECTION_SECOND", rate)]);
        let owner = sign_in(&app, "owner@example.org").await;
        let socket = Socket::connect(&app, &owner.token, Codec::Json).await;
        for _ in 0..digests {
            socket.request("keys.status", json!({ "digest": true })).await;
        }
        let refused = socket.refused("keys.status", json!({ "digest": true })).await;
        assert_eq!(code(&refused), "rate_limited");
        assert!(refused["retry_after_ms"].as_u64().unwrap() > 2000, "{refused}");
    }
}
