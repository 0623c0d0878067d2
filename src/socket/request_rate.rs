//! Limits the request rate of one connection. An excess request is refused, with the time to wait. A client that
//! ignores this is read more slowly, so that the rate of refusals is limited too. So is one that other limits refuse often,
//! such as that on messages to one user: what it sends is read and decoded before it is refused.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::time::{Sleep, sleep_until};

use crate::domain::token_bucket::TokenBucket;

/// Number of refused requests that cost as much as one accepted request.
const REFUSALS_PER_REQUEST: u32 = 10;
/// The time in which an empty bucket refills. A burst may have as many requests as the rate allows in this time.
const CAPACITY: Duration = Duration::from_secs(10);
/// The debt at which reading pauses. Only refusals cause debt.
const MAX_DEBT: Duration = Duration::from_secs(1);
/// What a request that another limit refused costs, in refill time of a bucket of its own. The bucket also has
/// [`CAPACITY`], so a hundred such requests are read at once, more than a client can have in flight, and then ten a second
/// on average: a refusal is counted when it is sent, so those in flight are read together, with a pause after them.
const LIMITED_COST: Duration = Duration::from_millis(100);
/// Reading resumes once this much of the debt is paid off, or the cost of one refusal if that is more.
const RESUME_AFTER: Duration = Duration::from_millis(20);

/// The rate limit of one connection.
pub struct RequestRate {
    /// Requests per second; 0 turns the limit off.
    per_second: u32,
    bucket: Cell<TokenBucket<Instant>>,
    /// Requests that other limits refused. Its debt only slows reading: it refuses nothing.
    limited: Cell<TokenBucket<Instant>>,
    /// Whether the debt has reached [`MAX_DEBT`], or `limited` is empty. If not, reading continues without looking at the
    /// clock.
    is_overdrawn: Cell<bool>,
    /// Runs while reading is paused. Boxed, because most connections never need it.
    timer: RefCell<Option<Pin<Box<Sleep>>>>,
}

impl RequestRate {
    /// A full bucket: allows `per_second` requests per second, and bursts of ten times as many. 0 turns the limit off.
    #[must_use]
    pub fn new(per_second: u32, now: Instant) -> Self {
        Self {
            per_second,
            bucket: Cell::new(TokenBucket::full(now)),
            limited: Cell::new(TokenBucket::full(now)),
            is_overdrawn: Cell::new(false),
            timer: RefCell::default(),
        }
    }

    /// Counts a request that is to be run and costs as much as `tenths` tenths of an ordinary one. It costs at most a full
    /// bucket.
    ///
    /// # Errors
    /// If the connection is over its rate: the time until a request would be accepted. The request is counted as
    /// refused.
    pub fn take_tenths(&self, tenths: u32, now: Instant) -> Result<(), Duration> {
        if self.per_second == 0 {
            return Ok(());
        }
        let mut bucket = self.bucket.get();
        let taken = bucket.take((self.request_cost() * tenths / 10).min(CAPACITY), CAPACITY, now);
        self.bucket.set(bucket);
        taken.map_err(|wait| {
            self.count_refused(now);
            wait + self.refusal_cost()
        })
    }

    /// Counts a request that was not carried out, for another reason than the rate.
    pub fn count_refused(&self, now: Instant) {
        if self.per_second == 0 {
            return;
        }
        let mut bucket = self.bucket.get();
        bucket.charge(self.refusal_cost(), now);
        self.bucket.set(bucket);
        if bucket.missing(now) >= CAPACITY + MAX_DEBT {
            self.is_overdrawn.set(true);
        }
    }

