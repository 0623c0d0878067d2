//! How far a connection has come in its device's mailbox.
//!
//! Envelopes are sent in the order of their numbers. One that arrives as a signal is sent at once if it is the next. One
//! that is ahead is held for a moment, since those before it may be on their way from another node; then the store is
//! read. The window bounds how many wait for their acks; the rest waits in the store.

mod held;
mod window;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::budget::Budget;
use crate::domain::{
    Envelope,
    envelope::{MailPage, MailPageRequest, MailboxStatus},
};
use held::{Held, Patience};
use window::Window;

pub use held::LiveEnvelope;

/// Envelopes that are read at once, and their content.
const PAGE_ENVELOPES: usize = 64;
const PAGE_BYTES: usize = 256 * 1024;

/// The delivery of one connection.
pub struct Delivery {
    /// Everything up to here has been sent over this connection, or is gone.
    cursor: i64,
    /// The newest envelope that is known of.
    head: i64,
    /// The newest envelope at connect, until the client has been sent the end of the backlog.
    backlog: Option<i64>,
    window: Window,
    is_reading: bool,
    held: Held,
    /// Whether there is something to read that will not arrive as a signal.
    is_urgent: bool,
}

/// How to get at what comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing to do: nothing waits, or it is under way, or the window is full.
    Nothing,
    /// Ask again after this time.
    Wait(Duration),
    /// Read the store.
    Read(Reading),
}

/// What is to be read from the store, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Which envelopes.
    pub page: MailPageRequest,
    /// Whether they were sent before.
    pub is_resend: bool,
}

impl Delivery {
    /// Begins with the mailbox as it was when the connection opened. `max_bytes` bounds the frames that wait for acks.
    pub fn new(max_bytes: usize, mailbox: MailboxStatus) -> Self {
        Self {
            cursor: if mailbox.waiting == 0 { mailbox.head } else { 0 },
            head: mailbox.head,
            backlog: Some(mailbox.head),
            window: Window::new(max_bytes),
            is_reading: false,
            held: Held::default(),
            is_urgent: false,
        }
    }

    /// Takes note of the number of a stored envelope that will not arrive itself.
    pub fn note(&mut self, seq: i64) {
        self.head = self.head.max(seq);
        self.is_urgent |= seq > self.cursor;
    }

