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
    /// What waits because of a renewal. Boxed, because nearly always nothing does.
    waiting: Option<Box<Waiting>>,
    /// The order of the sends in flight.
    pub sends: FifoGate,
    /// The order of the publishes in flight, so that the expiry of the signed prekey published last is announced.
    pub publishes: FifoGate,
}

/// What waits because of a renewal.
#[derive(Default)]
struct Waiting {
    /// Requests that wait to run: a renewal waits for earlier requests, and later requests wait for the renewal.
    deferred: VecDeque<Deferred>,
    /// `Some` while a renewal is in flight: the signals to handle after it.
    signals: Option<Vec<Signal>>,
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
        self.len() == 0
    }

    fn deferred(&self) -> impl Iterator<Item = &Deferred> {
        self.waiting.iter().flat_map(|waiting| &waiting.deferred)
    }

    /// The number of unanswered requests.
    pub fn len(&self) -> usize {
        self.in_flight.len() + self.waiting.as_ref().map_or(0, |waiting| waiting.deferred.len())
    }

    /// Whether a request with this id is unanswered.
    pub fn contains(&self, id: RequestId) -> bool {
        self.in_flight.iter().any(|request| request.id == id)
            || self.deferred().any(|deferred| deferred.request.id == id)
    }

    /// Whether a new request of this op cannot run yet. A renewal runs alone, because earlier requests belong to the old
    /// session and later ones to the new session.
    pub fn must_wait(&self, op: Op) -> bool {
        let is_renewing = self.waiting.as_ref().is_some_and(|waiting| waiting.signals.is_some());
        is_renewing || self.deferred().next().is_some() || (op == Op::SessionRenew && !self.in_flight.is_empty())
    }

    /// Defers a request, until [`Self::next_deferred`] returns it.
    pub fn defer(&mut self, deferred: Deferred) {
        self.waiting.get_or_insert_default().deferred.push_back(deferred);
    }

    /// Removes and returns the next deferred request, if it can run now.
    pub fn next_deferred(&mut self) -> Option<Deferred> {
        let waiting = self.waiting.as_mut()?;
        let is_renewal = waiting.deferred.front().is_some_and(|next| next.op == Op::SessionRenew);
        if waiting.signals.is_some() || (is_renewal && !self.in_flight.is_empty()) {
            return None;
        }
        let next = waiting.deferred.pop_front();
        if waiting.deferred.is_empty() {
            self.waiting = None;
        }
        next
    }

    /// Notes that a renewal runs from now on.
    pub fn begin_renewal(&mut self) {
        self.waiting.get_or_insert_default().signals = Some(Vec::new());
    }

    /// Keeps a signal until the renewal in flight has ended. Returns it if there is none.
    pub fn hold_signal(&mut self, signal: Signal) -> Option<Signal> {
        let Some(signals) = self.waiting.as_mut().and_then(|waiting| waiting.signals.as_mut()) else {
            return Some(signal);
        };
        signals.push(signal);
        None
    }

    /// Notes that the renewal has ended, if there was one. Returns the signals to handle now.
    pub fn end_renewal(&mut self) -> Vec<Signal> {
        self.waiting.as_mut().and_then(|waiting| waiting.signals.take()).unwrap_or_default()
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
