//! What waits to be sent to one socket, bounded in bytes, and the gate that stops reading while too much waits.
//!
//! One writer per socket drains the queue in order. Everything here lives on the socket's own worker.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use actix_web::web::Bytes;
use actix_ws::{
    AggregatedMessage, AggregatedMessageStream, CloseCode as WsCloseCode, CloseReason, ProtocolError, Session,
};
use bytestring::ByteString;
use futures_util::Stream;

use super::{
    budget::{Budget, Reservation},
    transport::{Wire, frame_bytes},
};
use crate::protocol::{CloseCode, Codec};

/// Bytes that may be under way between the queue and the kernel.
const WINDOW: u64 = 64 * 1024;
/// Bytes of requests in flight above which nothing more is read.
const REQUEST_BYTES: usize = 1024 * 1024;
/// Bytes that a queue may hold whatever the node's budget says, so that one greedy peer does not silence the others.
const FLOOR: usize = 64 * 1024;
/// How long a peer may take to read what is still under way, and the Close frame after it, before TCP ends. It is
/// generous so that a client that stalled for a while still learns why it was closed; the queue is bounded meanwhile.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);

/// Something to send.
enum Frame {
    Data(Bytes, Option<Reservation>),
    Ping,
    Pong(Bytes),
}

/// How a socket is to end once the queue is empty.
enum Ending {
    /// With a Close frame of ours.
    Close(CloseCode),
    /// With an echo of the peer's Close frame.
    Echo(Option<CloseReason>),
    /// At once: the peer is gone.
    Abort,
}

/// The bound was hit: the peer does not read fast enough.
#[derive(Debug)]
pub struct Overflow;

/// The queue and the gate of one socket.
pub struct Outbox {
    budget: Budget,
    limit: usize,
    queue: RefCell<VecDeque<Frame>>,
    /// Bytes of data frames in the queue.
    queued: Cell<usize>,
    /// Bytes of replies that requests in flight are expected to need.
    expected: Cell<usize>,
    /// Bytes of requests in flight.
    requests: Cell<usize>,
    ending: RefCell<Option<Ending>>,
    /// Whether an ending was set, ever.
    ended: Cell<bool>,
    /// Whether the welcome is out, before which nothing is read.
    started: Cell<bool>,
    writer: RefCell<Option<Waker>>,
    patience: RefCell<Option<Waker>>,
    reader: RefCell<Option<Waker>>,
}

impl Outbox {
    /// An empty queue that holds `limit` bytes.
    pub fn new(limit: usize, budget: Budget) -> Rc<Self> {
        Rc::new(Self {
            budget,
            limit,
            queue: RefCell::default(),
            queued: Cell::new(0),
            expected: Cell::new(0),
            requests: Cell::new(0),
            ending: RefCell::new(None),
            ended: Cell::new(false),
            started: Cell::new(false),
            writer: RefCell::new(None),
            patience: RefCell::new(None),
            reader: RefCell::new(None),
        })
    }

    /// Queues an event. Refused where it would go over the bound, or where the node has no memory left and this queue
    /// is not small.
    pub fn push_event(&self, frame: Vec<u8>) -> Result<(), Overflow> {
        if self.queued.get() + frame.len() > self.limit {
            return Err(Overflow);
        }
        self.push_reply(frame)
    }

    /// Queues a reply. Its room was kept free by [`Self::expect_reply`], so only the node's budget can refuse it.
    pub fn push_reply(&self, frame: Vec<u8>) -> Result<(), Overflow> {
        let reservation = self.budget.try_reserve(frame.len());
        if reservation.is_none() && self.queued.get() > FLOOR {
            return Err(Overflow);
        }
        self.queued.set(self.queued.get() + frame.len());
        self.push(Frame::Data(frame.into(), reservation));
        Ok(())
    }

    /// Queues a ping, unless other frames wait, which will show as well whether the peer is there.
    pub fn ping(&self) {
        if self.queue.borrow().is_empty() {
            self.push(Frame::Ping);
        }
    }

    /// Queues the answer to a ping. A flood of pings gets the latest answer alone (RFC 6455, 5.5.3).
    pub fn pong(&self, payload: Bytes) {
        let mut queue = self.queue.borrow_mut();
        if let Some(Frame::Pong(last)) = queue.back_mut() {
            *last = payload;
        } else {
            drop(queue);
            self.push(Frame::Pong(payload));
        }
    }

    fn push(&self, frame: Frame) {
        self.queue.borrow_mut().push_back(frame);
        wake(&self.writer);
    }

    /// Sends what is queued, then a Close frame. A slow consumer's queue is dropped, since it would not be read.
    pub fn close(&self, code: CloseCode) {
        if code == CloseCode::SlowConsumer {
            self.queue.borrow_mut().clear();
            self.queued.set(0);
        }
        self.end(Ending::Close(code));
    }

    /// Answers the peer's Close frame.
    pub fn echo_close(&self, reason: Option<CloseReason>) {
        self.end(Ending::Echo(reason));
    }

    /// Ends without a word.
    pub fn abort(&self) {
        self.end(Ending::Abort);
    }

