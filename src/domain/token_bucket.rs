//! Token bucket: a rate limit that allows bursts. The time is a parameter, from any clock.
//!
//! Tokens are measured in refill time: the cost of a token is the time in which it refills, and the capacity is the
//! refill time of the whole burst. So the only state of a bucket is the time at which it will be full again, and
//! nothing has to be updated as time passes.

use std::time::{Duration, Instant};

use super::Timestamp;

/// A point in time on some clock.
pub trait TimePoint: Copy + Ord {
    /// The point in time `span` later.
    #[must_use]
    fn later(self, span: Duration) -> Self;

    /// The point in time `span` earlier.
    #[must_use]
    fn earlier(self, span: Duration) -> Self;

    /// The time from `start` to `self`; zero if `start` is later.
    #[must_use]
    fn elapsed_from(self, start: Self) -> Duration;
}

impl TimePoint for Timestamp {
    fn later(self, span: Duration) -> Self {
        self + span
    }

    fn earlier(self, span: Duration) -> Self {
        self.before(span)
    }

    fn elapsed_from(self, start: Self) -> Duration {
        self.since(start)
    }
}

impl TimePoint for Instant {
    fn later(self, span: Duration) -> Self {
        self + span
    }

    fn earlier(self, span: Duration) -> Self {
        self.checked_sub(span).unwrap_or(self)
    }

    fn elapsed_from(self, start: Self) -> Duration {
        self.saturating_duration_since(start)
    }
}

/// A token bucket on the clock of `T`.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket<T> {
    full_at: T,
}

impl<T: TimePoint> TokenBucket<T> {
    /// A full bucket.
    #[must_use]
    pub fn full(now: T) -> Self {
        Self { full_at: now }
    }

    /// When the bucket is full, if no more is taken; in the past if it is full.
    #[must_use]
    pub fn full_at(&self) -> T {
        self.full_at
    }

    /// The time until the bucket is full.
    #[must_use]
    pub fn missing(&self, now: T) -> Duration {
        self.full_at.elapsed_from(now)
    }

    /// The time until a bucket of `capacity` holds tokens that refill in `cost`; zero if it does now.
    #[must_use]
    pub fn lacking(&self, cost: Duration, capacity: Duration, now: T) -> Duration {
        (self.missing(now) + cost).saturating_sub(capacity)
    }

    /// Takes tokens that refill in `cost`, if a bucket of `capacity` still holds them.
    ///
    /// # Errors
    /// The time until it holds them; nothing was taken.
    pub fn take(&mut self, cost: Duration, capacity: Duration, now: T) -> Result<(), Duration> {
        let lacking = self.lacking(cost, capacity, now);
        if lacking > Duration::ZERO {
            return Err(lacking);
        }
        self.charge(cost, now);
        Ok(())
    }

    /// Takes tokens that refill in `cost` even if the bucket does not hold them. The bucket may go into debt.
    pub fn charge(&mut self, cost: Duration, now: T) {
        self.full_at = self.full_at.max(now).later(cost);
    }

    /// Puts back tokens that were taken and not used.
    pub fn refund(&mut self, cost: Duration) {
        self.full_at = self.full_at.earlier(cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: Duration = Duration::from_millis(100);
    const TEN: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_is_served_at_once_and_more_as_tokens_refill() {
        let start = Instant::now();
        let mut bucket = TokenBucket::full(start);
        assert_eq!((0..20).filter(|_| bucket.take(TOKEN, TEN, start).is_ok()).count(), 10);
        assert_eq!(bucket.take(TOKEN, TEN, start), Err(TOKEN));
        let (a_bit, too_early) = (Duration::from_nanos(1), start + TOKEN.saturating_sub(Duration::from_nanos(1)));
        assert_eq!(bucket.take(TOKEN, TEN, too_early), Err(a_bit));
        assert_eq!(bucket.take(TOKEN, TEN, start + TOKEN), Ok(()));
        let later = start + Duration::from_hours(1);
        assert_eq!((0..20).filter(|_| bucket.take(TOKEN, TEN, later).is_ok()).count(), 10, "a full bucket stays full");
    }

    #[test]
    fn a_charge_may_put_a_bucket_into_debt_and_a_token_can_be_refunded() {
        let start = Instant::now();
        let mut bucket = TokenBucket::full(start);
        bucket.charge(TEN * 2, start);
        assert_eq!(bucket.missing(start), TEN * 2);
        assert_eq!(bucket.take(TOKEN, TEN, start), Err(TEN + TOKEN));
        bucket.refund(TEN + TOKEN);
        assert_eq!(bucket.take(TOKEN, TEN, start), Ok(()));
    }

    #[test]
    fn a_bucket_works_with_timestamps_too() {
        let start = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let mut bucket = TokenBucket::full(start);
        assert_eq!(bucket.take(TEN, TEN, start), Ok(()));
        assert_eq!(bucket.missing(start + TOKEN), TEN.saturating_sub(TOKEN));
        assert_eq!(bucket.missing(start + TEN * 2), Duration::ZERO);
    }
}
