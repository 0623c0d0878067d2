//! What became of a notification, and what to do next.

use std::time::Duration;

/// What became of a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The push service accepted it.
    Delivered,
    /// The target no longer exists. Remove it, unless it was registered anew since the notification was sent.
    Gone,
    /// The push service did not accept it now. Send it again.
    Later {
        /// How long to wait, if the service said so; at most [`Outcome::MAX_WAIT`].
        wait: Option<Duration>,
        /// Why.
        reason: Reason,
    },
    /// Nothing was sent, since too many notifications are under way. This is not the service's fault.
    Busy {
        /// After which time there should be a place, at the rate at which the service has answered; at most
        /// [`Outcome::MAX_BUSY_WAIT`]. Each refused send is given another time.
        wait: Duration,
    },
    /// The push service will not accept this notification. Give it up, and keep the target.
    Failed(Reason),
}

impl Outcome {
    /// The longest wait that a push service can ask for: a day.
    pub const MAX_WAIT: Duration = Duration::from_hours(24);

    /// The longest wait for a place. A service that was slow may be fast again.
    pub const MAX_BUSY_WAIT: Duration = Duration::from_mins(1);

    /// A name for metrics and logs: `delivered`, `gone`, `later`, `busy` or `failed`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Gone => "gone",
            Self::Later { .. } => "later",
            Self::Busy { .. } => "busy",
            Self::Failed(_) => "failed",
        }
    }

    pub(crate) fn later(reason: Reason) -> Self {
        Self::Later { wait: None, reason }
    }
}

/// What to do after an answer of a service that authenticates this server by a token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The outcome is known.
    Done(Outcome),
    /// The token was refused: try once more with a new one.
    RenewToken,
}

/// Why a notification was not delivered. Contains nothing that the service or the client chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No answer in time.
    Timeout,
    /// The host name could not be resolved.
    Name,
    /// The host has no address that requests are sent to.
    ForbiddenAddress,
    /// The connection was refused or broke.
    Connection,
    /// The TLS handshake failed, or the certificate is not valid.
    Tls,
    /// The answer is not HTTP.
    Protocol,
    /// The service asks for fewer requests.
    RateLimited,
    /// The service has a fault (5xx).
    ServerError,
    /// The service does not accept the server's own key or account: an operator must act.
    Credentials,
    /// The service does not accept the notification or the target.
    Rejected,
    /// The service answered with a redirect, which is not followed.
    Redirected,
    /// The kind of the target is not configured.
    NotConfigured,
    /// The notification could not be encrypted or signed.
    Encryption,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 13] = [
        Self::Timeout,
        Self::Name,
        Self::ForbiddenAddress,
        Self::Connection,
        Self::Tls,
        Self::Protocol,
        Self::RateLimited,
        Self::ServerError,
        Self::Credentials,
        Self::Rejected,
        Self::Redirected,
        Self::NotConfigured,
        Self::Encryption,
    ];

    /// A name for metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Name => "name",
            Self::ForbiddenAddress => "forbidden_address",
            Self::Connection => "connection",
            Self::Tls => "tls",
            Self::Protocol => "protocol",
            Self::RateLimited => "rate_limited",
            Self::ServerError => "server_error",
            Self::Credentials => "credentials",
            Self::Rejected => "rejected",
            Self::Redirected => "redirected",
            Self::NotConfigured => "not_configured",
            Self::Encryption => "encryption",
        }
    }
}
