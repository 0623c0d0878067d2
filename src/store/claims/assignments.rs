//! Tracks in memory which keys the claims of a batch have and still need, so that one statement takes all keys of a
//! kind.

use std::collections::{BTreeSet, HashMap, HashSet, hash_map::Entry};

use uuid::Uuid;

use super::{BlockedClaim, ClaimAnswer, ClaimRequest, KeyPool, strangers::StrangerClaims, tokens::TakenTokens};
use crate::{
    domain::{
        Bundle, Bundles, DeviceId, KeyKind, OneTimeOutcome, Suite, Timestamp,
        bundle::{EncodedKey, IssuedPqPrekey, OneTimePrekey},
    },
    store::{
        StoreError, rows,
        sql::claims as sql,
        tx::{Column, Tx},
    },
};

/// One claim on one device. All three ids are in the row of a key that is issued to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct AssignmentId {
    claimer: Uuid,
    claim: Uuid,
    device: Uuid,
}

impl AssignmentId {
    fn of(item: &ClaimRequest, device: DeviceId) -> Self {
        Self { claimer: item.caller.device.0, claim: item.claim.0, device: device.0 }
    }
}

fn columns(ids: &[AssignmentId]) -> [Column<'static>; 3] {
    let column = |get: fn(&AssignmentId) -> Uuid| Column::Ids(ids.iter().map(get).collect());
    [column(|id| id.claimer), column(|id| id.claim), column(|id| id.device)]
}

/// Claimer, claim, device, key id, key.
pub(super) type OneTimeRow = (Uuid, Uuid, Uuid, i64, String);
/// Claimer, claim, device, key id, key, signature.
pub(super) type PqRow = (Uuid, Uuid, Uuid, i64, Vec<u8>, Vec<u8>);

/// The key of a row.
pub(super) fn one_time_key((.., key_id, key): OneTimeRow) -> Result<OneTimePrekey, StoreError> {
    Ok(OneTimePrekey { key_id: rows::number(key_id)?, public_key: EncodedKey(key) })
}

/// The key of a row.
pub(super) fn pq_key((.., key_id, key, signature): PqRow) -> Result<IssuedPqPrekey, StoreError> {
    let key_id = rows::number(key_id)?;
    let (public_key, signature) = (EncodedKey::of(&key), EncodedKey::of(&signature));
    Ok(IssuedPqPrekey { key_id, public_key, signature, last_resort: false })
}

struct Assignment {
    id: AssignmentId,
    /// The index of the first claim of the batch that it serves.
    item: usize,
    suite: Suite,
    /// Whether all of these claims are of a stranger whose claims are limited. One of them may show the access key.
    is_limited: bool,
    one_time: Option<OneTimePrekey>,
    pq: Option<IssuedPqPrekey>,
    /// Whether an earlier run of the same claim took a key, and so was counted by the limits.
    counted: bool,
    /// Whether the limits let it take the keys that it still needs.
    allowed: bool,
}

impl Assignment {
    fn lacks(&self, kind: KeyKind) -> bool {
        match kind {
            KeyKind::OneTime => self.one_time.is_none(),
            KeyKind::PqOneTime => self.suite.has_pq() && self.pq.is_none(),
        }
    }
}

/// One assignment per claim and device, in batch order. Repeats within the batch share one.
pub struct Assignments {
    all: Vec<Assignment>,
    /// Indexes in `all`.
    indexes: HashMap<AssignmentId, usize>,
}

impl Assignments {
    /// Empty assignments for the bundles that answer these claims.
    /// `limited` says for each claim whether it is of a stranger whose claims are limited.
    pub fn new(items: &[ClaimRequest], answers: &[Result<Bundles, StoreError>], limited: &[bool]) -> Self {
        let mut assignments = Self { all: Vec::new(), indexes: HashMap::new() };
        for (index, ((item, answer), is_limited)) in items.iter().zip(answers).zip(limited).enumerate() {
            for bundle in answer.iter().flat_map(|answer| &answer.bundles) {
                let id = AssignmentId::of(item, bundle.device_id);
                match assignments.indexes.entry(id) {
                    Entry::Occupied(known) => assignments.all[*known.get()].is_limited &= is_limited,
                    Entry::Vacant(new) => {
                        new.insert(assignments.all.len());
                        assignments.all.push(Assignment {
                            id,
                            item: index,
                            suite: bundle.suite,
                            is_limited: *is_limited,
                            one_time: None,
                            pq: None,
                            counted: false,
                            allowed: false,
                        });
                    }
                }
            }
        }
        assignments
    }

