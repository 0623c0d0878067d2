//! Tracks the envelopes that were sent over a connection and are not acked yet, bounded in number and bytes.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Maximum number of unacked envelopes.
pub const MAX_UNACKED: usize = 256;
/// An envelope that is unacked for this long is sent again.
pub const RESEND_TIMEOUT: Duration = Duration::from_mins(1);

/// The window of one connection.
pub struct Window {
    max_bytes: usize,
    unacked: VecDeque<Unacked>,
    bytes: usize,
    /// Whether an envelope did not fit into the window or the outbox. Cleared by an ack and by [`Window::unblock`].
    is_blocked: bool,
}

struct Unacked {
    seq: i64,
    bytes: usize,
    sent_at: Instant,
}

impl Window {
    /// An empty window for at most `max_bytes` bytes of frames.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, unacked: VecDeque::new(), bytes: 0, is_blocked: false }
    }

    /// Adds an envelope that is about to be sent. If it does not fit, blocks the window and returns false; any envelope
    /// fits into an empty window.
    pub fn add(&mut self, seq: i64, bytes: usize, now: Instant) -> bool {
        let fits = self.unacked.len() < MAX_UNACKED && self.bytes + bytes <= self.max_bytes;
        if !fits && !self.unacked.is_empty() {
            self.is_blocked = true;
            return false;
        }
        self.unacked.push_back(Unacked { seq, bytes, sent_at: now });
        self.bytes += bytes;
        true
    }

    /// Blocks the window because the outbox is full, until [`Self::unblock`] or an ack.
    pub fn block(&mut self) {
        self.is_blocked = true;
    }

    /// Ends [`Self::block`].
    pub fn unblock(&mut self) {
        self.is_blocked = false;
    }

    /// Whether an envelope did not fit, and there was neither an ack nor [`Self::unblock`] since.
    pub fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// Whether nothing more may be sent before an ack or [`Self::unblock`].
    pub fn is_full(&self) -> bool {
        self.is_blocked || self.unacked.len() >= MAX_UNACKED
    }

    /// Whether nothing is unacked.
    pub fn is_empty(&self) -> bool {
        self.unacked.is_empty()
    }

    /// The number of envelopes that still fit.
    pub fn free_envelopes(&self) -> usize {
        MAX_UNACKED - self.unacked.len()
    }

    /// The number of bytes that still fit.
    pub fn free_bytes(&self) -> usize {
        self.max_bytes.saturating_sub(self.bytes)
    }

    /// Whether envelope `seq` is unacked.
    pub fn contains(&self, seq: i64) -> bool {
        self.unacked.iter().any(|unacked| unacked.seq == seq)
    }

    /// Removes the envelopes with these sequence numbers, which are sorted.
    pub fn ack(&mut self, seqs: &[i64]) {
        self.remove(|seq| seqs.binary_search(&seq).is_ok());
    }

    /// When the envelope that was sent first is due to be sent again.
    pub fn overdue_at(&self) -> Option<Instant> {
        self.unacked.iter().map(|unacked| unacked.sent_at).min().map(|sent_at| sent_at + RESEND_TIMEOUT)
    }

    /// The sequence number of the first envelope that is due to be sent again.
    pub fn first_overdue(&self, now: Instant) -> Option<i64> {
        self.unacked.iter().find(|unacked| unacked.sent_at + RESEND_TIMEOUT <= now).map(|unacked| unacked.seq)
    }

    /// Records a read of the envelopes after `after` and up to `through`. Those in `stored` (sorted) are still in the
    /// mailbox and count as sent now. The others are removed from the window.
    pub fn mark_resent(&mut self, after: i64, through: i64, stored: &[i64], now: Instant) {
        let was_read = |seq: i64| seq > after && seq <= through;
        self.remove(|seq| was_read(seq) && stored.binary_search(&seq).is_err());
        for unacked in self.unacked.iter_mut().filter(|unacked| was_read(unacked.seq)) {
            unacked.sent_at = now;
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
