//! Closes a connection in a way that lets the peer read the last bytes that were sent.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::AsyncWrite,
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use super::scratch::Scratch;

/// How long to wait for a peer that sends nothing to close its side.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait for a peer that keeps sending to close its side.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);

/// Shuts down the writing side of a connection, then reads and discards until the peer closes its side, sends nothing
/// for [`SILENCE_TIMEOUT`], or [`LINGER_TIMEOUT`] is over.
///
/// Dropping a socket with unread bytes makes the kernel reset the connection. The peer would lose what it has not read
/// yet, such as the Close frame.
#[derive(Default)]
pub(super) struct Linger {
    /// `None` until the writing side has been shut down.
    deadlines: Option<LingerDeadlines>,
}

struct LingerDeadlines {
    /// Expires at the end of the current silence, and at `last` at the latest.
    silence: Pin<Box<Sleep>>,
    last: Instant,
}

impl Linger {
    /// Ready when the stream can be dropped.
    pub(super) fn poll(&mut self, stream: &mut TcpStream, scratch: &Scratch, cx: &mut Context<'_>) -> Poll<()> {
        let deadlines = match &mut self.deadlines {
            Some(deadlines) => deadlines,
            none => {
                if ready!(Pin::new(&mut *stream).poll_shutdown(cx)).is_err() {
                    return Poll::Ready(());
                }
                let silence = Box::pin(sleep(SILENCE_TIMEOUT));
                none.insert(LingerDeadlines { silence, last: Instant::now() + LINGER_TIMEOUT })
            }
        };
        // Before the reads: a peer that sends without pause would use up the task's budget, and the timer would not be polled.
        if deadlines.silence.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        while let Poll::Ready(read) = scratch.poll_read(stream, cx, <[u8]>::len) {
            if !matches!(read, Ok(1..)) {
                return Poll::Ready(());
            }
            let until = deadlines.last.min(Instant::now() + SILENCE_TIMEOUT);
            deadlines.silence.as_mut().reset(until);
        }
        deadlines.silence.as_mut().poll(cx)
    }
}
