//! The history of the last ten minutes for the charts of the status page.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sealwire_protocol::{CloseCode, Code, frame::Op};
use serde::Serialize;
use tokio::time::Instant;

use crate::metrics::{
    BusTraffic, ClaimOutcome, Close, Direction, LatencyCounts, Limit, MailOutcome, Metrics, ProofOutcome, Repair,
    RequestedOp, ResponseCode,
};

/// Interval between points.
pub const STEP: Duration = Duration::from_secs(5);
/// Number of values in a chart: ten minutes.
const LENGTH: usize = 120;
/// Number of points kept. A rate is computed from two points, so there is one more point than values. The count of a
/// minute also needs the points of the minute before.
const KEPT: usize = LENGTH + 1 + MINUTE_STEPS;
/// Number of intervals in a minute.
const MINUTE_STEPS: usize = 12;
/// Minimum length of the "last minute".
const MINUTE: Duration = Duration::from_mins(1);
/// Minimum time since the last point for a meaningful rate.
const MIN_SPAN: Duration = Duration::from_secs(1);
const CLOSES: usize = 2 + CloseCode::ALL.len();
/// The reported quantile of latencies.
const QUANTILE: f64 = 0.99;

/// The counters at one moment, or their increase between two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterValues {
    pub claims: u64,
    pub exhausted: u64,
    pub limited: u64,
    /// Messages accepted.
    pub sends: u64,
    /// Envelopes of the messages accepted.
    pub envelopes: u64,
    /// Envelopes sent to sockets.
    pub deliveries: u64,
    pub sign_ins: u64,
    pub mails_sent: u64,
    /// Failed after all tries, or dropped.
    pub mails_failed: u64,
    /// Dropped because of a limit on unsent mails.
    pub mails_dropped: u64,
    /// Codes that were compared and wrong.
    pub wrong_guesses: u64,
    /// Proofs of work that were offered.
    pub proofs_offered: u64,
    /// Signals for other nodes that were not sent.
    pub signals_dropped: u64,
    /// Missed signals that the reconcile delivered.
    pub signals_repaired: u64,
    /// Unfinished messages and send queues whose memory was needed for others.
    pub given_up: u64,
    /// Invalid tokens of networks that had presented too many.
    pub tokens_limited: u64,
    /// Requests refused because too many others of their user were waiting.
    pub throttled: u64,
    /// Statements that gave up waiting for a locked row.
    pub lock_timeouts: u64,
    /// Messages refused because no mailbox had room for them.
    pub mailbox_full: u64,
    /// Messages refused because of a rate limit.
    pub sends_limited: u64,
    /// Refused connections, in the order of [`Limit::ALL`].
    pub refused: [u64; Limit::ALL.len()],
    /// In the order of [`Code::ALL`].
    pub errors: [u64; Code::ALL.len()],
    /// In the order of [`Close::all`].
    pub closes: [u64; CLOSES],
    /// From the start of a request to its reply, all ops together.
    pub op_latency: LatencyCounts,
    /// From accepting an envelope to sending it to a connected device.
    pub delivery_latency: LatencyCounts,
}

impl CounterValues {
    /// The current counters.
    pub fn of(metrics: &Metrics) -> Self {
        let mut closes = [0; CLOSES];
        for (count, (close, _)) in closes.iter_mut().zip(Close::all()) {
            *count = metrics.closes.get(close);
        }
        let sends_refused = |code| metrics.ops.get((RequestedOp::Op(Op::MessagesSend), ResponseCode::Error(code)));
        Self {
            claims: metrics.claims.get(ClaimOutcome::Claimed),
            exhausted: metrics.claims.get(ClaimOutcome::Exhausted),
            limited: metrics.claims.get(ClaimOutcome::Limited),
            sends: metrics.sends.get(),
            envelopes: metrics.envelopes.get(),
            deliveries: metrics.deliveries.get(),
            sign_ins: metrics.sign_ins.get(),
            mails_sent: metrics.mails.get(MailOutcome::Sent),
            mails_failed: metrics.mails.get(MailOutcome::Failed) + metrics.mails.get(MailOutcome::Dropped),
            mails_dropped: metrics.mails.get(MailOutcome::Dropped),
            wrong_guesses: metrics.wrong_guesses.get(),
            proofs_offered: metrics.proofs.get(ProofOutcome::Offered),
            signals_dropped: metrics.bus_signals.get(BusTraffic::Dropped),
            signals_repaired: Repair::ALL.iter().map(|repair| metrics.reconcile_repairs.get(*repair)).sum(),
            given_up: Direction::ALL.iter().map(|direction| metrics.memory_given_up.get(*direction)).sum(),
            tokens_limited: metrics.session_failures_limited.get(),
            throttled: metrics.user_queue_full.get(),
            lock_timeouts: metrics.lock_timeouts.get(),
            mailbox_full: sends_refused(Code::MailboxFull),
            sends_limited: sends_refused(Code::RateLimited),
            refused: std::array::from_fn(|index| metrics.connections_refused.get(Limit::ALL[index])),
            errors: metrics.errors(),
            closes,
            op_latency: LatencyCounts::of_all(&metrics.op_seconds),
            delivery_latency: LatencyCounts::of(&metrics.delivery_seconds),
        }
    }

