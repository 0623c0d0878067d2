//! How fast one socket may ask. Who asks faster is refused, and told when to ask again; who goes on all the same is read
//! more slowly, so that refusals are bounded too.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// What a request costs that is carried out, and one that is refused before.
const REQUEST: u32 = 10;
const REFUSAL: u32 = 1;
/// Seconds' worth of requests that may come at once.
const BURST_SECONDS: u32 = 10;
/// How finely a socket in debt is read: it gets this share of a second's worth at a time.
const SLICES: u32 = 50;

/// The allowance of one socket. It looks at the clock only when what it had is used up.
pub struct Pace {
    /// What is earned in a second; 0 turns it off.
    per_second: u32,
    /// What is left. Refusals take it below zero, but hardly deeper than what a second earns.
    left: Cell<i64>,
    /// Until when earnings are in `left`.
    since: Cell<Instant>,
    /// Runs while a socket waits. Boxed, since most sockets never do.
    timer: RefCell<Option<Pin<Box<Sleep>>>>,
}

impl Pace {
    /// So many requests a second, after a burst of ten times as many; 0 turns it off.
    #[must_use]
    pub fn new(requests_per_second: u32) -> Self {
        let per_second = requests_per_second.saturating_mul(REQUEST);
        Self {
            per_second,
            left: Cell::new(per_second.saturating_mul(BURST_SECONDS).into()),
            since: Cell::new(Instant::now()),
            timer: RefCell::default(),
        }
    }

