//! The response body of an upgraded connection: the frames of its outbox, in order, encoded for the peer.
//!
//! The transport asks for the next chunk when the kernel has taken the last one. So at most one chunk has left the outbox
//! and is not written yet.

use std::{
    convert::Infallible,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use actix_http::ws::{CloseCode as WsCloseCode, CloseReason, OpCode, Parser};
use actix_web::{
    body::{BodySize, MessageBody},
    web::{Bytes, BytesMut},
};
use sealwire_protocol::Codec;

use super::{
    flow::Flow,
    outbox::{CloseMode, QueuedFrame},
    transport::Wire,
};

/// A chunk ends after the frame with which it reaches this size in bytes.
const CHUNK_BYTES: usize = 64 * 1024;
/// How long a peer may take to read the remaining frames and the Close frame before the TCP connection is aborted.
/// Long, so that a client that stalled for a while still receives the close code. Waiting is cheap, because the queue
/// is bounded.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// The frames of an outbox. Ends after the Close frame.
pub struct OutboxBody {
    flow: Rc<Flow>,
    codec: Codec,
    /// Whether the last chunk ended with the Close frame.
    is_closed: bool,
}

impl OutboxBody {
    /// The frames that are sent in this codec.
    pub fn new(flow: Rc<Flow>, codec: Codec) -> Self {
        Self { flow, codec, is_closed: false }
    }

    /// Appends a frame to `chunk`.
    fn encode(&self, frame: QueuedFrame, chunk: &mut BytesMut) {
        let (opcode, payload) = match (frame, self.codec) {
            (QueuedFrame::Data(bytes), Codec::MsgPack) => (OpCode::Binary, bytes),
            (QueuedFrame::Data(bytes), Codec::Json) => (OpCode::Text, bytes),
            (QueuedFrame::Ping, _) => (OpCode::Ping, Bytes::new()),
            (QueuedFrame::Pong(payload), _) => (OpCode::Pong, payload),
        };
        Parser::write_message(chunk, payload, opcode, true, false);
    }

    /// Appends the Close frame to `chunk`, and ends the body after it.
    fn close(&mut self, close_mode: CloseMode, chunk: &mut BytesMut) {
        let reason = match close_mode {
            CloseMode::Close(closing) => {
                let (code, description) = (closing.code.number(), Some(closing.reason.to_owned()));
                Some(CloseReason { code: WsCloseCode::Other(code), description })
            }
            CloseMode::Echo(reason) => reason,
        };
        Parser::write_close(chunk, reason, false);
        self.is_closed = true;
    }
}

impl MessageBody for OutboxBody {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        let this = self.get_mut();
        this.flow.outbox.set_in_transit(0);
        if this.is_closed {
            return Poll::Ready(None);
        }
        this.flow.outbox.register_writer(cx);
        let mut chunk = BytesMut::new();
        while !this.is_closed && chunk.len() < CHUNK_BYTES {
            match this.flow.poll_next_frame() {
                Poll::Ready(Ok(frame)) => this.encode(frame, &mut chunk),
                Poll::Ready(Err(close_mode)) => this.close(close_mode, &mut chunk),
                Poll::Pending => break,
            }
        }
        if chunk.is_empty() { Poll::Pending } else { Poll::Ready(Some(Ok(chunk.freeze()))) }
    }
}

impl Drop for OutboxBody {
    fn drop(&mut self) {
        // Nothing more will be written.
        self.flow.outbox.set_in_transit(0);
    }
}

/// Aborts a connection that is closing if it has not sent everything within [`CLOSE_TIMEOUT`]. Call it when closing begins.
pub fn limit_closing(wire: Rc<Wire>) {
    actix_rt::spawn(async move {
        // Ready once nothing more will be written.
        if tokio::time::timeout(CLOSE_TIMEOUT, wire.wait_written(u64::MAX)).await.is_err() {
            wire.abort();
        }
    });
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker_ref;
    use sealwire_protocol::CloseCode;

    use super::*;
    use crate::socket::{
        request_rate::RequestRate,
        shares::{Holder, SharedBudget},
    };

    fn body(budget: &SharedBudget) -> OutboxBody {
        let rate = RequestRate::new(0, std::time::Instant::now());
        OutboxBody::new(Flow::new(1 << 20, budget.account(Holder::NOBODY), rate), Codec::MsgPack)
    }

    fn next(body: &mut OutboxBody) -> Poll<Option<usize>> {
        let next = Pin::new(body).poll_next(&mut Context::from_waker(noop_waker_ref()));
        next.map(|chunk| chunk.map(|Ok(bytes)| bytes.len()))
    }

    #[test]
    fn a_chunk_has_the_frames_up_to_64_kib_and_counts_until_the_next_one_is_asked_for() {
        let budget = SharedBudget::new(1 << 20, 1 << 20);
        let mut body = body(&budget);
        let flow = body.flow.clone();
        assert_eq!(next(&mut body), Poll::Pending);
        for _ in 0..4 {
            flow.outbox.push_reply(vec![0; 30_000]).unwrap();
        }
        assert_eq!(next(&mut body), Poll::Ready(Some(3 * 30_004)));
        assert_eq!(budget.in_use(), 120_000, "the kernel may not have taken the chunk");
        assert_eq!(next(&mut body), Poll::Ready(Some(30_004)));
        assert_eq!(budget.in_use(), 30_000);
        drop(body);
        assert_eq!(budget.in_use(), 0, "nothing more will be written");
    }

    #[test]
    fn the_body_ends_after_the_close_frame() {
        let budget = SharedBudget::new(1 << 20, 1 << 20);
        let mut body = body(&budget);
        let flow = body.flow.clone();
        flow.outbox.push_reply(vec![0; 10]).unwrap();
        flow.outbox.close(CloseCode::Draining.into());
        let close = 2 + 2 + CloseCode::Draining.reason().len();
        assert_eq!(next(&mut body), Poll::Ready(Some(12 + close)), "a frame, and the Close frame");
        assert_eq!(next(&mut body), Poll::Ready(None));
    }
}
