//! The inbound bytes of one connection: which of them the reader may have, how much memory they take, and how fast a
//! message has to arrive.
//!
//! The codec of actix-http allocates the declared length of a frame as soon as it sees the header. So the bytes of a large
//! frame are kept here, in memory that grows and is reserved as they arrive, until the frame is complete.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::frame_guard::{DeclaredFrame, FrameGuard, InspectionResult, Violation};
use crate::socket::shares::{Account, Exhausted};

/// Messages up to this size in bytes need no reservation, because a chunk may take that much memory anyway.
const UNRESERVED_BYTES: u64 = 4 * 1024;
/// The first step in bytes in which memory is reserved. Each further step doubles the reservation.
const FIRST_STEP: u64 = 16 * 1024;
/// Maximum number of frames in a chunk. A reader that queues all frames of a chunk and never shrinks the queue, such as that of
/// actix-ws, would keep half a megabyte after a chunk full of empty frames.
const MAX_CHUNK_FRAMES: usize = 32;
/// How long a message may take in any case, from its first byte.
const GRACE: Duration = Duration::from_secs(20);
/// Bytes of a message that have to arrive in each second after [`GRACE`].
const LEAST_RATE: u64 = 16 * 1024;

/// Memory of a connection's account, given back on drop.
pub(super) struct ReservedBytes {
    account: Rc<Account>,
    bytes: usize,
}

impl ReservedBytes {
    /// For a new message.
    fn none(account: Rc<Account>) -> Self {
        // The account may still hold earlier messages, which have arrived.
        account.renew();
        Self { account, bytes: 0 }
    }

