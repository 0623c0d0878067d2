//! What the counters said during the last minutes, so that a page that is opened now has something to show.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sealwire_protocol::{CloseCode, Code};
use serde::Serialize;
use tokio::time::Instant;

use crate::metrics::{ClaimEnd, Close, Metrics};

/// Time between two points.
pub const STEP: Duration = Duration::from_secs(5);
/// Points that are kept: ten minutes.
const KEPT: usize = 120;
/// The length of the last minute, at least.
const MINUTE: Duration = Duration::from_mins(1);
/// The time that has to pass after the last point for a rate to be meaningful.
const SHORTEST: Duration = Duration::from_secs(1);
const CLOSES: usize = 2 + CloseCode::ALL.len();

/// Counters at one moment, or what was added between two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterValues {
    pub claims: u64,
    pub exhausted: u64,
    pub limited: u64,
    pub sends: u64,
    pub deliveries: u64,
    pub sign_ins: u64,
    /// One for each of [`Code::ALL`].
    pub errors: [u64; Code::ALL.len()],
    /// One for each of [`Close::all`].
    pub closes: [u64; CLOSES],
}

impl CounterValues {
    /// The present counters.
    pub fn of(metrics: &Metrics) -> Self {
        let mut closes = [0; CLOSES];
        for (count, (close, _)) in closes.iter_mut().zip(Close::all()) {
            *count = metrics.closes.get(close);
        }
        Self {
            claims: metrics.claims.get(ClaimEnd::Claimed),
            exhausted: metrics.claims.get(ClaimEnd::Exhausted),
            limited: metrics.claims.get(ClaimEnd::Limited),
            sends: metrics.sends.get(),
            deliveries: metrics.deliveries.get(),
            sign_ins: metrics.sign_ins.get(),
            errors: metrics.errors(),
            closes,
        }
    }

    /// What was added since.
    fn since(&self, earlier: &Self) -> Self {
        // Counters only grow, but two that are read side by side need not be of one moment.
        let added = u64::saturating_sub;
        Self {
            claims: added(self.claims, earlier.claims),
            exhausted: added(self.exhausted, earlier.exhausted),
            limited: added(self.limited, earlier.limited),
            sends: added(self.sends, earlier.sends),
            deliveries: added(self.deliveries, earlier.deliveries),
            sign_ins: added(self.sign_ins, earlier.sign_ins),
            errors: std::array::from_fn(|index| added(self.errors[index], earlier.errors[index])),
            closes: std::array::from_fn(|index| added(self.closes[index], earlier.closes[index])),
        }
    }
}

/// The node at one moment.
#[derive(Clone, Debug)]
pub struct Point {
    pub at: Instant,
    pub counts: CounterValues,
    pub connected: usize,
    pub resident: Option<u64>,
    /// How long the database took to answer, if it did.
    pub latency: Option<Duration>,
}

/// The last minutes, oldest first. Rates are per second.
#[derive(Debug, Serialize)]
pub struct Series {
    /// Seconds between two values; fewer before the last.
    step_s: u64,
    /// Values that are kept.
    length: usize,
    connected_devices: Vec<usize>,
    resident_bytes: Vec<Option<u64>>,
    database_latency_ms: Vec<Option<f64>>,
    claims: Vec<f64>,
    exhausted: Vec<f64>,
    limited: Vec<f64>,
    sends: Vec<f64>,
    deliveries: Vec<f64>,
    sign_ins: Vec<f64>,
    errors: Vec<f64>,
    closes: Vec<f64>,
}

/// The points that are kept, oldest first.
pub struct History {
    start: Point,
    points: Mutex<VecDeque<Point>>,
}

impl History {
    /// A history that begins at this moment.
    pub fn new(at: Instant, counts: CounterValues) -> Self {
        let start = Point { at, counts, connected: 0, resident: None, latency: None };
        Self { points: Mutex::new(VecDeque::with_capacity(KEPT + 1)), start }
    }

    fn points(&self) -> MutexGuard<'_, VecDeque<Point>> {
        self.points.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a point and forgets the oldest.
    pub fn push(&self, point: Point) {
        let mut points = self.points();
        points.push_back(point);
        // One more than values, since each value is what came between two points.
        while points.len() > KEPT + 1 {
            points.pop_front();
        }
    }

    /// What was added in the last minute, and how long that was: up to a step more, or less if the server is younger.
    pub fn minute(&self, now: &Point) -> (Duration, CounterValues) {
        let points = self.points();
        let long_ago = |point: &&Point| now.at.saturating_duration_since(point.at) >= MINUTE;
        let from = points.iter().rev().find(long_ago).unwrap_or(&self.start);
        (now.at.saturating_duration_since(from.at), now.counts.since(&from.counts))
    }

