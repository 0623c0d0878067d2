//! The limit on the requests of one connection. Excess requests are refused with the time to wait; a client that ignores
//! that is read more slowly, so that refusals are bounded too.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::time::{Sleep, sleep_until};

use crate::domain::token_bucket::TokenBucket;

/// A refused request costs this share of one that is carried out.
const REFUSALS_PER_REQUEST: u32 = 10;
/// The time in which an empty bucket refills: a burst is what comes in within it at the rate.
const CAPACITY: Duration = Duration::from_secs(10);
/// The debt at which reading stops. Only refusals lead into debt.
const MAX_DEBT: Duration = Duration::from_secs(1);
/// Reading goes on once this much of the debt has been paid, or one refusal's worth if that is more.
const SLICE: Duration = Duration::from_millis(20);

/// The rate limit of one connection.
pub struct RequestRate {
    /// Requests per second; 0 turns the limit off.
    per_second: u32,
    bucket: Cell<TokenBucket<Instant>>,
    /// Whether the last charge reached [`MAX_DEBT`], so that other reads need not look at the clock.
    is_overdrawn: Cell<bool>,
    /// Runs while reading waits. Boxed, since most connections never do.
    timer: RefCell<Option<Pin<Box<Sleep>>>>,
}

impl RequestRate {
    /// Allows `per_second` requests per second after a burst of ten times as many; 0 turns the limit off.
    #[must_use]
    pub fn new(per_second: u32, now: Instant) -> Self {
        Self {
            per_second,
            bucket: Cell::new(TokenBucket::full(now)),
            is_overdrawn: Cell::new(false),
            timer: RefCell::default(),
        }
    }

    /// Counts a request that is to be carried out.
    ///
    /// # Errors
    /// The time until a request would be accepted, if the connection is over its rate. The request counts as refused.
    pub fn take(&self, now: Instant) -> Result<(), Duration> {
        if self.per_second == 0 {
            return Ok(());
        }
        let mut bucket = self.bucket.get();
        let taken = bucket.take(self.request_cost(), CAPACITY, now);
        self.bucket.set(bucket);
        taken.map_err(|wait| {
            self.count_refused(now);
            wait + self.refusal_cost()
        })
    }

    /// Counts a request that was refused for another reason.
    pub fn count_refused(&self, now: Instant) {
        if self.per_second == 0 {
            return;
        }
        let mut bucket = self.bucket.get();
        bucket.charge(self.refusal_cost(), now);
        self.is_overdrawn.set(bucket.missing(now) >= CAPACITY + MAX_DEBT);
        self.bucket.set(bucket);
    }

