//! The send queue of one connection, bounded in bytes. It also records how to close the connection once the queue is
//! empty.
//!
//! An outbox stays on one worker thread.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    task::{Context, Poll, Waker},
};

use actix_http::ws::CloseReason;
use actix_web::web::Bytes;
use sealwire_protocol::CloseCode;

use super::{
    closing::Closing,
    shares::{Account, Exhausted},
};

/// Bytes that a connection may have to send even if the node's budget is used up.
const GUARANTEED_BYTES: usize = 64 * 1024;
/// Up to this number of bytes to send need no reservation: nearly always they are written before there are more.
const UNRESERVED_BYTES: usize = 4 * 1024;
/// Bytes that a queued pong counts as.
const PONG_BYTES: usize = 128;

/// A frame in the queue.
pub enum QueuedFrame {
    /// A reply or an event.
    Data(Bytes),
    /// A ping from the server.
    Ping,
    /// The answer to a ping of the peer.
    Pong(Bytes),
}

/// How the connection closes once the queue is empty.
pub enum CloseMode {
    /// Send a Close frame with this code.
    Close(Closing),
    /// Echo the peer's Close frame.
    Echo(Option<CloseReason>),
}

/// The peer does not read fast enough: the queue is full.
#[derive(Debug)]
pub struct Overflow;

/// The send queue of one connection.
pub struct Outbox {
    /// The connection's account in the node's budget for requests, queues and held mail.
    memory: Account,
    /// Bytes reserved for the queue and for what is in transit.
    reserved: Cell<usize>,
    max_bytes: usize,
    queue: RefCell<VecDeque<QueuedFrame>>,
    /// Bytes of the data frames and pongs in the queue.
    queued_bytes: Cell<usize>,
    /// Bytes of the frames that have left the queue and that the kernel has not taken yet.
    in_transit: Cell<usize>,
    /// Boxed, because open connections have none.
    close_mode: Cell<Option<Box<CloseMode>>>,
    /// Whether `close_mode` was ever set. [`Self::poll_next`] takes it, so it may be `None` again.
    is_closing: Cell<bool>,
    writer: Cell<Option<Waker>>,
}

impl Outbox {
    /// An empty queue for at most `max_bytes` bytes.
    pub fn new(max_bytes: usize, memory: Account) -> Self {
        Self {
            memory,
            reserved: Cell::new(0),
            max_bytes,
            queue: RefCell::default(),
            queued_bytes: Cell::new(0),
            in_transit: Cell::new(0),
            close_mode: Cell::new(None),
            is_closing: Cell::new(false),
            writer: Cell::new(None),
        }
    }

    /// Queues an event.
    ///
    /// # Errors
    /// [`Overflow`] if the queue is full, or if the node's budget is used up and this connection is over
    /// [`GUARANTEED_BYTES`].
    pub fn push_event(&self, frame: Vec<u8>) -> Result<(), Overflow> {
        if self.queued_bytes.get() + frame.len() > self.max_bytes {
            return Err(Overflow);
        }
        self.push_reply(frame)
    }

    /// Queues a reply. The read gate has kept space for it, so the queue's own limit does not apply.
    ///
    /// # Errors
    /// [`Overflow`] if the node's budget is used up and this connection is over [`GUARANTEED_BYTES`].
    pub fn push_reply(&self, frame: Vec<u8>) -> Result<(), Overflow> {
        let before = self.unsent_bytes();
        let after = before + frame.len();
        let missing = after.saturating_sub(self.reserved.get());
        if after > UNRESERVED_BYTES && missing > 0 {
            match self.memory.grow(missing) {
                Ok(()) => self.reserved.set(after),
                Err(Exhausted) if before > GUARANTEED_BYTES => return Err(Overflow),
                Err(Exhausted) => {}
            }
        }
        self.queued_bytes.set(self.queued_bytes.get() + frame.len());
        self.push(QueuedFrame::Data(frame.into()));
        Ok(())
    }

    /// Bytes in the queue and in transit.
    fn unsent_bytes(&self) -> usize {
        self.queued_bytes.get() + self.in_transit.get()
    }

    /// Sets how many bytes that have left the queue the kernel has not taken yet, and gives back what is no longer needed.
    pub fn set_in_transit(&self, bytes: usize) {
        self.in_transit.set(bytes);
        self.release_memory();
    }

    /// Gives back what is no longer needed.
    fn release_memory(&self) {
        let unsent = self.unsent_bytes();
        let needed = if unsent > UNRESERVED_BYTES { unsent } else { 0 };
        let reserved = self.reserved.get();
        if reserved > needed {
            self.reserved.set(needed);
            self.memory.shrink(reserved - needed);
            // The queue moves, so others are given up first.
            self.memory.renew();
        }
    }

    /// The connection's account in the node's budget. A queue that was given up is dropped when the connection closes.
    pub fn memory(&self) -> &Account {
        &self.memory
    }

    /// Queues a ping if the queue is empty. Otherwise it is not needed: a dead peer is detected because it does not
    /// read the queued frames.
    pub fn ping(&self) {
        if self.queue.borrow().is_empty() {
            self.push(QueuedFrame::Ping);
        }
    }

