//! The one table of codes: what went wrong, the HTTP status, whether trying again helps, and why sockets close.

use std::time::Duration;

use serde::Serialize;

use crate::domain::{DeviceId, EndReason, Refusal, refusal::DeviceChoice, refusal::KeyFault};

macro_rules! codes {
    ($($variant:ident $name:literal $status:literal $retryable:literal;)*) => {
        /// An error code of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
        }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name on the wire.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The HTTP status that carries it.
            #[must_use]
            pub const fn http_status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// Whether the same request can succeed later.
            #[must_use]
            pub const fn retryable(self) -> bool {
                match self { $(Self::$variant => $retryable,)* }
            }
        }
    };
}

codes! {
    BadRequest       "bad_request"        400 false;
    Unauthorized     "unauthorized"       401 false;
    InvalidCode      "invalid_code"       401 false;
    TooManyAttempts  "too_many_attempts"  429 false;
    RateLimited      "rate_limited"       429 true;
    UnknownOp        "unknown_op"         400 false;
    TooManyInFlight  "too_many_in_flight" 429 true;
    PayloadTooLarge  "payload_too_large"  413 false;
    UnknownDevice    "unknown_device"     404 false;
    SessionRevoked   "session_revoked"    401 false;
    ForbiddenOrigin  "forbidden_origin"   403 false;
    NotFound         "not_found"          404 false;
    DeviceLimit      "device_limit"       409 false;
    IdentityConflict "identity_conflict"  409 false;
    IdConflict       "id_conflict"        409 false;
    DevicesMismatch  "devices_mismatch"   409 false;
    InvalidKey       "invalid_key"        422 false;
    InvalidSignature "invalid_signature"  422 false;
    IncompleteKeys   "incomplete_keys"    422 false;
    MailboxFull      "mailbox_full"       429 true;
    Unavailable      "unavailable"        503 true;
    Internal         "internal"           500 true;
}

macro_rules! close_codes {
    ($($(#[$doc:meta])* $variant:ident $number:literal $reason:literal;)*) => {
        /// Why the server closes a socket. 4000 to 4499: reconnect with jitter; 4500 to 4999: not as you are.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum CloseCode {
            $($(#[$doc])* $variant = $number,)*
        }

        impl CloseCode {
            /// Every close code, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The number in the Close frame.
            #[must_use]
            pub const fn number(self) -> u16 {
                self as u16
            }

            /// The reason text in the Close frame.
            #[must_use]
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$variant => $reason,)* }
            }
        }
    };
}

close_codes! {
    /// The node is being stopped.
    Draining       4000 "draining";
    /// Nothing came in for a minute.
    Idle           4001 "idle";
    /// The peer does not read what is sent to it.
    SlowConsumer   4002 "slow consumer";
    /// The socket's state cannot be trusted any more.
    Unavailable    4003 "unavailable";
    /// The session was revoked or logged out.
    SessionRevoked 4500 "session revoked";
    /// The session's time was up.
    SessionExpired 4501 "session expired";
    /// The device was revoked or replaced.
    DeviceRevoked  4502 "device revoked";
    /// The device opened a newer connection.
    Displaced      4503 "displaced";
    /// A breach of the WebSocket protocol or of the frame format.
    ProtocolError  4504 "protocol error";
    /// A frame over the limit was declared.
    FrameTooLarge  4505 "frame too large";
    /// The account was deleted.
    AccountDeleted 4506 "account deleted";
}

impl From<EndReason> for CloseCode {
    fn from(reason: EndReason) -> Self {
        match reason {
            EndReason::Logout => Self::SessionRevoked,
            EndReason::Expired => Self::SessionExpired,
            EndReason::DeviceRevoked => Self::DeviceRevoked,
            EndReason::AccountDeleted => Self::AccountDeleted,
        }
    }
}

/// The HTTP status of a request that did not come in in time.
pub(super) const REQUEST_TIMEOUT: u16 = 408;
/// How long a client should wait where the server cannot know better.
const UNAVAILABLE_RETRY: Duration = Duration::from_secs(1);
/// Whoever was too slow may try again at once; a second keeps a client that always is from doing nothing else.
const TOO_SLOW_RETRY: Duration = Duration::from_secs(1);
/// A reply may come at any moment; until one does, more of the same is refused as well.
const IN_FLIGHT_RETRY: Duration = Duration::from_millis(100);
/// A full mailbox has to wait for its owner.
const MAILBOX_RETRY: Duration = Duration::from_mins(1);

/// The `error` object of a reply or of an HTTP body.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    #[serde(rename = "code", serialize_with = "code_name")]
    code: Code,
    #[serde(skip)]
    http_status: u16,
    message: String,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

