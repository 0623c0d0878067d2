//! Token buckets by key, held in memory. The drain limit has one per pair of claiming user and target device, so that a
//! user cannot empty a pool of one-time prekeys; the send limit has one per sending device.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{DeviceId, Timestamp, UserId, token_bucket::TokenBucket};

/// Maximum number of buckets in memory. Beyond it, full buckets are dropped, which loses nothing; if all are in use,
/// all are dropped.
const MAX_BUCKETS: usize = 200_000;

/// A token bucket per key: `burst` tokens at once, then one more per `refill`. Other nodes have their own buckets.
pub struct KeyedBuckets<K> {
    burst: u32,
    refill: Duration,
    buckets: Mutex<HashMap<K, TokenBucket<Timestamp>>>,
}

/// Limits how many claims of one user may take a key of one device.
pub type DrainLimit = KeyedBuckets<(UserId, DeviceId)>;

impl<K: Hash + Eq> KeyedBuckets<K> {
    /// Starts with full buckets. A `burst` of 0 turns the limit off.
    #[must_use]
    pub fn new(burst: u32, refill: Duration) -> Self {
        // A timestamp has whole microseconds; a shorter refill would round to zero and make tokens free.
        let micros = u64::try_from(refill.as_micros()).unwrap_or(u64::MAX).max(1);
        Self { burst, refill: Duration::from_micros(micros), buckets: Mutex::default() }
    }

    fn buckets(&self) -> MutexGuard<'_, HashMap<K, TokenBucket<Timestamp>>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a token from the bucket of `key`.
    ///
    /// # Errors
    /// The time until the next token, if the bucket is empty.
    pub fn take(&self, key: K, now: Timestamp) -> Result<(), Duration> {
        if self.burst == 0 {
            return Ok(());
        }
        let capacity = self.refill.saturating_mul(self.burst);
        let mut buckets = self.buckets();
        if buckets.len() >= MAX_BUCKETS {
            buckets.retain(|_, bucket| bucket.missing(now) > Duration::ZERO);
            if buckets.len() >= MAX_BUCKETS {
                // All of them are in use. Dropping them lets through more requests than the limit, but refusing would
                // affect every client, and scanning would cost time at each request.
                buckets.clear();
            }
        }
        let bucket = buckets.entry(key).or_insert_with(|| TokenBucket::full(now));
        if bucket.missing(now) > capacity {
            // More than a bucket holds: the clock was set back.
            *bucket = TokenBucket::full(now);
        }
        bucket.take(self.refill, capacity, now)
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
    fn a_bucket_allows_ten_at_once_and_then_one_per_ten_minutes() {
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
    fn a_bucket_that_was_used_in_the_future_is_full() {
        let limit = KeyedBuckets::new(10, Duration::from_mins(10));
        let start = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let taken = |at: Timestamp| (0..12).filter(|_| limit.take(1, at).is_ok()).count();
        assert_eq!(taken(start + Duration::from_hours(10 * 365 * 24)), 10);
        assert_eq!((taken(start), taken(start)), (10, 0), "the clock was set back");
    }

    #[test]
    fn a_burst_of_zero_turns_the_limit_off() {
        let limit = DrainLimit::new(0, Duration::from_mins(10));
        let now = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        assert!((0..1000).all(|_| limit.take((UserId(Uuid::nil()), DeviceId(Uuid::nil())), now).is_ok()));
    }
}
