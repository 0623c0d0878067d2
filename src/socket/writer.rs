//! Writes the frames of an outbox to the WebSocket session, in order.

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
    outbox::{CloseMode, QueuedFrame},
    transport::{Cutoff, Wire, frame_bytes},
};

/// Maximum number of bytes that have left the outbox and are not written to the kernel yet.
const MAX_IN_TRANSIT: u64 = 64 * 1024;
/// How long a peer may take to read the remaining frames and the Close frame before the TCP connection is aborted.
/// Long, so that a client that stalled for a while still receives the close code. Waiting is cheap, because the queue
/// is bounded.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// The future that writes until the connection is closed. From the start of closing it runs for at most
/// [`CLOSE_TIMEOUT`].
///
/// Implemented by hand because every connection has one, and an `async fn` would take five times as much memory.
pub struct Writer {
    flow: Rc<Flow>,
    session: Session,
    wire: Rc<Wire>,
    codec: Codec,
    /// Bytes of the frames handed over to the session.
    handed_over: u64,
    /// The next message for the session, waiting until [`MAX_IN_TRANSIT`] allows it.
    next: Option<Message>,
    /// Whether the Close frame is in `next` or was handed over.
    is_close_sent: bool,
    /// Runs from the start of closing. Boxed, because open connections do not need it.
    close_timer: Option<Pin<Box<Sleep>>>,
}

impl Writer {
    /// A writer, to be spawned on the worker of the connection.
    pub fn new(flow: Rc<Flow>, session: Session, wire: Rc<Wire>, codec: Codec) -> Self {
        Self { flow, session, wire, codec, handed_over: 0, next: None, is_close_sent: false, close_timer: None }
    }

    /// Converts a frame for the session. It no longer counts as queued: [`MAX_IN_TRANSIT`] bounds it from now on.
    fn message(&self, frame: QueuedFrame) -> Option<Message> {
        match (frame, self.codec) {
            (QueuedFrame::Data(bytes), Codec::MsgPack) => Some(Message::Binary(bytes)),
            // Our JSON is always UTF-8; the conversion checks it again.
            (QueuedFrame::Data(bytes), Codec::Json) => ByteString::try_from(bytes).ok().map(Message::Text),
            (QueuedFrame::Ping, _) => Some(Message::Ping(Bytes::new())),
            (QueuedFrame::Pong(payload), _) => Some(Message::Pong(payload)),
        }
    }

    /// Hands the next message over to the session. Limits the bytes in transit, because the channel of the session
    /// limits only the number of frames.
    fn poll_hand_over(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        if self.next.is_some() {
            ready!(self.wire.poll_written(cx, self.handed_over.saturating_sub(MAX_IN_TRANSIT)));
            ready!(Pin::new(&mut self.session).poll_ready(cx))?;
        }
        if let Some(message) = self.next.take() {
            self.handed_over += frame_bytes(payload_bytes(&message));
            Pin::new(&mut self.session).start_send(message)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the outbox how much memory the frames take that have left it. Waits for the kernel to take the last of them if
    /// memory is reserved for it.
    fn count_transit(&self, cx: &Context<'_>) {
        let waiting = self.next.as_ref().map_or(0, |message| frame_bytes(payload_bytes(message)));
        let unwritten = (self.handed_over + waiting).saturating_sub(self.wire.written());
        let unwritten = if self.wire.is_gone() { 0 } else { unwritten };
        let outbox = &self.flow.outbox;
        outbox.set_in_transit(usize::try_from(unwritten).unwrap_or(usize::MAX));
        if self.next.is_none() && outbox.holds_memory() && self.wire.poll_written(cx, self.handed_over).is_ready() {
            outbox.set_in_transit(0);
        }
    }

    /// Hands frames over until the connection is closed or the outbox is empty.
    fn poll_outbox(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if ready!(self.poll_hand_over(cx)).is_err() {
                return Poll::Ready(());
            }
            if self.is_close_sent {
                return self.wire.poll_written(cx, self.handed_over);
            }
            match ready!(self.flow.poll_next_frame()) {
                Ok(frame) => self.next = self.message(frame),
                Err(CloseMode::Abort) => {
                    self.wire.abort();
                    return Poll::Ready(());
                }
                Err(CloseMode::Close(closing)) => {
                    let (code, description) = (closing.code.number(), Some(closing.reason.to_owned()));
                    let reason = CloseReason { code: WsCloseCode::Other(code), description };
                    self.next = Some(Message::Close(Some(reason)));
                    self.is_close_sent = true;
                }
                Err(CloseMode::Echo(reason)) => {
                    self.next = Some(Message::Close(reason));
                    self.is_close_sent = true;
                }
            }
        }
    }
}

impl Future for Writer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.flow.outbox.register_writer(cx);
        if this.flow.outbox.memory().poll_given_up(cx).is_ready() {
            this.wire.cut_off(Cutoff::QueueGivenUp);
        }
        if this.flow.outbox.is_closing() {
            let close_timer = this.close_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(CLOSE_TIMEOUT)));
            if close_timer.as_mut().poll(cx).is_ready() {
                this.wire.abort();
                return Poll::Ready(());
            }
        }
        let polled = this.poll_outbox(cx);
        this.count_transit(cx);
        polled
    }
}

/// Returns the payload size of a message in bytes. A Close frame's code and reason are not counted: nothing follows it.
fn payload_bytes(message: &Message) -> usize {
    match message {
        Message::Text(text) => text.len(),
        Message::Binary(bytes) | Message::Ping(bytes) | Message::Pong(bytes) => bytes.len(),
        _ => 0,
    }
}
