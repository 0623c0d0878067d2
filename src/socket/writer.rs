//! Drains a socket's outbox into its WebSocket session, in order.

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_web::web::Bytes;
use actix_ws::{CloseCode as WsCloseCode, CloseReason, Closed, Message, Session};
use bytestring::ByteString;
use futures_util::Sink;
use sealwire_protocol::Codec;
use tokio::time::Sleep;

use super::{
    flow::Flow,
    outbox::{Ending, QueuedFrame},
    transport::{Wire, frame_bytes},
};

/// Bytes that may be under way between the queue and the kernel.
const WINDOW: u64 = 64 * 1024;
/// How long a peer may take to read what is still under way, and the Close frame after it, before TCP ends. It is
/// generous so that a client that stalled for a while still learns why it was closed; the queue is bounded meanwhile.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);

/// Writes until the outbox ends, then sees the ending through within [`CLOSE_PATIENCE`].
///
/// Written out by hand: every connected device carries one, and as an `async fn` it would be five times as large.
pub struct Writer {
    flow: Rc<Flow>,
    session: Session,
    wire: Rc<Wire>,
    codec: Codec,
    /// Bytes of frames given to the session.
    given: u64,
    /// Goes to the session next, once the window allows it.
    next: Option<Message>,
    /// Whether the Close frame was taken from the outbox.
    closing: bool,
    /// Runs once an ending is set. Boxed, since most sockets never get here.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Writer {
    /// A writer, to be spawned on the socket's worker.
    pub fn new(flow: Rc<Flow>, session: Session, wire: Rc<Wire>, codec: Codec) -> Self {
        Self { flow, session, wire, codec, given: 0, next: None, closing: false, patience: None }
    }

    /// The frame as the session takes it; its reservation ends here, where the window takes over.
    fn message(&self, frame: QueuedFrame) -> Option<Message> {
        match (frame, self.codec) {
            (QueuedFrame::Data { bytes, .. }, Codec::MsgPack) => Some(Message::Binary(bytes)),
            // Our JSON is UTF-8 by construction; the conversion checks it rather than trust it.
            (QueuedFrame::Data { bytes, .. }, Codec::Json) => ByteString::try_from(bytes).ok().map(Message::Text),
            (QueuedFrame::Ping, _) => Some(Message::Ping(Bytes::new())),
            (QueuedFrame::Pong(payload), _) => Some(Message::Pong(payload)),
        }
    }

    /// Gives the session the next message. The session's channel counts frames, not bytes, so its bytes are bounded here.
    fn poll_give(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        if self.next.is_some() {
            ready!(self.wire.poll_written(cx, self.given.saturating_sub(WINDOW)));
            ready!(Pin::new(&mut self.session).poll_ready(cx))?;
        }
        if let Some(message) = self.next.take() {
            self.given += frame_bytes(payload_bytes(&message));
            Pin::new(&mut self.session).start_send(message)?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if ready!(self.poll_give(cx)).is_err() {
                return Poll::Ready(());
            }
            if self.closing {
                return self.wire.poll_written(cx, self.given);
            }
            match ready!(self.flow.poll_next_frame()) {
                Ok(frame) => self.next = self.message(frame),
                Err(Ending::Abort) => {
                    self.wire.abort();
                    return Poll::Ready(());
                }
                Err(Ending::Close(code)) => {
                    let description = Some(code.reason().to_owned());
                    let reason = CloseReason { code: WsCloseCode::Other(code.number()), description };
                    self.next = Some(Message::Close(Some(reason)));
                    self.closing = true;
                }
                Err(Ending::Echo(reason)) => {
                    self.next = Some(Message::Close(reason));
                    self.closing = true;
                }
            }
        }
    }
}

impl Future for Writer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.flow.outbox.watch(cx);
        if this.flow.outbox.has_ended() {
            let patience = this.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(CLOSE_PATIENCE)));
            if patience.as_mut().poll(cx).is_ready() {
                this.wire.abort();
                return Poll::Ready(());
            }
        }
        this.poll_drain(cx)
    }
}

/// Bytes of a message's payload. A Close frame's code and reason are not counted: nothing follows it.
fn payload_bytes(message: &Message) -> usize {
    match message {
        Message::Text(text) => text.len(),
        Message::Binary(bytes) | Message::Ping(bytes) | Message::Pong(bytes) => bytes.len(),
        _ => 0,
    }
}