    /// Queues the answer to a ping. It replaces a pong that is last in the queue, so a flood of pings gets only the
    /// latest answer (RFC 6455, 5.5.3).
    pub fn pong(&self, payload: &[u8]) {
        // Copied, because the payload is a slice of a larger receive buffer.
        let payload = Bytes::copy_from_slice(payload);
        let mut queue = self.queue.borrow_mut();
        if let Some(QueuedFrame::Pong(last)) = queue.back_mut() {
            *last = payload;
        } else {
            drop(queue);
            self.queued_bytes.set(self.queued_bytes.get() + PONG_BYTES);
            self.push(QueuedFrame::Pong(payload));
        }
    }

    fn push(&self, frame: QueuedFrame) {
        self.queue.borrow_mut().push_back(frame);
        self.wake_writer();
    }

    /// Closes with a Close frame after the queued frames. The queue of a slow consumer is dropped first, because the
    /// peer would not read it.
    pub fn close(&self, closing: Closing) {
        if closing.code == CloseCode::SlowConsumer {
            self.queue.borrow_mut().clear();
            self.queued_bytes.set(0);
            self.release_memory();
        }
        self.begin_closing(CloseMode::Close(closing));
    }

    /// Answers the peer's Close frame after the queued frames.
    pub fn echo_close(&self, reason: Option<CloseReason>) {
        self.begin_closing(CloseMode::Echo(reason));
    }

    fn begin_closing(&self, close_mode: CloseMode) {
        if !self.is_closing.replace(true) {
            self.close_mode.set(Some(Box::new(close_mode)));
        }
        self.wake_writer();
    }

    /// Bytes in the queue.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes.get()
    }

    /// The queue size in bytes up to which events are accepted.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Whether an event of this size fits; any event fits into an empty queue.
    pub fn fits(&self, bytes: usize) -> bool {
        self.queued_bytes.get() == 0 || self.queued_bytes.get() + bytes <= self.max_bytes
    }

    /// Whether an event that may be dropped fits: such events may use at most half of the queue.
    pub fn fits_in_half(&self, bytes: usize) -> bool {
        self.queued_bytes.get() + bytes <= self.max_bytes / 2
    }

    /// Whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    /// Registers the task that sends, to be woken when there is something to send or the connection closes.
    pub fn register_writer(&self, cx: &Context<'_>) {
        let waker = self.writer.take().filter(|waker| waker.will_wake(cx.waker()));
        self.writer.set(Some(waker.unwrap_or_else(|| cx.waker().clone())));
    }

    /// Wakes the task that sends, once: it registers again when it has sent everything.
    fn wake_writer(&self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    /// Removes and returns the next frame, or the close mode once the queue is empty. A frame counts as in transit from
    /// now on.
    pub fn poll_next(&self) -> Poll<Result<QueuedFrame, CloseMode>> {
        if let Some(frame) = self.queue.borrow_mut().pop_front() {
            let bytes = match &frame {
                QueuedFrame::Data(bytes) => bytes.len(),
                QueuedFrame::Pong(_) => PONG_BYTES,
                QueuedFrame::Ping => 0,
            };
            self.queued_bytes.set(self.queued_bytes.get() - bytes);
            self.in_transit.set(self.in_transit.get() + bytes);
            return Poll::Ready(Ok(frame));
        }
        if let Some(close_mode) = self.close_mode.take() {
            return Poll::Ready(Err(*close_mode));
        }
        // An idle connection keeps no buffer.
        self.queue.borrow_mut().shrink_to(0);
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::shares::{Holder, SharedBudget};

    fn outbox(budget: &SharedBudget) -> Outbox {
        Outbox::new(1 << 20, budget.account(Holder::NOBODY))
    }

    fn next(outbox: &Outbox) -> usize {
        match outbox.poll_next() {
            Poll::Ready(Ok(QueuedFrame::Data(bytes))) => bytes.len(),
            _ => panic!("there is no data frame"),
        }
    }

    #[test]
    fn bytes_count_until_the_kernel_has_taken_them() {
        let budget = SharedBudget::new(1 << 20, 1 << 20);
        let outbox = outbox(&budget);
        outbox.push_reply(vec![0; 10_000]).unwrap();
        outbox.push_reply(vec![0; 20_000]).unwrap();
        assert_eq!((next(&outbox), budget.in_use()), (10_000, 30_000), "it has only left the queue");
        outbox.set_in_transit(10_000);
        assert_eq!(budget.in_use(), 30_000);
        outbox.set_in_transit(0);
        assert_eq!((next(&outbox), budget.in_use()), (20_000, 20_000));
        outbox.push_reply(vec![0; 5000]).unwrap();
        assert_eq!((budget.in_use(), outbox.queued_bytes()), (25_000, 5000));
        next(&outbox);
        outbox.set_in_transit(UNRESERVED_BYTES);
        assert_eq!(budget.in_use(), 0);
    }

    #[test]
    fn without_memory_a_connection_has_64_kib_in_the_queue_and_in_transit_together() {
        let budget = SharedBudget::new(1000, 1000);
        let outbox = outbox(&budget);
        outbox.push_reply(vec![0; 60_000]).unwrap();
        next(&outbox);
        outbox.push_reply(vec![0; 10_000]).unwrap();
        assert!(outbox.push_reply(vec![0; 10_000]).is_err(), "70,000 bytes are not sent yet");
        outbox.set_in_transit(0);
        outbox.push_reply(vec![0; 10_000]).unwrap();
        assert_eq!(budget.in_use(), 0);
    }
}
