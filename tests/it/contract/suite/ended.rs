//! The reasons why a token is not valid.

use std::time::Duration;

use sealwire::{
    domain::{Caller, Refusal, SessionId, Timestamp, refusal::InvalidTokenReason},
    store::Store,
};

use super::{add_challenge, add_device, delete_account, hash, later, new_session, redeem, refusal, sign_in, start};

async fn reason(store: &Store, session: SessionId, now: Timestamp) -> InvalidTokenReason {
    match refusal(store.present(&hash(session), now).await) {
        Refusal::Unauthorized(reason) => reason,
        other => panic!("{other}"),
    }
}

pub async fn a_token_that_was_never_issued_is_unknown(store: &Store) {
    assert_eq!(reason(store, new_session(start()).id, start()).await, InvalidTokenReason::Unknown);
}

pub async fn an_expired_session_is_reported_as_expired_before_and_after_the_sweep(store: &Store) {
    let device = add_device(store, "alice").await;
    let after = later(3600) + Duration::from_hours(1);
    assert_eq!(reason(store, device.session, after).await, InvalidTokenReason::Expired);
    store.sweep(after).await.unwrap();
    assert_eq!(reason(store, device.session, after).await, InvalidTokenReason::Expired);
    store.sweep(after + Duration::from_hours(30 * 24)).await.unwrap();
    assert_eq!(reason(store, device.session, after).await, InvalidTokenReason::Unknown, "after 30 days");
}

pub async fn a_logout_and_a_renewal_are_reported_as_reasons(store: &Store) {
    let device = add_device(store, "alice").await;
    let (first, second) = (new_session(later(1)), new_session(later(2)));
    store.renew_session(&device, &first, later(1)).await.unwrap();
    store.renew_session(&device, &second, later(2)).await.unwrap();
    assert_eq!(reason(store, first.id, later(3)).await, InvalidTokenReason::Superseded, "renewed before it was used");
    store.present(&hash(second.id), later(3)).await.unwrap();
    assert_eq!(reason(store, device.session, later(3)).await, InvalidTokenReason::Superseded);
    let renewed = Caller { session: second.id, ..device };
    let pending = new_session(later(4));
    store.renew_session(&renewed, &pending, later(4)).await.unwrap();
    store.end_session(&renewed, later(5)).await.unwrap();
    for ended in [second.id, pending.id] {
        assert_eq!(reason(store, ended, later(5)).await, InvalidTokenReason::LoggedOut);
    }
}

pub async fn a_revocation_replaces_the_reasons_of_earlier_sessions(store: &Store) {
    let device = add_device(store, "alice").await;
    let other = add_device(store, "alice").await;
    let mut again = sign_in(add_challenge(store, "alice", start()).await, "alice", later(1));
    again.existing_device = Some(device.device);
    let newer = redeem(store, &again).await.unwrap().caller;
    store.end_session(&device, later(2)).await.unwrap();
    assert_eq!(reason(store, device.session, later(3)).await, InvalidTokenReason::LoggedOut);
    store.revoke_device(&other, device.device, later(4)).await.unwrap();
    for ended in [device.session, newer.session] {
        assert_eq!(reason(store, ended, later(5)).await, InvalidTokenReason::DeviceRevoked);
    }
    delete_account(store, &other, "alice", later(6)).await;
    for ended in [device.session, newer.session, other.session] {
        assert_eq!(reason(store, ended, later(7)).await, InvalidTokenReason::AccountDeleted);
    }
}

pub async fn only_the_last_200_reasons_of_a_device_are_kept(store: &Store) {
    let mut device = add_device(store, "alice").await;
    let mut ended = Vec::new();
    for round in 1..=205 {
        let next = new_session(later(round));
        store.renew_session(&device, &next, later(round)).await.unwrap();
        store.present(&hash(next.id), later(round)).await.unwrap();
        ended.push(device.session);
        device.session = next.id;
    }
    let mut reasons = Vec::new();
    for session in ended {
        reasons.push(reason(store, session, later(400)).await);
    }
    assert_eq!(reasons[..5], [InvalidTokenReason::Unknown; 5]);
    assert_eq!(reasons[5..], [InvalidTokenReason::Superseded; 200]);
}