    /// The increase since an earlier moment.
    fn since(&self, earlier: &Self) -> Self {
        // Saturating, because the counters of one moment are not read atomically.
        let added = u64::saturating_sub;
        Self {
            claims: added(self.claims, earlier.claims),
            exhausted: added(self.exhausted, earlier.exhausted),
            limited: added(self.limited, earlier.limited),
            sends: added(self.sends, earlier.sends),
            envelopes: added(self.envelopes, earlier.envelopes),
            deliveries: added(self.deliveries, earlier.deliveries),
            sign_ins: added(self.sign_ins, earlier.sign_ins),
            mails_sent: added(self.mails_sent, earlier.mails_sent),
            mails_failed: added(self.mails_failed, earlier.mails_failed),
            mails_dropped: added(self.mails_dropped, earlier.mails_dropped),
            wrong_guesses: added(self.wrong_guesses, earlier.wrong_guesses),
            proofs_offered: added(self.proofs_offered, earlier.proofs_offered),
            signals_dropped: added(self.signals_dropped, earlier.signals_dropped),
            signals_repaired: added(self.signals_repaired, earlier.signals_repaired),
            given_up: added(self.given_up, earlier.given_up),
            tokens_limited: added(self.tokens_limited, earlier.tokens_limited),
            throttled: added(self.throttled, earlier.throttled),
            lock_timeouts: added(self.lock_timeouts, earlier.lock_timeouts),
            mailbox_full: added(self.mailbox_full, earlier.mailbox_full),
            sends_limited: added(self.sends_limited, earlier.sends_limited),
            refused: std::array::from_fn(|index| added(self.refused[index], earlier.refused[index])),
            errors: std::array::from_fn(|index| added(self.errors[index], earlier.errors[index])),
            closes: std::array::from_fn(|index| added(self.closes[index], earlier.closes[index])),
            op_latency: self.op_latency.since(&earlier.op_latency),
            delivery_latency: self.delivery_latency.since(&earlier.delivery_latency),
        }
    }

    /// The number of error responses with a code that is the server's fault: `internal` and `unavailable`.
    pub fn server_errors(&self) -> u64 {
        let is_ours = |code: &Code| matches!(code, Code::Internal | Code::Unavailable);
        Code::ALL.iter().zip(self.errors).filter(|(code, _)| is_ours(code)).map(|(_, count)| count).sum()
    }
}

/// The 99th percentile in milliseconds, estimated from a histogram; `None` without values.
pub fn p99_ms(latency: &LatencyCounts) -> Option<f64> {
    latency.quantile(QUANTILE).map(|seconds| round(seconds * 1000.0))
}

/// The counters and gauges of the node at one moment.
#[derive(Clone, Debug)]
pub struct Point {
    pub at: Instant,
    pub counts: CounterValues,
    pub connected: usize,
    pub resident: Option<u64>,
    /// Envelopes in all mailboxes of the database; `None` before the first measurement.
    pub waiting: Option<u64>,
    /// How long the database took to answer; `None` if it did not.
    pub latency: Option<Duration>,
}

/// The values of the charts, oldest first. Counters become rates per second.
#[derive(Debug, Serialize)]
pub struct Series {
    /// Seconds between two values. The last interval may be shorter.
    step_s: u64,
    /// Number of values when the history is full.
    length: usize,
    connected_devices: Vec<usize>,
    resident_bytes: Vec<Option<u64>>,
    mailbox_waiting: Vec<Option<u64>>,
    database_latency_ms: Vec<Option<f64>>,
    op_p99_ms: Vec<Option<f64>>,
    delivery_p99_ms: Vec<Option<f64>>,
    claims: Vec<f64>,
    exhausted: Vec<f64>,
    limited: Vec<f64>,
    sends: Vec<f64>,
    envelopes: Vec<f64>,
    deliveries: Vec<f64>,
    sign_ins: Vec<f64>,
    errors: Vec<f64>,
    closes: Vec<f64>,
    minute: MinuteCounts,
}

