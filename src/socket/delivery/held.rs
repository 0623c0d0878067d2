//! Envelopes that arrived as signals and cannot be sent yet: the store is being read, or earlier ones are awaited.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    domain::Envelope,
    socket::budget::{Budget, Reservation},
};

/// Envelopes held at most.
const MAX_HELD: usize = 64;
/// How long an envelope that is ahead waits for those before it. The bus takes a few milliseconds.
pub const PATIENCE: Duration = Duration::from_millis(20);

/// An envelope that arrived as a signal.
pub enum LiveEnvelope {
    /// A stored one, with its number.
    Stored(i64, Arc<Envelope>),
    /// One that is stored nowhere.
    Ephemeral(Arc<Envelope>),
}

impl LiveEnvelope {
    fn bytes(&self) -> usize {
        let (Self::Stored(_, envelope) | Self::Ephemeral(envelope)) = self;
        envelope.content.len()
    }
}

/// Whether those before the held envelopes are still awaited.
#[derive(Debug, PartialEq, Eq)]
pub enum Patience {
    /// From now on, for this time.
    Begins(Duration),
    /// Since earlier.
    Lasts,
    /// No longer.
    IsOver,
}

/// The held envelopes of one connection, in the order of their arrival.
#[derive(Default)]
pub struct Held {
    /// Each with what it draws on the node's memory.
    queue: VecDeque<(LiveEnvelope, Reservation)>,
    /// Until when those before them are awaited, once that has begun.
    awaited_until: Option<Instant>,
}

impl Held {
    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Holds an envelope. Returns false if the limit or the node's memory does not allow it.
    pub fn hold(&mut self, envelope: LiveEnvelope, memory: &Budget) -> bool {
        let reservation = memory.try_reserve(envelope.bytes()).filter(|_| self.queue.len() < MAX_HELD);
        if let Some(reservation) = reservation {
            self.queue.push_back((envelope, reservation));
            return true;
        }
        false
    }

    /// An envelope that may be sent now that those up to `cursor` have been. Drops the stored ones that need not be held:
    /// those up to `cursor`, and all of them if the window is full.
    pub fn release(&mut self, cursor: i64, window_is_full: bool) -> Option<LiveEnvelope> {
        self.queue.retain(
            |(envelope, _)| !matches!(envelope, LiveEnvelope::Stored(seq, _) if window_is_full || *seq <= cursor),
        );
        let is_next = |envelope: &LiveEnvelope| matches!(envelope, LiveEnvelope::Stored(seq, _) if *seq == cursor + 1);
        let at = match self.queue.front() {
            Some((LiveEnvelope::Ephemeral(_), _)) => Some(0),
            _ => self.queue.iter().position(|(envelope, _)| is_next(envelope)),
        };
        if at.is_some() {
            // There was progress, so there may be more.
            self.awaited_until = None;
        }
        let released = at.and_then(|at| self.queue.remove(at)).map(|(envelope, _)| envelope);
        if self.queue.is_empty() {
            *self = Self::default();
        }
        released
    }

    /// Waits for the envelopes before those that are held.
    pub fn await_earlier(&mut self, now: Instant) -> Patience {
        match self.awaited_until {
            None => {
                self.awaited_until = Some(now + PATIENCE);
                Patience::Begins(PATIENCE)
            }
            Some(until) if now < until => Patience::Lasts,
            Some(_) => Patience::IsOver,
        }
    }

    /// Ends the wait: the store is read instead.
    pub fn stop_awaiting(&mut self) {
        self.awaited_until = None;
    }
}
