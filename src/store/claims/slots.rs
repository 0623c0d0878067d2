//! What a batch of claims wants and has of one-time keys, in memory.

use std::collections::{BTreeSet, HashMap, HashSet};

use uuid::Uuid;

use super::{ClaimAnswer, ClaimRequest, Short, tokens::TakenTokens};
use crate::{
    domain::{Bundle, Bundles, DeviceId, KeyKind, OneTimeOutcome},
    store::{StoreError, rows},
};

/// One claim on one device. The key's row that is taken for it bears all three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotId {
    pub claimer: Uuid,
    pub claim: Uuid,
    pub device: Uuid,
}

impl SlotId {
    fn of(item: &ClaimRequest, device: DeviceId) -> Self {
        Self { claimer: item.caller.device.0, claim: item.claim.0, device: device.0 }
    }
}

/// claimer, claim, device, then the key.
pub type SlotOneTimeRow = (Uuid, Uuid, Uuid, i64, Vec<u8>);
/// claimer, claim, device, then the key.
pub type SlotPqRow = (Uuid, Uuid, Uuid, i64, Vec<u8>, Vec<u8>);

struct Slot {
    id: SlotId,
    /// The first of the batch that it serves.
    item: usize,
    has_pq: bool,
    one_time: Option<rows::OneTimeRow>,
    pq: Option<rows::PqRow>,
    /// Whether an earlier run of the same claim took something.
    counted: bool,
    /// Whether it may take what it lacks.
    allowed: bool,
}

impl Slot {
    fn lacks(&self, kind: KeyKind) -> bool {
        match kind {
            KeyKind::OneTime => self.one_time.is_none(),
            KeyKind::PqOneTime => self.has_pq && self.pq.is_none(),
        }
    }
}

/// A slot for each claim and device, in the order of the batch. Repeats within the batch share one.
pub struct Slots {
    slots: Vec<Slot>,
    places: HashMap<SlotId, usize>,
}

impl Slots {
    pub fn of(items: &[ClaimRequest], drafts: &[Result<Bundles, StoreError>]) -> Self {
        let mut all = Self { slots: Vec::new(), places: HashMap::new() };
        for (index, (item, draft)) in items.iter().zip(drafts).enumerate() {
            for bundle in draft.iter().flat_map(|answer| &answer.bundles) {
                let id = SlotId::of(item, bundle.device_id);
                all.places.entry(id).or_insert_with(|| {
                    let has_pq = bundle.suite.has_pq();
                    let (one_time, pq) = (None, None);
                    all.slots.push(Slot { id, item: index, has_pq, one_time, pq, counted: false, allowed: false });
                    all.slots.len() - 1
                });
            }
        }
        all
    }

    /// Those whose bundle has a key of this kind.
    pub fn with(&self, kind: KeyKind) -> Vec<SlotId> {
        self.slots.iter().filter(|slot| kind == KeyKind::OneTime || slot.has_pq).map(|slot| slot.id).collect()
    }

    /// Those that lack a key of this kind and may take one.
    pub fn wanting(&self, kind: KeyKind) -> Vec<SlotId> {
        self.slots.iter().filter(|slot| slot.allowed && slot.lacks(kind)).map(|slot| slot.id).collect()
    }

    fn at(&mut self, claimer: Uuid, claim: Uuid, device: Uuid) -> Option<&mut Slot> {
        let place = self.places.get(&SlotId { claimer, claim, device })?;
        self.slots.get_mut(*place)
    }

    /// Puts keys in. Gives the devices that they are of.
    pub fn put_one_time(&mut self, rows: Vec<SlotOneTimeRow>) -> Vec<DeviceId> {
        let mut devices = Vec::with_capacity(rows.len());
        for (claimer, claim, device, key_id, public_key) in rows {
            if let Some(slot) = self.at(claimer, claim, device) {
                slot.one_time = Some((key_id, public_key));
                devices.push(DeviceId(device));
            }
        }
        devices
    }

    /// The same for post-quantum keys.
    pub fn put_pq(&mut self, rows: Vec<SlotPqRow>) -> Vec<DeviceId> {
        let mut devices = Vec::with_capacity(rows.len());
        for (claimer, claim, device, key_id, public_key, signature) in rows {
            if let Some(slot) = self.at(claimer, claim, device) {
                slot.pq = Some((key_id, public_key, signature));
                devices.push(DeviceId(device));
            }
        }
        devices
    }

