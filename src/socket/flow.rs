//! Flow control of one connection: reading waits while too much is queued for sending. The reader, the response
//! body and the actor share it, in one allocation.

use std::{
    rc::Rc,
    task::{Context, Poll},
};

use super::{
    outbox::{CloseMode, Outbox, QueuedFrame},
    read_gate::ReadGate,
    request_rate::RequestRate,
    shares::Account,
};

/// The outbox and the read gate of one connection.
pub struct Flow {
    /// The frames to be sent.
    pub outbox: Outbox,
    /// Decides when the reader may continue.
    pub gate: ReadGate,
}

impl Flow {
    /// An empty outbox for at most `max_bytes` bytes, and a gate that is shut.
    pub fn new(max_bytes: usize, memory: Account, rate: RequestRate) -> Rc<Self> {
        Rc::new(Self { outbox: Outbox::new(max_bytes, memory), gate: ReadGate::new(rate) })
    }

    /// Whether another message may be read, apart from the request rate.
    pub fn may_read(&self) -> bool {
        self.gate.allows(&self.outbox)
    }

    /// Ready when another message may be read.
    pub fn poll_may_read(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.gate.poll_ready(&self.outbox, cx)
    }

    /// The next frame to send, or how to close. Wakes the reader, which may have waited for space in the outbox.
    pub fn poll_next_frame(&self) -> Poll<Result<QueuedFrame, CloseMode>> {
        let next = self.outbox.poll_next();
        if matches!(next, Poll::Ready(Ok(_))) {
            self.gate.wake();
        }
        next
    }
}