    fn grow_to(&mut self, bytes: usize) -> Result<(), Exhausted> {
        if let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) {
            self.account.grow(more)?;
            self.bytes = bytes;
        }
        Ok(())
    }

    /// Takes over the bytes of `other`, which must be of the same account.
    fn absorb(&mut self, mut other: Self) {
        debug_assert!(Rc::ptr_eq(&self.account, &other.account), "the reservations are of two accounts");
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for ReservedBytes {
    fn drop(&mut self) {
        self.account.shrink(self.bytes);
    }
}

/// What [`InboundBytes::next_chunk`] returns.
pub(super) struct Chunk {
    /// Whole frames, possibly followed by the beginning of a small one. Empty if there is nothing for the reader yet.
    pub bytes: Bytes,
    /// For the large messages that end in this chunk.
    pub reserved: Option<ReservedBytes>,
    /// Why no further chunk follows.
    pub violation: Option<Violation>,
}

/// A data message of which at least one frame was declared.
#[derive(Clone, Copy)]
struct DeclaredMessage {
    /// Payload bytes declared so far.
    declared: u64,
    /// The most that may be declared.
    limit: u64,
}

/// The inbound bytes of one connection that the reader does not have yet.
///
/// Most connections never receive a message that needs a reservation, so their account is opened when the first one does.
pub(super) struct InboundBytes {
    account: Option<Rc<Account>>,
    guard: FrameGuard,
    /// Bytes received but not passed to the reader.
    inbox: Vec<u8>,
    /// The number of bytes of `inbox` that the guard has seen.
    seen: usize,
    /// The offset in `inbox` of the large frame that is being received.
    held_from: Option<usize>,
    /// Whether `inbox` has frames that did not fit into the last chunk.
    has_more: bool,
    /// Whether `inbox` begins with the header of a frame that the guard has seen.
    is_frame_waiting: bool,
    /// The data message that is being received.
    message: Option<DeclaredMessage>,
    /// For the message that is being received, if it is large.
    incoming: Option<ReservedBytes>,
    /// For large messages that were received in full and not passed to the reader yet.
    complete: Option<ReservedBytes>,
    /// When the first byte of the unfinished message arrived. Moved on by the time for which the socket was not read.
    began: Option<Instant>,
    /// Since when the socket has not been read.
    paused: Option<Instant>,
}

impl InboundBytes {
    /// The state of a new connection that has received `early`. Messages may have at most `max_message` bytes.
    pub fn new(early: &[u8], max_message: u64) -> Self {
        Self {
            guard: FrameGuard::new(max_message),
            inbox: early.to_vec(),
            seen: 0,
            held_from: None,
            has_more: !early.is_empty(),
            is_frame_waiting: false,
            message: None,
            incoming: None,
            complete: None,
            began: None,
            paused: None,
            account: None,
        }
    }

    /// The connection's account, once there was a large message.
    pub fn account(&self) -> Option<&Account> {
        self.account.as_deref()
    }

    /// Whether [`Self::next_chunk`] has something to do without further bytes.
    pub fn has_more(&self) -> bool {
        self.has_more
    }

    /// Adds bytes that were received.
    pub fn append(&mut self, bytes: &[u8]) {
        // Exact, because the capacity is what is reserved. A buffer that is passed on at once has no spare capacity.
        if !self.inbox.is_empty() {
            let needed = self.inbox.len() + bytes.len();
            let limit = self.message.map_or(0, |message| message.limit);
            let capacity = step(needed as u64).min(needed as u64 + limit);
            self.inbox.reserve_exact(usize::try_from(capacity).unwrap_or(usize::MAX) - self.inbox.len());
        }
        self.inbox.extend_from_slice(bytes);
        self.has_more = true;
    }

    /// Removes the bytes that the reader may have. `open_account` opens the connection's account.
    ///
    /// # Errors
    /// If the memory was given up.
    pub fn next_chunk(&mut self, now: Instant, open_account: impl Fn() -> Account) -> Result<Chunk, Exhausted> {
        if self.account().is_some_and(Account::is_given_up) {
            return Err(Exhausted);
        }
        self.has_more = false;
        let mut frames = usize::from(std::mem::take(&mut self.is_frame_waiting));
        let mut violation = None;
        let end = loop {
            let was_idle = self.guard.is_idle();
            let inspection = self.guard.inspect(&self.inbox[self.seen..]);
            let start = self.seen + inspection.frame_start;
            self.seen += inspection.seen;
            let has_frame_begun = was_idle || inspection.frame_start > 0;
            match inspection.result {
                InspectionResult::EndOfBytes => {
                    if has_frame_begun && !self.guard.is_in_message() {
                        self.began = Some(now);
                    }
                    if !self.guard.is_in_frame() {
                        self.held_from = None;
                    }
                    break self.held_from.unwrap_or(self.seen);
                }
                InspectionResult::Frame(frame) => {
                    self.begin_frame(frame, start, has_frame_begun, now, &open_account)?;
                    if frames == MAX_CHUNK_FRAMES {
                        (self.has_more, self.is_frame_waiting) = (true, true);
                        break start;
                    }
                    frames += 1;
                }
                InspectionResult::Closed => {
                    self.inbox.truncate(start);
                    break start;
                }
                InspectionResult::Violation(found) => {
                    self.inbox.truncate(start);
                    violation = Some(found);
                    break start;
                }
            }
        };
        self.reserve(self.received(), &open_account)?;
        if self.guard.is_between_messages() {
            self.complete_message(&open_account)?;
        }
        if self.guard.is_idle() {
            self.began = None;
        } else {
            self.began.get_or_insert(now);
        }
        let bytes = self.take(end);
        let reserved = if bytes.is_empty() { None } else { self.complete.take() };
        Ok(Chunk { bytes, reserved, violation })
    }

    /// Notes a frame whose length was declared and that begins at `start`.
    fn begin_frame(
        &mut self,
        frame: DeclaredFrame,
        start: usize,
        has_begun: bool,
        now: Instant,
        open_account: &impl Fn() -> Account,
    ) -> Result<(), Exhausted> {
        let is_control = frame.message_bytes == 0 && !frame.starts_message;
        if has_begun && (frame.starts_message || (is_control && !self.guard.is_in_message())) {
            self.began = Some(now);
        }
        if frame.starts_message {
            // The message before it has ended.
            self.complete_message(open_account)?;
            let limit = if frame.fin { frame.message_bytes } else { self.guard.max_message() };
            self.message = Some(DeclaredMessage { declared: frame.message_bytes, limit });
        } else if let Some(message) = &mut self.message
            && !is_control
        {
            message.declared = frame.message_bytes;
        }
        self.held_from = (frame.frame_bytes > UNRESERVED_BYTES).then_some(start);
        Ok(())
    }

    /// Payload bytes received of the message that is being received.
    fn received(&self) -> u64 {
        self.message.map_or(0, |message| message.declared - self.guard.missing_payload())
    }

    /// Reserves memory for `received` bytes of the current message.
    fn reserve(&mut self, received: u64, open_account: impl Fn() -> Account) -> Result<(), Exhausted> {
        let Some(message) = self.message.filter(|_| received > UNRESERVED_BYTES) else { return Ok(()) };
        let bytes = step(received).min(message.limit);
        let account = self.account.get_or_insert_with(|| Rc::new(open_account()));
        let incoming = self.incoming.get_or_insert_with(|| ReservedBytes::none(account.clone()));
        incoming.grow_to(usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// Notes that the current message, if there is one, has arrived in full.
    fn complete_message(&mut self, open_account: impl Fn() -> Account) -> Result<(), Exhausted> {
        let Some(message) = self.message else { return Ok(()) };
        self.reserve(message.declared, open_account)?;
        self.message = None;
        let arrived = self.incoming.take();
        if let (Some(account), Some(_)) = (&self.account, &arrived) {
            // Only the age of what is unfinished counts.
            account.renew();
        }
        match (&mut self.complete, arrived) {
            (_, None) => {}
            (Some(complete), Some(message)) => complete.absorb(message),
            (none, message) => *none = message,
        }
        Ok(())
    }

    /// Removes the first `n` bytes of the inbox.
    fn take(&mut self, n: usize) -> Bytes {
        self.held_from = self.held_from.map(|at| at.saturating_sub(n));
        self.seen -= n.min(self.seen);
        if n == self.inbox.len() {
            return std::mem::take(&mut self.inbox).into();
        }
        // Copies: a slice would keep the whole inbox allocated for as long as the reader keeps the chunk.
        let chunk = Bytes::copy_from_slice(&self.inbox[..n]);
        self.inbox.drain(..n);
        chunk
    }

    /// Notes that the socket is not read from now on. The time until [`Self::resume`] is not the client's.
    pub fn pause(&mut self) {
        if self.began.is_some() && self.paused.is_none() {
            self.paused = Some(Instant::now());
        }
    }

    /// Notes that the socket is read again.
    pub fn resume(&mut self) {
        if let Some(paused) = self.paused.take() {
            self.began = self.began.map(|began| began + paused.elapsed());
        }
    }

    /// When the unfinished message will be too slow unless more of it arrives; `None` without such a message.
    pub fn deadline(&self) -> Option<Instant> {
        let received = u32::try_from(self.received()).unwrap_or(u32::MAX);
        let earned = Duration::from_secs(1) * received / u32::try_from(LEAST_RATE).unwrap_or(u32::MAX);
        self.began.map(|began| began + GRACE + earned)
    }

    /// Frees all memory.
    pub fn clear(&mut self) {
        self.inbox = Vec::new();
        (self.seen, self.held_from, self.has_more, self.began) = (0, None, false, None);
        self.message = None;
        self.incoming = None;
        self.complete = None;
    }
}

/// The memory to reserve for `bytes`: the next power of two, at least [`FIRST_STEP`].
fn step(bytes: u64) -> u64 {
    bytes.checked_next_power_of_two().unwrap_or(u64::MAX).max(FIRST_STEP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::shares::{Holder, SharedBudget};

    const MAX: u64 = 512 * 1024;
    const MASK: [u8; 4] = [1, 2, 3, 4];

    /// The inbound bytes of a connection, and its budget.
    struct Connection<'a> {
        inbound: InboundBytes,
        budget: &'a SharedBudget,
    }

    impl Connection<'_> {
        fn next_chunk(&mut self, now: Instant) -> Result<Chunk, Exhausted> {
            self.inbound.next_chunk(now, || self.budget.account(Holder::NOBODY))
        }
    }

    impl std::ops::Deref for Connection<'_> {
        type Target = InboundBytes;

        fn deref(&self) -> &InboundBytes {
            &self.inbound
        }
    }

    impl std::ops::DerefMut for Connection<'_> {
        fn deref_mut(&mut self) -> &mut InboundBytes {
            &mut self.inbound
        }
    }

    fn inbound(budget: &SharedBudget) -> Connection<'_> {
        Connection { inbound: InboundBytes::new(b"", MAX), budget }
    }

    /// A frame with this first byte and payload length.
    fn frame(head: u8, length: u32) -> Vec<u8> {
        let mut bytes = vec![head, 0xff];
        if length < 126 {
            bytes[1] = 0x80 | u8::try_from(length).unwrap();
        } else if let Ok(short) = u16::try_from(length) {
            bytes[1] = 0xfe;
            bytes.extend_from_slice(&short.to_be_bytes());
        } else {
            bytes.extend_from_slice(&u64::from(length).to_be_bytes());
        }
        bytes.extend_from_slice(&MASK);
        bytes.resize(bytes.len() + length as usize, 7);
        bytes
    }

    /// Appends bytes in pieces of `size`, and returns all that the reader gets.
    fn pass(inbound: &mut Connection<'_>, bytes: &[u8], size: usize, now: Instant) -> Vec<u8> {
        let mut passed = Vec::new();
        for piece in bytes.chunks(size) {
            inbound.append(piece);
            while inbound.has_more() {
                let chunk = inbound.next_chunk(now).unwrap();
                assert_eq!(chunk.violation, None);
                passed.extend_from_slice(&chunk.bytes);
            }
        }
        passed
    }

    #[test]
    fn the_reader_gets_all_bytes_in_order_however_they_are_split() {
        let mut all = Vec::new();
        for length in [0, 5, 125, 126, 4096, 4097, 20_000, 70_000, 3, 9000, 9000] {
            all.extend(frame(0x82, length));
            all.extend(frame(0x89, length.min(7)));
        }
        for (head, length) in [(0x02, 3000), (0x00, 9000), (0x89, 4), (0x00, 0), (0x80, 5000)] {
            all.extend(frame(head, length));
        }
        all.extend((0..100).flat_map(|_| frame(0x82, 0)));
        for size in [1, 2, 7, 100, 4096, 16 * 1024, all.len()] {
            let budget = SharedBudget::new(1 << 20, 1 << 20);
            let mut inbound = inbound(&budget);
            assert!(pass(&mut inbound, &all, size, Instant::now()) == all, "in pieces of {size}");
            assert_eq!((budget.in_use(), inbound.deadline()), (0, None), "in pieces of {size}");
        }
    }

    #[test]
    fn a_large_frame_is_kept_until_it_is_complete() {
        let budget = SharedBudget::new(1 << 20, 1 << 20);
        let mut inbound = inbound(&budget);
        let (small, large) = (frame(0x82, 9), frame(0x82, 30_000));
        let begin = [&small[..], &large[..20_000]].concat();
        assert_eq!(pass(&mut inbound, &begin, 16 * 1024, Instant::now()), small);
        assert_eq!(budget.in_use(), 30_000);
        inbound.append(&large[20_000..]);
        let chunk = inbound.next_chunk(Instant::now()).unwrap();
        assert_eq!(&chunk.bytes[..], large);
        assert_eq!(budget.in_use(), 30_000, "until the reader has finished with it");
        drop(chunk);
        assert_eq!(budget.in_use(), 0);
    }

    #[test]
    fn each_message_has_twenty_seconds_and_one_more_for_each_16_kib() {
        let budget = SharedBudget::new(1 << 20, 1 << 20);
        let mut inbound = inbound(&budget);
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let message = frame(0x82, 100_000);
        pass(&mut inbound, &message[..1], 1, start);
        assert_eq!(inbound.deadline(), Some(start + GRACE), "a part of a header");
        pass(&mut inbound, &message[1..14 + 32 * 1024], 9999, start + second);
        assert_eq!(inbound.deadline(), Some(start + GRACE + 2 * second));
        pass(&mut inbound, &message[14 + 32 * 1024..], 9999, start + 2 * second);
        assert_eq!(inbound.deadline(), None, "complete");
        let ping = frame(0x89, 5);
        pass(&mut inbound, &ping[..9], 9, start + 3 * second);
        assert_eq!(inbound.deadline(), Some(start + 3 * second + GRACE), "a control frame earns nothing");
        let next = [&ping[9..], &frame(0x02, 16 * 1024)].concat();
        pass(&mut inbound, &next, 9, start + 4 * second);
        assert_eq!(inbound.deadline(), Some(start + 4 * second + GRACE + second));
        pass(&mut inbound, &frame(0x89, 5), 3, start + 10 * second);
        pass(&mut inbound, &frame(0x00, 16 * 1024), 999, start + 11 * second);
        assert_eq!(inbound.deadline(), Some(start + 4 * second + GRACE + 2 * second), "one message with its fragments");
        pass(&mut inbound, &frame(0x80, 0), 3, start + 12 * second);
        assert_eq!(inbound.deadline(), None);
    }

    #[test]
    fn a_message_is_given_up_if_others_need_its_memory() {
        let budget = SharedBudget::new(40_000, 40_000);
        let (mut older, mut newer) = (inbound(&budget), inbound(&budget));
        let message = frame(0x82, 30_000);
        pass(&mut older, &message[..20_000], 9999, Instant::now());
        assert_eq!(pass(&mut newer, &message, 9999, Instant::now()), message);
        assert!(older.account().unwrap().is_given_up());
        older.append(&message[20_000..]);
        assert!(older.next_chunk(Instant::now()).is_err());
        older.clear();
        assert_eq!(budget.in_use(), 0);
    }
}
