//! The ops on sessions, devices and accounts.

use sealwire_protocol::{
    approvals::AccountStatusRequest,
    auth::{EndSessionRequest, ListSessionsRequest, LogoutRequest, RenewSessionRequest},
    devices::{ListDevicesRequest, RenameDeviceRequest, RevokeDeviceRequest},
    frame::EmptyReply,
    users::{ChangeEmailRequest, DeleteAccountRequest, FindUserReply, FindUserRequest},
};

use super::{Call, FollowUp, Reply};
use crate::{
    domain::EndReason,
    edge::{EdgeError, accounts},
};

/// `session.renew`: replies with a new token. Afterwards, the connection belongs to the new session.
pub async fn renew_session(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let RenewSessionRequest {} = call.params()?;
    let (session, token) = call.service.renew(&call.caller).await?;
    Ok(call.reply(&accounts::renew_session_reply(session, &token)).then(FollowUp::Renewed(session)))
}

/// `session.logout`: ends the session and closes the connection.
pub async fn log_out(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let LogoutRequest {} = call.params()?;
    let notifications = call.service.logout(&call.caller).await?;
    Ok(call.reply(&EmptyReply {}).notifying(notifications).then(FollowUp::Ended(EndReason::Logout)))
}

/// `sessions.list`: replies with the sessions of the user.
pub async fn list_sessions(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let ListSessionsRequest {} = call.params()?;
    Ok(call.reply(&accounts::list_sessions_reply(call.service.list_sessions(&call.caller).await?)))
}

/// `sessions.end`: ends a session of the user. If it is that of the connection, closes the connection.
pub async fn end_session(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let EndSessionRequest { session_id } = call.params()?;
    let (is_own, notifications) = call.service.end_session(&call.caller, session_id).await?;
    let after = if is_own { FollowUp::Ended(EndReason::Logout) } else { FollowUp::Nothing };
    Ok(call.reply(&EmptyReply {}).notifying(notifications).then(after))
}

/// `devices.list`: replies with the devices of the user.
pub async fn list_devices(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let ListDevicesRequest {} = call.params()?;
    let devices = call.service.list_devices(&call.caller).await?;
    Ok(call.reply(&accounts::list_devices_reply(devices, call.caller.device)))
}

/// `devices.rename`: renames a device of the user, by default the connected one.
pub async fn rename_device(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let RenameDeviceRequest { device_id, name } = call.params()?;
    let device = device_id.unwrap_or(call.caller.device);
    call.service.rename_device(&call.caller, device, accounts::device_name("name", &name)?).await?;
    Ok(call.reply(&EmptyReply {}))
}

/// `devices.revoke`: removes a device of the user. If it is the connected one, closes the connection.
pub async fn revoke_device(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let RevokeDeviceRequest { device_id } = call.params()?;
    let notifications = call.service.revoke_device(&call.caller, device_id, call.network).await?;
    let is_own = device_id == call.caller.device;
    let after = if is_own { FollowUp::Ended(EndReason::DeviceRevoked) } else { FollowUp::Nothing };
    Ok(call.reply(&EmptyReply {}).notifying(notifications).then(after))
}

/// `devices.decide`: approves or denies a request of a new device.
pub async fn decide(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let (request, verdict) = accounts::verdict(call.params()?)?;
    let notifications = call.service.decide(&call.caller, request, verdict, call.network).await?;
    Ok(call.reply(&EmptyReply {}).notifying(notifications))
}

/// `account.lock`: from now on a new device needs an approval.
pub async fn lock_account(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let (lock, recovery_key) = accounts::lock(&call.params()?)?;
    call.service.lock_account(&call.caller, &lock, recovery_key, call.network).await?;
    Ok(call.reply(&EmptyReply {}))
}

/// `account.unlock`: from now on a new device needs no approval.
pub async fn unlock_account(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let recovery_key = accounts::unlock(&call.params()?);
    call.service.unlock_account(&call.caller, recovery_key, call.network).await?;
    Ok(call.reply(&EmptyReply {}))
}

/// `account.status`: replies with the lock of the account and the requests that wait for an approval.
pub async fn account_status(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let AccountStatusRequest {} = call.params()?;
    let status = call.service.account_status(&call.caller).await?;
    Ok(call.reply(&accounts::account_status_reply(status)))
}

/// `users.find`: replies with the id of the user with an e-mail address.
pub async fn find_user(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let FindUserRequest { email } = call.params()?;
    let user_id = call.service.find_user(&call.caller, &accounts::email(&email)?).await?;
    Ok(call.reply(&FindUserReply { user_id }))
}

/// `account.delete`: deletes the user and closes the connection.
pub async fn delete_account(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let DeleteAccountRequest { challenge_id, code, proof } = call.params()?;
    let confirmation = accounts::confirmation(challenge_id, code.as_ref(), proof)?;
    let notifications = call.service.delete_account(&call.caller, confirmation, call.network).await?;
    Ok(call.reply(&EmptyReply {}).notifying(notifications).then(FollowUp::Ended(EndReason::AccountDeleted)))
}

/// `account.change_email`: gives the user a new address, or replies with the request for it if the account is locked.
pub async fn change_email(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let ChangeEmailRequest { email, challenge_id, code, proof } = call.params()?;
    let email = accounts::email(&email)?;
    let confirmation = accounts::confirmation(challenge_id, code.as_ref(), proof)?;
    let (requested, notifications) =
        call.service.change_email(&call.caller, &email, confirmation, call.network).await?;
    Ok(call.reply(&accounts::change_email_reply(requested)).notifying(notifications))
}
