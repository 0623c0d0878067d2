//! How far a connection has come in its device's mailbox.
//!
//! Envelopes are sent in the order of their numbers. One that arrives as a signal is sent at once if it is the next. One
//! that is ahead is kept for a moment, since those before it may be on their way from another node; then the store is
//! read. So many are under way at once, in number and in bytes, and the rest waits for acks.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::domain::{
    Envelope,
    envelope::{MailboxStatus, Page, PageRequest},
};

use super::budget::{Budget, Reservation};

/// Envelopes that may be under way without an ack.
const WINDOW: usize = 256;
/// After this long without an ack an envelope is sent again.
const RESEND_AFTER: Duration = Duration::from_mins(1);
/// Envelopes that are read at once, and their content.
const PAGE_ENVELOPES: usize = 64;
pub const PAGE_BYTES: usize = 256 * 1024;
/// Signals that are kept while the store is read or others are awaited.
const HELD: usize = 64;
/// How long an envelope that is ahead waits for those before it. The bus takes a few milliseconds.
const PATIENCE: Duration = Duration::from_millis(20);

/// The state of one connection.
pub struct Delivery {
    /// Bytes of frames that may be under way.
    room: usize,
    /// Everything up to here has been sent over this connection, or is gone.
    cursor: i64,
    /// The newest envelope that is known of.
    head: i64,
    /// The newest envelope at connect, until the client has been told that the backlog is through.
    backlog: Option<i64>,
    unacked: VecDeque<Unacked>,
    unacked_bytes: usize,
    /// Whether the next envelope did not fit; an ack clears it.
    full: bool,
    reading: bool,
    /// What cannot be sent yet, as it arrived, with what each draws on the node's memory.
    held: VecDeque<(Held, Reservation)>,
    /// Until when those before what is held are awaited, once that has begun.
    patience: Option<Instant>,
    /// Whether there is something to be read that will not arrive by itself.
    urgent: bool,
}

struct Unacked {
    seq: i64,
    bytes: usize,
    sent: Instant,
}

/// Something that arrived.
pub enum Held {
    /// A stored envelope.
    Mail(i64, Arc<Envelope>),
    /// One that is stored nowhere.
    Ephemeral(Arc<Envelope>),
}

impl Held {
    fn bytes(&self) -> usize {
        let (Self::Mail(_, envelope) | Self::Ephemeral(envelope)) = self;
        envelope.content.len()
    }
}

/// How to get at what comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing, or it is under way, or there is no room for it.
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
    pub page: PageRequest,
    /// Whether they were sent before.
    pub again: bool,
}

impl Delivery {
    /// Nothing is known of the mailbox yet. `room` bounds the bytes of frames under way.
    pub fn new(room: usize) -> Self {
        Self {
            room,
            cursor: 0,
            head: 0,
            backlog: None,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
            full: false,
            reading: false,
            held: VecDeque::new(),
            patience: None,
            urgent: false,
        }
    }

    /// Takes note of the mailbox as it was when the connection opened.
    pub fn open(&mut self, mailbox: MailboxStatus) {
        self.head = self.head.max(mailbox.head);
        self.backlog = Some(mailbox.head);
        if mailbox.waiting == 0 {
            self.cursor = mailbox.head;
        }
    }

    /// Takes note of an envelope's number, which is all that will arrive of it.
    pub fn note(&mut self, seq: i64) {
        self.head = self.head.max(seq);
        self.urgent |= seq > self.cursor;
    }

    /// Gives back what arrives if it may be sent at once. Otherwise keeps it, as far as there is room and memory; of what
    /// is not kept, the store has what counts.
    pub fn arrived(&mut self, arrived: Held, memory: &Budget) -> Option<Held> {
        let at_once = match &arrived {
            Held::Mail(seq, _) => {
                self.head = self.head.max(*seq);
                if *seq <= self.cursor {
                    return None;
                }
                *seq == self.cursor + 1 && !self.is_full()
            }
            Held::Ephemeral(_) => self.held.is_empty(),
        };
        if at_once && !self.reading {
            return Some(arrived);
        }
        let is_stored = matches!(&arrived, Held::Mail(..));
        if is_stored && self.is_full() {
            return None;
        }
        match memory.try_reserve(arrived.bytes()).filter(|_| self.held.len() < HELD) {
            Some(reservation) => self.held.push_back((arrived, reservation)),
            None => self.urgent |= is_stored,
        }
        None
    }

