//! Decides which received envelopes the app gets, and which are acked. Does no I/O.
//!
//! Envelopes come for the first time in the order of their `seq`, over all connections of a device, and are handled in
//! that order. So the highest `seq` that was handled is enough to recognize those that come again.

use std::collections::BTreeSet;

/// What to do with an envelope that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Give it to the app.
    New,
    /// The app has it, but has not handled it yet.
    Queued,
    /// The app has handled it; it is acked again.
    Handled,
}

/// The envelopes of a device between their arrival and their ack.
#[derive(Clone, Debug)]
pub struct Inbox {
    /// The highest `seq` that was handled.
    mark: i64,
    /// Given to the app and not handled yet.
    queued: BTreeSet<i64>,
    /// Handled, and to be acked.
    unacked: BTreeSet<i64>,
}

impl Inbox {
    /// An inbox of which all envelopes up to this `seq` were handled before; 0 if there were none.
    #[must_use]
    pub fn new(mark: i64) -> Self {
        Self { mark, queued: BTreeSet::new(), unacked: BTreeSet::new() }
    }

    /// An envelope has arrived.
    pub fn arrived(&mut self, seq: i64) -> Arrival {
        if self.queued.contains(&seq) {
            Arrival::Queued
        } else if seq <= self.mark {
            self.unacked.insert(seq);
            Arrival::Handled
        } else {
            self.queued.insert(seq);
            Arrival::New
        }
    }

    /// The app has handled an envelope.
    pub fn handled(&mut self, seq: i64) {
        self.queued.remove(&seq);
        self.unacked.insert(seq);
        self.mark = self.mark.max(seq);
    }

    /// Whether there is something to ack.
    #[must_use]
    pub fn has_unacked(&self) -> bool {
        !self.unacked.is_empty()
    }

    /// Takes the numbers for one ack, at most `limit` of them, lowest first. If the ack fails, give them back with
    /// [`ack_failed`](Self::ack_failed).
    pub fn take_unacked(&mut self, limit: usize) -> Vec<i64> {
        let taken: Vec<i64> = self.unacked.iter().copied().take(limit).collect();
        self.unacked.retain(|seq| !taken.contains(seq));
        taken
    }

    /// An ack was not answered, or refused.
    pub fn ack_failed(&mut self, seqs: impl IntoIterator<Item = i64>) {
        self.unacked.extend(seqs);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_envelope_is_given_to_the_app_once_and_acked_as_often_as_it_comes() {
        let mut inbox = Inbox::new(0);
        assert_eq!(inbox.arrived(1), Arrival::New);
        assert_eq!(inbox.arrived(1), Arrival::Queued, "again, while the app handles it");
        assert!(!inbox.has_unacked());
        inbox.handled(1);
        assert_eq!(inbox.take_unacked(10), [1]);
        assert_eq!(inbox.arrived(1), Arrival::Handled, "its ack was lost");
        assert_eq!(inbox.take_unacked(10), [1]);
        assert!(!inbox.has_unacked());
    }

    #[test]
    fn envelopes_up_to_the_mark_of_an_earlier_run_are_only_acked() {
        let mut inbox = Inbox::new(7);
        assert_eq!(inbox.arrived(7), Arrival::Handled);
        assert_eq!(inbox.arrived(8), Arrival::New);
        assert_eq!(inbox.take_unacked(10), [7]);
    }

    #[test]
    fn a_failed_ack_is_repeated() {
        let mut inbox = Inbox::new(0);
        for seq in 1..=3 {
            inbox.arrived(seq);
            inbox.handled(seq);
        }
        let taken = inbox.take_unacked(2);
        assert_eq!(taken, [1, 2]);
        inbox.ack_failed(taken);
        assert_eq!(inbox.take_unacked(10), [1, 2, 3]);
    }

    proptest! {
        /// Whatever comes again and however often: each envelope is given to the app once, in order, and acked.
        #[test]
        fn every_envelope_reaches_the_app_once(again in proptest::collection::vec((1_i64..40, any::<bool>()), 0..200)) {
            let mut inbox = Inbox::new(0);
            let (mut next, mut given, mut queue) = (1, Vec::new(), std::collections::VecDeque::new());
            let mut acked = BTreeSet::new();
            for (seq, handles) in again {
                // The server sends any of those that it has sent before, or the next.
                let seq = seq.min(next);
                next = next.max(seq + 1);
                if inbox.arrived(seq) == Arrival::New {
                    given.push(seq);
                    queue.push_back(seq);
                }
                if handles && let Some(seq) = queue.pop_front() {
                    inbox.handled(seq);
                }
                acked.extend(inbox.take_unacked(3));
            }
            prop_assert_eq!(&given, &(1..next).collect::<Vec<_>>());
            for seq in queue {
                inbox.handled(seq);
            }
            while inbox.has_unacked() {
                acked.extend(inbox.take_unacked(3));
            }
            prop_assert_eq!(acked.into_iter().collect::<Vec<_>>(), given);
        }
    }
}
