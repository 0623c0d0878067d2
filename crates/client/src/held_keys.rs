//! The keys that a device holds, to compare with those that the server has.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};

/// The public keys of a device, as published: those of which the app holds the private halves and does not know that they
/// were given out. After a restore from a backup, if [`digest`](Self::digest) differs from that of
/// [`Client::keys_status`](crate::Client::keys_status), publish them with `replace`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldKeys {
    /// One-time prekeys by id.
    pub one_time: BTreeMap<u32, Vec<u8>>,
    /// One-time PQ keys by id.
    pub pq_one_time: BTreeMap<u32, Vec<u8>>,
    /// The current signed prekey.
    pub signed_prekey: Option<(u32, Vec<u8>)>,
    /// The current last-resort key.
    pub pq_last_resort: Option<(u32, Vec<u8>)>,
}

impl HeldKeys {
    /// The digest that the server gives for the same keys: base64 of a SHA-256.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut add = |kind: &str, id: u32, key: &[u8]| {
            hash.update(kind);
            hash.update(id.to_be_bytes());
            hash.update(key);
        };
        for (id, key) in &self.one_time {
            add("one_time", *id, key);
        }
        for (id, key) in &self.pq_one_time {
            add("pq_one_time", *id, key);
        }
        for (kind, key) in [("signed", &self.signed_prekey), ("pq_last_resort", &self.pq_last_resort)] {
            if let Some((id, key)) = key {
                add(kind, *id, key);
            }
        }
        STANDARD.encode(hash.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_no_keys_is_that_of_the_protocol() {
        assert_eq!(HeldKeys::default().digest(), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
    }
}
