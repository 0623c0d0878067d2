//! The answers to a batch of claims without their one-time parts, in memory.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::ClaimRequest;
use crate::{
    domain::{Bundles, Refusal, Timestamp},
    store::{
        StoreError,
        bundles::{Draft, Target, absent, draft},
        many::SessionRow,
        rows,
    },
};

/// What a batch's drafts depend on.
pub struct Facts {
    /// Device and end of each session.
    sessions: HashMap<Uuid, (Uuid, Timestamp)>,
    /// The active devices of each user that exists.
    targets: HashMap<Uuid, Vec<rows::TargetRow>>,
}

/// One of each.
pub fn distinct(ids: impl Iterator<Item = Uuid>) -> Vec<Uuid> {
    ids.collect::<HashSet<_>>().into_iter().collect()
}

impl Facts {
    pub fn new(sessions: Vec<SessionRow>, targets: Vec<rows::UserTargetRow>) -> Self {
        let sessions = sessions
            .into_iter()
            .map(|(session, device, expires_at, _)| (session, (device, rows::time(expires_at))))
            .collect();
        let mut facts = Self { sessions, targets: HashMap::new() };
        for row in targets {
            let (user, row) = rows::split_user(row);
            facts.targets.entry(user).or_default().push(row);
        }
        facts
    }

    /// The users among these that have no active device, if they exist at all.
    pub fn without_targets(&self, users: Vec<Uuid>) -> Vec<Uuid> {
        users.into_iter().filter(|user| !self.targets.contains_key(user)).collect()
    }

    /// Users that exist.
    pub fn add_users(&mut self, users: Vec<(Uuid,)>) {
        for (user,) in users {
            self.targets.entry(user).or_default();
        }
    }

    /// A draft for each claim, or why there is none.
    pub fn drafts(&self, items: &[ClaimRequest]) -> Result<Vec<Result<Draft, StoreError>>, StoreError> {
        let mut drafts = Vec::with_capacity(items.len());
        for ClaimRequest { caller, user, devices, now, .. } in items {
            let session = self.sessions.get(&caller.session.0);
            let holds = session.is_some_and(|(device, expires_at)| *device == caller.device.0 && expires_at > now);
            drafts.push(if !holds {
                Err(Refusal::SessionRevoked.into())
            } else if let Some(rows) = self.targets.get(&user.0) {
                let targets = rows.iter().cloned().map(Target::from_row).collect::<Result<Vec<_>, _>>()?;
                Ok(draft(targets, caller, devices.as_deref(), *now))
            } else {
                Err(Refusal::NotFound.into())
            });
        }
        Ok(drafts)
    }
}

/// The devices that were named and are not among the user's active ones.
pub fn missing(drafts: &[Result<Draft, StoreError>]) -> Vec<Uuid> {
    drafts.iter().flatten().flat_map(|draft| draft.missing.iter().map(|device| device.0)).collect()
}

/// Says of each such device why it is not. `known` are the devices among them that exist: device, user, revoked.
pub fn explain_missing(
    items: &[ClaimRequest],
    drafts: Vec<Result<Draft, StoreError>>,
    known: Vec<(Uuid, Uuid, bool)>,
) -> Vec<Result<Bundles, StoreError>> {
    let known: HashMap<(Uuid, Uuid), bool> =
        known.into_iter().map(|(device, user, revoked)| ((device, user), revoked)).collect();
    let explain = |(draft, item): (Result<Draft, StoreError>, &ClaimRequest)| {
        draft.map(|Draft { mut answer, missing }| {
            for device in missing {
                let revoked = known.get(&(device.0, item.user.0)).copied();
                answer.unavailable.push(absent(device, &item.caller, revoked));
            }
            answer
        })
    };
    drafts.into_iter().zip(items).map(explain).collect()
}

/// Puts the last-resort keys into the bundles of their devices; one that has a one-time PQ key gets that later.
pub fn add_last_resorts(
    drafts: &mut [Result<Bundles, StoreError>],
    rows: Vec<(Uuid, i64, Vec<u8>, Vec<u8>)>,
) -> Result<(), StoreError> {
    let keys: HashMap<Uuid, rows::PqRow> =
        rows.into_iter().map(|(device, id, key, signature)| (device, (id, key, signature))).collect();
    for bundle in drafts.iter_mut().flatten().flat_map(|answer| &mut answer.bundles) {
        if bundle.suite.has_pq() {
            let key = keys.get(&bundle.device_id.0).cloned();
            bundle.pq_prekey = key.map(|row| rows::pq(row, true)).transpose()?;
        }
    }
    Ok(())
}
