//! What the edges refuse, and the one mapping of every refusal to an error of the protocol.

use std::{borrow::Cow, time::Duration};

use sealwire_protocol::{
    Code,
    codec::DecodeError,
    error::{ErrorBody, ErrorDetails, ReplaceableDevice},
    frame::OutlineError,
};
use thiserror::Error;

use crate::domain::{
    Refusal,
    refusal::{DeviceChoice, KeyFault},
};

/// The HTTP status of a request that was not complete in time.
pub(super) const REQUEST_TIMEOUT: u16 = 408;
/// `retry_after` of `unavailable`: the server does not know how long an outage lasts.
const UNAVAILABLE_RETRY: Duration = Duration::from_secs(1);
/// A client that was too slow may try again at once; a second keeps one that always is from doing nothing else.
const TOO_SLOW_RETRY: Duration = Duration::from_secs(1);
/// A reply may come at any moment; until one does, further requests are refused as well.
const IN_FLIGHT_RETRY: Duration = Duration::from_millis(100);
/// A full mailbox has to wait for its owner.
const MAILBOX_RETRY: Duration = Duration::from_mins(1);

/// Why a request is not answered with a result. Texts say what to do and never repeat what the client sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EdgeError {
    /// A rule of the domain refuses it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The form of the request is wrong; the text says how.
    #[error("{0}")]
    Malformed(Cow<'static, str>),
    /// A required field is absent.
    #[error("missing field `{path}`")]
    MissingField {
        /// The field, below `params` or the body.
        path: String,
    },
    /// A field has a value that it cannot have.
    #[error("`{path}`: expected {expected}")]
    InvalidField {
        /// The field, below `params` or the body.
        path: Cow<'static, str>,
        /// What it should be.
        expected: Cow<'static, str>,
    },
    /// An HTTP request that was not complete in time.
    #[error("the request did not come in in time; send it again, faster")]
    TooSlow,
    /// This version of the protocol has no such op.
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
    /// There is no such path, or not with this method.
    #[error("not found")]
    NoSuchResource,
}

impl EdgeError {
    /// A field with a value that it cannot have.
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

/// An error of the protocol with the HTTP status that carries it.
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

    /// The HTTP status of the response: the code's own, except 408 for a request that was not complete in time.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        self.http_status
    }

    /// The error object as it is sent to the client.
    #[must_use]
    pub fn body(&self) -> &ErrorBody {
        &self.body
    }

    /// Like [`Self::body`], without a copy.
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
            EdgeError::Refused(refusal) => of_refusal(refusal),
            EdgeError::Malformed(_) => (Code::BadRequest, None, None),
            EdgeError::MissingField { path } => (Code::BadRequest, None, Some(field(path, "a value"))),
            EdgeError::InvalidField { path, expected } => (Code::BadRequest, None, Some(field(path, expected))),
            EdgeError::TooSlow => {
                http_status = Some(REQUEST_TIMEOUT);
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

fn of_refusal(refusal: Refusal) -> (Code, Option<Duration>, Option<ErrorDetails>) {
    let code = match refusal {
        Refusal::RateLimited { retry_after } => return (Code::RateLimited, Some(retry_after), None),
        Refusal::MailboxFull => return (Code::MailboxFull, Some(MAILBOX_RETRY), None),
        Refusal::Unavailable => return (Code::Unavailable, Some(UNAVAILABLE_RETRY), None),
        Refusal::DeviceLimit { devices } => {
            let devices = devices.into_iter().map(replaceable).collect();
            return (Code::DeviceLimit, None, Some(ErrorDetails::Devices { devices }));
        }
        Refusal::DevicesMismatch { missing, extra } => {
            return (Code::DevicesMismatch, None, Some(ErrorDetails::Mismatch { missing, extra }));
        }
        Refusal::InvalidKey(fault) => return (Code::InvalidKey, None, Some(part(fault))),
        Refusal::InvalidSignature(fault) => return (Code::InvalidSignature, None, Some(part(fault))),
        Refusal::InvalidField { path, expected } => return (Code::BadRequest, None, Some(field(path, expected))),
        Refusal::Unauthorized => Code::Unauthorized,
        Refusal::InvalidCode => Code::InvalidCode,
        Refusal::TooManyAttempts => Code::TooManyAttempts,
        Refusal::UnknownDevice => Code::UnknownDevice,
        Refusal::SessionRevoked => Code::SessionRevoked,
        Refusal::NotFound => Code::NotFound,
        Refusal::IdentityConflict => Code::IdentityConflict,
        Refusal::IdConflict => Code::IdConflict,
        Refusal::IncompleteKeys => Code::IncompleteKeys,
        Refusal::NoDevices => Code::NoDevices,
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

fn part(fault: KeyFault) -> ErrorDetails {
    ErrorDetails::Key { field: fault.field.into(), key_id: fault.key_id }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_the_codes_except_for_a_request_that_was_too_slow() {
        let problem = Problem::from(Refusal::RateLimited { retry_after: Duration::from_secs(1) });
        assert_eq!((problem.http_status(), problem.code()), (429, Code::RateLimited));
        let problem = Problem::from(EdgeError::TooSlow);
        assert_eq!((problem.http_status(), problem.code()), (408, Code::RateLimited));
        assert_eq!(problem.body().retry_after_s(), Some(1));
    }

    #[test]
    fn retryable_errors_say_when() {
        let refused: [EdgeError; 4] =
            [EdgeError::TooManyInFlight, EdgeError::TooSlow, Refusal::MailboxFull.into(), Refusal::Unavailable.into()];
        for error in refused {
            let body = Problem::from(error).into_body();
            assert!(body.retryable && body.retry_after_s() > Some(0), "{body:?}");
        }
    }

    #[test]
    fn details_name_what_was_refused() {
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
