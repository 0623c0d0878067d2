//! Publishing and claiming keys.

use std::collections::HashSet;

use futures_util::future::join_all;
use sealwire::{
    domain::{
        Bundles, Caller, ChallengeId, ClaimId, DeviceId, KeyKind, OneTimeOutcome, Refusal, SessionId, Signal, Suite,
        UserId,
        publish::{PublishRequest, SignedKey},
        signature::{x25519_public, xeddsa_sign},
    },
    store::{ClaimAnswer, ClaimRequest, Claims, Store},
};
use uuid::Uuid;

use super::{
    add_device, claim, claimed, claims, complete, email, identity, key, keys_status, later, new_session, pq_key,
    publish, publish_request, refusal, signed, start, typed,
};

pub async fn a_publish_reports_the_outcome_of_each_key(store: &Store) {
    let owner = add_device(store, "owner").await;
    let claimer = add_device(store, "claimer").await;
    let part = PublishRequest { signed_prekey: None, ..complete([]) };
    assert_eq!(refusal(publish_request(store, &owner, part, start()).await), Refusal::IncompleteKeys);
    assert_eq!(publish(store, &owner, 1..=3, start()).await.unwrap().one_time.accepted, [1, 2, 3]);
    claim(store, &claimer, owner.user, ClaimId(Uuid::new_v4()), later(1)).await.unwrap();
    let mut request = complete([1, 2, 3, 4]);
    request.one_time[2].public_key = key(99);
    let outcome = publish_request(store, &owner, request, later(2)).await.unwrap();
    assert_eq!(outcome.one_time.already_issued, [1]);
    assert_eq!(outcome.one_time.duplicate, [2]);
    assert_eq!(outcome.one_time.conflict, [3]);
    assert_eq!(outcome.one_time.accepted, [4]);
    assert_eq!(outcome.status.pool_version, 2);
    let same = publish(store, &owner, [2], later(3)).await.unwrap();
    assert_eq!(same.status.pool_version, 2, "nothing was added");
    for chunk in (5..=600).collect::<Vec<_>>().chunks(100) {
        publish(store, &owner, chunk.iter().copied(), later(4)).await.unwrap();
    }
    let status = keys_status(store, owner.device).await;
    assert_eq!(status.one_time, 500);
    let full = publish(store, &owner, [9, 1000], later(5)).await.unwrap();
    assert_eq!((full.one_time.duplicate, full.one_time.over_cap), (vec![9], vec![1000]));
    let other = other_identity().verify(None, HashSet::new(), later(100)).unwrap();
    assert_eq!(refusal(store.publish(&owner, &other, later(5)).await), Refusal::IdentityConflict);
}

/// Returns a complete first publish with a different identity key than all other publishes here.
fn other_identity() -> PublishRequest {
    let private = [9; 32];
    let public_key = key(1);
    let signature = xeddsa_sign(&private, &public_key, &[3; 64]).to_vec();
    PublishRequest {
        suite: Some(Suite::SignalX3dh),
        identity_key: Some(typed(5, &x25519_public(&private))),
        signed_prekey: Some(SignedKey { key_id: 1, public_key, signature }),
        ..PublishRequest::default()
    }
}

pub async fn signatures_of_stored_keys_are_not_verified_again(store: &Store) {
    let owner = add_device(store, "owner").await;
    let first = PublishRequest { pq_one_time: vec![signed(7, pq_key(7)), signed(8, pq_key(8))], ..complete([1]) };
    let (none, known) = store.publish_basis(&owner, &first, start()).await.unwrap();
    assert!(none.is_none() && known.is_empty(), "nothing is stored");
    publish_request(store, &owner, first, start()).await.unwrap();

    let again = PublishRequest { pq_one_time: vec![signed(8, pq_key(8)), signed(9, pq_key(9))], ..complete([]) };
    let (stored, known) = store.publish_basis(&owner, &again, later(1)).await.unwrap();
    assert_eq!(stored, Some(identity()));
    let pair = |key: SignedKey| (key.public_key, key.signature);
    // Signed prekey, last-resort key and the one-time key with the id 8, but neither 7 nor 9.
    let expected = [signed(1, key(1)), signed(1, pq_key(1)), signed(8, pq_key(8))].map(pair);
    assert_eq!(known, HashSet::from(expected));
    assert!(again.clone().verify(stored.as_ref(), known.clone(), later(100)).is_ok());

    // A known signature is not computed again; any other still is.
    let mut forged = signed(9, pq_key(9));
    forged.signature[1] ^= 1;
    let request = PublishRequest { pq_one_time: vec![forged.clone()], ..PublishRequest::default() };
    assert!(request.clone().verify(stored.as_ref(), known.clone(), later(100)).is_err());
    let known = HashSet::from([pair(forged)]);
    assert!(request.verify(stored.as_ref(), known, later(100)).is_ok());
}

