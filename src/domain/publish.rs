//! Publish requests: parsed and verified once, then passed on as [`VerifiedPublish`].

use std::{collections::HashSet, vec};

use sealwire_protocol::limits::{MAX_KEYS_PER_PUBLISH, MAX_SIGNED_PREKEY_LIFETIME};

use super::{
    Refusal, Suite, Timestamp,
    keys::{IdentityKey, KeyError, KeyId, PqPrekey, Prekey},
    refusal::KeyFault,
    signature::Verifier,
};

/// Number of signatures after which those of others can come. They take about half a millisecond.
const SIGNATURES_PER_PART: usize = 10;

/// A key without a signature of its own, as sent.
#[derive(Clone, Debug)]
pub struct UnsignedKey {
    /// Id chosen by the owner's client.
    pub key_id: u32,
    /// Serialized public key.
    pub public_key: Vec<u8>,
}

/// A key with the identity key's signature over it, as sent.
#[derive(Clone, Debug)]
pub struct SignedKey {
    /// Id chosen by the owner's client.
    pub key_id: u32,
    /// Serialized public key.
    pub public_key: Vec<u8>,
    /// 64 bytes.
    pub signature: Vec<u8>,
}

/// A publish request, as sent.
#[derive(Clone, Debug, Default)]
pub struct PublishRequest {
    /// Required in the first publish.
    pub suite: Option<Suite>,
    /// Required in the first publish.
    pub identity_key: Option<Vec<u8>>,
    /// Required in the first publish; replaces the current one.
    pub signed_prekey: Option<SignedKey>,
    /// When the signed prekey expires; `None` for the configured default.
    pub expires_at: Option<Timestamp>,
    /// Additions to the pool of one-time prekeys or, with `replace`, the whole pool.
    pub one_time: Vec<UnsignedKey>,
    /// Required in the first publish under a PQ suite; replaces the current one.
    pub pq_last_resort: Option<SignedKey>,
    /// Additions to the pool of one-time PQ prekeys or, with `replace`, the whole pool.
    pub pq_one_time: Vec<SignedKey>,
    /// Whether the lists are the whole pools, so that unissued keys that they do not contain are withdrawn.
    pub replace: bool,
    /// The version that the pools must have; `None` for any.
    pub expect_pool_version: Option<i64>,
}

/// The suite and the identity key of a device, fixed by its first publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The suite of all its keys.
    pub suite: Suite,
    /// The key that signs them.
    pub key: IdentityKey,
}

/// Stored keys of a device, each with its signature, which was verified when the key was published.
pub type KnownSignatures = HashSet<(Vec<u8>, Vec<u8>)>;

/// A signature that was verified under the identity key: 64 bytes.
pub type Signature = [u8; 64];

/// A verified signed prekey.
#[derive(Clone, Debug)]
pub struct VerifiedSignedPrekey {
    /// Id chosen by the owner's client.
    pub key_id: KeyId,
    /// The key.
    pub key: Prekey,
    /// The identity key's signature over it.
    pub signature: Signature,
    /// When it stops being served.
    pub expires_at: Timestamp,
}

/// A verified PQ prekey, one-time or last-resort.
#[derive(Clone, Debug)]
pub struct VerifiedPqPrekey {
    /// Id chosen by the owner's client.
    pub key_id: KeyId,
    /// The key.
    pub key: PqPrekey,
    /// The identity key's signature over it.
    pub signature: Signature,
}

/// A publish whose keys are valid in the device's suite and whose signatures verify under its identity key. Only
/// [`PublishRequest::start_verification`] leads to it.
#[derive(Clone, Debug)]
pub struct VerifiedPublish {
    identity: Identity,
    is_complete: bool,
    signed_prekey: Option<VerifiedSignedPrekey>,
    one_time: Vec<(KeyId, Prekey)>,
    pq_last_resort: Option<VerifiedPqPrekey>,
    pq_one_time: Vec<VerifiedPqPrekey>,
    replace: bool,
    expect_pool_version: Option<i64>,
}

impl VerifiedPublish {
    /// The identity under which everything was verified.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether this can be a device's first publish.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// The signed prekey, if there is a new one.
    #[must_use]
    pub fn signed_prekey(&self) -> Option<&VerifiedSignedPrekey> {
        self.signed_prekey.as_ref()
    }

    /// One-time prekeys to add or, if the publish replaces the pools, to keep or add; each id once.
    #[must_use]
    pub fn one_time(&self) -> &[(KeyId, Prekey)] {
        &self.one_time
    }

    /// The last-resort PQ key, if there is a new one.
    #[must_use]
    pub fn pq_last_resort(&self) -> Option<&VerifiedPqPrekey> {
        self.pq_last_resort.as_ref()
    }

    /// One-time PQ prekeys to add or, if the publish replaces the pools, to keep or add; each id once.
    #[must_use]
    pub fn pq_one_time(&self) -> &[VerifiedPqPrekey] {
        &self.pq_one_time
    }

    /// Whether the lists are the whole pools, so that unissued keys that they do not contain are withdrawn.
    #[must_use]
    pub fn replaces_pools(&self) -> bool {
        self.replace
    }

