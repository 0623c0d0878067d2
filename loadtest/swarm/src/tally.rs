//! Counts and times of messages under load.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use serde::Serialize;
use tokio::time::Instant;

use crate::times::{Percentiles, Times};

/// The results.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Messages that were accepted.
    pub accepted: u64,
    /// Messages that arrived.
    pub arrived: u64,
    /// Messages that arrived out of order or twice. If this is not 0, the server has a defect.
    pub misplaced: u64,
    /// Failures: requests by error code, sockets by error text.
    pub errors: BTreeMap<String, u64>,
    pub seconds: f64,
    /// Messages that arrived per second.
    pub per_second: f64,
    /// Time from sending to the reply, which means that the message is stored.
    pub reply: Percentiles,
    /// Time from sending to the arrival at the other device.
    pub delivery: Percentiles,
    /// The servers' CPU time per message.
    pub server_cpu_micros: Option<f64>,
}

/// Counts and times so far.
#[derive(Default)]
pub struct Tally {
    /// Messages that were accepted.
    pub accepted: u64,
    /// Messages that arrived.
    pub arrived: u64,
    /// Messages that wait for their replies.
    pub unanswered: u64,
    misplaced: u64,
    /// Failures: requests by error code, sockets by error text.
    pub errors: BTreeMap<String, u64>,
    replies: Times,
    deliveries: Times,
    /// When the last message arrived.
    pub last: Option<Instant>,
}

impl Tally {
    /// Counts the reply to a send; `code` is `None` if it was accepted.
    pub fn replied(&mut self, code: Option<String>, took: Duration) {
        self.unanswered -= 1;
        self.replies.add(took);
        match code {
            None => self.accepted += 1,
            Some(code) => *self.errors.entry(code).or_default() += 1,
        }
    }

    /// Counts a message that arrived; `in_place` is false if it was out of order or a repeat.
    pub fn arrived(&mut self, in_place: bool, took: Duration, now: Instant) {
        self.arrived += 1;
        self.misplaced += u64::from(!in_place);
        self.deliveries.add(took);
        self.last = Some(now);
    }

    /// The number of replies so far.
    pub fn replies(&self) -> usize {
        self.replies.len()
    }

    /// The times from sending to the reply, of the replies with these numbers.
    pub fn replies_among(&self, numbers: Range<usize>) -> Percentiles {
        self.replies.among(numbers).percentiles()
    }

    /// The results, given the duration of the test and the servers' CPU time.
    pub fn report(self, time: Duration, cpu: Option<Duration>) -> Report {
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let arrived = self.arrived as f64;
        Report {
            accepted: self.accepted,
            arrived: self.arrived,
            misplaced: self.misplaced,
            errors: self.errors,
            seconds: time.as_secs_f64(),
            per_second: arrived / time.as_secs_f64(),
            reply: self.replies.percentiles(),
            delivery: self.deliveries.percentiles(),
            server_cpu_micros: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / arrived),
        }
    }
}
