//! The task of an upgraded connection. It moves bytes from the socket to the reader, which is the payload stream of the
//! upgrade request, and from the response body to the socket.
//!
//! It holds no buffer while no data moves. Bytes are read into the worker's [`Scratch`] and passed on in allocations of
//! their exact size, because actix-ws keeps the last chunk until the next one arrives.

use std::{
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_http::body::{BoxBody, MessageBody};
use bytes::{Buf, Bytes};
use tokio::{
    io::AsyncWrite,
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::{
    frame_guard::{DeclaredFrame, FrameGuard, InspectionResult},
    linger::Linger,
    scratch::Scratch,
    wire::Wire,
};
use crate::socket::budget::{Budget, Reservation};

/// Messages up to this size in bytes need no reservation, because a chunk may take that much memory anyway.
const UNRESERVED_BYTES: u64 = 4 * 1024;
/// Maximum number of frames in a chunk. actix-ws queues all frames of a chunk and never shrinks the queue, so a chunk
/// full of empty frames would leave half a megabyte allocated.
const MAX_CHUNK_FRAMES: usize = 32;
/// If the budget is exhausted, how long to wait before trying to reserve again. The socket is not read meanwhile.
const BUDGET_RETRY: Duration = Duration::from_millis(100);

/// The task of one upgraded connection. When it ends, the socket is dropped.
pub(super) struct Pump {
    stream: TcpStream,
    scratch: Scratch,
    wire: Rc<Wire>,
    reservations: MessageReservations,
    /// See [`Tuning::stall`](super::Tuning::stall).
    stall_limit: Duration,
    guard: FrameGuard,
    /// Bytes read but not passed to the reader yet.
    inbox: Bytes,
    /// The number of bytes of `inbox` that the guard has seen.
    seen: usize,
    /// The frame with which the next chunk begins. It did not fit into the last chunk, or waits for memory.
    waiting: Option<DeclaredFrame>,
    /// Runs while the budget is exhausted.
    budget_retry: Option<Pin<Box<Sleep>>>,
    /// The body of the 101 response: the outbound bytes.
    body: BoxBody,
    /// Bytes taken from `body` but not written yet.
    outbox: Bytes,
    /// Runs while a write is blocked and there is no reader.
    stall_timer: Option<Pin<Box<Sleep>>>,
    /// `Some` once all outbound bytes are written.
    linger: Option<Linger>,
    /// The connection's unit of [`Tuning::connections`](super::Tuning::connections).
    _slot: Reservation,
}

/// The memory reserved for large inbound messages of one connection.
struct MessageReservations {
    budget: Budget,
    /// Bytes to reserve for a fragmented message, whose size is unknown until its last frame.
    max_message: u64,
    /// For the message that is being received, if it is large.
    incoming: Option<Reservation>,
    /// For large messages that were received in full and not passed to the reader yet.
    complete: Option<Reservation>,
}

impl MessageReservations {
    /// Reserves memory for the message of `frame`, unless the message is small or has a reservation. Returns false if
    /// the budget is exhausted.
    fn reserve(&mut self, frame: DeclaredFrame) -> bool {
        if frame.message_bytes <= UNRESERVED_BYTES || self.incoming.is_some() {
            return true;
        }
        // All at once: connections that each hold a part and wait for the rest would deadlock.
        let need = if frame.starts_message && frame.fin { frame.message_bytes } else { self.max_message };
        let need = usize::try_from(need).unwrap_or(usize::MAX).min(self.budget.limit());
        self.incoming = self.budget.try_reserve(need);
        self.incoming.is_some()
    }

    /// Records that the message that was being received is complete.
    fn complete_message(&mut self) {
        match (&mut self.complete, self.incoming.take()) {
            (Some(complete), Some(message)) => complete.absorb(message),
            (None, message) => self.complete = message,
            (Some(_), None) => {}
        }
    }
}

/// What [`Pump::new`] needs.
pub(super) struct PumpParts {
    /// The connection, after the 101 response was written.
    pub stream: TcpStream,
    /// The worker's read buffer.
    pub scratch: Scratch,
    /// Shared with the handler and the payload stream.
    pub wire: Rc<Wire>,
    /// Bytes that were received after the upgrade request.
    pub early: Bytes,
    /// The body of the 101 response: the outbound bytes.
    pub body: BoxBody,
    /// The connection's unit of [`Tuning::connections`](super::Tuning::connections).
    pub slot: Reservation,
    /// See [`Tuning::max_message`](super::Tuning::max_message).
    pub max_message: u64,
    /// See [`Tuning::inbound`](super::Tuning::inbound).
    pub budget: Budget,
    /// See [`Tuning::stall`](super::Tuning::stall).
    pub stall_limit: Duration,
}

impl Pump {
    /// Returns the task. It does nothing until it is spawned.
    pub(super) fn new(parts: PumpParts) -> Self {
        let reservations = MessageReservations {
            budget: parts.budget,
            max_message: parts.max_message,
            incoming: None,
            complete: None,
        };
        Self {
            stream: parts.stream,
            scratch: parts.scratch,
            wire: parts.wire,
            stall_limit: parts.stall_limit,
            reservations,
            guard: FrameGuard::new(parts.max_message),
            inbox: parts.early,
            seen: 0,
            waiting: None,
            budget_retry: None,
            body: parts.body,
            outbox: Bytes::new(),
            stall_timer: None,
            linger: None,
            _slot: parts.slot,
        }
    }

    /// Passes inbound bytes to the reader until the socket has none, the reader takes no more, or the budget is
    /// exhausted.
    fn poll_inbound(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.wire.wants_chunk() {
            if let Some(budget_retry) = &mut self.budget_retry {
                if budget_retry.as_mut().poll(cx).is_pending() {
                    return Ok(());
                }
                self.budget_retry = None;
            }
            if self.inbox.is_empty() {
                let read = self.scratch.poll_read(&mut self.stream, cx, Bytes::copy_from_slice);
                let Poll::Ready(bytes) = read else { return Ok(()) };
                self.inbox = bytes?;
                if self.inbox.is_empty() {
                    self.wire.end(None);
                    return Ok(());
                }
                self.wire.note_received();
            }
            self.deliver_inbox();
        }
        Ok(())
    }

    /// Passes as many frames of the inbox to the reader as the guard, the budget and [`MAX_CHUNK_FRAMES`] allow.
    fn deliver_inbox(&mut self) {
        if let Some(frame) = self.waiting {
            if !self.reservations.reserve(frame) {
                self.budget_retry = Some(Box::pin(sleep(BUDGET_RETRY)));
                return;
            }
            self.waiting = None;
        }
        let mut frames = 0;
        let mut violation = None;
        let allowed = loop {
            let inspection = self.guard.inspect(&self.inbox[self.seen..]);
            let start = self.seen + inspection.frame_start;
            self.seen += inspection.seen;
            match inspection.result {
                InspectionResult::EndOfBytes => break self.seen,
                InspectionResult::Frame(frame) => {
                    if frame.starts_message {
                        self.reservations.complete_message();
                    }
                    if frames == MAX_CHUNK_FRAMES || !self.reservations.reserve(frame) {
                        self.waiting = Some(frame);
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
        if self.guard.is_between_messages() {
            self.reservations.complete_message();
        }
        self.deliver(allowed);
        if violation.is_some() {
            self.wire.end(violation);
        }
    }

    /// Passes the first `n` bytes of the inbox to the reader.
    fn deliver(&mut self, n: usize) {
        let chunk = if n == self.inbox.len() {
            self.seen = 0;
            std::mem::take(&mut self.inbox)
        } else {
            self.seen -= n;
            // A copy: a slice would keep the whole inbox allocated for as long as actix-ws keeps the chunk.
            let chunk = Bytes::copy_from_slice(&self.inbox[..n]);
            self.inbox.advance(n);
            chunk
        };
        if !chunk.is_empty() {
            self.wire.offer(chunk, self.reservations.complete.take());
        }
    }

    /// Writes the response body, one chunk at a time. Ready when all of it is written.
    fn poll_outbound(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while !self.outbox.is_empty() {
                let n = match Pin::new(&mut self.stream).poll_write(cx, &self.outbox) {
                    Poll::Ready(n) => n?,
                    Poll::Pending => return self.poll_stall(cx),
                };
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.stall_timer = None;
                self.outbox.advance(n);
                if self.outbox.is_empty() {
                    // An empty slice would still keep its buffer allocated.
                    self.outbox = Bytes::new();
                }
                self.wire.note_written(n);
            }
            self.outbox = match ready!(Pin::new(&mut self.body).poll_next(cx)) {
                Some(chunk) => chunk.map_err(body_error)?,
                None => return Poll::Ready(Ok(())),
            };
        }
    }

    /// Handles a blocked write. As long as there is a reader, the application limits how long a write may be blocked.
    /// Without one, this fails with `TimedOut` after [`Tuning::stall`](super::Tuning::stall) without progress: the body
    /// is not polled while a write is blocked, so the pump would not notice that the application has dropped its end.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.wire.has_lost_reader() {
            return Poll::Pending;
        }
        let stall_timer = self.stall_timer.get_or_insert_with(|| Box::pin(sleep(self.stall_limit)));
        ready!(stall_timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Frees everything but the socket and its slot, before lingering.
    fn begin_closing(&mut self) {
        self.body = BoxBody::new(());
        self.outbox = Bytes::new();
        self.inbox = Bytes::new();
        (self.reservations.incoming, self.reservations.complete) = (None, None);
        self.budget_retry = None;
        self.stall_timer = None;
        self.wire.finish();
    }
}

impl Future for Pump {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.wire.register_pump(cx);
        if this.wire.is_aborted() {
            return Poll::Ready(());
        }
        if this.linger.is_none() {
            if this.poll_inbound(cx).is_err() {
                return Poll::Ready(());
            }
            match ready!(this.poll_outbound(cx)) {
                Ok(()) => this.begin_closing(),
                Err(_) => return Poll::Ready(()),
            }
        }
        let linger = this.linger.get_or_insert_default();
        linger.poll(&mut this.stream, &this.scratch, cx)
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.wire.finish();
    }
}

/// Converts the error of a response body, which need not be `Send`, to an I/O error.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn body_error(error: Box<dyn std::error::Error>) -> io::Error {
    io::Error::other(error.to_string())
}
