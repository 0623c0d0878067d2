//! Converts requests about access settings.

use sealwire_protocol::access::{SetAccessRequest, ShownKey};

use super::EdgeError;
use crate::domain::{
    AccessKey, AccessSettings,
    access::{NewAccess, Strangers},
};

/// Converts access settings.
///
/// # Errors
/// `bad_request` if `strangers` is unknown, or `refuse` without a key: nobody could reach the user.
pub fn settings(request: SetAccessRequest) -> Result<NewAccess, EdgeError> {
    let SetAccessRequest { key, strangers, sealed } = request;
    let strangers =
        strangers.known().ok_or_else(|| EdgeError::invalid("strangers", "\"allow\", \"limit\" or \"refuse\""))?;
    if strangers == Strangers::Refuse && key.is_none() {
        return Err(EdgeError::invalid("key", "16 bytes in base64, since strangers are refused"));
    }
    Ok(NewAccess { settings: AccessSettings { key, strangers }, sealed: sealed.unwrap_or(false) })
}

/// Returns the access key that a sender shows; `None` if it shows none or a malformed one.
#[must_use]
pub fn shown_key(access: Option<ShownKey>) -> Option<AccessKey> {
    access.and_then(|ShownKey(key)| key)
}
