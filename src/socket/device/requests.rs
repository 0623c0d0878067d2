//! The unanswered requests of an open connection, and their order.

use std::collections::VecDeque;

use actix_web::web::Bytes;
use sealwire_protocol::frame::{Op, RequestId, RequestOutline};

use crate::{domain::Signal, service::FifoGate};

/// The unanswered requests of one connection.
#[derive(Default)]
pub struct Requests {
    /// The running requests, in no particular order.
    pub in_flight: Vec<InFlight>,
    /// Requests that wait to run: a renewal waits for earlier requests, and later requests wait for the renewal.
    pub deferred: VecDeque<Deferred>,
    /// `Some` while a renewal is in flight: the signals to handle after it.
    pub signals_after_renewal: Option<Vec<Signal>>,
    /// The order of the sends in flight.
    pub sends: FifoGate,
    /// The order of the publishes in flight, so that the expiry of the signed prekey published last is announced.
    pub publishes: FifoGate,
}

/// A running request, and the bytes that the read gate counts for it.
pub struct InFlight {
    /// The id that the client chose.
    pub id: RequestId,
    /// The size of the request frame.
    pub request_bytes: usize,
    /// The bytes kept free in the outbox for the reply.
    pub reply_bytes: usize,
}

/// A request that waits for a renewal, or a renewal that waits for requests.
pub struct Deferred {
    /// The decoded request, except for its parameters.
    pub request: RequestOutline,
    /// The op, which is known and has been checked.
    pub op: Op,
    /// The request frame, which contains the parameters.
    pub frame: Bytes,
}

impl Requests {
    /// Whether all requests are answered.
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty() && self.deferred.is_empty()
    }

    /// The number of unanswered requests.
    pub fn len(&self) -> usize {
        self.in_flight.len() + self.deferred.len()
    }

    /// Whether a request with this id is unanswered.
    pub fn contains(&self, id: RequestId) -> bool {
        self.in_flight.iter().any(|request| request.id == id)
            || self.deferred.iter().any(|deferred| deferred.request.id == id)
    }

    /// Whether an op cannot run yet. A renewal runs alone, because earlier requests belong to the old session and later
    /// ones to the new session.
    pub fn must_wait(&self, op: Op) -> bool {
        self.signals_after_renewal.is_some() || (op == Op::SessionRenew && !self.in_flight.is_empty())
    }

    /// Removes and returns the next deferred request, if it can run now.
    pub fn next_deferred(&mut self) -> Option<Deferred> {
        let op = self.deferred.front()?.op;
        if self.must_wait(op) { None } else { self.deferred.pop_front() }
    }

    /// Removes a running request, which has been answered.
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
