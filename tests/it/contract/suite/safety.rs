//! What protects an account from somebody who reads the owner's mail.

use std::time::Duration;

use sealwire::{
    domain::{ApprovalId, Caller, ChallengeId, DeviceId, Email, Refusal, SessionId, Timestamp, otp::CodePurpose},
    store::{AddressChange, GuessFrom, NewChallenge, Store, StoreError},
};
use uuid::Uuid;

use super::{
    DEVICE_AGE, SEND, add_challenge, add_device, challenge, delete_account, email, hash, later, new_session, publish,
    redeem, refusal, sign_in, start,
};

/// Signs in on a new device, with a session of a year.
async fn add_device_at(store: &Store, name: &str, at: Timestamp) -> Caller {
    let mut request = sign_in(add_challenge(store, name, at).await, name, at);
    request.session.expires_at = at + Duration::from_hours(24 * 365);
    redeem(store, &request).await.unwrap().caller
}

pub async fn a_device_may_not_disturb_older_ones_before_it_is_old_enough(store: &Store) {
    let tick = Duration::from_micros(1);
    let old = add_device_at(store, "alice", start()).await;
    let young = add_device_at(store, "alice", start() + tick).await;
    let unpublished = add_device_at(store, "bob", start()).await;
    let bobs = add_device_at(store, "bob", start() + tick).await;
    publish(store, &old, 1..=3, start()).await.unwrap();
    let rename = |by: Caller, device: DeviceId, at: Timestamp| async move {
        store.rename_device(&by, device, "named", at).await.map_err(|error| error.refusal())
    };
    let due = start() + DEVICE_AGE;
    assert_eq!(rename(young, old.device, due.before(tick)).await, Ok(()), "the other is not old enough yet");
    let allowed_at = due + tick;
    let too_new = Refusal::DeviceTooNew { allowed_at, retry_after: tick };
    assert_eq!(rename(young, old.device, due).await, Err(too_new.clone()));
    assert_eq!(refusal(store.revoke_device(&young, old.device, due).await), too_new);
    assert_eq!(refusal(store.delete_account(&young, ChallengeId(Uuid::nil()), due).await), too_new);
    assert_eq!(rename(young, young.device, due).await, Ok(()));
    assert_eq!(rename(old, young.device, due).await, Ok(()));
    assert_eq!(rename(bobs, unpublished.device, due).await, Ok(()));
    assert_eq!(rename(young, old.device, allowed_at).await, Ok(()));
    store.revoke_device(&young, old.device, allowed_at).await.unwrap();
}

pub async fn a_code_of_another_purpose_is_not_counted(store: &Store) {
    for purpose in CodePurpose::ALL {
        let id = ChallengeId(Uuid::new_v4());
        let address = email("alice");
        let new = NewChallenge { purpose, ..challenge(id, "alice", start()) };
        store.create_challenge(&new, |_, _| SEND).await.unwrap();
        for other in CodePurpose::ALL.into_iter().filter(|other| *other != purpose) {
            for _ in 0..6 {
                let counted = store.count_attempt(id, &address, other, GuessFrom::default(), later(1)).await;
                assert_eq!(refusal(counted), Refusal::InvalidCode);
            }
        }
        for _ in 0..5 {
            store.count_attempt(id, &address, purpose, GuessFrom::default(), later(1)).await.unwrap();
        }
        assert_eq!(
            refusal(store.count_attempt(id, &address, purpose, GuessFrom::default(), later(1)).await),
            Refusal::TooManyAttempts
        );
    }
}

/// Changes the address of an account that is not locked. Returns the old one.
async fn change_email(
    store: &Store,
    by: &Caller,
    challenge: ChallengeId,
    to: &Email,
    now: Timestamp,
) -> Result<Email, StoreError> {
    match store.change_email(by, challenge, to, ApprovalId(Uuid::new_v4()), now).await? {
        AddressChange::Changed { old } => Ok(old),
        AddressChange::Requested { .. } => panic!("the account is not locked"),
    }
}

pub async fn an_address_is_changed_unless_another_user_has_it(store: &Store) {
    let alice = add_device(store, "alice").await;
    let bob = add_device(store, "bob").await;
    let challenge = add_challenge(store, "bob", later(1)).await;
    for _ in 0..7 {
        store
            .count_attempt(challenge, &email("bob"), CodePurpose::SignIn, GuessFrom::default(), later(2))
            .await
            .unwrap();
        let taken = change_email(store, &alice, challenge, &email("bob"), later(2)).await;
        assert_eq!(refusal(taken), Refusal::EmailTaken, "the attempt is given back");
    }
    assert_eq!(delete_account(store, &bob, "bob", later(3)).await, [bob.device]);
    assert_eq!(change_email(store, &alice, challenge, &email("bob"), later(3)).await.unwrap(), email("alice"));
    let used = change_email(store, &alice, challenge, &email("bob"), later(4)).await;
    assert_eq!(refusal(used), Refusal::InvalidCode);
    assert_eq!(store.user_by_email(&email("bob")).await.unwrap(), Some(alice.user));
    assert_eq!(store.user_by_email(&email("alice")).await.unwrap(), None);
    let own = add_challenge(store, "bob", later(5)).await;
    assert_eq!(change_email(store, &alice, own, &email("bob"), later(5)).await.unwrap(), email("bob"));
    let ended = Caller { session: SessionId(Uuid::nil()), ..alice };
    let unused = add_challenge(store, "carol", later(5)).await;
    let refused = change_email(store, &ended, unused, &email("carol"), later(5)).await;
    assert_eq!(refusal(refused), Refusal::SessionRevoked);
    change_email(store, &alice, unused, &email("carol"), later(5)).await.unwrap();
}

