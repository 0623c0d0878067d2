//! Time and randomness as parameters. Nothing else in the server asks the machine for either, so a test can own both.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicI64, Ordering},
};

use chrono::DateTime;
use rand::{CryptoRng, RngExt, SeedableRng, rngs::StdRng};
use uuid::Uuid;

use crate::domain::Timestamp;

/// Where the time of day comes from.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The machine's clock.
    System,
    /// A clock that a test sets, in microseconds since 1970.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// Now, in UTC.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "the one place where the machine's clock is read")]
        match self {
            Self::System => Timestamp::new(chrono::Utc::now()),
            Self::Manual(micros) => {
                Timestamp::new(DateTime::from_timestamp_micros(micros.load(Ordering::Relaxed)).unwrap_or_default())
            }
        }
    }
}

/// Where secrets, codes and identifiers come from: a ChaCha generator seeded by the machine. Clones share it.
#[derive(Clone, Debug)]
pub struct Entropy(Arc<Mutex<StdRng>>);

impl Entropy {
    /// Seeded from the operating system.
    ///
    /// # Errors
    /// Where the operating system has no randomness to give.
    pub fn from_system() -> Result<Self, rand::rngs::SysError> {
        Ok(Self(Arc::new(Mutex::new(StdRng::try_from_rng(&mut rand::rngs::SysRng)?))))
    }

    /// Draws with the generator.
    pub fn draw<T>(&self, with: impl FnOnce(&mut StdRng) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A random (version 4) UUID.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.draw(random_uuid)
    }
}

impl Entropy {
    /// A time-ordered (version 7) UUID (RFC 9562 §5.7): the milliseconds of `now`, then random bits.
    #[must_use]
    pub fn time_ordered_uuid(&self, now: Timestamp) -> Uuid {
        let millis = u64::try_from(now.as_micros() / 1000).unwrap_or_default();
        self.draw(|rng| uuid::Builder::from_unix_timestamp_millis(millis, &rng.random()).into_uuid())
    }
}

fn random_uuid(rng: &mut impl CryptoRng) -> Uuid {
    uuid::Builder::from_random_bytes(rng.random()).into_uuid()
}
