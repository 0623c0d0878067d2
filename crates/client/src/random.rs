//! Randomness: message and claim ids, and the waits before reconnects.

use std::sync::{Arc, Mutex, PoisonError};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use uuid::Uuid;

/// A source of randomness that can be shared.
#[derive(Clone)]
pub(crate) struct Random(Arc<Mutex<StdRng>>);

impl Random {
    /// Seeded with this number, for tests.
    pub(crate) fn from_seed(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// Seeded by the operating system.
    ///
    /// # Panics
    /// If the operating system has no randomness.
    pub(crate) fn from_system() -> Self {
        #[expect(
            clippy::expect_used,
            reason = "no id can be drawn without randomness, and all supported systems have it"
        )]
        let rng = StdRng::try_from_rng(&mut rand::rngs::SysRng).expect("the operating system has randomness");
        Self(Arc::new(Mutex::new(rng)))
    }

    /// A random UUID.
    pub(crate) fn uuid(&self) -> Uuid {
        uuid::Builder::from_random_bytes(self.draw(RngExt::random)).into_uuid()
    }

    /// A random number from 0 to 1.
    pub(crate) fn fraction(&self) -> f64 {
        self.draw(RngExt::random)
    }

    /// Random bytes.
    pub(crate) fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.draw(|rng| rng.fill_bytes(&mut bytes));
        bytes
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
