//! Enforces deadlines on connections that have not upgraded.
//!
//! - The head of a request must be complete within [`HEAD_TIMEOUT`] of its first byte. The time for the first head
//!   starts when the connection is accepted.
//! - After that, bytes of a response must be written at least once per [`PROGRESS_TIMEOUT`]. This covers clients that
//!   send without ever completing a request, and clients that do not read their response.
//!
//! Two more limits are enforced elsewhere: the application limits the time for a request's body, and actix-http closes
//! connections that are idle between requests.
//!
//! A client that misses a deadline gets an error response, unless another response is partly written or the application
//! is still preparing one. A connection that is given up for another one ends without a response.

use std::{
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use super::{connection_limiter::ConnectionSlots, linger::Linger, request_activity::RequestActivity, scratch::Scratch};
use crate::edge::{EdgeError, Problem};

/// How long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may go without a byte of a response being written. Longer than the keep-alive time, so that
/// actix-http closes idle connections before this expires.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(35);

/// What must happen before the deadline.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DeadlineKind {
    /// The head of the request that is being received is complete.
    Head,
    /// Bytes of the response are written.
    Response,
    /// The next request begins, or actix-http closes the idle connection.
    NextRequest,
}

/// A TCP stream with its deadline. It holds the slots of the connection.
pub(super) struct DeadlineStream {
    stream: TcpStream,
    deadline_kind: DeadlineKind,
    deadline: Pin<Box<Sleep>>,
    activity: Rc<RequestActivity>,
    /// The number of requests begun when the deadline was last set.
    seen_requests: u64,
    /// Whether the last write had to wait for the peer to read.
    is_blocked: bool,
    scratch: Scratch,
    linger: Linger,
    slots: ConnectionSlots,
}

impl DeadlineStream {
    /// Wraps an accepted connection. The time for the first request's head starts now.
    pub(super) fn new(stream: TcpStream, slots: ConnectionSlots, scratch: Scratch) -> Self {
        Self {
            stream,
            deadline_kind: DeadlineKind::Head,
            deadline: Box::pin(sleep(HEAD_TIMEOUT)),
            activity: Rc::default(),
            seen_requests: 0,
            is_blocked: false,
            scratch,
            linger: Linger::default(),
            slots,
        }
    }

    /// The activity of the connection's requests. The application has to keep it up to date.
    pub(super) fn activity(&self) -> Rc<RequestActivity> {
        self.activity.clone()
    }

    /// The stream without deadlines, and the slots of the connection.
    pub(super) fn into_parts(self) -> (TcpStream, ConnectionSlots) {
        (self.stream, self.slots)
    }

    fn set_deadline(&mut self, kind: DeadlineKind) {
        self.deadline_kind = kind;
        let time = if kind == DeadlineKind::Head { HEAD_TIMEOUT } else { PROGRESS_TIMEOUT };
        self.deadline.as_mut().reset(Instant::now() + time);
    }

    /// Whether the deadline has passed. If not, wakes the connection's task when it does.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let begun = self.activity.begun();
        if std::mem::replace(&mut self.seen_requests, begun) != begun {
            self.set_deadline(DeadlineKind::Response);
        }
        self.deadline.as_mut().poll(cx).is_ready()
    }

    /// Responds that the request was not complete in time.
    ///
    /// # Errors
    /// `TimedOut` if another response is partly written or not written yet.
    fn respond_too_slow(&self) -> io::Result<()> {
        if self.is_blocked || self.activity.is_in_progress() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // The send buffer is empty, so the whole response fits into it.
        let response = Problem::from(EdgeError::TooSlow).as_http1();
        self.stream.try_write(&response).map_err(|_| io::ErrorKind::TimedOut)?;
        self.activity.set_closing();
        Ok(())
    }
}

impl AsyncRead for DeadlineStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.slots.is_displaced(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        // Checked even if there are bytes to read: a client that sends endlessly makes no progress either.
        if this.is_late(cx) && !this.activity.is_closing() {
            this.respond_too_slow()?;
        }
        if this.activity.is_closing() && !this.is_blocked {
            // Reports the end of the stream, so that actix-http closes the connection.
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        let has_read = buffer.filled().len() > before;
        if has_read && this.deadline_kind == DeadlineKind::NextRequest && !this.activity.is_in_progress() {
            this.set_deadline(DeadlineKind::Head);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for DeadlineStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.slots.is_displaced(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let polled = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.is_blocked = polled.is_pending();
        match polled {
            Poll::Ready(Ok(1..)) => {
                this.seen_requests = this.activity.begun();
                this.set_deadline(DeadlineKind::NextRequest);
                if this.activity.is_closing() {
                    // Makes actix-http read again, which reports the end of the stream.
                    cx.waker().wake_by_ref();
                }
            }
            Poll::Pending if this.is_late(cx) => return Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            _ => {}
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.activity.is_closing() {
            // The peer may still be sending. Closing now would reset the connection and lose the response.
            return this.linger.poll(&mut this.stream, &this.scratch, cx).map(Ok);
        }
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
