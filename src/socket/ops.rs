//! From a request to its reply: reads the parameters, calls the use case, encodes the result. One function per op.
//!
//! To add an op: its name goes into `sealwire_protocol::frame::Op`, its parameters and result beside the others of its area
//! in that crate, their conversions into `edge`, its use case into `service`, and its function here.

mod accounts;
mod keys;
mod messages;

use bytes::Bytes;
use sealwire_protocol::{
    Code, Codec,
    frame::{Op, ReplyFrame, RequestId, RequestOutline},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Node;
use crate::{
    domain::{Caller, EndReason, KeysStatus, Session},
    edge::{EdgeError, Problem},
    metrics::{Asked, Metrics, Outcome},
    service::{Notifications, Service, Turn},
};

/// What the socket does after it has sent a reply.
#[derive(Debug, Default)]
pub enum After {
    /// Nothing.
    #[default]
    Nothing,
    /// The socket belongs to this session from now on.
    Renewed(Session),
    /// The device's keys changed.
    Published {
        /// What the server holds now.
        status: KeysStatus,
        /// Whether the signed prekey is a new one.
        rotated: bool,
    },
    /// The device has these envelopes; the numbers are sorted.
    Acked(Vec<i64>),
    /// The caller ended the session.
    Ended(EndReason),
}

/// A reply with what follows it.
pub struct Reply {
    /// The encoded frame.
    pub frame: Vec<u8>,
    /// What this socket does.
    pub after: After,
    /// What other devices are sent.
    pub notifications: Notifications,
    /// The turn of a publish, which ends once the socket has its reply.
    pub turn: Option<Turn>,
}

impl Reply {
    /// A reply that nothing follows.
    pub fn new(frame: Vec<u8>) -> Self {
        Self { frame, after: After::Nothing, notifications: Notifications::default(), turn: None }
    }

    fn then(self, after: After) -> Self {
        Self { after, ..self }
    }

    fn notifying(self, notifications: Notifications) -> Self {
        Self { notifications, ..self }
    }

    fn ending(self, turn: Option<Turn>) -> Self {
        Self { turn, ..self }
    }
}

/// Where a request comes from.
pub struct Origin {
    /// In whose name.
    pub caller: Caller,
    /// The connection's.
    pub epoch: i64,
    /// Its place among the sends or the publishes of the socket, if it is one.
    pub turn: Option<Turn>,
}

/// Runs one request to its reply.
pub async fn run(node: &Node, origin: Origin, codec: Codec, op: Op, request: &RequestOutline, frame: Bytes) -> Reply {
    let began = Instant::now();
    let Origin { caller, epoch, turn } = origin;
    let call = Call { service: &node.service, caller, epoch, codec, request, frame: &frame };
    let reply = match call.dispatch(op, turn).await {
        Ok(reply) => {
            node.metrics.answered(Asked::Op(op), Outcome::Done);
            reply
        }
        Err(error) => Reply::new(failure(&node.metrics, Asked::Op(op), codec, request.id, error)),
    };
    node.metrics.op_seconds.observe(op, began.elapsed().as_secs_f64());
    reply
}

/// Encodes an error reply and counts it.
pub fn failure(metrics: &Metrics, asked: Asked, codec: Codec, id: RequestId, error: impl Into<EdgeError>) -> Vec<u8> {
    let problem = Problem::from(error.into());
    metrics.answered(asked, Outcome::Refused(problem.code()));
    if problem.code() == Code::Internal {
        tracing::error!("an op failed for a reason of the server's own");
    }
    encode(codec, &ReplyFrame::<()> { id, result: Err(problem.into_body()) })
}

/// Encodes a frame of the server.
pub fn encode(codec: Codec, frame: &impl Serialize) -> Vec<u8> {
    codec.encode(frame).unwrap_or_else(|error| {
        // Every type of the protocol has an encoding; an empty frame would still show the client that something broke.
        tracing::error!(%error, "a frame has no encoding");
        Vec::new()
    })
}

/// A request with all that its op works with.
struct Call<'a> {
    service: &'a Service,
    caller: Caller,
    epoch: i64,
    codec: Codec,
    request: &'a RequestOutline,
    frame: &'a [u8],
}

impl<'a> Call<'a> {
    /// `turn` is there for the ops that have one.
    async fn dispatch(&self, op: Op, turn: Option<Turn>) -> Result<Reply, EdgeError> {
        match op {
            Op::SessionRenew => accounts::renew_session(self).await,
            Op::SessionLogout => accounts::log_out(self).await,
            Op::DevicesList => accounts::list_devices(self).await,
            Op::DevicesRename => accounts::rename_device(self).await,
            Op::DevicesRevoke => accounts::revoke_device(self).await,
            Op::UsersFind => accounts::find_user(self).await,
            Op::AccountDelete => accounts::delete_account(self).await,
            Op::KeysPublish => keys::publish(self, turn).await,
            Op::KeysStatus => keys::status(self).await,
            Op::KeysFetch => keys::fetch(self).await,
            Op::KeysClaim => keys::claim(self).await,
            Op::MessagesSend => messages::send(self, turn).await,
            Op::MessagesAck => messages::ack(self).await,
        }
    }

    fn params<T: Deserialize<'a>>(&self) -> Result<T, EdgeError> {
        Ok(self.request.params(self.codec, self.frame)?)
    }

    fn reply(&self, result: &impl Serialize) -> Reply {
        Reply::new(encode(self.codec, &ReplyFrame { id: self.request.id, result: Ok(result) }))
    }
}