/// The `details` that some errors carry.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
enum Details {
    Devices { devices: Vec<DeviceChoice> },
    Key(KeyFault),
    Mismatch { missing: Vec<DeviceId>, extra: Vec<DeviceId> },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn code_name<S: serde::Serializer>(code: &Code, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(code.name())
}

impl Problem {
    /// The code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// The HTTP status that carries it: the code's, but for a request that did not come in in time.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        self.http_status
    }

    /// Whole seconds for the `Retry-After` header, rounded up.
    #[must_use]
    pub fn retry_after_s(&self) -> Option<u64> {
        self.retry_after_ms.map(|ms| ms.div_ceil(1000).max(1))
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        let mut retry_after = None;
        let mut details = None;
        let mut http_status = None;
        let code = match refusal {
            Refusal::BadRequest(_) => Code::BadRequest,
            Refusal::Unauthorized => Code::Unauthorized,
            Refusal::InvalidCode => Code::InvalidCode,
            Refusal::TooManyAttempts => Code::TooManyAttempts,
            Refusal::RateLimited { retry_after: wait } => {
                retry_after = Some(wait);
                Code::RateLimited
            }
            Refusal::TooSlow => {
                retry_after = Some(TOO_SLOW_RETRY);
                http_status = Some(REQUEST_TIMEOUT);
                Code::RateLimited
            }
            Refusal::UnknownOp => Code::UnknownOp,
            Refusal::TooManyInFlight => {
                retry_after = Some(IN_FLIGHT_RETRY);
                Code::TooManyInFlight
            }
            Refusal::PayloadTooLarge => Code::PayloadTooLarge,
            Refusal::UnknownDevice => Code::UnknownDevice,
            Refusal::SessionRevoked => Code::SessionRevoked,
            Refusal::ForbiddenOrigin => Code::ForbiddenOrigin,
            Refusal::NotFound => Code::NotFound,
            Refusal::DeviceLimit { devices } => {
                details = Some(Details::Devices { devices });
                Code::DeviceLimit
            }
            Refusal::IdentityConflict => Code::IdentityConflict,
            Refusal::IdConflict => Code::IdConflict,
            Refusal::DevicesMismatch { missing, extra } => {
                details = Some(Details::Mismatch { missing, extra });
                Code::DevicesMismatch
            }
            Refusal::InvalidKey(fault) => {
                details = Some(Details::Key(fault));
                Code::InvalidKey
            }
            Refusal::InvalidSignature(fault) => {
                details = Some(Details::Key(fault));
                Code::InvalidSignature
            }
            Refusal::IncompleteKeys => Code::IncompleteKeys,
            Refusal::MailboxFull => {
                retry_after = Some(MAILBOX_RETRY);
                Code::MailboxFull
            }
            Refusal::Unavailable => {
                retry_after = Some(UNAVAILABLE_RETRY);
                Code::Unavailable
            }
            Refusal::Internal => Code::Internal,
        };
        let retry_after_ms =
            retry_after.map(|wait| u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX));
        let http_status = http_status.unwrap_or_else(|| code.http_status());
        Self { code, http_status, message, retryable: code.retryable(), retry_after_ms, details }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_the_fields_of_the_contract() {
        let problem = Problem::from(Refusal::RateLimited { retry_after: Duration::from_millis(1500) });
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(json["code"], "rate_limited");
        assert_eq!(json["retryable"], true);
        assert_eq!(json["retry_after_ms"], 1500);
        assert_eq!(problem.retry_after_s(), Some(2));
        let json = serde_json::to_value(Problem::from(Refusal::NotFound)).unwrap();
        assert!(json.get("details").is_none() && json.get("retry_after_ms").is_none());
    }

    #[test]
    fn a_wait_is_rounded_up_and_never_nothing() {
        let ms = |wait| Problem::from(Refusal::RateLimited { retry_after: wait }).retry_after_ms;
        assert_eq!(ms(Duration::from_nanos(1)), Some(1));
        assert_eq!(ms(Duration::from_micros(2001)), Some(3));
    }

    #[test]
    fn the_status_is_the_codes_but_for_who_was_too_slow() {
        let problem = Problem::from(Refusal::RateLimited { retry_after: Duration::from_secs(1) });
        assert_eq!((problem.http_status(), problem.code()), (429, Code::RateLimited));
        let problem = Problem::from(Refusal::TooSlow);
        assert_eq!((problem.http_status(), problem.code()), (408, Code::RateLimited));
        assert_eq!(problem.retry_after_s(), Some(1));
        assert!(serde_json::to_value(&problem).unwrap().get("http_status").is_none());
    }

    #[test]
    fn who_may_try_again_is_told_when() {
        for refusal in [Refusal::TooManyInFlight, Refusal::MailboxFull, Refusal::TooSlow, Refusal::Unavailable] {
            let problem = Problem::from(refusal);
            assert!(problem.retryable && problem.retry_after_s() > Some(0), "{problem:?}");
        }
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::HashSet<_> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
    }
}
