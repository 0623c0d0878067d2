//! Replacing pools, stale signed prekeys, and the digest of the keys.

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::join_all;
use sealwire::{
    domain::{ClaimId, Refusal, publish::PublishRequest},
    store::Store,
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    LOW_WATERMARK, add_device, claim, claimed, complete, key, keys_status, later, pq_key, publish, publish_request,
    refusal, signed, start,
};

/// A publish with `replace` and one-time keys with these ids. Its other keys are those of [`complete`].
fn replacement(ids: impl IntoIterator<Item = u32>) -> PublishRequest {
    PublishRequest { replace: true, ..complete(ids) }
}

pub async fn a_replacement_withdraws_the_keys_that_it_does_not_contain(store: &Store) {
    let owner = add_device(store, "owner").await;
    let claimer = add_device(store, "claimer").await;
    let first =
        PublishRequest { pq_one_time: (1..=3).map(|id| signed(id, pq_key(100 + id))).collect(), ..complete(1..=5) };
    publish_request(store, &owner, first, start()).await.unwrap();
    let taken = claim(store, &claimer, owner.user, ClaimId(Uuid::new_v4()), later(1)).await.unwrap();
    assert_eq!(claimed(&taken), Some(1));

    let mut request = replacement([1, 2, 3, 9]);
    request.one_time[2].public_key = key(99);
    request.pq_one_time = vec![signed(1, pq_key(101)), signed(3, pq_key(777))];
    let outcome = publish_request(store, &owner, request, later(2)).await.unwrap();
    assert_eq!(outcome.one_time.already_issued, [1], "a tombstone stays");
    assert_eq!(outcome.one_time.duplicate, [2]);
    assert_eq!(outcome.one_time.accepted, [3, 9], "another key with the same id replaces the stored one");
    assert_eq!(outcome.one_time.withdrawn, [4, 5]);
    assert!(outcome.one_time.conflict.is_empty() && outcome.one_time.over_cap.is_empty());
    // The claim issued the first PQ key.
    assert_eq!(outcome.pq_one_time.already_issued, [1]);
    assert_eq!(outcome.pq_one_time.accepted, [3]);
    assert_eq!(outcome.pq_one_time.withdrawn, [2]);
    assert_eq!((outcome.status.one_time, outcome.status.pq_one_time, outcome.status.pool_version), (3, 1, 2));

    // Claims get the new keys, and withdrawn ids can be published again.
    let mut issued = Vec::new();
    for _ in 0..3 {
        let bundles = claim(store, &claimer, owner.user, ClaimId(Uuid::new_v4()), later(3)).await.unwrap();
        let key = bundles.bundles[0].one_time_prekey.clone().unwrap();
        issued.push((key.key_id, key.public_key.decode().unwrap()));
    }
    issued.sort();
    assert_eq!(issued, [(2, key(2)), (3, key(99)), (9, key(9))]);
    assert_eq!(publish(store, &owner, [4], later(4)).await.unwrap().one_time.accepted, [4]);

    // Without lists, both pools are emptied. A repeat withdraws nothing.
    let empty = || PublishRequest { replace: true, ..PublishRequest::default() };
    let outcome = publish_request(store, &owner, empty(), later(5)).await.unwrap();
    assert_eq!((outcome.one_time.withdrawn, outcome.status.one_time), (vec![4], 0));
    let version = outcome.status.pool_version;
    let again = publish_request(store, &owner, empty(), later(6)).await.unwrap();
    assert_eq!((again.one_time.withdrawn, again.status.pool_version), (vec![], version));
}

pub async fn a_full_pool_can_be_replaced(store: &Store) {
    let owner = add_device(store, "owner").await;
    for first in (1..=500).step_by(100) {
        publish(store, &owner, first..first + 100, start()).await.unwrap();
    }
    let outcome = publish_request(store, &owner, replacement(1001..=1100), later(1)).await.unwrap();
    assert_eq!((outcome.one_time.accepted.len(), outcome.one_time.withdrawn.len()), (100, 500));
    assert!(outcome.one_time.withdrawn.is_sorted());
    assert_eq!(outcome.status.one_time, 100);
}

pub async fn a_publish_that_expects_another_pool_version_changes_nothing(store: &Store) {
    let owner = add_device(store, "owner").await;
    let expecting = |version, ids: std::ops::RangeInclusive<u32>| PublishRequest {
        expect_pool_version: Some(version),
        ..replacement(ids)
    };
    let wrong = publish_request(store, &owner, expecting(1, 1..=3), start()).await;
    assert_eq!(refusal(wrong), Refusal::PoolChanged);
    assert!(keys_status(store, owner.device).await.suite.is_none(), "the identity key is not stored either");
    publish_request(store, &owner, expecting(0, 1..=3), start()).await.unwrap();
    // A delayed repeat, after another publish.
    publish(store, &owner, 4..=6, later(1)).await.unwrap();
    assert_eq!(refusal(publish_request(store, &owner, expecting(0, 1..=3), later(2)).await), Refusal::PoolChanged);
    assert_eq!(keys_status(store, owner.device).await.one_time, 6);
    let mut rotating = expecting(1, 1..=3);
    rotating.signed_prekey = Some(signed(7, key(70)));
    assert_eq!(refusal(publish_request(store, &owner, rotating, later(3)).await), Refusal::PoolChanged);
    assert_eq!(keys_status(store, owner.device).await.signed_prekey.unwrap().key_id, 1);
}

