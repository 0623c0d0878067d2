//! What came of messages under load.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use tokio::time::Instant;

use crate::times::{Percentiles, Times};

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Messages that were accepted,
    pub accepted: u64,
    /// and those that arrived.
    pub arrived: u64,
    /// Those that came out of turn or twice. Anything but 0 is a defect of the server.
    pub misplaced: u64,
    /// Requests that were answered with an error, by its code.
    pub errors: BTreeMap<String, u64>,
    pub seconds: f64,
    /// Messages that arrived in a second.
    pub per_second: f64,
    /// From sending to the reply, which comes once it is stored.
    pub reply: Percentiles,
    /// From sending to the arrival at the other device.
    pub delivery: Percentiles,
    /// The servers' processor time for each message.
    pub server_cpu_micros: Option<f64>,
}

/// What has happened so far.
#[derive(Default)]
pub struct Tally {
    /// Messages that were accepted,
    pub accepted: u64,
    /// that arrived,
    pub arrived: u64,
    /// and that wait for their reply.
    pub unanswered: u64,
    misplaced: u64,
    /// What failed, by what it said.
    pub errors: BTreeMap<String, u64>,
    replies: Times,
    deliveries: Times,
    /// When the last one arrived.
    pub last: Option<Instant>,
}

impl Tally {
    /// A send was answered, with the code of an error or none.
    pub fn replied(&mut self, code: Option<String>, took: Duration) {
        self.unanswered -= 1;
        self.replies.add(took);
        match code {
            None => self.accepted += 1,
            Some(code) => *self.errors.entry(code).or_default() += 1,
        }
    }

    /// A message came, in its turn or not.
    pub fn arrived(&mut self, in_place: bool, took: Duration, now: Instant) {
        self.arrived += 1;
        self.misplaced += u64::from(!in_place);
        self.deliveries.add(took);
        self.last = Some(now);
    }

    /// What it comes to.
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
