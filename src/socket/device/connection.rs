//! The part of a connection that exists in all its states. Sends frames and logs.

use std::{net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use sealwire_protocol::{CloseCode, Codec, events::Event, frame::RequestId};
use tokio::time::Instant;

use super::HandlerResult;
use crate::{
    domain::{DeviceId, EndReason, Session},
    edge::EdgeError,
    metrics::RequestedOp,
    socket::{
        closing::Closing,
        flow::Flow,
        hub::ConnectionKey,
        node::Node,
        ops::{encode, failure},
        outbox::Overflow,
        transport::Wire,
    },
};

/// The part of a connection that exists in all its states.
pub struct DeviceConnection {
    /// The state that all connections of the node share.
    pub node: Arc<Node>,
    /// The current session. A renewal replaces it.
    pub session: Session,
    /// The negotiated codec.
    pub codec: Codec,
    /// The outbox and the read gate.
    pub flow: Rc<Flow>,
    /// The transport below the WebSocket protocol.
    pub wire: Rc<Wire>,
    /// The client's address.
    pub client: IpAddr,
    /// Identifies the connection in the hub.
    pub key: ConnectionKey,
    /// When the connection was upgraded.
    pub upgraded_at: Instant,
}

impl DeviceConnection {
    /// The connected device.
    pub fn device(&self) -> DeviceId {
        self.session.caller.device
    }

    /// The time since the upgrade.
    pub fn age(&self) -> Duration {
        self.upgraded_at.elapsed()
    }

    /// Returns a random duration up to `span`, always the same one for the same session. Spreads over `span` what many
    /// connections would otherwise do at the same time.
    pub fn jitter_within(&self, span: Duration) -> Duration {
        let id = self.session.caller.session.0;
        let random = u32::from_le_bytes(id.as_bytes()[12..16].try_into().unwrap_or_default());
        span.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// Records the session and epoch in the hub, for the reconciler.
    pub fn note_open(&self, epoch: i64) {
        let caller = self.session.caller;
        self.node.hub.note_open(caller.device, self.key, caller.session, epoch);
    }

    /// Queues an event.
    ///
    /// # Errors
    /// `SlowConsumer` if the outbox is full.
    pub fn send_event(&self, event: &Event<'_>) -> HandlerResult {
        self.send_event_frame(encode(self.codec, event))
    }

    /// Queues an encoded event.
    ///
    /// # Errors
    /// `SlowConsumer` if the outbox is full.
    pub fn send_event_frame(&self, frame: Vec<u8>) -> HandlerResult {
        self.flow.outbox.push_event(frame).map_err(|Overflow| CloseCode::SlowConsumer.into())
    }

    /// Queues an encoded reply.
    ///
    /// # Errors
    /// `SlowConsumer` if the outbox is full.
    pub fn send_reply(&self, reply: Vec<u8>) -> HandlerResult {
        self.flow.outbox.push_reply(reply).map_err(|Overflow| CloseCode::SlowConsumer.into())
    }

    /// Answers a request with an error, without running it.
    ///
    /// # Errors
    /// `SlowConsumer` if the outbox is full.
    pub fn refuse(&self, id: RequestId, requested: RequestedOp, error: EdgeError) -> HandlerResult {
        self.send_reply(failure(&self.node.metrics, requested, self.codec, id, error))
    }

    /// Sends the client the event that its session has ended, with the reason. Returns what to close with.
    pub fn end_session(&self, reason: EndReason) -> Closing {
        match self.send_event(&Event::SessionRevoked { reason: reason.into() }) {
            Ok(()) => CloseCode::from(reason).into(),
            Err(closing) => closing,
        }
    }

    /// Logs that the connection is open.
    pub fn log_opened(&self, epoch: i64) {
        let caller = self.session.caller;
        tracing::info!(
            device_id = %caller.device,
            user_id = %caller.user,
            session_id = %caller.session,
            epoch,
            client = %self.client,
            subprotocol = self.codec.subprotocol(),
            "socket opened"
        );
    }

    /// Logs the end of the connection.
    pub fn log_closed(&self, epoch: Option<i64>, code: u16, reason: &'static str) {
        tracing::info!(
            device_id = %self.device(),
            epoch,
            code,
            reason,
            // Rounded to tenths of a second.
            seconds = (self.age().as_secs_f64() * 10.0).round() / 10.0,
            "socket closed"
        );
    }
}