    /// Counts a request that is to be carried out.
    ///
    /// # Errors
    /// Where the socket is over its rate: how long until a request would be taken. It is counted as refused.
    pub fn take(&self) -> Result<(), Duration> {
        if self.per_second == 0 || self.pay() {
            return Ok(());
        }
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> Result<(), Duration> {
        self.earn(now);
        if self.pay() {
            return Ok(());
        }
        self.spend(REFUSAL);
        Err(self.when_left(REQUEST.into()).saturating_duration_since(now))
    }

    /// Counts a request that is refused for another reason.
    pub fn count_refused(&self) {
        if self.per_second > 0 {
            self.spend(REFUSAL);
        }
    }

    /// Ready when another request may be read.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.left.get() > self.deepest() {
            return Poll::Ready(());
        }
        loop {
            let mut timer = self.timer.borrow_mut();
            let Err(until) = self.go_on(Instant::now()) else {
                *timer = None;
                return Poll::Ready(());
            };
            ready!(timer.insert(Box::pin(sleep_until(until))).as_mut().poll(cx));
        }
    }

    /// The debt at which reading waits.
    fn deepest(&self) -> i64 {
        -i64::from(self.per_second.max(REFUSAL))
    }

    /// Takes a slice off a debt that is too deep, or says when that can be done.
    fn go_on(&self, now: Instant) -> Result<(), Instant> {
        let slice = (self.per_second / SLICES).max(REFUSAL);
        let until = self.when_left(self.deepest() + i64::from(slice));
        if now < until {
            return Err(until);
        }
        self.earn(now);
        Ok(())
    }

    /// Takes what a request costs, if there is as much.
    fn pay(&self) -> bool {
        let is_there = self.left.get() >= REQUEST.into();
        if is_there {
            self.spend(REQUEST);
        }
        is_there
    }

    fn spend(&self, cost: u32) {
        self.left.set(self.left.get() - i64::from(cost));
    }

    /// Adds what was earned until now.
    fn earn(&self, now: Instant) {
        let most = self.per_second.saturating_mul(BURST_SECONDS);
        let nanos = now.saturating_duration_since(self.since.get()).as_nanos();
        let earned = nanos.saturating_mul(self.per_second.into()) / Duration::from_secs(1).as_nanos();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        let left = self.left.get() + i64::from(earned);
        if left >= most.into() {
            self.left.set(most.into());
            self.since.set(now);
        } else if earned > 0 {
            // Not `now`: what is not earned in full yet must not be lost, however often this is asked.
            self.since.set(self.since.get() + self.time_for(earned));
            self.left.set(left);
        }
    }

    /// When there will be so much left.
    fn when_left(&self, amount: i64) -> Instant {
        self.since.get() + self.time_for(u32::try_from(amount - self.left.get()).unwrap_or_default())
    }

    /// How long it takes to earn so much, rounded up.
    fn time_for(&self, amount: u32) -> Duration {
        let nanos = u64::from(amount) * 1_000_000_000;
        Duration::from_nanos(nanos.div_ceil(self.per_second.max(1).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What became of requests that were read as fast as the socket is read.
    struct Read {
        taken: u32,
        refused: u32,
        /// When the last was read.
        until: Instant,
    }

    /// Waits until the socket is read, as it would.
    fn wait(pace: &Pace, mut now: Instant) -> Instant {
        while pace.left.get() <= pace.deepest() {
            if let Err(until) = pace.go_on(now) {
                assert!(until > now, "it would spin");
                now = until;
            }
        }
        now
    }

    /// Asks so many times without heeding any refusal.
    fn rush(pace: &Pace, begin: Instant, requests: u32) -> Read {
        let mut read = Read { taken: 0, refused: 0, until: begin };
        for _ in 0..requests {
            read.until = wait(pace, read.until);
            match pace.take_at(read.until) {
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
        let pace = Pace::new(100);
        let start = pace.since.get();
        let burst = rush(&pace, start, 1000);
        assert_eq!((burst.taken, burst.until), (1000, start));
        let told = pace.take_at(start).unwrap_err();
        // What a request costs, and what its refusal did.
        assert_eq!(told, Duration::from_millis(11));
        assert!(pace.take_at(start + told - Duration::from_micros(1)).is_err(), "not before");
        let told = pace.take_at(start + told).unwrap_err();
        assert_eq!(told, Duration::from_millis(2), "two refusals have come in between");
        let later = start + Duration::from_mins(10);
        let burst = rush(&pace, later, 1001);
        assert_eq!((burst.taken, burst.refused), (1000, 1), "after a pause there is a burst again, and no greater one");
    }

    #[test]
    fn whoever_waits_as_told_gets_through_at_the_rate() {
        for rate in [1, 3, 100, 2500, 10_000_000] {
            let pace = Pace::new(rate);
            pace.left.set(0);
            let start = pace.since.get();
            let (mut now, mut refused) = (start, 0);
            for _ in 0..100 {
                if let Err(told) = pace.take_at(now) {
                    refused += 1;
                    // As clients are told: in milliseconds.
                    now += Duration::from_millis(u64::try_from(told.as_nanos().div_ceil(1_000_000)).unwrap());
                    assert_eq!(pace.take_at(now), Ok(()), "at {rate} a second it was told {told:?}");
                }
            }
            let fair = f64::from(refused) * 1.1 / f64::from(rate);
            let took = seconds(start, now);
            assert!(took <= fair + f64::from(refused) / 1000.0 + 1e-6, "{took} s instead of {fair} at {rate} a second");
        }
    }

    #[test]
    fn whoever_goes_on_at_full_speed_stays_refused_and_is_read_ten_times_as_fast_as_served() {
        let pace = Pace::new(100);
        let start = rush(&pace, pace.since.get(), 1000).until;
        let into_debt = rush(&pace, start, 1000);
        assert_eq!((into_debt.taken, into_debt.refused, into_debt.until), (0, 1000, start), "a second's worth");
        let slowed = rush(&pace, start, 5000);
        assert_eq!((slowed.taken, slowed.refused), (0, 5000));
        let took = seconds(start, slowed.until);
        assert!((4.9..5.1).contains(&took), "{took}");
        let told = pace.take_at(slowed.until).unwrap_err();
        assert!(told < Duration::from_millis(1020), "nobody is sent away for longer: {told:?}");
        assert_eq!(pace.take_at(slowed.until + told), Ok(()), "a pause is enough");
    }

    #[test]
    fn what_is_refused_for_other_reasons_costs_a_tenth_and_is_slowed_alike() {
        let pace = Pace::new(100);
        let start = pace.since.get();
        let mut now = start;
        for _ in 0..11_000 {
            now = wait(&pace, now);
            pace.count_refused();
        }
        assert_eq!(now, start, "ten times as many, and the debt");
        assert!(pace.take_at(now).is_err());
        for _ in 0..5000 {
            now = wait(&pace, now);
            pace.count_refused();
        }
        assert!((4.9..5.1).contains(&seconds(start, now)), "{}", seconds(start, now));
    }

    #[test]
    fn asking_often_loses_nothing_of_what_is_earned() {
        let pace = Pace::new(100);
        let start = rush(&pace, pace.since.get(), 1000).until;
        // A thousandth of a second earns one, a millionth nothing yet.
        for micros in 0..10_000 {
            pace.earn(start + Duration::from_micros(micros));
        }
        assert_eq!(pace.take_at(start + Duration::from_micros(10_001)), Ok(()));
    }

    #[test]
    fn one_a_second_is_possible() {
        let pace = Pace::new(1);
        let start = pace.since.get();
        let (mut now, mut taken) = (start, 0);
        while taken < 13 {
            match pace.take_at(now) {
                Ok(()) => taken += 1,
                Err(told) => now += told,
            }
        }
        assert!((3.2..3.4).contains(&seconds(start, now)), "{}", seconds(start, now));
    }

    #[tokio::test]
    async fn a_socket_that_waits_is_woken_and_zero_is_no_bound() {
        for (rate, requests) in [(1000, 25_000), (0, 1_000_000)] {
            let pace = Pace::new(rate);
            for _ in 0..requests {
                std::future::poll_fn(|cx| pace.poll_ready(cx)).await;
                assert!(pace.take().is_ok() || rate > 0);
            }
        }
    }
}
