//! Challenges, users, devices, sessions and connections.

use std::time::Duration;

use futures_util::future::join_all;
use sealwire::{
    domain::{Caller, ChallengeId, ClaimId, DeviceId, LiveConnection, Refusal, SessionId, Timestamp, otp::CodePurpose},
    store::{CodeDecision, ConnectionRegistration, Cutoff, GuessFrom, NewChallenge, Store},
};
use uuid::Uuid;

use super::{
    SEND, add_challenge, add_device, challenge, claim, delete_account, email, hash, keys_status, later, new_session,
    publish, redeem, refusal, sign_in, start,
};

pub async fn challenges_are_counted_per_address_for_a_day(store: &Store) {
    for minute in 0..3 {
        add_challenge(store, "alice", later(minute * 60)).await;
    }
    add_challenge(store, "bob", later(0)).await;
    let refused_one = NewChallenge { network: [2; 32], ..challenge(ChallengeId(Uuid::new_v4()), "alice", later(600)) };
    let wait = Duration::from_secs(42);
    let refused = store
        .create_challenge(&refused_one, |history, _| {
            let times: Vec<_> = history.past.iter().map(|one| one.created_at).collect();
            assert_eq!(times, [later(120), later(60), later(0)], "newest first, and only of this address");
            assert_eq!(history.past[0].network, [1; 32]);
            CodeDecision::Refuse(Refusal::RateLimited { retry_after: wait })
        })
        .await;
    assert_eq!(refusal(refused), Refusal::RateLimited { retry_after: wait });
    let purpose = CodePurpose::SignIn;
    let unknown = store.count_attempt(refused_one.id, &email("alice"), purpose, GuessFrom::default(), later(600)).await;
    assert_eq!(refusal(unknown), Refusal::InvalidCode, "a refused challenge was not written");
    let tomorrow = NewChallenge { created_at: later(24 * 3600 + 60), ..refused_one };
    store
        .create_challenge(&tomorrow, |history, _| {
            assert_eq!(history.past.len(), 1, "challenges older than a day do not count");
            SEND
        })
        .await
        .unwrap();
}

pub async fn only_five_of_fifty_parallel_guesses_are_counted(store: &Store) {
    let challenge = add_challenge(store, "alice", start()).await;
    let other =
        store.count_attempt(challenge, &email("bob"), CodePurpose::SignIn, GuessFrom::default(), later(1)).await;
    assert_eq!(refusal(other), Refusal::InvalidCode);
    let alice = email("alice");
    let guesses = join_all(
        (0..50).map(|_| store.count_attempt(challenge, &alice, CodePurpose::SignIn, GuessFrom::default(), later(1))),
    )
    .await;
    let (counted, refused): (Vec<_>, Vec<_>) = guesses.into_iter().partition(Result::is_ok);
    assert_eq!(counted.len(), 5);
    assert!(counted.into_iter().all(|hash| hash.unwrap().unwrap().hash == [7; 32]));
    assert!(refused.into_iter().all(|one| refusal(one) == Refusal::TooManyAttempts));
    let expired = store.count_attempt(challenge, &alice, CodePurpose::SignIn, GuessFrom::default(), later(601)).await;
    assert_eq!(refusal(expired), Refusal::InvalidCode);
}

pub async fn a_refused_sign_in_does_not_use_up_an_attempt(store: &Store) {
    for _ in 0..3 {
        add_device(store, "alice").await;
    }
    let challenge = add_challenge(store, "alice", start()).await;
    for _ in 0..10 {
        store
            .count_attempt(challenge, &email("alice"), CodePurpose::SignIn, GuessFrom::default(), later(1))
            .await
            .unwrap();
        let refused = refusal(redeem(store, &sign_in(challenge, "alice", later(1))).await);
        assert!(matches!(refused, Refusal::DeviceLimit { devices } if devices.len() == 3));
    }
    let mut foreign = sign_in(challenge, "alice", later(1));
    foreign.existing_device = Some(add_device(store, "bob").await.device);
    store.count_attempt(challenge, &email("alice"), CodePurpose::SignIn, GuessFrom::default(), later(1)).await.unwrap();
    assert_eq!(refusal(redeem(store, &foreign).await), Refusal::UnknownDevice);
    let unknown = add_challenge(store, "unknown", start()).await;
    let mut newcomer = sign_in(unknown, "unknown", later(1));
    newcomer.replace = foreign.existing_device;
    store.count_attempt(unknown, &email("unknown"), CodePurpose::SignIn, GuessFrom::default(), later(1)).await.unwrap();
    assert_eq!(refusal(redeem(store, &newcomer).await), Refusal::UnknownDevice);
    newcomer.replace = None;
    let redeemed = redeem(store, &newcomer).await.unwrap();
    assert_eq!(redeemed.caller.user, newcomer.new_user, "a refused sign-in creates no user");
}

