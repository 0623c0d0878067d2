//! Decides whether a clock may be trusted with deleting data, if there is no other clock to compare it with.
//!
//! The time must follow the monotonic clock and, across restarts, must not be far ahead of the latest time that was
//! recorded, the high-water time. A clock that has jumped is trusted again once it has run with the monotonic clock for
//! ten minutes: a machine that was off for a month is then as good as any.

use std::time::Duration;

use super::Timestamp;

/// A row whose time is further in the future than this was written under a wrong clock: it counts in no limit, and the
/// sweep deletes it. More than the clocks of two nodes may differ.
pub const TOLERATED_AHEAD: Duration = Duration::from_mins(2);
/// A larger difference to the expected time is a jump.
const LARGEST_STEP: Duration = Duration::from_hours(1);
/// How long a clock has to run evenly after a jump.
const CONFIRMED_AFTER: Duration = Duration::from_mins(10);
/// Difference between the two clocks in that time that is no further jump.
const DRIFT: Duration = Duration::from_mins(1);

/// What a clock may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Everything.
    Full,
    /// The clock has jumped back: what is past its time may be deleted, but not what seems to be in the future.
    Behind,
    /// The clock has jumped ahead: nothing may be deleted.
    None,
}

/// The time of day, and the time of the monotonic clock at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The time of day.
    pub now: Timestamp,
    /// The monotonic clock: the time since any fixed moment.
    pub elapsed: Duration,
}

impl Reading {
    /// The time of day that follows from this reading, in microseconds since 1970.
    fn expected_at(self, elapsed: Duration) -> i128 {
        micros(self.now) + signed(elapsed) - signed(self.elapsed)
    }
}

/// Watches one clock.
#[derive(Debug, Default)]
pub struct ClockGuard {
    high_water: Option<Timestamp>,
    /// The latest reading that was trusted.
    trusted: Option<Reading>,
    /// The first reading after a jump.
    jumped: Option<Reading>,
}

impl ClockGuard {
    /// Starts with the high-water time that was recorded last, if there is one.
    #[must_use]
    pub fn new(high_water: Option<Timestamp>) -> Self {
        Self { high_water, trusted: None, jumped: None }
    }

    /// The time to record: the latest that was trusted.
    #[must_use]
    pub fn high_water(&self) -> Option<Timestamp> {
        self.high_water
    }

    /// Judges a reading.
    pub fn judge(&mut self, reading: Reading) -> Trust {
        let now = micros(reading.now);
        let from_trusted = self.trusted.map(|trusted| trusted.expected_at(reading.elapsed));
        let expected = self.high_water.map(micros).into_iter().chain(from_trusted).max();
        let step = expected.map_or(0, |expected| now - expected);
        if step.unsigned_abs() <= LARGEST_STEP.as_micros() {
            self.high_water = self.high_water.max(Some(reading.now));
            (self.trusted, self.jumped) = (Some(reading), None);
            return Trust::Full;
        }
        let is_even =
            |jumped: &Reading| (now - jumped.expected_at(reading.elapsed)).unsigned_abs() <= DRIFT.as_micros();
        match self.jumped.filter(is_even) {
            Some(jumped) if reading.elapsed.saturating_sub(jumped.elapsed) >= CONFIRMED_AFTER => {
                (self.high_water, self.trusted, self.jumped) = (Some(reading.now), Some(reading), None);
                return Trust::Full;
            }
            Some(_) => {}
            None => self.jumped = Some(reading),
        }
        if step > 0 { Trust::None } else { Trust::Behind }
    }
}

fn micros(time: Timestamp) -> i128 {
    time.as_micros().into()
}

fn signed(span: Duration) -> i128 {
    i128::try_from(span.as_micros()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);
    const MONTH: Duration = Duration::from_hours(31 * 24);

    fn start() -> Timestamp {
        Timestamp::parse("2026-06-01T12:00:00Z").unwrap()
    }

    fn at(now: Timestamp, minutes: u32) -> Reading {
        Reading { now, elapsed: MINUTE * minutes }
    }

    #[test]
    fn a_first_reading_and_an_even_clock_are_trusted() {
        let mut guard = ClockGuard::new(None);
        for minutes in [0, 1, 5, 100_000] {
            assert_eq!(guard.judge(at(start() + MINUTE * minutes, minutes)), Trust::Full);
        }
        assert_eq!(guard.high_water(), Some(start() + MINUTE * 100_000));
    }

    #[test]
    fn a_jump_ahead_and_back_within_ten_minutes_never_counts() {
        let mut guard = ClockGuard::new(Some(start()));
        assert_eq!(guard.judge(at(start(), 0)), Trust::Full);
        for minutes in 1..10 {
            assert_eq!(guard.judge(at(start() + MONTH + MINUTE * minutes, minutes)), Trust::None);
        }
        assert_eq!(guard.judge(at(start() + MINUTE * 10, 10)), Trust::Full);
        assert_eq!(guard.high_water(), Some(start() + MINUTE * 10));
    }

    #[test]
    fn a_clock_that_was_off_is_trusted_after_ten_minutes() {
        let mut guard = ClockGuard::new(Some(start()));
        for minutes in 0..10 {
            assert_eq!(guard.judge(at(start() + MONTH + MINUTE * minutes, minutes)), Trust::None);
        }
        assert_eq!(guard.judge(at(start() + MONTH + MINUTE * 10, 10)), Trust::Full);
        assert_eq!(guard.high_water(), Some(start() + MONTH + MINUTE * 10));
    }

    #[test]
    fn a_second_jump_starts_the_ten_minutes_again() {
        let mut guard = ClockGuard::new(Some(start()));
        assert_eq!(guard.judge(at(start() + MONTH, 0)), Trust::None);
        assert_eq!(guard.judge(at(start() + MONTH * 2, 9)), Trust::None);
        assert_eq!(guard.judge(at(start() + MONTH * 2 + MINUTE * 9, 18)), Trust::None);
        assert_eq!(guard.judge(at(start() + MONTH * 2 + MINUTE * 10, 19)), Trust::Full);
    }

    #[test]
    fn a_clock_that_was_set_back_may_delete_what_is_past_its_time() {
        let mut guard = ClockGuard::new(Some(start()));
        assert_eq!(guard.judge(at(start().before(MONTH), 0)), Trust::Behind);
        assert_eq!(guard.judge(at(start().before(MONTH) + MINUTE * 10, 10)), Trust::Full);
        assert_eq!(guard.judge(at(start() + MINUTE * 11, 11)), Trust::None, "the way back is a jump too");
    }

    #[test]
    fn steps_of_less_than_an_hour_are_no_jumps() {
        let mut guard = ClockGuard::new(Some(start()));
        assert_eq!(guard.judge(at(start() + MINUTE * 59, 0)), Trust::Full);
        assert_eq!(guard.judge(at(start() + MINUTE, 1)), Trust::Full);
    }
}
