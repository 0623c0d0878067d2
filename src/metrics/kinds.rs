//! Counters, gauges and histograms with their series made beforehand, so that counting looks nothing up.

use std::marker::PhantomData;

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::{Collector, MetricVec, MetricVecBuilder},
};

use super::Entry;

/// A label, or several, with a closed set of values.
pub trait Label: Copy {
    /// How many values there are.
    const COUNT: usize;

    /// The place of this value among all.
    fn index(self) -> usize;

    /// The text of each value, or one text for each label where there are several.
    fn texts() -> Vec<Vec<String>>;
}

/// No label.
impl Label for () {
    const COUNT: usize = 1;

    fn index(self) -> usize {
        0
    }

    fn texts() -> Vec<Vec<String>> {
        vec![vec![]]
    }
}

impl<A: Label, B: Label> Label for (A, B) {
    const COUNT: usize = A::COUNT * B::COUNT;

    fn index(self) -> usize {
        self.0.index() * B::COUNT + self.1.index()
    }

    fn texts() -> Vec<Vec<String>> {
        let second = B::texts();
        A::texts().iter().flat_map(|a| second.iter().map(|b| [a.as_slice(), b].concat())).collect()
    }
}

/// The upper bounds of a histogram's buckets.
pub trait Buckets {
    /// In ascending order.
    const BOUNDS: &'static [f64];
}

/// Times from half a millisecond to ten seconds.
#[derive(Clone, Copy, Debug)]
pub struct Seconds;

impl Buckets for Seconds {
    const BOUNDS: &'static [f64] =
        &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
}

/// Numbers of things.
#[derive(Clone, Copy, Debug)]
pub struct Items;

impl Buckets for Items {
    const BOUNDS: &'static [f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
}

/// What a metric can be.
pub trait Kind: Sized {
    /// As Prometheus calls it.
    const NAME: &'static str;

    /// Makes all series and adds them to the registry.
    ///
    /// # Errors
    /// Where the name is taken or none.
    fn make(registry: &Registry, entry: &Entry) -> prometheus::Result<Self>;
}

/// Makes the metric of an entry.
#[expect(clippy::expect_used, reason = "the list is fixed, and every test makes all of it")]
pub(super) fn register<K: Kind>(registry: &Registry, entry: Option<&Entry>) -> K {
    let entry = entry.expect("the list has an entry for each field");
    K::make(registry, entry).expect("the list has no name twice")
}

/// Adds a family to the registry, with a series for each value of the label, in its order.
fn series<L: Label, B: MetricVecBuilder + 'static>(
    registry: &Registry,
    family: &MetricVec<B>,
) -> prometheus::Result<Box<[B::M]>>
where
    MetricVec<B>: Collector,
{
    registry.register(Box::new(family.clone()))?;
    L::texts().iter().map(|texts| family.get_metric_with_label_values(texts)).collect()
}

/// Counts for each value of a label.
#[derive(Debug)]
pub struct Counters<L>(Box<[IntCounter]>, PhantomData<fn(L)>);

impl<L: Label> Kind for Counters<L> {
    const NAME: &'static str = "counter";

    fn make(registry: &Registry, entry: &Entry) -> prometheus::Result<Self> {
        let family = IntCounterVec::new(Opts::new(entry.name, entry.help), entry.labels)?;
        Ok(Self(series::<L, _>(registry, &family)?, PhantomData))
    }
}

impl<L: Label> Counters<L> {
    /// Adds one.
    pub fn inc(&self, label: L) {
        self.add(label, 1);
    }

    /// Adds some.
    pub fn add(&self, label: L, n: u64) {
        self.0[label.index()].inc_by(n);
    }

    /// How often so far.
    #[must_use]
    pub fn get(&self, label: L) -> u64 {
        self.0[label.index()].get()
    }
}

/// A count.
#[derive(Debug)]
pub struct Counter(Counters<()>);

impl Kind for Counter {
    const NAME: &'static str = "counter";

