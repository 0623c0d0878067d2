//! Closes a connection so that the peer gets to read what it was sent last.

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

/// How long to wait for a silent peer to close its side.
const QUIET: Duration = Duration::from_secs(2);
/// How long to wait for a peer that goes on sending to close its side.
const LINGER: Duration = Duration::from_secs(5);

/// Shuts down the writing side, then reads until the peer closes. Dropping a socket with unread bytes would reset it, and
/// the peer would lose what it has not read yet, such as the Close frame.
#[derive(Default)]
pub(super) struct Linger {
    timers: Option<Timers>,
}

struct Timers {
    quiet: Pin<Box<Sleep>>,
    last: Instant,
}

impl Linger {
    pub(super) fn poll(&mut self, stream: &mut TcpStream, scratch: &Scratch, cx: &mut Context<'_>) -> Poll<()> {
        let timers = match &mut self.timers {
            Some(timers) => timers,
            none => {
                if ready!(Pin::new(&mut *stream).poll_shutdown(cx)).is_err() {
                    return Poll::Ready(());
                }
                let quiet = Box::pin(sleep(QUIET));
                none.insert(Timers { quiet, last: Instant::now() + LINGER })
            }
        };
        while let Poll::Ready(read) = scratch.poll_read(stream, cx, <[u8]>::len) {
            if !matches!(read, Ok(1..)) {
                return Poll::Ready(());
            }
            let until = timers.last.min(Instant::now() + QUIET);
            timers.quiet.as_mut().reset(until);
        }
        timers.quiet.as_mut().poll(cx)
    }
}
