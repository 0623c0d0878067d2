//! What keys look like to those who fetch, claim and own them.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize, Serializer};

use super::{DeviceId, Suite, Timestamp};

/// Unissued keys that one device may keep of each kind.
pub const MAX_POOL: usize = 500;

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

impl Serialize for EncodedKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// The two pools of one-time keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// Curve prekeys.
    OneTime,
    /// Post-quantum prekeys.
    PqOneTime,
}

impl KeyKind {
    /// Both kinds.
    pub const ALL: [Self; 2] = [Self::OneTime, Self::PqOneTime];
}

/// The levels of a pool at which its owner is told: the threshold, its half, its quarter and nothing left.
#[must_use]
pub fn low_levels(threshold: u32) -> [u32; 4] {
    [threshold, threshold / 2, threshold / 4, 0]
}

/// How many levels a pool of `remaining` keys is at or below, 0 to 4. A pool announces when a claim makes this grow.
#[must_use]
pub fn depth(remaining: u32, threshold: u32) -> i32 {
    low_levels(threshold).into_iter().map(|level| i32::from(remaining <= level)).sum()
}

/// What became of the one-time prekey in a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OneTimeOutcome {
    /// The bundle carries one, and nobody else will ever get it.
    Claimed,
    /// The pool is empty.
    Exhausted,
    /// The claimer is past the drain limit for this device.
    Limited,
    /// A fetch does not take keys.
    NotRequested,
}

/// A served signed prekey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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

/// A one-time prekey handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OneTimePrekey {
    /// Chosen by the owner.
    pub key_id: u32,
    /// Serialized public key.
    pub public_key: EncodedKey,
}

/// A post-quantum prekey handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PqPrekey {
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bundle {
    /// The target device.
    pub device_id: DeviceId,
    /// The target library's own number for it.
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
    pub pq_prekey: Option<PqPrekey>,
}

/// Why no bundle can be had for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnavailableReason {
    /// It never published a complete set.
    NoKeys,
    /// Its owner has not rotated the signed prekey in time.
    SignedPrekeyExpired,
    /// It was revoked.
    Revoked,
    /// No such device of that user, or the asking device itself.
    UnknownDevice,
}

/// A device for which no bundle can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Unavailable {
    /// As asked for.
    pub device_id: DeviceId,
    /// Why.
    pub reason: UnavailableReason,
}

/// The answer to a fetch or a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bundles {
    /// One for each device that can be reached.
    pub bundles: Vec<Bundle>,
    /// The others, each with its reason.
    pub unavailable: Vec<Unavailable>,
}

/// A signed prekey as its owner sees it in a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SignedPrekeyStatus {
    /// Its id.
    pub key_id: u32,
    /// When it stops being served.
    pub expires_at: Timestamp,
}

/// A last-resort key as its owner sees it in a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LastResortStatus {
    /// Its id.
    pub key_id: u32,
}

/// What the server holds of a device's keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
    /// The pools that stand at or under the threshold and matter under the device's suite.
    pub fn low_pools(&self) -> impl Iterator<Item = (KeyKind, u32)> {
        let pq = self.suite.is_some_and(Suite::has_pq).then_some((KeyKind::PqOneTime, self.pq_one_time));
        let one_time = self.suite.map(|_| (KeyKind::OneTime, self.one_time));
        let threshold = self.threshold;
        one_time.into_iter().chain(pq).filter(move |(_, remaining)| *remaining <= threshold)
    }
}

impl Serialize for Suite {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
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
