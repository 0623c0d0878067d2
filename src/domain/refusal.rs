//! Refusals by the rules of the server. The edge adds refusals of its own, and maps each to an error code and an HTTP
//! status.

use std::time::Duration;

pub use sealwire_protocol::auth::InvalidTokenReason;
use thiserror::Error;

use super::{DeviceId, Timestamp, work::OfferedWork};

/// A device of the user, offered for replacement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceChoice {
    /// The device.
    pub device_id: DeviceId,
    /// Display name, if it has one.
    pub name: Option<String>,
    /// When it last connected or disconnected; `None` if it never did.
    pub last_seen: Option<Timestamp>,
}

/// The key of a publish that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyFault {
    /// The field of the request.
    pub field: &'static str,
    /// The key's id; `None` for the identity key.
    pub key_id: Option<u32>,
}

/// Why a request is refused. Texts say what to do and never repeat what the client sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// A field of the request has an invalid value.
    #[error("`{path}`: expected {expected}")]
    InvalidField {
        /// The path of the field, such as `one_time_prekeys[3].key_id`.
        path: String,
        /// What it should be.
        expected: &'static str,
    },
    /// No valid session has this token.
    #[error("a valid session token is required")]
    Unauthorized(InvalidTokenReason),
    /// The code is wrong, used, expired or unknown.
    #[error("the code is wrong, used or expired")]
    InvalidCode,
    /// The challenge has had its maximum number of attempts.
    #[error("too many guesses; ask for another code")]
    TooManyAttempts,
    /// A rate limit was reached.
    #[error("too many requests; wait and try again")]
    RateLimited {
        /// How long to wait before the next attempt can succeed.
        retry_after: Duration,
    },
    /// A limit was reached, and a proof of work lets the request exceed it.
    #[error("too many requests; wait, or repeat the request with a proof of work")]
    WorkRequired {
        /// How long to wait before the next attempt without a proof can succeed.
        retry_after: Duration,
        /// The proof.
        work: OfferedWork,
    },
    /// Not an active device of this user.
    #[error("no such device of this user")]
    UnknownDevice,
    /// The session has ended.
    #[error("the session has ended; sign in again")]
    SessionRevoked,
    /// The user does not exist.
    #[error("not found")]
    NotFound,
    /// The message id was already used with another recipient or content.
    #[error("this message id was used with another recipient or content")]
    IdConflict,
    /// A message does not name exactly the devices that its recipient has.
    #[error("the message must name each device of its recipient once, and no other")]
    DevicesMismatch {
        /// Devices that must be named and are not.
        missing: Vec<DeviceId>,
        /// Named devices that cannot be sent to, or that are named twice or also skipped.
        extra: Vec<DeviceId>,
    },
    /// The recipient has no device that messages can be sent to.
    #[error("the recipient has no devices with keys; nothing was stored")]
    NoDevices,
    /// No device of the recipient could store the message.
    #[error("the mailbox is full; try again later")]
    MailboxFull,
    /// The proof of a device is missing or invalid.
    #[error("a signature with the device's identity key is required; without the key, sign in as a new device")]
    ProofRequired,
    /// A device denied the request.
    #[error("a device of the user denied the request")]
    Denied,
    /// The user has as many devices as allowed.
    #[error("the user has the maximum number of devices; replace one")]
    DeviceLimit {
        /// All of them.
        devices: Vec<DeviceChoice>,
    },
    /// The device is too new to disturb other devices of its user.
    #[error("this device is too new for that; use an older one, or wait")]
    DeviceTooNew {
        /// When it will be old enough.
        allowed_at: Timestamp,
        /// The time until then.
        retry_after: Duration,
    },
    /// The operation needs a code.
    #[error("this needs a code: ask for one with the right purpose, and send its challenge_id and code")]
    ConfirmationRequired,
    /// Another user has the address.
    #[error("another user has this address")]
    EmailTaken,
    /// The device has already published another identity key or suite.
    #[error("the device already has another identity key or suite")]
    IdentityConflict,
    /// A key is malformed or weak.
    #[error("a key is malformed or weak")]
    InvalidKey(KeyFault),
    /// A signature does not verify.
    #[error("a signature does not verify")]
    InvalidSignature(KeyFault),
    /// The pools do not have the version that the publish expects.
    #[error("the pools have another version than expected; ask for their status and publish again")]
    PoolChanged,
    /// The id of a new signed prekey is not greater than that of the served one.
    #[error("the key id of the signed prekey is not greater than that of the served one; use a greater id")]
    StaleSignedPrekey {
        /// The id of the served signed prekey.
        served: u32,
    },
    /// The first publish was not a complete set.
    #[error("the first publish must contain a complete set of keys")]
    IncompleteKeys,
    /// A backend cannot be reached, or is overloaded.
    #[error("the server cannot do this right now; try again")]
    Unavailable,
    /// A defect of the server.
    #[error("internal error")]
    Internal,
}
