//! Budgets of codes, known networks and spent proofs.

use std::{collections::HashSet, time::Duration};

use futures_util::future::join_all;
use rand::{SeedableRng, rngs::StdRng};
use sealwire::{
    domain::{
        ChallengeId, ClientNetwork, Refusal, Timestamp,
        otp::{CodePurpose, ServerSecret},
        work::{PaidAction, PresentedWork, ProvenWork, WorkScope},
    },
    store::{CodeDecision, CountedGuess, GuessFrom, NewChallenge, Store, Trust},
};
use uuid::Uuid;

use super::{SEND, add_challenge, add_device, challenge, email, hash, later, redeem, refusal, sign_in, start};

/// The network of the sign-ins of this suite.
const HOME: [u8; 32] = [2; 32];

/// A proof of no bits, a different one for each number.
fn proof(number: u64) -> ProvenWork {
    let secret = ServerSecret::new([1; 32]);
    let alice = email("alice");
    let scope = WorkScope { action: PaidAction::Otp, email: &alice, network: ClientNetwork::V4([192, 0, 2]) };
    let offer = scope.offer(&secret, 0, start(), &mut StdRng::seed_from_u64(number));
    scope.check(&secret, &PresentedWork::parse(&offer.salt_text(), ""), start()).unwrap()
}

fn new(name: &str) -> NewChallenge {
    challenge(ChallengeId(Uuid::new_v4()), name, start())
}

/// Returns the trust in a request and the number of challenges that count for it.
async fn seen(store: &Store, new: &NewChallenge) -> (Trust, usize) {
    let seen = std::sync::Mutex::new(None);
    let look = |history: &sealwire::store::CodeHistory, _| {
        *seen.lock().unwrap() = Some((history.trust, history.past.len()));
        CodeDecision::Refuse(Refusal::NotFound)
    };
    assert_eq!(refusal(store.create_challenge(new, look).await), Refusal::NotFound);
    seen.into_inner().unwrap().unwrap()
}

