//! Signing in to a locked account, which needs an approval by another device, and waiting for it.

use std::{fmt, time::Duration};

use hyper::{Method, StatusCode};
use sealwire_protocol::{
    Timestamp,
    approvals::{ApprovalPendingReply, ApprovalRequestedReply, PollApprovalRequest},
    ids::ApprovalId,
    value::Text,
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{
    error::HttpError,
    http::Reply,
    server::{self, Server},
    session::Session,
};

/// How often to ask while the person waits, and at most how rarely later.
const FIRST_INTERVAL: Duration = Duration::from_secs(3);
const LAST_INTERVAL: Duration = Duration::from_mins(5);

/// What a right code gives.
#[derive(Clone, Debug)]
pub enum SignIn {
    /// The device is signed in.
    Session(Session),
    /// The account is locked: another device of the user has to approve. Show the person [`Approval::number`].
    Approval(Approval),
}

impl SignIn {
    /// The session, at once or after an approval, for which `show` tells the person what to do.
    ///
    /// # Errors
    /// As [`Server::wait_for_approval`].
    pub async fn finish(self, server: &Server, show: impl FnOnce(&Approval)) -> Result<Session, HttpError> {
        match self {
            Self::Session(session) => Ok(session),
            Self::Approval(approval) => {
                show(&approval);
                server.wait_for_approval(&approval).await
            }
        }
    }
}

/// A sign-in that waits for an approval. Keep it until it is decided, also over a restart of the app: it is the only way
/// to the session. `Debug` does not show its secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// The request.
    pub request_id: ApprovalId,
    /// Two digits to show. The person enters them on the device that approves.
    pub number: String,
    /// When the request is approved unless a device denies it, by the server's clock.
    pub decides_at: Timestamp,
    poll_token: String,
}

/// The state of an [`Approval`].
#[derive(Clone, Debug)]
pub enum ApprovalState {
    /// Nobody has decided.
    Pending {
        /// When the request is approved unless a device denies it.
        decides_at: Timestamp,
    },
    /// Approved: the device is signed in.
    Approved(Session),
}

impl Approval {
    pub(crate) fn from_reply(reply: Reply) -> Result<Self, HttpError> {
        let ApprovalRequestedReply { approval } = reply.success(StatusCode::ACCEPTED)?;
        let unexpected = HttpError::Unexpected { status: StatusCode::ACCEPTED.as_u16(), retry_after: None };
        Ok(Self {
            request_id: approval.request_id,
            number: approval.number,
            decides_at: approval.decides_at,
            poll_token: approval.poll_token.ok_or(unexpected)?,
        })
    }
}

impl fmt::Debug for Approval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Approval")
            .field("request_id", &self.request_id)
            .field("decides_at", &self.decides_at)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Asks once whether a sign-in was approved. The session is the same at every call until its token is first used.
    ///
    /// # Errors
    /// `denied`; `not_found` if the request is not known, or its session was used already; `rate_limited`.
    pub async fn approval(&self, approval: &Approval) -> Result<ApprovalState, HttpError> {
        let poll_token = Text::parse(&approval.poll_token).ok_or(HttpError::InvalidText("the poll token"))?;
        let request = PollApprovalRequest { request_id: approval.request_id, poll_token };
        let body = serde_json::to_vec(&request).map_err(|error| HttpError::Transport(error.into()))?;
        let reply = self.call(Method::POST, "/v1/auth/approval", None, body).await?;
        if reply.status == StatusCode::ACCEPTED {
            let ApprovalPendingReply { approval, .. } = reply.success(StatusCode::ACCEPTED)?;
            return Ok(ApprovalState::Pending { decides_at: approval.decides_at });
        }
        server::session(reply).map(ApprovalState::Approved)
    }

    /// Waits until a sign-in is approved, for as long as that takes: asks every few seconds at first, and every few minutes
    /// later. Failures that can pass, such as of the network, are waited out.
    ///
    /// # Errors
    /// `denied`; `not_found` if the request is not known, or its session was used already.
    pub async fn wait_for_approval(&self, approval: &Approval) -> Result<Session, HttpError> {
        let started = Instant::now();
        loop {
            let asked_to_wait = match self.approval(approval).await {
                Ok(ApprovalState::Approved(session)) => return Ok(session),
                Ok(ApprovalState::Pending { .. }) => Duration::ZERO,
                Err(error) if error.retryable() => error.retry_after().unwrap_or_default(),
                Err(error) => return Err(error),
            };
            sleep(interval(started.elapsed()).max(asked_to_wait)).await;
        }
    }
}

/// How long to wait before the next question, after the time that was waited already.
fn interval(waited: Duration) -> Duration {
    (waited / 20).clamp(FIRST_INTERVAL, LAST_INTERVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_become_rare() {
        assert_eq!(interval(Duration::ZERO), Duration::from_secs(3));
        assert_eq!(interval(Duration::from_mins(10)), Duration::from_secs(30));
        assert_eq!(interval(Duration::from_hours(24)), Duration::from_mins(5));
    }
}