pub async fn claims_take_the_oldest_key_and_repeats_take_none(store: &Store) {
    let owner = add_device(store, "owner").await;
    let claimer = add_device(store, "claimer").await;
    publish(store, &owner, [8, 3], start()).await.unwrap();
    publish(store, &owner, [1], later(1)).await.unwrap();
    let mut request = complete([]);
    request.pq_one_time = vec![signed(5, pq_key(5))];
    publish_request(store, &owner, request, later(2)).await.unwrap();
    let ids: Vec<ClaimId> = (0..4).map(|_| ClaimId(Uuid::new_v4())).collect();
    let mut answers = Vec::new();
    for id in &ids {
        answers.push(claim(store, &claimer, owner.user, *id, later(3)).await.unwrap());
    }
    let taken: Vec<_> = answers.iter().map(claimed).collect();
    assert_eq!(taken, [Some(3), Some(8), Some(1), None], "publish order, then key id");
    assert_eq!(answers[3].bundles[0].one_time, OneTimeOutcome::Exhausted);
    let pq = |bundles: &Bundles| bundles.bundles[0].pq_prekey.as_ref().map(|key| (key.key_id, key.last_resort));
    assert_eq!(
        answers.iter().map(pq).collect::<Vec<_>>(),
        [Some((5, false)), Some((1, true)), Some((1, true)), Some((1, true))]
    );
    for (id, answer) in ids.iter().zip(&answers) {
        assert_eq!(claim(store, &claimer, owner.user, *id, later(4)).await.unwrap(), *answer);
    }
    publish(store, &owner, [20], later(5)).await.unwrap();
    let repeated = claim(store, &claimer, owner.user, ids[3], later(6)).await.unwrap();
    assert_eq!(claimed(&repeated), Some(20), "a claim that got none may get one on its repeat");
    let repeats = join_all((0..16).map(|_| claim(store, &claimer, owner.user, ids[0], later(7)))).await;
    assert!(repeats.into_iter().all(|answer| claimed(&answer.unwrap()) == Some(3)));
}

pub async fn claims_in_a_batch_fail_individually(store: &Store) {
    let owner = add_device(store, "owner").await;
    let claimer = add_device(store, "claimer").await;
    publish(store, &owner, 1..=10, start()).await.unwrap();
    let request = |caller: Caller, user: UserId, claim: Uuid| ClaimRequest {
        caller,
        user,
        devices: None,
        suites: sealwire::domain::bundle::UsableSuites::default(),
        claim: ClaimId(claim),
        access: None,
        now: later(1),
    };
    let ended = Caller { session: SessionId(Uuid::new_v4()), ..claimer };
    let twice = Uuid::new_v4();
    let unknown = DeviceId(Uuid::new_v4());
    let named = ClaimRequest {
        devices: Some(vec![owner.device, unknown, claimer.device]),
        suites: sealwire::domain::bundle::UsableSuites::default(),
        ..request(claimer, owner.user, Uuid::new_v4())
    };
    let items = vec![
        request(claimer, owner.user, twice),
        request(ended, owner.user, Uuid::new_v4()),
        request(claimer, UserId(Uuid::new_v4()), Uuid::new_v4()),
        request(claimer, owner.user, twice),
        named,
    ];
    let batch = claims(store, 0).claim(items).await;
    let mut answers = batch.answers.into_iter().map(|answer| match answer {
        Ok(ClaimAnswer::Done(bundles)) => Ok(bundles),
        Ok(ClaimAnswer::Blocked(_)) => panic!("no key is locked"),
        Err(error) => Err(refusal::<()>(Err(error))),
    });
    let first = answers.next().unwrap().unwrap();
    assert_eq!(claimed(&first), Some(1));
    assert_eq!(answers.next().unwrap(), Err(Refusal::SessionRevoked));
    assert_eq!(answers.next().unwrap(), Err(Refusal::NotFound));
    assert_eq!(answers.next().unwrap().unwrap(), first, "a repeat in the same batch gets the same key");
    let named = answers.next().unwrap().unwrap();
    assert_eq!(claimed(&named), Some(2));
    let unavailable: Vec<_> = named.unavailable.iter().map(|one| one.device_id).collect();
    assert_eq!(unavailable, [unknown, claimer.device]);
}

