//! The cases. Each gets an empty store and owns its clock.

pub mod accounts;
pub mod keys;
pub mod mail;

use std::{sync::Arc, time::Duration};

use sealwire::{
    domain::{
        Bundles, Caller, ChallengeId, ClaimId, DeviceId, Email, Refusal, SessionId, Suite, Timestamp, UserId,
        bucket::DrainLimit,
        publish::{PlainKey, PublishRequest, SignedKey},
    },
    store::{
        ClaimAnswer, ClaimRequest, NewChallenge, NewDevice, NewSession, PublishOutcome, ResolvedPublish, SignIn, Store,
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
) -> Result<PublishOutcome, StoreError> {
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
) -> Result<PublishOutcome, StoreError> {
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
