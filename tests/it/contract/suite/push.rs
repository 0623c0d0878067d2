//! Push targets and wake-ups.

use std::time::Duration;

use sealwire::{
    domain::{
        Caller, Refusal,
        push::{PushFailures, PushKind, PushState, PushTarget},
    },
    store::{DueWakeUp, NewPushTarget, PushRegistration, SettledWakeUp, Store},
};
use uuid::Uuid;

use super::{
    add_device, delete_account, later,
    mail::{WAKE_AFTER, accept_urgent, accept_urgent_for, ack_at, member},
    push_state, refusal,
};

fn target(endpoint: &str) -> PushTarget {
    PushTarget::WebPush { endpoint: endpoint.to_owned(), p256dh: "BA".to_owned(), auth: "AA".to_owned() }
}

async fn register(store: &Store, caller: &Caller, endpoint: &str) -> PushRegistration {
    let id = PushRegistration(Uuid::new_v4());
    let new = NewPushTarget { id, target: target(endpoint), nonce_hash: [7; 32] };
    store.register_push(caller, &new, later(1)).await.unwrap();
    id
}

/// A sender, and a receiver with a confirmed target.
async fn pair(store: &Store) -> (Caller, Caller, PushRegistration) {
    let (alice, bob) = (member(store, "alice").await, member(store, "bob").await);
    let id = register(store, &bob, "https://push.example/bob").await;
    store.confirm_push(&bob, &[7; 32], WAKE_AFTER, later(2)).await.unwrap();
    (alice, bob, id)
}

/// Takes the wake-ups that are due so many seconds after the start, for a minute.
async fn take(store: &Store, seconds: u64) -> Vec<DueWakeUp> {
    store.take_due_wake_ups(PushKind::Webpush, 100, later(seconds + 60), later(seconds)).await.unwrap()
}

async fn settle(store: &Store, due: DueWakeUp, next: u64, is_done: bool) {
    let settled = SettledWakeUp { due, next_at: later(next), is_done, failures: None };
    store.settle_wake_ups(&[settled]).await.unwrap();
}

pub async fn a_target_is_confirmed_by_its_nonce_in_time_and_once_replaced_not_any_more(store: &Store) {
    let bob = member(store, "bob").await;
    assert_eq!(push_state(store, bob.device).await, PushState::None);
    let not_found = async |hash: [u8; 32], at: u64| {
        assert_eq!(refusal(store.confirm_push(&bob, &hash, WAKE_AFTER, later(at)).await), Refusal::NotFound);
    };
    not_found([7; 32], 1).await;
    register(store, &bob, "https://push.example/1").await;
    assert_eq!(push_state(store, bob.device).await, PushState::Unconfirmed);
    not_found([8; 32], 2).await;
    not_found([7; 32], 601).await;
    for at in [600, 1000] {
        store.confirm_push(&bob, &[7; 32], WAKE_AFTER, later(at)).await.unwrap();
        assert_eq!(push_state(store, bob.device).await, PushState::Active);
    }
    let (_, active) = store.active_target(&bob, later(3)).await.unwrap().unwrap();
    assert_eq!(active, target("https://push.example/1"));
    let new = NewPushTarget {
        id: PushRegistration(Uuid::new_v4()),
        target: target("https://push.example/2"),
        nonce_hash: [9; 32],
    };
    store.register_push(&bob, &new, later(4)).await.unwrap();
    assert_eq!(push_state(store, bob.device).await, PushState::Unconfirmed);
    assert!(store.active_target(&bob, later(4)).await.unwrap().is_none());
    not_found([7; 32], 5).await;
    store.remove_push(&bob, later(6)).await.unwrap();
    store.remove_push(&bob, later(6)).await.unwrap();
    assert_eq!(push_state(store, bob.device).await, PushState::None);
}

pub async fn a_wake_up_is_taken_once_and_again_if_its_outcome_is_not_written(store: &Store) {
    let (alice, bob, id) = pair(store).await;
    accept_urgent(store, &alice, &bob, true, later(10)).await;
    let due_at = 10 + WAKE_AFTER.as_secs();
    assert!(take(store, due_at - 1).await.is_empty());
    let (one, two) = tokio::join!(take(store, due_at), take(store, due_at));
    let taken: Vec<DueWakeUp> = one.into_iter().chain(two).collect();
    assert_eq!(taken.len(), 1);
    assert_eq!((taken[0].device, taken[0].id), (bob.device, id));
    assert_eq!(taken[0].target, target("https://push.example/bob"));
    assert!(take(store, due_at + 59).await.is_empty());
    // The node that took it has died.
    let again = take(store, due_at + 60).await.remove(0);
    settle(store, taken[0].clone(), 6000, true).await;
    assert_eq!(take(store, due_at + 120).await.len(), 1, "an outcome that comes too late changes nothing");
    // Nor does that of the second one, which another node has taken since.
    settle(store, again, 6000, true).await;
    let last = take(store, due_at + 180).await.remove(0);
    settle(store, last, 6000, true).await;
    assert!(take(store, 5999).await.is_empty());
}

