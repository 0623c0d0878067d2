//! Prekey bundles, and the status of a device's keys on the server.

use base64::{Engine, engine::general_purpose::STANDARD};
pub use sealwire_protocol::{
    keys::{KeyKind, OneTimeOutcome, UnavailableReason},
    limits::MAX_POOL,
};

use super::{DeviceId, Suite, Timestamp};

/// A serialized public key or a signature in standard base64 with padding, as stored and as sent.
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

/// The levels at which a low pool is announced to its owner: the threshold, half of it, a quarter of it, and 0.
#[must_use]
pub fn low_levels(threshold: u32) -> [u32; 4] {
    [threshold, threshold / 2, threshold / 4, 0]
}

/// How many levels a pool of `remaining` keys is at or below, 0 to 4. A pool is announced as low when a claim increases
/// this number.
#[must_use]
pub fn levels_reached(remaining: u32, threshold: u32) -> i32 {
    low_levels(threshold).into_iter().map(|level| i32::from(remaining <= level)).sum()
}

/// The signed prekey of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedPrekey {
    /// Id chosen by the owner's client.
    pub key_id: u32,
    /// Serialized public key.
    pub public_key: EncodedKey,
    /// The identity key's signature over it.
    pub signature: EncodedKey,
    /// When it stops being served.
    pub expires_at: Timestamp,
}

/// An issued one-time prekey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneTimePrekey {
    /// Id chosen by the owner's client.
    pub key_id: u32,
    /// Serialized public key.
    pub public_key: EncodedKey,
}

/// An issued post-quantum prekey, one-time or last-resort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedPqPrekey {
    /// Id chosen by the owner's client; last-resort and one-time ids are separate.
    pub key_id: u32,
    /// Serialized public key.
    pub public_key: EncodedKey,
    /// The identity key's signature over it.
    pub signature: EncodedKey,
    /// Whether this is the reusable last-resort key, which is served if no one-time key can be.
    pub last_resort: bool,
}

/// The keys needed to open an end-to-end session with one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The target device.
    pub device_id: DeviceId,
    /// The target device's number in its client's Signal library.
    pub registration_id: u32,
    /// The suite of the keys.
    pub suite: Suite,
    /// Long-term identity key.
    pub identity_key: EncodedKey,
    /// Current signed prekey.
    pub signed_prekey: SignedPrekey,
    /// One-time prekey, if one was claimed.
    pub one_time_prekey: Option<OneTimePrekey>,
    /// Why there is or is no one-time prekey.
    pub one_time: OneTimeOutcome,
    /// Post-quantum prekey; `None` if the suite has none.
    pub pq_prekey: Option<IssuedPqPrekey>,
}

/// A device that has no bundle, with the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// The device.
    pub device_id: DeviceId,
    /// Why there is no bundle.
    pub reason: UnavailableReason,
}

/// The suites that a client can use; `None` for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsableSuites(pub Option<Vec<Suite>>);

impl UsableSuites {
    /// Whether the client can use a suite.
    #[must_use]
    pub fn contains(&self, suite: Suite) -> bool {
        self.0.as_ref().is_none_or(|suites| suites.contains(&suite))
    }
}

/// The result of a fetch or a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundles {
    /// One for each device that has a bundle.
    pub bundles: Vec<Bundle>,
    /// The devices without a bundle.
    pub unavailable: Vec<Unavailable>,
}

/// A signed prekey as its owner sees it in a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignedPrekeyStatus {
    /// Id chosen by the owner's client.
    pub key_id: u32,
    /// When it stops being served.
    pub expires_at: Timestamp,
}

/// A last-resort key as its owner sees it in a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastResortStatus {
    /// Id chosen by the owner's client.
    pub key_id: u32,
}

/// The keys of a device that the server holds.
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
    /// Incremented by each publish that changes a pool.
    pub pool_version: i64,
}

/// SHA-256 over the keys of a device that can still be issued, see `keys.status` in `docs/protocol.md`.
pub type KeysDigest = [u8; 32];

impl KeysStatus {
    /// The pools of the device's suite that are at or below the threshold, with their sizes.
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
    fn a_pool_has_reached_the_levels_at_or_above_its_size() {
        let reached: Vec<i32> = [21, 20, 11, 10, 6, 5, 1, 0].map(|n| levels_reached(n, 20)).into();
        assert_eq!(reached, [0, 1, 1, 2, 2, 3, 3, 4]);
        assert_eq!([levels_reached(2, 1), levels_reached(1, 1), levels_reached(0, 1)], [0, 1, 4]);
        assert_eq!([levels_reached(1, 0), levels_reached(0, 0)], [0, 4]);
    }
}
