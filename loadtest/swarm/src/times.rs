//! How long things took.

use std::time::Duration;

use serde::Serialize;

/// Times that were measured, in microseconds.
#[derive(Default)]
pub struct Times(Vec<u32>);

/// Of half of them and of all but a hundredth, in milliseconds.
#[derive(Debug, Serialize)]
pub struct Percentiles {
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl Times {
    /// Adds one.
    pub fn add(&mut self, took: Duration) {
        self.0.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    /// What they come to.
    pub fn percentiles(mut self) -> Percentiles {
        self.0.sort_unstable();
        let percentile = |hundredths: usize| {
            let at = self.0.len() * hundredths / 100;
            self.0.get(at).map_or(f64::NAN, |micros| f64::from(*micros) / 1e3)
        };
        Percentiles { p50_ms: percentile(50), p99_ms: percentile(99) }
    }
}
