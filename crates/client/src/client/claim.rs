//! Claims of one-time prekeys, whose ids are stored until their keys are used.

use std::{future::IntoFuture, pin::Pin};

use sealwire_protocol::{
    access::{AccessKey, ShownKey},
    ids::{ClaimId, DeviceId, UserId},
    keys::{BundlesReply, ClaimKeysRequest, PrekeyBundle, Suite, UnavailableDevice},
    value::{List, Named},
};
use sha2::{Digest, Sha256};

use super::Client;
use crate::{
    error::{RequestError, StorageError},
    storage::Record,
};

/// The beginning of the keys of claims' records.
pub(super) const CLAIMS: &str = "claim/";

impl Client {
    /// Claims bundles with which the app opens encrypted sessions with a user's devices. Await the returned request;
    /// before, say which devices.
    ///
    /// `purpose` names what the bundles are for, such as the id of the message that needs them. A claim id is drawn and
    /// stored for it, and a later claim for the same user and purpose, also after a crash, gets the same keys, until
    /// [`Claim::used`] is called. So use another purpose for each group of sessions, and call `used` once they are stored.
    pub fn claim<'a>(&'a self, user: UserId, purpose: &'a str) -> ClaimRequest<'a> {
        ClaimRequest { client: self, user, purpose, devices: None, suites: None, access: None }
    }
}

/// A claim that is made when it is awaited: for all addressable devices of the user, unless
/// [`devices`](Self::devices) names some.
#[must_use = "a claim is made when it is awaited"]
#[derive(Clone, Debug)]
pub struct ClaimRequest<'a> {
    client: &'a Client,
    user: UserId,
    purpose: &'a str,
    devices: Option<Vec<DeviceId>>,
    suites: Option<Vec<Suite>>,
    access: Option<AccessKey>,
}

impl ClaimRequest<'_> {
    /// Claims only these devices, at most 100.
    pub fn devices(mut self, devices: impl IntoIterator<Item = DeviceId>) -> Self {
        self.devices = Some(devices.into_iter().collect());
        self
    }

    /// The suites that the app can use. Devices of others are `unavailable`, and none of their keys is taken.
    pub fn suites(mut self, suites: impl IntoIterator<Item = Suite>) -> Self {
        self.suites = Some(suites.into_iter().collect());
        self
    }

    /// Shows the access key that the user has shared.
    pub fn access(mut self, key: AccessKey) -> Self {
        self.access = Some(key);
        self
    }

    async fn make(self) -> Result<Claim, RequestError> {
        let Self { client, user, purpose, devices, suites, access } = self;
        let key = claim_key(user, purpose);
        let known = client.claims().get(&key).copied();
        let claim_id = if let Some(id) = known {
            id
        } else {
            let id = ClaimId(client.inner.shared.random.uuid());
            let record = Record { key: key.clone(), value: id.to_string().into_bytes() };
            client.inner.storage.save(record).await?;
            *client.claims().entry(key.clone()).or_insert(id)
        };
        let request = ClaimKeysRequest {
            user_id: user,
            device_ids: devices.map(List),
            suites: suites.map(|suites| List(suites.into_iter().map(Named::from).collect())),
            access: access.map(|key| ShownKey(Some(key))),
            claim_id,
        };
        let BundlesReply { bundles, unavailable, .. } = client.request(request).await?;
        Ok(Claim { bundles, unavailable, client: client.clone(), key })
    }
}

impl<'a> IntoFuture for ClaimRequest<'a> {
    type Output = Result<Claim, RequestError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.make())
    }
}

/// The bundles that were claimed.
#[must_use = "call `used` once the encrypted sessions are stored"]
#[derive(Clone, Debug)]
pub struct Claim {
    /// The bundles, one for each device. Check their signatures.
    pub bundles: Vec<PrekeyBundle>,
    /// Devices without a bundle, and why.
    pub unavailable: Vec<UnavailableDevice>,
    client: Client,
    key: String,
}

impl Claim {
    /// Says that the encrypted sessions are stored: the claim id is forgotten, and the next claim for this purpose takes
    /// other keys.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn used(self) -> Result<(), StorageError> {
        self.client.inner.storage.delete(self.key.clone()).await?;
        self.client.claims().remove(&self.key);
        Ok(())
    }

    /// The key of the record of the claim id, for apps that delete it in the transaction that stores the encrypted
    /// sessions. Call [`used`](Self::used) all the same.
    #[must_use]
    pub fn record_key(&self) -> &str {
        &self.key
    }
}

/// The key of a claim's record. A hash, since a purpose may have any characters.
fn claim_key(user: UserId, purpose: &str) -> String {
    let hash = Sha256::new().chain_update(user.0.as_bytes()).chain_update(purpose).finalize();
    hash.iter().take(16).fold(CLAIMS.to_owned(), |key, byte| format!("{key}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn claims_differ_by_user_and_purpose() {
        let user = |number| UserId(Uuid::from_u128(number));
        let key = claim_key(user(1), "a");
        assert_eq!(key, claim_key(user(1), "a"));
        assert_eq!(key.len(), CLAIMS.len() + 32);
        assert_ne!(key, claim_key(user(1), "b"));
        assert_ne!(key, claim_key(user(2), "a"));
    }
}
