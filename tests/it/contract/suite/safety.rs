//! What protects an account from somebody who reads the owner's mail.

use std::time::Duration;

use sealwire::{
    domain::{Caller, DeviceId, Refusal, Timestamp},
    store::Store,
};

use super::{DEVICE_AGE, add_challenge, publish, refusal, sign_in, start};

/// Signs in on a new device, with a session of a year.
async fn add_device_at(store: &Store, name: &str, at: Timestamp) -> Caller {
    let mut request = sign_in(add_challenge(store, name, at).await, name, at);
    request.session.expires_at = at + Duration::from_hours(24 * 365);
    store.redeem(&request).await.unwrap().caller
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
    assert_eq!(refusal(store.delete_account(&young, due).await), too_new);
    assert_eq!(rename(young, young.device, due).await, Ok(()));
    assert_eq!(rename(old, young.device, due).await, Ok(()));
    assert_eq!(rename(bobs, unpublished.device, due).await, Ok(()));
    assert_eq!(rename(young, old.device, allowed_at).await, Ok(()));
    store.revoke_device(&young, old.device, allowed_at).await.unwrap();
}