    /// Something of what was kept that may be sent now.
    pub fn release(&mut self) -> Option<Held> {
        if self.reading {
            return None;
        }
        let (cursor, full) = (self.cursor, self.is_full());
        self.held.retain(|(held, _)| !matches!(held, Held::Mail(seq, _) if full || *seq <= cursor));
        let is_next = |held: &Held| matches!(held, Held::Mail(seq, _) if *seq == cursor + 1);
        let at = match self.held.front() {
            Some((Held::Ephemeral(_), _)) => Some(0),
            _ => self.held.iter().position(|(held, _)| is_next(held)),
        };
        if at.is_some() {
            // There was progress, so there may be more.
            self.patience = None;
        }
        let released = at.and_then(|at| self.held.remove(at)).map(|(held, _)| held);
        if self.held.is_empty() {
            self.held = VecDeque::new();
            self.patience = None;
        }
        released
    }

    /// Takes note that a frame with an envelope will be sent, if there is room for it. There always is for one.
    pub fn admit(&mut self, seq: i64, bytes: usize, now: Instant) -> bool {
        let fits = self.unacked.len() < WINDOW && self.unacked_bytes + bytes <= self.room;
        if !fits && !self.unacked.is_empty() {
            self.full = true;
            return false;
        }
        self.unacked.push_back(Unacked { seq, bytes, sent: now });
        self.unacked_bytes += bytes;
        self.cursor = seq;
        true
    }

    /// Whether nothing more may be sent before an ack. What arrives meanwhile is read from the store later.
    fn is_full(&self) -> bool {
        self.full || self.unacked.len() >= WINDOW
    }

    /// Takes note that the outbox has no room. Until [`Self::go_on`] nothing is read.
    pub fn wait(&mut self) {
        self.full = true;
    }

    /// Takes note that the outbox may have room again.
    pub fn go_on(&mut self) {
        self.full = false;
    }

    /// Takes note of acks; the numbers are sorted.
    pub fn acked(&mut self, seqs: &[i64]) {
        self.forget(|unacked| seqs.binary_search(&unacked.seq).is_ok());
    }

    fn forget(&mut self, gone: impl Fn(&Unacked) -> bool) {
        let before = self.unacked.len();
        self.unacked.retain(|unacked| !gone(unacked));
        if self.unacked.len() < before {
            self.unacked_bytes = self.unacked.iter().map(|unacked| unacked.bytes).sum();
            self.full = false;
            if self.unacked.is_empty() {
                self.unacked = VecDeque::new();
            }
        }
    }

    /// Whether envelopes wait for their acks.
    pub fn is_under_way(&self) -> bool {
        !self.unacked.is_empty()
    }

    /// When the oldest envelope under way is to be sent again.
    pub fn overdue_at(&self) -> Option<Instant> {
        self.unacked.iter().map(|unacked| unacked.sent).min().map(|sent| sent + RESEND_AFTER)
    }

    /// How to get at what comes next. Where that is by reading, it has begun.
    pub fn next(&mut self, now: Instant) -> Next {
        if self.cursor >= self.head {
            self.urgent = false;
            return Next::Nothing;
        }
        if self.reading || self.is_full() {
            return Next::Nothing;
        }
        // The backlog is in the store alone.
        if !self.held.is_empty() && !self.urgent && self.backlog.is_none() {
            match self.patience {
                None => {
                    self.patience = Some(now + PATIENCE);
                    return Next::Wait(PATIENCE);
                }
                Some(until) if now < until => return Next::Nothing,
                Some(_) => {}
            }
        }
        (self.patience, self.urgent, self.reading) = (None, false, true);
        let envelopes = u32::try_from(PAGE_ENVELOPES.min(WINDOW - self.unacked.len())).unwrap_or(1);
        let bytes = self.room.saturating_sub(self.unacked_bytes).clamp(1, PAGE_BYTES);
        // The backlog first, whose end the client is told of.
        let upto = self.backlog.unwrap_or(self.head);
        Next::Read(Reading { page: PageRequest { after: self.cursor, upto, envelopes, bytes }, again: false })
    }

    /// Begins to read what has waited too long for its ack, with what comes behind it.
    pub fn begin_again(&mut self, now: Instant) -> Option<Reading> {
        let overdue = |unacked: &&Unacked| unacked.sent + RESEND_AFTER <= now;
        let after = self.unacked.iter().find(overdue)?.seq - 1;
        if self.reading {
            return None;
        }
        self.reading = true;
        let envelopes = u32::try_from(PAGE_ENVELOPES).unwrap_or(1);
        let page = PageRequest { after, upto: self.cursor, envelopes, bytes: PAGE_BYTES };
        Some(Reading { page, again: true })
    }

    /// Ends a reading that failed.
    pub fn give_up_reading(&mut self) {
        self.reading = false;
    }

