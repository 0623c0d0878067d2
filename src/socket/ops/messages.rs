//! The ops on messages.

use sealwire_protocol::messages::{AckMessagesReply, AckMessagesRequest};

use super::{Call, FollowUp, Reply};
use crate::{
    domain::Refusal,
    edge::{EdgeError, messages},
    service::Turn,
};

/// `messages.send`: accepts a message for the devices of a user.
///
/// Waits for its turn, so that sends are queued in the order received. A malformed send waits too: if it gave up its
/// turn early, a later send could overtake an earlier one.
pub async fn send(call: &Call<'_>, turn: Option<Turn>) -> Result<Reply, EdgeError> {
    let message = call.params().and_then(|request| messages::message(request, call.codec, call.frame));
    let mut turn = turn.ok_or(Refusal::Internal)?;
    turn.ready().await;
    let accepted = call.service.send(call.caller, call.epoch, turn, message?).await?;
    Ok(call.reply(&messages::send_reply(accepted)))
}

/// `messages.ack`: deletes delivered envelopes from the mailbox, and replies with how many of them it still held.
pub async fn ack(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let request: AckMessagesRequest = call.params()?;
    let seqs = messages::acked_seqs(request)?;
    let acked = call.service.ack(call.caller, seqs.clone()).await?;
    Ok(call.reply(&AckMessagesReply { acked }).then(FollowUp::Acked(seqs)))
}
