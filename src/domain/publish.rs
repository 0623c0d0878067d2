//! What a device may publish, and the checks that need no database.

use std::{collections::HashSet, time::Duration};

use super::{
    Refusal, Suite, Timestamp,
    keys::{IdentityKey, KeyError, KeyId, PqPrekey, Prekey},
    refusal::KeyFault,
    signature::Verifier,
};

/// Keys of one kind in one request.
pub const MAX_PER_REQUEST: usize = 100;
/// How far ahead a signed prekey may expire.
const MAX_LIFETIME: Duration = Duration::from_hours(90 * 24);

/// A key without a signature of its own.
#[derive(Clone, Debug)]
pub struct PlainKey {
    /// Chosen by the owner.
    pub key_id: u32,
    /// Serialized public key.
    pub public_key: Vec<u8>,
}

/// A key with the identity key's signature over it.
#[derive(Clone, Debug)]
pub struct SignedKey {
    /// Chosen by the owner.
    pub key_id: u32,
    /// Serialized public key.
    pub public_key: Vec<u8>,
    /// 64 bytes.
    pub signature: Vec<u8>,
}

/// The parts of a publish, as sent.
#[derive(Clone, Debug, Default)]
pub struct PublishRequest {
    /// Required the first time.
    pub suite: Option<Suite>,
    /// Required the first time.
    pub identity_key: Option<Vec<u8>>,
    /// Required the first time; replaces the served one.
    pub signed_prekey: Option<SignedKey>,
    /// When the signed prekey expires, if not after the configured time.
    pub expires_at: Option<Timestamp>,
    /// Additions to the pool.
    pub one_time: Vec<PlainKey>,
    /// Required the first time under a PQ suite; replaces the served one.
    pub pq_last_resort: Option<SignedKey>,
    /// Additions to the PQ pool.
    pub pq_one_time: Vec<SignedKey>,
}

impl PublishRequest {
    /// Checks what can be checked without knowing what the device published before.
    ///
    /// # Errors
    /// `bad_request`: too many keys, an id twice or out of range, an expiry in the past or too far ahead.
    pub fn check_form(&self, now: Timestamp) -> Result<(), Refusal> {
        if self.one_time.len() > MAX_PER_REQUEST || self.pq_one_time.len() > MAX_PER_REQUEST {
            return Err(bad("at most 100 keys of a kind in one request"));
        }
        let one_time = || self.one_time.iter().map(|key| key.key_id);
        let pq_one_time = || self.pq_one_time.iter().map(|key| key.key_id);
        let signed = self.signed_prekey.iter().chain(&self.pq_last_resort).map(|key| key.key_id);
        if signed.chain(one_time()).chain(pq_one_time()).any(|id| KeyId::new(id).is_none()) {
            return Err(bad("key ids are 0 to 2147483647"));
        }
        if has_repeats(one_time()) || has_repeats(pq_one_time()) {
            return Err(bad("a key id stands twice"));
        }
        match self.expires_at {
            Some(at) if at <= now => Err(bad("expires_at is in the past")),
            Some(at) if at > now + MAX_LIFETIME => Err(bad("expires_at is more than 90 days ahead")),
            _ => Ok(()),
        }
    }

    /// Whether this could be a device's first publish.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let pq = self.pq_last_resort.is_some() || !self.suite.is_some_and(Suite::has_pq);
        self.suite.is_some() && self.identity_key.is_some() && self.signed_prekey.is_some() && pq
    }

    /// Whether any PQ field is there.
    #[must_use]
    pub fn has_pq_parts(&self) -> bool {
        self.pq_last_resort.is_some() || !self.pq_one_time.is_empty()
    }

    /// Checks every key and signature under the device's suite and identity key. Milliseconds of arithmetic for a full
    /// request: call it where no transaction is open.
    ///
    /// # Errors
    /// `invalid_key` or `invalid_signature` with the field and id of the first that fails; `bad_request` for PQ fields
    /// under a suite without PQ.
    pub fn verify(&self, suite: Suite, identity_key: &[u8]) -> Result<(), Refusal> {
        if self.has_pq_parts() && !suite.has_pq() {
            return Err(bad("this suite has no post-quantum keys"));
        }
        let identity = IdentityKey::parse(suite, identity_key).map_err(|error| fault(error, "identity_key", None))?;
        let verifier = Verifier::new(suite, &identity);
        if let Some(key) = &self.signed_prekey {
            Prekey::parse(suite, &key.public_key)
                .and_then(|parsed| verifier.verify(parsed.as_bytes(), &key.signature))
                .map_err(|error| fault(error, "signed_prekey", Some(key.key_id)))?;
        }
        for key in &self.one_time {
            Prekey::parse(suite, &key.public_key)
                .map_err(|error| fault(error, "one_time_prekeys", Some(key.key_id)))?;
        }
        let last_resort = self.pq_last_resort.iter().map(|key| ("pq_last_resort", key));
        for (field, key) in last_resort.chain(self.pq_one_time.iter().map(|key| ("pq_one_time", key))) {
            PqPrekey::parse(suite, &key.public_key)
                .and_then(|parsed| verifier.verify(parsed.as_bytes(), &key.signature))
                .map_err(|error| fault(error, field, Some(key.key_id)))?;
        }
        Ok(())
    }
}

fn bad(text: &'static str) -> Refusal {
    Refusal::BadRequest(text.into())
}

fn fault(error: KeyError, field: &'static str, key_id: Option<u32>) -> Refusal {
    let fault = KeyFault { field, key_id };
    match error {
        KeyError::InvalidKey => Refusal::InvalidKey(fault),
        KeyError::InvalidSignature => Refusal::InvalidSignature(fault),
    }
}

fn has_repeats(ids: impl Iterator<Item = u32>) -> bool {
    let mut seen = HashSet::new();
    !ids.into_iter().all(|id| seen.insert(id))
}