pub async fn a_node_takes_wake_ups_only_of_the_kind_that_it_asks_for(store: &Store) {
    let (alice, bob, _) = pair(store).await;
    accept_urgent(store, &alice, &bob, true, later(10)).await;
    for kind in [PushKind::Apns, PushKind::Fcm] {
        assert!(store.take_due_wake_ups(kind, 100, later(160), later(100)).await.unwrap().is_empty());
        assert_eq!(store.overdue_wake_up(kind, later(100)).await.unwrap(), Duration::ZERO);
    }
    let overdue = Duration::from_secs(90).saturating_sub(WAKE_AFTER);
    assert_eq!(store.overdue_wake_up(PushKind::Webpush, later(100)).await.unwrap(), overdue);
    assert_eq!(take(store, 100).await.len(), 1);
    assert_eq!(store.overdue_wake_up(PushKind::Webpush, later(100)).await.unwrap(), Duration::ZERO);
    // Another target may be of another kind.
    let token = PushTarget::Fcm { token: "token".to_owned() };
    let new = NewPushTarget { id: PushRegistration(Uuid::new_v4()), target: token, nonce_hash: [8; 32] };
    store.register_push(&bob, &new, later(200)).await.unwrap();
    store.confirm_push(&bob, &[8; 32], WAKE_AFTER, later(200)).await.unwrap();
    assert!(take(store, 300).await.is_empty());
    assert_eq!(store.take_due_wake_ups(PushKind::Fcm, 100, later(360), later(300)).await.unwrap().len(), 1);
}

pub async fn an_ack_ends_a_wake_up_even_if_the_push_is_under_way(store: &Store) {
    let (alice, bob, _) = pair(store).await;
    accept_urgent(store, &alice, &bob, true, later(10)).await;
    let due = take(store, 100).await.remove(0);
    ack_at(store, &bob, &[1], later(101)).await;
    settle(store, due, 200, true).await;
    assert!(take(store, 10_000).await.is_empty());
    accept_urgent(store, &alice, &bob, true, later(300)).await;
    let due = take(store, 400).await.remove(0);
    settle(store, due, 1000, true).await;
    // Further messages wake it no sooner.
    accept_urgent(store, &alice, &bob, true, later(500)).await;
    assert!(take(store, 999).await.is_empty());
    let due = take(store, 1000).await.remove(0);
    settle(store, due, 2000, true).await;
    // A device that acks knows of the rest, but it may end before it has acked that.
    ack_at(store, &bob, &[2], later(1100)).await;
    let six_hours = 6 * 3600;
    accept_urgent_for(store, &alice, &bob, Duration::from_hours(8), later(1200)).await;
    let due = take(store, 1200 + WAKE_AFTER.as_secs()).await.remove(0);
    settle(store, due, 1210 + six_hours, true).await;
    ack_at(store, &bob, &[3], later(1300)).await;
    assert!(take(store, 1299 + six_hours).await.is_empty());
    assert_eq!(take(store, 1300 + six_hours).await.len(), 1, "six hours after the last ack");
}

pub async fn a_target_that_is_confirmed_while_messages_wait_is_used_for_them(store: &Store) {
    let (alice, bob) = (member(store, "alice").await, member(store, "bob").await);
    accept_urgent(store, &alice, &bob, true, later(10)).await;
    register(store, &bob, "https://push.example/bob").await;
    assert!(take(store, 100).await.is_empty());
    store.confirm_push(&bob, &[7; 32], WAKE_AFTER, later(100)).await.unwrap();
    let due = take(store, 100 + WAKE_AFTER.as_secs()).await.remove(0);
    settle(store, due, 1000, true).await;
    // A repetition changes nothing: the next one is due as before.
    store.confirm_push(&bob, &[7; 32], WAKE_AFTER, later(200)).await.unwrap();
    assert!(take(store, 999).await.is_empty());
    assert_eq!(take(store, 1000).await.len(), 1);
}

pub async fn a_message_that_comes_while_a_wake_up_ends_has_its_own(store: &Store) {
    let (alice, bob, _) = pair(store).await;
    accept_urgent(store, &alice, &bob, true, later(10)).await;
    accept_urgent(store, &alice, &bob, false, later(10)).await;
    ack_at(store, &bob, &[1], later(11)).await;
    // Nothing urgent waits: it ends. Sends at the same time come before or after it, never between.
    let at = later(3000);
    let (taken, ()) = tokio::join!(
        store.take_due_wake_ups(PushKind::Webpush, 100, later(3060), at),
        accept_urgent_for(store, &alice, &bob, Duration::from_hours(8), at)
    );
    let again = take(store, 3000 + WAKE_AFTER.as_secs()).await;
    assert_eq!(taken.unwrap().len() + again.len(), 1);
}

