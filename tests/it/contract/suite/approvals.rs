//! Requests that wait for an approval, while the account is locked.

use std::{collections::HashSet, time::Duration};

use futures_util::future::join_all;
use sealwire::{
    domain::{
        ApprovalId, Caller, DeviceId, Email, PendingApproval, Refusal, Timestamp, UserId,
        approval::{Lock, PresentedRecoveryKey},
    },
    store::{
        AddressChange, ApprovalRequested, ApprovalState, Approved, ApprovedSession, Cutoff, Decided, Decision, SignIn,
        SignInOutcome, SignedIn, Store, StoreError,
    },
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    DEVICE_AGE, add_challenge, add_device, email, later, new_session, publish, redeem, refusal, sign_in, start,
};

const RECOVERY_KEY: [u8; 32] = [42; 32];
const WAIT: Duration = Duration::from_hours(24);
const MAX_DEVICES: usize = 3;

fn recovery_key(byte: u8) -> PresentedRecoveryKey {
    PresentedRecoveryKey::new(Some(vec![byte; 32]))
}

/// A new device, with a session of a year.
async fn add_device_at(store: &Store, name: &str, at: Timestamp) -> Caller {
    let mut request = code_at(store, name, at).await;
    request.session.expires_at = at + Duration::from_hours(24 * 365);
    redeem(store, &request).await.unwrap().caller
}

/// Alice's device, which has published and locked the account.
async fn locked(store: &Store) -> Caller {
    let device = add_device_at(store, "alice", start()).await;
    publish(store, &device, 1..=3, start()).await.unwrap();
    let lock = Lock { recovery_key_hash: Sha256::digest(RECOVERY_KEY).into(), wait_s: WAIT.as_secs() };
    store.lock_account(&device, &lock, None, later(1)).await.unwrap();
    device
}

async fn code_at(store: &Store, name: &str, now: Timestamp) -> SignIn {
    sign_in(add_challenge(store, name, now).await, name, now)
}

async fn request(store: &Store, sign_in: &SignIn) -> Result<ApprovalRequested, StoreError> {
    match store.redeem(sign_in).await? {
        SignInOutcome::Requested { approval, .. } => Ok(approval),
        SignInOutcome::SignedIn(signed_in) => panic!("signed in as {:?}", signed_in.caller),
    }
}

/// A request of a new device of Alice.
async fn ask(store: &Store, now: Timestamp) -> ApprovalId {
    request(store, &code_at(store, "alice", now).await).await.unwrap().id
}

fn approved_session(now: Timestamp) -> ApprovedSession {
    ApprovedSession { device: DeviceId(Uuid::new_v4()), session: new_session(now), max_devices: MAX_DEVICES }
}

const APPROVE: Decision = Decision::Approve { replace: None };

async fn decide(
    store: &Store,
    by: &Caller,
    id: ApprovalId,
    decision: Decision,
    now: Timestamp,
) -> Result<Decided, StoreError> {
    store.decide(by, id, decision, &approved_session(now), now).await
}

/// Approves a request of a device. Returns the device.
async fn approve(store: &Store, by: &Caller, id: ApprovalId, now: Timestamp) -> SignedIn {
    match decide(store, by, id, APPROVE, now).await.unwrap() {
        Decided::Approved(Approved::SignedIn(signed_in)) => *signed_in,
        other => panic!("not signed in but {other:?}"),
    }
}

async fn pending(store: &Store, by: &Caller, now: Timestamp) -> Vec<PendingApproval> {
    store.account_status(by, now).await.unwrap().pending
}

async fn devices(store: &Store, by: &Caller, now: Timestamp) -> Vec<DeviceId> {
    store.list_devices(by, now).await.unwrap().into_iter().map(|device| device.id).collect()
}

async fn due(store: &Store, now: Timestamp) -> Vec<ApprovalId> {
    let after = (start(), ApprovalId(Uuid::nil()));
    store.due_approvals(after, MAX_DEVICES, now).await.unwrap().into_iter().map(|due| due.id).collect()
}

