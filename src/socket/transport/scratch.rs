//! A read buffer shared by the connections of one worker thread, so that an idle connection needs none.

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

/// Size of the buffer in bytes: the most that one read returns.
const BUFFER_BYTES: usize = 16 * 1024;

/// The shared read buffer. Clones share it.
#[derive(Clone)]
pub(super) struct Scratch(Rc<RefCell<Box<[u8]>>>);

impl Scratch {
    /// Allocates a buffer. Each worker thread needs its own.
    pub(super) fn new() -> Self {
        Self(Rc::new(RefCell::new(vec![0; BUFFER_BYTES].into_boxed_slice())))
    }

    /// Reads once, and returns what `convert` makes of the bytes. They are empty at the end of the stream.
    ///
    /// # Errors
    /// If reading from the stream fails.
    pub(super) fn poll_read<T>(
        &self,
        stream: &mut TcpStream,
        cx: &mut Context<'_>,
        convert: impl FnOnce(&[u8]) -> T,
    ) -> Poll<io::Result<T>> {
        let mut scratch = self.0.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(convert(buffer.filled())))
    }
}
