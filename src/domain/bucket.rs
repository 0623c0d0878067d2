//! Token buckets: so much at once, then one more per refill. One for each pair of claiming user and target device is the
//! drain limit, by which nobody can empty somebody's pool of one-time prekeys; one for each device bounds what it sends.

use std::{collections::HashMap, hash::Hash, sync::Mutex, time::Duration};

use super::{DeviceId, Timestamp, UserId};

/// Buckets remembered at the most. Full ones are forgotten first, which loses nothing; then all.
const MAX_BUCKETS: usize = 200_000;

/// A token bucket for each key: `burst` tokens at once, then one more per `refill`. Node-local.
pub struct Buckets<K> {
    burst: u32,
    refill: Duration,
    /// When each bucket will be full again, in microseconds since 1970.
    full_at: Mutex<HashMap<K, i64>>,
}

/// Claims by one user that took a key of one device.
pub type DrainLimit = Buckets<(UserId, DeviceId)>;

impl<K: Hash + Eq> Buckets<K> {
    /// A `burst` of 0 turns the limit off.
    #[must_use]
    pub fn new(burst: u32, refill: Duration) -> Self {
        Self { burst, refill, full_at: Mutex::new(HashMap::new()) }
    }

    fn refill_micros(&self) -> i64 {
        i64::try_from(self.refill.as_micros()).unwrap_or(i64::MAX / i64::from(u32::MAX)).max(1)
    }

    /// Takes a token.
    ///
    /// # Errors
    /// Where there is none: how long until there is.
    pub fn take(&self, key: K, now: Timestamp) -> Result<(), Duration> {
        if self.burst == 0 {
            return Ok(());
        }
        let (now, step) = (now.as_micros(), self.refill_micros());
        let capacity = step.saturating_mul(i64::from(self.burst));
        let mut full_at = self.full_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if full_at.len() >= MAX_BUCKETS {
            full_at.retain(|_, full| *full > now);
            if full_at.len() >= MAX_BUCKETS {
                // All of them are in use. Starting over is more generous than refusing everybody, and costs no scan per claim.
                full_at.clear();
            }
        }
        let full = full_at.get(&key).copied().unwrap_or(now).max(now);
        let over = (full - now).saturating_sub(capacity - step);
        if over > 0 {
            return Err(Duration::from_micros(over.unsigned_abs()));
        }
        full_at.insert(key, full.saturating_add(step));
        Ok(())
    }

    /// Returns a token that was not used after all.
    pub fn give_back(&self, key: &K) {
        let step = self.refill_micros();
        let mut full_at = self.full_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(full) = full_at.get_mut(key) {
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
        let taken = |at: Timestamp, tries: usize| (0..tries).filter(|_| limit.take((user, device), at).is_ok()).count();
        assert_eq!(taken(start, 12), 10);
        assert_eq!(taken(start + Duration::from_mins(9), 3), 0);
        assert_eq!(taken(start + Duration::from_mins(10), 3), 1);
        assert_eq!(limit.take((user, device), start + Duration::from_mins(14)), Err(Duration::from_mins(6)));
        limit.give_back(&(user, device));
        assert_eq!(taken(start + Duration::from_mins(10), 3), 1);
        assert_eq!(taken(start + Duration::from_hours(10), 12), 10);
        assert!(
            limit.take((UserId(Uuid::from_u128(3)), device), start).is_ok(),
            "another user has a bucket of its own"
        );
    }

    #[test]
    fn zero_turns_it_off() {
        let limit = DrainLimit::new(0, Duration::from_mins(10));
        let now = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        assert!((0..1000).all(|_| limit.take((UserId(Uuid::nil()), DeviceId(Uuid::nil())), now).is_ok()));
    }
}