/// Counts of the minute before each point, or since the start of the server if that is later. Used for rare events,
/// whose rate would be close to 0.
#[derive(Debug, Serialize)]
struct MinuteCounts {
    sign_ins: Vec<u64>,
    mails_sent: Vec<u64>,
    mails_failed: Vec<u64>,
    errors: Vec<u64>,
    /// The errors with the code `internal` or `unavailable`.
    server_errors: Vec<u64>,
    closes: Vec<u64>,
    connections_refused: Vec<u64>,
}

/// The recorded points, oldest first.
pub struct History {
    start: Point,
    points: Mutex<VecDeque<Point>>,
}

impl History {
    /// Starts a history at this moment.
    pub fn new(at: Instant, counts: CounterValues) -> Self {
        let start = Point { at, counts, connected: 0, resident: None, waiting: None, latency: None };
        Self { points: Mutex::new(VecDeque::with_capacity(KEPT)), start }
    }

    fn points(&self) -> MutexGuard<'_, VecDeque<Point>> {
        self.points.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a point, and removes the oldest if the history is full.
    pub fn push(&self, point: Point) {
        let mut points = self.points();
        points.push_back(point);
        while points.len() > KEPT {
            points.pop_front();
        }
    }

    /// Returns the increase over the last minute, and the exact length of that period: up to a step more than a minute,
    /// or less if the server started later.
    pub fn minute(&self, now: &Point) -> (Duration, CounterValues) {
        let points = self.points();
        let long_ago = |point: &&Point| now.at.saturating_duration_since(point.at) >= MINUTE;
        let from = points.iter().rev().find(long_ago).unwrap_or(&self.start);
        (now.at.saturating_duration_since(from.at), now.counts.since(&from.counts))
    }

    /// Returns the values of the charts, up to now.
    pub fn series(&self, now: Point) -> Series {
        let mut points = vec![self.start.clone()];
        points.extend(self.points().iter().cloned());
        if points.last().is_none_or(|last| now.at.saturating_duration_since(last.at) >= MIN_SPAN) {
            points.push(now);
        }
        let all = &points[points.len().saturating_sub(KEPT)..];
        let points = &all[all.len().saturating_sub(LENGTH + 1)..];
        let values = points.get(1..).unwrap_or_default();
        let rates = |count: fn(&CounterValues) -> u64| -> Vec<f64> {
            let rate = |pair: &[Point]| {
                let span = pair[1].at.saturating_duration_since(pair[0].at).as_secs_f64().max(f64::EPSILON);
                #[expect(clippy::cast_precision_loss, reason = "a chart needs no more precision")]
                round(count(&pair[1].counts).saturating_sub(count(&pair[0].counts)) as f64 / span)
            };
            points.windows(2).map(rate).collect()
        };
        let p99s = |latency: fn(&CounterValues) -> &LatencyCounts| -> Vec<Option<f64>> {
            let p99 = |pair: &[Point]| p99_ms(&latency(&pair[1].counts).since(latency(&pair[0].counts)));
            points.windows(2).map(p99).collect()
        };
        let minute_counts = |count: fn(&CounterValues) -> u64| -> Vec<u64> {
            let before = |index: usize| &all[index.saturating_sub(MINUTE_STEPS)].counts;
            let count = |index: usize| count(&all[index].counts).saturating_sub(count(before(index)));
            (all.len() - values.len()..all.len()).map(count).collect()
        };
        Series {
            step_s: STEP.as_secs(),
            length: LENGTH,
            connected_devices: values.iter().map(|point| point.connected).collect(),
            resident_bytes: values.iter().map(|point| point.resident).collect(),
            mailbox_waiting: values.iter().map(|point| point.waiting).collect(),
            database_latency_ms: values.iter().map(|point| point.latency.map(milliseconds)).collect(),
            op_p99_ms: p99s(|counts| &counts.op_latency),
            delivery_p99_ms: p99s(|counts| &counts.delivery_latency),
            claims: rates(|counts| counts.claims),
            exhausted: rates(|counts| counts.exhausted),
            limited: rates(|counts| counts.limited),
            sends: rates(|counts| counts.sends),
            envelopes: rates(|counts| counts.envelopes),
            deliveries: rates(|counts| counts.deliveries),
            sign_ins: rates(|counts| counts.sign_ins),
            errors: rates(|counts| counts.errors.iter().sum()),
            closes: rates(|counts| counts.closes.iter().sum()),
            minute: MinuteCounts {
                sign_ins: minute_counts(|counts| counts.sign_ins),
                mails_sent: minute_counts(|counts| counts.mails_sent),
                mails_failed: minute_counts(|counts| counts.mails_failed),
                errors: minute_counts(|counts| counts.errors.iter().sum()),
                server_errors: minute_counts(CounterValues::server_errors),
                closes: minute_counts(|counts| counts.closes.iter().sum()),
                connections_refused: minute_counts(|counts| counts.refused.iter().sum()),
            },
        }
    }
}

