//! The errors of the edges, and the only mapping of errors and refusals to the error codes of the protocol.

use std::{borrow::Cow, time::Duration};

use sealwire_protocol::{
    Code,
    codec::DecodeError,
    error::{ErrorBody, ErrorDetails, OfferedProof, PROOF_ALGORITHM, ReplaceableDevice},
    frame::OutlineError,
};
use thiserror::Error;

use crate::domain::{
    Refusal,
    refusal::{DeviceChoice, KeyFault},
};

/// The HTTP status for a request that was not complete in time.
pub(super) const REQUEST_TIMEOUT_STATUS: u16 = 408;
/// `retry_after` of `unavailable`. A guess: the server does not know how long an outage lasts.
const UNAVAILABLE_RETRY: Duration = Duration::from_secs(1);
/// `retry_after` of a request that was not complete in time. The client may try again at once; the second slows down
/// clients that are always too slow.
const TOO_SLOW_RETRY: Duration = Duration::from_secs(1);
/// `retry_after` of `too_many_in_flight`. Short, because a request is accepted as soon as any reply has been sent.
const IN_FLIGHT_RETRY: Duration = Duration::from_millis(100);
/// `retry_after` of `mailbox_full`. Long, because the mailbox stays full until its owner acks envelopes or they expire.
const MAILBOX_RETRY: Duration = Duration::from_mins(1);

/// Why a request fails. The texts go to the client; they say what to do and never repeat what the client sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EdgeError {
    /// A use case or a rule of the domain refused the request.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The request is malformed; the text says how.
    #[error("{0}")]
    Malformed(Cow<'static, str>),
    /// A required field is missing.
    #[error("missing field `{path}`")]
    MissingField {
        /// The path of the field in `params` or the body.
        path: String,
    },
    /// A field has an invalid value.
    #[error("`{path}`: expected {expected}")]
    InvalidField {
        /// The path of the field in `params` or the body.
        path: Cow<'static, str>,
        /// The values that the field may have, in words.
        expected: Cow<'static, str>,
    },
    /// An HTTP request that was not complete in time.
    #[error("the request was not complete in time; send it again")]
    TooSlow,
    /// The op is not in this version of the protocol.
    #[error("no such op")]
    UnknownOp,
    /// The connection has reached its limit of unanswered requests.
    #[error("too many requests are unanswered; wait for replies")]
    TooManyInFlight,
    /// A body or a message's content exceeds its size limit.
    #[error("the payload is too large")]
    PayloadTooLarge,
    /// The request comes from a browser page whose origin is not allowed.
    #[error("this origin is not allowed")]
    ForbiddenOrigin,
    /// The path does not exist, or does not support the method.
    #[error("not found")]
    NoSuchResource,
}

impl EdgeError {
    /// Returns [`Self::InvalidField`].
    pub(crate) fn invalid(path: impl Into<Cow<'static, str>>, expected: impl Into<Cow<'static, str>>) -> Self {
        Self::InvalidField { path: path.into(), expected: expected.into() }
    }
}

impl From<DecodeError> for EdgeError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::MissingField { path } => Self::MissingField { path },
            DecodeError::InvalidField { path, expected } => Self::invalid(path, expected),
            DecodeError::Malformed => Self::Malformed(error.to_string().into()),
        }
    }
}

impl From<OutlineError> for EdgeError {
    fn from(error: OutlineError) -> Self {
        match error {
            OutlineError::UnknownOp => Self::UnknownOp,
            _ => Self::Malformed(error.to_string().into()),
        }
    }
}

/// An error of the protocol, with its HTTP status.
#[derive(Clone, Debug)]
pub struct Problem {
    code: Code,
    http_status: u16,
    body: ErrorBody,
}

impl Problem {
    /// The error code of the protocol.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// The HTTP status of the response: that of the code, except 408 for a request that was not complete in time.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        self.http_status
    }

    /// The error object as it is sent to the client.
    #[must_use]
    pub fn body(&self) -> &ErrorBody {
        &self.body
    }

    /// The error object as it is sent to the client, without a copy.
    #[must_use]
    pub fn into_body(self) -> ErrorBody {
        self.body
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        EdgeError::from(refusal).into()
    }
}

impl From<EdgeError> for Problem {
    fn from(error: EdgeError) -> Self {
        let message = error.to_string();
        let mut http_status = None;
        let (code, retry_after, details) = match error {
            EdgeError::Refused(refusal) => refusal_parts(refusal),
            EdgeError::Malformed(_) => (Code::BadRequest, None, None),
            EdgeError::MissingField { path } => (Code::BadRequest, None, Some(field(path, "a value"))),
            EdgeError::InvalidField { path, expected } => (Code::BadRequest, None, Some(field(path, expected))),
            EdgeError::TooSlow => {
                http_status = Some(REQUEST_TIMEOUT_STATUS);
                (Code::RateLimited, Some(TOO_SLOW_RETRY), None)
            }
            EdgeError::UnknownOp => (Code::UnknownOp, None, None),
            EdgeError::TooManyInFlight => (Code::TooManyInFlight, Some(IN_FLIGHT_RETRY), None),
            EdgeError::PayloadTooLarge => (Code::PayloadTooLarge, None, None),
            EdgeError::ForbiddenOrigin => (Code::ForbiddenOrigin, None, None),
            EdgeError::NoSuchResource => (Code::NotFound, None, None),
        };
        let http_status = http_status.unwrap_or_else(|| code.http_status());
        Self { code, http_status, body: ErrorBody::new(code, message, retry_after, details) }
    }
}