    /// Takes in an envelope that arrived as a signal. Returns it if it may be sent at once; otherwise holds it, if it can:
    /// what it cannot hold is read from the store later, unless it is ephemeral.
    pub fn take_in(&mut self, envelope: LiveEnvelope, memory: &Budget) -> Option<LiveEnvelope> {
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
            self.is_urgent |= is_stored;
        }
        None
    }

    /// A held envelope that may be sent now.
    pub fn release(&mut self) -> Option<LiveEnvelope> {
        if self.is_reading {
            return None;
        }
        self.held.release(self.cursor, self.window.is_full())
    }

    /// Adds a frame that is being sent to the window. Returns false if it does not fit; one always fits into an empty window.
    pub fn add_to_window(&mut self, seq: i64, bytes: usize, now: Instant) -> bool {
        let is_added = self.window.add(seq, bytes, now);
        if is_added {
            self.cursor = seq;
        }
        is_added
    }

    /// Stops sending, since the outbox is full. Until [`Self::unblock`] or an ack nothing is read.
    pub fn block(&mut self) {
        self.window.block();
    }

    /// Ends [`Self::block`].
    pub fn unblock(&mut self) {
        self.window.unblock();
    }

    /// Takes note of acks; the numbers are sorted.
    pub fn ack(&mut self, seqs: &[i64]) {
        self.window.ack(seqs);
    }

    /// Whether envelopes wait for their acks.
    pub fn has_unacked(&self) -> bool {
        !self.window.is_empty()
    }

    /// When the oldest envelope without an ack is to be sent again.
    pub fn overdue_at(&self) -> Option<Instant> {
        self.window.overdue_at()
    }

    /// How to get at what comes next. If that is by reading, the reading has begun.
    pub fn next(&mut self, now: Instant) -> Next {
        if self.cursor >= self.head {
            self.is_urgent = false;
            return Next::Nothing;
        }
        if self.is_reading || self.window.is_full() {
            return Next::Nothing;
        }
        // The backlog is in the store alone.
        if !self.held.is_empty() && !self.is_urgent && self.backlog.is_none() {
            match self.held.await_earlier(now) {
                Patience::Begins(time) => return Next::Wait(time),
                Patience::Lasts => return Next::Nothing,
                Patience::IsOver => {}
            }
        }
        self.held.stop_awaiting();
        (self.is_urgent, self.is_reading) = (false, true);
        let envelopes = u32::try_from(PAGE_ENVELOPES.min(self.window.free_envelopes())).unwrap_or(1);
        let bytes = self.window.free_bytes().clamp(1, PAGE_BYTES);
        // The backlog first, since the client is sent its end.
        let upto = self.backlog.unwrap_or(self.head);
        Next::Read(Reading { page: MailPageRequest { after: self.cursor, upto, envelopes, bytes }, is_resend: false })
    }

    /// Ends a reading that failed.
    pub fn give_up_reading(&mut self) {
        self.is_reading = false;
    }

    /// Ends a reading of which everything was sent that fitted. `complete`: there is no more up to the end of its request.
    pub fn end_reading(&mut self, reading: Reading, complete: bool) {
        self.is_reading = false;
        if complete && !self.window.is_blocked() {
            self.cursor = self.cursor.max(reading.page.upto);
        } else {
            self.is_urgent = true;
        }
    }

    /// Begins to read what has waited too long for its ack, with what comes behind it.
    pub fn begin_resend(&mut self, now: Instant) -> Option<Reading> {
        let after = self.window.first_overdue(now)? - 1;
        if self.is_reading {
            return None;
        }
        self.is_reading = true;
        let envelopes = u32::try_from(PAGE_ENVELOPES).unwrap_or(1);
        let page = MailPageRequest { after, upto: self.cursor, envelopes, bytes: PAGE_BYTES };
        Some(Reading { page, is_resend: true })
    }

    /// Ends the reading for a resend. Returns the envelopes that still wait for an ack, which count as sent again.
    pub fn end_resend(&mut self, reading: Reading, read: MailPage, now: Instant) -> Vec<(i64, Arc<Envelope>)> {
        self.is_reading = false;
        let stored: Vec<i64> = read.envelopes.iter().map(|(seq, _)| *seq).collect();
        let after = reading.page.after;
        let upto = if read.complete { reading.page.upto } else { stored.last().copied().unwrap_or(after) };
        self.window.resent(after, upto, &stored, now);
        read.envelopes.into_iter().filter(|(seq, _)| self.window.contains(*seq)).collect()
    }

    /// Whether the backlog has been sent in full. True once.
    pub fn take_backlog_end(&mut self) -> bool {
        self.backlog.take_if(|backlog| self.cursor >= *backlog).is_some()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::{held::PATIENCE, window::RESEND_AFTER, *};
    use crate::domain::{DeviceId, MessageId, Timestamp, UserId};

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

    /// What is read now.
    fn read(delivery: &mut Delivery) -> Option<Reading> {
        match delivery.next(Instant::now()) {
            Next::Read(reading) => Some(reading),
            Next::Nothing => None,
            wait @ Next::Wait(_) => panic!("{wait:?}"),
        }
    }

    /// Takes in an envelope, sends what can be sent, and gives the numbers of that; 0 is one that is stored nowhere.
    fn arrives(delivery: &mut Delivery, seq: i64, memory: &Budget) -> Vec<i64> {
        let mut next = delivery.take_in(LiveEnvelope::Stored(seq, envelope()), memory).or_else(|| delivery.release());
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
    fn an_empty_mailbox_is_drained_at_once_and_live_mail_needs_no_reading() {
        let mut delivery = Delivery::new(1000, mailbox(7, 0));
        assert!(delivery.take_backlog_end());
        assert!(!delivery.take_backlog_end(), "said once");
        assert_eq!(arrives(&mut delivery, 8, &Budget::new(9)), [8]);
        assert_eq!(read(&mut delivery), None);
        assert!(arrives(&mut delivery, 8, &Budget::new(9)).is_empty(), "twice the same");
        // Word of one whose envelope is in the store alone.
        delivery.note(11);
        let reading = read(&mut delivery).unwrap();
        assert_eq!((reading.page.after, reading.page.upto), (8, 11));
        assert_eq!(read(&mut delivery), None, "one reading at a time");
    }

    #[test]
    fn gaps_are_passed_over_and_the_end_of_the_backlog_is_noticed() {
        let now = Instant::now();
        let mut delivery = Delivery::new(1000, mailbox(9, 3));
        // Word of a newer one came before the welcome.
        delivery.note(12);
        assert!(!delivery.take_backlog_end());
        let reading = read(&mut delivery).unwrap();
        assert_eq!((reading.page.after, reading.page.upto), (0, 9));
        assert!(delivery.add_to_window(2, 10, now) && delivery.add_to_window(5, 10, now));
        delivery.end_reading(reading, false);
        assert!(!delivery.take_backlog_end());
        let reading = read(&mut delivery).unwrap();
        assert_eq!(reading.page.after, 5);
        delivery.end_reading(reading, true);
        assert!(delivery.take_backlog_end(), "the rest was acked or has expired");
        let reading = read(&mut delivery).unwrap();
        assert_eq!((reading.page.after, reading.page.upto), (9, 12), "live ones come behind it");
    }

    #[test]
    fn what_has_no_room_waits_for_an_ack() {
        let now = Instant::now();
        let mut delivery = Delivery::new(100, mailbox(3, 3));
        let reading = read(&mut delivery).unwrap();
        assert!(delivery.add_to_window(1, 500, now), "one always goes");
        assert!(!delivery.add_to_window(2, 1, now));
        delivery.end_reading(reading, false);
        assert_eq!(read(&mut delivery), None);
        delivery.ack(&[7]);
        assert_eq!(read(&mut delivery), None, "an ack of something else");
        delivery.ack(&[1]);
        assert_eq!(read(&mut delivery).unwrap().page.after, 1);
    }

    #[test]
    fn no_more_than_the_window_is_under_way() {
        let now = Instant::now();
        let mut delivery = Delivery::new(1 << 20, mailbox(1000, 1000));
        for seq in 1..=256 {
            assert!(delivery.add_to_window(seq, 1, now));
        }
        let memory = Budget::new(9);
        assert!(arrives(&mut delivery, 1001, &memory).is_empty() && arrives(&mut delivery, 257, &memory).is_empty());
        assert_eq!(memory.in_use(), 0, "what has to wait for an ack waits in the store");
        assert!(!delivery.add_to_window(257, 1, now));
        delivery.ack(&[3]);
        assert!(arrives(&mut delivery, 1002, &memory).is_empty());
        assert_eq!(read(&mut delivery).unwrap().page.envelopes, 1, "the backlog waits for nobody");
    }

    #[test]
    fn what_comes_while_reading_is_kept_in_order() {
        let now = Instant::now();
        let mut delivery = Delivery::new(1000, mailbox(1, 1));
        let memory = Budget::new(64);
        let ephemeral = || LiveEnvelope::Ephemeral(envelope());
        assert!(delivery.take_in(ephemeral(), &memory).is_some(), "nothing is being read");
        let reading = read(&mut delivery).unwrap();
        assert!(delivery.take_in(ephemeral(), &memory).is_none());
        for seq in 2..200 {
            assert!(arrives(&mut delivery, seq, &memory).is_empty());
        }
        assert!(delivery.release().is_none(), "still reading");
        assert!(delivery.add_to_window(1, 1, now));
        delivery.end_reading(reading, true);
        assert_eq!(arrives(&mut delivery, 200, &memory), [0].into_iter().chain(2..65).collect::<Vec<_>>());
        assert_eq!(read(&mut delivery).unwrap().page.after, 64, "what was not kept is read at once");
        assert_eq!(memory.in_use(), 0);
    }

    #[test]
    fn what_is_ahead_waits_a_moment_for_those_before_it() {
        let start = Instant::now();
        let memory = Budget::new(64);
        let mut delivery = Delivery::new(1000, mailbox(0, 0));
        assert!(delivery.take_backlog_end());
        assert!(arrives(&mut delivery, 3, &memory).is_empty());
        assert_eq!(delivery.next(start), Next::Wait(PATIENCE));
        assert_eq!(delivery.next(start), Next::Nothing, "it is asked again after that time");
        assert!(delivery.take_in(LiveEnvelope::Ephemeral(envelope()), &memory).is_none(), "it overtakes nobody");
        assert!(arrives(&mut delivery, 5, &memory).is_empty());
        assert_eq!(arrives(&mut delivery, 1, &memory), [1]);
        assert_eq!(arrives(&mut delivery, 2, &memory), [2, 3, 0]);
        let later = start + PATIENCE;
        assert_eq!(delivery.next(later), Next::Wait(PATIENCE), "there was progress");
        assert_eq!(delivery.next(later), Next::Nothing);
        let Next::Read(reading) = delivery.next(later + PATIENCE) else { panic!("4 does not come") };
        assert_eq!((reading.page.after, reading.page.upto), (3, 5));
        assert!(delivery.add_to_window(4, 1, start) && delivery.add_to_window(5, 1, start));
        delivery.end_reading(reading, true);
        assert!(delivery.release().is_none());
        assert_eq!((read(&mut delivery), memory.in_use()), (None, 0));
    }

    #[test]
    fn nobody_waits_where_there_is_no_room_or_the_store_alone_can_tell() {
        let memory = Budget::new(2);
        let mut delivery = Delivery::new(4, mailbox(0, 0));
        assert!(delivery.take_backlog_end());
        for seq in 2..5 {
            assert!(arrives(&mut delivery, seq, &memory).is_empty());
        }
        let reading = read(&mut delivery).expect("memory was short");
        delivery.give_up_reading();
        delivery.note(9);
        assert_eq!(
            read(&mut delivery).map(|again| again.page.after),
            Some(reading.page.after),
            "9 itself is in the store"
        );
        delivery.give_up_reading();
        delivery.block();
        assert!(delivery.release().is_none());
        assert_eq!(memory.in_use(), 0, "who has no room keeps nothing");
    }

    #[test]
    fn what_is_overdue_is_read_again() {
        let start = Instant::now();
        let mut delivery = Delivery::new(1000, mailbox(4, 4));
        for seq in 1..=4_u8 {
            assert!(delivery.add_to_window(seq.into(), 10, start + Duration::from_secs(10) * seq.into()));
        }
        assert!(delivery.begin_resend(start + Duration::from_secs(69)).is_none());
        delivery.ack(&[1]);
        let now = start + Duration::from_secs(80);
        let reading = delivery.begin_resend(now).unwrap();
        assert_eq!((reading.page.after, reading.page.upto, reading.is_resend), (1, 4, true));
        // 2 is acked while it is read, 3 has expired.
        delivery.ack(&[2]);
        let again = delivery.end_resend(reading, page(&[2, 4], true), now);
        assert_eq!(again.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [4]);
        assert_eq!(delivery.overdue_at(), Some(now + RESEND_AFTER));
        delivery.ack(&[4]);
        assert_eq!(delivery.overdue_at(), None);
    }
}