pub async fn one_of_two_parallel_sign_ins_with_the_same_code_succeeds(store: &Store) {
    for round in 0..10 {
        let name = format!("alice{round}");
        let challenge = add_challenge(store, &name, start()).await;
        let (one, two) = (sign_in(challenge, &name, later(1)), sign_in(challenge, &name, later(1)));
        let (one, two) = tokio::join!(redeem(store, &one), redeem(store, &two));
        let (won, lost) = if one.is_ok() { (one, two) } else { (two, one) };
        assert!(won.is_ok());
        assert_eq!(refusal(lost), Refusal::InvalidCode);
    }
}

pub async fn parallel_first_sign_ins_of_an_address_create_one_user(store: &Store) {
    for round in 0..10 {
        let name = format!("alice{round}");
        let mut sign_ins = Vec::new();
        for _ in 0..3 {
            sign_ins.push(sign_in(add_challenge(store, &name, start()).await, &name, later(1)));
        }
        let redeemed = join_all(sign_ins.iter().map(|one| redeem(store, one))).await;
        let users: std::collections::HashSet<_> =
            redeemed.iter().map(|one| one.as_ref().unwrap().caller.user).collect();
        assert_eq!(users.len(), 1);
        let newcomers = redeemed.iter().filter(|one| one.as_ref().unwrap().user_is_new).count();
        assert!(newcomers >= 1);
    }
}

pub async fn a_replaced_device_loses_its_session_and_its_keys(store: &Store) {
    let old = add_device(store, "alice").await;
    let other = add_device(store, "alice").await;
    publish(store, &old, 1..=5, start()).await.unwrap();
    let mut exchange = sign_in(add_challenge(store, "alice", start()).await, "alice", later(1));
    exchange.replace = Some(old.device);
    let redeemed = redeem(store, &exchange).await.unwrap();
    assert_eq!(redeemed.others, [other.device]);
    assert_eq!(refusal(store.check_session(&old, later(2)).await), Refusal::SessionRevoked);
    assert_eq!(
        refusal(store.present(&hash(old.session), later(2)).await),
        Refusal::Unauthorized(sealwire::domain::refusal::InvalidTokenReason::DeviceRevoked)
    );
    let devices: Vec<_> = store.list_devices(&other, later(2)).await.unwrap().into_iter().map(|d| d.id).collect();
    assert_eq!(devices.len(), 2);
    assert!(!devices.contains(&old.device));
    assert_eq!(keys_status(store, old.device).await.one_time, 0);
}

pub async fn renewing_a_session_twice_leaves_one_valid_successor(store: &Store) {
    let old = add_device(store, "alice").await;
    let (first, second) = (new_session(later(1)), new_session(later(2)));
    store.renew_session(&old, &first, later(1)).await.unwrap();
    let as_first = Caller { session: first.id, ..old };
    store.renew_session(&as_first, &second, later(2)).await.unwrap();
    assert_eq!(
        refusal(store.present(&hash(first.id), later(3)).await),
        Refusal::Unauthorized(sealwire::domain::refusal::InvalidTokenReason::Superseded)
    );
    assert!(store.present(&hash(old.session), later(3)).await.unwrap().superseded.is_none());
    let presented = store.present(&hash(second.id), later(3)).await.unwrap();
    assert_eq!(presented.superseded, Some(old.session));
    assert_eq!(presented.session.caller.session, second.id);
    assert_eq!(
        refusal(store.present(&hash(old.session), later(3)).await),
        Refusal::Unauthorized(sealwire::domain::refusal::InvalidTokenReason::Superseded)
    );
    assert!(store.present(&hash(second.id), later(3)).await.unwrap().superseded.is_none());
}

pub async fn logout_ends_a_session_and_its_successor(store: &Store) {
    for by_successor in [false, true] {
        let old = add_device(store, "alice").await;
        let bystander = add_device(store, "bob").await;
        let successor = new_session(later(1));
        store.renew_session(&old, &successor, later(1)).await.unwrap();
        let who = if by_successor { Caller { session: successor.id, ..old } } else { old };
        let mut ended = store.end_session(&who, later(2)).await.unwrap().sessions;
        ended.sort_unstable();
        let mut pair = [old.session, successor.id];
        pair.sort_unstable();
        assert_eq!(ended, pair);
        assert_eq!(refusal(store.end_session(&old, later(3)).await), Refusal::SessionRevoked);
        store.check_session(&bystander, later(3)).await.unwrap();
        delete_account(store, &bystander, "bob", later(3)).await;
    }
}
pub async fn each_connection_of_a_device_gets_the_next_epoch(store: &Store) {
    let caller = add_device(store, "alice").await;
    let ended = Caller { session: SessionId(Uuid::new_v4()), ..caller };
    let open = |caller: Caller| ConnectionRegistration { caller, now: later(1) };
    let opened = store.register_connections(vec![open(caller), open(ended), open(caller)]).await;
    let epochs: Vec<_> = opened.into_iter().map(|one| one.map(|one| one.epoch).map_err(|e| e.refusal())).collect();
    assert_eq!(epochs, [Ok(1), Err(Refusal::SessionRevoked), Ok(2)]);
    let live = |session, epoch| LiveConnection { device: caller.device, session, epoch };
    let unknown = LiveConnection { device: DeviceId(Uuid::new_v4()), session: caller.session, epoch: 1 };
    let states =
        store.check_connections(&[live(caller.session, 1), unknown, live(ended.session, 2)], later(2)).await.unwrap();
    let state = states[0].unwrap();
    assert_eq!((state.newest_epoch, state.revoked, state.session_is_valid), (2, false, true));
    assert!(states[1].is_none());
    assert!(!states[2].unwrap().session_is_valid);
    store.touch_devices(&[(caller.device, later(9))]).await.unwrap();
    assert_eq!(store.list_devices(&caller, later(9)).await.unwrap()[0].last_seen, Some(later(9)));
}