pub async fn a_signed_prekey_that_is_not_newer_is_stale(store: &Store) {
    let owner = add_device(store, "owner").await;
    let rotation = |id: u32, secret: u32, replace: bool| PublishRequest {
        signed_prekey: Some(signed(id, key(secret))),
        expires_at: Some(later(10)),
        replace,
        ..PublishRequest::default()
    };
    publish(store, &owner, 1..=3, start()).await.unwrap();
    publish_request(store, &owner, rotation(5, 50, false), later(1)).await.unwrap();
    let before = keys_status(store, owner.device).await;
    // Even long after the served one has expired.
    for (id, secret) in [(4, 40), (5, 51), (0, 1)] {
        let refused = publish_request(store, &owner, rotation(id, secret, false), later(60)).await;
        assert_eq!(refusal(refused), Refusal::StaleSignedPrekey { served: 5 });
    }
    let same = publish_request(store, &owner, rotation(5, 50, false), later(2)).await.unwrap();
    assert_eq!(same.status, before, "the same key changes nothing, not even its expiry");
    let restored = publish_request(store, &owner, rotation(2, 20, true), later(3)).await.unwrap();
    assert_eq!(restored.status.signed_prekey.unwrap().key_id, 2);
    // Last-resort keys are exempt.
    let last_resort =
        |id: u32| PublishRequest { pq_last_resort: Some(signed(id, pq_key(id))), ..PublishRequest::default() };
    for id in [9, 3] {
        let outcome = publish_request(store, &owner, last_resort(id), later(4)).await.unwrap();
        assert_eq!(outcome.status.pq_last_resort.unwrap().key_id, id);
    }
}

pub async fn a_digest_covers_every_key_that_the_server_serves(store: &Store) {
    let owner = add_device(store, "owner").await;
    let claimer = add_device(store, "claimer").await;
    let digest = |parts: &[(&str, u32, Vec<u8>)]| -> String {
        let mut hash = Sha256::new();
        for (kind, id, key) in parts {
            hash.update(kind.as_bytes());
            hash.update(id.to_be_bytes());
            hash.update(key);
        }
        STANDARD.encode(hash.finalize())
    };
    let stored = || async { STANDARD.encode(store.keys_digest(owner.device).await.unwrap()) };
    assert_eq!(stored().await, "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
    // Ids are ordered as numbers, not as text.
    let ids = [300, 7, 20];
    let first =
        PublishRequest { pq_one_time: ids.map(|id| signed(id, pq_key(100 + id))).into(), ..complete([12, 2, 100]) };
    publish_request(store, &owner, first, start()).await.unwrap();
    let one_time = |id| ("one_time", id, key(id));
    let pq = |id| ("pq_one_time", id, pq_key(100 + id));
    let signed_keys = [("signed", 1, key(1)), ("pq_last_resort", 1, pq_key(1))];
    let all = [&[one_time(2), one_time(12), one_time(100), pq(7), pq(20), pq(300)][..], &signed_keys].concat();
    assert_eq!(stored().await, digest(&all));
    // A claim issues the oldest key of each pool. Keys of one publish are equally old, so the smallest id is next.
    claim(store, &claimer, owner.user, ClaimId(Uuid::new_v4()), later(1)).await.unwrap();
    let remaining = [&[one_time(12), one_time(100), pq(20), pq(300)][..], &signed_keys].concat();
    assert_eq!(stored().await, digest(&remaining));
}

pub async fn only_levels_below_the_size_of_a_replaced_pool_are_announced(store: &Store) {
    let owner = add_device(store, "owner").await;
    let claimer = add_device(store, "claimer").await;
    publish(store, &owner, 1..=20, start()).await.unwrap();
    let outcome = publish_request(store, &owner, replacement(1..=LOW_WATERMARK), later(1)).await.unwrap();
    assert_eq!(outcome.status.one_time, LOW_WATERMARK);
    // The reply to the publish reported that the threshold is reached. The next level is half of it.
    let claims = super::claims(store, 0);
    let mut announced = Vec::new();
    for _ in 0..2 {
        let request = super::request(&claimer, owner.user, later(2));
        announced.push(claims.claim(vec![request]).await.signals.len());
    }
    assert_eq!(announced, [0, 1]);
}

pub async fn claims_during_replacements_get_a_key_of_the_pool_at_that_moment(store: &Store) {
    const ROUNDS: u32 = 20;
    let owner = add_device(store, "owner").await;
    let claimer = add_device(store, "claimer").await;
    publish(store, &owner, 0..20, start()).await.unwrap();
    let replacing = async {
        let mut withdrawn = Vec::new();
        for round in 1..=ROUNDS {
            let ids = round * 100..round * 100 + 20;
            let outcome = publish_request(store, &owner, replacement(ids), later(1)).await.unwrap();
            withdrawn.extend(outcome.one_time.withdrawn);
        }
        withdrawn
    };
    let claiming = async {
        let mut issued = Vec::new();
        for _ in 0..ROUNDS * 2 {
            let parallel = (0..3).map(|_| claim(store, &claimer, owner.user, ClaimId(Uuid::new_v4()), later(1)));
            issued.extend(join_all(parallel).await.into_iter().filter_map(|bundles| claimed(&bundles.unwrap())));
        }
        issued
    };
    let (mut withdrawn, mut issued) = tokio::join!(replacing, claiming);
    let count = issued.len();
    issued.sort_unstable();
    issued.dedup();
    assert_eq!(issued.len(), count, "no key is issued twice");
    withdrawn.retain(|id| issued.contains(id));
    assert!(withdrawn.is_empty(), "a withdrawn key is never issued: {withdrawn:?}");
}
