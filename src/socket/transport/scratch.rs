//! The read buffer that all connections of one worker thread share.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
};

/// Bytes read at once, and so the most that waits for the reader of one connection.
const READ_BYTES: usize = 16 * 1024;

/// The buffer. Clones share it.
#[derive(Clone)]
pub(super) struct Scratch(Rc<RefCell<Box<[u8]>>>);

impl Scratch {
    pub(super) fn new() -> Self {
        Self(Rc::new(RefCell::new(vec![0; READ_BYTES].into_boxed_slice())))
    }

    /// Reads once and returns what `taken` makes of the bytes, which are empty at the end of the stream.
    pub(super) fn poll_read<T>(
        &self,
        stream: &mut TcpStream,
        cx: &mut Context<'_>,
        taken: impl FnOnce(&[u8]) -> T,
    ) -> Poll<io::Result<T>> {
        let mut scratch = self.0.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(taken(buffer.filled())))
    }
}
