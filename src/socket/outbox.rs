//! The frames that wait to be sent to one socket, bounded in bytes, and how the socket ends after them.
//!
//! Everything here lives on the socket's own worker.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    task::{Context, Poll, Waker},
};

use actix_web::web::Bytes;
use actix_ws::CloseReason;
use sealwire_protocol::CloseCode;

use super::budget::{Budget, Reservation};

/// Bytes that a queue may hold whatever the node's budget says, so that one greedy peer does not silence the others.
const FLOOR: usize = 64 * 1024;
/// What a waiting pong counts as.
const PONG_BYTES: usize = 128;

/// A frame in the queue.
pub enum QueuedFrame {
    /// A reply or an event.
    Data {
        /// The payload.
        bytes: Bytes,
        /// Its share of the node's budget, which ends with the frame.
        _reservation: Option<Reservation>,
    },
    /// A ping of ours.
    Ping,
    /// The answer to a ping.
    Pong(Bytes),
}

/// How a socket ends once the queue is empty.
pub enum Ending {
    /// With a Close frame of ours.
    Close(CloseCode),
    /// With an echo of the peer's Close frame.
    Echo(Option<CloseReason>),
    /// At once: the peer is gone.
    Abort,
}

/// The peer does not read fast enough: the queue is full.
#[derive(Debug)]
pub struct Overflow;

/// The queue of one socket.
pub struct Outbox {
    budget: Budget,
    max_bytes: usize,
    queue: RefCell<VecDeque<QueuedFrame>>,
    /// Bytes of data frames and pongs in the queue.
    queued: Cell<usize>,
    ending: RefCell<Option<Ending>>,
    /// Whether an ending was ever set.
    ended: Cell<bool>,
    writer: RefCell<Option<Waker>>,
}

impl Outbox {
    /// An empty queue for `max_bytes` bytes.
    pub fn new(max_bytes: usize, budget: Budget) -> Self {
        Self {
            budget,
            max_bytes,
            queue: RefCell::default(),
            queued: Cell::new(0),
            ending: RefCell::new(None),
            ended: Cell::new(false),
            writer: RefCell::new(None),
        }
    }

    /// Queues an event.
    ///
    /// # Errors
    /// [`Overflow`] if the queue is full, or if the node's budget is used up and this queue is not small.
    pub fn push_event(&self, frame: Vec<u8>) -> Result<(), Overflow> {
        if self.queued.get() + frame.len() > self.max_bytes {
            return Err(Overflow);
        }
        self.push_reply(frame)
    }

    /// Queues a reply. The read gate has kept space for it, so only the node's budget can refuse it.
    ///
    /// # Errors
    /// [`Overflow`] if the node's budget is used up and this queue is not small.
    pub fn push_reply(&self, frame: Vec<u8>) -> Result<(), Overflow> {
        let reservation = self.budget.try_reserve(frame.len());
        if reservation.is_none() && self.queued.get() > FLOOR {
            return Err(Overflow);
        }
        self.queued.set(self.queued.get() + frame.len());
        self.push(QueuedFrame::Data { bytes: frame.into(), _reservation: reservation });
        Ok(())
    }

    /// Queues a ping if the queue is empty: other frames show as well whether the peer is there.
    pub fn ping(&self) {
        if self.queue.borrow().is_empty() {
            self.push(QueuedFrame::Ping);
        }
    }

    /// Queues the answer to a ping. A flood of pings gets the latest answer alone (RFC 6455, 5.5.3).
    pub fn pong(&self, payload: &[u8]) {
        // A copy: the payload shares the buffer of whatever came in around it.
        let payload = Bytes::copy_from_slice(payload);
        let mut queue = self.queue.borrow_mut();
        if let Some(QueuedFrame::Pong(last)) = queue.back_mut() {
            *last = payload;
        } else {
            drop(queue);
            self.queued.set(self.queued.get() + PONG_BYTES);
            self.push(QueuedFrame::Pong(payload));
        }
    }

    fn push(&self, frame: QueuedFrame) {
        self.queue.borrow_mut().push_back(frame);
        wake(&self.writer);
    }

    /// Sends what is queued, then a Close frame. A slow consumer's queue is dropped, since it would not be read.
    pub fn close(&self, code: CloseCode) {
        if code == CloseCode::SlowConsumer {
            self.queue.borrow_mut().clear();
            self.queued.set(0);
        }
        self.end(Ending::Close(code));
    }

    /// Answers the peer's Close frame.
    pub fn echo_close(&self, reason: Option<CloseReason>) {
        self.end(Ending::Echo(reason));
    }

    /// Ends at once, without a Close frame.
    pub fn abort(&self) {
        self.end(Ending::Abort);
    }

    fn end(&self, ending: Ending) {
        if !self.ended.replace(true) {
            *self.ending.borrow_mut() = Some(ending);
        }
        wake(&self.writer);
    }

    /// Whether an ending was set.
    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Bytes that wait.
    pub fn queued_bytes(&self) -> usize {
        self.queued.get()
    }

    /// Bytes that may wait.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Whether an event of this size fits; one always does in an empty queue.
    pub fn fits(&self, bytes: usize) -> bool {
        self.queued.get() == 0 || self.queued.get() + bytes <= self.max_bytes
    }

    /// Whether an event that may be lost fits: it gets no more than half of the queue.
    pub fn fits_in_half(&self, bytes: usize) -> bool {
        self.queued.get() + bytes <= self.max_bytes / 2
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    /// Has the writer's task woken when there is something to do.
    pub fn watch(&self, cx: &Context<'_>) {
        let mut writer = self.writer.borrow_mut();
        if !writer.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *writer = Some(cx.waker().clone());
        }
    }

    /// The next frame, or the ending once the queue is empty; an abort overtakes the queue.
    pub fn poll_next(&self) -> Poll<Result<QueuedFrame, Ending>> {
        let mut ending = self.ending.borrow_mut();
        if matches!(*ending, Some(Ending::Abort)) {
            return Poll::Ready(Err(Ending::Abort));
        }
        if let Some(frame) = self.queue.borrow_mut().pop_front() {
            let bytes = match &frame {
                QueuedFrame::Data { bytes, .. } => bytes.len(),
                QueuedFrame::Pong(_) => PONG_BYTES,
                QueuedFrame::Ping => 0,
            };
            self.queued.set(self.queued.get() - bytes);
            return Poll::Ready(Ok(frame));
        }
        if let Some(ending) = ending.take() {
            return Poll::Ready(Err(ending));
        }
        // A queue that was long once gives its memory back while it idles.
        self.queue.borrow_mut().shrink_to(0);
        Poll::Pending
    }
}

fn wake(waker: &RefCell<Option<Waker>>) {
    if let Some(waker) = waker.borrow().as_ref() {
        waker.wake_by_ref();
    }
}