    /// Ready when another request may be read.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_overdrawn.get() {
            return Poll::Ready(());
        }
        loop {
            let now = Instant::now();
            let mut timer = self.timer.borrow_mut();
            let Some(wait) = self.wait(now) else {
                *timer = None;
                return Poll::Ready(());
            };
            ready!(timer.insert(Box::pin(sleep_until((now + wait).into()))).as_mut().poll(cx));
        }
    }

    /// The time until another request may be read; `None` if it may be read now.
    fn wait(&self, now: Instant) -> Option<Duration> {
        if !self.is_overdrawn.get() {
            return None;
        }
        let bearable = (CAPACITY + MAX_DEBT).saturating_sub(SLICE.max(self.refusal_cost()));
        let wait = self.bucket.get().missing(now).saturating_sub(bearable);
        self.is_overdrawn.set(wait > Duration::ZERO);
        Some(wait).filter(|wait| *wait > Duration::ZERO)
    }

    /// The refill time of one request.
    fn request_cost(&self) -> Duration {
        Duration::from_secs(1) / self.per_second.max(1)
    }

    fn refusal_cost(&self) -> Duration {
        self.request_cost() / REFUSALS_PER_REQUEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What became of requests that came as fast as the connection is read.
    struct Read {
        taken: u32,
        refused: u32,
        /// When the last was read.
        until: Instant,
    }

    /// Waits until the connection is read, as it would.
    fn wait(rate: &RequestRate, mut now: Instant) -> Instant {
        while let Some(wait) = rate.wait(now) {
            assert!(wait > Duration::ZERO, "it would spin");
            now += wait;
        }
        now
    }

    /// Sends that many requests and ignores every refusal.
    fn rush(rate: &RequestRate, begin: Instant, requests: u32) -> Read {
        let mut read = Read { taken: 0, refused: 0, until: begin };
        for _ in 0..requests {
            read.until = wait(rate, read.until);
            match rate.take(read.until) {
                Ok(()) => read.taken += 1,
                Err(_) => read.refused += 1,
            }
        }
        read
    }

    fn seconds(from: Instant, to: Instant) -> f64 {
        (to - from).as_secs_f64()
    }

    #[test]
    fn a_burst_is_free_and_what_goes_beyond_it_is_refused_and_told_when_to_come() {
        let start = Instant::now();
        let rate = RequestRate::new(100, start);
        let burst = rush(&rate, start, 1000);
        assert_eq!((burst.taken, burst.until), (1000, start));
        let told = rate.take(start).unwrap_err();
        // What a request costs, and what its refusal did.
        assert_eq!(told, Duration::from_millis(11));
        assert!(rate.take(start + told.saturating_sub(Duration::from_micros(1))).is_err(), "not before");
        let told = rate.take(start + told).unwrap_err();
        assert_eq!(told, Duration::from_millis(2), "two refusals have come in between");
        let later = start + Duration::from_mins(10);
        let burst = rush(&rate, later, 1001);
        assert_eq!((burst.taken, burst.refused), (1000, 1), "after a pause there is a burst again, and no greater one");
    }

    #[test]
    fn a_client_that_waits_for_retry_after_is_served_at_the_rate() {
        for per_second in [1, 3, 100, 2500, 10_000_000] {
            let start = Instant::now();
            let rate = RequestRate::new(per_second, start);
            let mut empty = TokenBucket::full(start);
            empty.charge(CAPACITY, start);
            rate.bucket.set(empty);
            let (mut now, mut refused) = (start, 0);
            for _ in 0..100 {
                if let Err(told) = rate.take(now) {
                    refused += 1;
                    // Clients get milliseconds.
                    now += Duration::from_millis(u64::try_from(told.as_nanos().div_ceil(1_000_000)).unwrap());
                    assert_eq!(rate.take(now), Ok(()), "at {per_second} a second it was told {told:?}");
                }
            }
            let fair = f64::from(refused) * 1.1 / f64::from(per_second);
            let took = seconds(start, now);
            assert!(
                took <= fair + f64::from(refused) / 1000.0 + 1e-6,
                "{took} s instead of {fair} at {per_second} a second"
            );
        }
    }

    #[test]
    fn a_client_that_ignores_refusals_stays_refused_and_is_read_at_ten_times_the_rate() {
        let start = Instant::now();
        let rate = RequestRate::new(100, start);
        assert_eq!(rush(&rate, start, 1000).until, start);
        let into_debt = rush(&rate, start, 1000);
        assert_eq!((into_debt.taken, into_debt.refused, into_debt.until), (0, 1000, start), "a second's worth");
        let slowed = rush(&rate, start, 5000);
        assert_eq!((slowed.taken, slowed.refused), (0, 5000));
        let took = seconds(start, slowed.until);
        assert!((4.9..5.1).contains(&took), "{took}");
        let told = rate.take(slowed.until).unwrap_err();
        assert!(told < Duration::from_millis(1020), "nobody is sent away for longer: {told:?}");
        assert_eq!(rate.take(slowed.until + told), Ok(()), "a pause is enough");
    }

    #[test]
    fn what_is_refused_for_other_reasons_costs_a_tenth_and_is_slowed_alike() {
        let start = Instant::now();
        let rate = RequestRate::new(100, start);
        let mut now = start;
        for _ in 0..11_000 {
            now = wait(&rate, now);
            rate.count_refused(now);
        }
        assert_eq!(now, start, "ten times as many, and the debt");
        assert!(rate.take(now).is_err());
        for _ in 0..5000 {
            now = wait(&rate, now);
            rate.count_refused(now);
        }
        assert!((4.9..5.1).contains(&seconds(start, now)), "{}", seconds(start, now));
    }

    #[test]
    fn asking_often_loses_nothing_of_what_is_earned() {
        let start = Instant::now();
        let rate = RequestRate::new(100, start);
        assert_eq!(rush(&rate, start, 1000).until, start);
        for micros in 0..10_000 {
            assert_eq!(rate.wait(start + Duration::from_micros(micros)), None);
        }
        assert_eq!(rate.take(start + Duration::from_micros(10_001)), Ok(()));
    }

    #[test]
    fn one_a_second_is_possible() {
        let start = Instant::now();
        let rate = RequestRate::new(1, start);
        let (mut now, mut taken) = (start, 0);
        while taken < 13 {
            match rate.take(now) {
                Ok(()) => taken += 1,
                Err(told) => now += told,
            }
        }
        assert!((3.2..3.4).contains(&seconds(start, now)), "{}", seconds(start, now));
    }

    #[tokio::test]
    async fn a_socket_that_waits_is_woken_and_zero_is_no_bound() {
        for (per_second, requests) in [(1000, 25_000), (0, 1_000_000)] {
            let rate = RequestRate::new(per_second, Instant::now());
            for _ in 0..requests {
                std::future::poll_fn(|cx| rate.poll_ready(cx)).await;
                assert!(rate.take(Instant::now()).is_ok() || per_second > 0);
            }
        }
    }
}
