//! Whether the database can be reached, as its last uses told: how long the next ones wait for it, who need not wait at
//! all, and what the log says.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::StoreError;

/// How long a connection is waited for.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The same once the database is known to be out of reach, so that its clients soon hear of it.
pub const KNOWN_LOSS_PATIENCE: Duration = Duration::from_secs(2);
/// Failures are logged once in so long.
const LOG_EVERY: Duration = Duration::from_mins(1);

/// What is known of a database's reach.
#[derive(Debug, Default)]
pub struct Reach {
    /// Whether `lost` holds anything, for those who come by with good news all the time.
    is_lost: AtomicBool,
    lost: Mutex<Option<Loss>>,
    complaints: Mutex<Complaints>,
}

#[derive(Clone, Copy, Debug)]
struct Loss {
    since: Instant,
    latest: Instant,
}

#[derive(Debug, Default)]
struct Complaints {
    logged: Option<Instant>,
    unlogged: u64,
}

impl Reach {
    /// How long a connection is to be waited for.
    pub fn patience(&self) -> Duration {
        if self.is_lost() { KNOWN_LOSS_PATIENCE } else { PATIENCE }
    }

    /// Whether it was out of reach when it was last tried.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    /// When it was last found out of reach, if it has not been reached since. Whoever was waiting then need not be tried.
    pub fn lost_at(&self) -> Option<Instant> {
        if !self.is_lost() {
            return None;
        }
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).map(|loss| loss.latest)
    }

    /// It did what it was asked.
    pub(super) fn held(&self) {
        if !self.is_lost() {
            return;
        }
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let loss = lost.take();
        self.is_lost.store(false, Ordering::Relaxed);
        drop(lost);
        if let Some(loss) = loss {
            tracing::info!(seconds = loss.since.elapsed().as_secs(), "the database is back");
        }
    }

    /// It could not be reached.
    pub(super) fn lost(&self, error: &StoreError) {
        let now = Instant::now();
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let since = lost.map_or(now, |loss| loss.since);
        *lost = Some(Loss { since, latest: now });
        self.is_lost.store(true, Ordering::Relaxed);
        drop(lost);
        self.complain(error);
    }

    /// Logs a failure, unless one was logged a moment ago.
    pub(super) fn complain(&self, error: &StoreError) {
        let line = self.complaints.lock().unwrap_or_else(PoisonError::into_inner).note(Instant::now());
        if let Some(failures) = line {
            tracing::error!(%error, failures, "the database fails");
        }
    }
}

impl Complaints {
    /// Counts a failure. Gives the number of those that were not logged, if it is time to do so.
    fn note(&mut self, now: Instant) -> Option<u64> {
        self.unlogged += 1;
        if self.logged.is_some_and(|logged| now - logged < LOG_EVERY) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_loss_is_waited_for_less_until_the_database_is_back() {
        let reach = Reach::default();
        let gone = StoreError::Unavailable(sqlx::Error::PoolTimedOut);
        assert_eq!((reach.patience(), reach.lost_at()), (PATIENCE, None));
        let before = Instant::now();
        for _ in 0..2 {
            reach.lost(&gone);
            assert!(reach.lost_at().is_some_and(|lost| lost >= before));
            assert_eq!(reach.patience(), KNOWN_LOSS_PATIENCE);
        }
        reach.held();
        assert_eq!((reach.patience(), reach.lost_at()), (PATIENCE, None));
    }

    #[test]
    fn failures_are_logged_once_a_minute_with_their_number() {
        let mut complaints = Complaints::default();
        let began = Instant::now();
        assert_eq!(complaints.note(began), Some(1));
        for second in [0, 1, 59] {
            assert_eq!(complaints.note(began + Duration::from_secs(second)), None);
        }
        assert_eq!(complaints.note(began + LOG_EVERY), Some(4));
        assert_eq!(complaints.note(began + LOG_EVERY), None);
    }
}