/// Milliseconds with three decimals.
pub fn milliseconds(span: Duration) -> f64 {
    round(span.as_secs_f64() * 1000.0)
}

/// Seconds with three decimals.
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
        Point { at, counts, connected: 0, resident: None, waiting: None, latency: None }
    }

    /// A history of points one step apart, each with ten more sign-ins than the previous one.
    fn history(start: Instant, steps: u32) -> History {
        let history = History::new(start, CounterValues::of(&Metrics::new()));
        for step in 1..=steps {
            history.push(point(start + STEP * step, u64::from(step) * 10));
        }
        history
    }

    #[test]
    fn times_are_rounded_to_three_decimals() {
        let span = Duration::from_nanos(3_007_607_608);
        assert_eq!((seconds(span).to_string(), milliseconds(span).to_string()), ("3.008".into(), "3007.608".into()));
    }

    #[test]
    fn the_last_minute_begins_at_a_point_that_is_a_minute_old_or_at_the_start() {
        let start = Instant::now();
        let (span, counts) = history(start, 0).minute(&point(start + Duration::from_secs(3), 7));
        assert_eq!((span, counts.sign_ins), (Duration::from_secs(3), 7));
        let (span, counts) = history(start, 11).minute(&point(start + Duration::from_secs(57), 115));
        assert_eq!((span, counts.sign_ins), (Duration::from_secs(57), 115));
        let (span, counts) = history(start, 100).minute(&point(start + Duration::from_secs(502), 1004));
        assert_eq!((span, counts.sign_ins), (Duration::from_secs(62), 124));
    }

    #[test]
    fn a_series_has_a_rate_for_each_pair_of_points_and_drops_the_oldest() {
        let start = Instant::now();
        let now = |seconds| point(start + Duration::from_secs(seconds), 1000);
        assert_eq!(history(start, 0).series(point(start, 0)).sign_ins, Vec::<f64>::new());
        assert_eq!(history(start, 3).series(now(15)).sign_ins, [2.0, 2.0, 2.0], "no rate is computed over no time");
        let young = history(start, 3).series(now(19));
        assert_eq!(young.sign_ins, [2.0, 2.0, 2.0, 242.5]);
        assert_eq!(young.connected_devices.len(), 4);
        let old = history(start, 500).series(point(start + STEP * 500, 5000));
        assert_eq!((old.sign_ins.len(), old.connected_devices.len()), (LENGTH, LENGTH));
        assert!(old.sign_ins.iter().all(|rate| (rate - 2.0).abs() < 1e-9));
        assert_eq!(history(start, 500).points().len(), KEPT);
    }

    #[test]
    fn counts_of_a_minute_are_of_twelve_steps_or_since_the_start() {
        let start = Instant::now();
        let young = history(start, 14).series(point(start + STEP * 14, 140)).minute.sign_ins;
        assert_eq!(young, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 120, 120]);
        assert_eq!(history(start, 0).series(point(start, 0)).minute.sign_ins, Vec::<u64>::new());
        for steps in [119, 120, 121, 131, 132, 133, 500] {
            let minute =
                history(start, steps).series(point(start + STEP * steps, 10 * u64::from(steps))).minute.sign_ins;
            let full = minute.iter().rev().take(LENGTH - MINUTE_STEPS).all(|count| *count == 120);
            assert_eq!((minute.len(), full), (LENGTH.min(steps as usize), true), "{steps}: {minute:?}");
            assert_eq!(minute[0] == 120, steps >= 131, "{steps}: {minute:?}");
        }
    }
}
