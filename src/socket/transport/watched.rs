//! A connection that is no socket (yet), which must get on.
//!
//! The head of a request has ten seconds from its first byte, or from the connect; the application bounds the body; and
//! actix-http ends connections that idle between requests. Whatever else can be dripped has in common that nothing is
//! answered: while bytes are awaited, something must have been written within [`PATIENCE`]. Who is late with a request is told
//! so, where the answer cannot get into another.

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

use super::{
    admission::Admitted,
    progress::Progress,
    pump::{Linger, Scratch},
};
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
    /// That the application, or the peer that reads its answer, gets on.
    Answer,
    /// Another request, which need not come.
    Request,
}

/// A TCP stream with its deadline and its places in the counts.
pub(super) struct Watched {
    stream: TcpStream,
    awaits: Awaits,
    deadline: Pin<Box<Sleep>>,
    progress: Rc<Progress>,
    /// Heads that the deadline knows of.
    heads: u64,
    /// Whether part of an answer waits for the peer to read.
    is_blocked: bool,
    scratch: Scratch,
    linger: Linger,
    _places: Admitted,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, places: Admitted, scratch: Scratch) -> Self {
        Self {
            stream,
            awaits: Awaits::Head,
            deadline: Box::pin(sleep(HEAD_TIME)),
            progress: Rc::default(),
            heads: 0,
            is_blocked: false,
            scratch,
            linger: Linger::default(),
            _places: places,
        }
    }

    /// Where the application says how it gets on.
    pub(super) fn progress(&self) -> Rc<Progress> {
        self.progress.clone()
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
        let heads = self.progress.begun();
        if std::mem::replace(&mut self.heads, heads) != heads {
            self.await_now(Awaits::Answer);
        }
        self.deadline.as_mut().poll(cx).is_ready()
    }

    /// Tells the peer that it was too slow, unless it has part of an answer, or is still to get one.
    fn turn_away(&self) -> io::Result<()> {
        if self.is_blocked || self.progress.is_under_way() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // Nothing else waits to be sent, so there is room for it.
        let answer = Problem::from(EdgeError::TooSlow).as_http1();
        self.stream.try_write(&answer).map_err(|_| io::ErrorKind::TimedOut)?;
        self.progress.end();
        Ok(())
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Also where there is something to read: whoever sends without end is not getting on either.
        if this.is_late(cx) && !this.progress.is_over() {
            this.turn_away()?;
        }
        if this.progress.is_over() && !this.is_blocked {
            // As if the peer had ended it.
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        if this.awaits == Awaits::Request && !this.progress.is_under_way() && buffer.filled().len() > before {
            this.await_now(Awaits::Head);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.is_blocked = polled.is_pending();
        match polled {
            Poll::Ready(Ok(1..)) => {
                this.heads = this.progress.begun();
                this.await_now(Awaits::Request);
                if this.progress.is_over() {
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
        if this.progress.is_over() {
            // It may still be sending, and must not lose the answer for that.
            return this.linger.poll(&mut this.stream, &this.scratch, cx).map(Ok);
        }
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
