//! Reads whole messages from one socket, each once the read gate allows it.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use actix_web::web::{Bytes, BytesMut};
use actix_ws::{CloseReason, Item, Message, MessageStream, ProtocolError};
use futures_util::Stream;

use super::flow::Flow;

/// Messages up to this size are copied out of the buffer they came in.
const COPIED_BYTES: usize = 16 * 1024;

/// The stream of a socket's incoming messages.
pub struct MessageReader {
    messages: MessageStream,
    flow: Rc<Flow>,
    assembly: MessageAssembly,
}

/// Makes whole messages of frames. Frames share the buffer that they and others came in, and keeping a small one would
/// keep all of it; so small messages are copied, and fragments are copied together.
#[derive(Default)]
struct MessageAssembly {
    partial: Option<Box<Partial>>,
}

/// A message of which not all fragments have come.
struct Partial {
    is_text: bool,
    bytes: BytesMut,
}

/// A whole message or a control frame.
pub enum Incoming {
    /// UTF-8 text.
    Text(Bytes),
    /// Bytes.
    Binary(Bytes),
    /// To be answered with the same payload.
    Ping(Bytes),
    /// An answer to a ping of ours.
    Pong,
    /// The peer closes.
    Close(Option<CloseReason>),
}

impl MessageReader {
    /// Reads from `messages`, which the frame guard keeps well-formed and within their size.
    pub fn new(messages: MessageStream, flow: Rc<Flow>) -> Self {
        Self { messages, flow, assembly: MessageAssembly::default() }
    }
}

impl MessageAssembly {
    /// The message that this frame completes, if it completes one.
    fn complete(&mut self, frame: Message) -> Result<Option<Incoming>, ProtocolError> {
        Ok(Some(match frame {
            Message::Text(text) => Incoming::Text(detached(text.into_bytes())),
            Message::Binary(bytes) => Incoming::Binary(detached(bytes)),
            Message::Ping(payload) => Incoming::Ping(payload),
            Message::Pong(_) => Incoming::Pong,
            Message::Close(reason) => Incoming::Close(reason),
            Message::Nop => return Ok(None),
            Message::Continuation(item) => {
                let (start, fragment, last) = match item {
                    Item::FirstText(bytes) => (Some(true), bytes, false),
                    Item::FirstBinary(bytes) => (Some(false), bytes, false),
                    Item::Continue(bytes) => (None, bytes, false),
                    Item::Last(bytes) => (None, bytes, true),
                };
                if let Some(is_text) = start {
                    self.partial = Some(Box::new(Partial { is_text, bytes: BytesMut::new() }));
                }
                let partial = self.partial.as_mut().ok_or(ProtocolError::ContinuationNotStarted)?;
                partial.bytes.extend_from_slice(&fragment);
                if !last {
                    return Ok(None);
                }
                let Some(whole) = self.partial.take() else { return Ok(None) };
                let bytes = whole.bytes.freeze();
                if !whole.is_text {
                    Incoming::Binary(bytes)
                } else if std::str::from_utf8(&bytes).is_ok() {
                    Incoming::Text(bytes)
                } else {
                    return Err(ProtocolError::Io(std::io::ErrorKind::InvalidData.into()));
                }
            }
        }))
    }
}

impl Stream for MessageReader {
    type Item = Result<Incoming, ProtocolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            ready!(self.flow.poll_may_read(cx));
            match ready!(Pin::new(&mut self.messages).poll_next(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match self.assembly.complete(frame) {
                    Ok(None) => {}
                    Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                    Err(error) => return Poll::Ready(Some(Err(error))),
                },
            }
        }
    }
}

/// The bytes of a message; a small one gets a buffer of its own.
fn detached(message: Bytes) -> Bytes {
    if message.len() <= COPIED_BYTES { Bytes::copy_from_slice(&message) } else { message }
}

#[cfg(test)]
mod tests {
    use bytestring::ByteString;

    use super::*;

    /// What a peer may make of one read.
    fn buffer() -> Bytes {
        Bytes::from(vec![b'x'; COPIED_BYTES + 2])
    }

    fn text(bytes: Bytes) -> ByteString {
        ByteString::try_from(bytes).unwrap()
    }

    #[test]
    fn small_messages_do_not_keep_the_buffer_they_came_in() {
        let small = |buffer: &Bytes| buffer.slice(1..=COPIED_BYTES);
        for frame in [|bytes| Message::Text(text(bytes)), Message::Binary] {
            let buffer = buffer();
            let message = MessageAssembly::default().complete(frame(small(&buffer))).unwrap().unwrap();
            assert!(matches!(&message, Incoming::Text(kept) | Incoming::Binary(kept) if kept.len() == COPIED_BYTES));
            assert!(buffer.is_unique(), "something still shares the buffer");
        }
    }

    #[test]
    fn a_large_message_is_not_copied() {
        let buffer = buffer();
        let message = MessageAssembly::default().complete(Message::Binary(buffer.slice(1..))).unwrap().unwrap();
        assert!(matches!(&message, Incoming::Binary(kept) if kept.as_ptr() == buffer[1..].as_ptr()));
    }

    #[test]
    fn fragments_do_not_keep_the_buffers_they_came_in() {
        for (first, whole) in [(Item::FirstText as fn(Bytes) -> Item, "Text"), (Item::FirstBinary, "Binary")] {
            let mut assembly = MessageAssembly::default();
            let mut buffers = Vec::new();
            for item in [first, Item::Continue, Item::Continue, Item::Last] {
                let buffer = buffer();
                let message = assembly.complete(Message::Continuation(item(buffer.slice(7..10)))).unwrap();
                buffers.push(buffer);
                assert!(buffers.iter().all(Bytes::is_unique), "something still shares a buffer");
                match (message, buffers.len()) {
                    (None, 1..4) => {}
                    (Some(Incoming::Text(bytes)), 4) => assert_eq!((&bytes[..], whole), (&[b'x'; 12][..], "Text")),
                    (Some(Incoming::Binary(bytes)), 4) => assert_eq!((&bytes[..], whole), (&[b'x'; 12][..], "Binary")),
                    (message, count) => panic!("{} after {count} fragments", message.is_some()),
                }
            }
        }
    }
}
