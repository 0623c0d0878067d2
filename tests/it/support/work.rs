//! Proofs of work, made as a client makes them.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Makes the proof that a refusal offers: the `proof` of the repeated request.
pub fn solve(refused: &Value) -> Value {
    let offer = &refused["error"]["details"]["proof"];
    assert_eq!(offer["algorithm"], "sha256-leading-zeros", "{refused}");
    let bits = u32::try_from(offer["bits"].as_u64().unwrap()).unwrap();
    let salt = URL_SAFE_NO_PAD.decode(offer["salt"].as_str().unwrap()).unwrap();
    assert_eq!(salt.len(), 24);
    let salted = Sha256::new().chain_update(&salt);
    let nonce = (0..u64::MAX).map(u64::to_be_bytes).find(|nonce| {
        let hash = salted.clone().chain_update(nonce).finalize();
        u64::from_be_bytes(hash[..8].try_into().unwrap()).leading_zeros() >= bits
    });
    json!({ "salt": offer["salt"], "nonce": URL_SAFE_NO_PAD.encode(nonce.unwrap()) })
}