pub async fn a_proof_is_spent_once_by_parallel_requests(store: &Store) {
    for round in 0..10 {
        let work = proof(round);
        let challenges: Vec<NewChallenge> = (0..8).map(|one| new(&format!("user{round}-{one}"))).collect();
        let decide = |_: &sealwire::store::CodeHistory, is_unspent| {
            if is_unspent {
                CodeDecision::Send { spend: Some(work), is_paid: true }
            } else {
                CodeDecision::Refuse(Refusal::Denied)
            }
        };
        let outcomes = join_all(challenges.iter().map(|one| store.create_challenge(one, decide))).await;
        let (sent, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        assert_eq!((sent.len(), refused.len()), (1, 7));
        assert!(refused.into_iter().all(|one| refusal(one) == Refusal::Denied));
        let alice = email("alice");
        let attempt = store.count_attempt(
            challenges[0].id,
            &alice,
            CodePurpose::SignIn,
            GuessFrom { work: Some(&work), ..GuessFrom::default() },
            start(),
        );
        assert_eq!(attempt.await.unwrap(), None, "spent for the other action too");
    }
    assert!(store.create_challenge(&new("free"), |_, _| SEND).await.is_ok_and(|is_proven| !is_proven));
}

pub async fn an_attempt_at_an_unknown_challenge_spends_its_proof(store: &Store) {
    let (work, alice) = (proof(1), email("alice"));
    let attempt = || {
        store.count_attempt(
            ChallengeId(Uuid::nil()),
            &alice,
            CodePurpose::SignIn,
            GuessFrom { work: Some(&work), ..GuessFrom::default() },
            start(),
        )
    };
    assert_eq!(refusal(attempt().await), Refusal::InvalidCode, "an unknown challenge");
    assert_eq!(attempt().await.unwrap(), None);
    store.sweep(start() + Duration::from_mins(5 + 59)).await.unwrap();
    assert_eq!(attempt().await.unwrap(), None);
    store.sweep(start() + Duration::from_mins(5 + 61)).await.unwrap();
    assert_eq!(refusal(attempt().await), Refusal::InvalidCode, "long after it became stale it is forgotten");
}

pub async fn an_address_has_a_budget_for_its_owner_and_one_for_others(store: &Store) {
    let alice = add_device(store, "alice").await;
    add_challenge(store, "alice", start()).await;
    add_challenge(store, "alice+tag", start()).await;
    assert_eq!(seen(store, &new("alice")).await, (Trust::None, 3), "tags count together");
    let from_home = |name: &str| NewChallenge { known_network: HOME, ..new(name) };
    assert_eq!(seen(store, &from_home("alice")).await, (Trust::KnownNetwork, 0));
    assert_eq!(seen(store, &from_home("bob")).await, (Trust::None, 0));
    assert_eq!(seen(store, &from_home("alice+tag")).await, (Trust::None, 3), "only the exact address knows it");
    store.create_challenge(&from_home("alice"), |_, _| SEND).await.unwrap();
    let shown = |name: &str| NewChallenge { token: Some(hash(alice.session)), ..new(name) };
    assert_eq!(seen(store, &shown("alice")).await, (Trust::Token, 1), "shared with known networks");
    assert_eq!(seen(store, &shown("bob")).await, (Trust::None, 0));
    let expired = NewChallenge { created_at: later(3600), ..shown("alice") };
    assert_eq!(seen(store, &expired).await, (Trust::None, 3));
}

pub async fn a_withdrawn_challenge_does_not_count_unless_somebody_guessed(store: &Store) {
    let mut challenges = Vec::new();
    for _ in 0..3 {
        challenges.push(add_challenge(store, "alice", start()).await);
    }
    let [unsent, used, guessed] = challenges[..] else { panic!("three were added") };
    assert_eq!(seen(store, &new("alice")).await, (Trust::None, 3));
    let alice = email("alice");
    let guess = |challenge| store.count_attempt(challenge, &alice, CodePurpose::SignIn, GuessFrom::default(), start());
    guess(guessed).await.unwrap();
    redeem(store, &sign_in(used, "alice", start())).await.unwrap();
    for challenge in [unsent, used, guessed, unsent] {
        store.withdraw_challenge(challenge).await.unwrap();
    }
    assert_eq!(seen(store, &new("alice")).await, (Trust::None, 2));
    assert_eq!(refusal(guess(unsent).await), Refusal::InvalidCode);
}

pub async fn a_network_is_known_for_ninety_days_after_the_last_sign_in(store: &Store) {
    const DAYS: u64 = 24 * 3600;
    add_device(store, "alice").await;
    let trust_at = |second: u64| {
        let new = NewChallenge { known_network: HOME, created_at: later(second), ..new("alice") };
        async move { seen(store, &new).await.0 }
    };
    assert_eq!(trust_at(89 * DAYS).await, Trust::KnownNetwork);
    assert_eq!(trust_at(90 * DAYS).await, Trust::None);
    let again = add_challenge(store, "alice", later(89 * DAYS)).await;
    redeem(store, &sign_in(again, "alice", later(89 * DAYS))).await.unwrap();
    store.sweep(later(100 * DAYS)).await.unwrap();
    assert_eq!(trust_at(178 * DAYS).await, Trust::KnownNetwork, "the newest sign-in counts");
    store.sweep(later(180 * DAYS)).await.unwrap();
    assert_eq!(trust_at(178 * DAYS).await, Trust::None, "the sweep forgets it");
}

pub async fn proofs_and_networks_from_the_future_do_not_count_and_are_swept(store: &Store) {
    add_device(store, "alice").await;
    let month = Duration::from_hours(31 * 24);
    let (work, alice) = (proof(1), email("alice"));
    let paid = |_: &sealwire::store::CodeHistory, _| CodeDecision::Send { spend: Some(work), is_paid: true };
    store.create_challenge(&new("alice"), paid).await.unwrap();
    // The clock is set back by a month: the sign-in, the paid code and the spent proof are in the future.
    let before = start().before(month);
    let from_home = NewChallenge { known_network: HOME, created_at: before, ..new("alice") };
    assert_eq!(seen(store, &from_home).await.0, Trust::None);
    assert_eq!(seen(store, &NewChallenge { created_at: start(), ..from_home }).await.0, Trust::KnownNetwork);
    assert_eq!(
        (store.paid_codes(&alice, before).await.unwrap(), store.paid_codes(&alice, start()).await.unwrap()),
        (0, 1)
    );
    assert_eq!(store.sweep(start()).await.unwrap(), 0);
    // A network, a proof and two challenges.
    assert_eq!(store.sweep(before).await.unwrap(), 4);
    let from = GuessFrom { networks: &[], work: Some(&work) };
    let attempt = store.count_attempt(ChallengeId(Uuid::nil()), &alice, CodePurpose::SignIn, from, start());
    assert_eq!(refusal(attempt.await), Refusal::InvalidCode, "the proof is forgotten");
}

/// Returns the local parts of the addresses to mail about guesses.
async fn notified(store: &Store, name: &str, now: Timestamp) -> Vec<String> {
    let owners = store.note_guess_notice(&email(name), now).await.unwrap();
    owners.iter().map(|owner| owner.as_str().split('@').next().unwrap().to_owned()).collect()
}

pub async fn the_owners_of_an_address_are_found_whatever_its_tag(store: &Store) {
    for name in ["alice+chat", "alicia", "ali", "alice", "alice+work+old"] {
        add_device(store, name).await;
    }
    assert_eq!(notified(store, "bob+alice", later(1)).await, [""; 0]);
    let all = notified(store, "alice+unknown", later(2)).await;
    assert_eq!(all[0], "alice", "the address without a tag is first");
    assert_eq!(
        all.iter().map(String::as_str).collect::<HashSet<_>>(),
        HashSet::from(["alice", "alice+chat", "alice+work+old"])
    );
    assert_eq!(notified(store, "alice", later(3)).await, [""; 0], "once a day for all of them");
    let other_day = later(3 + 24 * 3600);
    assert_eq!(
        notified(store, "alice+chat", other_day).await[..2],
        ["alice+chat", "alice"],
        "the guessed one is first"
    );
    for number in 0..20 {
        add_device(store, &format!("alice+{number}")).await;
    }
    assert_eq!(notified(store, "alice", later(4 + 2 * 24 * 3600)).await.len(), 10, "at most");
}

pub async fn wrong_guesses_from_the_future_do_not_count_and_are_swept(store: &Store) {
    const MONTH: u64 = 31 * 24 * 3600;
    let network = [3; 32];
    add_device(store, "alice").await;
    guess(store, "alice", &[network], MONTH).await;
    assert_eq!(notified(store, "alice", later(MONTH)).await, ["alice"]);
    // The clock is set back by a month.
    assert_eq!((wrong(store, "alice", 0).await, wrong(store, "alice", MONTH).await), (0, 1));
    assert_eq!(store.guess_wait(&[(network, 1)], start()).await.unwrap(), None);
    assert_eq!(guess(store, "alice", &[network], 0).await.wrong_today, 1);
    assert_eq!(notified(store, "alice", start()).await, ["alice"]);
    assert_eq!(notified(store, "alice", later(1)).await, [""; 0]);
    store.sweep(start()).await.unwrap();
    assert_eq!(wrong(store, "alice", MONTH - 3600).await, 0, "only the one of now is left, which is too old then");
}

pub async fn a_user_knows_at_most_a_hundred_networks(store: &Store) {
    let network = |number: u8| [number; 32];
    for number in 0..=100 {
        let id = add_challenge(store, "alice", later(u64::from(number))).await;
        let mut request = sign_in(id, "alice", later(u64::from(number)));
        request.known_network = network(number);
        request.max_devices = 200;
        redeem(store, &request).await.unwrap();
    }
    let trust = |number: u8| {
        let new = NewChallenge { known_network: network(number), created_at: later(200), ..new("alice") };
        async move { seen(store, &new).await.0 }
    };
    assert_eq!(trust(0).await, Trust::None, "the oldest was forgotten");
    assert_eq!(trust(1).await, Trust::KnownNetwork);
    assert_eq!(trust(100).await, Trust::KnownNetwork);
}

/// Makes a guess at the code of a new challenge, which counts as wrong.
async fn guess(store: &Store, name: &str, networks: &[[u8; 32]], second: u64) -> CountedGuess {
    let challenge = add_challenge(store, name, later(second)).await;
    let from = GuessFrom { networks, work: None };
    store.count_attempt(challenge, &email(name), CodePurpose::SignIn, from, later(second)).await.unwrap().unwrap()
}

/// Returns the number of wrong guesses in the history of an address.
async fn wrong(store: &Store, name: &str, second: u64) -> usize {
    let count = std::sync::Mutex::new(0);
    let look = |history: &sealwire::store::CodeHistory, _| {
        *count.lock().unwrap() = history.wrong_guesses.len();
        CodeDecision::Refuse(Refusal::NotFound)
    };
    let new = NewChallenge { created_at: later(second), ..new(name) };
    assert_eq!(refusal(store.create_challenge(&new, look).await), Refusal::NotFound);
    count.into_inner().unwrap()
}

pub async fn wrong_guesses_count_for_thirty_days_until_the_owner_signs_in(store: &Store) {
    const DAY: u64 = 24 * 3600;
    add_device(store, "alice").await;
    for second in 0..110 {
        let counted = guess(store, "alice+tag", &[], second).await;
        assert_eq!(counted.wrong_today, usize::try_from(second + 1).unwrap().min(100));
        if second == 0 {
            store.give_back_guess(counted.id).await.unwrap();
            assert_eq!(guess(store, "alice", &[], second).await.wrong_today, 1);
        }
    }
    assert_eq!(wrong(store, "alice", 110).await, 100, "at most");
    assert_eq!(wrong(store, "bob", 110).await, 0);
    assert_eq!(wrong(store, "alice", 30 * DAY + 59).await, 50, "60 are too old");
    store.sweep(later(30 * DAY + 99)).await.unwrap();
    assert_eq!(wrong(store, "alice", 200).await, 10, "100 are swept");
    assert_eq!(notified(store, "alice", later(200)).await, ["alice"]);
    assert_eq!(notified(store, "alice", later(DAY + 199)).await, [""; 0]);
    assert_eq!(notified(store, "alice", later(DAY + 200)).await, ["alice"]);
    assert_eq!(notified(store, "bob", later(200)).await, [""; 0], "no user has this address");
    let again = add_challenge(store, "alice", later(200)).await;
    redeem(store, &sign_in(again, "alice", later(200))).await.unwrap();
    assert_eq!(wrong(store, "alice", 200).await, 0);
    assert_eq!(notified(store, "alice", later(DAY + 201)).await, ["alice"]);
}

pub async fn guesses_of_a_network_count_for_a_day_unless_they_are_right_or_paid_for(store: &Store) {
    const DAY: u64 = 24 * 3600;
    let (narrow, wide) = ([3; 32], [4; 32]);
    let wait = |narrow_limit: u64, wide_limit: u64, second: u64| async move {
        store.guess_wait(&[(narrow, narrow_limit), (wide, wide_limit)], later(second)).await.unwrap()
    };
    guess(store, "alice", &[narrow, wide], 10).await;
    guess(store, "bob", &[[5; 32], wide], 20).await;
    let right = guess(store, "carol", &[narrow, wide], 30).await;
    assert_eq!(wait(3, 3, 40).await, Some(Duration::from_secs(DAY - 30)), "it counts until it is given back");
    store.give_back_guess(right.id).await.unwrap();
    assert_eq!(wait(2, 3, 40).await, None);
    assert_eq!(wait(2, 2, 40).await, Some(Duration::from_secs(DAY - 30)));
    assert_eq!(wait(1, 1, 40).await, Some(Duration::from_secs(DAY - 20)));
    assert_eq!(wait(1, 3, 40).await, Some(Duration::from_secs(DAY - 30)));
    let challenge = add_challenge(store, "dave", later(40)).await;
    let work = proof(1);
    let paid = GuessFrom { networks: &[narrow, wide], work: Some(&work) };
    store.count_attempt(challenge, &email("dave"), CodePurpose::SignIn, paid, later(40)).await.unwrap().unwrap();
    assert_eq!(wait(2, 3, 40).await, None, "whoever pays takes nothing from the neighbours");
    assert_eq!(wait(1, 2, DAY + 15).await, None, "a day later");
    store.sweep(later(DAY + 15)).await.unwrap();
    assert_eq!(wait(1, 2, 40).await, None, "swept");
}
