//! An open connection: its requests in flight, its deadlines, and the task that writes its frames.

use std::{collections::HashMap, time::Duration};

use futures_util::{SinkExt, stream::SplitSink};
use sealwire_protocol::{
    Codec, Timestamp,
    frame::{RequestFrame, RequestId, SocketRequest},
    limits::MAX_IN_FLIGHT,
};
use serde::Serialize;
use tokio::{
    sync::mpsc,
    task::AbortHandle,
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::Message as Frame;

use super::{Queued, STOP_TIMEOUT, Shared};
use crate::{
    http::Socket,
    liveness::Liveness,
    options::{Direction, Observer},
    outbox::{Outbox, Place},
};

/// How long the welcome may take after the upgrade.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(20);
/// The heartbeat that is assumed before the welcome.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(25);
/// Frames that wait to be written. There are never more than the unanswered requests and a few pings.
const WRITE_QUEUE: usize = 2 * MAX_IN_FLIGHT;
/// Unanswered requests that are left to others than messages, so that a long outbox does not delay them.
const RESERVED: usize = 8;

/// What an unanswered request of a connection is for.
pub(super) enum InFlight {
    Request,
    Message(Place),
    Ack(Vec<i64>),
    Renew,
}

/// An open connection.
pub(super) struct Connection {
    pub(super) codec: Codec,
    pub(super) observer: Observer,
    pub(super) writer: mpsc::Sender<Frame>,
    pub(super) writing: AbortHandle,
    pub(super) in_flight: HashMap<u32, InFlight>,
    pub(super) liveness: Liveness,
    /// When the welcome came, and the server's time then.
    pub(super) welcome: Option<(Instant, Timestamp)>,
    pub(super) welcome_by: Instant,
    pub(super) limit: usize,
    pub(super) phase: Phase,
    pub(super) renew_at: Option<Instant>,
    pub(super) ack_not_before: Instant,
    /// Nothing can be written.
    pub(super) broken: bool,
    /// When a client that is stopped gives up waiting.
    pub(super) stop_by: Option<Instant>,
}

/// What may be sent on a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing: the welcome has not come.
    Opening,
    /// Requests.
    Open,
    /// Nothing: the server reads nothing more.
    Draining,
    /// Nothing: the client has sent a Close.
    Closing,
}

impl Connection {
    pub(super) fn open(sink: SplitSink<Socket, Frame>, shared: &Shared) -> Self {
        let (writer, frames) = mpsc::channel(WRITE_QUEUE);
        let now = Instant::now();
        Self {
            codec: shared.codec,
            observer: shared.observer.clone(),
            writer,
            writing: tokio::spawn(write(sink, frames)).abort_handle(),
            in_flight: HashMap::new(),
            liveness: Liveness::new(DEFAULT_HEARTBEAT, now.into_std()),
            welcome: None,
            welcome_by: now + WELCOME_TIMEOUT,
            limit: MAX_IN_FLIGHT,
            phase: Phase::Opening,
            renew_at: None,
            ack_not_before: now,
            broken: false,
            stop_by: None,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.in_flight.len() < self.limit
    }

    pub(super) fn has_room_for_messages(&self) -> bool {
        self.in_flight.len() < self.limit.saturating_sub(RESERVED).max(1)
    }

    pub(super) fn acking(&self) -> bool {
        self.in_flight.values().any(|request| matches!(request, InFlight::Ack(_)))
    }

    /// The server's time, which the device's own clock may differ from.
    pub(super) fn server_time(&self) -> Option<Timestamp> {
        self.welcome.map(|(since, at)| at + since.elapsed())
    }

    pub(super) fn request<T: SocketRequest + Serialize>(&mut self, id: RequestId, params: &T, purpose: InFlight) {
        match self.codec.encode(&RequestFrame::new(id, params)) {
            Ok(frame) => {
                self.in_flight.insert(id.get(), purpose);
                self.write_data(frame);
            }
            // Every request can be encoded.
            Err(error) => tracing::error!(%error, "a request cannot be encoded"),
        }
    }

    pub(super) fn write_data(&mut self, frame: Vec<u8>) {
        self.observer.see(Direction::Sent, &frame);
        self.write(data(self.codec, frame));
    }

    pub(super) fn write(&mut self, frame: Frame) {
        if !frame.is_ping() {
            self.liveness.requested(Instant::now().into_std());
        }
        self.broken |= self.writer.try_send(frame).is_err();
    }

    /// When `Driver::advance` has to be called although nothing else happens.
    pub(super) fn wake_at(&self, outbox: &Outbox<Queued>) -> Instant {
        let mut wake = Instant::from_std(self.liveness.due());
        let mut at = |time: Option<Instant>| wake = time.map_or(wake, |time| time.min(wake));
        at(self.stop_by);
        if self.phase == Phase::Opening {
            at(Some(self.welcome_by));
        } else if self.phase == Phase::Open {
            if self.has_room_for_messages() {
                at(outbox.wake_at().map(Instant::from_std));
            }
            at(self.renew_at.filter(|_| self.has_room()));
            at((self.ack_not_before > Instant::now()).then_some(self.ack_not_before));
        }
        wake
    }
}

/// Writes frames until the connection breaks or is given up.
async fn write(mut sink: SplitSink<Socket, Frame>, mut frames: mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        if sink.feed(frame).await.is_err() {
            return;
        }
        while let Ok(frame) = frames.try_recv() {
            if sink.feed(frame).await.is_err() {
                return;
            }
        }
        if sink.flush().await.is_err() {
            return;
        }
    }
    let _ = timeout(STOP_TIMEOUT, sink.close()).await;
}

/// A data frame in the encoding's kind.
fn data(codec: Codec, bytes: Vec<u8>) -> Frame {
    match codec {
        Codec::MsgPack => Frame::Binary(bytes.into()),
        // JSON is UTF-8.
        Codec::Json => Frame::Text(String::from_utf8(bytes).unwrap_or_default().into()),
    }
}
