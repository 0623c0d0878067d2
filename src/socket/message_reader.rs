//! Reads whole messages from one WebSocket, each as soon as the read gate allows it.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use actix_codec::Decoder;
use actix_http::{
    Payload,
    ws::{CloseReason, Codec, Frame, Item, ProtocolError},
};
use actix_web::web::{Bytes, BytesMut};
use futures_util::Stream;
use sealwire_protocol::limits::MAX_FRAME_BYTES;

use super::{
    flow::Flow,
    transport::{Cutoff, Wire},
};

/// Messages up to this size in bytes are copied out of the buffer in which they were received.
const COPIED_BYTES: usize = 16 * 1024;

/// The stream of a connection's incoming messages.
pub struct MessageReader {
    frames: FrameStream,
    flow: Rc<Flow>,
    wire: Rc<Wire>,
    assembly: MessageAssembly,
}

/// The frames of a payload stream.
struct FrameStream {
    payload: Payload,
    /// Bytes that were received and not decoded yet.
    received: BytesMut,
    decoder: Codec,
    /// Whether the payload stream has ended.
    has_ended: bool,
}

/// Assembles frames into whole messages. A frame is a slice of the buffer in which it was received and keeps all of it
/// allocated. Therefore small messages and fragments are copied.
#[derive(Default)]
struct MessageAssembly {
    partial: Option<Box<PartialMessage>>,
}

/// A fragmented message whose last fragment is missing.
struct PartialMessage {
    is_text: bool,
    bytes: BytesMut,
}

/// A whole message or a control frame.
pub enum Incoming {
    /// A text message.
    Text(Bytes),
    /// A binary message.
    Binary(Bytes),
    /// A ping, to be answered with the same payload.
    Ping(Bytes),
    /// The answer to one of our pings.
    Pong,
    /// The peer's Close frame.
    Close(Option<CloseReason>),
}

impl MessageReader {
    /// A reader of the messages in `payload`, whose framing and size the transport has checked.
    pub fn new(payload: Payload, flow: Rc<Flow>, wire: Rc<Wire>) -> Self {
        Self { frames: FrameStream::new(payload), flow, wire, assembly: MessageAssembly::default() }
    }
}

impl FrameStream {
    fn new(payload: Payload) -> Self {
        let decoder = Codec::new().max_size(MAX_FRAME_BYTES);
        Self { payload, received: BytesMut::new(), decoder, has_ended: false }
    }

    /// Receives until there is nothing more to receive. Returns whether anything was received.
    fn receive(&mut self, cx: &mut Context<'_>) -> Result<bool, ProtocolError> {
        let mut has_received = false;
        while !self.has_ended {
            match Pin::new(&mut self.payload).poll_next(cx) {
                Poll::Ready(Some(Ok(bytes))) if self.received.is_empty() => self.received = bytes.into(),
                Poll::Ready(Some(Ok(bytes))) => self.received.extend_from_slice(&bytes),
                Poll::Ready(Some(Err(error))) => {
                    self.has_ended = true;
                    return Err(ProtocolError::Io(io::Error::other(error)));
                }
                Poll::Ready(None) => self.has_ended = true,
                Poll::Pending => break,
            }
            has_received = true;
        }
        Ok(has_received)
    }
}

impl Stream for FrameStream {
    type Item = Result<Frame, ProtocolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(frame) = this.decoder.decode(&mut this.received)? {
                if this.received.is_empty() {
                    // An idle connection keeps no buffer.
                    this.received = BytesMut::new();
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            if this.has_ended {
                return Poll::Ready(None);
            }
            if !this.received.is_empty() {
                // The start of a frame. A copy, because the slice would keep the messages before it allocated.
                this.received = BytesMut::from(&this.received[..]);
            }
            if !this.receive(cx)? {
                return Poll::Pending;
            }
        }
    }
}

