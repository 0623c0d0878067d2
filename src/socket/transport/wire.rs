//! The state that an upgraded connection's pump, payload stream, handler and actor share, in one allocation.

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

use super::{frame_guard::Violation, inbound::ReservedBytes};
use crate::socket::{
    networks::CountedConnection,
    seats::{Seat, Seats},
    shares::{Exhausted, Holder},
};

/// Why the server ends a connection whose bytes break no rule of the WebSocket protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cutoff {
    /// An incoming message took too long.
    MessageTooSlow,
    /// The memory of an incoming message was needed for others.
    MessageGivenUp,
    /// The peer reads too slowly.
    NotReading,
    /// The memory of the send queue was needed for others.
    QueueGivenUp,
    /// The place of the connection was needed for others.
    PlaceGivenUp,
}

/// A handle to an upgraded connection.
///
/// A handler gets it with `request.extensions().get::<Rc<Wire>>()`. Like everything else about a connection, it stays
/// on one worker thread.
pub struct Wire {
    last_received: Cell<Instant>,
    written: Cell<u64>,
    violation: Cell<Option<Violation>>,
    cutoff: Cell<Option<Cutoff>>,
    holder: Cell<Option<Holder>>,
    /// Whether no chunk follows the pending one.
    ended: Cell<bool>,
    /// Whether the payload stream was dropped.
    reader_gone: Cell<bool>,
    aborted: Cell<bool>,
    /// Whether the application is closing the connection.
    closing: Cell<bool>,
    /// Whether nothing more will be read or written.
    gone: Cell<bool>,
    /// The places for connections, until this one takes its own.
    seats: Cell<Option<Seats>>,
    /// The connection's place.
    seat: RefCell<Option<Seat>>,
    /// The connection's slot in its network's count.
    network_slot: Cell<Option<CountedConnection>>,
    pending: RefCell<PendingChunk>,
    /// Woken when there is a chunk, or the stream has ended.
    reader: Cell<Option<Waker>>,
    /// Woken when the reader takes a chunk or is dropped, and by an abort.
    pump: Cell<Option<Waker>>,
    /// Woken when [`Wire::written`] reaches this number.
    writer: Cell<Option<Box<(u64, Waker)>>>,
}

/// The chunk that the pump has passed to the reader, and the memory reserved for large messages.
#[derive(Default)]
struct PendingChunk {
    /// `None` if the reader has taken the last chunk.
    chunk: Option<Bytes>,
    /// For the large messages that end in `chunk`.
    reservation: Option<ReservedBytes>,
    /// For the large messages that end in the chunk that the reader took last.
    taken_reservation: Option<ReservedBytes>,
    /// Whether the reader has asked for more since it took a chunk. The reader asks once before it parses the chunk, so
    /// only when it asks a second time has it finished with the chunk.
    has_asked: bool,
}

impl Wire {
    /// The state of a connection that has just been upgraded.
    pub(super) fn new(seats: Seats) -> Rc<Self> {
        Rc::new(Self {
            last_received: Cell::new(Instant::now()),
            written: Cell::default(),
            violation: Cell::default(),
            cutoff: Cell::default(),
            holder: Cell::default(),
            ended: Cell::default(),
            reader_gone: Cell::default(),
            aborted: Cell::default(),
            closing: Cell::default(),
            seats: Cell::new(Some(seats)),
            seat: RefCell::default(),
            gone: Cell::default(),
            network_slot: Cell::default(),
            pending: RefCell::default(),
            reader: Cell::default(),
            pump: Cell::default(),
            writer: Cell::default(),
        })
    }

    /// Why the payload stream was ended early; `None` if it was not. May be set before the frames that precede the
    /// violation have been read.
    #[must_use]
    pub fn violation(&self) -> Option<Violation> {
        self.violation.get()
    }

    /// Why the server ends the connection, if it does.
    #[must_use]
    pub fn cutoff(&self) -> Option<Cutoff> {
        self.cutoff.get()
    }

    /// Ends the payload stream at once, without the pending chunk. The reason is in [`Self::cutoff`]; only the first
    /// one counts.
    pub fn cut_off(&self, cutoff: Cutoff) {
        if self.cutoff.get().is_none() {
            self.cutoff.set(Some(cutoff));
            self.ended.set(true);
            wake(&self.reader);
        }
    }

    /// Ready once the connection is cut off or gone. For the task of the payload stream while it does not read.
    pub fn poll_ended(&self, cx: &Context<'_>) -> Poll<()> {
        if self.cutoff.get().is_some() || self.gone.get() {
            return Poll::Ready(());
        }
        register(&self.reader, cx);
        Poll::Pending
    }

    /// Takes the connection's place on the node, which it keeps until it has ended, and sets whose place and memory it uses.
    /// A handler calls this before it accepts the upgrade.
    ///
    /// # Errors
    /// If there is no place for this holder.
    pub fn take_seat(&self, holder: Holder) -> Result<(), Exhausted> {
        self.holder.set(Some(holder));
        if let Some(seats) = self.seats.take() {
            self.seat.replace(Some(seats.take(holder)?));
        }
        Ok(())
    }