pub async fn three_requests_of_a_user_pend_and_ten_are_made_in_a_day(store: &Store) {
    let alice = locked(store).await;
    let mut sign_ins = Vec::new();
    for _ in 0..20 {
        sign_ins.push(code_at(store, "alice", later(2)).await);
    }
    let mut made = HashSet::new();
    for (round, expected) in [3, 3, 3, 1, 0].into_iter().enumerate() {
        let answers = join_all(sign_ins.iter().map(|sign_in| request(store, sign_in))).await;
        let mut new = Vec::new();
        for answer in answers {
            match answer {
                Ok(requested) if made.insert(requested.id) => {
                    let (shown, deciders) = requested.new.expect("a request that was not made before");
                    assert_eq!((shown.id, deciders), (requested.id, vec![alice.device]));
                    new.push(requested.id);
                }
                Ok(requested) => assert!(requested.new.is_none(), "a repeat"),
                Err(error) => assert!(matches!(error.refusal(), Refusal::RateLimited { .. })),
            }
        }
        assert_eq!(new.len(), expected, "round {round}");
        for id in new {
            assert!(matches!(decide(store, &alice, id, Decision::Deny, later(3)).await, Ok(Decided::Denied)));
        }
    }
    assert_eq!(devices(store, &alice, later(3)).await, [alice.device]);
    let tomorrow = later(2) + Duration::from_hours(24);
    let id = ask(store, tomorrow).await;
    assert_eq!(pending(store, &alice, tomorrow).await[0].id, id);
}

pub async fn requests_from_the_future_take_no_place_and_are_swept(store: &Store) {
    let alice = locked(store).await;
    let month = later(31 * 24 * 3600);
    for _ in 0..3 {
        ask(store, month).await;
    }
    let fourth = code_at(store, "alice", month).await;
    assert!(matches!(request(store, &fourth).await.unwrap_err().refusal(), Refusal::RateLimited { .. }));
    let id = ask(store, later(2)).await;
    store.sweep(later(2)).await.unwrap();
    let left = pending(store, &alice, later(2)).await;
    assert_eq!(left.iter().map(|one| one.id).collect::<Vec<_>>(), [id]);
}

pub async fn a_request_is_decided_once_and_the_same_decision_is_repeatable(store: &Store) {
    let alice = locked(store).await;
    let wanted = ask(store, later(2)).await;
    let unwanted = ask(store, later(2)).await;
    assert!(matches!(store.approval_state(wanted, later(3)).await, Ok(ApprovalState::Pending { .. })));
    let tablet = approve(store, &alice, wanted, later(3)).await;
    assert!(matches!(decide(store, &alice, wanted, APPROVE, later(4)).await, Ok(Decided::Before)));
    assert_eq!(refusal(decide(store, &alice, wanted, Decision::Deny, later(4)).await), Refusal::NotFound);
    for _ in 0..2 {
        let Ok(ApprovalState::Approved(session)) = store.approval_state(wanted, later(5)).await else { panic!() };
        assert_eq!(session.caller, tablet.caller);
    }
    store.present(&super::hash(tablet.caller.session), later(6)).await.unwrap();
    assert_eq!(refusal(store.approval_state(wanted, later(7)).await), Refusal::NotFound);

    assert!(matches!(decide(store, &alice, unwanted, Decision::Deny, later(3)).await, Ok(Decided::Denied)));
    assert!(matches!(decide(store, &alice, unwanted, Decision::Deny, later(4)).await, Ok(Decided::Before)));
    assert_eq!(refusal(decide(store, &alice, unwanted, APPROVE, later(4)).await), Refusal::NotFound);
    assert!(matches!(store.approval_state(unwanted, later(5)).await, Ok(ApprovalState::Denied)));

    let bob = add_device(store, "bob").await;
    publish(store, &bob, 1..=1, start()).await.unwrap();
    let foreign = ask(store, later(8)).await;
    assert_eq!(refusal(decide(store, &bob, foreign, APPROVE, later(9)).await), Refusal::NotFound);
    let unpublished = decide(store, &tablet.caller, foreign, Decision::Deny, later(9)).await;
    assert!(matches!(refusal(unpublished), Refusal::DeviceTooNew { .. }));
}

