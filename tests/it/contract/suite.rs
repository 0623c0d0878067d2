//! The cases. Each gets an empty store and owns its clock.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use sealwire::{
    domain::{
        Bundles, Caller, ChallengeId, ClaimId, DeviceId, Email, KeyKind, LiveConnection, OneTimeOutcome, Refusal,
        SessionId, Signal, Suite, Timestamp, UserId,
        bucket::DrainLimit,
        publish::{PlainKey, PublishRequest, SignedKey},
    },
    store::{
        ClaimAnswer, ClaimRequest, NewChallenge, NewConnection, NewDevice, NewSession, ResolvedPublish, SignIn, Store,
        StoreError,
    },
};
use uuid::Uuid;

const THRESHOLD: u32 = 4;

fn start() -> Timestamp {
    Timestamp::parse("2026-03-01T08:00:00.123456Z").unwrap()
}

fn later(seconds: u64) -> Timestamp {
    start() + Duration::from_secs(seconds)
}

fn email(name: &str) -> Email {
    Email::parse(&format!("{name}@example.org")).unwrap()
}

fn refusal<T>(result: Result<T, StoreError>) -> Refusal {
    match result {
        Err(StoreError::Refused(refusal)) => refusal,
        Err(error) => panic!("not refused but failed: {error}"),
        Ok(_) => panic!("not refused"),
    }
}

async fn add_challenge(store: &Store, name: &str, now: Timestamp) -> ChallengeId {
    let id = ChallengeId(Uuid::new_v4());
    let challenge = NewChallenge { id, email: email(name), hash: [7; 32], network: [1; 32], created_at: now };
    store.create_challenge(&challenge, |_| None).await.unwrap();
    id
}

fn new_session(now: Timestamp) -> NewSession {
    let id = SessionId(Uuid::new_v4());
    NewSession { id, token_hash: hash(id), expires_at: now + Duration::from_hours(1) }
}

/// The token hash that a session made by these helpers has.
fn hash(session: SessionId) -> [u8; 32] {
    let mut hash = [0; 32];
    hash[..16].copy_from_slice(session.0.as_bytes());
    hash
}

fn sign_in(challenge: ChallengeId, name: &str, now: Timestamp) -> SignIn {
    SignIn {
        challenge,
        email: email(name),
        new_user: UserId(Uuid::new_v4()),
        existing_device: None,
        new_device: NewDevice { id: DeviceId(Uuid::new_v4()), name: Some(name.to_owned()), registration_id: 77 },
        replace: None,
        max_devices: 3,
        session: new_session(now),
        now,
    }
}

async fn add_device(store: &Store, name: &str) -> Caller {
    let challenge = add_challenge(store, name, start()).await;
    store.redeem(&sign_in(challenge, name, start())).await.unwrap().caller
}

pub async fn challenges_are_counted_against_their_address(store: &Store) {
    for minute in 0..3 {
        add_challenge(store, "alice", later(minute * 60)).await;
    }
    add_challenge(store, "bob", later(0)).await;
    let challenge = NewChallenge {
        id: ChallengeId(Uuid::new_v4()),
        email: email("alice"),
        hash: [7; 32],
        network: [2; 32],
        created_at: later(600),
    };
    let wait = Duration::from_secs(42);
    let refused = store
        .create_challenge(&challenge, |past| {
            let times: Vec<_> = past.iter().map(|one| one.created_at).collect();
            assert_eq!(times, [later(120), later(60), later(0)], "newest first, of this address alone");
            assert_eq!(past[0].network, [1; 32]);
            Some(wait)
        })
        .await;
    assert_eq!(refusal(refused), Refusal::RateLimited { retry_after: wait });
    let unknown = store.count_attempt(challenge.id, &email("alice"), later(600)).await;
    assert_eq!(refusal(unknown), Refusal::InvalidCode, "a refused challenge was not written");
    let tomorrow = NewChallenge { created_at: later(24 * 3600 + 60), ..challenge };
    store
        .create_challenge(&tomorrow, |past| {
            assert_eq!(past.len(), 1, "older than a day does not count");
            None
        })
        .await
        .unwrap();
}

pub async fn five_guesses_are_counted_however_they_arrive(store: &Store) {
    let challenge = add_challenge(store, "alice", start()).await;
    let other = store.count_attempt(challenge, &email("bob"), later(1)).await;
    assert_eq!(refusal(other), Refusal::InvalidCode);
    let alice = email("alice");
    let guesses = join_all((0..50).map(|_| store.count_attempt(challenge, &alice, later(1)))).await;
    let (counted, refused): (Vec<_>, Vec<_>) = guesses.into_iter().partition(Result::is_ok);
    assert_eq!(counted.len(), 5);
    assert!(counted.into_iter().all(|hash| hash.unwrap() == [7; 32]));
    assert!(refused.into_iter().all(|one| refusal(one) == Refusal::TooManyAttempts));
    let expired = store.count_attempt(challenge, &alice, later(601)).await;
    assert_eq!(refusal(expired), Refusal::InvalidCode);
}