    /// The values up to now.
    pub fn series(&self, now: Point) -> Series {
        let mut points = vec![self.start.clone()];
        points.extend(self.points().iter().cloned());
        if points.last().is_none_or(|last| now.at.saturating_duration_since(last.at) >= SHORTEST) {
            points.push(now);
        }
        let points = &points[points.len().saturating_sub(KEPT + 1)..];
        let values = points.get(1..).unwrap_or_default();
        let rates = |count: fn(&CounterValues) -> u64| -> Vec<f64> {
            let rate = |pair: &[Point]| {
                let span = pair[1].at.saturating_duration_since(pair[0].at).as_secs_f64().max(f64::EPSILON);
                #[expect(clippy::cast_precision_loss, reason = "a chart does not show more")]
                round(count(&pair[1].counts).saturating_sub(count(&pair[0].counts)) as f64 / span)
            };
            points.windows(2).map(rate).collect()
        };
        Series {
            step_s: STEP.as_secs(),
            length: KEPT,
            connected_devices: values.iter().map(|point| point.connected).collect(),
            resident_bytes: values.iter().map(|point| point.resident).collect(),
            database_latency_ms: values.iter().map(|point| point.latency.map(milliseconds)).collect(),
            claims: rates(|counts| counts.claims),
            exhausted: rates(|counts| counts.exhausted),
            limited: rates(|counts| counts.limited),
            sends: rates(|counts| counts.sends),
            deliveries: rates(|counts| counts.deliveries),
            sign_ins: rates(|counts| counts.sign_ins),
            errors: rates(|counts| counts.errors.iter().sum()),
            closes: rates(|counts| counts.closes.iter().sum()),
        }
    }
}

/// Milliseconds, with as many digits as are worth showing.
pub fn milliseconds(span: Duration) -> f64 {
    round(span.as_secs_f64() * 1000.0)
}

/// Seconds, with as many digits as are worth showing.
pub fn seconds(span: Duration) -> f64 {
    round(span.as_secs_f64())
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(at: Instant, sign_ins: u64) -> Point {
        let counts = CounterValues { sign_ins, ..CounterValues::of(&Metrics::new()) };
        Point { at, counts, connected: 0, resident: None, latency: None }
    }

    /// A history of points a step apart, each with ten sign-ins more than the one before.
    fn history(start: Instant, steps: u32) -> History {
        let history = History::new(start, CounterValues::of(&Metrics::new()));
        for step in 1..=steps {
            history.push(point(start + STEP * step, u64::from(step) * 10));
        }
        history
    }

    #[test]
    fn times_have_no_more_digits_than_are_worth_showing() {
        let span = Duration::from_nanos(3_007_607_608);
        assert_eq!((seconds(span).to_string(), milliseconds(span).to_string()), ("3.008".into(), "3007.608".into()));
    }

    #[test]
    fn the_last_minute_reaches_back_to_the_start_or_to_a_point_that_is_a_minute_old() {
        let start = Instant::now();
        let (span, counts) = history(start, 0).minute(&point(start + Duration::from_secs(3), 7));
        assert_eq!((span, counts.sign_ins), (Duration::from_secs(3), 7));
        let (span, counts) = history(start, 11).minute(&point(start + Duration::from_secs(57), 115));
        assert_eq!((span, counts.sign_ins), (Duration::from_secs(57), 115));
        let (span, counts) = history(start, 100).minute(&point(start + Duration::from_secs(502), 1004));
        assert_eq!((span, counts.sign_ins), (Duration::from_secs(62), 124));
    }

    #[test]
    fn a_series_has_a_rate_between_any_two_points_and_forgets_the_oldest() {
        let start = Instant::now();
        let now = |seconds| point(start + Duration::from_secs(seconds), 1000);
        assert_eq!(history(start, 0).series(point(start, 0)).sign_ins, Vec::<f64>::new());
        assert_eq!(history(start, 3).series(now(15)).sign_ins, [2.0, 2.0, 2.0], "nothing is made of no time");
        let young = history(start, 3).series(now(19));
        assert_eq!(young.sign_ins, [2.0, 2.0, 2.0, 242.5]);
        assert_eq!(young.connected_devices.len(), 4);
        let old = history(start, 500).series(point(start + STEP * 500, 5000));
        assert_eq!((old.sign_ins.len(), old.connected_devices.len()), (KEPT, KEPT));
        assert!(old.sign_ins.iter().all(|rate| (rate - 2.0).abs() < 1e-9));
        assert_eq!(history(start, 500).points().len(), KEPT + 1);
    }
}
