//! The envelopes that were sent over a connection and wait for their acks, bounded in number and in bytes.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Envelopes that may wait for their acks.
pub const MAX_ENVELOPES: usize = 256;
/// After this long without an ack an envelope is sent again.
pub const RESEND_AFTER: Duration = Duration::from_mins(1);

/// The window of one connection.
pub struct Window {
    max_bytes: usize,
    unacked: VecDeque<Unacked>,
    bytes: usize,
    /// Whether the next envelope did not fit, here or in the outbox. An ack clears it.
    is_blocked: bool,
}

struct Unacked {
    seq: i64,
    bytes: usize,
    sent: Instant,
}

impl Window {
    /// An empty window for `max_bytes` bytes of frames.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, unacked: VecDeque::new(), bytes: 0, is_blocked: false }
    }

    /// Adds an envelope that is being sent. Returns false, and blocks the window, if it does not fit; one always fits into
    /// an empty window.
    pub fn add(&mut self, seq: i64, bytes: usize, now: Instant) -> bool {
        let fits = self.unacked.len() < MAX_ENVELOPES && self.bytes + bytes <= self.max_bytes;
        if !fits && !self.unacked.is_empty() {
            self.is_blocked = true;
            return false;
        }
        self.unacked.push_back(Unacked { seq, bytes, sent: now });
        self.bytes += bytes;
        true
    }

    /// Blocks the window, since the outbox is full. Until [`Self::unblock`] or an ack nothing is sent.
    pub fn block(&mut self) {
        self.is_blocked = true;
    }

    /// Ends [`Self::block`].
    pub fn unblock(&mut self) {
        self.is_blocked = false;
    }

    /// Whether something did not fit since the last ack.
    pub fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// Whether nothing more may be sent before an ack.
    pub fn is_full(&self) -> bool {
        self.is_blocked || self.unacked.len() >= MAX_ENVELOPES
    }

    /// Whether nothing waits for an ack.
    pub fn is_empty(&self) -> bool {
        self.unacked.is_empty()
    }

    /// Envelopes for which there is space.
    pub fn free_envelopes(&self) -> usize {
        MAX_ENVELOPES - self.unacked.len()
    }

    /// Bytes for which there is space.
    pub fn free_bytes(&self) -> usize {
        self.max_bytes.saturating_sub(self.bytes)
    }

    /// Whether an envelope waits for its ack.
    pub fn contains(&self, seq: i64) -> bool {
        self.unacked.iter().any(|unacked| unacked.seq == seq)
    }

    /// Removes the envelopes with these numbers, which are sorted.
    pub fn ack(&mut self, seqs: &[i64]) {
        self.remove(|seq| seqs.binary_search(&seq).is_ok());
    }

    /// When the oldest envelope is to be sent again.
    pub fn overdue_at(&self) -> Option<Instant> {
        self.unacked.iter().map(|unacked| unacked.sent).min().map(|sent| sent + RESEND_AFTER)
    }

    /// The first envelope that is to be sent again.
    pub fn first_overdue(&self, now: Instant) -> Option<i64> {
        self.unacked.iter().find(|unacked| unacked.sent + RESEND_AFTER <= now).map(|unacked| unacked.seq)
    }

    /// Takes note that the mailbox holds only the `stored` ones (sorted) of the envelopes behind `after` up to `upto`. Those
    /// are being sent again; the others are gone.
    pub fn resent(&mut self, after: i64, upto: i64, stored: &[i64], now: Instant) {
        let was_read = |seq: i64| seq > after && seq <= upto;
        self.remove(|seq| was_read(seq) && stored.binary_search(&seq).is_err());
        for unacked in self.unacked.iter_mut().filter(|unacked| was_read(unacked.seq)) {
            unacked.sent = now;
        }
    }

    fn remove(&mut self, is_gone: impl Fn(i64) -> bool) {
        let before = self.unacked.len();
        self.unacked.retain(|unacked| !is_gone(unacked.seq));
        if self.unacked.len() < before {
            self.bytes = self.unacked.iter().map(|unacked| unacked.bytes).sum();
            self.is_blocked = false;
            if self.unacked.is_empty() {
                // An idle connection keeps no buffer.
                self.unacked = VecDeque::new();
            }
        }
    }
}