    /// The devices on which strangers have limited claims.
    pub fn limited_devices(&self) -> BTreeSet<Uuid> {
        self.all.iter().filter(|one| one.is_limited).map(|one| one.id.device).collect()
    }

    /// Reads the keys that earlier runs of the same claims took, and assigns them.
    pub async fn load_earlier(&mut self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        let all: Vec<_> = self.all.iter().map(|one| one.id).collect();
        let found = tx.query(sql::CLAIMED_ONE_TIME).bind_rows(columns(&all)).fetch_all().await?;
        self.assign_one_time(found)?;
        let with_pq: Vec<_> = self.all.iter().filter(|one| one.suite.has_pq()).map(|one| one.id).collect();
        let found = tx.query(sql::CLAIMED_PQ).bind_rows(columns(&with_pq)).fetch_all().await?;
        self.assign_pq(found)?;
        for one in &mut self.all {
            one.counted = one.one_time.is_some() || one.pq.is_some();
        }
        Ok(())
    }

    /// Decides which claims may take the keys that they still need. A claim that an earlier run counted is not counted
    /// again.
    pub fn apply_limits(
        &mut self,
        items: &[ClaimRequest],
        tokens: &mut TakenTokens<'_>,
        strangers: &mut StrangerClaims,
    ) {
        for one in &mut self.all {
            let wants_more = KeyKind::ALL.into_iter().any(|kind| one.lacks(kind));
            let ClaimRequest { caller, now, .. } = &items[one.item];
            let device = DeviceId(one.id.device);
            one.allowed = wants_more && (one.counted || tokens.take(caller.user, device, *now));
            if one.allowed && !one.counted && one.is_limited && !strangers.take(device, *now) {
                tokens.refund(caller.user, device);
                one.allowed = false;
            }
        }
    }

    /// Takes the oldest unlocked keys for all assignments that need some and may take them. Returns the pools of these
    /// keys.
    pub async fn take_keys(&mut self, tx: &mut Tx<'_>, now: Timestamp) -> Result<BTreeSet<KeyPool>, StoreError> {
        let unmet = columns(&self.unmet(KeyKind::OneTime));
        let taken = tx.query(sql::CLAIM_ONE_TIME).bind_rows(unmet).bind(now.to_utc()).fetch_all().await?;
        let unmet = columns(&self.unmet(KeyKind::PqOneTime));
        let taken_pq = tx.query(sql::CLAIM_PQ).bind_rows(unmet).bind(now.to_utc()).fetch_all().await?;
        let mut touched = BTreeSet::new();
        touched.extend(self.assign_one_time(taken)?.into_iter().map(|device| (device, KeyKind::OneTime)));
        touched.extend(self.assign_pq(taken_pq)?.into_iter().map(|device| (device, KeyKind::PqOneTime)));
        Ok(touched)
    }

    /// Takes back what claims that took no key were counted.
    pub fn refund_unused(&self, items: &[ClaimRequest], tokens: &mut TakenTokens<'_>, strangers: &mut StrangerClaims) {
        for one in &self.all {
            if one.allowed && !one.counted && one.one_time.is_none() && one.pq.is_none() {
                let ClaimRequest { caller, now, .. } = &items[one.item];
                let device = DeviceId(one.id.device);
                tokens.refund(caller.user, device);
                if one.is_limited {
                    strangers.give_back(device, *now);
                }
            }
        }
    }

    /// The devices whose bundles need their last-resort key.
    pub fn without_pq_key(&self) -> Vec<Uuid> {
        let devices: HashSet<Uuid> =
            self.all.iter().filter(|one| one.lacks(KeyKind::PqOneTime)).map(|one| one.id.device).collect();
        devices.into_iter().collect()
    }