    /// Counts a request that another limit refused with `rate_limited`.
    pub fn count_limited(&self, now: Instant) {
        if self.per_second == 0 {
            return;
        }
        let mut limited = self.limited.get();
        limited.charge(LIMITED_COST, now);
        self.limited.set(limited);
        if limited.missing(now) > CAPACITY {
            self.is_overdrawn.set(true);
        }
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

    /// The time until another request may be read, or `None` if it may be read now.
    fn wait(&self, now: Instant) -> Option<Duration> {
        if !self.is_overdrawn.get() {
            return None;
        }
        let allowed_missing = (CAPACITY + MAX_DEBT).saturating_sub(RESUME_AFTER.max(self.refusal_cost()));
        let wait = self.bucket.get().missing(now).saturating_sub(allowed_missing);
        let wait = wait.max(self.limited.get().missing(now).saturating_sub(CAPACITY));
        self.is_overdrawn.set(wait > Duration::ZERO);
        Some(wait).filter(|wait| *wait > Duration::ZERO)
    }

    /// What an accepted request costs, in refill time.
    fn request_cost(&self) -> Duration {
        Duration::from_secs(1) / self.per_second.max(1)
    }

    /// What a refused request costs, in refill time.
    fn refusal_cost(&self) -> Duration {
        self.request_cost() / REFUSALS_PER_REQUEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The outcome of requests sent as fast as the server reads them.
    struct RushOutcome {
        taken: u32,
        refused: u32,
        /// When the last request was read.
        until: Instant,
    }

    /// Returns the time at which the connection is read next.
    fn wait(rate: &RequestRate, mut now: Instant) -> Instant {
        while let Some(wait) = rate.wait(now) {
            assert!(wait > Duration::ZERO, "a wait of zero would spin");
            now += wait;
        }
        now
    }

    /// Sends this many requests as fast as they are read, and ignores refusals.
    fn rush(rate: &RequestRate, begin: Instant, requests: u32) -> RushOutcome {
        let mut read = RushOutcome { taken: 0, refused: 0, until: begin };
        for _ in 0..requests {
            read.until = wait(rate, read.until);
            match rate.take(1, read.until) {
                Ok(()) => read.taken += 1,
                Err(_) => read.refused += 1,
            }
        }
        read
    }

    fn seconds(from: Instant, to: Instant) -> f64 {
        (to - from).as_secs_f64()
    }

    impl RequestRate {
        /// Counts ordinary requests.
        fn take(&self, requests: u32, now: Instant) -> Result<(), Duration> {
            self.take_tenths(10 * requests, now)
        }
    }

    #[test]
    fn a_request_that_costs_more_than_one_leaves_room_for_fewer() {
        let start = Instant::now();
        let rate = RequestRate::new(1, start);
        let taken = (0..10).filter(|_| rate.take_tenths(15, start).is_ok()).count();
        assert_eq!(taken, 6, "of ten ordinary ones");
    }

    #[test]
    fn requests_beyond_a_burst_are_refused_with_the_time_to_wait() {
        let start = Instant::now();
        let rate = RequestRate::new(100, start);
        let burst = rush(&rate, start, 1000);
        assert_eq!((burst.taken, burst.until), (1000, start));
        let wait_time = rate.take(1, start).unwrap_err();
        // The cost of a request and of its refusal.
        assert_eq!(wait_time, Duration::from_millis(11));
        assert!(
            rate.take(1, start + wait_time.saturating_sub(Duration::from_micros(1))).is_err(),
            "it is refused before that time"
        );
        let wait_time = rate.take(1, start + wait_time).unwrap_err();
        assert_eq!(wait_time, Duration::from_millis(2), "two refusals were counted in between");
        let later = start + Duration::from_mins(10);
        let burst = rush(&rate, later, 1001);
        assert_eq!((burst.taken, burst.refused), (1000, 1), "after a pause, a burst of the same size is accepted");
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
                if let Err(wait_time) = rate.take(1, now) {
                    refused += 1;
                    // Clients get milliseconds.
                    now += Duration::from_millis(u64::try_from(wait_time.as_nanos().div_ceil(1_000_000)).unwrap());
                    assert_eq!(rate.take(1, now), Ok(()), "refused after {wait_time:?} at {per_second} a second");
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
    fn a_client_that_ignores_refusals_is_read_at_ten_times_its_rate_and_all_its_requests_are_refused() {
        let start = Instant::now();
        let rate = RequestRate::new(100, start);
        assert_eq!(rush(&rate, start, 1000).until, start);
        let into_debt = rush(&rate, start, 1000);
        assert_eq!((into_debt.taken, into_debt.refused, into_debt.until), (0, 1000, start), "the debt is one second");
        let slowed = rush(&rate, start, 5000);
        assert_eq!((slowed.taken, slowed.refused), (0, 5000));
        let took = seconds(start, slowed.until);
        assert!((4.9..5.1).contains(&took), "{took}");
        let wait_time = rate.take(1, slowed.until).unwrap_err();
        assert!(wait_time < Duration::from_millis(1020), "the time to wait is bounded: {wait_time:?}");
        assert_eq!(rate.take(1, slowed.until + wait_time), Ok(()), "a pause is enough");
    }

    #[test]
    fn a_request_refused_for_another_reason_costs_a_tenth_and_slows_reading_too() {
        let start = Instant::now();
        let rate = RequestRate::new(100, start);
        let mut now = start;
        for _ in 0..11_000 {
            now = wait(&rate, now);
            rate.count_refused(now);
        }
        assert_eq!(now, start, "a burst of ten times as many, and the debt");
        assert!(rate.take(1, now).is_err());
        for _ in 0..5000 {
            now = wait(&rate, now);
            rate.count_refused(now);
        }
        assert!((4.9..5.1).contains(&seconds(start, now)), "{}", seconds(start, now));
    }

    #[test]
    fn a_client_that_ignores_another_limit_is_read_ten_times_a_second_and_nothing_else_is_refused() {
        let start = Instant::now();
        let rate = RequestRate::new(100, start);
        let mut now = start;
        for _ in 0..100 {
            now = wait(&rate, now);
            rate.count_limited(now);
        }
        assert_eq!(wait(&rate, now), start, "as many as a client may have in flight, and more");
        for _ in 0..50 {
            rate.count_limited(now);
            now = wait(&rate, now);
        }
        assert!((4.9..5.1).contains(&seconds(start, now)), "{}", seconds(start, now));
        assert_eq!(rate.take(1000, now), Ok(()), "the rate itself is untouched");
        let unlimited = RequestRate::new(0, start);
        (0..1000).for_each(|_| unlimited.count_limited(start));
        assert_eq!(wait(&unlimited, start), start);
    }

    #[test]
    fn frequent_checks_do_not_slow_the_refill() {
        let start = Instant::now();
        let rate = RequestRate::new(100, start);
        assert_eq!(rush(&rate, start, 1000).until, start);
        for micros in 0..10_000 {
            assert_eq!(rate.wait(start + Duration::from_micros(micros)), None);
        }
        assert_eq!(rate.take(1, start + Duration::from_micros(10_001)), Ok(()));
    }

    #[test]
    fn a_limit_of_one_request_per_second_works() {
        let start = Instant::now();
        let rate = RequestRate::new(1, start);
        let (mut now, mut taken) = (start, 0);
        while taken < 13 {
            match rate.take(1, now) {
                Ok(()) => taken += 1,
                Err(wait_time) => now += wait_time,
            }
        }
        assert!((3.2..3.4).contains(&seconds(start, now)), "{}", seconds(start, now));
    }

    #[tokio::test]
    async fn a_paused_reader_is_woken_and_zero_turns_the_limit_off() {
        for (per_second, requests) in [(1000, 25_000), (0, 1_000_000)] {
            let rate = RequestRate::new(per_second, Instant::now());
            for _ in 0..requests {
                std::future::poll_fn(|cx| rate.poll_ready(cx)).await;
                assert!(rate.take(1, Instant::now()).is_ok() || per_second > 0);
            }
        }
    }
}
