//! The ops on access settings and blocks.

use sealwire_protocol::{
    access::{AddBlockRequest, ListBlocksReply, ListBlocksRequest, RemoveBlockRequest, SetAccessRequest},
    frame::EmptyReply,
};

use super::{Call, Reply};
use crate::edge::{EdgeError, access};

/// `access.set`: replaces the user's access settings.
pub async fn set(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let request: SetAccessRequest = call.params()?;
    call.service.set_access(&call.caller, &access::settings(request)?).await?;
    Ok(call.reply(&EmptyReply {}))
}

/// `blocks.add`: drops messages from a user from now on.
pub async fn add_block(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let AddBlockRequest { user_id } = call.params()?;
    call.service.add_block(&call.caller, user_id).await?;
    Ok(call.reply(&EmptyReply {}))
}

/// `blocks.remove`: accepts messages from a user again.
pub async fn remove_block(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let RemoveBlockRequest { user_id } = call.params()?;
    call.service.remove_block(&call.caller, user_id).await?;
    Ok(call.reply(&EmptyReply {}))
}

/// `blocks.list`: replies with the users that the user has blocked.
pub async fn list_blocks(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let ListBlocksRequest {} = call.params()?;
    Ok(call.reply(&ListBlocksReply { user_ids: call.service.blocks(&call.caller).await? }))
}