    /// The devices from which a claim was allowed to take a key of this kind but got none.
    pub fn devices_lacking(&self, kind: KeyKind) -> HashSet<Uuid> {
        self.unmet(kind).into_iter().map(|id| id.device).collect()
    }

    /// The pools from which earlier runs of the same claims may have taken keys.
    pub fn touched_earlier(&self) -> BTreeSet<KeyPool> {
        let earlier = self.all.iter().filter(|one| one.counted).map(|one| DeviceId(one.id.device));
        earlier.flat_map(|device| KeyKind::ALL.map(|kind| (device, kind))).collect()
    }

    /// Completes the answers with the assigned keys. `blocked` are the pools that still have unissued keys.
    pub fn answers(
        self,
        items: &[ClaimRequest],
        answers: Vec<Result<Bundles, StoreError>>,
        blocked: &HashSet<KeyPool>,
    ) -> Vec<Result<ClaimAnswer, StoreError>> {
        let complete = |(answer, item): (Result<Bundles, StoreError>, &ClaimRequest)| {
            answer.map(|answer| self.complete(item, answer, blocked))
        };
        answers.into_iter().zip(items).map(complete).collect()
    }

    fn complete(&self, item: &ClaimRequest, mut answer: Bundles, blocked: &HashSet<KeyPool>) -> ClaimAnswer {
        let mut waiting = Vec::new();
        let mut is_limited = false;
        for bundle in &mut answer.bundles {
            let device = bundle.device_id;
            let index = self.indexes.get(&AssignmentId::of(item, device));
            let Some(one) = index.and_then(|index| self.all.get(*index)) else { continue };
            set_one_time(bundle, one.one_time.clone(), one.allowed);
            if let Some(key) = &one.pq {
                bundle.pq_prekey = Some(key.clone());
            }
            let pools = KeyKind::ALL.map(|kind| (device, kind));
            is_limited |= one.is_limited;
            waiting.extend(pools.into_iter().filter(|pool| one.allowed && one.lacks(pool.1) && blocked.contains(pool)));
        }
        if waiting.is_empty() {
            ClaimAnswer::Done(answer)
        } else {
            ClaimAnswer::Blocked(Box::new(BlockedClaim { request: item.clone(), answer, waiting, is_limited }))
        }
    }

    /// The assignments that need a key of this kind and may take one.
    fn unmet(&self, kind: KeyKind) -> Vec<AssignmentId> {
        self.all.iter().filter(|one| one.allowed && one.lacks(kind)).map(|one| one.id).collect()
    }

    fn get_mut(&mut self, claimer: Uuid, claim: Uuid, device: Uuid) -> Option<&mut Assignment> {
        let index = self.indexes.get(&AssignmentId { claimer, claim, device })?;
        self.all.get_mut(*index)
    }

    /// Assigns keys. Returns the devices that own them.
    fn assign_one_time(&mut self, found: Vec<OneTimeRow>) -> Result<Vec<DeviceId>, StoreError> {
        let mut devices = Vec::with_capacity(found.len());
        for row in found {
            let device = row.2;
            if let Some(one) = self.get_mut(row.0, row.1, device) {
                one.one_time = Some(one_time_key(row)?);
                devices.push(DeviceId(device));
            }
        }
        Ok(devices)
    }

    /// Assigns keys. Returns the devices that own them.
    fn assign_pq(&mut self, found: Vec<PqRow>) -> Result<Vec<DeviceId>, StoreError> {
        let mut devices = Vec::with_capacity(found.len());
        for row in found {
            let device = row.2;
            if let Some(one) = self.get_mut(row.0, row.1, device) {
                one.pq = Some(pq_key(row)?);
                devices.push(DeviceId(device));
            }
        }
        Ok(devices)
    }
}

/// Puts the one-time prekey into a bundle, or the reason why there is none.
pub fn set_one_time(bundle: &mut Bundle, key: Option<OneTimePrekey>, allowed: bool) {
    bundle.one_time = match (&key, allowed) {
        (Some(_), _) => OneTimeOutcome::Claimed,
        (None, true) => OneTimeOutcome::Exhausted,
        (None, false) => OneTimeOutcome::Limited,
    };
    bundle.one_time_prekey = key;
}
