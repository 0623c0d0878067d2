//! Serves the ops on messages.

use sealwire_protocol::messages::{AckMessagesReply, AckMessagesRequest};

use super::{Call, FollowUp, Reply};
use crate::{
    domain::Refusal,
    edge::{EdgeError, messages},
    service::Turn,
};

/// Waits for its turn, so that sends are queued in the order received. A malformed send waits too: leaving early would
/// let a later send overtake an earlier one.
pub async fn send(call: &Call<'_>, turn: Option<Turn>) -> Result<Reply, EdgeError> {
    let message = call.params().and_then(|request| messages::message(request, call.codec, call.frame));
    let mut turn = turn.ok_or(Refusal::Internal)?;
    turn.ready().await;
    let accepted = call.service.send(call.caller, call.epoch, turn, message?).await?;
    Ok(call.reply(&messages::send_reply(accepted)))
}

pub async fn ack(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let request: AckMessagesRequest = call.params()?;
    let seqs = messages::acked_seqs(request)?;
    let acked = call.service.ack(call.caller, seqs.clone()).await?;
    Ok(call.reply(&AckMessagesReply { acked }).then(FollowUp::Acked(seqs)))
}
