//! What the rules of the server refuse. The edges add what only they refuse, and give each its code and status.

use std::time::Duration;

use thiserror::Error;

use super::{DeviceId, Timestamp};

/// One of a user's devices, from which one can be chosen to be replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceChoice {
    /// Which device.
    pub device_id: DeviceId,
    /// For people; `None` if it was never named.
    pub name: Option<String>,
    /// When it last connected or disconnected; `None` if it never did.
    pub last_seen: Option<Timestamp>,
}

/// Which part of a publish was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyFault {
    /// The field of the request.
    pub field: &'static str,
    /// The key's id; `None` for the identity key.
    pub key_id: Option<u32>,
}

/// A typed refusal. Texts say what to do and never repeat what the client sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// A field of the request has a value that it cannot have.
    #[error("`{path}`: expected {expected}")]
    InvalidField {
        /// Where it stands in the request: `one_time_prekeys[3].key_id`.
        path: String,
        /// What it should be.
        expected: &'static str,
    },
    /// No session has this token.
    #[error("a valid session token is required")]
    Unauthorized,
    /// The code is wrong, used, expired or unknown.
    #[error("the code is wrong, used or expired")]
    InvalidCode,
    /// Five guesses were counted.
    #[error("too many guesses; ask for another code")]
    TooManyAttempts,
    /// A limit was reached.
    #[error("too many requests; wait and try again")]
    RateLimited {
        /// When the next attempt can succeed.
        retry_after: Duration,
    },
    /// Not an active device of this user.
    #[error("no such device of this user")]
    UnknownDevice,
    /// The session has ended.
    #[error("the session has ended; sign in again")]
    SessionRevoked,
    /// There is no such user or address.
    #[error("not found")]
    NotFound,
    /// The message id was used for something else.
    #[error("this message id was used with another recipient or content")]
    IdConflict,
    /// A message does not name the devices that its recipient has.
    #[error("the message must name each device of its recipient once, and no other")]
    DevicesMismatch {
        /// Addressable devices that are not named.
        missing: Vec<DeviceId>,
        /// Named devices that cannot be sent to, or that are named twice.
        extra: Vec<DeviceId>,
    },
    /// No device of the recipient could store the message.
    #[error("the mailbox is full; try again later")]
    MailboxFull,
    /// The user has as many devices as allowed.
    #[error("the user has the maximum number of devices; replace one")]
    DeviceLimit {
        /// All of them.
        devices: Vec<DeviceChoice>,
    },
    /// Identity key and suite are set once.
    #[error("the device already has another identity key or suite")]
    IdentityConflict,
    /// A key is malformed or weak.
    #[error("a key is malformed or weak")]
    InvalidKey(KeyFault),
    /// A signature does not verify.
    #[error("a signature does not verify")]
    InvalidSignature(KeyFault),
    /// The first publish was not a complete set.
    #[error("the first publish must carry a complete set of keys")]
    IncompleteKeys,
    /// A backend cannot be reached, or is overloaded.
    #[error("the server cannot do this right now; try again")]
    Unavailable,
    /// A defect of the server.
    #[error("internal error")]
    Internal,
}
