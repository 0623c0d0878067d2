//! Prekey bundles, and what the server holds of a device's keys.

use base64::{Engine, engine::general_purpose::STANDARD};
pub use sealwire_protocol::{
    keys::{KeyKind, OneTimeOutcome, UnavailableReason},
    limits::MAX_POOL,
};

use super::{DeviceId, Suite, Timestamp};

/// A serialized public key or a signature in standard base64 with padding, as it is stored and as it travels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EncodedKey(pub String);

impl EncodedKey {
    /// Encodes the bytes of a key or signature.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(STANDARD.encode(bytes))
    }

    /// The bytes; `None` if the text is not base64.
    #[must_use]
    pub fn decode(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.0).ok()
    }
}

/// The levels at which a pool is announced as low to its owner: the threshold, its half, its quarter and nothing left.
#[must_use]
pub fn low_levels(threshold: u32) -> [u32; 4] {
    [threshold, threshold / 2, threshold / 4, 0]
}

/// How many levels a pool of `remaining` keys is at or below, 0 to 4. A pool announces when a claim makes this grow.
#[must_use]
pub fn depth(remaining: u32, threshold: u32) -> i32 {
    low_levels(threshold).into_iter().map(|level| i32::from(remaining <= level)).sum()
}

/// The signed prekey of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedPrekey {
    /// Chosen by the owner.
    pub key_id: u32,
    /// Serialized public key.
    pub public_key: EncodedKey,
    /// The identity key's signature over it.
    pub signature: EncodedKey,
    /// After this it is not served.
    pub expires_at: Timestamp,
}

/// A one-time prekey that was handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneTimePrekey {
    /// Chosen by the owner.
    pub key_id: u32,
    /// Serialized public key.
    pub public_key: EncodedKey,
}

/// A post-quantum prekey that was handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedPqPrekey {
    /// Chosen by the owner; last-resort and one-time ids are separate.
    pub key_id: u32,
    /// Serialized public key.
    pub public_key: EncodedKey,
    /// The identity key's signature over it.
    pub signature: EncodedKey,
    /// Whether this is the reusable key that stands in for an empty pool.
    pub last_resort: bool,
}

/// All that is needed to open a session with one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The target device.
    pub device_id: DeviceId,
    /// The number that the target's client library chose.
    pub registration_id: u32,
    /// How to read the keys.
    pub suite: Suite,
    /// Long-term identity key.
    pub identity_key: EncodedKey,
    /// Current signed prekey.
    pub signed_prekey: SignedPrekey,
    /// One-time prekey, when claimed.
    pub one_time_prekey: Option<OneTimePrekey>,
    /// Why there is or is no one-time prekey.
    pub one_time: OneTimeOutcome,
    /// Post-quantum prekey; `None` under suites without.
    pub pq_prekey: Option<IssuedPqPrekey>,
}

/// A device without a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// As asked for.
    pub device_id: DeviceId,
    /// Why there is no bundle.
    pub reason: UnavailableReason,
}

/// The result of a fetch or a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundles {
    /// One for each device that can be reached.
    pub bundles: Vec<Bundle>,
    /// The others, each with its reason.
    pub unavailable: Vec<Unavailable>,
}

/// A signed prekey as its owner sees it in a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignedPrekeyStatus {
    /// Chosen by the owner.
    pub key_id: u32,
    /// When it stops being served.
    pub expires_at: Timestamp,
}

/// A last-resort key as its owner sees it in a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastResortStatus {
    /// Chosen by the owner.
    pub key_id: u32,
}

/// What the server holds of a device's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeysStatus {
    /// Set with the first publish.
    pub suite: Option<Suite>,
    /// Set with the first publish.
    pub identity_key: Option<EncodedKey>,
    /// The served signed prekey.
    pub signed_prekey: Option<SignedPrekeyStatus>,
    /// The served last-resort PQ key.
    pub pq_last_resort: Option<LastResortStatus>,
    /// Unissued one-time prekeys.
    pub one_time: u32,
    /// Unissued one-time PQ prekeys.
    pub pq_one_time: u32,
    /// The configured low-water mark.
    pub threshold: u32,
    /// Grows with each publish that changes a pool.
    pub pool_version: i64,
}

impl KeysStatus {
    /// The pools at or below the threshold that matter under the device's suite, with their sizes.
    pub fn low_pools(&self) -> impl Iterator<Item = (KeyKind, u32)> {
        let pq = self.suite.is_some_and(Suite::has_pq).then_some((KeyKind::PqOneTime, self.pq_one_time));
        let one_time = self.suite.map(|_| (KeyKind::OneTime, self.one_time));
        let threshold = self.threshold;
        one_time.into_iter().chain(pq).filter(move |(_, remaining)| *remaining <= threshold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_the_levels_at_or_above() {
        let depths: Vec<i32> = [21, 20, 11, 10, 6, 5, 1, 0].map(|n| depth(n, 20)).into();
        assert_eq!(depths, [0, 1, 1, 2, 2, 3, 3, 4]);
        assert_eq!([depth(2, 1), depth(1, 1), depth(0, 1)], [0, 1, 4]);
        assert_eq!([depth(1, 0), depth(0, 0)], [0, 4]);
    }
}
