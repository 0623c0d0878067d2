//! Decides which envelopes of a device's mailbox are sent over one connection, and when.
//!
//! Envelopes are sent in sequence order. An envelope received as a signal is sent at once if its sequence number is the
//! next one. If numbers are missing before it, it is held briefly, because the missing ones may be on their way from
//! another node; after that the store is read. The backlog, which is what was stored when the connection opened, is
//! always read from the store. The window bounds how many sent envelopes may be unacked; the rest stay in the store.

mod held;
mod window;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::shares::Account;
use crate::domain::{
    Envelope,
    envelope::{MailPage, MailPageRequest, MailboxStatus},
};
use held::{HeldEnvelopes, ReorderWait};
use window::Window;

pub use held::LiveEnvelope;

/// Maximum number of envelopes per page that is read from the store.
const PAGE_ENVELOPES: usize = 64;
/// A page ends once the content of its envelopes reaches this number of bytes.
const PAGE_BYTES: usize = 256 * 1024;

/// The delivery state of one connection.
pub struct Delivery {
    /// Every envelope up to this sequence number was sent over this connection or is no longer stored.
    cursor: i64,
    /// The highest sequence number known.
    head: i64,
    /// The highest sequence number when the connection opened; `None` once the client was sent the end of this backlog.
    backlog: Option<i64>,
    window: Window,
    is_reading: bool,
    held: HeldEnvelopes,
    /// Whether to read the store at once, because it has an envelope whose content no signal will contain.
    must_read: bool,
}

/// What to do about envelopes that have not been sent yet.
#[derive(Debug, PartialEq, Eq)]
pub enum NextStep {
    /// Nothing: all are sent, a read or a wait is in progress, or the window is full.
    Idle,
    /// Call [`Delivery::next_step`] again after this time.
    Wait(Duration),
    /// Read this page from the store.
    Read(MailboxRead),
}

/// A page to read from the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MailboxRead {
    /// The range of envelopes.
    pub page: MailPageRequest,
    /// Whether the page is read to send unacked envelopes again.
    pub is_resend: bool,
}

impl Delivery {
    /// Starts from the mailbox status at the time the connection opened. `max_bytes` bounds the unacked frames.
    pub fn new(max_bytes: usize, mailbox: MailboxStatus) -> Self {
        Self {
            cursor: if mailbox.waiting == 0 { mailbox.head } else { 0 },
            head: mailbox.head,
            backlog: Some(mailbox.head),
            window: Window::new(max_bytes),
            is_reading: false,
            held: HeldEnvelopes::default(),
            must_read: false,
        }
    }

    /// Records that envelope `seq` must be read from the store, because no signal will contain it.
    pub fn note_stored(&mut self, seq: i64) {
        self.head = self.head.max(seq);
        self.must_read |= seq > self.cursor;
    }

    /// Receives the envelope of a signal. Returns it if it may be sent at once. Otherwise it is held if the limits
    /// allow it; if not, a stored envelope is read from the store later, and an ephemeral one is dropped.
    pub fn receive(&mut self, envelope: LiveEnvelope, memory: &Account) -> Option<LiveEnvelope> {
        let is_next = match &envelope {
            LiveEnvelope::Stored(seq, _) => {
                self.head = self.head.max(*seq);
                if *seq <= self.cursor {
                    return None;
                }
                *seq == self.cursor + 1 && !self.window.is_full()
            }
            LiveEnvelope::Ephemeral(_) => self.held.is_empty(),
        };
        if is_next && !self.is_reading {
            return Some(envelope);
        }
        let is_stored = matches!(&envelope, LiveEnvelope::Stored(..));
        if is_stored && self.window.is_full() {
            return None;
        }
        if !self.held.hold(envelope, memory) {
            self.must_read |= is_stored;
        }
        None
    }

    /// Removes and returns a held envelope that may be sent now.
    pub fn release(&mut self) -> Option<LiveEnvelope> {
        if self.is_reading {
            return None;
        }
        self.held.release(self.cursor, self.window.is_full())
    }

    /// Adds the frame of envelope `seq`, which is about to be sent, to the window. Returns false if it does not fit;
    /// any frame fits into an empty window.
    pub fn add_to_window(&mut self, seq: i64, bytes: usize, now: Instant) -> bool {
        let is_added = self.window.add(seq, bytes, now);
        if is_added {
            self.cursor = seq;
        }
        is_added
    }

    /// Stops sending because the outbox is full, until [`Self::unblock`] or an ack. The store is not read meanwhile.
    pub fn block(&mut self) {
        self.window.block();
    }

    /// Ends [`Self::block`].
    pub fn unblock(&mut self) {
        self.window.unblock();
    }

    /// Removes acked envelopes from the window. `seqs` is sorted.
    pub fn ack(&mut self, seqs: &[i64]) {
        self.window.ack(seqs);
    }