    /// Ends a reading of which everything was sent that had room. `complete`: there is no more up to where it asked for.
    pub fn end_reading(&mut self, reading: Reading, complete: bool) {
        self.reading = false;
        if complete && !self.full {
            self.cursor = self.cursor.max(reading.page.upto);
        } else {
            self.urgent = true;
        }
    }

    /// Takes note that these envelopes are sent again, and gives those that still wait for an ack. Others between them
    /// that were under way are gone from the mailbox.
    pub fn end_again(&mut self, reading: Reading, read: Page, now: Instant) -> Vec<(i64, Arc<Envelope>)> {
        self.reading = false;
        let found: Vec<i64> = read.envelopes.iter().map(|(seq, _)| *seq).collect();
        let upto = if read.complete { reading.page.upto } else { found.last().copied().unwrap_or(reading.page.after) };
        let was_read = |unacked: &Unacked| unacked.seq > reading.page.after && unacked.seq <= upto;
        self.forget(|unacked| was_read(unacked) && found.binary_search(&unacked.seq).is_err());
        for unacked in self.unacked.iter_mut().filter(|unacked| was_read(unacked)) {
            unacked.sent = now;
        }
        let waits = |seq: &i64| self.unacked.iter().any(|unacked| unacked.seq == *seq);
        read.envelopes.into_iter().filter(|(seq, _)| waits(seq)).collect()
    }

