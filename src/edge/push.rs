//! Converts requests about push targets.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sealwire_protocol::{
    push::{ConfirmPushRequest, RegisterPushRequest},
    value::Text,
};

use super::EdgeError;
use crate::domain::{
    Refusal,
    push::{PushKind, PushNonce, PushTarget},
};

/// Converts a target. Its fields are checked later.
///
/// # Errors
/// `bad_request` if the kind is unknown, or a field of the kind is missing.
pub fn target(request: RegisterPushRequest) -> Result<PushTarget, EdgeError> {
    let RegisterPushRequest { kind, endpoint, p256dh, auth, token, topic, sandbox } = request;
    let required = |field: Option<Text>, path: &'static str| {
        field.map(|text| text.as_str().to_owned()).ok_or_else(|| EdgeError::MissingField { path: path.to_owned() })
    };
    Ok(match kind.known().ok_or_else(|| EdgeError::invalid("kind", "a kind in welcome.push"))? {
        PushKind::Webpush => PushTarget::WebPush {
            endpoint: required(endpoint, "endpoint")?,
            p256dh: required(p256dh, "p256dh")?,
            auth: required(auth, "auth")?,
        },
        PushKind::Apns => PushTarget::Apns {
            token: required(token, "token")?,
            topic: required(topic, "topic")?,
            is_sandbox: sandbox.unwrap_or(false),
        },
        PushKind::Fcm => PushTarget::Fcm { token: required(token, "token")? },
    })
}

/// Converts a nonce.
///
/// # Errors
/// `not_found` if it has another form than the nonces that are pushed.
pub fn nonce(request: &ConfirmPushRequest) -> Result<PushNonce, EdgeError> {
    let bytes = URL_SAFE_NO_PAD.decode(request.nonce.as_str()).ok().and_then(|bytes| bytes.try_into().ok());
    Ok(PushNonce(bytes.ok_or(Refusal::NotFound)?))
}
