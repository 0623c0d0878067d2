//! Keys: published, fetched, claimed.

use serde::{Deserialize, Deserializer, de};

use crate::{
    domain::{
        ClaimId, DeviceId, Refusal, Suite, Timestamp, UserId,
        publish::{PlainKey, PublishRequest, SignedKey},
    },
    protocol::value::{Base64, List, Object, Text},
};

/// Devices that one fetch or claim may name.
const MAX_DEVICE_IDS: usize = 100;

/// `keys.fetch`
#[derive(Deserialize)]
pub struct Fetch {
    /// Whose devices.
    pub user_id: UserId,
    device_ids: Option<List<DeviceId>>,
}

impl Fetch {
    /// The named devices, each once, or `None` for all of them.
    ///
    /// # Errors
    /// `bad_request` where more than a hundred are named.
    pub fn device_ids(self) -> Result<Option<Vec<DeviceId>>, Refusal> {
        distinct(self.device_ids)
    }
}

/// `keys.claim`
#[derive(Deserialize)]
pub struct Claim {
    /// Whose devices.
    pub user_id: UserId,
    device_ids: Option<List<DeviceId>>,
    /// The intent.
    pub claim_id: ClaimId,
}

impl Claim {
    /// See [`Fetch::device_ids`].
    ///
    /// # Errors
    /// `bad_request` where more than a hundred are named.
    pub fn device_ids(self) -> Result<Option<Vec<DeviceId>>, Refusal> {
        distinct(self.device_ids)
    }
}

fn distinct(ids: Option<List<DeviceId>>) -> Result<Option<Vec<DeviceId>>, Refusal> {
    let Some(List(mut ids)) = ids else { return Ok(None) };
    let mut seen = std::collections::HashSet::new();
    ids.retain(|id| seen.insert(*id));
    if ids.len() > MAX_DEVICE_IDS {
        return Err(Refusal::BadRequest("at most 100 device_ids".into()));
    }
    Ok(Some(ids))
}

/// `keys.publish`
#[derive(Deserialize)]
pub struct Publish {
    #[serde(default, deserialize_with = "suite")]
    suite: Option<Suite>,
    identity_key: Option<Base64>,
    signed_prekey: Option<Object<SignedPrekeyBody>>,
    one_time_prekeys: Option<List<Object<KeyBody>>>,
    pq_last_resort: Option<Object<SignedKeyBody>>,
    pq_one_time: Option<List<Object<SignedKeyBody>>>,
}

#[derive(Deserialize)]
struct KeyBody {
    key_id: u32,
    public_key: Base64,
}

#[derive(Deserialize)]
struct SignedKeyBody {
    key_id: u32,
    public_key: Base64,
    signature: Base64,
}

#[derive(Deserialize)]
struct SignedPrekeyBody {
    key_id: u32,
    public_key: Base64,
    signature: Base64,
    expires_at: Option<Timestamp>,
}

fn suite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Suite>, D::Error> {
    let name = Option::<Text>::deserialize(deserializer)?;
    name.map(|name| Suite::parse(name.as_str()).ok_or_else(|| de::Error::custom("no such suite"))).transpose()
}

impl Publish {
    /// Whether it carries a signed prekey.
    #[must_use]
    pub fn rotates_signed_prekey(&self) -> bool {
        self.signed_prekey.is_some()
    }
}

impl From<SignedKeyBody> for SignedKey {
    fn from(body: SignedKeyBody) -> Self {
        Self { key_id: body.key_id, public_key: body.public_key.0, signature: body.signature.0 }
    }
}

fn items<T>(list: Option<List<T>>) -> impl Iterator<Item = T> {
    list.into_iter().flat_map(|List(items)| items)
}

impl From<Publish> for PublishRequest {
    fn from(body: Publish) -> Self {
        let expires_at = body.signed_prekey.as_ref().and_then(|key| key.0.expires_at);
        let signed_prekey = body.signed_prekey.map(|Object(key)| SignedKey {
            key_id: key.key_id,
            public_key: key.public_key.0,
            signature: key.signature.0,
        });
        let plain = |Object(key): Object<KeyBody>| PlainKey { key_id: key.key_id, public_key: key.public_key.0 };
        Self {
            suite: body.suite,
            identity_key: body.identity_key.map(|key| key.0),
            signed_prekey,
            expires_at,
            one_time: items(body.one_time_prekeys).map(plain).collect(),
            pq_last_resort: body.pq_last_resort.map(|key| key.0.into()),
            pq_one_time: items(body.pq_one_time).map(|key| key.0.into()).collect(),
        }
    }
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
            assert!(serde_json::from_str::<Publish>(wrong).is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<Publish>(r#"{"suite":null,"one_time_prekeys":null,"new_field":[]}"#).is_ok());
    }
}