    /// Whether any sent envelope is unacked.
    pub fn has_unacked(&self) -> bool {
        !self.window.is_empty()
    }

    /// When the unacked envelope that was sent first is due to be sent again.
    pub fn overdue_at(&self) -> Option<Instant> {
        self.window.overdue_at()
    }

    /// Decides what to do next. After [`NextStep::Read`] a read counts as in progress until [`Self::finish_read`] or
    /// [`Self::abandon_read`].
    pub fn next_step(&mut self, now: Instant) -> NextStep {
        if self.cursor >= self.head {
            self.must_read = false;
            return NextStep::Idle;
        }
        if self.is_reading || self.window.is_full() {
            return NextStep::Idle;
        }
        // No signal brings an envelope of the backlog, so there is no point in waiting for one.
        if !self.held.is_empty() && !self.must_read && self.backlog.is_none() {
            match self.held.wait_for_earlier(now) {
                ReorderWait::Started(time) => return NextStep::Wait(time),
                ReorderWait::Running => return NextStep::Idle,
                ReorderWait::Expired => {}
            }
        }
        self.held.stop_waiting();
        (self.must_read, self.is_reading) = (false, true);
        let envelopes = u32::try_from(PAGE_ENVELOPES.min(self.window.free_envelopes())).unwrap_or(1);
        let bytes = self.window.free_bytes().clamp(1, PAGE_BYTES);
        // The backlog is read first, because its end is announced to the client.
        let through = self.backlog.unwrap_or(self.head);
        NextStep::Read(MailboxRead {
            page: MailPageRequest { after: self.cursor, through, envelopes, bytes },
            is_resend: false,
        })
    }

    /// Ends a read that failed or was not started.
    pub fn abandon_read(&mut self) {
        self.is_reading = false;
    }

    /// Ends a read after sending what fitted. `complete` means that nothing is left to send in the requested range.
    pub fn finish_read(&mut self, read: MailboxRead, complete: bool) {
        self.is_reading = false;
        if complete && !self.window.is_blocked() {
            self.cursor = self.cursor.max(read.page.through);
        } else {
            self.must_read = true;
        }
    }

    /// Starts a read of the first envelope whose ack is overdue and of those sent after it. Returns `None` if none is
    /// overdue or a read is in progress.
    pub fn begin_resend(&mut self, now: Instant) -> Option<MailboxRead> {
        let after = self.window.first_overdue(now)? - 1;
        if self.is_reading {
            return None;
        }
        self.is_reading = true;
        let envelopes = u32::try_from(PAGE_ENVELOPES).unwrap_or(1);
        let page = MailPageRequest { after, through: self.cursor, envelopes, bytes: PAGE_BYTES };
        Some(MailboxRead { page, is_resend: true })
    }

    /// Ends the read that [`Self::begin_resend`] started. Returns the envelopes to send again: those that are still
    /// unacked.
    pub fn finish_resend(&mut self, read: MailboxRead, page: MailPage, now: Instant) -> Vec<(i64, Arc<Envelope>)> {
        self.is_reading = false;
        let stored: Vec<i64> = page.envelopes.iter().map(|(seq, _)| *seq).collect();
        let after = read.page.after;
        let through = if page.complete { read.page.through } else { stored.last().copied().unwrap_or(after) };
        self.window.mark_resent(after, through, &stored, now);
        page.envelopes.into_iter().filter(|(seq, _)| self.window.contains(*seq)).collect()
    }

