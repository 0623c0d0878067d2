//! The task of an upgraded connection. It moves bytes from the socket to the reader, which is the payload stream of the
//! upgrade request, and from the response body to the socket.
//!
//! It holds no buffer while no data moves. Bytes are read into the worker's [`Scratch`] and passed on in allocations of
//! their exact size, because the reader may keep the last chunk until the next one arrives.

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
    time::{Instant, Sleep, sleep, sleep_until},
};

use super::{
    Tuning,
    inbound::InboundBytes,
    linger::Linger,
    scratch::Scratch,
    wire::{Cutoff, Wire},
};
use crate::socket::shares::Holder;

/// A queue that is not empty has to move [`LEAST_MOVED`] bytes in this time.
const WRITE_PERIOD: Duration = Duration::from_secs(30);
/// See [`WRITE_PERIOD`].
const LEAST_MOVED: u64 = 4 * 1024;

/// How long a connection whose place was given up has to read its Close frame.
const GIVEN_UP_TIMEOUT: Duration = Duration::from_secs(1);

/// The task of one upgraded connection. When it ends, the socket is dropped.
pub(super) struct Pump {
    stream: TcpStream,
    scratch: Scratch,
    wire: Rc<Wire>,
    inbound: InboundBytes,
    /// Runs while a message is unfinished and the socket is read.
    slow_timer: Option<Pin<Box<Sleep>>>,
    tuning: Rc<Tuning>,
    /// The body of the 101 response: the outbound bytes.
    body: BoxBody,
    /// Bytes taken from `body` but not written yet.
    outbox: Bytes,
    /// `Some` while bytes wait for the kernel to take them.
    stall: Option<Box<Stall>>,
    /// `Some` once all outbound bytes are written.
    linger: Option<Box<Linger>>,
    /// Runs once the connection's place was given up.
    given_up: Option<Pin<Box<Sleep>>>,
}

/// A blocked write.
struct Stall {
    timer: Pin<Box<Sleep>>,
    /// [`Wire::written`] when the timer was set.
    written: u64,
    /// Whether the reader was gone when the timer was set.
    is_reader_gone: bool,
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
    /// The limits of the node's connections.
    pub tuning: Rc<Tuning>,
}

impl Pump {
    /// Returns the task. It does nothing until it is spawned.
    pub(super) fn new(parts: PumpParts) -> Self {
        Self {
            stream: parts.stream,
            scratch: parts.scratch,
            wire: parts.wire,
            inbound: InboundBytes::new(&parts.early, parts.tuning.max_message),
            tuning: parts.tuning,
            slow_timer: None,
            body: parts.body,
            outbox: Bytes::new(),
            stall: None,
            linger: None,
            given_up: None,
        }
    }

