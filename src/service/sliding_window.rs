//! A sliding-window rate limit per key. One event may count for several keys, each with a multiple of the limit.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::domain::{Timestamp, clock_guard::TOLERATED_AHEAD};

/// Number of keys above which keys without recent events are removed.
const CLEAN_UP_ABOVE: usize = 10_000;

/// The times of the events that were counted, oldest first.
type Events<K> = HashMap<K, VecDeque<Timestamp>>;

/// At most `limit` events in any `span`, for each key.
pub struct SlidingWindow<K> {
    limit: usize,
    span: Duration,
    events: Mutex<Events<K>>,
    clean_up_above: AtomicUsize,
}

impl<K: Copy + Eq + Hash> SlidingWindow<K> {
    /// Creates a limit. A `limit` of 0 allows everything.
    pub fn new(limit: usize, span: Duration) -> Self {
        Self { limit, span, events: Mutex::default(), clean_up_above: AtomicUsize::new(CLEAN_UP_ABOVE) }
    }

    /// Counts an event for each of the keys, which have this many times the limit.
    ///
    /// # Errors
    /// The time until the next event is allowed. The refused event is not counted for any key.
    pub fn take(&self, keys: &[(K, u32)], now: Timestamp) -> Result<(), Duration> {
        if self.limit == 0 {
            return Ok(());
        }
        let since = now.before(self.span);
        let mut all = self.events();
        if all.len() > self.clean_up_above.load(Ordering::Relaxed) {
            all.retain(|_, events| events.back().is_some_and(|last| *last > since));
            // Next when the number has doubled, so that the scans cost constant time per key.
            self.clean_up_above.store((2 * all.len()).max(CLEAN_UP_ABOVE), Ordering::Relaxed);
        }
        if let Some(wait) = self.wait_in(&mut all, keys, now) {
            return Err(wait);
        }
        for (key, _) in keys {
            all.entry(*key).or_default().push_back(now);
        }
        Ok(())
    }

    /// Returns the time until the next event of these keys is allowed; `None` if it is now. Counts nothing.
    pub fn wait(&self, keys: &[(K, u32)], now: Timestamp) -> Option<Duration> {
        if self.limit == 0 { None } else { self.wait_in(&mut self.events(), keys, now) }
    }

    fn wait_in(&self, all: &mut Events<K>, keys: &[(K, u32)], now: Timestamp) -> Option<Duration> {
        let since = now.before(self.span);
        let mut wait = None;
        for (key, factor) in keys {
            let Some(events) = all.get_mut(key) else { continue };
            while events.front().is_some_and(|first| *first <= since) {
                events.pop_front();
            }
            // Counted before the clock was set back.
            while events.back().is_some_and(|last| *last > now + TOLERATED_AHEAD) {
                events.pop_back();
            }
            let limit = self.limit.saturating_mul(usize::try_from(*factor).unwrap_or(usize::MAX));
            if let Some(first) = events.front().filter(|_| events.len() >= limit) {
                wait = wait.max(Some((*first + self.span).since(now)));
            }
        }
        wait
    }

    fn events(&self) -> MutexGuard<'_, Events<K>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes back an event that was counted at `at`.
    pub fn give_back(&self, keys: &[(K, u32)], at: Timestamp) {
        let mut all = self.events();
        for (key, _) in keys {
            if let Some(events) = all.get_mut(key)
                && let Some(place) = events.iter().rposition(|event| *event == at)
            {
                events.remove(place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_allowed_again_once_an_older_one_leaves_the_window() {
        const MINUTE: Duration = Duration::from_mins(1);
        let start = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let window = SlidingWindow::new(2, MINUTE);
        let take = |key: u8, second: u64| window.take(&[(key, 1)], start + Duration::from_secs(second));
        assert!(take(1, 0).is_ok());
        assert!(take(1, 30).is_ok());
        assert_eq!(take(1, 40), Err(Duration::from_secs(20)));
        assert!(take(2, 0).is_ok(), "keys are counted separately");
        assert!(take(1, 60).is_ok());
        assert!(take(1, 61).is_err());
        assert_eq!(window.wait(&[(1, 1)], start + Duration::from_secs(61)), Some(Duration::from_secs(29)));
        assert_eq!(window.wait(&[(2, 1)], start), None, "looking counts nothing");
        window.give_back(&[(1, 1)], start + MINUTE);
        assert!(take(1, 61).is_ok(), "the event was taken back");
    }

    #[test]
    fn events_from_the_future_do_not_count() {
        let start = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let window = SlidingWindow::new(2, Duration::from_mins(1));
        let take = |at: Timestamp| window.take(&[(1, 1)], at);
        assert!(take(start).is_ok());
        let ahead = start + Duration::from_hours(10 * 365 * 24);
        assert!(take(ahead).is_ok() && take(ahead).is_ok() && take(ahead).is_err());
        assert!(take(start).is_ok() && take(start).is_ok(), "the clock was set back");
        assert!(take(start).is_err(), "the limit holds again");
    }

    #[test]
    fn an_event_counts_for_all_of_its_keys_or_for_none() {
        let start = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let window = SlidingWindow::new(1, Duration::from_mins(1));
        let take = |narrow: u8| window.take(&[(narrow, 1), (100, 3)], start);
        assert!(take(1).is_ok());
        for _ in 0..5 {
            assert!(take(1).is_err(), "the narrow limit is reached");
        }
        assert!(take(2).is_ok() && take(3).is_ok(), "what was refused is not counted for the wide one");
        assert!(take(4).is_err(), "the wide limit is reached");
        window.give_back(&[(2, 1), (100, 3)], start);
        assert!(take(4).is_ok());
    }

    #[test]
    fn keys_that_others_add_make_no_key_forget_its_events() {
        let start = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let window = SlidingWindow::new(1, Duration::from_mins(1));
        let take = |key: usize, second: u64| window.take(&[(key, 1)], start + Duration::from_secs(second));
        assert!(take(0, 30).is_ok());
        for key in 1..=5 * CLEAN_UP_ABOVE {
            assert!(take(key, 30).is_ok());
        }
        assert!((0..=5 * CLEAN_UP_ABOVE).all(|key| take(key, 89).is_err()));
        // Those whose events have left the window are removed.
        for key in 1..=20 * CLEAN_UP_ABOVE {
            let _ = take(1_000_000 + key, 90 + key as u64);
        }
        assert!(window.events.lock().unwrap().len() < 15 * CLEAN_UP_ABOVE);
    }
}