pub async fn of_parallel_decisions_of_a_request_one_holds(store: &Store) {
    let alice = locked(store).await;
    for round in 0..8 {
        let id = ask(store, later(2)).await;
        let (approved, denied, by_time) = tokio::join!(
            decide(store, &alice, id, APPROVE, later(3)),
            decide(store, &alice, id, Decision::Deny, later(3)),
            async {
                let now = later(2) + WAIT;
                store.approve_by_time(id, &approved_session(now), now).await.unwrap()
            },
        );
        let is_denied = matches!(denied, Ok(Decided::Denied));
        assert_eq!(is_denied, matches!(store.approval_state(id, later(4)).await, Ok(ApprovalState::Denied)), "{round}");
        let is_approved = matches!(approved, Ok(Decided::Approved(_)));
        assert_eq!(usize::from(is_denied) + usize::from(is_approved) + usize::from(by_time.is_some()), 1, "{round}");
        for device in devices(store, &alice, later(4)).await {
            if device != alice.device {
                store.revoke_device(&alice, device, later(4)).await.unwrap();
            }
        }
    }
}

pub async fn a_request_whose_time_has_come_waits_for_a_place_and_for_nothing_else(store: &Store) {
    let alice = locked(store).await;
    let (one, two, three) = (ask(store, later(2)).await, ask(store, later(3)).await, ask(store, later(4)).await);
    let tablet = approve(store, &alice, one, later(5)).await;
    approve(store, &alice, two, later(5)).await;
    let late = later(4) + WAIT;
    assert_eq!(due(store, late.before(Duration::from_micros(1))).await, [], "it is too early");
    assert_eq!(due(store, late).await, [], "three devices are the limit");
    assert!(store.approve_by_time(three, &approved_session(late), late).await.unwrap().is_none());
    assert!(matches!(store.approval_state(three, late).await, Ok(ApprovalState::Pending { .. })));
    store.revoke_device(&alice, tablet.caller.device, later(6)).await.unwrap();
    assert_eq!(due(store, late).await, [three]);
    let approved = store.approve_by_time(three, &approved_session(late), late).await.unwrap();
    assert!(matches!(approved, Some(Approved::SignedIn(_))));
    assert_eq!(due(store, late).await, []);
    assert!(store.approve_by_time(three, &approved_session(late), late).await.unwrap().is_none());
}

pub async fn a_request_that_replaces_a_device_needs_no_other_place(store: &Store) {
    let alice = locked(store).await;
    for second in 2..4 {
        let id = ask(store, later(second)).await;
        approve(store, &alice, id, later(5)).await;
    }
    let idle = devices(store, &alice, later(5)).await[1];
    let mut replacing = code_at(store, "alice", later(6)).await;
    replacing.replace = Some(idle);
    let id = request(store, &replacing).await.unwrap().id;
    let late = later(6) + WAIT;
    assert_eq!(due(store, late).await, [id]);
    let Some(Approved::SignedIn(signed_in)) = store.approve_by_time(id, &approved_session(late), late).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(signed_in.replaced.map(|revoked| revoked.id), Some(idle));
}

