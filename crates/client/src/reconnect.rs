//! Decides what to do after a connection has failed: connect again, and when, or end. Does no I/O; randomness is a
//! parameter. The rules are those of `docs/protocol.md`, sections "Close codes", "Reconnecting" and "Why a token is not
//! valid".

use std::time::Duration;

use sealwire_protocol::{
    CloseCode, Code,
    auth::{EndReason, InvalidTokenReason},
    error::{ErrorBody, ErrorDetails},
    value::Named,
};
use thiserror::Error;

/// The bound of the first wait.
const FIRST_BOUND: Duration = Duration::from_secs(1);
/// The largest bound of a wait.
const LAST_BOUND: Duration = Duration::from_mins(1);

/// How a connection, or an attempt to open one, failed.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// The socket was closed with a Close frame.
    Closed {
        /// The code in the frame; 1005 if it has none.
        code: u16,
        /// The reason text in the frame.
        reason: String,
    },
    /// The upgrade was refused with an error object.
    Refused {
        /// The error object.
        error: Box<ErrorBody>,
        /// From the `Retry-After` header, or from the error object.
        retry_after: Option<Duration>,
    },
    /// The upgrade got another HTTP response, such as an error page of a proxy.
    Unexpected {
        /// From the `Retry-After` header.
        retry_after: Option<Duration>,
    },
    /// The connection could not be opened, or it broke or went silent.
    Lost,
}

/// What to do after a [`Failure`].
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Connect again after this time.
    Wait(Pause),
    /// Do not connect again.
    End(End),
}

/// How long to wait before the next connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// What the server asked for, with `Retry-After` or `server.draining`.
    pub asked_for: Duration,
    /// The random time that comes after it.
    pub random: Duration,
}

impl Pause {
    /// The whole time.
    #[must_use]
    pub fn total(self) -> Duration {
        self.asked_for.saturating_add(self.random)
    }
}

/// Why a client has ended and does not connect again.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum End {
    /// The session was logged out, or ended on another device. Sign in, naming the device to keep it.
    #[error("the session was logged out")]
    LoggedOut,
    /// The session has expired. Sign in, naming the device to keep it.
    #[error("the session has expired")]
    Expired,
    /// The session was renewed, and this token is the old one. Use the new token; if it was lost, sign in.
    #[error("the session was renewed, and this is the old token")]
    Superseded,
    /// The server does not know the token, or no longer why it is not valid. Sign in.
    #[error("the token is not valid")]
    UnknownToken,
    /// The device was revoked or replaced. Delete its data.
    #[error("the device was revoked")]
    DeviceRevoked,
    /// The account was deleted. Delete the data of the device.
    #[error("the account was deleted")]
    AccountDeleted,
    /// The device has opened another connection, such as by another process with the same session. A reconnect would
    /// displace that one.
    #[error("another connection of the device took over")]
    Displaced,
    /// The server refused the upgrade, and would refuse it again.
    #[error("the server refused the connection: {}: {message}", .code.name())]
    Refused {
        /// The error code.
        code: Named<Code>,
        /// For developers.
        message: String,
    },
    /// The server closed the socket because of an error of this client, or with a code of a newer server after which
    /// clients do not reconnect.
    #[error("the server closed the connection with {code}: {reason}")]
    Closed {
        /// The close code, 4500 to 4999.
        code: u16,
        /// For developers.
        reason: String,
    },
    /// The client was stopped, or all its handles were dropped.
    #[error("the client was stopped")]
    Stopped,
}

impl End {
    /// Whether the app has to delete the data of the device: keys, messages, sessions.
    #[must_use]
    pub const fn must_wipe(&self) -> bool {
        matches!(self, Self::DeviceRevoked | Self::AccountDeleted)
    }

    /// Whether the person can go on by signing in on the same device.
    #[must_use]
    pub const fn must_sign_in(&self) -> bool {
        matches!(self, Self::LoggedOut | Self::Expired | Self::Superseded | Self::UnknownToken)
    }

