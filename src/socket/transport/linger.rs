//! Closes a connection so that the peer can still read the last bytes that were sent.

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

/// How long a peer that has not closed its side may send nothing.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a peer may keep sending before it closes its side.
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
    /// Expires when the peer has sent nothing for [`SILENCE_TIMEOUT`], at the latest at `last`.
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
        // Polled before the reads: if the peer sends without pause, they use up the task's budget, after which a timer is
        // never ready.
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
