//! Every way in which the server says no. The protocol gives each its code, status and wording.

use std::{borrow::Cow, time::Duration};

use serde::Serialize;
use thiserror::Error;

use super::{DeviceId, Timestamp};

/// One of a user's devices, as offered for replacement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceChoice {
    /// Its id.
    pub device_id: DeviceId,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// When it was last connected.
    pub last_seen: Option<Timestamp>,
}

/// Which part of a publish was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KeyFault {
    /// The request's field.
    pub field: &'static str,
    /// The key's id, where it has one.
    pub key_id: Option<u32>,
}

/// A typed refusal. Texts say what to do and never repeat what was sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The request's form is wrong.
    #[error("{0}")]
    BadRequest(Cow<'static, str>),
    /// No valid token.
    #[error("a valid session token is required")]
    Unauthorized,
    /// Wrong, used, expired or unknown code.
    #[error("the code is wrong, used or expired")]
    InvalidCode,
    /// Five guesses were counted.
    #[error("too many guesses; ask for another code")]
    TooManyAttempts,
    /// A limit was hit.
    #[error("too many requests; wait and try again")]
    RateLimited {
        /// When the next attempt can succeed.
        retry_after: Duration,
    },
    /// A request over HTTP that did not come in whole in its time.
    #[error("the request did not come in in time; send it again, faster")]
    TooSlow,
    /// The op is not of this protocol version.
    #[error("no such op")]
    UnknownOp,
    /// The socket has its full number of unanswered requests.
    #[error("too many requests are unanswered; wait for replies")]
    TooManyInFlight,
    /// A body over its bound.
    #[error("the payload is too large")]
    PayloadTooLarge,
    /// Not an active device of this user.
    #[error("no such device of this user")]
    UnknownDevice,
    /// The session has ended.
    #[error("the session has ended; sign in again")]
    SessionRevoked,
    /// A browser page from elsewhere.
    #[error("this origin is not allowed")]
    ForbiddenOrigin,
    /// No such path, method, user or address.
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
        /// Named devices that cannot be sent to, or stand twice.
        extra: Vec<DeviceId>,
    },
    /// No device of the recipient could store the message.
    #[error("the mailbox is full; try again later")]
    MailboxFull,
    /// The user has as many devices as allowed.
    #[error("the user has the maximum number of devices; replace one")]
    DeviceLimit {
        /// Those that can be replaced.
        devices: Vec<DeviceChoice>,
    },
    /// Identity key and suite are set once.
    #[error("the device already has another identity key or suite")]
    IdentityConflict,
    /// A key that is not one.
    #[error("a key is malformed or weak")]
    InvalidKey(KeyFault),
    /// A signature that does not verify.
    #[error("a signature does not verify")]
    InvalidSignature(KeyFault),
    /// The first publish was not a complete set.
    #[error("the first publish must carry a complete set of keys")]
    IncompleteKeys,
    /// A backend is out of reach.
    #[error("the server cannot do this right now; try again")]
    Unavailable,
    /// A defect of the server.
    #[error("internal error")]
    Internal,
}
