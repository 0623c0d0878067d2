//! Measured times and their percentiles.

use std::{ops::Range, time::Duration};

use serde::Serialize;

/// Measured times, in microseconds.
#[derive(Debug, Default)]
pub struct Times(Vec<u32>);

impl From<Vec<u32>> for Times {
    fn from(micros: Vec<u32>) -> Self {
        Self(micros)
    }
}

/// The median and the 99th percentile, in milliseconds.
#[derive(Debug, Serialize)]
pub struct Percentiles {
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl Times {
    /// Adds a time.
    pub fn add(&mut self, took: Duration) {
        self.0.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    /// Adds the times of another measurement.
    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// The number of times added.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Those with these numbers, in the order in which they were added.
    pub fn among(&self, numbers: Range<usize>) -> Self {
        Self(self.0.get(numbers).unwrap_or_default().to_vec())
    }

    /// The percentiles of all times added; NaN if there are none.
    pub fn percentiles(mut self) -> Percentiles {
        self.0.sort_unstable();
        let percentile = |hundredths: usize| {
            let at = self.0.len() * hundredths / 100;
            self.0.get(at).map_or(f64::NAN, |micros| f64::from(*micros) / 1e3)
        };
        Percentiles { p50_ms: percentile(50), p99_ms: percentile(99) }
    }
}