    /// The error code of the refusal, if there was one that this version knows.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => code.clone().known(),
            _ => None,
        }
    }

    /// False: a client that has ended does not go on with this session. It can be started again after
    /// [`Stopped`](Self::Stopped) and [`Displaced`](Self::Displaced).
    #[must_use]
    pub const fn retryable(&self) -> bool {
        false
    }

    /// From the `details.reason` of `unauthorized`.
    fn invalid_token(reason: Option<InvalidTokenReason>) -> Self {
        match reason {
            Some(InvalidTokenReason::Expired) => Self::Expired,
            Some(InvalidTokenReason::LoggedOut) => Self::LoggedOut,
            Some(InvalidTokenReason::Superseded) => Self::Superseded,
            Some(InvalidTokenReason::DeviceRevoked) => Self::DeviceRevoked,
            Some(InvalidTokenReason::AccountDeleted) => Self::AccountDeleted,
            Some(InvalidTokenReason::Unknown) | None => Self::UnknownToken,
        }
    }
}

impl From<EndReason> for End {
    fn from(reason: EndReason) -> Self {
        match reason {
            EndReason::Logout => Self::LoggedOut,
            EndReason::Expired => Self::Expired,
            EndReason::DeviceRevoked => Self::DeviceRevoked,
            EndReason::AccountDeleted => Self::AccountDeleted,
        }
    }
}

/// The state of the decision: what is known of the present connection, and how many attempts have failed.
#[derive(Clone, Debug, Default)]
pub struct Reconnect {
    /// Failures since the last welcome.
    failures: u32,
    /// From `server.draining` of the present connection.
    return_in: Option<Duration>,
    /// From `session.revoked` of the present connection.
    revoked: Option<End>,
    /// From `refused` of the present connection.
    refused: Option<Box<ErrorBody>>,
}

impl Reconnect {
    /// The server has sent `welcome`.
    pub fn welcome(&mut self) {
        *self = Self::default();
    }

    /// The server has sent `server.draining`.
    pub fn draining(&mut self, reconnect_in: Duration) {
        self.return_in = Some(reconnect_in);
    }

    /// The server has sent `session.revoked`. A reason of a newer server is ignored: the close code decides.
    pub fn session_revoked(&mut self, reason: &Named<EndReason>) {
        self.revoked = reason.clone().known().map(End::from);
    }

    /// The server has sent `refused`, as it does to browsers.
    pub fn refused(&mut self, error: Box<ErrorBody>) {
        self.refused = Some(error);
    }

    /// The connection, or the attempt to open one, has failed. `random` is a number from 0 to 1.
    pub fn failed(&mut self, failure: Failure, random: f64) -> Next {
        let Self { failures, return_in, revoked, refused } = std::mem::take(self);
        self.failures = failures;
        // The session has ended, however the connection did.
        if let Some(end) = revoked {
            return Next::End(end);
        }
        match (failure, refused) {
            (Failure::Refused { error, retry_after }, _) => self.after_refusal(*error, retry_after, random),
            (Failure::Closed { .. } | Failure::Lost, Some(error)) => self.after_refusal(*error, None, random),
            (Failure::Closed { code, reason }, None) => self.after_close(code, reason, return_in, random),
            (Failure::Unexpected { retry_after }, _) => Next::Wait(self.backoff(retry_after, random)),
            // If only the Close frame was lost, the server is still draining.
            (Failure::Lost, None) => Next::Wait(self.come_back(return_in, random)),
        }
    }

    fn after_close(&mut self, code: u16, reason: String, return_in: Option<Duration>, random: f64) -> Next {
        let known = CloseCode::ALL.iter().find(|known| known.number() == code);
        Next::End(match known {
            Some(CloseCode::SessionRevoked) => End::LoggedOut,
            Some(CloseCode::SessionExpired) => End::Expired,
            Some(CloseCode::DeviceRevoked) => End::DeviceRevoked,
            Some(CloseCode::AccountDeleted) => End::AccountDeleted,
            Some(CloseCode::Displaced) => End::Displaced,
            Some(CloseCode::Unauthorized) => End::UnknownToken,
            _ if (4500..=4999).contains(&code) => End::Closed { code, reason },
            _ => return Next::Wait(self.come_back(return_in, random)),
        })
    }