/// Claims once for each id, all in one batch, and returns the bundles and the signals.
async fn claim_batch(
    claims: &Claims,
    claimer: &Caller,
    user: UserId,
    ids: &[ClaimId],
) -> (Vec<Bundles>, Vec<(DeviceId, Signal)>) {
    let request = |claim: &ClaimId| ClaimRequest {
        caller: *claimer,
        user,
        devices: None,
        suites: sealwire::domain::bundle::UsableSuites::default(),
        claim: *claim,
        access: None,
        now: later(9),
    };
    let batch = claims.claim(ids.iter().map(request).collect()).await;
    let answers = batch.answers.into_iter().map(|answer| match answer.unwrap() {
        ClaimAnswer::Done(bundles) => bundles,
        ClaimAnswer::Blocked(_) => panic!("no key is locked"),
    });
    (answers.collect(), batch.signals)
}

pub async fn claims_in_a_batch_take_keys_in_order(store: &Store) {
    let one = add_device(store, "owner").await;
    let other = add_device(store, "owner").await;
    let bystander = add_device(store, "bystander").await;
    let claimer = add_device(store, "claimer").await;
    publish(store, &bystander, 1..=5, start()).await.unwrap();
    publish(store, &one, [7, 2], start()).await.unwrap();
    publish(store, &one, [1], later(1)).await.unwrap();
    let mut request = complete([4]);
    request.pq_one_time = [6, 5].map(|id| signed(id, pq_key(id))).to_vec();
    publish_request(store, &other, request, later(2)).await.unwrap();

    let mut ids: Vec<ClaimId> = (0..4).map(|_| ClaimId(Uuid::new_v4())).collect();
    ids.insert(1, ids[0]);
    let off = claims(store, 0);
    let (answers, mut low) = claim_batch(&off, &claimer, one.user, &ids).await;
    let of = |device: &Caller| {
        let bundle =
            |answer: &Bundles| answer.bundles.iter().find(|one| one.device_id == device.device).cloned().unwrap();
        answers.iter().map(bundle).collect::<Vec<_>>()
    };
    let one_time =
        |device| of(device).into_iter().map(|one| one.one_time_prekey.map(|key| key.key_id)).collect::<Vec<_>>();
    assert_eq!(
        one_time(&one),
        [Some(2), Some(2), Some(7), Some(1), None],
        "publish order, then key id; a repeat gets the same key"
    );
    assert_eq!(one_time(&other), [Some(4), Some(4), None, None, None]);
    let pq = |device| {
        of(device).into_iter().map(|one| one.pq_prekey.map(|key| (key.key_id, key.last_resort))).collect::<Vec<_>>()
    };
    assert_eq!(pq(&other), [Some((5, false)), Some((5, false)), Some((6, false)), Some((1, true)), Some((1, true))]);
    assert_eq!(pq(&one), [Some((1, true)); 5]);
    for (answer, expected) in of(&other).iter().zip([true, true, false, false, false]) {
        let outcome = if expected { OneTimeOutcome::Claimed } else { OneTimeOutcome::Exhausted };
        assert_eq!(answer.one_time, outcome);
    }
    let empty =
        |device: &Caller, kind, pool_version| (device.device, Signal::PrekeysLow { kind, remaining: 0, pool_version });
    let mut expected = vec![
        empty(&one, KeyKind::OneTime, 2),
        empty(&other, KeyKind::OneTime, 1),
        empty(&other, KeyKind::PqOneTime, 1),
    ];
    let in_order = |(device, signal): &(DeviceId, Signal)| (*device, format!("{signal:?}"));
    low.sort_by_key(in_order);
    expected.sort_by_key(in_order);
    assert_eq!(low, expected, "each pool is announced once");

    let (again, low) = claim_batch(&off, &claimer, one.user, &ids).await;
    assert_eq!(
        (again, low),
        (answers.clone(), Vec::new()),
        "a repeated batch gets the same keys and announces nothing"
    );
    assert_eq!(keys_status(store, bystander.device).await.one_time, 5);
}