pub async fn a_refused_sign_in_gives_its_attempt_back(store: &Store) {
    for _ in 0..3 {
        add_device(store, "alice").await;
    }
    let challenge = add_challenge(store, "alice", start()).await;
    for _ in 0..10 {
        store.count_attempt(challenge, &email("alice"), later(1)).await.unwrap();
        let refused = refusal(store.redeem(&sign_in(challenge, "alice", later(1))).await);
        assert!(matches!(refused, Refusal::DeviceLimit { devices } if devices.len() == 3));
    }
    let mut foreign = sign_in(challenge, "alice", later(1));
    foreign.existing_device = Some(add_device(store, "bob").await.device);
    store.count_attempt(challenge, &email("alice"), later(1)).await.unwrap();
    assert_eq!(refusal(store.redeem(&foreign).await), Refusal::UnknownDevice);
    let nobody = add_challenge(store, "nobody", start()).await;
    let mut stranger = sign_in(nobody, "nobody", later(1));
    stranger.replace = foreign.existing_device;
    store.count_attempt(nobody, &email("nobody"), later(1)).await.unwrap();
    assert_eq!(refusal(store.redeem(&stranger).await), Refusal::UnknownDevice);
    assert_eq!(store.user_by_email(&email("nobody")).await.unwrap(), None, "a refusal makes no user");
    stranger.replace = None;
    store.redeem(&stranger).await.unwrap();
}

pub async fn one_of_two_parallel_sign_ins_wins(store: &Store) {
    for round in 0..10 {
        let name = format!("alice{round}");
        let challenge = add_challenge(store, &name, start()).await;
        let (one, two) = (sign_in(challenge, &name, later(1)), sign_in(challenge, &name, later(1)));
        let (one, two) = tokio::join!(store.redeem(&one), store.redeem(&two));
        let (won, lost) = if one.is_ok() { (one, two) } else { (two, one) };
        assert!(won.is_ok());
        assert_eq!(refusal(lost), Refusal::InvalidCode);
    }
}

pub async fn a_new_address_that_signs_in_twice_at_once_is_one_user(store: &Store) {
    for round in 0..10 {
        let name = format!("alice{round}");
        let mut sign_ins = Vec::new();
        for _ in 0..3 {
            sign_ins.push(sign_in(add_challenge(store, &name, start()).await, &name, later(1)));
        }
        let redeemed = join_all(sign_ins.iter().map(|one| store.redeem(one))).await;
        let users: std::collections::HashSet<_> =
            redeemed.iter().map(|one| one.as_ref().unwrap().caller.user).collect();
        assert_eq!(users.len(), 1);
        let newcomers = redeemed.iter().filter(|one| !one.as_ref().unwrap().added_to_known_user).count();
        assert!(newcomers >= 1);
    }
}

pub async fn a_replaced_device_loses_everything_at_once(store: &Store) {
    let old = add_device(store, "alice").await;
    let other = add_device(store, "alice").await;
    publish(store, &old, 1..=5, start()).await.unwrap();
    let mut exchange = sign_in(add_challenge(store, "alice", start()).await, "alice", later(1));
    exchange.replace = Some(old.device);
    let redeemed = store.redeem(&exchange).await.unwrap();
    assert_eq!(redeemed.others, [other.device]);
    assert_eq!(refusal(store.check_session(&old, later(2)).await), Refusal::SessionRevoked);
    assert_eq!(refusal(store.present(&hash(old.session), later(2)).await), Refusal::Unauthorized);
    let devices: Vec<_> = store.list_devices(&other, later(2)).await.unwrap().into_iter().map(|d| d.id).collect();
    assert_eq!(devices.len(), 2);
    assert!(!devices.contains(&old.device));
    assert_eq!(store.keys_status(old.device, THRESHOLD).await.unwrap().one_time, 0);
}