    /// The version that the pools must have, if the client named one.
    #[must_use]
    pub fn expect_pool_version(&self) -> Option<i64> {
        self.expect_pool_version
    }
}

impl PublishRequest {
    /// Checks that do not depend on what the device published before.
    ///
    /// # Errors
    /// `bad_request`: too many keys, an id twice or out of range, an expiry in the past or more than 90 days in the
    /// future.
    pub fn check_form(&self, now: Timestamp) -> Result<(), Refusal> {
        for (field, key) in [("signed_prekey", &self.signed_prekey), ("pq_last_resort", &self.pq_last_resort)] {
            if let Some(key) = key {
                key_id(field, key.key_id)?;
            }
        }
        check_ids("one_time_prekeys", self.one_time.iter().map(|key| key.key_id))?;
        check_ids("pq_one_time", self.pq_one_time.iter().map(|key| key.key_id))?;
        let expiry = |expected| Err(invalid("signed_prekey.expires_at", expected));
        match self.expires_at {
            Some(at) if at <= now => expiry("a time in the future"),
            Some(at) if at > now + MAX_SIGNED_PREKEY_LIFETIME => expiry("at most 90 days in the future"),
            _ => Ok(()),
        }
    }

    /// Parses every key and verifies every signature, as [`Self::start_verification`] and [`PublishVerification::go_on`] do.
    ///
    /// # Errors
    /// Those of `start_verification` and `go_on`.
    pub fn verify(
        self,
        stored: Option<&Identity>,
        known: KnownSignatures,
        default_expiry: Timestamp,
    ) -> Result<VerifiedPublish, Refusal> {
        let mut verification = self.start_verification(stored, known, default_expiry)?;
        loop {
            match verification {
                Verification::Done(publish) => return Ok(*publish),
                Verification::Begun(rest) => verification = rest.go_on()?,
            }
        }
    }

    /// Parses the keys and verifies the signatures that are not `known`, except those of PQ one-time keys, up to the first
    /// that fails: under the `stored` identity if the device has published before, otherwise under the one in the request.
    /// A signed prekey without `expires_at` expires at `default_expiry`.
    ///
    /// # Errors
    /// `identity_conflict` if suite or identity key differ from the stored ones; `incomplete_keys` if a first publish
    /// is not complete; `bad_request` for PQ keys under a suite without them; `invalid_key` or `invalid_signature` with
    /// field and id of the first part that fails.
    pub fn start_verification(
        self,
        stored: Option<&Identity>,
        known: KnownSignatures,
        default_expiry: Timestamp,
    ) -> Result<Verification, Refusal> {
        let identity = match stored {
            Some(stored) => self.confirm(stored)?,
            None => self.first_identity()?,
        };
        self.check_pq_keys(identity.suite)?;
        let is_complete = self.is_complete();
        let signatures = Verifier::new(identity.suite, &identity.key);
        let verifier = PublishVerifier { suite: identity.suite, signatures, known };
        let signed_prekey = match self.signed_prekey {
            Some(key) => Some(verifier.signed_prekey(&key, self.expires_at.unwrap_or(default_expiry))?),
            None => None,
        };
        let one_time = self.one_time.iter().map(|key| verifier.one_time(key)).collect::<Result<_, _>>()?;
        let pq_last_resort = self.pq_last_resort.map(|key| verifier.pq("pq_last_resort", &key)).transpose()?;
        let publish = VerifiedPublish {
            identity,
            is_complete,
            signed_prekey,
            one_time,
            pq_last_resort,
            pq_one_time: Vec::with_capacity(self.pq_one_time.len()),
            replace: self.replace,
            expect_pool_version: self.expect_pool_version,
        };
        Ok(Box::new(PublishVerification { verifier, publish, rest: self.pq_one_time.into_iter() }).state())
    }

    /// The stored identity.
    ///
    /// # Errors
    /// `identity_conflict` if the request names another.
    fn confirm(&self, stored: &Identity) -> Result<Identity, Refusal> {
        let other_suite = self.suite.is_some_and(|given| given != stored.suite);
        let other_key = self.identity_key.as_ref().is_some_and(|given| given != stored.key.as_bytes());
        if other_suite || other_key { Err(Refusal::IdentityConflict) } else { Ok(*stored) }
    }

    /// The identity that a first publish sets.
    fn first_identity(&self) -> Result<Identity, Refusal> {
        if let Some(suite) = self.suite {
            self.check_pq_keys(suite)?;
        }
        match (self.suite, &self.identity_key) {
            (Some(suite), Some(key)) if self.is_complete() => {
                let key = IdentityKey::parse(suite, key).map_err(|error| fault(error, "identity_key", None))?;
                Ok(Identity { suite, key })
            }
            _ => Err(Refusal::IncompleteKeys),
        }
    }

    fn is_complete(&self) -> bool {
        let pq = self.pq_last_resort.is_some() || !self.suite.is_some_and(Suite::has_pq);
        self.suite.is_some() && self.identity_key.is_some() && self.signed_prekey.is_some() && pq
    }

