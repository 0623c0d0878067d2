//! What a device publishes, and what the server holds of it.

use serde::{Deserialize, Serialize};

use super::Suite;
use crate::{
    frame::{Op, SocketRequest},
    time::Timestamp,
    value::{Base64, Base64Text, List, Named, Object},
};

/// `keys.publish`. The first of a device must make its set of keys complete; later ones carry any part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishKeysRequest {
    /// Required the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suite: Option<Suite>,
    /// Required the first time: the serialized public key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_key: Option<Base64>,
    /// Required the first time; replaces the one that is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed_prekey: Option<Object<PublishedSignedPrekey>>,
    /// Additions to the pool, at most [`MAX_KEYS_PER_PUBLISH`](crate::limits::MAX_KEYS_PER_PUBLISH).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_time_prekeys: Option<List<Object<PublishedKey>>>,
    /// Required the first time under a suite with PQ keys; replaces the one that is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pq_last_resort: Option<Object<PublishedSignedKey>>,
    /// Additions to the pool of PQ keys, at most [`MAX_KEYS_PER_PUBLISH`](crate::limits::MAX_KEYS_PER_PUBLISH).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pq_one_time: Option<List<Object<PublishedSignedKey>>>,
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
    /// When it stops being served; after the server's own time if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// The result of `keys.publish`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishKeysReply {
    /// What became of the one-time prekeys.
    pub one_time: KeyIdReport,
    /// What became of the one-time PQ prekeys.
    pub pq_one_time: KeyIdReport,
    /// All of the device's keys after it.
    pub status: KeysStatusReply,
}

/// The ids of the keys in a publish, by what became of each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyIdReport {
    /// New, in the pool now.
    pub accepted: Vec<u32>,
    /// The same key waits in the pool already.
    pub duplicate: Vec<u32>,
    /// Another key waits under this id.
    pub conflict: Vec<u32>,
    /// The id was handed out before and never returns.
    pub already_issued: Vec<u32>,
    /// The pool is full.
    pub over_cap: Vec<u32>,
}

impl SocketRequest for PublishKeysRequest {
    const OP: Op = Op::KeysPublish;
    type Reply = PublishKeysReply;
}

/// `keys.status`: no parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysStatusRequest {}

/// What the server holds of a device's keys: the result of `keys.status`, and part of the welcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysStatusReply {
    /// Set with the first publish.
    pub suite: Option<Named<Suite>>,
    /// Set with the first publish.
    pub identity_key: Option<Base64Text>,
    /// The signed prekey that is served.
    pub signed_prekey: Option<ServedSignedPrekey>,
    /// The last-resort PQ key that is served.
    pub pq_last_resort: Option<ServedLastResort>,
    /// Unissued one-time prekeys.
    pub one_time: u32,
    /// Unissued one-time PQ prekeys.
    pub pq_one_time: u32,
    /// The level at or below which a pool is announced as low.
    pub threshold: u32,
    /// Grows with each publish that changes a pool.
    pub pool_version: i64,
}

/// A signed prekey as its owner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedSignedPrekey {
    /// As published.
    pub key_id: u32,
    /// When it stops being served.
    pub expires_at: Timestamp,
}

/// A last-resort key as its owner sees it.
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
    fn parts_of_a_publish_must_be_maps_and_strings() {
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