    /// Passes inbound bytes to the reader until the socket has none or the reader takes no more.
    fn poll_inbound(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.read(cx)?;
        // After reading, which may open the account.
        if self.inbound.account().is_some_and(|account| account.poll_given_up(cx).is_ready()) {
            self.cut_off(Cutoff::MessageGivenUp);
        }
        Ok(())
    }

    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.wire.wants_chunk() {
            self.inbound.resume();
            if !self.inbound.has_more() {
                let inbound = &mut self.inbound;
                let read = self.scratch.poll_read(&mut self.stream, cx, |bytes| {
                    inbound.append(bytes);
                    bytes.len()
                });
                let Poll::Ready(received) = read else {
                    self.poll_message_deadline(cx);
                    return Ok(());
                };
                if received? == 0 {
                    self.wire.end(None);
                    return Ok(());
                }
                self.wire.note_received();
            }
            self.deliver();
        }
        self.inbound.pause();
        Ok(())
    }

    /// Passes to the reader what it may have.
    fn deliver(&mut self) {
        let (tuning, wire) = (&self.tuning, &self.wire);
        let open_account = || tuning.inbound.account(wire.holder().unwrap_or(Holder::NOBODY));
        let Ok(chunk) = self.inbound.next_chunk(Instant::now(), open_account) else {
            return self.cut_off(Cutoff::MessageGivenUp);
        };
        if !chunk.bytes.is_empty() {
            self.wire.offer(chunk.bytes, chunk.reserved);
        }
        if chunk.violation.is_some() {
            self.wire.end(chunk.violation);
        }
    }

    /// Cuts the connection off if its unfinished message is too slow.
    fn poll_message_deadline(&mut self, cx: &mut Context<'_>) {
        let Some(deadline) = self.inbound.deadline() else {
            self.slow_timer = None;
            return;
        };
        let timer = self.slow_timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        while timer.as_mut().poll(cx).is_ready() {
            // It was set before the last bytes arrived.
            if timer.deadline() >= deadline {
                return self.cut_off(Cutoff::MessageTooSlow);
            }
            timer.as_mut().reset(deadline);
        }
    }

    fn cut_off(&mut self, cutoff: Cutoff) {
        self.inbound.clear();
        self.slow_timer = None;
        self.wire.cut_off(cutoff);
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
                self.outbox.advance(n);
                if self.outbox.is_empty() {
                    // An empty slice would still keep its buffer allocated.
                    self.outbox = Bytes::new();
                }
                self.wire.note_written(n);
            }
            self.outbox = match Pin::new(&mut self.body).poll_next(cx) {
                Poll::Ready(Some(chunk)) => chunk.map_err(body_error)?,
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    // The kernel has taken everything.
                    self.stall = None;
                    return Poll::Pending;
                }
            };
        }
    }

    /// Handles a blocked write: there is a queue. Cuts the connection off if the kernel takes fewer than [`LEAST_MOVED`]
    /// bytes in [`WRITE_PERIOD`]. If there is no reader any more, fails with `TimedOut` after
    /// [`Tuning::stall`](super::Tuning::stall) without progress: the body is not polled while a write is blocked, so the
    /// pump would not notice that the application has dropped its end.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (is_reader_gone, written) = (self.wire.has_lost_reader(), self.wire.written());
        let (period, least) = if is_reader_gone { (self.tuning.stall, 1) } else { (WRITE_PERIOD, LEAST_MOVED) };
        if self.stall.as_ref().is_some_and(|stall| stall.is_reader_gone != is_reader_gone) {
            self.stall = None;
        }
        let start = || Box::new(Stall { timer: Box::pin(sleep(period)), written, is_reader_gone });
        let stall = self.stall.get_or_insert_with(start);
        while stall.timer.as_mut().poll(cx).is_ready() {
            if written - stall.written >= least {
                *stall = start();
            } else if is_reader_gone {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            } else {
                self.wire.cut_off(Cutoff::NotReading);
                return Poll::Pending;
            }
        }
        Poll::Pending
    }

    /// Ready if the connection's place was given up and it is closing already, or has had its time to close.
    fn poll_given_up(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.given_up.is_none() {
            ready!(self.wire.poll_seat_given_up(cx));
            if self.wire.is_closing() || self.linger.is_some() {
                return Poll::Ready(());
            }
            self.cut_off(Cutoff::PlaceGivenUp);
        }
        let timer = self.given_up.get_or_insert_with(|| Box::pin(sleep(GIVEN_UP_TIMEOUT)));
        timer.as_mut().poll(cx)
    }

    /// Frees everything but the socket and its place, before lingering.
    fn begin_closing(&mut self) {
        self.body = BoxBody::new(());
        self.outbox = Bytes::new();
        self.inbound.clear();
        self.slow_timer = None;
        self.stall = None;
        self.wire.finish();
    }
}

impl Future for Pump {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.wire.register_pump(cx);
        if this.wire.is_aborted() || this.poll_given_up(cx).is_ready() {
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
        self.wire.leave_seat();
    }
}

/// Converts the error of a response body, which need not be `Send`, to an I/O error.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn body_error(error: Box<dyn std::error::Error>) -> io::Error {
    io::Error::other(error.to_string())
}
