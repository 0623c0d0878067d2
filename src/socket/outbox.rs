//! What waits to be sent to one socket, bounded in bytes, and the gate that stops reading while too much waits.
//!
//! One writer per socket drains the queue in order. Everything here lives on the socket's own worker.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use actix_web::web::Bytes;
use actix_ws::{CloseCode as WsCloseCode, CloseReason, Closed, Message, Session};
use bytestring::ByteString;
use futures_util::Sink;
use tokio::time::Sleep;

use super::{
    budget::{Budget, Reservation},
    pace::Pace,
    transport::{Wire, frame_bytes},
};
use sealwire_protocol::{CloseCode, Codec};

/// Bytes that may be under way between the queue and the kernel.
const WINDOW: u64 = 64 * 1024;
/// Bytes of requests in flight above which nothing more is read.
const REQUEST_BYTES: usize = 1024 * 1024;
/// Bytes that a queue may hold whatever the node's budget says, so that one greedy peer does not silence the others.
const FLOOR: usize = 64 * 1024;
/// What a waiting pong counts as.
const PONG_BYTES: usize = 128;
/// How long a peer may take to read what is still under way, and the Close frame after it, before TCP ends. It is
/// generous so that a client that stalled for a while still learns why it was closed; the queue is bounded meanwhile.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);

/// Something to send.
enum Frame {
    /// With its room in the node's budget, which ends with the frame.
    Data {
        bytes: Bytes,
        _room: Option<Reservation>,
    },
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
    pace: Pace,
    queue: RefCell<VecDeque<Frame>>,
    /// Bytes of data frames and pongs in the queue.
    queued: Cell<usize>,
    /// Bytes of replies that requests in flight are expected to need.
    expected: Cell<usize>,
    /// Bytes of requests in flight.
    requests: Cell<usize>,
    ending: RefCell<Option<Ending>>,
    /// Whether an ending was set, ever.
    ended: Cell<bool>,
    /// Whether requests are read: from the welcome on, until the node drains.
    started: Cell<bool>,
    writer: RefCell<Option<Waker>>,
    reader: RefCell<Option<Waker>>,
}

impl Outbox {
    /// An empty queue that holds `limit` bytes.
    pub fn new(limit: usize, budget: Budget, pace: Pace) -> Rc<Self> {
        Rc::new(Self {
            budget,
            limit,
            pace,
            queue: RefCell::default(),
            queued: Cell::new(0),
            expected: Cell::new(0),
            requests: Cell::new(0),
            ending: RefCell::new(None),
            ended: Cell::new(false),
            started: Cell::new(false),
            writer: RefCell::new(None),
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
        self.push(Frame::Data { bytes: frame.into(), _room: reservation });
        Ok(())
    }

    /// Queues a ping, unless other frames wait, which will show as well whether the peer is there.
    pub fn ping(&self) {
        if self.queue.borrow().is_empty() {
            self.push(Frame::Ping);
        }
    }

    /// Queues the answer to a ping. A flood of pings gets the latest answer alone (RFC 6455, 5.5.3).
    pub fn pong(&self, payload: &[u8]) {
        // A copy: the payload shares the buffer of whatever came in around it.
        let payload = Bytes::copy_from_slice(payload);
        let mut queue = self.queue.borrow_mut();
        if let Some(Frame::Pong(last)) = queue.back_mut() {
            *last = payload;
        } else {
            drop(queue);
            self.queued.set(self.queued.get() + PONG_BYTES);
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
        wake(&self.reader);
    }

    /// Lets the reader begin.
    pub fn start_reading(&self) {
        self.started.set(true);
        wake(&self.reader);
    }

    /// Reads no more, for good. What was read is still answered.
    pub fn stop_reading(&self) {
        self.started.set(false);
    }

    /// Whether requests are read at all, if not in this moment.
    pub fn is_reading(&self) -> bool {
        self.started.get()
    }

    /// How fast the socket may ask.
    pub fn pace(&self) -> &Pace {
        &self.pace
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

    /// Whether an event of so many bytes fits; one always does in an empty queue.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.queued.get() == 0 || self.queued.get() + bytes <= self.limit
    }

    /// Whether something that may as well be lost fits: half of the room is kept for the rest.
    pub fn has_spare_room(&self, bytes: usize) -> bool {
        self.queued.get() + bytes <= self.limit / 2
    }

    /// Whether anything waits.
    pub fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    /// Has the writer's task woken when there is something to do.
    fn watch(&self, cx: &Context<'_>) {
        let mut writer = self.writer.borrow_mut();
        if !writer.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *writer = Some(cx.waker().clone());
        }
    }

    /// Ready when another frame may be read.
    pub fn poll_may_read(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.may_read() {
            return self.pace.poll_ready(cx);
        }
        *self.reader.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_next(&self) -> Poll<Result<Frame, Ending>> {
        let mut ending = self.ending.borrow_mut();
        if matches!(*ending, Some(Ending::Abort)) {
            return Poll::Ready(Err(Ending::Abort));
        }
        if let Some(frame) = self.queue.borrow_mut().pop_front() {
            let bytes = match &frame {
                Frame::Data { bytes, .. } => bytes.len(),
                Frame::Pong(_) => PONG_BYTES,
                Frame::Ping => 0,
            };
            self.queued.set(self.queued.get() - bytes);
            wake(&self.reader);
            return Poll::Ready(Ok(frame));
        }
        if let Some(ending) = ending.take() {
            return Poll::Ready(Err(ending));
        }
        // A queue that was long once gives its memory back while it idles.
        self.queue.borrow_mut().shrink_to(0);
        Poll::Pending
    }
}

fn wake(waker: &RefCell<Option<Waker>>) {
    if let Some(waker) = waker.borrow().as_ref() {
        waker.wake_by_ref();
    }
}

/// Drains the outbox into the socket until it ends, then sees the ending through, for as long as patience lasts.
///
/// Written out by hand: every connected device carries one, and as an `async fn` it would be five times as large.
pub struct Writer {
    outbox: Rc<Outbox>,
    session: Session,
    wire: Rc<Wire>,
    codec: Codec,
    /// Bytes of frames that the session was given.
    given: u64,
    /// What the session takes next, once there is room.
    next: Option<Message>,
    /// Whether the Close frame was taken from the outbox.
    closing: bool,
    /// Runs once an ending is set. Boxed, since most sockets never get here.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Writer {
    /// A writer, to be spawned on the socket's worker.
    pub fn new(outbox: Rc<Outbox>, session: Session, wire: Rc<Wire>, codec: Codec) -> Self {
        Self { outbox, session, wire, codec, given: 0, next: None, closing: false, patience: None }
    }

    /// The frame as the session takes it; its reservation ends here, where the window takes over.
    fn message(&self, frame: Frame) -> Option<Message> {
        match (frame, self.codec) {
            (Frame::Data { bytes, .. }, Codec::MsgPack) => Some(Message::Binary(bytes)),
            // Our JSON is UTF-8 by construction; the conversion checks it rather than trust it.
            (Frame::Data { bytes, .. }, Codec::Json) => ByteString::try_from(bytes).ok().map(Message::Text),
            (Frame::Ping, _) => Some(Message::Ping(Bytes::new())),
            (Frame::Pong(payload), _) => Some(Message::Pong(payload)),
        }
    }

    /// Gives the session what waits for it. The session's channel counts frames, not bytes; what is inside it is bounded
    /// here.
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
            match ready!(self.outbox.poll_next()) {
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
        this.outbox.watch(cx);
        if this.outbox.ended.get() {
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
