//! Keeps a node with a wrong clock from deleting data.
//!
//! PostgreSQL's clock decides what is past its time. The node compares its own with it, and uses PostgreSQL's time if they
//! differ by more than [`WARN_SKEW`], so that a wrong clock ends no session and no code early. SQLite has no clock of its
//! own, so a [`ClockGuard`] decides whether this node's is right.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use super::Service;
use crate::{
    domain::{
        Timestamp,
        clock_guard::{ClockGuard, Reading, Trust},
    },
    store::{Cutoff, StoreError},
};

/// Interval between checks.
const EVERY: Duration = Duration::from_mins(1);
/// Interval at which the node looks whether its clock was set, which calls for a check at once.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A larger difference to the clock of the database is logged, and corrected in [`Service::now`].
const WARN_SKEW: Duration = Duration::from_secs(5);
/// With a larger difference to the clock of the database, the node is not ready and deletes nothing.
const MAX_SKEW: Duration = Duration::from_mins(1);

/// Interval between corrections of the times of accounts, for a wrong clock that no check has noticed.
const CORRECT_ACCOUNTS_EVERY: Duration = Duration::from_hours(24);

/// What is known about the clock of this node.
#[derive(Debug, Default)]
pub struct ClockCheck {
    /// Seconds by which the clock is ahead of the database's; negative if it is behind.
    skew: i64,
    /// Whether the difference is larger than [`MAX_SKEW`].
    is_wrong: bool,
    /// On SQLite, after the first check.
    guard: Option<ClockGuard>,
    /// The high-water time in the database.
    recorded: Option<Timestamp>,
    /// What the guard found last.
    trust: Option<Trust>,
    /// When the times of accounts were last corrected, by the monotonic clock; `None` before the first time, and since the
    /// clock was found wrong.
    accounts_corrected: Option<Duration>,
}

/// Checks the clock every minute, and as soon as it is set. Never returns.
pub async fn check_clock_forever(service: Arc<Service>) {
    loop {
        // Before the check, so that a change during it is noticed too.
        let (now, elapsed) = (service.clock.now(), service.clock.elapsed());
        service.check_clock().await;
        let next = tokio::time::Instant::now() + EVERY;
        while tokio::time::Instant::now() < next {
            tokio::time::sleep(LOOK_EVERY).await;
            let expected = now + service.clock.elapsed().saturating_sub(elapsed);
            if difference(service.clock.now(), expected) > WARN_SKEW {
                break;
            }
        }
    }
}

impl Service {
    /// Checks the clock. Call it before the node serves.
    pub async fn check_clock(&self) {
        if let Err(error) = self.cutoff().await {
            tracing::warn!(%error, "cannot compare the clock with the database's");
        }
    }