pub async fn a_request_is_announced_again_if_it_was_not_mailed_and_once_a_day(store: &Store) {
    let alice = locked(store).await;
    let id = ask(store, later(2)).await;
    let taken = |now: Timestamp| async move {
        let answers = join_all((0..4).map(|_| store.take_reminders(now))).await;
        let all: Vec<_> = answers.into_iter().flat_map(Result::unwrap).collect();
        all.into_iter().map(|(to, request, deciders): (Email, _, _)| (to, request.id, deciders)).collect::<Vec<_>>()
    };
    let reminder = || (email("alice"), id, vec![alice.device]);
    assert_eq!(taken(later(61)).await, []);
    assert_eq!(taken(later(62)).await, [reminder()], "nobody has recorded that it was mailed");
    assert_eq!(taken(later(63)).await, []);
    store.note_mailed(id, None).await.unwrap();
    assert_eq!(taken(later(64)).await, [reminder()], "the mail was dropped");
    store.note_mailed(id, Some(later(2))).await.unwrap();
    let day = Duration::from_hours(24);
    assert_eq!(taken(later(1) + day).await, []);
    assert_eq!(taken(later(2) + day).await, [reminder()]);
    // A mail that was recorded under a clock that was ahead counts as none.
    store.note_mailed(id, Some(later(200) + day)).await.unwrap();
    let behind = Cutoff { now: later(60) + day, and_future: false };
    assert!(store.take_reminders(behind).await.unwrap().is_empty(), "the clock may be behind");
    assert_eq!(taken(later(81) + day).await, [], "clocks may differ by two minutes");
    assert_eq!(taken(later(79) + day).await, [reminder()]);
    assert_eq!(taken(later(80) + day).await, []);
    decide(store, &alice, id, Decision::Deny, later(4)).await.unwrap();
    assert_eq!(taken(later(100) + day + day).await, []);
}

pub async fn the_recovery_key_signs_in_at_once_and_stands_in_for_the_proof_of_a_replaced_device(store: &Store) {
    let alice = locked(store).await;
    store.touch_devices(&[(alice.device, later(2))]).await.unwrap();
    for _ in 0..2 {
        let id = ask(store, later(3)).await;
        approve(store, &alice, id, later(4)).await;
    }
    let mut lost = code_at(store, "alice", later(5)).await;
    let waiting = request(store, &lost).await.unwrap();
    lost.recovery_key = Some(recovery_key(43));
    assert_eq!(refusal(store.redeem(&lost).await), Refusal::InvalidCode);
    lost.recovery_key = Some(recovery_key(42));
    assert!(matches!(refusal(store.redeem(&lost).await), Refusal::DeviceLimit { .. }));
    lost.replace = Some(alice.device);
    let signed_in = redeem(store, &lost).await.unwrap();
    assert_eq!(signed_in.replaced.map(|revoked| revoked.id), Some(alice.device));
    assert!(matches!(store.approval_state(waiting.id, later(6)).await, Ok(ApprovalState::Denied)), "it is withdrawn");

    let mut without_key = code_at(store, "alice", later(6)).await;
    store.touch_devices(&[(signed_in.caller.device, later(6))]).await.unwrap();
    publish(store, &signed_in.caller, 1..=1, later(6)).await.unwrap();
    without_key.replace = Some(signed_in.caller.device);
    assert_eq!(refusal(store.redeem(&without_key).await), Refusal::ProofRequired);
}

pub async fn a_new_address_needs_an_approval_and_ends_the_requests_of_new_devices(store: &Store) {
    let alice = locked(store).await;
    let challenge = add_challenge(store, "new", later(2)).await;
    let ask_for =
        |to: Email, id: ApprovalId| async move { store.change_email(&alice, challenge, &to, id, later(3)).await };
    let id = ApprovalId(Uuid::new_v4());
    for (attempt, is_new) in [(id, true), (ApprovalId(Uuid::new_v4()), false)] {
        let Ok(AddressChange::Requested { email: present, approval }) = ask_for(email("new"), attempt).await else {
            panic!()
        };
        assert_eq!((present, approval.id, approval.new.is_some()), (email("alice"), id, is_new));
    }
    let thief = ask(store, later(4)).await;
    assert_eq!(pending(store, &alice, later(5)).await.len(), 2);

    let bob = code_at(store, "new", later(5)).await;
    let bob: UserId = redeem(store, &bob).await.unwrap().caller.user;
    assert_eq!(refusal(decide(store, &alice, id, APPROVE, later(6)).await), Refusal::EmailTaken);
    assert_eq!(pending(store, &alice, later(6)).await.len(), 2, "it stays pending");
    let owner = store.user_by_email(&email("new")).await.unwrap();
    assert_eq!(owner, Some(bob));
    let late = later(3) + WAIT;
    assert!(store.approve_by_time(id, &approved_session(late), late).await.unwrap().is_none());
    assert_eq!(refusal(decide(store, &alice, id, APPROVE, later(7)).await), Refusal::NotFound, "denied by time");

    let other = add_challenge(store, "other", later(7)).await;
    let id = ApprovalId(Uuid::new_v4());
    store.change_email(&alice, other, &email("other"), id, later(8)).await.unwrap();
    let decided = decide(store, &alice, id, APPROVE, later(9)).await.unwrap();
    let Decided::Approved(Approved::AddressChanged { old }) = decided else { panic!("{decided:?}") };
    assert_eq!(old, email("alice"));
    assert_eq!(store.user_by_email(&email("other")).await.unwrap(), Some(alice.user));
    assert!(matches!(store.approval_state(thief, later(10)).await, Ok(ApprovalState::Denied)));
}