pub async fn each_claimed_key_takes_one_token_of_the_drain_limit(store: &Store) {
    let owner = add_device(store, "owner").await;
    let claimer = add_device(store, "claimer").await;
    publish(store, &owner, 1..=3, start()).await.unwrap();
    let ids: Vec<ClaimId> = (0..3).map(|_| ClaimId(Uuid::new_v4())).collect();
    let two_at_once = claims(store, 2);
    let outcomes = |answers: &[Bundles]| answers.iter().map(|one| one.bundles[0].one_time).collect::<Vec<_>>();
    let (answers, _) = claim_batch(&two_at_once, &claimer, owner.user, &ids).await;
    assert_eq!(outcomes(&answers), [OneTimeOutcome::Claimed, OneTimeOutcome::Claimed, OneTimeOutcome::Limited]);
    assert_eq!(answers[2].bundles[0].pq_prekey.as_ref().map(|key| key.last_resort), Some(true));
    assert_eq!(claimed(&claim(store, &claimer, owner.user, ids[2], later(9)).await.unwrap()), Some(3));
    let one_at_once = claims(store, 1);
    for _ in 0..3 {
        let id = ClaimId(Uuid::new_v4());
        let (answers, _) = claim_batch(&one_at_once, &claimer, owner.user, &[ids[0], id]).await;
        assert_eq!(
            outcomes(&answers),
            [OneTimeOutcome::Claimed, OneTimeOutcome::Exhausted],
            "neither a repeat nor an empty pool costs a token"
        );
    }
}

pub async fn each_low_level_is_announced_once_until_a_publish_lifts_the_pool_above_it(store: &Store) {
    let owner = add_device(store, "owner").await;
    let claimer = add_device(store, "claimer").await;
    publish(store, &owner, 1..=6, start()).await.unwrap();
    let claims = claims(store, 0);
    let mut announced = Vec::new();
    for _ in 0..7 {
        let claim = ClaimId(Uuid::new_v4());
        let request = ClaimRequest {
            caller: claimer,
            user: owner.user,
            devices: None,
            suites: sealwire::domain::bundle::UsableSuites::default(),
            claim,
            access: None,
            now: later(1),
        };
        let batch = claims.claim(vec![request]).await;
        announced.extend(batch.signals.into_iter().map(|(device, signal)| {
            assert_eq!(device, owner.device);
            match signal {
                Signal::PrekeysLow { kind: KeyKind::OneTime, remaining, pool_version: 1 } => remaining,
                other => panic!("{other:?}"),
            }
        }));
    }
    assert_eq!(announced, [4, 2, 1, 0]);
    publish(store, &owner, 11..=13, later(2)).await.unwrap();
    let claim = ClaimId(Uuid::new_v4());
    let request = ClaimRequest {
        caller: claimer,
        user: owner.user,
        devices: None,
        suites: sealwire::domain::bundle::UsableSuites::default(),
        claim,
        access: None,
        now: later(3),
    };
    let batch = claims.claim(vec![request]).await;
    let signal = Signal::PrekeysLow { kind: KeyKind::OneTime, remaining: 2, pool_version: 2 };
    assert_eq!(
        batch.signals,
        [(owner.device, signal)],
        "levels are announced again after a publish has lifted the pool above them"
    );
}

pub async fn revoked_and_expired_sessions_cannot_do_anything(store: &Store) {
    let caller = add_device(store, "alice").await;
    let other = add_device(store, "alice").await;
    publish(store, &other, 1..=2, start()).await.unwrap();
    let (revoked, address, others) = store.revoke_device(&other, caller.device, later(1)).await.unwrap();
    assert_eq!((revoked.sessions, address, others), (vec![caller.session], email("alice"), vec![other.device]));
    assert_eq!(refusal(store.revoke_device(&other, caller.device, later(1)).await), Refusal::UnknownDevice);
    let gone = Refusal::SessionRevoked;
    assert_eq!(refusal(publish(store, &caller, 1..=2, later(2)).await), gone);
    assert_eq!(refusal(claim(store, &caller, other.user, ClaimId(Uuid::new_v4()), later(2)).await), gone);
    assert_eq!(refusal(store.rename_device(&caller, other.device, "x", later(2)).await), gone);
    assert_eq!(refusal(store.revoke_device(&caller, other.device, later(2)).await), gone);
    assert_eq!(refusal(store.renew_session(&caller, &new_session(later(2)), later(2)).await), gone);
    assert_eq!(refusal(store.end_session(&caller, later(2)).await), gone);
    assert_eq!(refusal(store.delete_account(&caller, ChallengeId(Uuid::nil()), later(2)).await), gone);
    assert_eq!(
        refusal(
            store
                .fetch(&caller, other.user, None, &sealwire::domain::bundle::UsableSuites::default(), None, later(2))
                .await
        ),
        gone
    );
    assert_eq!(keys_status(store, other.device).await.one_time, 2);
    let expired = later(3601);
    assert_eq!(refusal(publish(store, &other, 3..=4, expired).await), gone);
}
