//! Publishing keys, and the status of published keys.

use serde::{Deserialize, Serialize};

use super::Suite;
use crate::{
    frame::{Op, SocketRequest},
    time::Timestamp,
    value::{Base64, Base64Text, List, Named, Object},
};

/// `keys.publish`. The first publish of a device must contain a complete set of keys; later ones may contain any part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishKeysRequest {
    /// Required the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suite: Option<Suite>,
    /// Required the first time: the serialized public key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_key: Option<Base64>,
    /// Required the first time. Replaces the current one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed_prekey: Option<Object<PublishedSignedPrekey>>,
    /// Additions to the pool, at most [`MAX_KEYS_PER_PUBLISH`](crate::limits::MAX_KEYS_PER_PUBLISH).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_time_prekeys: Option<List<Object<PublishedKey>>>,
    /// Required the first time if the suite has PQ keys. Replaces the current one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pq_last_resort: Option<Object<PublishedSignedKey>>,
    /// Additions to the pool of PQ keys, at most [`MAX_KEYS_PER_PUBLISH`](crate::limits::MAX_KEYS_PER_PUBLISH).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pq_one_time: Option<List<Object<PublishedSignedKey>>>,
    /// If true, the lists are the whole pools: unissued keys that they do not contain are withdrawn. An absent list is
    /// empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replace: Option<bool>,
    /// The publish is refused with `pool_changed` unless the pools still have this version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect_pool_version: Option<i64>,
}

/// A key without a signature of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedKey {
    /// 0 to 2³¹ − 1, chosen by the owner.
    pub key_id: u32,
    /// Serialized public key.
    pub public_key: Base64,
}

/// A key with the identity key's signature over it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedSignedKey {
    /// 0 to 2³¹ − 1, chosen by the owner.
    pub key_id: u32,
    /// Serialized public key.
    pub public_key: Base64,
    /// 64 bytes.
    pub signature: Base64,
}

/// A signed prekey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedSignedPrekey {
    /// 0 to 2³¹ − 1, chosen by the owner.
    pub key_id: u32,
    /// Serialized public key.
    pub public_key: Base64,
    /// 64 bytes.
    pub signature: Base64,
    /// When the server stops serving it; after the server's default lifetime if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// The result of `keys.publish`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishKeysReply {
    /// The outcome for the one-time prekeys.
    pub one_time: KeyIdReport,
    /// The outcome for the one-time PQ prekeys.
    pub pq_one_time: KeyIdReport,
    /// The device's keys after the publish.
    pub status: KeysStatusReply,
}

/// The ids of the keys in a publish, by outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyIdReport {
    /// Added to the pool.
    pub accepted: Vec<u32>,
    /// The same key is already in the pool.
    pub duplicate: Vec<u32>,
    /// Another key with this id is in the pool.
    pub conflict: Vec<u32>,
    /// A key with this id was issued before. The id cannot be used again.
    pub already_issued: Vec<u32>,
    /// Not added, because the pool is full.
    pub over_cap: Vec<u32>,
    /// Removed from the pool by `replace`, in ascending order. Servers without the feature `replace` leave it out.
    #[serde(default)]
    pub withdrawn: Vec<u32>,
}

impl SocketRequest for PublishKeysRequest {
    const OP: Op = Op::KeysPublish;
    type Reply = PublishKeysReply;
}

/// `keys.status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysStatusRequest {
    /// Whether the reply contains a digest of the keys. Such a request costs as much as
    /// [`DIGEST_COST`](crate::limits::DIGEST_COST) others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<bool>,
}

/// The device's keys on the server: the result of `keys.status`, and part of the welcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysStatusReply {
    /// Set with the first publish.
    pub suite: Option<Named<Suite>>,
    /// Set with the first publish.
    pub identity_key: Option<Base64Text>,
    /// The current signed prekey.
    pub signed_prekey: Option<ServedSignedPrekey>,
    /// The current last-resort PQ key.
    pub pq_last_resort: Option<ServedLastResort>,
    /// The number of unissued one-time prekeys.
    pub one_time: u32,
    /// The number of unissued one-time PQ prekeys.
    pub pq_one_time: u32,
    /// A pool with at most this many keys is announced as low.
    pub threshold: u32,
    /// Increases with each publish that changes a pool.
    pub pool_version: i64,
    /// SHA-256 of the keys, if the request asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Base64Text>,
}

/// The current signed prekey, in a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedSignedPrekey {
    /// As published.
    pub key_id: u32,
    /// When the server stops serving it.
    pub expires_at: Timestamp,
}

/// The current last-resort key, in a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedLastResort {
    /// As published.
    pub key_id: u32,
}

impl SocketRequest for KeysStatusRequest {
    const OP: Op = Op::KeysStatus;
    type Reply = KeysStatusReply;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_publish_with_wrong_types_are_refused() {
        for wrong in [
            r#"{"suite":"rot13"}"#,
            r#"{"suite":5}"#,
            r#"{"identity_key":[1]}"#,
            r#"{"signed_prekey":[1,"AA","AA"]}"#,
            r#"{"one_time_prekeys":{"key_id":1}}"#,
            r#"{"one_time_prekeys":[[1,"AA"]]}"#,
            r#"{"one_time_prekeys":[{"key_id":-1,"public_key":"AA"}]}"#,
            r#"{"one_time_prekeys":[{"key_id":1.5,"public_key":"AA"}]}"#,
            r#"{"signed_prekey":{"key_id":1,"public_key":"AA","signature":"AA","expires_at":"soon"}}"#,
        ] {
            assert!(serde_json::from_str::<PublishKeysRequest>(wrong).is_err(), "{wrong}");
        }
        let nulls = r#"{"suite":null,"one_time_prekeys":null,"new_field":[]}"#;
        assert_eq!(serde_json::from_str::<PublishKeysRequest>(nulls).unwrap(), PublishKeysRequest::default());
    }
}