pub async fn a_sweep_deletes_expired_sessions_and_day_old_records_but_no_tombstones(store: &Store) {
    let owner = add_device(store, "owner").await;
    let claimer = add_device(store, "claimer").await;
    let challenge = add_challenge(store, "someone", later(10)).await;
    publish(store, &owner, 1..=3, start()).await.unwrap();
    let id = ClaimId(Uuid::new_v4());
    let first = claim(store, &claimer, owner.user, id, later(1)).await.unwrap();
    store.sweep(later(20)).await.unwrap();
    assert_eq!(claim(store, &claimer, owner.user, id, later(21)).await.unwrap(), first);
    store
        .count_attempt(challenge, &email("someone"), CodePurpose::SignIn, GuessFrom::default(), later(21))
        .await
        .unwrap();
    let day = 24 * 3600;
    assert!(store.sweep(later(day + 30)).await.unwrap() >= 4, "two sessions, the challenges and the remembered claim");
    assert_eq!(refusal(store.check_session(&claimer, later(1)).await), Refusal::SessionRevoked);
    let outcome = keys_status(store, owner.device).await;
    assert_eq!(outcome.one_time, 2, "the tombstone stays");
    assert_eq!(store.sweep(later(day + 30)).await.unwrap(), 0);
}

pub async fn times_are_read_back_as_written_and_compare_correctly(store: &Store) {
    // On SQLite times are stored as text, which must sort by time, however many decimals a time has.
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
            // `last_seen` only moves forward, so this has no effect if the two times compare correctly.
            store.touch_devices(&[(caller.device, before)]).await.unwrap();
        }
        assert_eq!(store.list_devices(&caller, start()).await.unwrap()[0].last_seen, Some(at));
        before = Some(at);
    }
}

pub async fn a_sweep_deletes_records_from_the_future_unless_the_clock_was_set_back(store: &Store) {
    let minutes = |n: u64| start() + Duration::from_secs(60 * n);
    add_challenge(store, "now", start()).await;
    add_challenge(store, "soon", minutes(1)).await;
    add_challenge(store, "later", minutes(60 * 24 * 31)).await;
    let set_back = Cutoff { now: start(), and_future: false };
    assert_eq!(store.sweep(set_back).await.unwrap(), 0);
    assert_eq!(store.sweep(start()).await.unwrap(), 1, "the clocks of nodes may differ by a minute");
    assert_eq!(store.sweep(start()).await.unwrap(), 0);
}

pub async fn accounts_and_devices_from_the_future_are_as_old_as_now(store: &Store) {
    let (soon, years) = (later(60), start() + Duration::from_hours(5 * 365 * 24));
    let add = async |name: &str, at: Timestamp| {
        let challenge = add_challenge(store, name, at).await;
        let mut request = sign_in(challenge, name, at);
        request.session.expires_at = years + Duration::from_hours(24);
        redeem(store, &request).await.unwrap().caller
    };
    for index in 0..5 {
        add(&format!("other{index}"), soon).await;
    }
    let (alice, bob) = (add("alice", start()).await, add("bob", years).await);
    let young = add("alice", years).await;
    store.touch_devices(&[(alice.device, years)]).await.unwrap();
    // More than one window, and more than the clocks of nodes may differ.
    let now = later(100);
    assert_eq!(store.lower_times_ahead(now, 2).await.unwrap(), 1 + 3, "one user, and three devices");
    assert_eq!(store.lower_times_ahead(now, 2).await.unwrap(), 0);
    let times = async |of: &Caller| -> Vec<_> {
        let devices = store.list_devices(of, now).await.unwrap();
        devices.into_iter().map(|device| (device.id, device.created_at, device.last_seen)).collect()
    };
    let of_alice = times(&alice).await;
    assert!(of_alice.contains(&(alice.device, start(), Some(now))), "{of_alice:?}");
    assert!(of_alice.iter().any(|(id, created_at, _)| (*id, *created_at) == (young.device, now)), "{of_alice:?}");
    assert_eq!(times(&bob).await[0].1, now);
    let since = async |name: &str| add(name, now).await.user_since;
    assert_eq!((since("alice").await, since("bob").await, since("other0").await), (start(), now, soon));
}
