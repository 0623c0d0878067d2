//! Counters, gauges and histograms. All series are created in advance, so that counting needs no look-up.

use std::marker::PhantomData;

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::{Collector, Metric, MetricVec, MetricVecBuilder},
    proto,
};

use super::MetricSpec;

/// A value of a label, from a closed set. A pair is the values of two labels.
pub trait LabelValue: Copy {
    /// The number of values.
    const COUNT: usize;

    /// The index of this value, less than [`Self::COUNT`].
    fn index(self) -> usize;

    /// For each value, by index, the text of each label.
    fn texts() -> Vec<Vec<String>>;
}

/// For metrics without labels.
impl LabelValue for () {
    const COUNT: usize = 1;

    fn index(self) -> usize {
        0
    }

    fn texts() -> Vec<Vec<String>> {
        vec![vec![]]
    }
}

impl<A: LabelValue, B: LabelValue> LabelValue for (A, B) {
    const COUNT: usize = A::COUNT * B::COUNT;

    fn index(self) -> usize {
        self.0.index() * B::COUNT + self.1.index()
    }

    fn texts() -> Vec<Vec<String>> {
        let second = B::texts();
        A::texts().iter().flat_map(|a| second.iter().map(|b| [a.as_slice(), b].concat())).collect()
    }
}

/// The buckets of a histogram.
pub trait BucketBounds {
    /// The upper bounds, in ascending order.
    const BOUNDS: &'static [f64];
}

/// Durations in seconds, from half a millisecond to ten seconds.
#[derive(Clone, Copy, Debug)]
pub struct Seconds;

impl BucketBounds for Seconds {
    const BOUNDS: &'static [f64] =
        &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
}

/// Numbers of items, from 1 to 256.
#[derive(Clone, Copy, Debug)]
pub struct BatchSize;

impl BucketBounds for BatchSize {
    const BOUNDS: &'static [f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
}

/// A kind of metric: counter, gauge or histogram.
pub trait MetricKind: Sized {
    /// The name of the kind in Prometheus.
    const NAME: &'static str;

    /// Creates all series and adds them to the registry.
    ///
    /// # Errors
    /// If the name is invalid or already registered.
    fn create(registry: &Registry, spec: &MetricSpec) -> prometheus::Result<Self>;
}

/// Creates the metric of a description.
#[expect(clippy::expect_used, reason = "the list is fixed, and every test creates all of it")]
pub(super) fn register<K: MetricKind>(registry: &Registry, spec: Option<&MetricSpec>) -> K {
    let spec = spec.expect("each field has a description");
    K::create(registry, spec).expect("all names are valid and different")
}

/// Registers a family, and returns its series, one for each value of the label, in order of their index.
fn series<L: LabelValue, B: MetricVecBuilder + 'static>(
    registry: &Registry,
    family: &MetricVec<B>,
) -> prometheus::Result<Box<[B::M]>>
where
    MetricVec<B>: Collector,
{
    registry.register(Box::new(family.clone()))?;
    L::texts().iter().map(|texts| family.get_metric_with_label_values(texts)).collect()
}

/// A counter for each value of a label.
#[derive(Debug)]
pub struct Counters<L>(Box<[IntCounter]>, PhantomData<fn(L)>);

impl<L: LabelValue> MetricKind for Counters<L> {
    const NAME: &'static str = "counter";

    fn create(registry: &Registry, spec: &MetricSpec) -> prometheus::Result<Self> {
        let family = IntCounterVec::new(Opts::new(spec.name, spec.help), spec.labels)?;
        Ok(Self(series::<L, _>(registry, &family)?, PhantomData))
    }
}

impl<L: LabelValue> Counters<L> {
    /// Adds one.
    pub fn inc(&self, label: L) {
        self.add(label, 1);
    }

    /// Adds `n`.
    pub fn add(&self, label: L, n: u64) {
        self.0[label.index()].inc_by(n);
    }

    /// The current count.
    #[must_use]
    pub fn get(&self, label: L) -> u64 {
        self.0[label.index()].get()
    }
}

/// A counter without labels.
#[derive(Debug)]
pub struct Counter(Counters<()>);

impl MetricKind for Counter {
    const NAME: &'static str = "counter";

    fn create(registry: &Registry, spec: &MetricSpec) -> prometheus::Result<Self> {
        Ok(Self(Counters::create(registry, spec)?))
    }
}

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.0.inc(());
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.add((), n);
    }

    /// The current count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.get(())
    }
}

/// A gauge for each value of a label.
#[derive(Debug)]
pub struct Gauges<L>(Box<[IntGauge]>, PhantomData<fn(L)>);

impl<L: LabelValue> MetricKind for Gauges<L> {
    const NAME: &'static str = "gauge";

    fn create(registry: &Registry, spec: &MetricSpec) -> prometheus::Result<Self> {
        let family = IntGaugeVec::new(Opts::new(spec.name, spec.help), spec.labels)?;
        Ok(Self(series::<L, _>(registry, &family)?, PhantomData))
    }
}

