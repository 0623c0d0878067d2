//! The ops on keys.

use sealwire_protocol::keys::{
    ClaimKeysRequest, FetchKeysRequest, KeysStatusReply, KeysStatusRequest, PublishKeysRequest,
};

use super::{Call, FollowUp, Reply};
use crate::{
    edge::{EdgeError, access::shown_key, keys},
    service::{PublishReport, Turn},
};

/// `keys.publish`: stores keys of the device, and replies with the result for each key.
///
/// Waits for its turn, so that publishes take effect in the order received: the connection announces the expiry of the
/// signed prekey published last.
pub async fn publish(call: &Call<'_>, mut turn: Option<Turn>) -> Result<Reply, EdgeError> {
    if let Some(turn) = &mut turn {
        turn.ready().await;
    }
    let request: PublishKeysRequest = call.params()?;
    let rotated = request.signed_prekey.is_some();
    let outcome = call.service.publish(&call.caller, keys::publish_request(request)).await?;
    let changed_pools = [&outcome.one_time, &outcome.pq_one_time].map(PublishReport::changed_pool);
    let after = FollowUp::Published { status: outcome.status.clone(), changed_pools, rotated };
    Ok(call.reply(&keys::publish_reply(outcome)).then(after).holding(turn))
}

/// `keys.status`: replies with the keys that the server holds for the device.
pub async fn status(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let KeysStatusRequest { digest } = call.params()?;
    let with_digest = digest.unwrap_or_default();
    let (status, digest) = call.service.keys_status(&call.caller, with_digest).await?;
    Ok(call.reply(&KeysStatusReply { digest: digest.map(keys::digest), ..keys::keys_status_reply(status) }))
}

/// `keys.fetch`: replies with bundles of a user's devices, without one-time keys.
pub async fn fetch(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let FetchKeysRequest { user_id, device_ids, suites, access } = call.params()?;
    let (devices, suites) = (keys::named_devices(device_ids)?, keys::usable_suites(suites)?);
    let access = shown_key(access);
    let bundles = call.service.fetch(&call.caller, user_id, devices.as_deref(), &suites, access.as_ref()).await?;
    Ok(call.reply(&keys::bundles_reply(bundles)))
}

/// `keys.claim`: replies with bundles of a user's devices, including one-time keys that are issued only once.
pub async fn claim(call: &Call<'_>) -> Result<Reply, EdgeError> {
    let ClaimKeysRequest { user_id, device_ids, suites, access, claim_id } = call.params()?;
    let (devices, suites) = (keys::named_devices(device_ids)?, keys::usable_suites(suites)?);
    let access = shown_key(access);
    let bundles = call.service.claim(call.caller, user_id, devices, suites, claim_id, access).await?;
    Ok(call.reply(&keys::bundles_reply(bundles)))
}
