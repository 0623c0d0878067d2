//! A device's private keys, and the secrets that X3DH derives from them and another device's public keys. Neither ever leaves
//! the device.
//!
//! The suite is `signal-x3dh`: X25519 keys, serialized as 0x05 and 32 bytes, and prekeys signed with `XEdDSA`. The key
//! agreement is X3DH (<https://signal.org/docs/specifications/x3dh/>), but with BLAKE3 in its key-derivation mode instead of
//! HKDF. A real client uses a library for this, such as libsignal, and continues with a double ratchet.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use curve25519_dalek::montgomery::MontgomeryPoint;
use rand::{Rng, RngExt};
use sealwire::{
    clock::Entropy,
    domain::{
        Suite,
        keys::{IdentityKey, Prekey},
        signature::{verify, x25519_public, xeddsa_sign},
    },
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::client::{Outcome, ensure};

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

    /// The parameters of the first `keys.publish`, which must be a complete set.
    pub fn complete_set(&mut self, one_time: usize) -> Value {
        let public = serialized(&self.signed_prekey);
        let mut nonce = [0; 64];
        self.entropy.draw(|rng| rng.fill_bytes(&mut nonce));
        // The signature covers the serialized key, including its type byte.
        let signature = xeddsa_sign(&self.identity, &public, &nonce);
        json!({
            "suite": SUITE.as_str(),
            "identity_key": self.identity_key(),
            "signed_prekey": {
                "key_id": SIGNED_PREKEY_ID,
                "public_key": STANDARD.encode(public),
                "signature": STANDARD.encode(signature),
            },
            "one_time_prekeys": self.new_one_time(one_time),
        })
    }

    /// The parameters of a later `keys.publish`: only one-time prekeys, under new ids.
    pub fn refill(&mut self, one_time: usize) -> Value {
        json!({ "one_time_prekeys": self.new_one_time(one_time) })
    }

    fn new_one_time(&mut self, count: usize) -> Vec<Value> {
        let mut keys = Vec::new();
        for _ in 0..count {
            self.last_key_id += 1;
            let private: [u8; 32] = self.entropy.draw(RngExt::random);
            keys.push(json!({ "key_id": self.last_key_id, "public_key": STANDARD.encode(serialized(&private)) }));
            self.one_time.insert(self.last_key_id, private);
        }
        keys
    }

    /// The public identity key in base64.
    pub fn identity_key(&self) -> String {
        STANDARD.encode(serialized(&self.identity))
    }

    /// Proves the identity of a device that signs in again: a signature over a text, the challenge and the device.
    pub fn device_proof(&self, challenge: &str, device: &str) -> Outcome<String> {
        let mut text = b"sealwire-device-proof-v1".to_vec();
        text.extend(Uuid::parse_str(challenge)?.as_bytes());
        text.extend(Uuid::parse_str(device)?.as_bytes());
        let nonce = self.entropy.draw(RngExt::random);
        Ok(STANDARD.encode(xeddsa_sign(&self.identity, &text, &nonce)))
    }

    /// X3DH by the initiator, who has claimed a bundle. Returns the shared secret, and the public values that the other side
    /// needs to derive it.
    pub fn initiate(&self, bundle: &Value) -> Outcome<([u8; 32], Value)> {
        let their_identity = decode(&bundle["identity_key"])?;
        let their_prekey = decode(&bundle["signed_prekey"]["public_key"])?;
        // The server has verified the signature too, but a client must not trust the server.
        let identity = IdentityKey::parse(SUITE, &their_identity)?;
        let prekey = Prekey::parse(SUITE, &their_prekey)?;
        verify(SUITE, &identity, prekey.as_bytes(), &decode(&bundle["signed_prekey"]["signature"])?)?;

        let ephemeral: [u8; 32] = self.entropy.draw(RngExt::random);
        let mut agreed = vec![
            agree(&self.identity, &their_prekey)?,
            agree(&ephemeral, &their_identity)?,
            agree(&ephemeral, &their_prekey)?,
        ];
        if bundle["one_time_prekey"].is_object() {
            agreed.push(agree(&ephemeral, &decode(&bundle["one_time_prekey"]["public_key"])?)?);
        }
        let hello = json!({
            "identity_key": self.identity_key(),
            "ephemeral_key": STANDARD.encode(serialized(&ephemeral)),
            "signed_prekey_id": bundle["signed_prekey"]["key_id"],
            "one_time_prekey_id": bundle["one_time_prekey"]["key_id"],
        });
        Ok((derive(&agreed), hello))
    }

    /// X3DH by the responder, whose bundle it was. Deletes the private key of the one-time prekey. Returns the shared secret.
    pub fn respond(&mut self, hello: &Value) -> Outcome<[u8; 32]> {
        ensure(hello["signed_prekey_id"] == SIGNED_PREKEY_ID, "the signed prekey is ours")?;
        let their_identity = decode(&hello["identity_key"])?;
        let their_ephemeral = decode(&hello["ephemeral_key"])?;
        let mut agreed = vec![
            agree(&self.signed_prekey, &their_identity)?,
            agree(&self.identity, &their_ephemeral)?,
            agree(&self.signed_prekey, &their_ephemeral)?,
        ];
        if let Some(id) = hello["one_time_prekey_id"].as_u64() {
            let private =
                self.one_time.remove(&u32::try_from(id)?).ok_or("the one-time prekey is unknown or was used before")?;
            agreed.push(agree(&private, &their_ephemeral)?);
        }
        Ok(derive(&agreed))
    }
}

/// The serialized public key of a private key.
fn serialized(private: &[u8; 32]) -> [u8; 33] {
    let mut key = [0x05; 33];
    key[1..].copy_from_slice(&x25519_public(private));
    key
}

fn decode(value: &Value) -> Outcome<Vec<u8>> {
    Ok(STANDARD.decode(value.as_str().ok_or("a key is not text")?)?)
}

/// X25519 of a private key and another device's serialized public key.
fn agree(private: &[u8; 32], public: &[u8]) -> Outcome<[u8; 32]> {
    let point: [u8; 32] = public.get(1..).ok_or("a key is empty")?.try_into()?;
    Ok(MontgomeryPoint(point).mul_clamped(*private).to_bytes())
}

/// Derives the secret from the three or four agreements, after the prefix of 32 bytes 0xFF that X3DH prescribes.
fn derive(agreed: &[[u8; 32]]) -> [u8; 32] {
    let material = [&[[0xff; 32]], agreed].concat().concat();
    blake3::derive_key("sealwire tour 2026 X3DH shared secret", &material)
}
