//! Holds envelopes that were received as signals and cannot be sent yet, because the store is being read or earlier
//! envelopes are missing.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    domain::Envelope,
    socket::shares::{Account, SharedReservation},
};

/// Maximum number of envelopes held for one connection.
const MAX_HELD: usize = 64;
/// How long held envelopes wait for missing earlier ones before the store is read. The bus takes a few milliseconds.
pub const REORDER_WAIT: Duration = Duration::from_millis(20);

/// An envelope received as a signal.
pub enum LiveEnvelope {
    /// An envelope in the mailbox, with its sequence number.
    Stored(i64, Arc<Envelope>),
    /// An ephemeral envelope, which is not stored.
    Ephemeral(Arc<Envelope>),
}

impl LiveEnvelope {
    fn bytes(&self) -> usize {
        let (Self::Stored(_, envelope) | Self::Ephemeral(envelope)) = self;
        envelope.content.len()
    }
}

/// The wait for envelopes that are missing before the held ones.
#[derive(Debug, PartialEq, Eq)]
pub enum ReorderWait {
    /// It starts now and lasts this long.
    Started(Duration),
    /// It started earlier and has not expired.
    Running,
    /// It has expired, and envelopes are still missing.
    Expired,
}

/// The held envelopes of one connection, in the order in which they were received. Boxed, because nearly always there are
/// none.
#[derive(Default)]
pub struct HeldEnvelopes(Option<Box<Held>>);

#[derive(Default)]
struct Held {
    /// The envelopes, each with its reservation of the node's budget.
    queue: VecDeque<(LiveEnvelope, SharedReservation)>,
    /// When the wait for missing envelopes expires, once it has started.
    wait_until: Option<Instant>,
}

impl HeldEnvelopes {
    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|held| held.queue.is_empty())
    }

    /// Holds an envelope. Returns false, and drops it, if [`MAX_HELD`] is reached or the memory is used up.
    pub fn hold(&mut self, envelope: LiveEnvelope, memory: &Account) -> bool {
        if self.0.as_ref().is_none_or(|held| held.queue.len() < MAX_HELD)
            && let Ok(reservation) = memory.try_reserve(envelope.bytes())
        {
            self.0.get_or_insert_default().queue.push_back((envelope, reservation));
            return true;
        }
        false
    }

    /// Removes and returns the envelope to send next, given that those up to `cursor` were sent. Drops the stored ones
    /// that need not be held: those up to `cursor`, and all of them if the window is full.
    pub fn release(&mut self, cursor: i64, window_is_full: bool) -> Option<LiveEnvelope> {
        let held = self.0.as_mut()?;
        held.queue.retain(
            |(envelope, _)| !matches!(envelope, LiveEnvelope::Stored(seq, _) if window_is_full || *seq <= cursor),
        );
        let is_next = |envelope: &LiveEnvelope| matches!(envelope, LiveEnvelope::Stored(seq, _) if *seq == cursor + 1);
        let at = match held.queue.front() {
            Some((LiveEnvelope::Ephemeral(_), _)) => Some(0),
            _ => held.queue.iter().position(|(envelope, _)| is_next(envelope)),
        };
        if at.is_some() {
            // Missing envelopes are coming in, so the wait may start again.
            held.wait_until = None;
        }
        let released = at.and_then(|at| held.queue.remove(at)).map(|(envelope, _)| envelope);
        if held.queue.is_empty() {
            self.0 = None;
        }
        released
    }

    /// Starts the wait for missing envelopes, unless it has started. Returns the state of the wait.
    pub fn wait_for_earlier(&mut self, now: Instant) -> ReorderWait {
        let wait_until = &mut self.0.get_or_insert_default().wait_until;
        match *wait_until {
            None => {
                *wait_until = Some(now + REORDER_WAIT);
                ReorderWait::Started(REORDER_WAIT)
            }
            Some(until) if now < until => ReorderWait::Running,
            Some(_) => ReorderWait::Expired,
        }
    }

    /// Ends the wait, because the store is read instead.
    pub fn stop_waiting(&mut self) {
        if let Some(held) = &mut self.0 {
            held.wait_until = None;
        }
    }
}