    /// Whether the connection has a place.
    pub(super) fn has_seat(&self) -> bool {
        self.seat.borrow().is_some()
    }

    /// Gives the connection's place back.
    pub(super) fn leave_seat(&self) {
        self.seat.take();
    }

    /// Ready once the connection's place was given up. For the pump.
    pub(super) fn poll_seat_given_up(&self, cx: &Context<'_>) -> Poll<()> {
        self.seat.borrow().as_ref().map_or(Poll::Pending, |seat| seat.poll_given_up(cx))
    }

    /// Records that the application is closing the connection: if its place is needed, it ends at once.
    pub fn note_closing(&self) {
        self.closing.set(true);
        if let Some(seat) = &*self.seat.borrow() {
            seat.note_closing();
        }
    }

    /// Whether the application is closing the connection.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Whose memory the connection uses.
    pub(super) fn holder(&self) -> Option<Holder> {
        self.holder.get()
    }

    /// When bytes were last received from the peer. Initially the time of the upgrade.
    #[must_use]
    pub fn last_received(&self) -> Instant {
        self.last_received.get()
    }

    /// The number of bytes of WebSocket frames, including headers, that were written to the kernel so far. See
    /// [`frame_bytes`](super::frame_bytes) for what a message adds.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.get()
    }

    /// Ready when [`written`](Self::written) is at least `n`, or nothing more will be written. Only one task at a time
    /// may wait.
    pub fn poll_written(&self, cx: &Context<'_>, n: u64) -> Poll<()> {
        if self.written.get() >= n || self.gone.get() {
            return Poll::Ready(());
        }
        self.writer.set(Some(Box::new((n, cx.waker().clone()))));
        Poll::Pending
    }

    /// [`poll_written`](Self::poll_written) as a future.
    pub async fn wait_written(&self, n: u64) {
        poll_fn(|cx| self.poll_written(cx, n)).await;
    }

    /// Whether nothing more will be written: the connection was lost or aborted, or the whole response body was
    /// written.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// Keeps the connection in the count of its network until the connection has ended.
    pub fn hold_network_slot(&self, slot: CountedConnection) {
        self.network_slot.set(Some(slot));
    }

    /// Drops the socket at once, without reading or writing the rest. For a peer that does not read.
    pub fn abort(&self) {
        self.aborted.set(true);
        self.finish();
        wake(&self.pump);
    }

    /// Whether [`Self::abort`] was called.
    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.get()
    }

    /// Registers the pump's task, to be woken when the reader takes a chunk or is dropped, and by an abort.
    pub(super) fn register_pump(&self, cx: &Context<'_>) {
        register(&self.pump, cx);
    }

    /// Whether [`Self::offer`] may be called: no chunk is pending, and the stream has neither ended nor been dropped.
    pub(super) fn wants_chunk(&self) -> bool {
        !self.ended.get() && !self.reader_gone.get() && self.pending.borrow().chunk.is_none()
    }

    /// Whether the payload stream has been dropped.
    pub(super) fn has_lost_reader(&self) -> bool {
        self.reader_gone.get()
    }

    /// Records that bytes were received from the peer.
    pub(super) fn note_received(&self) {
        self.last_received.set(Instant::now());
    }

    /// Passes a chunk to the reader. `reservation` is released when the reader has finished with the chunk.
    pub(super) fn offer(&self, chunk: Bytes, reservation: Option<ReservedBytes>) {
        debug_assert!(self.wants_chunk(), "at most one chunk is pending");
        let mut pending = self.pending.borrow_mut();
        pending.chunk = Some(chunk);
        pending.reservation = reservation;
        drop(pending);
        wake(&self.reader);
    }

    /// Ends the payload stream after the pending chunk, because of a violation or at the end of the inbound bytes.
    pub(super) fn end(&self, violation: Option<Violation>) {
        self.violation.set(violation);
        self.ended.set(true);
        wake(&self.reader);
    }

    /// Records that `n` bytes were written to the kernel.
    pub(super) fn note_written(&self, n: usize) {
        let written = self.written.get() + n as u64;
        self.written.set(written);
        match self.writer.take() {
            Some(waiting) if waiting.0 <= written => waiting.1.wake(),
            waiting => self.writer.set(waiting),
        }
    }

    /// Records that nothing more will be read or written. Wakes the reader, and the task that waits for writes.
    pub(super) fn finish(&self) {
        self.gone.set(true);
        self.ended.set(true);
        wake(&self.reader);
        if let Some(waiting) = self.writer.take() {
            waiting.1.wake();
        }
    }
}

/// The payload stream of the upgrade request: the inbound bytes, one chunk at a time.
pub(super) struct Inbound(pub(super) Rc<Wire>);

impl Stream for Inbound {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let wire = &self.0;
        let mut pending = wire.pending.borrow_mut();
        if std::mem::replace(&mut pending.has_asked, true) {
            pending.taken_reservation = None;
        }
        if let Some(chunk) = pending.chunk.take() {
            pending.taken_reservation = pending.reservation.take();
            pending.has_asked = false;
            drop(pending);
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
        self.0.pending.take();
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
