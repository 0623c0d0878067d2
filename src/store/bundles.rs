//! What can be said of devices to those who want to reach them: their signed parts, or why there are none.

use std::collections::HashMap;

use super::{Store, StoreError, read, rows, sql};
use crate::domain::{
    Bundle, Bundles, Caller, DeviceId, OneTimeOutcome, Refusal, Suite, Timestamp, UserId,
    bundle::{KeyBytes, SignedPrekey, Unavailable, UnavailableReason},
};

/// A device of the user that is asked about, with its signed parts if it has published.
pub(super) struct Target {
    pub(super) device: DeviceId,
    registration_id: u32,
    keys: Option<TargetKeys>,
}

struct TargetKeys {
    suite: Suite,
    identity_key: Vec<u8>,
    /// Absent where its owner has none that could be served.
    signed_prekey: Option<SignedPrekey>,
}

impl Target {
    pub(super) fn from_row(row: rows::TargetRow) -> Result<Self, StoreError> {
        let (id, registration_id, suite, identity_key, key_id, public_key, signature, expires_at) = row;
        let signed_prekey = match (key_id, public_key, signature, expires_at) {
            (Some(key_id), Some(public_key), Some(signature), Some(expires_at)) => Some(SignedPrekey {
                key_id: rows::number(key_id)?,
                public_key: KeyBytes(public_key),
                signature: KeyBytes(signature),
                expires_at: rows::time(expires_at),
            }),
            _ => None,
        };
        let keys = match (suite, identity_key) {
            (Some(suite), Some(identity_key)) => {
                Some(TargetKeys { suite: rows::suite(&suite)?, identity_key, signed_prekey })
            }
            _ => None,
        };
        Ok(Self { device: DeviceId(id), registration_id: rows::number(registration_id)?, keys })
    }

    /// The bundle without one-time parts, or why there is none.
    fn into_bundle(self, now: Timestamp) -> Result<Bundle, Unavailable> {
        let unavailable = |reason| Unavailable { device_id: self.device, reason };
        let keys = self.keys.ok_or(unavailable(UnavailableReason::NoKeys))?;
        let signed_prekey = keys
            .signed_prekey
            .filter(|key| key.expires_at > now)
            .ok_or(unavailable(UnavailableReason::SignedPrekeyExpired))?;
        Ok(Bundle {
            device_id: self.device,
            registration_id: self.registration_id,
            suite: keys.suite,
            identity_key: KeyBytes(keys.identity_key),
            signed_prekey,
            one_time_prekey: None,
            one_time: OneTimeOutcome::NotRequested,
            pq_prekey: None,
        })
    }
}

/// An answer without one-time parts, and the named devices that are not among the user's active ones.
pub(super) struct Draft {
    pub(super) answer: Bundles,
    pub(super) missing: Vec<DeviceId>,
}

/// Sorts a user's active devices into bundles and devices without: the named ones, or all that are addressable.
pub(super) fn draft(targets: Vec<Target>, caller: &Caller, devices: Option<&[DeviceId]>, now: Timestamp) -> Draft {
    let mut draft = Draft { answer: Bundles::default(), missing: Vec::new() };
    let add = |answer: &mut Bundles, target: Target| match target.into_bundle(now) {
        Ok(bundle) => answer.bundles.push(bundle),
        Err(unavailable) => answer.unavailable.push(unavailable),
    };
    let Some(wanted) = devices else {
        for target in targets {
            if target.device != caller.device && target.keys.is_some() {
                add(&mut draft.answer, target);
            }
        }
        return draft;
    };
    let mut active: HashMap<_, _> = targets.into_iter().map(|target| (target.device, target)).collect();
    for device in wanted {
        match active.remove(device).filter(|target| target.device != caller.device) {
            Some(target) => add(&mut draft.answer, target),
            None => draft.missing.push(*device),
        }
    }
    draft
}

/// Why a device that is not among the user's active ones cannot be reached. `revoked` is `None` where the user has no
/// such device at all.
pub(super) fn absent(device_id: DeviceId, caller: &Caller, revoked: Option<bool>) -> Unavailable {
    let reason = match revoked {
        Some(true) if device_id != caller.device => UnavailableReason::Revoked,
        _ => UnavailableReason::UnknownDevice,
    };
    Unavailable { device_id, reason }
}

/// Reads the bundles without one-time parts that answer for `$devices` (or all addressable ones) of `$user`.
macro_rules! bundles {
    ($db:expr, $caller:expr, $user:expr, $devices:expr, $now:expr) => {{
        let rows: Vec<rows::TargetRow> = sqlx::query_as(sql::TARGETS).bind($user.0).fetch_all($db).await?;
        if rows.is_empty() {
            let exists: Option<(i32,)> = sqlx::query_as(sql::USER_EXISTS).bind($user.0).fetch_optional($db).await?;
            exists.ok_or(Refusal::NotFound)?;
        }
        let targets = rows.into_iter().map(Target::from_row).collect::<Result<Vec<_>, _>>()?;
        let Draft { mut answer, missing } = draft(targets, $caller, $devices, $now);
        for device in missing {
            let row: Option<(bool,)> =
                sqlx::query_as(sql::DEVICE_REVOKED).bind(device.0).bind($user.0).fetch_optional($db).await?;
            answer.unavailable.push(absent(device, $caller, row.map(|(revoked,)| revoked)));
        }
        answer
    }};
}

/// Puts the last-resort PQ key into a bundle of a PQ suite.
macro_rules! last_resort {
    ($db:expr, $bundle:ident) => {
        if $bundle.suite.has_pq() {
            let row: Option<rows::PqRow> =
                sqlx::query_as(sql::LAST_RESORT).bind($bundle.device_id.0).fetch_optional($db).await?;
            $bundle.pq_prekey = row.map(|row| rows::pq(row, true)).transpose()?;
        }
    };
}

impl Store {
    /// Bundles that consume nothing.
    ///
    /// # Errors
    /// `session_revoked`, `not_found`
    pub async fn fetch(
        &self,
        caller: &Caller,
        user: UserId,
        devices: Option<&[DeviceId]>,
        now: Timestamp,
    ) -> Result<Bundles, StoreError> {
        self.check_session(caller, now).await?;
        Ok(read!(self, |db| {
            let mut answer = bundles!(&mut *db, caller, user, devices, now);
            for bundle in &mut answer.bundles {
                last_resort!(&mut *db, bundle);
            }
            answer
        }))
    }
}
