//! Serves requests: decodes the parameters, calls the use case and encodes the result. There is one function per op.
//!
//! To add an op, add its name to `sealwire_protocol::frame::Op`, its parameter and result types to the module of its
//! area in that crate, their conversions to `edge`, its use case to `service`, and its function here.

mod access;
mod accounts;
mod keys;
mod messages;
mod push;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use sealwire_protocol::{
    Code, Codec,
    frame::{Op, ReplyFrame, RequestId, RequestOutline},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Node;
use crate::{
    domain::{Caller, ClientNetwork, EndReason, KeysStatus, Refusal, Session},
    edge::{EdgeError, Problem},
    metrics::{Metrics, RequestedOp, ResponseCode},
    service::{Notifications, Service, Turn},
};

/// What the connection does after it has sent a reply.
#[derive(Debug, Default)]
pub enum FollowUp {
    /// Nothing.
    #[default]
    Nothing,
    /// Switches to this session.
    Renewed(Session),
    /// Records that the device published keys.
    Published {
        /// The keys held for the device after the publish.
        status: KeysStatus,
        /// Whether it changed the pool of one-time prekeys, and that of one-time PQ keys.
        changed_pools: [bool; 2],
        /// Whether the publish contained a signed prekey.
        rotated: bool,
    },
    /// Removes acked envelopes from the delivery window. The sequence numbers are sorted.
    Acked(Vec<i64>),
    /// Closes, because the request ended the session.
    Ended(EndReason),
    /// Counts that a limit refused the request.
    Limited,
}

/// A reply, and what has to happen after it is sent.
pub struct Reply {
    /// The encoded frame.
    pub frame: Vec<u8>,
    /// What the connection does.
    pub follow_up: FollowUp,
    /// Signals for other connections.
    pub notifications: Notifications,
    /// The turn of a publish. It is dropped once the reply is on its way to the connection, so that replies keep the
    /// order.
    pub turn: Option<Turn>,
}

impl Reply {
    /// A reply without follow-up or notifications.
    pub fn new(frame: Vec<u8>) -> Self {
        Self { frame, follow_up: FollowUp::Nothing, notifications: Notifications::default(), turn: None }
    }

    fn then(self, follow_up: FollowUp) -> Self {
        Self { follow_up, ..self }
    }

    fn notifying(self, notifications: Notifications) -> Self {
        Self { notifications, ..self }
    }

    fn holding(self, turn: Option<Turn>) -> Self {
        Self { turn, ..self }
    }
}

/// The sender of a request, and the request's position in the order of the connection.
pub struct RequestSource {
    /// The authenticated session.
    pub caller: Caller,
    /// The epoch of the connection.
    pub epoch: i64,
    /// The client's network.
    pub network: ClientNetwork,
    /// The request's turn among the sends or publishes of the connection; `None` for other ops.
    pub turn: Option<Turn>,
}

/// Whether an op does no more than queue its request for a batch and wait for the answer. It runs on the worker of its
/// connection then: on the runtime of the store, each request would pay for two more switches between threads.
pub fn runs_in_batches(op: Op) -> bool {
    matches!(op, Op::MessagesSend | Op::MessagesAck | Op::KeysClaim | Op::KeysStatus)
}

/// Runs one request and returns its reply. Errors become error replies.
pub async fn run(
    node: &Node,
    source: RequestSource,
    codec: Codec,
    op: Op,
    request: &RequestOutline,
    frame: Bytes,
) -> Reply {
    let began = Instant::now();
    let RequestSource { caller, epoch, network, turn } = source;
    let call = Call { service: &node.service, caller, epoch, network, codec, request, frame: &frame };
    let reply = match call.dispatch(op, turn).await {
        Ok(reply) => {
            node.metrics.count_reply(RequestedOp::Op(op), ResponseCode::Success);
            reply
        }
        Err(error) => {
            let is_limited = matches!(error, EdgeError::Refused(Refusal::RateLimited { .. }));
            let after = if is_limited { FollowUp::Limited } else { FollowUp::Nothing };
            Reply::new(failure(&node.metrics, RequestedOp::Op(op), codec, request.id, error)).then(after)
        }
    };
    node.metrics.op_seconds.observe(op, began.elapsed().as_secs_f64());
    reply
}

/// Encodes an error reply, and counts it in the metrics.
pub fn failure(
    metrics: &Metrics,
    requested: RequestedOp,
    codec: Codec,
    id: RequestId,
    error: impl Into<EdgeError>,
) -> Vec<u8> {
    let problem = Problem::from(error.into());
    metrics.count_reply(requested, ResponseCode::Error(problem.code()));
    if problem.code() == Code::Internal {
        tracing::error!("an op failed with an internal error");
    }
    encode(codec, &ReplyFrame::<()> { id, result: Err(problem.into_body()) })
}

/// Encodes a reply or an event.
pub fn encode(codec: Codec, frame: &impl Serialize) -> Vec<u8> {
    codec.encode(frame).unwrap_or_else(|error| {
        // Cannot happen: every protocol type can be encoded. An empty frame at least shows the client that something
        // failed.
        tracing::error!(%error, "cannot encode a frame");
        Vec::new()
    })
}

/// What an op needs to serve a request.
struct Call<'a> {
    service: &'a Service,
    caller: Caller,
    epoch: i64,
    network: ClientNetwork,
    codec: Codec,
    request: &'a RequestOutline,
    frame: &'a [u8],
}