    /// Decides which may take keys, once it is known what earlier runs of the same claims took: those were counted then.
    pub fn allow(&mut self, items: &[ClaimRequest], tokens: &mut TakenTokens<'_>) {
        for slot in &mut self.slots {
            slot.counted = slot.one_time.is_some() || slot.pq.is_some();
            let wants_more = slot.lacks(KeyKind::OneTime) || slot.lacks(KeyKind::PqOneTime);
            let ClaimRequest { caller, now, .. } = &items[slot.item];
            slot.allowed = wants_more && (slot.counted || tokens.take(caller.user, DeviceId(slot.id.device), *now));
        }
    }

    /// Gives the tokens back of those that took nothing.
    pub fn give_back(&self, items: &[ClaimRequest], tokens: &mut TakenTokens<'_>) {
        for slot in &self.slots {
            if slot.allowed && !slot.counted && slot.one_time.is_none() && slot.pq.is_none() {
                tokens.give_back(items[slot.item].caller.user, DeviceId(slot.id.device));
            }
        }
    }

    /// Devices whose bundles need the last-resort key.
    pub fn without_pq(&self) -> Vec<Uuid> {
        let devices: HashSet<Uuid> =
            self.slots.iter().filter(|slot| slot.lacks(KeyKind::PqOneTime)).map(|slot| slot.id.device).collect();
        devices.into_iter().collect()
    }

    /// The pools that earlier runs of the same claims may have touched.
    pub fn touched_earlier(&self) -> BTreeSet<(DeviceId, KeyKind)> {
        let earlier = self.slots.iter().filter(|slot| slot.counted).map(|slot| DeviceId(slot.id.device));
        earlier.flat_map(|device| [(device, KeyKind::OneTime), (device, KeyKind::PqOneTime)]).collect()
    }

    /// The answers, given what they are without one-time parts. `unissued` are pools that show keys although none could be
    /// had.
    pub fn answers(
        self,
        items: &[ClaimRequest],
        drafts: Vec<Result<Bundles, StoreError>>,
        unissued: &HashSet<(DeviceId, KeyKind)>,
    ) -> Result<Vec<Result<ClaimAnswer, StoreError>>, StoreError> {
        let mut answers = Vec::with_capacity(items.len());
        for (item, draft) in items.iter().zip(drafts) {
            answers.push(match draft {
                Ok(answer) => Ok(self.answer(item, answer, unissued)?),
                Err(refusal) => Err(refusal),
            });
        }
        Ok(answers)
    }

    fn answer(
        &self,
        item: &ClaimRequest,
        mut answer: Bundles,
        unissued: &HashSet<(DeviceId, KeyKind)>,
    ) -> Result<ClaimAnswer, StoreError> {
        let mut waiting = Vec::new();
        for bundle in &mut answer.bundles {
            let device = bundle.device_id;
            let place = self.places.get(&SlotId::of(item, device));
            let Some(slot) = place.and_then(|place| self.slots.get(*place)) else { continue };
            fill(bundle, slot.one_time.clone(), slot.pq.clone(), slot.allowed)?;
            for kind in [KeyKind::OneTime, KeyKind::PqOneTime] {
                if slot.allowed && slot.lacks(kind) && unissued.contains(&(device, kind)) {
                    waiting.push((device, kind));
                }
            }
        }
        Ok(if waiting.is_empty() {
            ClaimAnswer::Done(answer)
        } else {
            ClaimAnswer::Short(Box::new(Short { request: item.clone(), answer, waiting }))
        })
    }
}

/// Puts the one-time parts into a bundle.
pub fn fill(
    bundle: &mut Bundle,
    one_time: Option<rows::OneTimeRow>,
    pq: Option<rows::PqRow>,
    allowed: bool,
) -> Result<(), StoreError> {
    bundle.one_time = match (&one_time, allowed) {
        (Some(_), _) => OneTimeOutcome::Claimed,
        (None, true) => OneTimeOutcome::Exhausted,
        (None, false) => OneTimeOutcome::Limited,
    };
    bundle.one_time_prekey = one_time.map(rows::one_time).transpose()?;
    if let Some(row) = pq {
        bundle.pq_prekey = Some(rows::pq(row, false)?);
    }
    Ok(())
}