    /// Whether the backlog has just been sent in full. Says so once.
    pub fn is_drained(&mut self) -> bool {
        self.backlog.take_if(|backlog| self.cursor >= *backlog).is_some()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{DeviceId, MessageId, Timestamp, UserId};

    fn mailbox(head: i64, waiting: u64) -> MailboxStatus {
        MailboxStatus { head, waiting, expired_total: 0 }
    }

    fn page(seqs: &[i64], complete: bool) -> Page {
        let envelope = Arc::new(Envelope {
            message: MessageId(Uuid::nil()),
            from_user: UserId(Uuid::nil()),
            from_device: DeviceId(Uuid::nil()),
            kind: 0,
            content: bytes::Bytes::from_static(b"x"),
            accepted_at: Timestamp::parse("2026-01-01T00:00:00Z").unwrap(),
        });
        Page { envelopes: seqs.iter().map(|seq| (*seq, envelope.clone())).collect(), complete }
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
        let mut next = delivery.arrived(Held::Mail(seq, envelope()), memory).or_else(|| delivery.release());
        let mut numbers = Vec::new();
        while let Some(held) = next {
            numbers.push(match held {
                Held::Mail(seq, _) => {
                    assert!(delivery.admit(seq, 1, Instant::now()));
                    seq
                }
                Held::Ephemeral(_) => 0,
            });
            next = delivery.release();
        }
        numbers
    }

    #[test]
    fn an_empty_mailbox_is_drained_at_once_and_live_mail_needs_no_reading() {
        let mut delivery = Delivery::new(1000);
        delivery.open(mailbox(7, 0));
        assert!(delivery.is_drained());
        assert!(!delivery.is_drained(), "said once");
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
        let mut delivery = Delivery::new(1000);
        // Word of a newer one came before the welcome.
        delivery.note(12);
        delivery.open(mailbox(9, 3));
        assert!(!delivery.is_drained());
        let reading = read(&mut delivery).unwrap();
        assert_eq!((reading.page.after, reading.page.upto), (0, 9));
        assert!(delivery.admit(2, 10, now) && delivery.admit(5, 10, now));
        delivery.end_reading(reading, false);
        assert!(!delivery.is_drained());
        let reading = read(&mut delivery).unwrap();
        assert_eq!(reading.page.after, 5);
        delivery.end_reading(reading, true);
        assert!(delivery.is_drained(), "the rest was acked or has expired");
        let reading = read(&mut delivery).unwrap();
        assert_eq!((reading.page.after, reading.page.upto), (9, 12), "live ones come behind it");
    }

    #[test]
    fn what_has_no_room_waits_for_an_ack() {
        let now = Instant::now();
        let mut delivery = Delivery::new(100);
        delivery.open(mailbox(3, 3));
        let reading = read(&mut delivery).unwrap();
        assert!(delivery.admit(1, 500, now), "one always goes");
        assert!(!delivery.admit(2, 1, now));
        delivery.end_reading(reading, false);
        assert_eq!(read(&mut delivery), None);
        delivery.acked(&[7]);
        assert_eq!(read(&mut delivery), None, "an ack of something else");
        delivery.acked(&[1]);
        assert_eq!(read(&mut delivery).unwrap().page.after, 1);
    }

    #[test]
    fn no_more_than_the_window_is_under_way() {
        let now = Instant::now();
        let mut delivery = Delivery::new(1 << 20);
        delivery.open(mailbox(1000, 1000));
        for seq in 1..=256 {
            assert!(delivery.admit(seq, 1, now));
        }
        let memory = Budget::new(9);
        assert!(arrives(&mut delivery, 1001, &memory).is_empty() && arrives(&mut delivery, 257, &memory).is_empty());
        assert_eq!(memory.in_use(), 0, "what has to wait for an ack waits in the store");
        assert!(!delivery.admit(257, 1, now));
        delivery.acked(&[3]);
        assert!(arrives(&mut delivery, 1002, &memory).is_empty());
        assert_eq!(read(&mut delivery).unwrap().page.envelopes, 1, "the backlog waits for nobody");
    }

    #[test]
    fn what_comes_while_reading_is_kept_in_order() {
        let now = Instant::now();
        let mut delivery = Delivery::new(1000);
        delivery.open(mailbox(1, 1));
        let memory = Budget::new(64);
        let ephemeral = || Held::Ephemeral(envelope());
        assert!(delivery.arrived(ephemeral(), &memory).is_some(), "nothing is being read");
        let reading = read(&mut delivery).unwrap();
        assert!(delivery.arrived(ephemeral(), &memory).is_none());
        for seq in 2..200 {
            assert!(arrives(&mut delivery, seq, &memory).is_empty());
        }
        assert!(delivery.release().is_none(), "still reading");
        assert!(delivery.admit(1, 1, now));
        delivery.end_reading(reading, true);
        assert_eq!(arrives(&mut delivery, 200, &memory), [0].into_iter().chain(2..65).collect::<Vec<_>>());
        assert_eq!(read(&mut delivery).unwrap().page.after, 64, "what was not kept is read at once");
        assert_eq!(memory.in_use(), 0);
    }

    #[test]
    fn what_is_ahead_waits_a_moment_for_those_before_it() {
        let start = Instant::now();
        let memory = Budget::new(64);
        let mut delivery = Delivery::new(1000);
        delivery.open(mailbox(0, 0));
        assert!(delivery.is_drained());
        assert!(arrives(&mut delivery, 3, &memory).is_empty());
        assert_eq!(delivery.next(start), Next::Wait(PATIENCE));
        assert_eq!(delivery.next(start), Next::Nothing, "it is asked again after that time");
        assert!(delivery.arrived(Held::Ephemeral(envelope()), &memory).is_none(), "it overtakes nobody");
        assert!(arrives(&mut delivery, 5, &memory).is_empty());
        assert_eq!(arrives(&mut delivery, 1, &memory), [1]);
        assert_eq!(arrives(&mut delivery, 2, &memory), [2, 3, 0]);
        let later = start + PATIENCE;
        assert_eq!(delivery.next(later), Next::Wait(PATIENCE), "there was progress");
        assert_eq!(delivery.next(later), Next::Nothing);
        let Next::Read(reading) = delivery.next(later + PATIENCE) else { panic!("4 does not come") };
        assert_eq!((reading.page.after, reading.page.upto), (3, 5));
        assert!(delivery.admit(4, 1, start) && delivery.admit(5, 1, start));
        delivery.end_reading(reading, true);
        assert!(delivery.release().is_none());
        assert_eq!((read(&mut delivery), memory.in_use()), (None, 0));
    }

    #[test]
    fn nobody_waits_where_there_is_no_room_or_the_store_alone_can_tell() {
        let memory = Budget::new(2);
        let mut delivery = Delivery::new(4);
        delivery.open(mailbox(0, 0));
        assert!(delivery.is_drained());
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
        delivery.wait();
        assert!(delivery.release().is_none());
        assert_eq!(memory.in_use(), 0, "who has no room keeps nothing");
    }

    #[test]
    fn what_is_overdue_is_read_again() {
        let start = Instant::now();
        let mut delivery = Delivery::new(1000);
        delivery.open(mailbox(4, 4));
        for seq in 1..=4_u8 {
            assert!(delivery.admit(seq.into(), 10, start + Duration::from_secs(10) * seq.into()));
        }
        assert!(delivery.begin_again(start + Duration::from_secs(69)).is_none());
        delivery.acked(&[1]);
        let now = start + Duration::from_secs(80);
        let reading = delivery.begin_again(now).unwrap();
        assert_eq!((reading.page.after, reading.page.upto, reading.again), (1, 4, true));
        // 2 is acked while it is read, 3 has expired.
        delivery.acked(&[2]);
        let again = delivery.end_again(reading, page(&[2, 4], true), now);
        assert_eq!(again.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [4]);
        assert_eq!(delivery.overdue_at(), Some(now + RESEND_AFTER));
        delivery.acked(&[4]);
        assert_eq!(delivery.overdue_at(), None);
    }
}