impl<'a> Call<'a> {
    /// Calls the function of `op`. `turn` is `Some` for sends and publishes.
    async fn dispatch(&self, op: Op, turn: Option<Turn>) -> Result<Reply, EdgeError> {
        // Boxed, because the futures of the frequent ops that run in batches are much smaller.
        let unbatched: BoxFuture<'_, Result<Reply, EdgeError>> = match op {
            Op::KeysClaim => return keys::claim(self).await,
            Op::KeysStatus => return keys::status(self).await,
            Op::MessagesSend => return messages::send(self, turn).await,
            Op::MessagesAck => return messages::ack(self).await,
            // Waits for its turn first.
            Op::KeysPublish => return Box::pin(keys::publish(self, turn)).await,
            Op::SessionRenew => Box::pin(accounts::renew_session(self)),
            Op::SessionLogout => Box::pin(accounts::log_out(self)),
            Op::SessionsList => Box::pin(accounts::list_sessions(self)),
            Op::SessionsEnd => Box::pin(accounts::end_session(self)),
            Op::DevicesList => Box::pin(accounts::list_devices(self)),
            Op::DevicesRename => Box::pin(accounts::rename_device(self)),
            Op::DevicesRevoke => Box::pin(accounts::revoke_device(self)),
            Op::DevicesDecide => Box::pin(accounts::decide(self)),
            Op::UsersFind => Box::pin(accounts::find_user(self)),
            Op::AccountLock => Box::pin(accounts::lock_account(self)),
            Op::AccountUnlock => Box::pin(accounts::unlock_account(self)),
            Op::AccountStatus => Box::pin(accounts::account_status(self)),
            Op::AccountDelete => Box::pin(accounts::delete_account(self)),
            Op::AccountChangeEmail => Box::pin(accounts::change_email(self)),
            Op::AccessSet => Box::pin(access::set(self)),
            Op::BlocksAdd => Box::pin(access::add_block(self)),
            Op::BlocksRemove => Box::pin(access::remove_block(self)),
            Op::BlocksList => Box::pin(access::list_blocks(self)),
            Op::KeysFetch => Box::pin(keys::fetch(self)),
            Op::PushRegister => Box::pin(push::register(self)),
            Op::PushConfirm => Box::pin(push::confirm(self)),
            Op::PushRemove => Box::pin(push::remove(self)),
            Op::PushTest => Box::pin(push::test(self)),
        };
        let _place = self.service.enter(self.caller.user).await?;
        unbatched.await
    }

    fn params<T: Deserialize<'a>>(&self) -> Result<T, EdgeError> {
        Ok(self.request.params(self.codec, self.frame)?)
    }

    fn reply(&self, result: &impl Serialize) -> Reply {
        Reply::new(encode(self.codec, &ReplyFrame { id: self.request.id, result: Ok(result) }))
    }
}
