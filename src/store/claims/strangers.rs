//! Counts the claims of strangers that took keys of a device, for the limit per hour.
//!
//! Each device has a row with the times of the newest such claims, as many as the limit allows. A transaction locks the
//! rows of its devices before it decides anything, so the limit is exact over all nodes and batches. Only claims of
//! strangers to a user who limits them lock and count. Bounded by one row for each device and by the sweep, which deletes
//! rows that are out of use.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    domain::{DeviceId, Timestamp, clock_guard::TOLERATED_AHEAD},
    store::{
        StoreError, rows,
        sql::claims as sql,
        tx::{Column, Tx},
    },
};

/// Every span of this length holds at most as many claims as the limit allows.
const SPAN: Duration = Duration::from_hours(1);

/// The newest claims of strangers on some devices whose rows are locked.
pub struct StrangerClaims {
    limit: usize,
    /// Times in microseconds since 1970, ascending.
    devices: BTreeMap<Uuid, Vec<i64>>,
    changed: BTreeSet<Uuid>,
}

impl StrangerClaims {
    /// Locks and reads the rows of these devices. A `limit` of 0 is no limit: nothing is locked or counted.
    pub async fn lock(
        tx: &mut Tx<'_>,
        devices: BTreeSet<Uuid>,
        limit: u32,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let limit = limit as usize;
        let mut claims = Self { limit, devices: BTreeMap::new(), changed: BTreeSet::new() };
        if limit > 0 {
            let devices: Vec<Uuid> = devices.into_iter().collect();
            let found: Vec<(Uuid, Vec<u8>)> =
                tx.query(sql::LOCK_STRANGER_CLAIMS).bind_ids(&devices).bind(now.to_utc()).fetch_all().await?;
            for (device, taken) in found {
                let mut taken = decode(&taken)?;
                // Claims from further in the future were counted under a wrong clock.
                let latest = (now + TOLERATED_AHEAD).as_micros();
                taken.retain(|at| *at <= latest);
                claims.devices.insert(device, taken);
            }
        }
        Ok(claims)
    }

    /// Counts a claim on a device. Returns `false` if as many as allowed were counted in the last hour.
    pub fn take(&mut self, device: DeviceId, now: Timestamp) -> bool {
        let Some(taken) = self.devices.get_mut(&device.0) else { return true };
        let now = now.as_micros();
        let span = i64::try_from(SPAN.as_micros()).unwrap_or(i64::MAX);
        if taken.iter().rev().take(self.limit).filter(|at| **at > now - span).count() == self.limit {
            return false;
        }
        // The clock of another node may be ahead.
        let at = taken.partition_point(|other| *other <= now);
        taken.insert(at, now);
        self.changed.insert(device.0);
        true
    }

    /// Takes back the count of a claim that took no key.
    pub fn give_back(&mut self, device: DeviceId, now: Timestamp) {
        let Some(taken) = self.devices.get_mut(&device.0) else { return };
        if let Some(at) = taken.iter().rposition(|at| *at == now.as_micros()) {
            taken.remove(at);
        }
    }

    /// Writes what was counted.
    pub async fn write(&self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        let changed: Vec<(Uuid, Vec<u8>, DateTime<Utc>)> = self
            .changed
            .iter()
            .filter_map(|device| {
                let taken = self.devices.get(device)?;
                let newest = DateTime::from_timestamp_micros(*taken.last()?)?;
                Some((*device, encode(&taken[taken.len().saturating_sub(self.limit)..]), newest))
            })
            .collect();
        tx.query(sql::UPDATE_STRANGER_CLAIMS)
            .bind_rows([
                Column::Ids(changed.iter().map(|(device, ..)| *device).collect()),
                Column::Bytes(changed.iter().map(|(_, taken, _)| taken.as_slice()).collect()),
                Column::Times(changed.iter().map(|(.., newest)| *newest).collect()),
            ])
            .execute()
            .await?;
        Ok(())
    }
}

fn encode(taken: &[i64]) -> Vec<u8> {
    taken.iter().flat_map(|at| at.to_be_bytes()).collect()
}

fn decode(bytes: &[u8]) -> Result<Vec<i64>, StoreError> {
    let (taken, rest) = bytes.as_chunks();
    if !rest.is_empty() {
        return Err(rows::corrupt("the length of the times of claims".into()));
    }
    Ok(taken.iter().map(|at| i64::from_be_bytes(*at)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: DeviceId = DeviceId(Uuid::from_u128(1));

    fn at(minutes: u64) -> Timestamp {
        Timestamp::parse("2026-01-01T00:00:00Z").unwrap() + Duration::from_mins(minutes)
    }

    fn claims(limit: usize) -> StrangerClaims {
        StrangerClaims { limit, devices: [(DEVICE.0, Vec::new())].into(), changed: BTreeSet::new() }
    }

    #[test]
    fn every_hour_holds_at_most_as_many_claims_as_allowed() {
        let mut claims = claims(3);
        let taken: Vec<u64> = (0..200).filter(|minute| claims.take(DEVICE, at(*minute))).collect();
        assert_eq!(taken, [0, 1, 2, 60, 61, 62, 120, 121, 122, 180, 181, 182]);
    }

    #[test]
    fn only_the_newest_claims_are_kept_and_they_are_enough() {
        let mut claims = claims(2);
        for minute in [0, 30, 60, 90] {
            assert!(claims.take(DEVICE, at(minute)), "{minute}");
            let all = claims.devices[&DEVICE.0].clone();
            let kept = decode(&encode(&all[all.len().saturating_sub(2)..])).unwrap();
            claims.devices.insert(DEVICE.0, kept);
        }
        assert!(!claims.take(DEVICE, at(119)) && claims.take(DEVICE, at(120)));
    }

    #[test]
    fn a_claim_that_took_no_key_is_not_counted() {
        let mut claims = claims(1);
        assert!(claims.take(DEVICE, at(0)) && !claims.take(DEVICE, at(1)));
        claims.give_back(DEVICE, at(0));
        assert!(claims.take(DEVICE, at(1)));
    }

    #[test]
    fn a_claim_by_a_node_whose_clock_is_ahead_is_counted() {
        let mut claims = claims(2);
        assert!(claims.take(DEVICE, at(10)) && claims.take(DEVICE, at(5)) && !claims.take(DEVICE, at(5)));
        assert_eq!(claims.devices[&DEVICE.0], [at(5).as_micros(), at(10).as_micros()]);
        assert!(!claims.take(DEVICE, at(64)) && claims.take(DEVICE, at(65)));
    }

    #[test]
    fn other_bytes_than_times_are_an_error() {
        assert!(decode(&[0; 7]).is_err() && decode(&[0; 16]).unwrap() == [0, 0] && decode(&[]).unwrap().is_empty());
    }
}
