//! The drain limit: nobody may empty somebody's pool of one-time prekeys.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use super::{DeviceId, Timestamp, UserId};

/// Pairs remembered at the most. Full buckets are forgotten first, which loses nothing; then all.
const MAX_PAIRS: usize = 200_000;

/// A token bucket for each pair of claiming user and target device: `burst` claims that took a key, then one more per
/// `refill`. Node-local.
pub struct DrainLimit {
    burst: u32,
    refill: Duration,
    /// When each pair's bucket will be full again, in microseconds since 1970.
    full_at: Mutex<HashMap<(UserId, DeviceId), i64>>,
}

impl DrainLimit {
    /// A `burst` of 0 turns the limit off.
    #[must_use]
    pub fn new(burst: u32, refill: Duration) -> Self {
        Self { burst, refill, full_at: Mutex::default() }
    }

    fn refill_micros(&self) -> i64 {
        i64::try_from(self.refill.as_micros()).unwrap_or(i64::MAX / i64::from(u32::MAX)).max(1)
    }

    /// Takes a token. `false` where the pair is past its limit.
    pub fn take(&self, user: UserId, target: DeviceId, now: Timestamp) -> bool {
        if self.burst == 0 {
            return true;
        }
        let (now, step) = (now.as_micros(), self.refill_micros());
        let capacity = step.saturating_mul(i64::from(self.burst));
        let mut full_at = self.full_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if full_at.len() >= MAX_PAIRS {
            full_at.retain(|_, full| *full > now);
            if full_at.len() >= MAX_PAIRS {
                // All of them are in use. Starting over is more generous than refusing everybody, and costs no scan per claim.
                full_at.clear();
            }
        }
        let full = full_at.get(&(user, target)).copied().unwrap_or(now).max(now);
        if full - now > capacity - step {
            return false;
        }
        full_at.insert((user, target), full.saturating_add(step));
        true
    }

    /// Returns a token whose claim did not take a key after all.
    pub fn give_back(&self, user: UserId, target: DeviceId) {
        let step = self.refill_micros();
        let mut full_at = self.full_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(full) = full_at.get_mut(&(user, target)) {
            *full -= step;
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn ten_at_once_then_one_per_ten_minutes() {
        let limit = DrainLimit::new(10, Duration::from_mins(10));
        let (user, device) = (UserId(Uuid::from_u128(1)), DeviceId(Uuid::from_u128(2)));
        let start = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let taken = |at: Timestamp, tries: usize| (0..tries).filter(|_| limit.take(user, device, at)).count();
        assert_eq!(taken(start, 12), 10);
        assert_eq!(taken(start + Duration::from_mins(9), 3), 0);
        assert_eq!(taken(start + Duration::from_mins(10), 3), 1);
        limit.give_back(user, device);
        assert_eq!(taken(start + Duration::from_mins(10), 3), 1);
        assert_eq!(taken(start + Duration::from_hours(10), 12), 10);
        assert!(limit.take(UserId(Uuid::from_u128(3)), device, start), "another user has a bucket of its own");
    }

    #[test]
    fn zero_turns_it_off() {
        let limit = DrainLimit::new(0, Duration::from_mins(10));
        let now = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        assert!((0..1000).all(|_| limit.take(UserId(Uuid::nil()), DeviceId(Uuid::nil()), now)));
    }
}
