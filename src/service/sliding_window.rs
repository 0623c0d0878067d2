//! A rate limit that looks back over a span of time, for each key.

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

/// Keys that one window remembers before it forgets those that have nothing in it.
const TIDY_ABOVE: usize = 10_000;

/// At most `limit` events in any `span`, for each key.
pub struct SlidingWindow<K> {
    limit: usize,
    span: Duration,
    events: Mutex<HashMap<K, VecDeque<Timestamp>>>,
    tidy_above: AtomicUsize,
}

impl<K: Eq + Hash> SlidingWindow<K> {
    /// A limit of 0 is none.
    pub fn new(limit: usize, span: Duration) -> Self {
        Self { limit, span, events: Mutex::default(), tidy_above: AtomicUsize::new(TIDY_ABOVE) }
    }

    /// Counts an event; `rate_limited` with the time until one would be allowed if there have been too many.
    pub fn take(&self, key: K, now: Timestamp) -> Result<(), Refusal> {
        if self.limit == 0 {
            return Ok(());
        }
        let since = now.before(self.span);
        let mut all = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() > self.tidy_above.load(Ordering::Relaxed) {
            all.retain(|_, events| events.back().is_some_and(|last| *last > since));
            // Not again before it has doubled: a crowd of keys must not cost a scan each.
            self.tidy_above.store((2 * all.len()).max(TIDY_ABOVE), Ordering::Relaxed);
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
    fn a_window_slides() {
        const MINUTE: Duration = Duration::from_mins(1);
        let start = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let window = SlidingWindow::new(2, MINUTE);
        assert!(window.take(1, start).is_ok());
        assert!(window.take(1, start + Duration::from_secs(30)).is_ok());
        let refused = window.take(1, start + Duration::from_secs(40)).unwrap_err();
        assert_eq!(refused, Refusal::RateLimited { retry_after: Duration::from_secs(20) });
        assert!(window.take(2, start).is_ok(), "another key is counted apart");
        assert!(window.take(1, start + MINUTE).is_ok());
        assert!(window.take(1, start + Duration::from_secs(61)).is_err());
    }
}