impl<L: LabelValue> Gauges<L> {
    /// The current value.
    #[must_use]
    pub fn get(&self, label: L) -> u64 {
        self.0[label.index()].get().unsigned_abs()
    }

    /// Sets the value.
    pub fn set(&self, label: L, value: u64) {
        self.0[label.index()].set(i64::try_from(value).unwrap_or(i64::MAX));
    }
}

/// A gauge without labels.
#[derive(Debug)]
pub struct Gauge(Gauges<()>);

impl MetricKind for Gauge {
    const NAME: &'static str = "gauge";

    fn create(registry: &Registry, spec: &MetricSpec) -> prometheus::Result<Self> {
        Ok(Self(Gauges::create(registry, spec)?))
    }
}

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: u64) {
        self.0.set((), value);
    }

    /// Sets a value that may be negative.
    pub fn set_signed(&self, value: i64) {
        self.0.0[0].set(value);
    }
}

/// A histogram for each value of a label.
#[derive(Debug)]
pub struct Histograms<L, B>(Box<[prometheus::Histogram]>, PhantomData<fn(L, B)>);

impl<L: LabelValue, B: BucketBounds> MetricKind for Histograms<L, B> {
    const NAME: &'static str = "histogram";

    fn create(registry: &Registry, spec: &MetricSpec) -> prometheus::Result<Self> {
        let options = HistogramOpts::new(spec.name, spec.help).buckets(B::BOUNDS.to_vec());
        let family = HistogramVec::new(options, spec.labels)?;
        Ok(Self(series::<L, _>(registry, &family)?, PhantomData))
    }
}

impl<L: LabelValue, B: BucketBounds> Histograms<L, B> {
    /// Records a value.
    pub fn observe(&self, label: L, value: f64) {
        self.0[label.index()].observe(value);
    }

    /// The number of values in each bucket, over all label values: the buckets of [`BucketBounds::BOUNDS`], then the
    /// values above the last bound.
    pub(super) fn counts(&self) -> Vec<u64> {
        let mut sums = vec![0; B::BOUNDS.len() + 1];
        for histogram in &self.0 {
            add_counts(&mut sums, histogram);
        }
        sums
    }

    /// The histogram of one label value.
    #[must_use]
    pub fn of(&self, label: L) -> Histogram<B> {
        Histogram(self.0[label.index()].clone(), PhantomData)
    }
}

/// A histogram without labels. Clones share their data.
#[derive(Clone, Debug)]
pub struct Histogram<B>(prometheus::Histogram, PhantomData<fn(B)>);

impl<B: BucketBounds> MetricKind for Histogram<B> {
    const NAME: &'static str = "histogram";

    fn create(registry: &Registry, spec: &MetricSpec) -> prometheus::Result<Self> {
        Ok(Histograms::<(), B>::create(registry, spec)?.of(()))
    }
}

impl<B: BucketBounds> Histogram<B> {
    /// Records a value.
    pub fn observe(&self, value: f64) {
        self.0.observe(value);
    }

    /// The number of values in each bucket: the buckets of [`BucketBounds::BOUNDS`], then the values above the last
    /// bound.
    pub(super) fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; B::BOUNDS.len() + 1];
        add_counts(&mut counts, &self.0);
        counts
    }
}

/// Adds the number of values in each bucket of a histogram.
fn add_counts(sums: &mut [u64], histogram: &prometheus::Histogram) {
    let metric = histogram.metric();
    let data = metric.get_histogram();
    let up_to_bounds = data.get_bucket().iter().map(proto::Bucket::cumulative_count);
    let mut below = 0;
    for (sum, up_to) in sums.iter_mut().zip(up_to_bounds.chain([data.get_sample_count()])) {
        // Saturating, because the counts of one moment are not read atomically.
        *sum += up_to.saturating_sub(below);
        below = up_to;
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    #[derive(Clone, Copy)]
    struct ThreeValues(usize);

    impl LabelValue for ThreeValues {
        const COUNT: usize = 3;

        fn index(self) -> usize {
            self.0
        }

        fn texts() -> Vec<Vec<String>> {
            (0..3).map(|n| vec![n.to_string()]).collect()
        }
    }

    #[test]
    fn every_pair_of_label_values_has_its_own_series() {
        let registry = Registry::new();
        let spec = MetricSpec { name: "pairs", kind: "counter", labels: &["a", "b"], help: "pairs" };
        let pairs: Counters<(ThreeValues, ThreeValues)> = Counters::create(&registry, &spec).unwrap();
        for a in 0..3 {
            for b in 0..3 {
                pairs.add((ThreeValues(a), ThreeValues(b)), 10 * a as u64 + b as u64);
            }
        }
        let mut text = String::new();
        prometheus::TextEncoder::new().encode_utf8(&registry.gather(), &mut text).unwrap();
        let mut expected = String::from("# HELP pairs pairs\n# TYPE pairs counter\n");
        for (a, b) in (0..3).flat_map(|a| (0..3).map(move |b| (a, b))) {
            writeln!(expected, "pairs{{a=\"{a}\",b=\"{b}\"}} {}", 10 * a + b).unwrap();
        }
        assert_eq!(text, expected);
    }
}