/// Otherwise a young device could let a new one replace the owner's, and no device would be old enough to protect.
pub async fn a_young_device_revokes_no_older_one_by_its_decision(store: &Store) {
    let old = add_device_at(store, "alice", start()).await;
    publish(store, &old, 1..=1, start()).await.unwrap();
    let now = start() + DEVICE_AGE;
    let young = add_device_at(store, "alice", now).await;
    publish(store, &young, 1..=1, now).await.unwrap();
    let lock = Lock { recovery_key_hash: Sha256::digest(RECOVERY_KEY).into(), wait_s: WAIT.as_secs() };
    store.lock_account(&old, &lock, None, now).await.unwrap();

    let now = now + Duration::from_secs(1);
    let replacing = Decision::Approve { replace: Some(old.device) };
    let id = ask(store, now).await;
    assert!(matches!(refusal(decide(store, &young, id, replacing, now).await), Refusal::DeviceTooNew { .. }));
    let mut naming = code_at(store, "alice", now).await;
    naming.replace = Some(old.device);
    let named = request(store, &naming).await.unwrap().id;
    assert!(matches!(refusal(decide(store, &young, named, APPROVE, now).await), Refusal::DeviceTooNew { .. }));
    assert_eq!(pending(store, &old, now).await.len(), 2);
    let itself = Decision::Approve { replace: Some(young.device) };
    assert!(
        matches!(decide(store, &young, id, itself, now).await, Ok(Decided::Approved(_))),
        "its own place is its own"
    );
}

pub async fn a_device_that_has_published_since_its_request_is_not_approved_without_its_proof(store: &Store) {
    let alice = locked_with_tablet(store).await;
    let (alice, tablet) = alice;
    let mut again = code_at(store, "alice", later(6)).await;
    again.existing_device = Some(tablet.device);
    let id = request(store, &again).await.unwrap().id;
    publish(store, &tablet, 1..=1, later(7)).await.unwrap();
    assert_eq!(refusal(decide(store, &alice, id, APPROVE, later(8)).await), Refusal::UnknownDevice);
    let late = later(6) + WAIT;
    assert!(store.approve_by_time(id, &approved_session(late), late).await.unwrap().is_none());
    assert!(matches!(store.approval_state(id, later(9)).await, Ok(ApprovalState::Denied)));
}

pub async fn a_decision_cannot_replace_the_device_that_it_signs_in(store: &Store) {
    let (alice, tablet) = locked_with_tablet(store).await;
    let mut again = code_at(store, "alice", later(6)).await;
    again.existing_device = Some(tablet.device);
    let id = request(store, &again).await.unwrap().id;
    let itself = Decision::Approve { replace: Some(tablet.device) };
    assert_eq!(refusal(decide(store, &alice, id, itself, later(7)).await), Refusal::UnknownDevice);
    assert_eq!(approve(store, &alice, id, later(8)).await.caller.device, tablet.device);
}

/// Alice's device with a lock, and a tablet that has not published.
async fn locked_with_tablet(store: &Store) -> (Caller, Caller) {
    let alice = locked(store).await;
    let id = ask(store, later(2)).await;
    let tablet = approve(store, &alice, id, later(3)).await.caller;
    (alice, tablet)
}