    fn check_pq_keys(&self, suite: Suite) -> Result<(), Refusal> {
        let fields = [("pq_last_resort", self.pq_last_resort.is_some()), ("pq_one_time", !self.pq_one_time.is_empty())];
        match fields.into_iter().find(|(_, is_present)| *is_present) {
            Some((field, _)) if !suite.has_pq() => {
                Err(invalid(field, "no keys, because this suite has no post-quantum keys"))
            }
            _ => Ok(()),
        }
    }
}

/// How far the verification of a publish is.
pub enum Verification {
    /// Signatures of PQ one-time keys are left.
    Begun(Box<PublishVerification>),
    /// Everything is verified.
    Done(Box<VerifiedPublish>),
}

/// A publish whose verification has begun. A full publish takes milliseconds of arithmetic, so it is done in parts, between
/// which those of others can be done.
pub struct PublishVerification {
    verifier: PublishVerifier,
    /// What is verified.
    publish: VerifiedPublish,
    rest: vec::IntoIter<SignedKey>,
}

impl PublishVerification {
    /// Verifies the next ten signatures of PQ one-time keys, up to the first that fails.
    ///
    /// # Errors
    /// `invalid_key` or `invalid_signature` with the id of the key.
    pub fn go_on(mut self: Box<Self>) -> Result<Verification, Refusal> {
        for key in self.rest.by_ref().take(SIGNATURES_PER_PART) {
            self.publish.pq_one_time.push(self.verifier.pq("pq_one_time", &key)?);
        }
        Ok(self.state())
    }

    fn state(self: Box<Self>) -> Verification {
        if self.rest.as_slice().is_empty() {
            Verification::Done(Box::new(self.publish))
        } else {
            Verification::Begun(self)
        }
    }
}

/// Parses and verifies the keys of one publish.
struct PublishVerifier {
    suite: Suite,
    signatures: Verifier,
    known: KnownSignatures,
}

impl PublishVerifier {
    /// The signature over `key`, verified now or when the key was stored.
    fn verified(&self, key: &[u8], signature: &[u8]) -> Result<Signature, KeyError> {
        match signature.try_into() {
            Ok(known) if self.known.contains(&(key.to_vec(), signature.to_vec())) => Ok(known),
            _ => self.signatures.verified(key, signature),
        }
    }

    fn signed_prekey(&self, sent: &SignedKey, expires_at: Timestamp) -> Result<VerifiedSignedPrekey, Refusal> {
        let checked = Prekey::parse(self.suite, &sent.public_key)
            .and_then(|key| Ok((key, self.verified(key.as_bytes(), &sent.signature)?)));
        let (key, signature) = checked.map_err(|error| fault(error, "signed_prekey", Some(sent.key_id)))?;
        Ok(VerifiedSignedPrekey { key_id: key_id("signed_prekey", sent.key_id)?, key, signature, expires_at })
    }

    fn one_time(&self, sent: &UnsignedKey) -> Result<(KeyId, Prekey), Refusal> {
        let key = Prekey::parse(self.suite, &sent.public_key)
            .map_err(|error| fault(error, "one_time_prekeys", Some(sent.key_id)))?;
        Ok((key_id("one_time_prekeys", sent.key_id)?, key))
    }

    fn pq(&self, field: &'static str, sent: &SignedKey) -> Result<VerifiedPqPrekey, Refusal> {
        let checked = PqPrekey::parse(self.suite, &sent.public_key).and_then(|key| {
            let signature = self.verified(key.as_bytes(), &sent.signature)?;
            Ok((key, signature))
        });
        let (key, signature) = checked.map_err(|error| fault(error, field, Some(sent.key_id)))?;
        Ok(VerifiedPqPrekey { key_id: key_id(field, sent.key_id)?, key, signature })
    }
}

/// The id of the key at `path` in the request.
fn key_id(path: &str, id: u32) -> Result<KeyId, Refusal> {
    KeyId::new(id).ok_or_else(|| invalid(format!("{path}.key_id"), "0 to 2147483647"))
}

/// Checks the ids of a list of keys.
fn check_ids(field: &str, ids: impl ExactSizeIterator<Item = u32>) -> Result<(), Refusal> {
    if ids.len() > MAX_KEYS_PER_PUBLISH {
        return Err(invalid(field, "at most 100 keys"));
    }
    let mut seen = HashSet::new();
    for (index, id) in ids.enumerate() {
        let place = || format!("{field}[{index}]");
        match KeyId::new(id) {
            None => return key_id(&place(), id).map(|_| ()),
            Some(id) if !seen.insert(id) => {
                return Err(invalid(place() + ".key_id", "an id that no other key of the list has"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn invalid(path: impl Into<String>, expected: &'static str) -> Refusal {
    Refusal::InvalidField { path: path.into(), expected }
}

fn fault(error: KeyError, field: &'static str, key_id: Option<u32>) -> Refusal {
    let fault = KeyFault { field, key_id };
    match error {
        KeyError::InvalidKey => Refusal::InvalidKey(fault),
        KeyError::InvalidSignature => Refusal::InvalidSignature(fault),
    }
}
