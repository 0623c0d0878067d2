//! Decides when the next message of a connection may be read: between the welcome and a drain, if the requests in
//! flight are within their limits, the outbox has space for their replies, and the connection is not far over its
//! request rate.

use std::{
    cell::{Cell, RefCell},
    task::{Context, Poll, Waker},
};

use super::{outbox::Outbox, request_rate::RequestRate};

/// Reading pauses while the requests in flight have more bytes than this in total.
const MAX_REQUEST_BYTES: usize = 1024 * 1024;

/// The read gate of one connection.
pub struct ReadGate {
    is_open: Cell<bool>,
    /// Bytes of requests in flight.
    request_bytes: Cell<usize>,
    /// Bytes kept free in the outbox for their replies.
    reply_bytes: Cell<usize>,
    rate: RequestRate,
    reader: RefCell<Option<Waker>>,
}

impl ReadGate {
    /// A gate that is shut until [`Self::open`].
    pub fn new(rate: RequestRate) -> Self {
        Self {
            is_open: Cell::new(false),
            request_bytes: Cell::new(0),
            reply_bytes: Cell::new(0),
            rate,
            reader: RefCell::new(None),
        }
    }

    /// Allows reading.
    pub fn open(&self) {
        self.is_open.set(true);
        self.wake();
    }

    /// Stops reading. Requests that were read are still answered.
    pub fn shut(&self) {
        self.is_open.set(false);
    }

    /// The request rate limit of the connection.
    pub fn rate(&self) -> &RequestRate {
        &self.rate
    }

    /// Counts a request in flight, and keeps `reply_bytes` free in the outbox for its reply.
    pub fn begin_request(&self, request_bytes: usize, reply_bytes: usize) {
        self.request_bytes.set(self.request_bytes.get() + request_bytes);
        self.reply_bytes.set(self.reply_bytes.get() + reply_bytes);
    }

    /// Reverses a [`Self::begin_request`] with the same values.
    pub fn end_request(&self, request_bytes: usize, reply_bytes: usize) {
        self.request_bytes.set(self.request_bytes.get() - request_bytes);
        self.reply_bytes.set(self.reply_bytes.get() - reply_bytes);
        self.wake();
    }

    /// Whether another message may be read, apart from the request rate.
    pub fn allows(&self, outbox: &Outbox) -> bool {
        self.is_open.get()
            && outbox.queued_bytes() + self.reply_bytes.get() <= outbox.max_bytes()
            && self.request_bytes.get() <= MAX_REQUEST_BYTES
    }

    /// Ready when another message may be read.
    pub fn poll_ready(&self, outbox: &Outbox, cx: &mut Context<'_>) -> Poll<()> {
        if self.allows(outbox) {
            return self.rate.poll_ready(cx);
        }
        *self.reader.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Wakes the reader to check again, because the outbox has shrunk or a request has ended.
    pub fn wake(&self) {
        // Taken, so that a reader that does not wait is not woken for each frame that is sent.
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }
}
