//! The tables of error codes and close codes.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    auth::EndReason,
    value::{Named, StringOnly},
};

macro_rules! codes {
    ($($variant:ident $name:literal $status:literal $retryable:literal;)*) => {
        /// An error code of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
        }

        impl Code {
            /// All codes, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name on the wire.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The code with exactly this name.
            #[must_use]
            pub fn parse(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }

            /// The HTTP status of a response with this code.
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
    ProofRequired    "proof_required"     403 false;
    Denied           "denied"             403 false;
    DeviceLimit      "device_limit"       409 false;
    DeviceTooNew     "device_too_new"     403 true;
    ConfirmationRequired "confirmation_required" 403 false;
    EmailTaken       "email_taken"        409 false;
    IdentityConflict "identity_conflict"  409 false;
    IdConflict       "id_conflict"        409 false;
    DevicesMismatch  "devices_mismatch"   409 false;
    NoDevices        "no_devices"         409 false;
    PoolChanged      "pool_changed"       409 false;
    StaleSignedPrekey "stale_signed_prekey" 409 false;
    InvalidKey       "invalid_key"        422 false;
    InvalidSignature "invalid_signature"  422 false;
    IncompleteKeys   "incomplete_keys"    422 false;
    MailboxFull      "mailbox_full"       429 true;
    Unavailable      "unavailable"        503 true;
    Internal         "internal"           500 true;
}

macro_rules! close_codes {
    ($($(#[$doc:meta])* $variant:ident $number:literal $reason:literal;)*) => {
        /// Why the server closes a socket. After 4000 to 4499 a client reconnects, with jitter. After 4500 to 4999 it
        /// does not reconnect, or only with another session.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum CloseCode {
            $($(#[$doc])* $variant = $number,)*
        }

        impl CloseCode {
            /// All close codes, in the order of the table.
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
    /// The node is stopping.
    Draining       4000 "draining";
    /// Nothing was received for a minute, or a message was received too slowly.
    Idle           4001 "idle";
    /// The client reads the frames sent to it too slowly, or nothing was received for a minute while frames were queued or
    /// messages were unacked.
    SlowConsumer   4002 "slow consumer";
    /// The connection could not be opened, for example because the store failed, or the memory of its unfinished message
    /// or its place was needed for others.
    Unavailable    4003 "unavailable";
    /// The upgrade was refused because of a rate limit. Browsers only; others get the HTTP response.
    RateLimited    4004 "rate limited";
    /// The session was revoked or logged out.
    SessionRevoked 4500 "session revoked";
    /// The session has expired.
    SessionExpired 4501 "session expired";
    /// The device was revoked or replaced.
    DeviceRevoked  4502 "device revoked";
    /// The device opened a newer connection.
    Displaced      4503 "displaced";
    /// The client violated the WebSocket protocol or the frame format.
    ProtocolError  4504 "protocol error";
    /// The client sent the header of a message that is larger than the limit.
    FrameTooLarge  4505 "frame too large";
    /// The account was deleted.
    AccountDeleted 4506 "account deleted";
    /// The upgrade was refused because the token is not valid. Browsers only; others get the HTTP response.
    Unauthorized   4507 "unauthorized";
}

macro_rules! protocol_faults {
    ($($variant:ident $text:literal;)*) => {
        /// The rule that a client violated, if a socket is closed with 4504. The list may grow.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ProtocolFault {
            $(#[doc = concat!("`", $text, "`")] $variant,)*
        }

        impl ProtocolFault {
            /// All faults.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The reason text in the Close frame: that of the close code, and the rule.
            #[must_use]
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$variant => concat!("protocol error: ", $text),)* }
            }
        }
    };
}

protocol_faults! {
    TextFrame           "text message on a MessagePack socket";
    BinaryFrame         "binary message on a JSON socket";
    Undecodable         "message is not one map in the negotiated encoding";
    IdMissing           "id missing";
    IdInvalid           "id is not an integer from 1 to 4294967295";
    IdInUse             "id of an unanswered request";
    NotUtf8             "text message is not UTF-8";
    ReservedBits        "reserved bits set";
    UnknownOpcode       "unknown opcode";
    Unmasked            "frame is not masked";
    LengthForm          "length not in its shortest form";
    ControlFrame        "control frame fragmented or longer than 125 bytes";
    Continuation        "continuation without a message to continue";
    UnfinishedMessage   "new message inside a fragmented one";
    Framing             "invalid WebSocket frame";
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

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(StringOnly("an error code", Self::parse))
    }
}

impl Named<Code> {
    /// The name on the wire.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Known(code) => code.name(),
            Self::Unknown(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for code in Code::ALL {
            assert_eq!(Code::parse(code.name()), Some(*code));
        }
    }

    #[test]
    fn every_reason_fits_into_a_close_frame() {
        let faults = ProtocolFault::ALL.iter().map(|fault| fault.reason());
        for reason in CloseCode::ALL.iter().map(|code| code.reason()).chain(faults) {
            // RFC 6455, section 5.5: 125 bytes, two of which are the code.
            assert!(reason.len() <= 123, "{reason}");
        }
    }
}