fn refusal_parts(refusal: Refusal) -> (Code, Option<Duration>, Option<ErrorDetails>) {
    let code = match refusal {
        Refusal::RateLimited { retry_after } => return (Code::RateLimited, Some(retry_after), None),
        Refusal::WorkRequired { retry_after, work } => {
            let proof = OfferedProof { algorithm: PROOF_ALGORITHM.into(), bits: work.bits, salt: work.salt_text() };
            return (Code::RateLimited, Some(retry_after), Some(ErrorDetails::Proof { proof }));
        }
        Refusal::MailboxFull => return (Code::MailboxFull, Some(MAILBOX_RETRY), None),
        Refusal::Unavailable => return (Code::Unavailable, Some(UNAVAILABLE_RETRY), None),
        Refusal::DeviceLimit { devices } => {
            let devices = devices.into_iter().map(replaceable).collect();
            return (Code::DeviceLimit, None, Some(ErrorDetails::Devices { devices }));
        }
        Refusal::DevicesMismatch { missing, extra } => {
            return (Code::DevicesMismatch, None, Some(ErrorDetails::Mismatch { missing, extra }));
        }
        Refusal::InvalidKey(fault) => return (Code::InvalidKey, None, Some(faulty_key(fault))),
        Refusal::InvalidSignature(fault) => return (Code::InvalidSignature, None, Some(faulty_key(fault))),
        Refusal::InvalidField { path, expected } => return (Code::BadRequest, None, Some(field(path, expected))),
        Refusal::Unauthorized(reason) => {
            return (Code::Unauthorized, None, Some(ErrorDetails::InvalidToken { reason: reason.into() }));
        }
        Refusal::StaleSignedPrekey { served } => {
            return (Code::StaleSignedPrekey, None, Some(ErrorDetails::ServedKey { key_id: served }));
        }
        Refusal::DeviceTooNew { allowed_at, retry_after } => {
            return (Code::DeviceTooNew, Some(retry_after), Some(ErrorDetails::TooNew { allowed_at }));
        }
        Refusal::ConfirmationRequired => Code::ConfirmationRequired,
        Refusal::EmailTaken => Code::EmailTaken,
        Refusal::PoolChanged => Code::PoolChanged,
        Refusal::InvalidCode => Code::InvalidCode,
        Refusal::TooManyAttempts => Code::TooManyAttempts,
        Refusal::UnknownDevice => Code::UnknownDevice,
        Refusal::SessionRevoked => Code::SessionRevoked,
        Refusal::NotFound => Code::NotFound,
        Refusal::IdentityConflict => Code::IdentityConflict,
        Refusal::IdConflict => Code::IdConflict,
        Refusal::IncompleteKeys => Code::IncompleteKeys,
        Refusal::NoDevices => Code::NoDevices,
        Refusal::ProofRequired => Code::ProofRequired,
        Refusal::Denied => Code::Denied,
        Refusal::Internal => Code::Internal,
    };
    (code, None, None)
}

fn replaceable(device: DeviceChoice) -> ReplaceableDevice {
    ReplaceableDevice { device_id: device.device_id, name: device.name, last_seen: device.last_seen }
}

fn field(path: impl Into<Cow<'static, str>>, expected: impl Into<Cow<'static, str>>) -> ErrorDetails {
    ErrorDetails::Field { path: path.into(), expected: expected.into() }
}

fn faulty_key(fault: KeyFault) -> ErrorDetails {
    ErrorDetails::Key { field: fault.field.into(), key_id: fault.key_id }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_that_of_the_code_except_for_a_request_that_was_too_slow() {
        let problem = Problem::from(Refusal::RateLimited { retry_after: Duration::from_secs(1) });
        assert_eq!((problem.http_status(), problem.code()), (429, Code::RateLimited));
        let problem = Problem::from(EdgeError::TooSlow);
        assert_eq!((problem.http_status(), problem.code()), (408, Code::RateLimited));
        assert_eq!(problem.body().retry_after_s(), Some(1));
    }

    #[test]
    fn retryable_errors_have_retry_after() {
        let refused: [EdgeError; 4] =
            [EdgeError::TooManyInFlight, EdgeError::TooSlow, Refusal::MailboxFull.into(), Refusal::Unavailable.into()];
        for error in refused {
            let body = Problem::from(error).into_body();
            assert!(body.retryable && body.retry_after_s() > Some(0), "{body:?}");
        }
    }

    #[test]
    fn details_name_the_key_or_devices_that_were_refused() {
        let json =
            |refusal: Refusal| serde_json::to_value(Problem::from(refusal).into_body()).unwrap()["details"].take();
        let fault = KeyFault { field: "signed_prekey", key_id: Some(1) };
        let expected = serde_json::json!({ "field": "signed_prekey", "key_id": 1 });
        assert_eq!(json(Refusal::InvalidSignature(fault)), expected);
        assert_eq!(json(Refusal::InvalidKey(fault)), expected);
        let mismatch = Refusal::DevicesMismatch { missing: vec![], extra: vec![] };
        assert_eq!(json(mismatch), serde_json::json!({ "missing": [], "extra": [] }));
        assert_eq!(json(Refusal::DeviceLimit { devices: vec![] }), serde_json::json!({ "devices": [] }));
        assert!(json(Refusal::NotFound).is_null());
    }
}