    fn make(registry: &Registry, entry: &Entry) -> prometheus::Result<Self> {
        Ok(Self(Counters::make(registry, entry)?))
    }
}

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.0.inc(());
    }

    /// Adds some.
    pub fn add(&self, n: u64) {
        self.0.add((), n);
    }

    /// How often so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.get(())
    }
}

/// A level for each value of a label.
#[derive(Debug)]
pub struct Gauges<L>(Box<[IntGauge]>, PhantomData<fn(L)>);

impl<L: Label> Kind for Gauges<L> {
    const NAME: &'static str = "gauge";

    fn make(registry: &Registry, entry: &Entry) -> prometheus::Result<Self> {
        let family = IntGaugeVec::new(Opts::new(entry.name, entry.help), entry.labels)?;
        Ok(Self(series::<L, _>(registry, &family)?, PhantomData))
    }
}

impl<L: Label> Gauges<L> {
    /// Sets the level.
    pub fn set(&self, label: L, level: u64) {
        self.0[label.index()].set(i64::try_from(level).unwrap_or(i64::MAX));
    }
}

/// A level.
#[derive(Debug)]
pub struct Gauge(Gauges<()>);

impl Kind for Gauge {
    const NAME: &'static str = "gauge";

    fn make(registry: &Registry, entry: &Entry) -> prometheus::Result<Self> {
        Ok(Self(Gauges::make(registry, entry)?))
    }
}

impl Gauge {
    /// Sets the level.
    pub fn set(&self, level: u64) {
        self.0.set((), level);
    }
}

/// A distribution for each value of a label.
#[derive(Debug)]
pub struct Histograms<L, B>(Box<[prometheus::Histogram]>, PhantomData<fn(L, B)>);

impl<L: Label, B: Buckets> Kind for Histograms<L, B> {
    const NAME: &'static str = "histogram";

    fn make(registry: &Registry, entry: &Entry) -> prometheus::Result<Self> {
        let options = HistogramOpts::new(entry.name, entry.help).buckets(B::BOUNDS.to_vec());
        let family = HistogramVec::new(options, entry.labels)?;
        Ok(Self(series::<L, _>(registry, &family)?, PhantomData))
    }
}

impl<L: Label, B: Buckets> Histograms<L, B> {
    /// Notes a value.
    pub fn observe(&self, label: L, value: f64) {
        self.0[label.index()].observe(value);
    }

    /// The distribution of one label.
    #[must_use]
    pub fn of(&self, label: L) -> Histogram<B> {
        Histogram(self.0[label.index()].clone(), PhantomData)
    }
}

/// A distribution. Clones share it.
#[derive(Clone, Debug)]
pub struct Histogram<B>(prometheus::Histogram, PhantomData<fn(B)>);

impl<B: Buckets> Kind for Histogram<B> {
    const NAME: &'static str = "histogram";

    fn make(registry: &Registry, entry: &Entry) -> prometheus::Result<Self> {
        Ok(Histograms::<(), B>::make(registry, entry)?.of(()))
    }
}

impl<B: Buckets> Histogram<B> {
    /// Notes a value.
    pub fn observe(&self, value: f64) {
        self.0.observe(value);
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    #[derive(Clone, Copy)]
    struct Digit(usize);

    impl Label for Digit {
        const COUNT: usize = 3;

        fn index(self) -> usize {
            self.0
        }

        fn texts() -> Vec<Vec<String>> {
            (0..3).map(|n| vec![n.to_string()]).collect()
        }
    }

    #[test]
    fn every_pair_of_labels_has_a_series_of_its_own() {
        let registry = Registry::new();
        let entry = Entry { name: "pairs", kind: "counter", labels: &["a", "b"], help: "pairs" };
        let pairs: Counters<(Digit, Digit)> = Counters::make(&registry, &entry).unwrap();
        for a in 0..3 {
            for b in 0..3 {
                pairs.add((Digit(a), Digit(b)), 10 * a as u64 + b as u64);
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