pub async fn a_renewed_session_has_one_successor(store: &Store) {
    let old = add_device(store, "alice").await;
    let (first, second) = (new_session(later(1)), new_session(later(2)));
    store.renew_session(&old, &first, later(1)).await.unwrap();
    let as_first = Caller { session: first.id, ..old };
    store.renew_session(&as_first, &second, later(2)).await.unwrap();
    assert_eq!(refusal(store.present(&hash(first.id), later(3)).await), Refusal::Unauthorized);
    assert!(store.present(&hash(old.session), later(3)).await.unwrap().superseded.is_none());
    let presented = store.present(&hash(second.id), later(3)).await.unwrap();
    assert_eq!(presented.superseded, Some(old.session));
    assert_eq!(presented.session.caller.session, second.id);
    assert_eq!(refusal(store.present(&hash(old.session), later(3)).await), Refusal::Unauthorized);
    assert!(store.present(&hash(second.id), later(3)).await.unwrap().superseded.is_none());
}

pub async fn logout_ends_the_pair(store: &Store) {
    for by_successor in [false, true] {
        let old = add_device(store, "alice").await;
        let bystander = add_device(store, "bob").await;
        let successor = new_session(later(1));
        store.renew_session(&old, &successor, later(1)).await.unwrap();
        let who = if by_successor { Caller { session: successor.id, ..old } } else { old };
        let mut ended = store.end_session(&who, later(2)).await.unwrap();
        ended.sort_unstable();
        let mut pair = [old.session, successor.id];
        pair.sort_unstable();
        assert_eq!(ended, pair);
        assert_eq!(refusal(store.end_session(&old, later(3)).await), Refusal::SessionRevoked);
        store.check_session(&bystander, later(3)).await.unwrap();
        store.delete_account(&bystander, later(3)).await.unwrap();
    }
}

fn key(id: u32) -> Vec<u8> {
    let mut key = vec![5; 29];
    key.extend(id.to_be_bytes());
    key
}

fn complete(ids: impl IntoIterator<Item = u32>) -> PublishRequest {
    PublishRequest {
        suite: Some(Suite::SignalPqxdh),
        identity_key: Some(key(0)),
        signed_prekey: Some(SignedKey { key_id: 1, public_key: key(1), signature: vec![9; 64] }),
        one_time: ids.into_iter().map(|id| PlainKey { key_id: id, public_key: key(id) }).collect(),
        pq_last_resort: Some(SignedKey { key_id: 1, public_key: key(1), signature: vec![9; 64] }),
        ..PublishRequest::default()
    }
}

async fn publish_request(
    store: &Store,
    caller: &Caller,
    request: PublishRequest,
    now: Timestamp,
) -> Result<sealwire::store::PublishOutcome, StoreError> {
    let publish = ResolvedPublish {
        caller: *caller,
        request,
        suite: Suite::SignalPqxdh,
        identity_key: key(0),
        signed_prekey_expires_at: now + Duration::from_hours(720),
        now,
        threshold: THRESHOLD,
    };
    store.publish(&publish).await
}

async fn publish(
    store: &Store,
    caller: &Caller,
    ids: impl IntoIterator<Item = u32>,
    now: Timestamp,
) -> Result<sealwire::store::PublishOutcome, StoreError> {
    publish_request(store, caller, complete(ids), now).await
}

async fn claim(
    store: &Store,
    caller: &Caller,
    user: UserId,
    claim: ClaimId,
    now: Timestamp,
) -> Result<Bundles, StoreError> {
    let drain = Arc::new(DrainLimit::new(0, Duration::from_secs(1)));
    let request = ClaimRequest { caller: *caller, user, devices: None, claim, now };
    let mut batch = store.claim(vec![request], &drain, THRESHOLD).await;
    match batch.answers.remove(0)? {
        ClaimAnswer::Done(bundles) => Ok(bundles),
        ClaimAnswer::Short(short) => Ok(store.settle(*short, THRESHOLD).await?.0),
    }
}

fn claimed(bundles: &Bundles) -> Option<u32> {
    bundles.bundles[0].one_time_prekey.as_ref().map(|key| key.key_id)
}

pub async fn a_publish_sorts_every_key(store: &Store) {
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
    let status = store.keys_status(owner.device, THRESHOLD).await.unwrap();
    assert_eq!(status.one_time, 500);
    let full = publish(store, &owner, [9, 1000], later(5)).await.unwrap();
    assert_eq!((full.one_time.duplicate, full.one_time.over_cap), (vec![9], vec![1000]));
    let mut other = complete([]);
    other.identity_key = Some(key(1));
    let conflict = ResolvedPublish {
        caller: owner,
        request: other,
        suite: Suite::SignalPqxdh,
        identity_key: key(1),
        signed_prekey_expires_at: later(100),
        now: later(5),
        threshold: THRESHOLD,
    };
    assert_eq!(refusal(store.publish(&conflict).await), Refusal::IdentityConflict);
}