impl MessageAssembly {
    /// Adds a frame, and returns the message that it completes.
    ///
    /// # Errors
    /// If a continuation has no first fragment, or a text message is not UTF-8.
    fn add(&mut self, frame: Frame) -> Result<Option<Incoming>, ProtocolError> {
        Ok(Some(match frame {
            Frame::Text(bytes) => Incoming::Text(utf8(detached(bytes))?),
            Frame::Binary(bytes) => Incoming::Binary(detached(bytes)),
            Frame::Ping(payload) => Incoming::Ping(payload),
            Frame::Pong(_) => Incoming::Pong,
            Frame::Close(reason) => Incoming::Close(reason),
            Frame::Continuation(item) => {
                let (start, fragment, last) = match item {
                    Item::FirstText(bytes) => (Some(true), bytes, false),
                    Item::FirstBinary(bytes) => (Some(false), bytes, false),
                    Item::Continue(bytes) => (None, bytes, false),
                    Item::Last(bytes) => (None, bytes, true),
                };
                if let Some(is_text) = start {
                    self.partial = Some(Box::new(PartialMessage { is_text, bytes: BytesMut::new() }));
                }
                let partial = self.partial.as_mut().ok_or(ProtocolError::ContinuationNotStarted)?;
                partial.bytes.extend_from_slice(&fragment);
                if !last {
                    return Ok(None);
                }
                let Some(whole) = self.partial.take() else { return Ok(None) };
                let bytes = whole.bytes.freeze();
                if whole.is_text { Incoming::Text(utf8(bytes)?) } else { Incoming::Binary(bytes) }
            }
        }))
    }
}

impl Stream for MessageReader {
    type Item = Result<Incoming, ProtocolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.flow.outbox.memory().poll_given_up(cx).is_ready() {
                self.wire.cut_off(Cutoff::QueueGivenUp);
            }
            if self.wire.cutoff().is_some() {
                return Poll::Ready(None);
            }
            if self.flow.poll_may_read(cx).is_pending() {
                // A connection that is lost meanwhile ends at once: its client gets no more replies.
                ready!(self.wire.poll_ended(cx));
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut self.frames).poll_next(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match self.assembly.add(frame) {
                    Ok(None) => {}
                    Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                    Err(error) => return Poll::Ready(Some(Err(error))),
                },
            }
        }
    }
}

/// Returns the bytes of a text message.
///
/// # Errors
/// `InvalidData` if they are not UTF-8.
fn utf8(text: Bytes) -> Result<Bytes, ProtocolError> {
    match std::str::from_utf8(&text) {
        Ok(_) => Ok(text),
        Err(error) => Err(ProtocolError::Io(io::Error::new(io::ErrorKind::InvalidData, error))),
    }
}

/// Returns the bytes of a message, copied if it is small.
fn detached(message: Bytes) -> Bytes {
    if message.len() <= COPIED_BYTES { Bytes::copy_from_slice(&message) } else { message }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buffer that a message shares with other data.
    fn buffer() -> Bytes {
        Bytes::from(vec![b'x'; COPIED_BYTES + 2])
    }

    #[test]
    fn small_messages_do_not_keep_the_buffer_they_were_received_in() {
        let small = |buffer: &Bytes| buffer.slice(1..=COPIED_BYTES);
        for frame in [Frame::Text, Frame::Binary] {
            let buffer = buffer();
            let message = MessageAssembly::default().add(frame(small(&buffer))).unwrap().unwrap();
            assert!(matches!(&message, Incoming::Text(kept) | Incoming::Binary(kept) if kept.len() == COPIED_BYTES));
            assert!(buffer.is_unique(), "something still shares the buffer");
        }
    }

    #[test]
    fn a_large_message_is_not_copied() {
        let buffer = buffer();
        let message = MessageAssembly::default().add(Frame::Binary(buffer.slice(1..))).unwrap().unwrap();
        assert!(matches!(&message, Incoming::Binary(kept) if kept.as_ptr() == buffer[1..].as_ptr()));
    }

    #[test]
    fn fragments_do_not_keep_the_buffers_they_were_received_in() {
        for (first, whole) in [(Item::FirstText as fn(Bytes) -> Item, "Text"), (Item::FirstBinary, "Binary")] {
            let mut assembly = MessageAssembly::default();
            let mut buffers = Vec::new();
            for item in [first, Item::Continue, Item::Continue, Item::Last] {
                let buffer = buffer();
                let message = assembly.add(Frame::Continuation(item(buffer.slice(7..10)))).unwrap();
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
