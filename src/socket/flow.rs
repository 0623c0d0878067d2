//! Flow control of one socket: what waits to go out decides what may come in. One allocation per connection, shared by
//! its reader, its writer and its actor.

use std::{
    rc::Rc,
    task::{Context, Poll},
};

use super::{
    budget::Budget,
    outbox::{Ending, Outbox, QueuedFrame},
    read_gate::ReadGate,
    request_rate::RequestRate,
};

/// Both directions of one socket.
pub struct Flow {
    /// What goes out.
    pub outbox: Outbox,
    /// What holds back the reader.
    pub gate: ReadGate,
}

impl Flow {
    /// An empty outbox for `max_bytes` bytes, behind a gate that is still shut.
    pub fn new(max_bytes: usize, budget: Budget, rate: RequestRate) -> Rc<Self> {
        Rc::new(Self { outbox: Outbox::new(max_bytes, budget), gate: ReadGate::new(rate) })
    }

    /// Whether another message may be read, apart from the request rate.
    pub fn may_read(&self) -> bool {
        self.gate.allows(&self.outbox)
    }

    /// Ready when another message may be read.
    pub fn poll_may_read(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.gate.poll_ready(&self.outbox, cx)
    }

    /// The next frame to send, or how the socket ends. What leaves the outbox may let the reader go on.
    pub fn poll_next_frame(&self) -> Poll<Result<QueuedFrame, Ending>> {
        let next = self.outbox.poll_next();
        if matches!(next, Poll::Ready(Ok(_))) {
            self.gate.wake();
        }
        next
    }
}
