//! `sealwire seed`: creates users, devices and valid keys directly in the store, for load tests.

use std::{
    collections::HashSet,
    io::{self, BufWriter, Write},
};

use rand::{RngExt, rngs::StdRng};
use serde::Serialize;

use crate::{
    clock::{Clock, Entropy},
    domain::{
        Caller, DeviceId, Email, SessionId, Suite, UserId,
        publish::{PublishRequest, SignedKey, UnsignedKey},
        signature::{x25519_public, xeddsa_sign},
        token::Token,
    },
    service::Policy,
    store::{NewSession, SeedDevice, Store},
};

/// Devices written in one transaction.
const STEP: usize = 500;

/// What to create.
pub struct SeedPlan {
    /// The number of users.
    pub users: usize,
    /// The number of devices per user.
    pub devices: usize,
    /// The number of one-time prekeys per device.
    pub prekeys: usize,
}

#[derive(Serialize)]
struct Line {
    user_id: UserId,
    device_id: DeviceId,
    token: String,
}

/// Creates users and devices, and writes one JSON line per device with its user id, device id and token. Returns the
/// number of devices.
///
/// # Errors
/// If the store or writing the output fails.
pub async fn seed(
    store: &Store,
    plan: &SeedPlan,
    policy: &Policy,
    clock: &Clock,
    entropy: &Entropy,
    out: impl Write,
) -> Result<usize, Box<dyn std::error::Error>> {
    let mut out = BufWriter::new(out);
    let now = clock.now();
    let mut batch = Vec::with_capacity(STEP);
    let mut made = 0;
    for _ in 0..plan.users {
        let user = UserId(entropy.uuid());
        let email = Email::parse(&format!("seed-{user}@seed.invalid"))
            .ok_or_else(|| io::Error::other("a seeded address is invalid"))?;
        for _ in 0..plan.devices {
            let token = entropy.draw(Token::generate);
            let caller =
                Caller { session: SessionId(entropy.uuid()), user, device: DeviceId(entropy.uuid()), user_since: now };
            let session =
                NewSession { id: caller.session, token_hash: token.hash(), expires_at: now + policy.session_lifetime };
            let line = Line { user_id: user, device_id: caller.device, token: token.reveal() };
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")?;
            let (registration_id, keys) =
                entropy.draw(|rng| (rng.random_range(1..=16380), signal_x3dh_keys(rng, plan.prekeys)));
            let keys = keys.verify(None, HashSet::default(), now + policy.signed_prekey_lifetime)?;
            let email = email.clone();
            batch.push(SeedDevice { caller, email, registration_id, session, keys });
            made += 1;
            if batch.len() == STEP {
                store.seed(&batch, now).await?;
                batch.clear();
            }
        }
    }
    store.seed(&batch, now).await?;
    out.flush()?;
    Ok(made)
}

/// A complete `signal-x3dh` set of keys. The private keys are discarded.
fn signal_x3dh_keys(rng: &mut StdRng, prekeys: usize) -> PublishRequest {
    let identity: [u8; 32] = rng.random();
    let serialized = |private: &[u8; 32]| {
        let mut key = vec![0x05];
        key.extend(x25519_public(private));
        key
    };
    let mut public_key = || serialized(&rng.random());
    let signed = public_key();
    let one_time = (1..).take(prekeys).map(|key_id| UnsignedKey { key_id, public_key: public_key() }).collect();
    let nonce = { rng.random::<[[u8; 32]; 2]>() };
    let mut random = [0; 64];
    random[..32].copy_from_slice(&nonce[0]);
    random[32..].copy_from_slice(&nonce[1]);
    let signature = xeddsa_sign(&identity, &signed, &random).to_vec();
    PublishRequest {
        suite: Some(Suite::SignalX3dh),
        identity_key: Some(serialized(&identity)),
        signed_prekey: Some(SignedKey { key_id: 1, public_key: signed, signature }),
        one_time,
        ..PublishRequest::default()
    }
}
