//! Settings of a client.

use std::{fmt, sync::Arc, time::Duration};

use sealwire_protocol::Codec;

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) codec: Codec,
    pub(crate) request_timeout: Duration,
    pub(crate) outbox_limit: usize,
    pub(crate) last_seq: i64,
    pub(crate) seed: Option<u64>,
    pub(crate) observer: Observer,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            codec: Codec::MsgPack,
            request_timeout: Duration::from_secs(30),
            outbox_limit: 10_000,
            last_seq: 0,
            seed: None,
            observer: Observer::default(),
        }
    }
}

impl Options {
    /// The encoding of frames; MessagePack if it is not set. JSON is easier to read in a debugger.
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// How long a request waits for its reply, reconnects included; 30 seconds if it is not set. Messages that were given
    /// to [`Client::send`](crate::Client::send) wait without limit.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How many messages may wait to be sent, or for the app to handle their answers; 10,000 if it is not set.
    #[must_use]
    pub fn outbox_limit(mut self, limit: usize) -> Self {
        self.outbox_limit = limit;
        self
    }

    /// The highest [`seq`](crate::Message::seq) that the app has stored; 0 if it is not set. Messages up to it are repeats:
    /// they are acked, and not given to the app.
    #[must_use]
    pub fn last_seq(mut self, seq: i64) -> Self {
        self.last_seq = seq;
        self
    }

    /// Shows all frames to a function, in the client's encoding: to look at the protocol. They contain tokens and
    /// ciphertexts, so do not log them elsewhere than on a developer's machine.
    #[must_use]
    pub fn observe_frames(mut self, observe: impl Fn(Direction, &[u8]) + Send + Sync + 'static) -> Self {
        self.observer = Observer(Some(Arc::new(observe)));
        self
    }

    /// Makes ids and waits reproducible, for tests. Two clients must not have the same seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}

/// The sender of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The client.
    Sent,
    /// The server.
    Received,
}

type Observe = dyn Fn(Direction, &[u8]) + Send + Sync;

/// A function that sees all frames.
#[derive(Clone, Default)]
pub(crate) struct Observer(Option<Arc<Observe>>);

impl Observer {
    pub(crate) fn see(&self, direction: Direction, frame: &[u8]) {
        if let Some(observe) = &self.0 {
            observe(direction, frame);
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "a function" } else { "none" })
    }
}
