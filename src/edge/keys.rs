//! Converts requests and replies about keys.

use std::collections::HashSet;

use base64::{Engine, engine::general_purpose::STANDARD};
use sealwire_protocol::{
    keys::{
        BundleOneTimePrekey, BundlePqPrekey, BundleSignedPrekey, BundlesReply, KeyIdReport, KeysStatusReply,
        PrekeyBundle, PublishKeysReply, PublishKeysRequest, PublishedKey, PublishedSignedKey, ServedLastResort,
        ServedSignedPrekey, UnavailableDevice,
    },
    limits::MAX_DEVICE_IDS,
    value::{Base64Text, List, Named, Object},
};

use super::EdgeError;
use crate::{
    domain::{
        Bundle, Bundles, DeviceId, KeysStatus, Suite,
        bundle::{EncodedKey, KeysDigest, Unavailable, UsableSuites},
        publish::{PublishRequest, SignedKey, UnsignedKey},
    },
    service::{PublishOutcome, PublishReport},
};

/// Returns the requested devices without duplicates; `None` means all devices of the user.
///
/// # Errors
/// `bad_request` if there are more than [`MAX_DEVICE_IDS`] different ones.
pub fn named_devices(ids: Option<List<DeviceId>>) -> Result<Option<Vec<DeviceId>>, EdgeError> {
    let Some(List(mut ids)) = ids else { return Ok(None) };
    let mut seen = HashSet::new();
    ids.retain(|id| seen.insert(*id));
    if ids.len() > MAX_DEVICE_IDS {
        return Err(EdgeError::invalid("device_ids", "at most 100 devices"));
    }
    Ok(Some(ids))
}

/// Returns the suites that a client can use. Unknown ones are ignored: no device on this server can have them.
///
/// # Errors
/// `bad_request` if the list is empty.
pub fn usable_suites(suites: Option<List<Named<Suite>>>) -> Result<UsableSuites, EdgeError> {
    let Some(List(suites)) = suites else { return Ok(UsableSuites::default()) };
    if suites.is_empty() {
        return Err(EdgeError::invalid("suites", "at least one suite"));
    }
    Ok(UsableSuites(Some(suites.into_iter().filter_map(Named::known).collect())))
}

/// Converts a publish. Its keys are not parsed yet.
#[must_use]
pub fn publish_request(request: PublishKeysRequest) -> PublishRequest {
    let unsigned = |Object(key): Object<PublishedKey>| UnsignedKey { key_id: key.key_id, public_key: key.public_key.0 };
    let signed = |Object(key): Object<PublishedSignedKey>| SignedKey {
        key_id: key.key_id,
        public_key: key.public_key.0,
        signature: key.signature.0,
    };
    PublishRequest {
        suite: request.suite,
        identity_key: request.identity_key.map(|key| key.0),
        expires_at: request.signed_prekey.as_ref().and_then(|key| key.0.expires_at),
        signed_prekey: request.signed_prekey.map(|Object(key)| SignedKey {
            key_id: key.key_id,
            public_key: key.public_key.0,
            signature: key.signature.0,
        }),
        one_time: items(request.one_time_prekeys).map(unsigned).collect(),
        pq_last_resort: request.pq_last_resort.map(signed),
        pq_one_time: items(request.pq_one_time).map(signed).collect(),
        replace: request.replace.unwrap_or_default(),
        expect_pool_version: request.expect_pool_version,
    }
}

fn items<T>(list: Option<List<T>>) -> impl Iterator<Item = T> {
    list.into_iter().flat_map(|List(items)| items)
}

/// Returns the reply to a publish.
#[must_use]
pub fn publish_reply(outcome: PublishOutcome) -> PublishKeysReply {
    PublishKeysReply {
        one_time: report(outcome.one_time),
        pq_one_time: report(outcome.pq_one_time),
        status: keys_status_reply(outcome.status),
    }
}

fn report(report: PublishReport) -> KeyIdReport {
    let PublishReport { accepted, duplicate, conflict, already_issued, over_cap, withdrawn } = report;
    KeyIdReport { accepted, duplicate, conflict, already_issued, over_cap, withdrawn }
}

/// Returns the reply with the status of a device's keys.
#[must_use]
pub fn keys_status_reply(status: KeysStatus) -> KeysStatusReply {
    KeysStatusReply {
        suite: status.suite.map(Into::into),
        identity_key: status.identity_key.map(base64),
        signed_prekey: status
            .signed_prekey
            .map(|key| ServedSignedPrekey { key_id: key.key_id, expires_at: key.expires_at }),
        pq_last_resort: status.pq_last_resort.map(|key| ServedLastResort { key_id: key.key_id }),
        one_time: status.one_time,
        pq_one_time: status.pq_one_time,
        threshold: status.threshold,
        pool_version: status.pool_version,
        digest: None,
    }
}

/// Returns a digest as text.
#[must_use]
pub fn digest(digest: KeysDigest) -> Base64Text {
    Base64Text(STANDARD.encode(digest))
}

/// Returns the reply to a fetch or a claim.
#[must_use]
pub fn bundles_reply(bundles: Bundles) -> BundlesReply {
    BundlesReply {
        bundles: bundles.bundles.into_iter().map(bundle).collect(),
        unavailable: bundles.unavailable.into_iter().map(unavailable).collect(),
    }
}

fn bundle(bundle: Bundle) -> PrekeyBundle {
    let signed = bundle.signed_prekey;
    PrekeyBundle {
        device_id: bundle.device_id,
        registration_id: bundle.registration_id,
        suite: bundle.suite.into(),
        identity_key: base64(bundle.identity_key),
        signed_prekey: BundleSignedPrekey {
            key_id: signed.key_id,
            public_key: base64(signed.public_key),
            signature: base64(signed.signature),
            expires_at: signed.expires_at,
        },
        one_time_prekey: bundle
            .one_time_prekey
            .map(|key| BundleOneTimePrekey { key_id: key.key_id, public_key: base64(key.public_key) }),
        one_time: bundle.one_time.into(),
        pq_prekey: bundle.pq_prekey.map(|key| BundlePqPrekey {
            key_id: key.key_id,
            public_key: base64(key.public_key),
            signature: base64(key.signature),
            last_resort: key.last_resort,
        }),
    }
}

fn unavailable(device: Unavailable) -> UnavailableDevice {
    UnavailableDevice { device_id: device.device_id, reason: device.reason.into() }
}

fn base64(EncodedKey(text): EncodedKey) -> Base64Text {
    Base64Text(text)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn duplicate_devices_count_once() {
        let ids = |n: u128| (0..n).map(|id| DeviceId(Uuid::from_u128(id))).collect::<Vec<_>>();
        assert_eq!(named_devices(None), Ok(None));
        let twice = [ids(100), ids(100)].concat();
        assert_eq!(named_devices(Some(List(twice))), Ok(Some(ids(100))));
        assert!(named_devices(Some(List(ids(101)))).is_err());
    }
}
