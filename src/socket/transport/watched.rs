//! A connection that is no socket (yet), which must get on.
//!
//! actix-http gives the head of the first request ten seconds, and knows no other bound: a head that drips in behind it, a
//! body that nobody reads, an answer that nobody takes would keep a connection for as long as the client likes. They have in
//! common that nothing is answered. So there is one rule: while bytes are awaited, something must have been written within
//! [`PATIENCE`].

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use super::admission::Admitted;

/// How long a connection may go without an answer. Longer than keep-alive, so that it ends idle connections in good order.
const PATIENCE: Duration = Duration::from_secs(35);

/// A TCP stream with its deadline and its places in the counts.
pub(super) struct Watched {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    _places: Admitted,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, places: Admitted) -> Self {
        Self { stream, deadline: Box::pin(sleep(PATIENCE)), _places: places }
    }

    /// The stream alone; the connection gives up its places.
    pub(super) fn into_inner(self) -> TcpStream {
        self.stream
    }

    /// Whether time is up; the connection's task is woken when it will be.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        self.deadline.as_mut().poll(cx).is_ready()
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Also where there is something to read: whoever sends without end is not getting on either.
        if this.is_late(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, bytes);
        match polled {
            Poll::Ready(Ok(1..)) => this.deadline.as_mut().reset(Instant::now() + PATIENCE),
            Poll::Pending if this.is_late(cx) => return Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            _ => {}
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
