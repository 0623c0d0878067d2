//! The task that an upgraded connection runs as: socket → payload stream, response body → socket.
//!
//! While nothing moves it owns no buffer. Bytes are read into one buffer per worker and handed on
//! as allocations of their exact size, because actix-ws keeps the last one until the next arrives.

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
    frame_guard::{DeclaredFrame, FrameGuard, Stop},
    linger::Linger,
    scratch::Scratch,
    wire::Wire,
};
use crate::socket::budget::{Budget, Reservation};

/// Messages up to this size need no reservation: a chunk may hold as much anyway.
const FREE_BYTES: u64 = 4 * 1024;
/// Frames handed on at once. actix-ws makes a queue of all frames in a chunk and never shrinks it;
/// without this a chunk of empty frames would leave half a megabyte behind.
const FRAMES_AT_ONCE: usize = 32;
/// How long to leave a socket unread before asking the exhausted budget again.
const BUDGET_RETRY: Duration = Duration::from_millis(100);

/// The future of one upgraded connection. It ends when the socket is to be dropped.
pub(super) struct Pump {
    stream: TcpStream,
    scratch: Scratch,
    wire: Rc<Wire>,
    memory: Memory,
    stall_limit: Duration,
    guard: FrameGuard,
    /// Read but not yet handed on: empty, unless the frames in it have to wait.
    inbox: Bytes,
    /// How much of `inbox` the guard has seen.
    seen: usize,
    /// The frame at which the inbox was cut, because it has to wait its turn or for memory.
    waiting: Option<DeclaredFrame>,
    retry: Option<Pin<Box<Sleep>>>,
    body: BoxBody,
    /// Taken from the body but not yet written.
    outbox: Bytes,
    stall: Option<Pin<Box<Sleep>>>,
    closing: Option<Linger>,
    /// The connection's place among those that the node allows.
    _slot: Reservation,
}

/// The memory that large inbound messages of one connection may take.
struct Memory {
    budget: Budget,
    /// Drawn for the fragmented message whose length is not known before its last frame.
    max_message: u64,
    /// Covers the message now coming in, if it is large.
    message: Option<Reservation>,
    /// Covers large messages that have come in whole but are not handed on yet.
    whole: Option<Reservation>,
}

impl Memory {
    /// Makes sure that the message of `frame` is covered; false if the budget is exhausted.
    fn cover(&mut self, frame: DeclaredFrame) -> bool {
        if frame.message_bytes <= FREE_BYTES || self.message.is_some() {
            return true;
        }
        // All at once: connections that each held a part and waited for more would wait for ever.
        let need = if frame.starts_message && frame.fin { frame.message_bytes } else { self.max_message };
        let need = usize::try_from(need).unwrap_or(usize::MAX).min(self.budget.limit());
        self.message = self.budget.try_reserve(need);
        self.message.is_some()
    }

    /// What covers the message that came in last now waits to be handed on with its last byte.
    fn message_ended(&mut self) {
        match (&mut self.whole, self.message.take()) {
            (Some(whole), Some(message)) => whole.absorb(message),
            (None, message) => self.whole = message,
            (Some(_), None) => {}
        }
    }
}

/// Everything that a pump starts with.
pub(super) struct PumpParts {
    pub stream: TcpStream,
    pub scratch: Scratch,
    pub wire: Rc<Wire>,
    /// Bytes that came in behind the upgrade request.
    pub early: Bytes,
    pub body: BoxBody,
    pub slot: Reservation,
    pub max_message: u64,
    pub budget: Budget,
    pub stall_limit: Duration,
}

impl Pump {
    pub(super) fn new(parts: PumpParts) -> Self {
        Self {
            stream: parts.stream,
            scratch: parts.scratch,
            wire: parts.wire,
            stall_limit: parts.stall_limit,
            memory: Memory { budget: parts.budget, max_message: parts.max_message, message: None, whole: None },
            guard: FrameGuard::new(parts.max_message),
            inbox: parts.early,
            seen: 0,
            waiting: None,
            retry: None,
            body: parts.body,
            outbox: Bytes::new(),
            stall: None,
            closing: None,
            _slot: parts.slot,
        }
    }

