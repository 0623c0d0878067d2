//! The ops on push targets.

use sealwire_protocol::{
    frame::EmptyReply,
    push::{ConfirmPushReply, ConfirmPushRequest, PushState, RegisterPushReply, RemovePushRequest, TestPushRequest},
};

use super::{Call, Reply};
use crate::edge::{EdgeError, push};

/// `push.register`: replaces the device's push target.
pub async fn register(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let target = push::target(call.params()?)?;
    let state = call.service.register_push(&call.caller, call.network, target).await?;
    Ok(call.reply(&RegisterPushReply { state: state.into() }))
}

/// `push.confirm`: confirms the device's push target with the nonce that was pushed to it.
pub async fn confirm(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let request: ConfirmPushRequest = call.params()?;
    call.service.confirm_push(&call.caller, &push::nonce(&request)?).await?;
    Ok(call.reply(&ConfirmPushReply { state: PushState::Active.into() }))
}

/// `push.remove`: deletes the device's push target.
pub async fn remove(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let RemovePushRequest {} = call.params()?;
    call.service.remove_push(&call.caller).await?;
    Ok(call.reply(&EmptyReply {}))
}

/// `push.test`: sends a wake-up to the device's push target.
pub async fn test(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let TestPushRequest {} = call.params()?;
    call.service.test_push(&call.caller, call.network).await?;
    Ok(call.reply(&EmptyReply {}))
}
