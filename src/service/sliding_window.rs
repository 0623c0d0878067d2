//! A sliding-window rate limit per key.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::domain::{Refusal, Timestamp};

/// Number of keys above which keys without recent events are removed.
const CLEAN_UP_ABOVE: usize = 10_000;

/// At most `limit` events in any `span`, for each key.
pub struct SlidingWindow<K> {
    limit: usize,
    span: Duration,
    events: Mutex<HashMap<K, VecDeque<Timestamp>>>,
    clean_up_above: AtomicUsize,
}

impl<K: Eq + Hash> SlidingWindow<K> {
    /// Creates a limit. A `limit` of 0 allows everything.
    pub fn new(limit: usize, span: Duration) -> Self {
        Self { limit, span, events: Mutex::default(), clean_up_above: AtomicUsize::new(CLEAN_UP_ABOVE) }
    }

    /// Counts an event.
    ///
    /// # Errors
    /// `rate_limited`, with the time until the next event is allowed. The refused event is not counted.
    pub fn take(&self, key: K, now: Timestamp) -> Result<(), Refusal> {
        if self.limit == 0 {
            return Ok(());
        }
        let since = now.before(self.span);
        let mut all = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() > self.clean_up_above.load(Ordering::Relaxed) {
            all.retain(|_, events| events.back().is_some_and(|last| *last > since));
            // Next when the number has doubled, so that the scans cost constant time per key.
            self.clean_up_above.store((2 * all.len()).max(CLEAN_UP_ABOVE), Ordering::Relaxed);
        }
        let events = all.entry(key).or_default();
        while events.front().is_some_and(|first| *first <= since) {
            events.pop_front();
        }
        match events.front() {
            Some(first) if events.len() >= self.limit => {
                Err(Refusal::RateLimited { retry_after: (*first + self.span).since(now) })
            }
            _ => {
                events.push_back(now);
                Ok(())
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
        assert!(window.take(1, start).is_ok());
        assert!(window.take(1, start + Duration::from_secs(30)).is_ok());
        let refused = window.take(1, start + Duration::from_secs(40)).unwrap_err();
        assert_eq!(refused, Refusal::RateLimited { retry_after: Duration::from_secs(20) });
        assert!(window.take(2, start).is_ok(), "keys are counted separately");
        assert!(window.take(1, start + MINUTE).is_ok());
        assert!(window.take(1, start + Duration::from_secs(61)).is_err());
    }
}