    /// Moves bytes in until the socket has none, the reader takes none or memory is short.
    fn poll_inbound(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.wire.wants_chunk() {
            if let Some(retry) = &mut self.retry {
                if retry.as_mut().poll(cx).is_pending() {
                    return Ok(());
                }
                self.retry = None;
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
            self.sift();
        }
        Ok(())
    }

    /// Hands on as much of the inbox as the guard and the budget let pass.
    fn sift(&mut self) {
        if let Some(frame) = self.waiting {
            if !self.memory.cover(frame) {
                self.retry = Some(Box::pin(sleep(BUDGET_RETRY)));
                return;
            }
            self.waiting = None;
        }
        let mut frames = 0;
        let mut violation = None;
        let pass = loop {
            let inspection = self.guard.inspect(&self.inbox[self.seen..]);
            let start = self.seen + inspection.frame_start;
            self.seen += inspection.seen;
            match inspection.stop {
                Stop::End => break self.seen,
                Stop::Frame(frame) => {
                    if frame.starts_message {
                        self.memory.message_ended();
                    }
                    if frames == FRAMES_AT_ONCE || !self.memory.cover(frame) {
                        self.waiting = Some(frame);
                        break start;
                    }
                    frames += 1;
                }
                Stop::Closed => {
                    self.inbox.truncate(start);
                    break start;
                }
                Stop::Violation(found) => {
                    self.inbox.truncate(start);
                    violation = Some(found);
                    break start;
                }
            }
        };
        if self.guard.is_between_messages() {
            self.memory.message_ended();
        }
        self.hand_on(pass);
        if violation.is_some() {
            self.wire.end(violation);
        }
    }

    /// Gives the reader the first `n` bytes of the inbox.
    fn hand_on(&mut self, n: usize) {
        let chunk = if n == self.inbox.len() {
            self.seen = 0;
            std::mem::take(&mut self.inbox)
        } else {
            self.seen -= n;
            // A copy: a slice would keep all of the inbox for as long as actix-ws keeps the chunk.
            let chunk = Bytes::copy_from_slice(&self.inbox[..n]);
            self.inbox.advance(n);
            chunk
        };
        if !chunk.is_empty() {
            self.wire.offer(chunk, self.memory.whole.take());
        }
    }

    /// Writes what the response body gives, one chunk at a time; ready when the body has ended.
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
                self.stall = None;
                self.outbox.advance(n);
                if self.outbox.is_empty() {
                    // Also an empty rest keeps its whole buffer alive, and an idle socket would for long.
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

    /// While there is a reader, it decides how long a write may stand still. After it, [`Tuning::stall`](super::Tuning::stall) does:
    /// the body that is not polled meanwhile could not tell that nobody is behind it any more.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.wire.has_lost_reader() {
            return Poll::Pending;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(self.stall_limit)));
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Gives back all but the socket and its slot, for the time until the peer has closed its side too.
    fn begin_closing(&mut self) {
        self.body = BoxBody::new(());
        self.outbox = Bytes::new();
        self.inbox = Bytes::new();
        (self.memory.message, self.memory.whole) = (None, None);
        self.retry = None;
        self.stall = None;
        self.wire.finish();
    }
}

impl Future for Pump {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.wire.watch(cx);
        if this.wire.aborted() {
            return Poll::Ready(());
        }
        if this.closing.is_none() {
            if this.poll_inbound(cx).is_err() {
                return Poll::Ready(());
            }
            match ready!(this.poll_outbound(cx)) {
                Ok(()) => this.begin_closing(),
                Err(_) => return Poll::Ready(()),
            }
        }
        let linger = this.closing.get_or_insert_default();
        linger.poll(&mut this.stream, &this.scratch, cx)
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.wire.finish();
    }
}

/// A response body's error, which need not be `Send`, as an error of the connection.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn body_error(error: Box<dyn std::error::Error>) -> io::Error {
    io::Error::other(error.to_string())
}
