//! The cases of the store's contract. Each gets an empty store, and passes the time to each call.

pub mod accounts;
pub mod approvals;
pub mod codes;
pub mod ended;
pub mod keys;
pub mod mail;
pub mod pools;
pub mod push;
pub mod safety;

use std::{collections::HashSet, time::Duration};

use sealwire::{
    domain::{
        ApprovalId, Bundles, Caller, ChallengeId, ClaimId, DeviceId, Email, KeysStatus, Refusal, SessionId, Suite,
        Timestamp, UserId,
        envelope::MailboxStatus,
        keyed_buckets::DrainLimit,
        keys::IdentityKey,
        otp::CodePurpose,
        publish::{Identity, PublishRequest, SignedKey, UnsignedKey},
        push::PushState,
        signature::{x25519_public, xeddsa_sign},
    },
    store::{
        ClaimAnswer, ClaimRequest, Claims, CodeDecision, DeviceStatus, NewChallenge, NewDevice, NewSession,
        PublishOutcome, SignIn, SignInOutcome, SignedIn, Store, StoreError,
    },
};
use uuid::Uuid;

pub const LOW_WATERMARK: u32 = 4;
pub const DEVICE_AGE: Duration = Duration::from_hours(72);

fn start() -> Timestamp {
    Timestamp::parse("2026-03-01T08:00:00.123456Z").unwrap()
}

pub fn later(seconds: u64) -> Timestamp {
    start() + Duration::from_secs(seconds)
}

pub fn email(name: &str) -> Email {
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
    store.create_challenge(&challenge(id, name, now), |_, _| SEND).await.unwrap();
    id
}

/// Sends a code without a proof.
pub const SEND: CodeDecision = CodeDecision::Send { spend: None, is_paid: false };

/// A request for a code to sign in, from a network that no address knows.
pub fn challenge(id: ChallengeId, name: &str, now: Timestamp) -> NewChallenge {
    NewChallenge {
        id,
        email: email(name),
        purpose: CodePurpose::SignIn,
        hash: [7; 32],
        network: [1; 32],
        known_network: [1; 32],
        token: None,
        created_at: now,
    }
}

fn new_session(now: Timestamp) -> NewSession {
    let id = SessionId(Uuid::new_v4());
    NewSession { id, token_hash: hash(id), expires_at: now + Duration::from_hours(1) }
}

/// Returns the token hash of a session that these helpers have made.
pub fn hash(session: SessionId) -> [u8; 32] {
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
        proof: Vec::new(),
        recovery_key: None,
        approval: ApprovalId(Uuid::new_v4()),
        client_network: None,
        known_network: [2; 32],
        max_devices: 3,
        session: new_session(now),
        now,
    }
}

/// Redeems a code for a session.
async fn redeem(store: &Store, sign_in: &SignIn) -> Result<SignedIn, StoreError> {
    match store.redeem(sign_in).await? {
        SignInOutcome::SignedIn(signed_in) => Ok(signed_in),
        SignInOutcome::Requested { approval, .. } => panic!("not signed in but {approval:?}"),
    }
}

async fn add_device(store: &Store, name: &str) -> Caller {
    let challenge = add_challenge(store, name, start()).await;
    redeem(store, &sign_in(challenge, name, start())).await.unwrap().caller
}

/// Returns the status of a device's keys.
async fn keys_status(store: &Store, device: DeviceId) -> KeysStatus {
    device_status(store, device).await.keys
}

/// Returns the status of a device's mailbox.
pub async fn mailbox(store: &Store, device: DeviceId) -> MailboxStatus {
    device_status(store, device).await.mailbox
}

/// Returns the state of a device's push target.
async fn push_state(store: &Store, device: DeviceId) -> PushState {
    device_status(store, device).await.push
}

