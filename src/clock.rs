//! Time and randomness as parameters. No other module reads the system clock or the system's
//! randomness (`clippy.toml` enforces it), so a test controls both.

use std::{
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::DateTime;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use uuid::Uuid;

use crate::domain::Timestamp;

/// The source of the current time.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The machine's clock.
    System,
    /// A clock that a test sets.
    Manual(Arc<ManualClock>),
}

/// A clock that a test sets.
#[derive(Debug, Default)]
pub struct ManualClock {
    /// The time of day, in microseconds since 1970.
    pub now: AtomicI64,
    /// The monotonic clock, in microseconds.
    pub elapsed: AtomicI64,
    /// Whether it stands for the clock of the database too.
    pub is_of_database: bool,
}

impl Clock {
    /// The time in UTC, to the microsecond.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "the one place where the machine's clock is read")]
        match self {
            Self::System => Timestamp::new(chrono::Utc::now()),
            Self::Manual(clock) => {
                Timestamp::new(DateTime::from_timestamp_micros(clock.now.load(Ordering::Relaxed)).unwrap_or_default())
            }
        }
    }

    /// The time of the database's clock, which was read as `at`.
    #[must_use]
    pub fn of_database(&self, at: Timestamp) -> Timestamp {
        match self {
            Self::Manual(clock) if clock.is_of_database => self.now(),
            _ => at,
        }
    }

    /// The monotonic clock: the time since a moment that stays the same while the process runs.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        match self {
            Self::System => START.elapsed(),
            Self::Manual(clock) => {
                Duration::from_micros(u64::try_from(clock.elapsed.load(Ordering::Relaxed)).unwrap_or_default())
            }
        }
    }
}

/// The source of secrets, codes and identifiers: a ChaCha generator seeded by the machine. Clones share it.
#[derive(Clone, Debug)]
pub struct Entropy(Arc<Mutex<StdRng>>);

impl Entropy {
    /// A generator seeded by the operating system.
    ///
    /// # Errors
    /// If the operating system cannot provide randomness.
    pub fn from_system() -> Result<Self, rand::rngs::SysError> {
        Ok(Self(Arc::new(Mutex::new(StdRng::try_from_rng(&mut rand::rngs::SysRng)?))))
    }

    /// Calls `with` with the generator, and returns its result.
    pub fn draw<T>(&self, with: impl FnOnce(&mut StdRng) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A random (version 4) UUID.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        uuid::Builder::from_random_bytes(self.draw(RngExt::random)).into_uuid()
    }

    /// A time-ordered (version 7) UUID (RFC 9562 §5.7): the milliseconds of `now`, then random bits.
    #[must_use]
    pub fn time_ordered_uuid(&self, now: Timestamp) -> Uuid {
        let millis = u64::try_from(now.as_micros() / 1000).unwrap_or_default();
        uuid::Builder::from_unix_timestamp_millis(millis, &self.draw(RngExt::random)).into_uuid()
    }
}
