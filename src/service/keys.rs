//! Publishing, looking up and claiming keys.

use super::Service;
use crate::{
    domain::{
        Bundles, Caller, ClaimId, DeviceId, KeysStatus, OneTimeOutcome, Refusal, UserId, publish::PublishRequest,
    },
    metrics::ClaimEnd,
    store::{ClaimAnswer, ClaimRequest, PublishOutcome, ResolvedPublish},
};

impl Service {
    /// Checks and stores what a device publishes, whole or not at all.
    ///
    /// # Errors
    /// `bad_request`, `session_revoked`, `identity_conflict`, `incomplete_keys`, `invalid_key`, `invalid_signature`
    pub async fn publish(&self, caller: &Caller, request: PublishRequest) -> Result<PublishOutcome, Refusal> {
        let now = self.now();
        request.check_form(now)?;
        let stored = self.store.identity(caller, now).await?;
        let (suite, identity_key) = match stored {
            Some((suite, key)) => {
                let other_suite = request.suite.is_some_and(|given| given != suite);
                let other_key = request.identity_key.as_ref().is_some_and(|given| *given != key);
                if other_suite || other_key {
                    return Err(Refusal::IdentityConflict);
                }
                (suite, key)
            }
            None => match (request.suite, request.identity_key.clone()) {
                (Some(suite), _) if request.has_pq_parts() && !suite.has_pq() => {
                    return Err(Refusal::BadRequest("this suite has no post-quantum keys".into()));
                }
                (Some(suite), Some(key)) if request.is_complete() => (suite, key),
                _ => return Err(Refusal::IncompleteKeys),
            },
        };
        // The arithmetic happens here, before any transaction is open.
        request.verify(suite, &identity_key)?;
        let signed_prekey_expires_at = request.expires_at.unwrap_or(now + self.policy.signed_prekey_lifetime);
        let publish = ResolvedPublish {
            caller: *caller,
            request,
            suite,
            identity_key,
            signed_prekey_expires_at,
            now,
            threshold: self.policy.low_watermark,
        };
        Ok(self.store.publish(&publish).await?)
    }

    /// What the server holds of the caller's keys.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn keys_status(&self, caller: &Caller) -> Result<KeysStatus, Refusal> {
        self.store.check_session(caller, self.now()).await?;
        Ok(self.store.keys_status(caller.device, self.policy.low_watermark).await?)
    }

    /// Bundles that consume nothing.
    ///
    /// # Errors
    /// `session_revoked`, `not_found`
    pub async fn fetch(&self, caller: &Caller, user: UserId, devices: Option<&[DeviceId]>) -> Result<Bundles, Refusal> {
        Ok(self.store.fetch(caller, user, devices, self.now()).await?)
    }

    /// Bundles with a one-time key of each kind, handed out at most once, ever.
    ///
    /// # Errors
    /// `session_revoked`, `not_found`
    pub async fn claim(
        &self,
        caller: Caller,
        user: UserId,
        devices: Option<Vec<DeviceId>>,
        claim: ClaimId,
    ) -> Result<Bundles, Refusal> {
        let request = ClaimRequest { caller, user, devices, claim, now: self.now() };
        let bundles = self.claim_bundles(request).await?;
        for bundle in &bundles.bundles {
            match bundle.one_time {
                OneTimeOutcome::Claimed => self.metrics.claims.inc(ClaimEnd::Claimed),
                OneTimeOutcome::Exhausted => self.metrics.claims.inc(ClaimEnd::Exhausted),
                OneTimeOutcome::Limited => self.metrics.claims.inc(ClaimEnd::Limited),
                OneTimeOutcome::NotRequested => {}
            }
        }
        Ok(bundles)
    }

    async fn claim_bundles(&self, request: ClaimRequest) -> Result<Bundles, Refusal> {
        match self.claims.submit(request).await? {
            ClaimAnswer::Done(bundles) => Ok(bundles),
            ClaimAnswer::Short(short) => {
                let _permit = self.settling.acquire().await.map_err(|_| Refusal::Unavailable)?;
                let (bundles, low) = self.store.settle(*short, self.policy.low_watermark).await?;
                for (owner, signal) in low {
                    self.bus.publish(owner, signal);
                }
                Ok(bundles)
            }
        }
    }
}