    fn after_refusal(&mut self, error: ErrorBody, retry_after: Option<Duration>, random: f64) -> Next {
        match error.code {
            Named::Known(Code::Unauthorized) => {
                let reason = match error.details {
                    Some(ErrorDetails::InvalidToken { reason }) => reason.known(),
                    _ => None,
                };
                Next::End(End::invalid_token(reason))
            }
            code if !error.retryable => Next::End(End::Refused { code, message: error.message }),
            _ => {
                let retry_after = retry_after.max(error.retry_after_ms.map(Duration::from_millis));
                Next::Wait(self.backoff(retry_after, random))
            }
        }
    }

    /// What a draining server asked for, which is no failure; otherwise as after any failure.
    fn come_back(&mut self, return_in: Option<Duration>, random: f64) -> Pause {
        match return_in {
            Some(asked_for) => Pause { asked_for, random: Duration::ZERO },
            None => self.backoff(None, random),
        }
    }

    /// A random time below a bound that doubles with every failure, after the time that the server asked for.
    fn backoff(&mut self, retry_after: Option<Duration>, random: f64) -> Pause {
        let random = backoff(self.failures, random);
        self.failures = self.failures.saturating_add(1);
        Pause { asked_for: retry_after.unwrap_or_default(), random }
    }
}

