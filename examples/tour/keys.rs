//! A device's private keys, and the secrets that X3DH derives from them and another device's public keys. Neither ever leaves
//! the device.
//!
//! The suite is `signal-x3dh`: X25519 keys, serialized as 0x05 and 32 bytes, and prekeys signed with `XEdDSA`. The key
//! agreement is X3DH (<https://signal.org/docs/specifications/x3dh/>), but with BLAKE3 in its key-derivation mode instead of
//! HKDF. A real client uses a library for this, such as libsignal, and continues with a double ratchet.

use std::collections::BTreeMap;

use curve25519_dalek::montgomery::MontgomeryPoint;
use rand::RngExt;
use sealwire::{
    clock::Entropy,
    domain::{
        Suite,
        keys::{IdentityKey, Prekey},
        signature::{verify, x25519_public, xeddsa_sign},
    },
};
use sealwire_client::{
    Challenge, DeviceId,
    protocol::{
        keys::{PrekeyBundle, PublishKeysRequest, PublishedKey, PublishedSignedPrekey},
        value::{Base64, Base64Text, List, Object},
    },
};

use crate::{Outcome, ensure, sealed::Hello};

/// What two devices share.
pub type Secret = [u8; 32];

const SUITE: Suite = Suite::SignalX3dh;
const SIGNED_PREKEY_ID: u32 = 1;

/// A device's private keys.
pub struct Keyring {
    entropy: Entropy,
    identity: [u8; 32],
    signed_prekey: [u8; 32],
    one_time: BTreeMap<u32, [u8; 32]>,
    last_key_id: u32,
}

impl Keyring {
    pub fn new(entropy: &Entropy) -> Self {
        let [identity, signed_prekey] = entropy.draw(RngExt::random);
        Self { entropy: entropy.clone(), identity, signed_prekey, one_time: BTreeMap::new(), last_key_id: 0 }
    }

    pub fn entropy(&self) -> &Entropy {
        &self.entropy
    }

    /// The first `keys.publish`, which must be a complete set.
    pub fn complete_set(&mut self, one_time: usize) -> PublishKeysRequest {
        let public = serialized(&self.signed_prekey);
        let signed_prekey = PublishedSignedPrekey {
            key_id: SIGNED_PREKEY_ID,
            // The signature covers the serialized key, including its type byte.
            signature: Base64(self.sign(&public)),
            public_key: Base64(public),
            expires_at: None,
        };
        PublishKeysRequest {
            suite: Some(SUITE),
            identity_key: Some(Base64(self.identity_key())),
            signed_prekey: Some(Object(signed_prekey)),
            ..self.refill(one_time)
        }
    }

    /// A later `keys.publish`: only one-time prekeys, under new ids.
    pub fn refill(&mut self, one_time: usize) -> PublishKeysRequest {
        let mut keys = Vec::new();
        for _ in 0..one_time {
            self.last_key_id += 1;
            let private: [u8; 32] = self.entropy.draw(RngExt::random);
            let public_key = Base64(serialized(&private));
            keys.push(Object(PublishedKey { key_id: self.last_key_id, public_key }));
            self.one_time.insert(self.last_key_id, private);
        }
        PublishKeysRequest { one_time_prekeys: Some(List(keys)), ..PublishKeysRequest::default() }
    }

    /// The serialized public identity key.
    pub fn identity_key(&self) -> Vec<u8> {
        serialized(&self.identity)
    }

    /// Proves the identity of a device that signs in again.
    pub fn device_proof(&self, challenge: &Challenge, device: DeviceId) -> Vec<u8> {
        self.sign(&challenge.proof_message(device))
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let nonce: [u8; 64] = self.entropy.draw(RngExt::random);
        xeddsa_sign(&self.identity, message, &nonce).to_vec()
    }

    /// X3DH by the initiator, who has claimed a bundle. Returns the shared secret, and the public values that the other side
    /// needs to derive it.
    pub fn initiate(&self, bundle: &PrekeyBundle) -> Outcome<(Secret, Hello)> {
        let their_identity = decode(&bundle.identity_key)?;
        let their_prekey = decode(&bundle.signed_prekey.public_key)?;
        // The server has verified the signature too, but a client must not trust the server.
        let identity = IdentityKey::parse(SUITE, &their_identity)?;
        let prekey = Prekey::parse(SUITE, &their_prekey)?;
        verify(SUITE, &identity, prekey.as_bytes(), &decode(&bundle.signed_prekey.signature)?)?;

        let ephemeral: [u8; 32] = self.entropy.draw(RngExt::random);
        let mut agreed = vec![
            agree(&self.identity, &their_prekey)?,
            agree(&ephemeral, &their_identity)?,
            agree(&ephemeral, &their_prekey)?,
        ];
        if let Some(one_time) = &bundle.one_time_prekey {
            agreed.push(agree(&ephemeral, &decode(&one_time.public_key)?)?);
        }
        let hello = Hello {
            identity_key: Base64(self.identity_key()),
            ephemeral_key: Base64(serialized(&ephemeral)),
            signed_prekey_id: bundle.signed_prekey.key_id,
            one_time_prekey_id: bundle.one_time_prekey.as_ref().map(|key| key.key_id),
        };
        Ok((derive(&agreed), hello))
    }

    /// X3DH by the responder, whose bundle it was. Deletes the private key of the one-time prekey. Returns the shared secret.
    pub fn respond(&mut self, hello: &Hello) -> Outcome<Secret> {
        ensure(hello.signed_prekey_id == SIGNED_PREKEY_ID, "the signed prekey is ours")?;
        let (their_identity, their_ephemeral) = (&hello.identity_key.0, &hello.ephemeral_key.0);
        let mut agreed = vec![
            agree(&self.signed_prekey, their_identity)?,
            agree(&self.identity, their_ephemeral)?,
            agree(&self.signed_prekey, their_ephemeral)?,
        ];
        if let Some(id) = hello.one_time_prekey_id {
            let private = self.one_time.remove(&id).ok_or("the one-time prekey is unknown or was used before")?;
            agreed.push(agree(&private, their_ephemeral)?);
        }
        Ok(derive(&agreed))
    }
}

/// The serialized public key of a private key.
fn serialized(private: &[u8; 32]) -> Vec<u8> {
    [&[0x05], &x25519_public(private)[..]].concat()
}

fn decode(key: &Base64Text) -> Outcome<Vec<u8>> {
    Ok(key.decode().ok_or("a key is not base64")?)
}

/// X25519 of a private key and another device's serialized public key.
fn agree(private: &[u8; 32], public: &[u8]) -> Outcome<[u8; 32]> {
    let point: [u8; 32] = public.get(1..).ok_or("a key is empty")?.try_into()?;
    Ok(MontgomeryPoint(point).mul_clamped(*private).to_bytes())
}

/// Derives the secret from the three or four agreements, after the prefix of 32 bytes 0xFF that X3DH prescribes.
fn derive(agreed: &[[u8; 32]]) -> Secret {
    let material = [&[[0xff; 32]], agreed].concat().concat();
    blake3::derive_key("sealwire tour 2026 X3DH shared secret", &material)
}
