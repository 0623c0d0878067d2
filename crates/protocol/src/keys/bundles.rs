//! Bundles of another user's devices.

use serde::{Deserialize, Serialize};

use super::Suite;
use crate::{
    frame::{Op, SocketRequest},
    ids::{ClaimId, DeviceId, UserId},
    time::Timestamp,
    value::{Base64Text, List, Named},
};

/// `keys.fetch`: bundles that consume nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchKeysRequest {
    /// Whose devices.
    pub user_id: UserId,
    /// Which of them, at most [`MAX_DEVICE_IDS`](crate::limits::MAX_DEVICE_IDS); all that are addressable if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_ids: Option<List<DeviceId>>,
    /// The suites that the client can use. Devices of other suites are unavailable, with
    /// [`UnavailableReason::OtherSuite`]; all suites if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suites: Option<List<Named<Suite>>>,
}

impl SocketRequest for FetchKeysRequest {
    const OP: Op = Op::KeysFetch;
    type Reply = BundlesReply;
}

/// `keys.claim`: bundles with one-time keys, each of which is handed out once, ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimKeysRequest {
    /// Whose devices.
    pub user_id: UserId,
    /// Which of them, at most [`MAX_DEVICE_IDS`](crate::limits::MAX_DEVICE_IDS); all that are addressable if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_ids: Option<List<DeviceId>>,
    /// The suites that the client can use. Devices of other suites are unavailable, with
    /// [`UnavailableReason::OtherSuite`]; all suites if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suites: Option<List<Named<Suite>>>,
    /// Drawn by the client for each intent; a repeat under the same id gets the same keys.
    pub claim_id: ClaimId,
}

impl SocketRequest for ClaimKeysRequest {
    const OP: Op = Op::KeysClaim;
    type Reply = BundlesReply;
}

/// The result of `keys.fetch` and of `keys.claim`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundlesReply {
    /// One for each device that can be reached.
    pub bundles: Vec<PrekeyBundle>,
    /// The others that were asked for.
    pub unavailable: Vec<UnavailableDevice>,
}

/// All that is needed to open a session with one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrekeyBundle {
    /// The target device.
    pub device_id: DeviceId,
    /// The number that the target's client library chose.
    pub registration_id: u32,
    /// How to read the keys.
    pub suite: Named<Suite>,
    /// The target's long-term key.
    pub identity_key: Base64Text,
    /// The target's current signed prekey.
    pub signed_prekey: BundleSignedPrekey,
    /// A key that nobody else is ever given; `None` unless `one_time` is `claimed`.
    pub one_time_prekey: Option<BundleOneTimePrekey>,
    /// Why there is or is no one-time prekey.
    pub one_time: Named<OneTimeOutcome>,
    /// A post-quantum prekey; `None` under suites without.
    pub pq_prekey: Option<BundlePqPrekey>,
}

/// The signed prekey of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleSignedPrekey {
    /// Chosen by the owner.
    pub key_id: u32,
    /// Serialized public key.
    pub public_key: Base64Text,
    /// The identity key's signature over it.
    pub signature: Base64Text,
    /// After this it is not served.
    pub expires_at: Timestamp,
}

/// The one-time prekey of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleOneTimePrekey {
    /// Chosen by the owner.
    pub key_id: u32,
    /// Serialized public key.
    pub public_key: Base64Text,
}

/// The post-quantum prekey of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundlePqPrekey {
    /// Chosen by the owner; last-resort and one-time ids are separate.
    pub key_id: u32,
    /// Serialized public key.
    pub public_key: Base64Text,
    /// The identity key's signature over it.
    pub signature: Base64Text,
    /// Whether it is the key that is given to everybody while the pool is empty.
    pub last_resort: bool,
}

/// What became of the one-time prekey in a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OneTimeOutcome {
    /// The bundle carries one, and nobody else is ever given it.
    Claimed,
    /// The pool is empty.
    Exhausted,
    /// The claimer is past the drain limit for this device.
    Limited,
    /// A fetch does not take keys.
    NotRequested,
}

/// A device without a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnavailableDevice {
    /// As asked for.
    pub device_id: DeviceId,
    /// Why there is no bundle.
    pub reason: Named<UnavailableReason>,
}

/// Why there is no bundle for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnavailableReason {
    /// It never published a complete set.
    NoKeys,
    /// Its suite is none of those that the client can use.
    OtherSuite,
    /// Its owner has not rotated the signed prekey in time.
    SignedPrekeyExpired,
    /// It was revoked.
    Revoked,
    /// There is no such device of that user, or it is the asking device.
    UnknownDevice,
}
