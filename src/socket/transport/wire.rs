//! What a pump and the two ends of its WebSocket share: one allocation per connection.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use actix_http::error::PayloadError;
use bytes::Bytes;
use futures_util::Stream;
use tokio::time::Instant;

use super::frame_guard::Violation;
use crate::socket::{budget::Reservation, networks::CountedConnection};

/// The handle on an upgraded connection, for its handler and its actor.
///
/// A handler finds it as `req.extensions().get::<Rc<Wire>>()`. It belongs to one worker thread, like
/// everything else about a connection.
pub struct Wire {
    last_received: Cell<Instant>,
    written: Cell<u64>,
    violation: Cell<Option<Violation>>,
    /// No more bytes will be handed in after the chunk that may still wait.
    ended: Cell<bool>,
    /// The payload stream was dropped: nobody reads any more.
    reader_gone: Cell<bool>,
    aborted: Cell<bool>,
    gone: Cell<bool>,
    /// The connection's place in its network's count, which ends with the connection.
    place: Cell<Option<CountedConnection>>,
    hand_over: RefCell<HandOver>,
    /// Waits for a chunk or the end.
    reader: Cell<Option<Waker>>,
    /// Waits for its chunk to be taken, the reader to go, or an abort.
    pump: Cell<Option<Waker>>,
    /// Waits for [`Wire::written`] to reach the number.
    writer: Cell<Option<(u64, Waker)>>,
}

/// The one chunk between pump and reader, and the memory reserved for what was read.
#[derive(Debug, Default)]
struct HandOver {
    chunk: Option<Bytes>,
    /// Covers the large messages that end in `chunk`.
    covered: Option<Reservation>,
    /// Covers what the reader took last.
    taken: Option<Reservation>,
    /// The reader, having taken that, has asked for more. actix-ws asks at once and only then looks
    /// at the bytes, so it is done with them when it asks a second time.
    asked: bool,
}

impl Wire {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            last_received: Cell::new(Instant::now()),
            written: Cell::default(),
            violation: Cell::default(),
            ended: Cell::default(),
            reader_gone: Cell::default(),
            aborted: Cell::default(),
            gone: Cell::default(),
            place: Cell::default(),
            hand_over: RefCell::default(),
            reader: Cell::default(),
            pump: Cell::default(),
            writer: Cell::default(),
        })
    }

    /// Why the inbound stream was ended early, if it was. Set before the stream ends, and possibly
    /// before the frames that came in ahead of the violation have been read.
    #[must_use]
    pub fn violation(&self) -> Option<Violation> {
        self.violation.get()
    }

    /// When the last byte came in from the peer; at first, when the connection was upgraded.
    #[must_use]
    pub fn last_received(&self) -> Instant {
        self.last_received.get()
    }

    /// Bytes of WebSocket frames, headers included, that the kernel has taken so far. See
    /// [`frame_bytes`](super::frame_bytes) for what a message adds.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.get()
    }

    /// Ready when [`written`](Self::written) is at least `n`, or no more will be written. One task at a
    /// time may wait.
    pub fn poll_written(&self, cx: &Context<'_>, n: u64) -> Poll<()> {
        if self.written.get() >= n || self.gone.get() {
            return Poll::Ready(());
        }
        self.writer.set(Some((n, cx.waker().clone())));
        Poll::Pending
    }

    /// [`poll_written`](Self::poll_written) as a future.
    pub async fn wait_written(&self, n: u64) {
        poll_fn(|cx| self.poll_written(cx, n)).await;
    }

    /// Whether nothing more will be written: the peer vanished, the response body ended and was
    /// written, or the connection was aborted.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// Keeps the place that the connection was given among those of its network.
    pub fn keep(&self, place: CountedConnection) {
        self.place.set(Some(place));
    }

    /// Drops the socket at once, whatever is unread or unwritten; for a peer that takes nothing.
    pub fn abort(&self) {
        self.aborted.set(true);
        self.finish();
        wake(&self.pump);
    }

    pub(super) fn aborted(&self) -> bool {
        self.aborted.get()
    }

    /// Has the pump's task woken when it can go on.
    pub(super) fn watch(&self, cx: &Context<'_>) {
        register(&self.pump, cx);
    }

    /// Whether the reader can take a chunk now.
    pub(super) fn wants_chunk(&self) -> bool {
        !self.ended.get() && !self.reader_gone.get() && self.hand_over.borrow().chunk.is_none()
    }

    /// Whether the payload stream has been dropped.
    pub(super) fn has_lost_reader(&self) -> bool {
        self.reader_gone.get()
    }

    /// Notes that bytes came in from the peer.
    pub(super) fn note_received(&self) {
        self.last_received.set(Instant::now());
    }

    /// Puts a chunk where the reader finds it; `covered` is released when it is done with.
    pub(super) fn offer(&self, chunk: Bytes, covered: Option<Reservation>) {
        debug_assert!(self.wants_chunk(), "at most one chunk waits");
        let mut hand_over = self.hand_over.borrow_mut();
        hand_over.chunk = Some(chunk);
        hand_over.covered = covered;
        drop(hand_over);
        wake(&self.reader);
    }

    /// Ends the payload stream behind the chunk that may still wait.
    pub(super) fn end(&self, violation: Option<Violation>) {
        self.violation.set(violation);
        self.ended.set(true);
        wake(&self.reader);
    }

    /// Notes that the kernel took `n` bytes.
    pub(super) fn note_written(&self, n: usize) {
        let written = self.written.get() + n as u64;
        self.written.set(written);
        match self.writer.take() {
            Some((target, waker)) if target <= written => waker.wake(),
            waiting => self.writer.set(waiting),
        }
    }

    /// Says that nothing more will be read or written.
    pub(super) fn finish(&self) {
        self.gone.set(true);
        self.ended.set(true);
        wake(&self.reader);
        if let Some((_, waker)) = self.writer.take() {
            waker.wake();
        }
    }
}

/// The request's payload: the inbound bytes, one chunk at a time.
pub(super) struct Inbound(pub(super) Rc<Wire>);

impl Stream for Inbound {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let wire = &self.0;
        let mut hand_over = wire.hand_over.borrow_mut();
        if std::mem::replace(&mut hand_over.asked, true) {
            hand_over.taken = None;
        }
        if let Some(chunk) = hand_over.chunk.take() {
            hand_over.taken = hand_over.covered.take();
            hand_over.asked = false;
            drop(hand_over);
            wake(&wire.pump);
            Poll::Ready(Some(Ok(chunk)))
        } else if wire.ended.get() {
            Poll::Ready(None)
        } else {
            register(&wire.reader, cx);
            Poll::Pending
        }
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        self.0.reader_gone.set(true);
        self.0.hand_over.take();
        wake(&self.0.pump);
    }
}

fn register(slot: &Cell<Option<Waker>>, cx: &Context<'_>) {
    let waker = slot.take().filter(|waker| waker.will_wake(cx.waker()));
    slot.set(Some(waker.unwrap_or_else(|| cx.waker().clone())));
}

fn wake(slot: &Cell<Option<Waker>>) {
    if let Some(waker) = slot.take() {
        waker.wake();
    }
}
