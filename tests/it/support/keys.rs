//! Generates real keys with valid signatures, as a client does.

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::Signer;
use ml_kem::{KeyExport, MlKem1024, kem::Kem};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use sealwire::domain::{
    Suite,
    signature::{x25519_public, xeddsa_sign},
};
use serde_json::{Value, json};

/// Generates the public keys of one device and signs them with its identity key.
pub struct KeySet {
    pub suite: Suite,
    pub identity: Vec<u8>,
    private: [u8; 32],
    /// The id of the signed prekey that was made last for a complete set.
    signed_id: u32,
    rng: StdRng,
}

impl KeySet {
    pub fn new(suite: Suite, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let private = rng.random();
        let identity = match suite {
            Suite::Ed25519X3dh => ed25519_dalek::SigningKey::from_bytes(&private).verifying_key().to_bytes().to_vec(),
            _ => typed(0x05, &x25519_public(&private)),
        };
        Self { suite, identity, private, signed_id: 0, rng }
    }

    /// Generates a curve public key in the suite's encoding.
    pub fn public_key(&mut self) -> Vec<u8> {
        let key = x25519_public(&self.rng.random());
        match self.suite {
            Suite::Ed25519X3dh => key.to_vec(),
            _ => typed(0x05, &key),
        }
    }

    /// Signs a message with the identity key.
    pub fn sign(&mut self, message: &[u8]) -> Vec<u8> {
        if self.suite == Suite::Ed25519X3dh {
            return ed25519_dalek::SigningKey::from_bytes(&self.private).sign(message).to_bytes().to_vec();
        }
        let mut random = [0; 64];
        self.rng.fill_bytes(&mut random);
        xeddsa_sign(&self.private, message, &random).to_vec()
    }

    /// `{key_id, public_key}`
    pub fn prekey(&mut self, key_id: u32) -> Value {
        json!({ "key_id": key_id, "public_key": base64(&self.public_key()) })
    }

    /// `{key_id, public_key, signature}` of a curve key.
    pub fn signed_prekey(&mut self, key_id: u32) -> Value {
        let key = self.public_key();
        self.signed(key_id, &key)
    }

    /// `{key_id, public_key, signature}` of an ML-KEM-1024 key.
    pub fn pq_prekey(&mut self, key_id: u32) -> Value {
        let (_, key) = MlKem1024::generate_keypair_from_rng(&mut self.rng);
        let key = typed(0x0a, key.to_bytes().as_slice());
        self.signed(key_id, &key)
    }

    pub fn signed(&mut self, key_id: u32, key: &[u8]) -> Value {
        let signature = self.sign(key);
        json!({ "key_id": key_id, "public_key": base64(key), "signature": base64(&signature) })
    }

    /// Returns the parameters of a complete first publish, with one-time prekeys of these ids. The signed prekey is newer
    /// than that of the set before.
    pub fn complete(&mut self, one_time: impl IntoIterator<Item = u32>) -> Value {
        self.signed_id += 1;
        let mut params = json!({
            "suite": self.suite.as_str(),
            "identity_key": base64(&self.identity),
            "signed_prekey": self.signed_prekey(self.signed_id),
            "one_time_prekeys": one_time.into_iter().map(|id| self.prekey(id)).collect::<Vec<_>>(),
        });
        if self.suite.has_pq() {
            params["pq_last_resort"] = self.pq_prekey(1);
        }
        params
    }
}

fn typed(byte: u8, key: &[u8]) -> Vec<u8> {
    let mut serialized = vec![byte];
    serialized.extend_from_slice(key);
    serialized
}

pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
