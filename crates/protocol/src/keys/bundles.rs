//! Fetching and claiming prekey bundles.

use serde::{Deserialize, Serialize};

use super::Suite;
use crate::{
    access::ShownKey,
    frame::{Op, SocketRequest},
    ids::{ClaimId, DeviceId, UserId},
    time::Timestamp,
    value::{Base64Text, List, Named},
};

/// `keys.fetch`: returns bundles without one-time prekeys, so that no key is consumed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchKeysRequest {
    /// The owner of the devices.
    pub user_id: UserId,
    /// The devices, at most [`MAX_DEVICE_IDS`](crate::limits::MAX_DEVICE_IDS); all addressable devices if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_ids: Option<List<DeviceId>>,
    /// The suites that the client can use. Devices of other suites are unavailable, with
    /// [`UnavailableReason::OtherSuite`]; all suites if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suites: Option<List<Named<Suite>>>,
    /// The access key that the user has shared; see `access.set` in `docs/protocol.md`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<ShownKey>,
}

impl SocketRequest for FetchKeysRequest {
    const OP: Op = Op::KeysFetch;
    type Reply = BundlesReply;
}

/// `keys.claim`: returns bundles with one-time keys. Each one-time key is issued at most once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimKeysRequest {
    /// The owner of the devices.
    pub user_id: UserId,
    /// The devices, at most [`MAX_DEVICE_IDS`](crate::limits::MAX_DEVICE_IDS); all addressable devices if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_ids: Option<List<DeviceId>>,
    /// The suites that the client can use. Devices of other suites are unavailable, with
    /// [`UnavailableReason::OtherSuite`]; all suites if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suites: Option<List<Named<Suite>>>,
    /// The access key that the user has shared; see `access.set` in `docs/protocol.md`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<ShownKey>,
    /// Chosen by the client for each claim. A repeat with the same id gets the same keys.
    pub claim_id: ClaimId,
}

impl SocketRequest for ClaimKeysRequest {
    const OP: Op = Op::KeysClaim;
    type Reply = BundlesReply;
}

/// The result of `keys.fetch` and of `keys.claim`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundlesReply {
    /// The bundles of the addressable devices.
    pub bundles: Vec<PrekeyBundle>,
    /// The other requested devices.
    pub unavailable: Vec<UnavailableDevice>,
}

/// The keys needed to start an encrypted session with one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrekeyBundle {
    /// The device.
    pub device_id: DeviceId,
    /// The device's registration id.
    pub registration_id: u32,
    /// The suite of the keys.
    pub suite: Named<Suite>,
    /// The device's identity key.
    pub identity_key: Base64Text,
    /// The device's current signed prekey.
    pub signed_prekey: BundleSignedPrekey,
    /// A one-time prekey, issued only in this bundle; `None` unless `one_time` is `claimed`.
    pub one_time_prekey: Option<BundleOneTimePrekey>,
    /// Whether there is a one-time prekey, and if not, why.
    pub one_time: Named<OneTimeOutcome>,
    /// A post-quantum prekey; `None` if the suite has none.
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
    /// When the server stops serving it.
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
    /// Whether this is the last-resort key, which is given to all claimers while the pool is empty.
    pub last_resort: bool,
}

/// Whether a bundle contains a one-time prekey, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OneTimeOutcome {
    /// The bundle contains one, and no other claim ever gets it.
    Claimed,
    /// The pool is empty.
    Exhausted,
    /// The claiming user has reached the drain limit for this device.
    Limited,
    /// A fetch does not claim one-time prekeys.
    NotRequested,
}

/// A device without a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnavailableDevice {
    /// The device, as in the request.
    pub device_id: DeviceId,
    /// Why there is no bundle.
    pub reason: Named<UnavailableReason>,
}

/// Why there is no bundle for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnavailableReason {
    /// It has not published a complete set of keys.
    NoKeys,
    /// Its suite is not one of `suites` in the request.
    OtherSuite,
    /// Its signed prekey expired before it published a new one.
    SignedPrekeyExpired,
    /// It was revoked.
    Revoked,
    /// The user has no such device, or it is the requesting device.
    UnknownDevice,
}
