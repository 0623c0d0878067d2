//! Token buckets by key. One for each pair of claiming user and target device is the drain limit, which keeps a user
//! from emptying somebody's pool of one-time prekeys; one for each device bounds what it sends.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{DeviceId, Timestamp, UserId, token_bucket::TokenBucket};

/// Buckets kept in memory at most. Full ones are forgotten first, which loses nothing; then all.
const MAX_BUCKETS: usize = 200_000;

/// A token bucket for each key: `burst` tokens at once, then one more per `refill`. Node-local.
pub struct KeyedBuckets<K> {
    burst: u32,
    refill: Duration,
    buckets: Mutex<HashMap<K, TokenBucket<Timestamp>>>,
}

/// Claims by one user that took a key of one device.
pub type DrainLimit = KeyedBuckets<(UserId, DeviceId)>;

impl<K: Hash + Eq> KeyedBuckets<K> {
    /// All buckets are full. A `burst` of 0 turns the limit off.
    #[must_use]
    pub fn new(burst: u32, refill: Duration) -> Self {
        // A timestamp has whole microseconds; a refill shorter than one would make tokens free.
        let micros = u64::try_from(refill.as_micros()).unwrap_or(u64::MAX).max(1);
        Self { burst, refill: Duration::from_micros(micros), buckets: Mutex::default() }
    }

    fn buckets(&self) -> MutexGuard<'_, HashMap<K, TokenBucket<Timestamp>>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a token.
    ///
    /// # Errors
    /// How long until there is one, if the bucket is empty.
    pub fn take(&self, key: K, now: Timestamp) -> Result<(), Duration> {
        if self.burst == 0 {
            return Ok(());
        }
        let capacity = self.refill.saturating_mul(self.burst);
        let mut buckets = self.buckets();
        if buckets.len() >= MAX_BUCKETS {
            buckets.retain(|_, bucket| bucket.missing(now) > Duration::ZERO);
            if buckets.len() >= MAX_BUCKETS {
                // All of them are in use. Starting over is more generous than refusing everybody, and costs no scan per
                // claim.
                buckets.clear();
            }
        }
        buckets.entry(key).or_insert_with(|| TokenBucket::full(now)).take(self.refill, capacity, now)
    }

    /// Puts back a token that was not used.
    pub fn refund(&self, key: &K) {
        if let Some(bucket) = self.buckets().get_mut(key) {
            bucket.refund(self.refill);
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
        limit.refund(&(user, device));
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
