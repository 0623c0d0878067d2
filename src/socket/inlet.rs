//! What comes in from one socket: whole messages, read only while the outbox has room for what they will bring.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use actix_web::web::{Bytes, BytesMut};
use actix_ws::{CloseReason, Item, Message, MessageStream, ProtocolError};
use futures_util::Stream;

use super::outbox::Outbox;

/// Incoming messages, whole, that wait at the outbox's gate.
///
/// Fragments are copied together here: kept as they come, each would keep the buffer alive that it came in.
pub struct Inlet {
    messages: MessageStream,
    outbox: Rc<Outbox>,
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
    /// The peer says goodbye.
    Close(Option<CloseReason>),
}

impl Inlet {
    /// Puts the gate in front of the messages, which the frame guard has found well-formed and within their size.
    pub fn new(messages: MessageStream, outbox: Rc<Outbox>) -> Self {
        Self { messages, outbox, partial: None }
    }

    /// The message that this frame completes, if it does.
    fn complete(&mut self, frame: Message) -> Result<Option<Incoming>, ProtocolError> {
        Ok(Some(match frame {
            Message::Text(text) => Incoming::Text(text.into_bytes()),
            Message::Binary(bytes) => Incoming::Binary(bytes),
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

impl Stream for Inlet {
    type Item = Result<Incoming, ProtocolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            ready!(self.outbox.poll_may_read(cx));
            match ready!(Pin::new(&mut self.messages).poll_next(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match self.complete(frame) {
                    Ok(None) => {}
                    Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                    Err(error) => return Poll::Ready(Some(Err(error))),
                },
            }
        }
    }
}