/// Full jitter: a random time between zero and a bound, which starts at one second and doubles with every failure, up to
/// a minute. `random` is a number from 0 to 1.
pub(crate) fn backoff(failures: u32, random: f64) -> Duration {
    let bound = FIRST_BOUND.saturating_mul(1 << failures.min(16)).min(LAST_BOUND);
    bound.mul_f64(random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(code: u16) -> Failure {
        Failure::Closed { code, reason: "why".to_owned() }
    }

    fn refused(code: Code, details: Option<ErrorDetails>, retry_after: Option<Duration>) -> Failure {
        let error = Box::new(ErrorBody::new(code, "message".to_owned(), None, details));
        Failure::Refused { error, retry_after }
    }

    fn wait(asked_for: u64, random: u64) -> Next {
        let [asked_for, random] = [asked_for, random].map(Duration::from_millis);
        Next::Wait(Pause { asked_for, random })
    }

    fn after(failure: Failure) -> Next {
        Reconnect::default().failed(failure, 1.0)
    }

    #[test]
    fn the_bound_doubles_up_to_a_minute_and_a_welcome_resets_it() {
        let mut reconnect = Reconnect::default();
        let mut seconds = Vec::new();
        for _ in 0..9 {
            let Next::Wait(pause) = reconnect.failed(Failure::Lost, 1.0) else { panic!("it does not end") };
            seconds.push(pause.total().as_secs());
        }
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        reconnect.welcome();
        assert_eq!(reconnect.failed(Failure::Lost, 0.5), wait(0, 500));
        assert_eq!(reconnect.failed(Failure::Lost, 0.0), wait(0, 0));
    }

    #[test]
    fn a_time_from_the_server_is_waited_for_at_least() {
        let mut reconnect = Reconnect::default();
        let limited = refused(Code::RateLimited, None, Some(Duration::from_secs(7)));
        assert_eq!(reconnect.failed(limited, 0.0), wait(7000, 0));
        let unavailable = refused(Code::Unavailable, None, Some(Duration::from_secs(7)));
        assert_eq!(reconnect.failed(unavailable, 1.0), wait(7000, 2000), "it counts as a failure");
        let proxy = Failure::Unexpected { retry_after: Some(Duration::from_secs(5)) };
        assert_eq!(reconnect.failed(proxy, 0.0), wait(5000, 0));
    }

    #[test]
    fn a_draining_server_says_when_to_come_back_and_that_is_no_failure() {
        for failure in [closed(4000), Failure::Lost] {
            let mut reconnect = Reconnect::default();
            reconnect.welcome();
            reconnect.draining(Duration::from_millis(3120));
            assert_eq!(reconnect.failed(failure, 1.0), wait(3120, 0));
            assert_eq!(reconnect.failed(closed(4000), 1.0), wait(0, 1000), "without the event");
        }
    }

    #[test]
    fn close_codes_below_4500_reconnect_and_others_end() {
        for code in [1000, 1001, 1005, 1006, 1011, 3000, 4000, 4001, 4002, 4003, 4004, 4499] {
            assert_eq!(after(closed(code)), wait(0, 1000), "{code}");
        }
        for (code, end) in [
            (4500, End::LoggedOut),
            (4501, End::Expired),
            (4502, End::DeviceRevoked),
            (4503, End::Displaced),
            (4506, End::AccountDeleted),
            (4507, End::UnknownToken),
        ] {
            assert_eq!(after(closed(code)), Next::End(end), "{code}");
        }
        for code in [4504, 4505, 4508, 4999] {
            assert_eq!(after(closed(code)), Next::End(End::Closed { code, reason: "why".to_owned() }));
        }
        for code in CloseCode::ALL {
            let ends = matches!(after(closed(code.number())), Next::End(_));
            assert_eq!(ends, code.number() >= 4500, "{code:?}");
        }
    }

    #[test]
    fn a_token_that_is_not_valid_ends_by_its_reason() {
        for (reason, end) in [
            (InvalidTokenReason::Unknown, End::UnknownToken),
            (InvalidTokenReason::Expired, End::Expired),
            (InvalidTokenReason::LoggedOut, End::LoggedOut),
            (InvalidTokenReason::Superseded, End::Superseded),
            (InvalidTokenReason::DeviceRevoked, End::DeviceRevoked),
            (InvalidTokenReason::AccountDeleted, End::AccountDeleted),
        ] {
            let details = ErrorDetails::InvalidToken { reason: reason.into() };
            assert_eq!(end.must_wipe(), matches!(end, End::DeviceRevoked | End::AccountDeleted));
            assert_ne!(end.must_wipe(), end.must_sign_in());
            assert_eq!(after(refused(Code::Unauthorized, Some(details), None)), Next::End(end));
        }
        let newer = ErrorDetails::InvalidToken { reason: Named::Unknown("newer".to_owned()) };
        assert_eq!(after(refused(Code::Unauthorized, Some(newer), None)), Next::End(End::UnknownToken));
        assert_eq!(after(refused(Code::Unauthorized, None, None)), Next::End(End::UnknownToken));
    }

    #[test]
    fn a_refusal_that_cannot_succeed_later_ends() {
        for code in [Code::ForbiddenOrigin, Code::BadRequest] {
            let Next::End(End::Refused { code: named, .. }) = after(refused(code, None, None)) else {
                panic!("{code:?}")
            };
            assert_eq!(named, Named::Known(code));
        }
        let newer = ErrorBody {
            code: Named::Unknown("new".to_owned()),
            ..ErrorBody::new(Code::Internal, String::new(), None, None)
        };
        let newer = Failure::Refused { error: Box::new(newer), retry_after: None };
        assert_eq!(after(newer), wait(0, 1000), "an unknown code is treated by its `retryable`");
    }

    #[test]
    fn an_ended_session_ends_the_client_even_if_the_close_frame_is_lost() {
        let mut reconnect = Reconnect::default();
        reconnect.welcome();
        reconnect.session_revoked(&EndReason::DeviceRevoked.into());
        assert_eq!(reconnect.failed(Failure::Lost, 1.0), Next::End(End::DeviceRevoked));
        let mut reconnect = Reconnect::default();
        reconnect.session_revoked(&Named::Unknown("newer".to_owned()));
        assert_eq!(reconnect.failed(closed(4506), 1.0), Next::End(End::AccountDeleted));
    }

    #[test]
    fn a_refusal_on_the_socket_is_treated_like_one_over_http() {
        let mut reconnect = Reconnect::default();
        let asked = Some(Duration::from_millis(2500));
        reconnect.refused(Box::new(ErrorBody::new(Code::RateLimited, String::new(), asked, None)));
        assert_eq!(reconnect.failed(closed(4004), 0.0), wait(2500, 0));
    }
}
