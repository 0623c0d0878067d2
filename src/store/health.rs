//! Tracks whether the latest operations found the database available. During an outage it shortens waits and throttles
//! the log.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::StoreError;
use crate::log_throttle::LogThrottle;

/// How long an operation waits for a connection.
pub const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// The same during a known outage, so that clients get an error sooner.
const OUTAGE_ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// At most one failure is logged per interval.
const LOG_EVERY: Duration = Duration::from_mins(1);

/// The availability of a database, as the latest operations found it.
#[derive(Debug)]
pub struct DatabaseHealth {
    /// Whether `outage` is `Some`. Every successful statement reads this, without taking the lock.
    is_unavailable: AtomicBool,
    /// The current outage.
    outage: Mutex<Option<DatabaseOutage>>,
    /// When a server last refused to write.
    last_refused_write: Mutex<Option<Instant>>,
    failures: LogThrottle,
}

#[derive(Clone, Copy, Debug)]
struct DatabaseOutage {
    /// When an operation first found the database unavailable.
    since: Instant,
    /// When an operation last did.
    latest: Instant,
    /// Whether the database answered but refused to write, so that only a successful write ends the outage.
    refuses_writes: bool,
}

impl Default for DatabaseHealth {
    fn default() -> Self {
        Self {
            is_unavailable: AtomicBool::default(),
            outage: Mutex::default(),
            last_refused_write: Mutex::default(),
            failures: LogThrottle::new(LOG_EVERY),
        }
    }
}

impl DatabaseHealth {
    /// How long an operation waits for a connection now; less during a known outage.
    pub fn acquire_timeout(&self) -> Duration {
        if self.is_unavailable() { OUTAGE_ACQUIRE_TIMEOUT } else { ACQUIRE_TIMEOUT }
    }

    /// Whether an operation found the database unavailable and none has succeeded since.
    pub fn is_unavailable(&self) -> bool {
        self.is_unavailable.load(Ordering::Relaxed)
    }

    /// When an operation last found the database unavailable, if none has succeeded since. Requests queued before that
    /// time can fail without being tried.
    pub fn last_outage_at(&self) -> Option<Instant> {
        if !self.is_unavailable() {
            return None;
        }
        self.outage.lock().unwrap_or_else(PoisonError::into_inner).map(|outage| outage.latest)
    }

    /// Whether a connection of this age was opened before a server last refused to write. It may lead to that server,
    /// and so is not used again.
    pub(super) fn may_refuse_writes(&self, age: Duration) -> bool {
        let last = *self.last_refused_write.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| last.elapsed() < age)
    }

    /// Records that the database answered. This ends an outage, unless the database had refused to write.
    pub(super) fn record_answer(&self) {
        self.record(false);
    }

    /// Records that a write succeeded. This ends an outage.
    pub(super) fn record_write(&self) {
        self.record(true);
    }

    fn record(&self, is_write: bool) {
        if !self.is_unavailable() {
            return;
        }
        let mut current = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(outage) = current.take_if(|outage| is_write || !outage.refuses_writes) else { return };
        self.is_unavailable.store(false, Ordering::Relaxed);
        drop(current);
        tracing::info!(seconds = outage.since.elapsed().as_secs(), "the database is back");
    }

    /// Records that the database cannot be reached or refuses to write.
    pub(super) fn record_outage(&self, error: &StoreError) {
        let now = Instant::now();
        let mut current = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        let since = current.map_or(now, |outage| outage.since);
        let refuses_writes = error.is_read_only() || current.is_some_and(|outage| outage.refuses_writes);
        *current = Some(DatabaseOutage { since, latest: now, refuses_writes });
        if error.refuses_writes() {
            *self.last_refused_write.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        }
        self.is_unavailable.store(true, Ordering::Relaxed);
        drop(current);
        self.log_failure(error);
    }

    /// Logs a failure, at most once a minute.
    pub(super) fn log_failure(&self, error: &StoreError) {
        if let Some(failures) = self.failures.count(std::time::Instant::now()) {
            tracing::error!(%error, failures, "the database fails");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_outage_shortens_waits_until_the_database_is_back() {
        let health = DatabaseHealth::default();
        let gone = StoreError::Unavailable(sqlx::Error::PoolTimedOut);
        assert_eq!((health.acquire_timeout(), health.last_outage_at()), (ACQUIRE_TIMEOUT, None));
        let before = Instant::now();
        for _ in 0..2 {
            health.record_outage(&gone);
            assert!(health.last_outage_at().is_some_and(|lost| lost >= before));
            assert_eq!(health.acquire_timeout(), OUTAGE_ACQUIRE_TIMEOUT);
        }
        health.record_answer();
        assert_eq!((health.acquire_timeout(), health.last_outage_at()), (ACQUIRE_TIMEOUT, None));
    }
}