/// On PostgreSQL both may find the address free; the second then waits for the first and is run again.
pub async fn of_parallel_changes_to_one_address_one_succeeds(store: &Store) {
    for round in 0..10 {
        let wanted = format!("wanted{round}");
        let one = add_device(store, &format!("one{round}")).await;
        let two = add_device(store, &format!("two{round}")).await;
        let (first, second) =
            (add_challenge(store, &wanted, later(1)).await, add_challenge(store, &wanted, later(1)).await);
        let address = email(&wanted);
        let (one, two) = tokio::join!(
            change_email(store, &one, first, &address, later(1)),
            change_email(store, &two, second, &address, later(1))
        );
        let (won, lost) = if one.is_ok() { (one, two) } else { (two, one) };
        won.unwrap();
        assert_eq!(refusal(lost), Refusal::EmailTaken);
    }
}

pub async fn the_sessions_of_a_user_are_listed_and_ended_as_pairs(store: &Store) {
    let phone = add_device(store, "alice").await;
    let laptop = add_device(store, "alice").await;
    let stranger = add_device(store, "bob").await;
    let successor = new_session(later(1));
    store.renew_session(&laptop, &successor, later(1)).await.unwrap();
    store.touch_devices(&[(phone.device, later(2))]).await.unwrap();
    let list = |by: Caller, at: Timestamp| async move {
        let sessions = store.list_sessions(&by, at).await.unwrap();
        sessions.into_iter().map(|one| (one.id, one.device, one.is_current)).collect::<Vec<_>>()
    };
    let renewed = Caller { session: successor.id, ..laptop };
    let expected = |current: Caller| {
        [(phone.session, phone.device), (successor.id, laptop.device)]
            .map(|(id, device)| (id, device, device == current.device))
    };
    for by in [phone, laptop, renewed] {
        assert_eq!(list(by, later(3)).await, expected(by));
    }
    let listed = store.list_sessions(&phone, later(3)).await.unwrap();
    assert_eq!((listed[0].last_seen, listed[1].last_seen), (Some(later(2)), None));
    assert_eq!((listed[1].created_at, listed[1].expires_at), (later(1), successor.expires_at));
    // The original session has expired; its renewal has not.
    let expired = add_device(store, "carol").await;
    let longer = new_session(later(1800));
    store.renew_session(&expired, &longer, later(1800)).await.unwrap();
    let by = Caller { session: longer.id, ..expired };
    assert_eq!(list(by, later(3601)).await, [(longer.id, expired.device, true)]);

    for foreign in [stranger.session, SessionId(Uuid::nil())] {
        assert_eq!(refusal(store.end_session_of_user(&phone, foreign, later(4)).await), Refusal::NotFound);
    }
    let ended = store.end_session_of_user(&phone, laptop.session, later(4)).await.unwrap();
    let sorted = |mut ids: Vec<SessionId>| {
        ids.sort_unstable();
        ids
    };
    assert_eq!(sorted(ended.sessions), sorted(vec![laptop.session, successor.id]));
    assert_eq!((ended.device, ended.devices.len()), (laptop.device, 2));
    assert_eq!(refusal(store.end_session_of_user(&phone, successor.id, later(4)).await), Refusal::NotFound);
    for token in [laptop.session, successor.id] {
        let reason = sealwire::domain::refusal::InvalidTokenReason::LoggedOut;
        assert_eq!(refusal(store.present(&hash(token), later(4)).await), Refusal::Unauthorized(reason));
    }
    assert_eq!(refusal(store.end_session_of_user(&laptop, phone.session, later(4)).await), Refusal::SessionRevoked);
}

pub async fn a_device_has_at_most_thirty_sessions_when_it_signs_in(store: &Store) {
    let first = add_device(store, "alice").await;
    let again = |second: u64| async move {
        let mut request = sign_in(add_challenge(store, "alice", later(second)).await, "alice", later(second));
        request.existing_device = Some(first.device);
        redeem(store, &request).await.unwrap()
    };
    for second in 1..30 {
        assert_eq!(again(second).await.ended, []);
    }
    assert_eq!(again(30).await.ended, [first.session]);
    assert_eq!(refusal(store.check_session(&first, later(31)).await), Refusal::SessionRevoked);
}
