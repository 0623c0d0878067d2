//! Limits how often a frequent event is logged: at most once per interval, with the number of occurrences.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Decides which events of one kind are logged.
#[derive(Debug)]
pub struct LogThrottle {
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_logged: Option<Instant>,
    /// Events since the last logged one.
    unlogged: u64,
}

impl LogThrottle {
    /// Logs the first event, and from then on at most one per `interval`.
    #[must_use]
    pub const fn new(interval: Duration) -> Self {
        Self { interval, state: Mutex::new(State { last_logged: None, unlogged: 0 }) }
    }

    /// Counts an event. If it is to be logged, returns the number of events since the last logged one, itself included.
    pub fn count(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.unlogged += 1;
        if state.last_logged.is_some_and(|logged| now.saturating_duration_since(logged) < self.interval) {
            return None;
        }
        state.last_logged = Some(now);
        Some(std::mem::take(&mut state.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_per_interval_is_logged_with_the_number_of_all() {
        let (throttle, start) = (LogThrottle::new(Duration::from_mins(1)), Instant::now());
        assert_eq!(throttle.count(start), Some(1));
        for second in [0, 1, 59] {
            assert_eq!(throttle.count(start + Duration::from_secs(second)), None);
        }
        assert_eq!(throttle.count(start + Duration::from_mins(1)), Some(4));
        assert_eq!(throttle.count(start + Duration::from_mins(1)), None);
        assert_eq!(throttle.count(start + Duration::from_hours(1)), Some(2));
    }
}