pub async fn a_target_is_not_used_before_the_time_that_its_service_named(store: &Store) {
    let (alice, bob, _) = pair(store).await;
    accept_urgent(store, &alice, &bob, true, later(10)).await;
    accept_urgent(store, &alice, &bob, true, later(10)).await;
    let due = take(store, 100).await.remove(0);
    let failures = PushFailures { since: Some(later(100)), count: 1 };
    let settled = SettledWakeUp { due, next_at: later(400), is_done: false, failures: Some(failures) };
    store.settle_wake_ups(&[settled]).await.unwrap();
    // The ack makes the other message due sooner, but the service asked for a pause.
    ack_at(store, &bob, &[1], later(200)).await;
    assert!(take(store, 200 + WAKE_AFTER.as_secs()).await.is_empty());
    assert!(take(store, 399).await.is_empty());
    assert_eq!(take(store, 400).await.remove(0).failures, failures);
    // Long after that time, another message is not another try of the first.
    ack_at(store, &bob, &[2], later(401)).await;
    accept_urgent(store, &alice, &bob, true, later(500)).await;
    assert_eq!(take(store, 600).await.remove(0).failures, PushFailures::default());
}

pub async fn only_urgent_messages_for_a_confirmed_target_wake(store: &Store) {
    let (alice, bob, _) = pair(store).await;
    accept_urgent(store, &alice, &bob, false, later(10)).await;
    assert!(take(store, 1000).await.is_empty());
    let carol = member(store, "carol").await;
    register(store, &carol, "https://push.example/carol").await;
    accept_urgent(store, &alice, &carol, true, later(10)).await;
    assert!(take(store, 1000).await.is_empty(), "the target is not confirmed");
    // An envelope that has expired wakes nobody, and ends the wake-up.
    accept_urgent(store, &alice, &bob, true, later(10)).await;
    assert!(store.take_due_wake_ups(PushKind::Webpush, 100, later(9060), later(9000)).await.unwrap().is_empty());
    assert!(take(store, 9060).await.is_empty());
}

pub async fn the_answer_to_an_old_push_removes_no_new_target(store: &Store) {
    let (alice, bob, old) = pair(store).await;
    let new = register(store, &bob, "https://push.example/new").await;
    store.confirm_push(&bob, &[7; 32], WAKE_AFTER, later(3)).await.unwrap();
    assert!(!store.forget_push(bob.device, old).await.unwrap());
    assert_eq!(push_state(store, bob.device).await, PushState::Active);
    accept_urgent(store, &alice, &bob, true, later(10)).await;
    assert!(store.forget_push(bob.device, new).await.unwrap());
    assert!(!store.forget_push(bob.device, new).await.unwrap());
    assert_eq!(push_state(store, bob.device).await, PushState::None);
    assert!(take(store, 1000).await.is_empty());
    assert!(!store.forget_push(add_device(store, "dave").await.device, new).await.unwrap());
}

pub async fn failures_are_counted_until_a_push_succeeds(store: &Store) {
    let (alice, bob, _) = pair(store).await;
    accept_urgent(store, &alice, &bob, true, later(10)).await;
    let due = take(store, 100).await.remove(0);
    assert_eq!(due.failures, PushFailures::default());
    let failures = PushFailures { since: Some(later(100)), count: 1 };
    let settled = SettledWakeUp { due, next_at: later(105), is_done: false, failures: Some(failures) };
    store.settle_wake_ups(&[settled]).await.unwrap();
    let due = take(store, 105).await.remove(0);
    assert_eq!(due.failures, failures);
    let settled = SettledWakeUp { due, next_at: later(900), is_done: true, failures: Some(PushFailures::default()) };
    store.settle_wake_ups(&[settled]).await.unwrap();
    assert_eq!(take(store, 900).await.remove(0).failures, PushFailures::default());
}

pub async fn a_target_goes_with_its_device_and_its_account(store: &Store) {
    let (_, bob, _) = pair(store).await;
    store.revoke_device(&bob, bob.device, later(5)).await.unwrap();
    assert_eq!(push_state(store, bob.device).await, PushState::None);
    let carol = member(store, "carol").await;
    register(store, &carol, "https://push.example/carol").await;
    delete_account(store, &carol, "carol", later(6)).await;
    assert_eq!(push_state(store, carol.device).await, PushState::None);
    assert!(take(store, 1000).await.is_empty());
}
