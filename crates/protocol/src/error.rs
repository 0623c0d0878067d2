//! Error replies, on the socket and over HTTP.

use std::{borrow::Cow, time::Duration};

use serde::{Deserialize, Serialize, de::IgnoredAny};

use crate::{auth::InvalidTokenReason, codes::Code, ids::DeviceId, time::Timestamp, value::Named};

/// The body of every HTTP error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HttpErrorBody<E = ErrorBody> {
    /// The error.
    pub error: E,
}

/// The `error` of a reply or of an HTTP body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub code: Named<Code>,
    /// For developers. The text may change.
    pub message: String,
    /// Whether the same request can succeed later.
    pub retryable: bool,
    /// Milliseconds after which a retry can succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Further data, with some codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<ErrorDetails>,
}

impl ErrorBody {
    /// Creates an error. Whether it is retryable depends on the code.
    #[must_use]
    pub fn new(code: Code, message: String, retry_after: Option<Duration>, details: Option<ErrorDetails>) -> Self {
        let retry_after_ms =
            retry_after.map(|wait| u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX));
        Self { code: code.into(), message, retryable: code.retryable(), retry_after_ms, details }
    }

    /// The value of the `Retry-After` header: whole seconds, rounded up, at least one.
    #[must_use]
    pub fn retry_after_s(&self) -> Option<u64> {
        self.retry_after_ms.map(|ms| ms.div_ceil(1000).max(1))
    }
}

/// The `details` of an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ErrorDetails {
    /// With `device_limit`: the devices that can be replaced.
    Devices {
        /// All active devices of the user.
        devices: Vec<ReplaceableDevice>,
    },
    /// With `invalid_key` and `invalid_signature`: the first key of the publish that is invalid.
    Key {
        /// The field of the request.
        field: Cow<'static, str>,
        /// The id of the key; `None` for the identity key.
        key_id: Option<u32>,
    },
    /// With `rate_limited` over HTTP, if the request is served at once with a proof of work.
    Proof {
        /// The proof to make.
        proof: OfferedProof,
    },
    /// With `unauthorized`.
    InvalidToken {
        /// Why the token is not valid.
        reason: Named<InvalidTokenReason>,
    },
    /// With `stale_signed_prekey`.
    ServedKey {
        /// The id of the signed prekey that is served.
        key_id: u32,
    },
    /// With `device_too_new`.
    TooNew {
        /// When the device will be old enough.
        allowed_at: Timestamp,
    },
    /// With `bad_request`, if a single field is at fault.
    Field {
        /// The field, relative to `params` or to the body of an HTTP request, such as `messages[0].content`.
        path: Cow<'static, str>,
        /// What is expected, in words.
        expected: Cow<'static, str>,
    },
    /// With `devices_mismatch`.
    Mismatch {
        /// Addressable devices of the recipient that the request does not contain.
        missing: Vec<DeviceId>,
        /// Devices in the request that cannot receive messages, or that it contains twice.
        extra: Vec<DeviceId>,
    },
    /// Details from a newer server.
    #[serde(skip_serializing)]
    Unknown(IgnoredAny),
}

/// The [`OfferedProof::algorithm`] of this version.
pub const PROOF_ALGORITHM: &str = "sha256-leading-zeros";

/// A proof of work with which a request may exceed a limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedProof {
    /// How it is made: `sha256-leading-zeros`.
    pub algorithm: Cow<'static, str>,
    /// The number of zero bits with which the hash must begin.
    pub bits: u8,
    /// The first part of the bytes to hash: unpadded base64url of 24 bytes.
    pub salt: String,
}

/// A device as `device_limit` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplaceableDevice {
    /// The value for `replace_device_id`.
    pub device_id: DeviceId,
    /// For display; `None` if it was never set.
    pub name: Option<String>,
    /// When it last connected or disconnected; `None` if it never did.
    pub last_seen: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_rounded_up_and_never_zero() {
        let error = |wait| ErrorBody::new(Code::RateLimited, String::new(), Some(wait), None);
        assert_eq!(error(Duration::from_nanos(1)).retry_after_ms, Some(1));
        assert_eq!(error(Duration::from_micros(2001)).retry_after_ms, Some(3));
        assert_eq!(error(Duration::from_millis(1500)).retry_after_s(), Some(2));
        assert_eq!(error(Duration::ZERO).retry_after_s(), Some(1));
        assert_eq!(error(Duration::MAX).retry_after_ms, Some(u64::MAX));
    }

    #[test]
    fn unknown_codes_and_details_are_accepted() {
        let text = r#"{"code":"new","message":"m","retryable":true,"details":{"more":[1]},"x":1}"#;
        let error: ErrorBody = serde_json::from_str(text).unwrap();
        assert_eq!(error.code, Named::Unknown("new".to_owned()));
        assert!(error.retryable && matches!(error.details, Some(ErrorDetails::Unknown(_))));
    }
}