    /// Returns true once, when the backlog has been sent in full.
    pub fn take_backlog_end(&mut self) -> bool {
        self.backlog.take_if(|backlog| self.cursor >= *backlog).is_some()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::{held::REORDER_WAIT, window::RESEND_TIMEOUT, *};
    use crate::domain::{DeviceId, MessageId, Timestamp, UserId};
    use crate::socket::shares::{Holder, SharedBudget};

    fn mailbox(head: i64, waiting: u64) -> MailboxStatus {
        MailboxStatus { head, waiting, expired_total: 0 }
    }

    fn page(seqs: &[i64], complete: bool) -> MailPage {
        let envelope = Arc::new(Envelope {
            message: MessageId(Uuid::nil()),
            from_user: UserId(Uuid::nil()),
            from_device: DeviceId(Uuid::nil()),
            kind: 0,
            content: bytes::Bytes::from_static(b"x"),
            accepted_at: Timestamp::parse("2026-01-01T00:00:00Z").unwrap(),
        });
        MailPage { envelopes: seqs.iter().map(|seq| (*seq, envelope.clone())).collect(), complete }
    }

    fn envelope() -> Arc<Envelope> {
        page(&[1], true).envelopes.remove(0).1
    }

    /// The read that the delivery asks for, if it asks for one.
    fn next_read(delivery: &mut Delivery) -> Option<MailboxRead> {
        match delivery.next_step(Instant::now()) {
            NextStep::Read(read) => Some(read),
            NextStep::Idle => None,
            wait @ NextStep::Wait(_) => panic!("unexpected {wait:?}"),
        }
    }

    /// Receives a stored envelope and sends all that can be sent. Returns the sequence numbers sent, 0 for an ephemeral
    /// one.
    fn receive(delivery: &mut Delivery, seq: i64, memory: &Account) -> Vec<i64> {
        let mut next = delivery.receive(LiveEnvelope::Stored(seq, envelope()), memory).or_else(|| delivery.release());
        let mut numbers = Vec::new();
        while let Some(envelope) = next {
            numbers.push(match envelope {
                LiveEnvelope::Stored(seq, _) => {
                    assert!(delivery.add_to_window(seq, 1, Instant::now()));
                    seq
                }
                LiveEnvelope::Ephemeral(_) => 0,
            });
            next = delivery.release();
        }
        numbers
    }

    #[test]
    fn an_empty_mailbox_is_drained_at_once_and_signalled_mail_is_sent_without_a_read() {
        let mut delivery = Delivery::new(1000, mailbox(7, 0));
        assert!(delivery.take_backlog_end());
        assert!(!delivery.take_backlog_end(), "the end is reported once");
        assert_eq!(receive(&mut delivery, 8, &SharedBudget::new(9, 9).account(Holder::NOBODY)), [8]);
        assert_eq!(next_read(&mut delivery), None);
        assert!(
            receive(&mut delivery, 8, &SharedBudget::new(9, 9).account(Holder::NOBODY)).is_empty(),
            "a duplicate is dropped"
        );
        // A signal without the envelope.
        delivery.note_stored(11);
        let read = next_read(&mut delivery).unwrap();
        assert_eq!((read.page.after, read.page.through), (8, 11));
        assert_eq!(next_read(&mut delivery), None, "one read at a time");
    }

    #[test]
    fn gaps_in_the_backlog_are_skipped_and_its_end_is_reported() {
        let now = Instant::now();
        let mut delivery = Delivery::new(1000, mailbox(9, 3));
        // A newer envelope was signalled before the welcome.
        delivery.note_stored(12);
        assert!(!delivery.take_backlog_end());
        let read = next_read(&mut delivery).unwrap();
        assert_eq!((read.page.after, read.page.through), (0, 9));
        assert!(delivery.add_to_window(2, 10, now) && delivery.add_to_window(5, 10, now));
        delivery.finish_read(read, false);
        assert!(!delivery.take_backlog_end());
        let read = next_read(&mut delivery).unwrap();
        assert_eq!(read.page.after, 5);
        delivery.finish_read(read, true);
        assert!(delivery.take_backlog_end(), "the rest were acked or have expired");
        let read = next_read(&mut delivery).unwrap();
        assert_eq!((read.page.after, read.page.through), (9, 12), "newer envelopes come after the backlog");
    }

    #[test]
    fn an_envelope_that_does_not_fit_into_the_window_waits_for_an_ack() {
        let now = Instant::now();
        let mut delivery = Delivery::new(100, mailbox(3, 3));
        let read = next_read(&mut delivery).unwrap();
        assert!(delivery.add_to_window(1, 500, now), "any envelope fits into an empty window");
        assert!(!delivery.add_to_window(2, 1, now));
        delivery.finish_read(read, false);
        assert_eq!(next_read(&mut delivery), None);
        delivery.ack(&[7]);
        assert_eq!(next_read(&mut delivery), None, "an ack of another envelope");
        delivery.ack(&[1]);
        assert_eq!(next_read(&mut delivery).unwrap().page.after, 1);
    }

    #[test]
    fn a_full_window_stops_sending_and_holds_nothing_in_memory() {
        let now = Instant::now();
        let mut delivery = Delivery::new(1 << 20, mailbox(1000, 1000));
        for seq in 1..=256 {
            assert!(delivery.add_to_window(seq, 1, now));
        }
        let budget = SharedBudget::new(9, 9).account(Holder::NOBODY);
        assert!(receive(&mut delivery, 1001, &budget).is_empty() && receive(&mut delivery, 257, &budget).is_empty());
        assert_eq!(budget.budget().in_use(), 0, "envelopes that wait for an ack stay in the store");
        assert!(!delivery.add_to_window(257, 1, now));
        delivery.ack(&[3]);
        assert!(receive(&mut delivery, 1002, &budget).is_empty());
        assert_eq!(
            next_read(&mut delivery).unwrap().page.envelopes,
            1,
            "the backlog is read without waiting for signals"
        );
    }

    #[test]
    fn envelopes_received_during_a_read_are_sent_after_it_in_order() {
        let now = Instant::now();
        let mut delivery = Delivery::new(1000, mailbox(1, 1));
        let budget = SharedBudget::new(64, 64).account(Holder::NOBODY);
        let ephemeral = || LiveEnvelope::Ephemeral(envelope());
        assert!(delivery.receive(ephemeral(), &budget).is_some(), "no read is in progress");
        let read = next_read(&mut delivery).unwrap();
        assert!(delivery.receive(ephemeral(), &budget).is_none());
        for seq in 2..200 {
            assert!(receive(&mut delivery, seq, &budget).is_empty());
        }
        assert!(delivery.release().is_none(), "the read is in progress");
        assert!(delivery.add_to_window(1, 1, now));
        delivery.finish_read(read, true);
        assert_eq!(receive(&mut delivery, 200, &budget), [0].into_iter().chain(2..65).collect::<Vec<_>>());
        assert_eq!(
            next_read(&mut delivery).unwrap().page.after,
            64,
            "envelopes that could not be held are read at once"
        );
        assert_eq!(budget.budget().in_use(), 0);
    }

    #[test]
    fn an_envelope_after_a_gap_waits_briefly_for_the_missing_ones() {
        let start = Instant::now();
        let budget = SharedBudget::new(64, 64).account(Holder::NOBODY);
        let mut delivery = Delivery::new(1000, mailbox(0, 0));
        assert!(delivery.take_backlog_end());
        assert!(receive(&mut delivery, 3, &budget).is_empty());
        assert_eq!(delivery.next_step(start), NextStep::Wait(REORDER_WAIT));
        assert_eq!(delivery.next_step(start), NextStep::Idle, "the wait is in progress");
        assert!(
            delivery.receive(LiveEnvelope::Ephemeral(envelope()), &budget).is_none(),
            "an ephemeral envelope does not overtake held ones"
        );
        assert!(receive(&mut delivery, 5, &budget).is_empty());
        assert_eq!(receive(&mut delivery, 1, &budget), [1]);
        assert_eq!(receive(&mut delivery, 2, &budget), [2, 3, 0]);
        let later = start + REORDER_WAIT;
        assert_eq!(
            delivery.next_step(later),
            NextStep::Wait(REORDER_WAIT),
            "an envelope was released, so the wait starts again"
        );
        assert_eq!(delivery.next_step(later), NextStep::Idle);
        let NextStep::Read(read) = delivery.next_step(later + REORDER_WAIT) else {
            panic!("4 is still missing, so the store should be read")
        };
        assert_eq!((read.page.after, read.page.through), (3, 5));
        assert!(delivery.add_to_window(4, 1, start) && delivery.add_to_window(5, 1, start));
        delivery.finish_read(read, true);
        assert!(delivery.release().is_none());
        assert_eq!((next_read(&mut delivery), budget.budget().in_use()), (None, 0));
    }

    #[test]
    fn the_store_is_read_without_a_wait_if_an_envelope_cannot_be_held_or_was_not_signalled() {
        let budget = SharedBudget::new(2, 2).account(Holder::NOBODY);
        let mut delivery = Delivery::new(4, mailbox(0, 0));
        assert!(delivery.take_backlog_end());
        for seq in 2..5 {
            assert!(receive(&mut delivery, seq, &budget).is_empty());
        }
        let read = next_read(&mut delivery).expect("the budget is used up");
        delivery.abandon_read();
        delivery.note_stored(9);
        assert_eq!(
            next_read(&mut delivery).map(|again| again.page.after),
            Some(read.page.after),
            "9 was signalled without its envelope"
        );
        delivery.abandon_read();
        delivery.block();
        assert!(delivery.release().is_none());
        assert_eq!(budget.budget().in_use(), 0, "a blocked connection holds no stored envelopes");
    }

    #[test]
    fn envelopes_with_an_overdue_ack_are_sent_again_if_they_are_still_stored() {
        let start = Instant::now();
        let mut delivery = Delivery::new(1000, mailbox(4, 4));
        for seq in 1..=4_u8 {
            assert!(delivery.add_to_window(seq.into(), 10, start + Duration::from_secs(10) * seq.into()));
        }
        assert!(delivery.begin_resend(start + Duration::from_secs(69)).is_none());
        delivery.ack(&[1]);
        let now = start + Duration::from_secs(80);
        let read = delivery.begin_resend(now).unwrap();
        assert_eq!((read.page.after, read.page.through, read.is_resend), (1, 4, true));
        // 2 is acked during the read; 3 has expired.
        delivery.ack(&[2]);
        let again = delivery.finish_resend(read, page(&[2, 4], true), now);
        assert_eq!(again.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [4]);
        assert_eq!(delivery.overdue_at(), Some(now + RESEND_TIMEOUT));
        delivery.ack(&[4]);
        assert_eq!(delivery.overdue_at(), None);
    }
}