    fn end(&self, ending: Ending) {
        if !self.ended.replace(true) {
            *self.ending.borrow_mut() = Some(ending);
        }
        wake(&self.writer);
        wake(&self.patience);
        wake(&self.reader);
    }

    /// Lets the reader begin.
    pub fn start_reading(&self) {
        self.started.set(true);
        wake(&self.reader);
    }

    /// Counts a request that was read and the reply that it will need.
    pub fn expect_reply(&self, request_bytes: usize, reply_bytes: usize) {
        self.requests.set(self.requests.get() + request_bytes);
        self.expected.set(self.expected.get() + reply_bytes);
    }

    /// Takes back what [`Self::expect_reply`] counted.
    pub fn settle_reply(&self, request_bytes: usize, reply_bytes: usize) {
        self.requests.set(self.requests.get() - request_bytes);
        self.expected.set(self.expected.get() - reply_bytes);
        wake(&self.reader);
    }

    /// Whether another frame may be read.
    pub fn may_read(&self) -> bool {
        self.started.get()
            && self.queued.get() + self.expected.get() <= self.limit
            && self.requests.get() <= REQUEST_BYTES
    }

    /// Whether anything waits.
    pub fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    fn poll_next(&self, cx: &Context<'_>) -> Poll<Result<Frame, Ending>> {
        let mut ending = self.ending.borrow_mut();
        if matches!(*ending, Some(Ending::Abort)) {
            return Poll::Ready(Err(Ending::Abort));
        }
        if let Some(frame) = self.queue.borrow_mut().pop_front() {
            if let Frame::Data(bytes, _) = &frame {
                self.queued.set(self.queued.get() - bytes.len());
                wake(&self.reader);
            }
            return Poll::Ready(Ok(frame));
        }
        if let Some(ending) = ending.take() {
            return Poll::Ready(Err(ending));
        }
        // A queue that was long once gives its memory back while it idles.
        self.queue.borrow_mut().shrink_to(0);
        *self.writer.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

fn wake(waker: &RefCell<Option<Waker>>) {
    if let Some(waker) = waker.borrow_mut().take() {
        waker.wake();
    }
}

/// Drains the outbox into the socket until it ends, then sees the ending through, for as long as patience lasts.
pub async fn write(outbox: Rc<Outbox>, session: Session, wire: Rc<Wire>, codec: Codec) {
    let out_of_patience = async {
        poll_fn(|cx| {
            if outbox.ended.get() {
                return Poll::Ready(());
            }
            *outbox.patience.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        // Boxed, since most sockets never get here and all would carry it.
        Box::pin(tokio::time::sleep(CLOSE_PATIENCE)).await;
    };
    tokio::select! {
        () = drain(&outbox, session, &wire, codec) => {}
        () = out_of_patience => wire.abort(),
    }
}

async fn drain(outbox: &Outbox, mut session: Session, wire: &Wire, codec: Codec) {
    let mut given = 0;
    let ending = loop {
        // The session's channel counts frames, not bytes; what is inside it is bounded here.
        wire.wait_written(given_up_to(given)).await;
        let frame = match poll_fn(|cx| outbox.poll_next(cx)).await {
            Ok(frame) => frame,
            Err(ending) => break ending,
        };
        let sent = match frame {
            Frame::Data(bytes, _reservation) => {
                given += frame_bytes(bytes.len());
                match codec {
                    Codec::MsgPack => session.binary(bytes).await,
                    // Our JSON is UTF-8 by construction; the conversion checks it rather than trust it.
                    Codec::Json => match ByteString::try_from(bytes) {
                        Ok(text) => session.text(text).await,
                        Err(_) => Ok(()),
                    },
                }
            }
            Frame::Ping => {
                given += frame_bytes(0);
                session.ping(b"").await
            }
            Frame::Pong(payload) => {
                given += frame_bytes(payload.len());
                session.pong(&payload).await
            }
        };
        if sent.is_err() {
            return;
        }
    };
    let reason = match ending {
        Ending::Abort => return wire.abort(),
        Ending::Close(code) => {
            Some(CloseReason { code: WsCloseCode::Other(code.number()), description: Some(code.reason().to_owned()) })
        }
        Ending::Echo(reason) => reason,
    };
    let _ = session.close(reason).await;
    wire.wait_written(given + 1).await;
}

/// The count that must have been written before more may be given.
fn given_up_to(given: u64) -> u64 {
    given.saturating_sub(WINDOW)
}

/// Incoming messages that wait at the outbox's gate.
pub struct Gated {
    messages: AggregatedMessageStream,
    outbox: Rc<Outbox>,
}

impl Gated {
    /// Puts the gate in front of the messages.
    pub fn new(messages: AggregatedMessageStream, outbox: Rc<Outbox>) -> Self {
        Self { messages, outbox }
    }
}

impl Stream for Gated {
    type Item = Result<AggregatedMessage, ProtocolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.outbox.may_read() {
            return Pin::new(&mut self.messages).poll_next(cx);
        }
        *self.outbox.reader.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}