/// Returns the status of a device, read without a session.
async fn device_status(store: &Store, device: DeviceId) -> DeviceStatus {
    let (session, user) = (SessionId(Uuid::nil()), UserId(Uuid::nil()));
    let anyone = Caller { session, user, device, user_since: start() };
    store.device_statuses(&[anyone], start()).await.unwrap().swap_remove(0)
}

/// Deletes the account of a user. The code is not compared, so the purpose of the challenge does not matter.
async fn delete_account(store: &Store, caller: &Caller, name: &str, now: Timestamp) -> Vec<DeviceId> {
    let challenge = add_challenge(store, name, now).await;
    store.delete_account(caller, challenge, now).await.unwrap().devices
}

/// The private identity key of most devices.
const IDENTITY: [u8; 32] = [1; 32];

fn typed(byte: u8, key: &[u8]) -> Vec<u8> {
    [&[byte], key].concat()
}

/// Returns a public X25519 key, a different one for each id.
fn key(id: u32) -> Vec<u8> {
    let mut private = [2; 32];
    private[..4].copy_from_slice(&id.to_be_bytes());
    typed(5, &x25519_public(&private))
}

/// Returns an encoded ML-KEM-1024 key, a different one for each id. (Its last 32 bytes may have any value.)
fn pq_key(id: u32) -> Vec<u8> {
    let mut encoded = [0; 1568];
    encoded[1564..].copy_from_slice(&id.to_be_bytes());
    typed(0x0a, &encoded)
}

fn signed(key_id: u32, public_key: Vec<u8>) -> SignedKey {
    let signature = xeddsa_sign(&IDENTITY, &public_key, &[3; 64]).to_vec();
    SignedKey { key_id, public_key, signature }
}

fn identity() -> Identity {
    let suite = Suite::SignalPqxdh;
    let key = IdentityKey::parse(suite, &typed(5, &x25519_public(&IDENTITY))).unwrap();
    Identity { suite, key }
}

fn complete(ids: impl IntoIterator<Item = u32>) -> PublishRequest {
    PublishRequest {
        suite: Some(Suite::SignalPqxdh),
        identity_key: Some(identity().key.as_bytes().to_vec()),
        signed_prekey: Some(signed(1, key(1))),
        one_time: ids.into_iter().map(|id| UnsignedKey { key_id: id, public_key: key(id) }).collect(),
        pq_last_resort: Some(signed(1, pq_key(1))),
        ..PublishRequest::default()
    }
}

async fn publish_request(
    store: &Store,
    caller: &Caller,
    request: PublishRequest,
    now: Timestamp,
) -> Result<PublishOutcome, StoreError> {
    let publish = request.verify(Some(&identity()), HashSet::new(), now + Duration::from_hours(720)).unwrap();
    store.publish(caller, &publish, now).await
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
    let request = ClaimRequest { claim, ..request(caller, user, now) };
    let claims = claims(store, 0);
    let mut batch = claims.claim(vec![request]).await;
    match batch.answers.remove(0)? {
        ClaimAnswer::Done(bundles) => Ok(bundles),
        ClaimAnswer::Blocked(blocked) => Ok(claims.claim_blocking(*blocked).await?.0),
    }
}

/// A claim of one key of each kind from every device of a user.
pub fn request(caller: &Caller, user: UserId, now: Timestamp) -> ClaimRequest {
    let suites = sealwire::domain::bundle::UsableSuites::default();
    ClaimRequest { caller: *caller, user, devices: None, suites, claim: ClaimId(Uuid::new_v4()), access: None, now }
}

/// Claims with a drain limit of `burst` keys that gets one key back each hour; a burst of 0 means no limit.
fn claims(store: &Store, burst: u32) -> Claims {
    Claims::new(store.clone(), DrainLimit::new(burst, Duration::from_hours(1)), 0)
}

fn claimed(bundles: &Bundles) -> Option<u32> {
    bundles.bundles[0].one_time_prekey.as_ref().map(|key| key.key_id)
}
