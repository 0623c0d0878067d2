//! Publishing, fetching and claiming keys.

use super::Service;
use crate::{
    domain::{
        AccessKey, Bundles, Caller, ClaimId, DeviceId, KeysStatus, OneTimeOutcome, Refusal, UserId,
        bundle::{KeysDigest, UsableSuites},
        publish::{PublishRequest, Verification, VerifiedPublish},
    },
    metrics::ClaimOutcome,
    store::{ClaimAnswer, ClaimRequest, PublishOutcome, StatusRequest, StoreError},
};

impl Service {
    /// Verifies the keys that a device publishes and stores them in one transaction.
    ///
    /// # Errors
    /// `bad_request`, `session_revoked`, `identity_conflict`, `incomplete_keys`, `invalid_key`, `invalid_signature`
    pub async fn publish(&self, caller: &Caller, request: PublishRequest) -> Result<PublishOutcome, Refusal> {
        let now = self.now();
        request.check_form(now)?;
        let place = self.enter(caller.user).await?;
        let (stored, known) = self.store.publish_basis(caller, &request, now).await?;
        drop(place);
        let default_expiry = now + self.policy.signed_prekey_lifetime;
        let start = move || request.start_verification(stored.as_ref(), known, default_expiry);
        let publish = self.verify(caller.user, start).await?;
        let _place = self.enter(caller.user).await?;
        Ok(self.store.publish(caller, &publish, now).await?)
    }

    /// Verifies a publish: one of each user at a time. Users take turns with the parts of it.
    async fn verify(
        &self,
        user: UserId,
        start: impl FnOnce() -> Result<Verification, Refusal> + Send + 'static,
    ) -> Result<VerifiedPublish, Refusal> {
        let _place = self.verifications.enter(user).await?;
        let mut verification = self.verify_part(user, start).await?;
        loop {
            match verification {
                Verification::Done(publish) => return Ok(*publish),
                Verification::Begun(rest) => verification = self.verify_part(user, || rest.go_on()).await?,
            }
        }
    }

    /// Runs a part of a verification on a thread that may block, because it is arithmetic.
    async fn verify_part(
        &self,
        user: UserId,
        part: impl FnOnce() -> Result<Verification, Refusal> + Send + 'static,
    ) -> Result<Verification, Refusal> {
        let permit = self.verification_permits.acquire(user).await?;
        let verified = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            part()
        });
        verified.await.map_err(|_| Refusal::Internal)?
    }

    /// Returns the status of the caller's keys on the server, with their digest if it is wanted. May be called on any
    /// runtime.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn keys_status(
        &self,
        caller: &Caller,
        with_digest: bool,
    ) -> Result<(KeysStatus, Option<KeysDigest>), Refusal> {
        let status = self.statuses.submit(StatusRequest { caller: *caller, now: self.now() }).await?.keys;
        // The digest is read after the status. If a publish comes between, the version in the status is out of date, so a
        // publish that expects this version is refused.
        if !with_digest {
            return Ok((status, None));
        }
        let _place = self.enter(caller.user).await?;
        let (store, device) = (self.store.clone(), caller.device);
        let digest = Box::pin(self.on_own_runtime(async move { store.keys_digest(device).await })).await?;
        Ok((status, Some(digest)))
    }

    /// Returns bundles of a user's devices (all if `devices` is `None`), without one-time keys.
    ///
    /// # Errors
    /// `session_revoked`, `not_found`
    pub async fn fetch(
        &self,
        caller: &Caller,
        user: UserId,
        devices: Option<&[DeviceId]>,
        suites: &UsableSuites,
        access: Option<&AccessKey>,
    ) -> Result<Bundles, Refusal> {
        Ok(self.store.fetch(caller, user, devices, suites, access, self.now()).await?)
    }

    /// Returns bundles of a user's devices (all if `devices` is `None`), each with a one-time key of every kind its
    /// suite has, if the pool and the limits allow. A one-time key is never issued twice. A repeated claim id gets
    /// the same keys. May be called on any runtime.
    ///
    /// # Errors
    /// `session_revoked`, `not_found`
    pub async fn claim(
        &self,
        caller: Caller,
        user: UserId,
        devices: Option<Vec<DeviceId>>,
        suites: UsableSuites,
        claim: ClaimId,
        access: Option<AccessKey>,
    ) -> Result<Bundles, Refusal> {
        let request = ClaimRequest { caller, user, devices, suites, claim, access, now: self.now() };
        let bundles = self.claim_bundles(request).await?;
        for bundle in &bundles.bundles {
            match bundle.one_time {
                OneTimeOutcome::Claimed => self.metrics.claims.inc(ClaimOutcome::Claimed),
                OneTimeOutcome::Exhausted => self.metrics.claims.inc(ClaimOutcome::Exhausted),
                OneTimeOutcome::Limited => self.metrics.claims.inc(ClaimOutcome::Limited),
                OneTimeOutcome::NotRequested => {}
            }
        }
        Ok(bundles)
    }

    async fn claim_bundles(&self, request: ClaimRequest) -> Result<Bundles, Refusal> {
        let user = request.caller.user;
        match self.claims.submit(request).await? {
            ClaimAnswer::Done(bundles) => Ok(bundles),
            ClaimAnswer::Blocked(blocked) => {
                let place = self.enter_as_user(user).await?;
                let permit = self.blocking_permits.clone().acquire_owned().await.map_err(|_| Refusal::Unavailable)?;
                let (claims, bus) = (self.blocking_claims.clone(), self.bus.clone());
                let claim = async move {
                    let _held = (place, permit);
                    let (bundles, signals) = claims.claim_blocking(*blocked).await?;
                    for (owner, signal) in signals {
                        bus.publish(owner, signal);
                    }
                    Ok::<_, StoreError>(bundles)
                };
                Box::pin(self.on_own_runtime(claim)).await
            }
        }
    }
}
