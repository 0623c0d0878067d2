//! What never leaves a device: its private keys, and what they agree on with another device's public ones.
//!
//! The suite is `signal-x3dh`: X25519 keys, serialized as 0x05 and 32 bytes, prekeys signed with `XEdDSA`. The agreement is
//! X3DH (<https://signal.org/docs/specifications/x3dh/>), except that BLAKE3 in its key-derivation mode stands where the
//! paper has HKDF. A real client takes a library for this, such as libsignal, and goes on with a double ratchet.

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

    /// The parameters of the first `keys.publish`, which has to make the set complete.
    pub fn complete_set(&mut self, one_time: usize) -> Value {
        let public = serialized(&self.signed_prekey);
        let mut nonce = [0; 64];
        self.entropy.draw(|rng| rng.fill_bytes(&mut nonce));
        // The signature covers the serialized key, type byte included.
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

    /// The parameters of a later `keys.publish`: one-time prekeys alone, under ids that were never used before.
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

    /// The public identity key as text.
    pub fn identity_key(&self) -> String {
        STANDARD.encode(serialized(&self.identity))
    }

    /// X3DH on the side that holds a bundle: the shared secret, and what the other side needs to find it too.
    pub fn initiate(&self, bundle: &Value) -> Outcome<([u8; 32], Value)> {
        let their_identity = decode(&bundle["identity_key"])?;
        let their_prekey = decode(&bundle["signed_prekey"]["public_key"])?;
        // The server has checked the signature; that is no reason to believe it.
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

    /// X3DH on the side whose bundle it was. The one-time private key is gone afterwards.
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
            let private = self.one_time.remove(&u32::try_from(id)?).ok_or("a one-time prekey is used once")?;
            agreed.push(agree(&private, &their_ephemeral)?);
        }
        Ok(derive(&agreed))
    }
}

/// A public key as it travels.
fn serialized(private: &[u8; 32]) -> [u8; 33] {
    let mut key = [0x05; 33];
    key[1..].copy_from_slice(&x25519_public(private));
    key
}

fn decode(value: &Value) -> Outcome<Vec<u8>> {
    Ok(STANDARD.decode(value.as_str().ok_or("a key is text")?)?)
}

/// X25519 of a private key with somebody else's serialized public one.
fn agree(private: &[u8; 32], public: &[u8]) -> Outcome<[u8; 32]> {
    let point: [u8; 32] = public.get(1..).ok_or("a key has a type byte")?.try_into()?;
    Ok(MontgomeryPoint(point).mul_clamped(*private).to_bytes())
}

/// The secret out of the three or four agreements, behind the 32 bytes of 0xFF that X3DH puts in front.
fn derive(agreed: &[[u8; 32]]) -> [u8; 32] {
    let material = [&[[0xff; 32]], agreed].concat().concat();
    blake3::derive_key("sealwire tour 2026 X3DH shared secret", &material)
}