    /// The time of day: the clock's, or PostgreSQL's if the clock was found to be wrong.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let (at, micros) = (self.clock.now(), self.clock_correction.load(Ordering::Relaxed));
        let span = Duration::from_micros(micros.unsigned_abs());
        if micros < 0 { at.before(span) } else { at + span }
    }

    /// Whether the clock is so wrong that the node must not serve.
    #[must_use]
    pub fn is_clock_wrong(&self) -> bool {
        self.clock_check().is_wrong
    }

    /// Seconds by which the clock is ahead of the database's; negative if it is behind. 0 on SQLite.
    #[must_use]
    pub fn clock_skew(&self) -> i64 {
        self.clock_check().skew
    }

    /// Whether the clock may decide what is deleted and approved, as the last check found.
    #[must_use]
    pub fn is_clock_trusted(&self) -> bool {
        let check = self.clock_check();
        !check.is_wrong && check.trust.is_none_or(|trust| trust == Trust::Full)
    }

    fn clock_check(&self) -> std::sync::MutexGuard<'_, ClockCheck> {
        self.clock_check.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the clock, and returns up to when rows are past their time; `None` if the clock is not trusted, so that
    /// nothing may be deleted.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub(super) async fn cutoff(&self) -> Result<Option<Cutoff>, StoreError> {
        if self.store.kind() == "sqlite" { self.guarded_cutoff().await } else { self.compared_cutoff().await }
    }

    /// Whether the times of accounts are to be corrected: at the start, after the clock was wrong, and once a day, because
    /// it reads all of them. Counts as done, unless [`Self::accounts_were_not_corrected`] is called.
    pub(super) fn must_correct_accounts(&self) -> bool {
        let (now, mut check) = (self.clock.elapsed(), self.clock_check());
        let last = check.accounts_corrected;
        let is_due = last.is_none_or(|last| now.saturating_sub(last) >= CORRECT_ACCOUNTS_EVERY);
        if is_due {
            check.accounts_corrected = Some(now);
        }
        is_due
    }

    /// Lets the times of accounts be corrected again.
    pub(super) fn accounts_were_not_corrected(&self) {
        self.clock_check().accounts_corrected = None;
    }

    /// On PostgreSQL: compares the clock with the database's.
    async fn compared_cutoff(&self) -> Result<Option<Cutoff>, StoreError> {
        let (own, database) = loop {
            let (before, began) = (self.clock.now(), self.clock.elapsed());
            let database = self.clock.of_database(self.store.clock(before).await?);
            let took = self.clock.elapsed().saturating_sub(began);
            // If the clock was set meanwhile, the times cannot be compared.
            if difference(self.clock.now(), before + took) <= WARN_SKEW {
                // The database read its clock about halfway.
                break (before + took / 2, database);
            }
        };
        let ahead = own.since(database);
        let skew = difference(own, database);
        let is_wrong = skew > MAX_SKEW;
        let seconds = i64::try_from(skew.as_secs()).unwrap_or(i64::MAX) * if ahead > Duration::ZERO { 1 } else { -1 };
        let correction = if skew > WARN_SKEW { database.as_micros() - own.as_micros() } else { 0 };
        self.clock_correction.store(correction, Ordering::Relaxed);
        let mut check = self.clock_check();
        let was_wrong = std::mem::replace(&mut check.is_wrong, is_wrong);
        check.skew = seconds;
        if is_wrong {
            check.accounts_corrected = None;
        }
        drop(check);
        self.metrics.clock_skew.set_signed(seconds);
        self.metrics.clock_trusted.set(u64::from(!is_wrong));
        if is_wrong && !was_wrong {
            tracing::error!(
                seconds,
                "the clock of this node differs from the database's by more than a minute: it is not ready and deletes \
                 nothing; set the clock"
            );
        } else if skew > WARN_SKEW {
            tracing::warn!(seconds, "the clock of this node differs from the database's; set it");
        } else if was_wrong {
            tracing::info!("the clock of this node is right again");
        }
        Ok((!is_wrong).then_some(Cutoff { now: database, and_future: true }))
    }

    /// On SQLite: the guard decides, and its high-water time is recorded once a minute.
    async fn guarded_cutoff(&self) -> Result<Option<Cutoff>, StoreError> {
        let needs_guard = self.clock_check().guard.is_none();
        let recorded = if needs_guard { self.store.high_water().await? } else { None };
        let reading = Reading { now: self.clock.now(), elapsed: self.clock.elapsed() };
        let (trust, to_record) = {
            let mut check = self.clock_check();
            if check.guard.is_none() {
                (check.guard, check.recorded) = (Some(ClockGuard::new(recorded)), recorded);
            }
            let Some(guard) = &mut check.guard else { return Ok(None) };
            let trust = guard.judge(reading);
            let high_water = guard.high_water();
            let is_news =
                |at: &Timestamp| check.recorded.is_none_or(|recorded| at.since(recorded) >= EVERY || *at < recorded);
            let to_record = high_water.filter(is_news);
            if check.trust.replace(trust) != Some(trust) {
                log_trust(trust);
            }
            if trust != Trust::Full {
                check.accounts_corrected = None;
            }
            (trust, to_record)
        };
        self.metrics.clock_trusted.set(u64::from(trust == Trust::Full));
        if let Some(at) = to_record {
            self.store.record_high_water(at).await?;
            self.clock_check().recorded = Some(at);
        }
        Ok((trust != Trust::None).then_some(Cutoff { now: reading.now, and_future: trust == Trust::Full }))
    }
}

/// The time between two instants, whichever is first.
fn difference(one: Timestamp, other: Timestamp) -> Duration {
    one.since(other).max(other.since(one))
}

/// Logs what the guard has found, if it is not what it found before.
fn log_trust(trust: Trust) {
    match trust {
        Trust::Full => tracing::debug!("the clock is trusted"),
        Trust::Behind => tracing::warn!(
            "the clock was set back by more than an hour; what seems to be in the future is kept until the clock has run \
             evenly for ten minutes"
        ),
        Trust::None => tracing::warn!(
            "the clock is ahead of the last time that was recorded by more than an hour; nothing is deleted until it has run \
             evenly for ten minutes"
        ),
    }
}
