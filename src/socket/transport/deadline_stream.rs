//! Enforces deadlines on connections that have not upgraded.
//!
//! The head of a request has ten seconds from its first byte, or from the connect; the application bounds the body; and
//! actix-http ends connections that idle between requests. For everything else that a client can send slowly, one rule
//! holds: while bytes are awaited, something must have been written within [`PATIENCE`]. A client that misses a deadline
//! gets an answer that says so, unless the answer would end up inside another one.

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

use super::{admission::Admitted, linger::Linger, request_activity::RequestActivity, scratch::Scratch};
use crate::edge::{EdgeError, Problem};

/// How long the head of a request may take.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long a connection may go without an answer. Longer than keep-alive, so that it ends idle connections in good order.
const PATIENCE: Duration = Duration::from_secs(35);

/// What a connection's deadline is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaits {
    /// The rest of a head.
    Head,
    /// Progress of the application, or of the peer that reads its answer.
    Answer,
    /// Another request, which need not come.
    Request,
}

/// A TCP stream with its deadline. It holds the connection's places in the counts.
pub(super) struct DeadlineStream {
    stream: TcpStream,
    awaits: Awaits,
    deadline: Pin<Box<Sleep>>,
    activity: Rc<RequestActivity>,
    /// Requests that the deadline takes into account.
    heads: u64,
    /// Whether part of an answer waits for the peer to read.
    is_blocked: bool,
    scratch: Scratch,
    linger: Linger,
    _places: Admitted,
}

impl DeadlineStream {
    pub(super) fn new(stream: TcpStream, places: Admitted, scratch: Scratch) -> Self {
        Self {
            stream,
            awaits: Awaits::Head,
            deadline: Box::pin(sleep(HEAD_TIME)),
            activity: Rc::default(),
            heads: 0,
            is_blocked: false,
            scratch,
            linger: Linger::default(),
            _places: places,
        }
    }

    /// The activity of the connection's requests, for the application to keep up to date.
    pub(super) fn activity(&self) -> Rc<RequestActivity> {
        self.activity.clone()
    }

    /// The stream alone; the connection gives up its places.
    pub(super) fn into_inner(self) -> TcpStream {
        self.stream
    }

    fn await_now(&mut self, what: Awaits) {
        self.awaits = what;
        let time = if what == Awaits::Head { HEAD_TIME } else { PATIENCE };
        self.deadline.as_mut().reset(Instant::now() + time);
    }

    /// Whether time is up; the connection's task is woken when it will be.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let heads = self.activity.begun();
        if std::mem::replace(&mut self.heads, heads) != heads {
            self.await_now(Awaits::Answer);
        }
        self.deadline.as_mut().poll(cx).is_ready()
    }

    /// Answers that the request came too slowly.
    ///
    /// # Errors
    /// `TimedOut` if the peer has part of an answer, or is still to get one.
    fn answer_too_slow(&self) -> io::Result<()> {
        if self.is_blocked || self.activity.is_under_way() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // Nothing else waits to be sent, so the socket takes it whole.
        let answer = Problem::from(EdgeError::TooSlow).as_http1();
        self.stream.try_write(&answer).map_err(|_| io::ErrorKind::TimedOut)?;
        self.activity.end();
        Ok(())
    }
}

impl AsyncRead for DeadlineStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Also if there is something to read: a client that sends without end makes no progress either.
        if this.is_late(cx) && !this.activity.is_over() {
            this.answer_too_slow()?;
        }
        if this.activity.is_over() && !this.is_blocked {
            // As if the peer had ended it.
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        if this.awaits == Awaits::Request && !this.activity.is_under_way() && buffer.filled().len() > before {
            this.await_now(Awaits::Head);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for DeadlineStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.is_blocked = polled.is_pending();
        match polled {
            Poll::Ready(Ok(1..)) => {
                this.heads = this.activity.begun();
                this.await_now(Awaits::Request);
                if this.activity.is_over() {
                    // To be read to its end, which is here.
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
        if this.activity.is_over() {
            // It may still be sending, and must not lose the answer for that.
            return this.linger.poll(&mut this.stream, &this.scratch, cx).map(Ok);
        }
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
