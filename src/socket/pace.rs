//! How fast one socket may ask. Who asks faster is read more slowly, which TCP tells them; no request is refused for it.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// What a request costs that a use case sees, and one that is answered before (an unknown op, one too many in flight).
pub const REQUEST: u32 = 10;
pub const REFUSED: u32 = 1;
/// Seconds' worth of requests that may come at once.
const BURST_SECONDS: u32 = 10;
/// How finely a socket over its rate is served: it gets this share of a second's requests at a time.
const SLICES: u32 = 50;

/// The allowance of one socket. It looks at the clock only when what it had is used up.
pub struct Pace {
    /// What is earned in a second; 0 turns it off.
    per_second: u32,
    left: Cell<u32>,
    /// Since when more is earned.
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
            left: Cell::new(per_second.saturating_mul(BURST_SECONDS)),
            since: Cell::new(Instant::now()),
            timer: RefCell::default(),
        }
    }

    /// Counts a request.
    pub fn count(&self, cost: u32) {
        self.left.set(self.left.get().saturating_sub(cost));
    }

    /// Ready when another request may be read.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.per_second == 0 || self.left.get() > 0 {
            return Poll::Ready(());
        }
        loop {
            let mut timer = self.timer.borrow_mut();
            let Err(until) = self.refill(Instant::now()) else {
                *timer = None;
                return Poll::Ready(());
            };
            ready!(timer.insert(Box::pin(sleep_until(until))).as_mut().poll(cx));
        }
    }

    /// Adds what was earned, or says when there will be something to add.
    fn refill(&self, now: Instant) -> Result<(), Instant> {
        let slice = (self.per_second / SLICES).max(REQUEST);
        let earned = self.earned(now);
        if earned < slice {
            let wait = Duration::from_secs(1).mul_f64(f64::from(slice) / f64::from(self.per_second));
            // A microsecond more, against rounding.
            return Err(self.since.get() + wait + Duration::from_micros(1));
        }
        self.left.set(earned);
        self.since.set(now);
        Ok(())
    }

    fn earned(&self, now: Instant) -> u32 {
        let micros = now.saturating_duration_since(self.since.get()).as_micros();
        let earned = micros * u128::from(self.per_second) / 1_000_000;
        let most = self.per_second.saturating_mul(BURST_SECONDS);
        u32::try_from(earned).unwrap_or(most).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads so many requests from then on, as a socket would, and gives when that is done.
    fn read(pace: &Pace, begin: Instant, requests: u32, cost: u32) -> Instant {
        let mut now = begin;
        for _ in 0..requests {
            while pace.left.get() == 0 {
                if let Err(until) = pace.refill(now) {
                    assert!(until > now, "it would spin");
                    now = until;
                }
            }
            pace.count(cost);
        }
        now
    }

    fn seconds(from: Instant, to: Instant) -> f64 {
        (to - from).as_secs_f64()
    }

    #[test]
    fn a_burst_is_free_and_what_follows_has_the_rate() {
        let pace = Pace::new(100);
        let start = pace.since.get();
        assert_eq!(read(&pace, start, 1000, REQUEST), start);
        let slowed = read(&pace, start, 500, REQUEST);
        assert!((4.9..5.1).contains(&seconds(start, slowed)), "{}", seconds(start, slowed));
        let later = slowed + Duration::from_mins(10);
        assert!(seconds(later, read(&pace, later, 1000, REQUEST)) < 0.1, "after a pause there is a burst again");
        assert!(seconds(later, read(&pace, later, 100, REQUEST)) > 0.9, "but no greater one");
    }

    #[test]
    fn what_no_use_case_sees_costs_a_tenth() {
        let pace = Pace::new(100);
        let start = pace.since.get();
        assert_eq!(read(&pace, start, 10_000, REFUSED), start);
        let slowed = read(&pace, start, 5000, REFUSED);
        assert!((4.9..5.1).contains(&seconds(start, slowed)), "{}", seconds(start, slowed));
    }

    #[test]
    fn one_a_second_is_possible() {
        let pace = Pace::new(1);
        let start = pace.since.get();
        read(&pace, start, 10, REQUEST);
        let slowed = read(&pace, start, 3, REQUEST);
        assert!((2.9..3.1).contains(&seconds(start, slowed)), "{}", seconds(start, slowed));
    }

    #[tokio::test]
    async fn a_socket_that_waits_is_woken_and_zero_is_no_bound() {
        for (rate, requests) in [(1000, 11_000), (0, 1_000_000)] {
            let pace = Pace::new(rate);
            for _ in 0..requests {
                std::future::poll_fn(|cx| pace.poll_ready(cx)).await;
                pace.count(REQUEST);
            }
        }
    }
}
