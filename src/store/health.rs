//! Tracks database availability, as the last operations found it. During an outage it shortens waits and throttles the log.

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
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The same during a known outage, so that clients soon get their error.
const OUTAGE_PATIENCE: Duration = Duration::from_secs(2);
/// Failures are logged once in this time.
const LOG_EVERY: Duration = Duration::from_mins(1);

/// What is known of a database's availability.
#[derive(Debug)]
pub struct Health {
    /// Whether `lost` holds anything. Read without the lock by every statement that succeeds.
    is_lost: AtomicBool,
    lost: Mutex<Option<Outage>>,
    failures: LogThrottle,
}

#[derive(Clone, Copy, Debug)]
struct Outage {
    since: Instant,
    latest: Instant,
}

impl Default for Health {
    fn default() -> Self {
        Self { is_lost: AtomicBool::default(), lost: Mutex::default(), failures: LogThrottle::new(LOG_EVERY) }
    }
}

impl Health {
    /// How long an operation waits for a connection.
    pub fn patience(&self) -> Duration {
        if self.is_lost() { OUTAGE_PATIENCE } else { PATIENCE }
    }

    /// Whether the last operation found the database unreachable.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    /// When the database was last found unreachable, if no operation has succeeded since. What waited then need not be tried.
    pub fn lost_at(&self) -> Option<Instant> {
        if !self.is_lost() {
            return None;
        }
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).map(|outage| outage.latest)
    }

    /// Records that the database did what it was asked.
    pub(super) fn held(&self) {
        if !self.is_lost() {
            return;
        }
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let outage = lost.take();
        self.is_lost.store(false, Ordering::Relaxed);
        drop(lost);
        if let Some(outage) = outage {
            tracing::info!(seconds = outage.since.elapsed().as_secs(), "the database is back");
        }
    }

    /// Records that the database cannot be reached or written.
    pub(super) fn lost(&self, error: &StoreError) {
        let now = Instant::now();
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let since = lost.map_or(now, |outage| outage.since);
        *lost = Some(Outage { since, latest: now });
        self.is_lost.store(true, Ordering::Relaxed);
        drop(lost);
        self.report(error);
    }

    /// Logs a failure, at most once a minute.
    pub(super) fn report(&self, error: &StoreError) {
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
        let health = Health::default();
        let gone = StoreError::Unavailable(sqlx::Error::PoolTimedOut);
        assert_eq!((health.patience(), health.lost_at()), (PATIENCE, None));
        let before = Instant::now();
        for _ in 0..2 {
            health.lost(&gone);
            assert!(health.lost_at().is_some_and(|lost| lost >= before));
            assert_eq!(health.patience(), OUTAGE_PATIENCE);
        }
        health.held();
        assert_eq!((health.patience(), health.lost_at()), (PATIENCE, None));
    }
}
