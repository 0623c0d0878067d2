//! Quantiles of the latency histograms.

use super::{BucketBounds, Histogram, Histograms, LabelValue, Seconds};

const BUCKETS: usize = Seconds::BOUNDS.len() + 1;

/// The number of values in each bucket of a latency histogram, or its increase between two moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyCounts([u64; BUCKETS]);

impl LatencyCounts {
    /// The counts of a histogram.
    #[must_use]
    pub fn of(histogram: &Histogram<Seconds>) -> Self {
        Self::from_counts(&histogram.counts())
    }

    /// The counts of a histogram with a label, over all values of the label.
    #[must_use]
    pub fn of_all<L: LabelValue>(histograms: &Histograms<L, Seconds>) -> Self {
        Self::from_counts(&histograms.counts())
    }

    fn from_counts(counts: &[u64]) -> Self {
        Self(std::array::from_fn(|index| counts.get(index).copied().unwrap_or_default()))
    }

    /// The increase since an earlier moment.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self(std::array::from_fn(|index| self.0[index].saturating_sub(earlier.0[index])))
    }

    /// Estimates a quantile, in seconds, in the same way as Prometheus' `histogram_quantile`: linear within a bucket,
    /// and the last bound if the value is above it. `None` without values.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "an estimate needs no more precision")]
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let rank = quantile * self.0.iter().sum::<u64>() as f64;
        let mut below = 0.0;
        for (index, count) in self.0.iter().map(|count| *count as f64).enumerate().filter(|(_, count)| *count > 0.0) {
            if below + count >= rank {
                let Some(upper) = Seconds::BOUNDS.get(index) else { break };
                let lower = if index == 0 { 0.0 } else { Seconds::BOUNDS[index - 1] };
                return Some(lower + (upper - lower) * (rank - below) / count);
            }
            below += count;
        }
        let is_empty = self.0.iter().all(|count| *count == 0);
        if is_empty { None } else { Seconds::BOUNDS.last().copied() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn p99(values: &[(f64, usize)]) -> Option<f64> {
        let metrics = Metrics::new();
        for (value, times) in values {
            (0..*times).for_each(|_| metrics.delivery_seconds.observe(*value));
        }
        LatencyCounts::of(&metrics.delivery_seconds).quantile(0.99)
    }

    #[test]
    fn a_quantile_is_linear_within_its_bucket() {
        assert_eq!(p99(&[]), None);
        let near = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() < 1e-9;
        assert!(near(p99(&[(0.0001, 100)]), 0.0005 * 0.99));
        assert!(near(p99(&[(0.0001, 98), (0.03, 2)]), 0.025 + (0.05 - 0.025) / 2.0));
        assert!(near(p99(&[(0.0001, 99), (0.03, 1)]), 0.0005), "one of a hundred is above the 99th percentile");
        assert!(near(p99(&[(0.0001, 10), (60.0, 10)]), 10.0), "the last bound, if the value is above it");
    }

    #[test]
    fn only_values_since_the_earlier_moment_count() {
        let metrics = Metrics::new();
        let op = sealwire_protocol::frame::Op::ALL[0];
        metrics.op_seconds.observe(op, 9.0);
        let earlier = LatencyCounts::of_all(&metrics.op_seconds);
        assert_eq!(LatencyCounts::of_all(&metrics.op_seconds).since(&earlier).quantile(0.5), None);
        metrics.op_seconds.observe(sealwire_protocol::frame::Op::ALL[1], 0.0001);
        let found = LatencyCounts::of_all(&metrics.op_seconds).since(&earlier).quantile(1.0);
        assert!((found.unwrap() - 0.0005).abs() < 1e-9, "{found:?}");
    }
}
