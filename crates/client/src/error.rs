//! The errors of this crate. Each says with `code()` which [`Code`] the server answered, if it did, and with
//! `retryable()` whether the same call can succeed later.

use std::{error::Error as StdError, fmt, io, time::Duration};

use sealwire_protocol::{
    Code,
    auth::InvalidTokenReason,
    codec::{DecodeError, EncodeError},
    error::{ErrorBody, ErrorDetails, ReplaceableDevice},
    ids::DeviceId,
    value::Named,
};
use thiserror::Error;

use crate::reconnect::End;

/// The URL of a server is not usable: it has to be `http://` or `https://`, a host, and optionally a port and a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a server's URL is http:// or https://, a host, and optionally a port and a path")]
pub struct InvalidUrl;

/// A failed HTTP request, such as a step of signing in.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The server refused the request.
    #[error("{}: {}", .0.code.name(), .0.message)]
    Refused(Box<ErrorBody>),
    /// The response is not one of Sealwire's, such as an error page of a proxy.
    #[error("the response has status {status} and is not one of Sealwire's")]
    Unexpected {
        /// The HTTP status.
        status: u16,
        /// From the `Retry-After` header.
        retry_after: Option<Duration>,
    },
    /// No connection to the server.
    #[error("cannot connect to {server}: {error}")]
    Connect {
        /// Host and port.
        server: String,
        /// The cause.
        error: io::Error,
    },
    /// The URL has `https`, but the crate is built without the feature `tls`.
    #[error("the crate is built without the feature tls")]
    NoTls,
    /// The connection broke, or the server does not speak HTTP.
    #[error("the connection failed: {0}")]
    Transport(Box<dyn StdError + Send + Sync>),
    /// No response in time.
    #[error("no response in time")]
    TimedOut,
    /// A text cannot be sent, since it has a NUL character, or a token has characters that no token has.
    #[error("{0} has a character that cannot be sent")]
    InvalidText(&'static str),
    /// The server asked for a proof of work that would take too long.
    #[error("the server asks for a proof of work of {bits} bits")]
    ProofTooHard {
        /// The bits that have to be zero.
        bits: u32,
    },
}

impl HttpError {
    /// The error code of the response, if there was one that this version knows.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        self.body().and_then(known_code)
    }

    /// Whether the same request can succeed later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Refused(error) => error.retryable,
            Self::Unexpected { status, .. } => matches!(status, 408 | 429 | 500..),
            Self::Connect { .. } | Self::Transport(_) | Self::TimedOut => true,
            Self::NoTls | Self::InvalidText(_) | Self::ProofTooHard { .. } => false,
        }
    }

    /// How long to wait at least before the same request is made again, if the server said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(error) => error.retry_after_ms.map(Duration::from_millis),
            Self::Unexpected { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The error object of the response.
    #[must_use]
    pub fn body(&self) -> Option<&ErrorBody> {
        match self {
            Self::Refused(error) => Some(error),
            _ => None,
        }
    }

    /// Under `device_limit`: the devices of which the person can choose one to replace.
    #[must_use]
    pub fn replaceable_devices(&self) -> Option<&[ReplaceableDevice]> {
        match &self.body()?.details {
            Some(ErrorDetails::Devices { devices }) => Some(devices),
            _ => None,
        }
    }

    /// Under `unauthorized`: why the token is not valid.
    #[must_use]
    pub fn invalid_token_reason(&self) -> Option<InvalidTokenReason> {
        match &self.body()?.details {
            Some(ErrorDetails::InvalidToken { reason }) => reason.clone().known(),
            _ => None,
        }
    }
}

/// A failed request on the socket.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The server refused the request.
    #[error("{}: {}", .0.code.name(), .0.message)]
    Refused(Box<ErrorBody>),
    /// The client has ended, so the request was not answered. It is unknown whether it was done.
    #[error("the client has ended: {0}")]
    Ended(End),
    /// No reply within the time that [`Options::request_timeout`](crate::Options::request_timeout) allows, reconnects
    /// included. It is unknown whether the request was done.
    #[error("no reply in time")]
    TimedOut,
    /// The request is larger than the server accepts.
    #[error("the request has {size} bytes, and the server accepts {limit}")]
    TooLarge {
        /// The size of the request in bytes.
        size: usize,
        /// The largest that the server accepts.
        limit: usize,
    },
    /// Too many messages wait to be sent.
    #[error("{limit} messages wait to be sent already")]
    OutboxFull {
        /// [`Options::outbox_limit`](crate::Options::outbox_limit).
        limit: usize,
    },
    /// A text has a NUL character, which cannot be sent.
    #[error("a text has a NUL character, which cannot be sent")]
    InvalidText,
    /// The reply does not have the form of this version of the protocol.
    #[error("the reply has an unexpected form: {0}")]
    Reply(String),
    /// The storage failed, so nothing was sent.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl RequestError {
    /// The error code of the reply, if there was one that this version knows.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        self.body().and_then(known_code)
    }

    /// Whether the same request can succeed later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Refused(error) => error.retryable,
            Self::TimedOut | Self::OutboxFull { .. } | Self::Storage(_) => true,
            Self::Ended(_) | Self::TooLarge { .. } | Self::InvalidText | Self::Reply(_) => false,
        }
    }

    /// How long to wait at least before the same request is made again, if the server said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.body()?.retry_after_ms.map(Duration::from_millis)
    }

    /// The error object of the reply.
    #[must_use]
    pub fn body(&self) -> Option<&ErrorBody> {
        match self {
            Self::Refused(error) => Some(error),
            _ => None,
        }
    }

    /// Under `devices_mismatch`: the devices that the message has to name in addition, and those that it must not name.
    #[must_use]
    pub fn mismatch(&self) -> Option<(&[DeviceId], &[DeviceId])> {
        match &self.body()?.details {
            Some(ErrorDetails::Mismatch { missing, extra }) => Some((missing, extra)),
            _ => None,
        }
    }
}

impl From<DecodeError> for RequestError {
    fn from(error: DecodeError) -> Self {
        Self::Reply(error.to_string())
    }
}

impl From<EncodeError> for RequestError {
    fn from(error: EncodeError) -> Self {
        Self::Reply(error.to_string())
    }
}

/// The [`Storage`](crate::Storage) failed.
#[derive(Clone, Debug)]
pub struct StorageError(std::sync::Arc<dyn StdError + Send + Sync>);

impl StorageError {
    pub(crate) fn new(error: impl StdError + Send + Sync + 'static) -> Self {
        Self(std::sync::Arc::new(error))
    }

    /// `None`: the error is not one of the server's.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        None
    }

    /// True: a disk or a database may work again later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        true
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the storage failed: {}", self.0)
    }
}

impl StdError for StorageError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

fn known_code(error: &ErrorBody) -> Option<Code> {
    match error.code {
        Named::Known(code) => Some(code),
        Named::Unknown(_) => None,
    }
}