pub async fn claims_take_the_oldest_and_repeats_take_nothing(store: &Store) {
    let owner = add_device(store, "owner").await;
    let claimer = add_device(store, "claimer").await;
    publish(store, &owner, [8, 3], start()).await.unwrap();
    publish(store, &owner, [1], later(1)).await.unwrap();
    let mut request = complete([]);
    request.pq_one_time = vec![SignedKey { key_id: 5, public_key: key(5), signature: vec![9; 64] }];
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

pub async fn a_batch_fails_its_items_singly(store: &Store) {
    let owner = add_device(store, "owner").await;
    let claimer = add_device(store, "claimer").await;
    publish(store, &owner, 1..=10, start()).await.unwrap();
    let request = |caller: Caller, user: UserId, claim: Uuid| ClaimRequest {
        caller,
        user,
        devices: None,
        claim: ClaimId(claim),
        now: later(1),
    };
    let ended = Caller { session: SessionId(Uuid::new_v4()), ..claimer };
    let twice = Uuid::new_v4();
    let stranger = DeviceId(Uuid::new_v4());
    let named = ClaimRequest {
        devices: Some(vec![owner.device, stranger, claimer.device]),
        ..request(claimer, owner.user, Uuid::new_v4())
    };
    let items = vec![
        request(claimer, owner.user, twice),
        request(ended, owner.user, Uuid::new_v4()),
        request(claimer, UserId(Uuid::new_v4()), Uuid::new_v4()),
        request(claimer, owner.user, twice),
        named,
    ];
    let drain = Arc::new(DrainLimit::new(0, Duration::from_secs(1)));
    let batch = store.claim(items, &drain, THRESHOLD).await;
    let mut answers = batch.answers.into_iter().map(|answer| match answer {
        Ok(ClaimAnswer::Done(bundles)) => Ok(bundles),
        Ok(ClaimAnswer::Short(_)) => panic!("nobody holds a key"),
        Err(error) => Err(refusal::<()>(Err(error))),
    });
    let first = answers.next().unwrap().unwrap();
    assert_eq!(claimed(&first), Some(1));
    assert_eq!(answers.next().unwrap(), Err(Refusal::SessionRevoked));
    assert_eq!(answers.next().unwrap(), Err(Refusal::NotFound));
    assert_eq!(answers.next().unwrap().unwrap(), first, "a repeat in the same batch brings the same key");
    let named = answers.next().unwrap().unwrap();
    assert_eq!(claimed(&named), Some(2));
    let unavailable: Vec<_> = named.unavailable.iter().map(|one| one.device_id).collect();
    assert_eq!(unavailable, [stranger, claimer.device]);
}

pub async fn levels_are_announced_once_and_rearmed(store: &Store) {
    let owner = add_device(store, "owner").await;
    let claimer = add_device(store, "claimer").await;
    publish(store, &owner, 1..=6, start()).await.unwrap();
    let drain = Arc::new(DrainLimit::new(0, Duration::from_secs(1)));
    let mut told = Vec::new();
    for _ in 0..7 {
        let claim = ClaimId(Uuid::new_v4());
        let request = ClaimRequest { caller: claimer, user: owner.user, devices: None, claim, now: later(1) };
        let batch = store.claim(vec![request], &drain, THRESHOLD).await;
        told.extend(batch.low.into_iter().map(|(device, signal)| {
            assert_eq!(device, owner.device);
            match signal {
                Signal::PrekeysLow { kind: KeyKind::OneTime, remaining, pool_version: 1 } => remaining,
                other => panic!("{other:?}"),
            }
        }));
    }
    assert_eq!(told, [4, 2, 1, 0]);
    publish(store, &owner, 11..=13, later(2)).await.unwrap();
    let claim = ClaimId(Uuid::new_v4());
    let request = ClaimRequest { caller: claimer, user: owner.user, devices: None, claim, now: later(3) };
    let batch = store.claim(vec![request], &drain, THRESHOLD).await;
    let signal = Signal::PrekeysLow { kind: KeyKind::OneTime, remaining: 2, pool_version: 2 };
    assert_eq!(batch.low, [(owner.device, signal)], "the levels that the publish rose above are armed again");
}

pub async fn revoked_sessions_change_nothing(store: &Store) {
    let caller = add_device(store, "alice").await;
    let other = add_device(store, "alice").await;
    publish(store, &other, 1..=2, start()).await.unwrap();
    assert_eq!(store.revoke_device(&other, caller.device, later(1)).await.unwrap(), [other.device]);
    assert_eq!(refusal(store.revoke_device(&other, caller.device, later(1)).await), Refusal::UnknownDevice);
    let gone = Refusal::SessionRevoked;
    assert_eq!(refusal(publish(store, &caller, 1..=2, later(2)).await), gone);
    assert_eq!(refusal(claim(store, &caller, other.user, ClaimId(Uuid::new_v4()), later(2)).await), gone);
    assert_eq!(refusal(store.rename_device(&caller, other.device, "x", later(2)).await), gone);
    assert_eq!(refusal(store.revoke_device(&caller, other.device, later(2)).await), gone);
    assert_eq!(refusal(store.renew_session(&caller, &new_session(later(2)), later(2)).await), gone);
    assert_eq!(refusal(store.end_session(&caller, later(2)).await), gone);
    assert_eq!(refusal(store.delete_account(&caller, later(2)).await), gone);
    assert_eq!(refusal(store.fetch(&caller, other.user, None, later(2)).await), gone);
    assert_eq!(store.keys_status(other.device, THRESHOLD).await.unwrap().one_time, 2);
    let expired = later(3601);
    assert_eq!(refusal(publish(store, &other, 3..=4, expired).await), gone);
}

pub async fn a_connection_takes_the_next_epoch(store: &Store) {
    let caller = add_device(store, "alice").await;
    let ended = Caller { session: SessionId(Uuid::new_v4()), ..caller };
    let open = |caller: Caller| NewConnection { caller, now: later(1) };
    let opened = store.open_connections(vec![open(caller), open(ended), open(caller)]).await;
    let epochs: Vec<_> = opened.into_iter().map(|one| one.map(|one| one.epoch).map_err(|e| e.refusal())).collect();
    assert_eq!(epochs, [Ok(1), Err(Refusal::SessionRevoked), Ok(2)]);
    let live = |session, epoch| LiveConnection { device: caller.device, session, epoch };
    let nobody = LiveConnection { device: DeviceId(Uuid::new_v4()), session: caller.session, epoch: 1 };
    let survey = store.survey(&[live(caller.session, 1), nobody, live(ended.session, 2)], later(2)).await.unwrap();
    let standing = survey[0].unwrap();
    assert_eq!((standing.newest_epoch, standing.revoked, standing.session_holds), (2, false, true));
    assert!(survey[1].is_none());
    assert!(!survey[2].unwrap().session_holds);
    store.touch_devices(&[(caller.device, later(9))]).await.unwrap();
    assert_eq!(store.list_devices(&caller, later(9)).await.unwrap()[0].last_seen, Some(later(9)));
}

pub async fn sweeps_forget_what_is_a_day_old(store: &Store) {
    let owner = add_device(store, "owner").await;
    let claimer = add_device(store, "claimer").await;
    let challenge = add_challenge(store, "someone", later(10)).await;
    publish(store, &owner, 1..=3, start()).await.unwrap();
    let id = ClaimId(Uuid::new_v4());
    let first = claim(store, &claimer, owner.user, id, later(1)).await.unwrap();
    store.sweep(later(20)).await.unwrap();
    assert_eq!(claim(store, &claimer, owner.user, id, later(21)).await.unwrap(), first);
    store.count_attempt(challenge, &email("someone"), later(21)).await.unwrap();
    let day = 24 * 3600;
    assert!(store.sweep(later(day + 30)).await.unwrap() >= 4, "two sessions, challenges, and a claim's memory");
    assert_eq!(refusal(store.check_session(&claimer, later(1)).await), Refusal::SessionRevoked);
    let outcome = store.keys_status(owner.device, THRESHOLD).await.unwrap();
    assert_eq!(outcome.one_time, 2, "the tombstone stays");
    assert_eq!(store.sweep(later(day + 30)).await.unwrap(), 0);
}

pub async fn times_come_back_as_they_went_in(store: &Store) {
    // Text order must be time order, whatever decimals an instant has.
    let instants = [
        "2026-03-01T08:00:00Z",
        "2026-03-01T08:00:00.000001Z",
        "2026-03-01T08:00:00.100Z",
        "2026-03-01T08:00:00.123456Z",
        "2026-03-01T08:00:01Z",
    ];
    let caller = add_device(store, "alice").await;
    let mut before = None;
    for text in instants {
        let at = Timestamp::parse(text).unwrap() + Duration::from_hours(1);
        store.touch_devices(&[(caller.device, at)]).await.unwrap();
        if let Some(before) = before {
            // Goes only forward, so an instant that sorted before its predecessor would not be taken.
            store.touch_devices(&[(caller.device, before)]).await.unwrap();
        }
        assert_eq!(store.list_devices(&caller, start()).await.unwrap()[0].last_seen, Some(at));
        before = Some(at);
    }
}
