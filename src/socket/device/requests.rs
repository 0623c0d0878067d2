//! The requests of an open connection that have no reply yet, and their order.

use std::collections::VecDeque;

use actix_web::web::Bytes;
use sealwire_protocol::frame::{Op, RequestId, RequestOutline};

use crate::{domain::Signal, service::Turns};

/// The requests that have no reply yet.
#[derive(Default)]
pub struct Requests {
    pub in_flight: Vec<InFlight>,
    /// Requests that wait for a renewal, or the renewal itself, which waits for those before it.
    pub deferred: VecDeque<Deferred>,
    /// While a renewal is in flight: the signals that wait for its outcome.
    pub renewal: Option<Vec<Signal>>,
    /// The order of the sends under way.
    pub sends: Turns,
    /// The order of the publishes, so that the last one's signed prekey is the one that is watched.
    pub publishes: Turns,
}

/// A request that runs, and what the read gate counts for it.
pub struct InFlight {
    pub id: RequestId,
    pub request_bytes: usize,
    pub reply_bytes: usize,
}

/// A request that waits to run.
pub struct Deferred {
    pub request: RequestOutline,
    pub op: Op,
    pub frame: Bytes,
}

impl Requests {
    /// Whether all requests have their replies.
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty() && self.deferred.is_empty()
    }

    /// How many have no reply yet.
    pub fn len(&self) -> usize {
        self.in_flight.len() + self.deferred.len()
    }

    /// Whether a request with this id has no reply yet.
    pub fn contains(&self, id: RequestId) -> bool {
        self.in_flight.iter().any(|request| request.id == id)
            || self.deferred.iter().any(|deferred| deferred.request.id == id)
    }

    /// Whether an op cannot run yet: a renewal runs alone, since what comes before it belongs to the old session and what
    /// comes after to the new one.
    pub fn must_wait(&self, op: Op) -> bool {
        self.renewal.is_some() || (op == Op::SessionRenew && !self.in_flight.is_empty())
    }

    /// The next deferred request that can run.
    pub fn next_deferred(&mut self) -> Option<Deferred> {
        let op = self.deferred.front()?.op;
        if self.must_wait(op) { None } else { self.deferred.pop_front() }
    }

    /// Removes a request that has its reply.
    pub fn take_in_flight(&mut self, id: RequestId) -> Option<InFlight> {
        let at = self.in_flight.iter().position(|request| request.id == id)?;
        let request = self.in_flight.swap_remove(at);
        if self.is_empty() {
            // An idle connection keeps no buffer.
            self.in_flight = Vec::new();
        }
        Some(request)
    }
}
