//! The caller of a request, and its session.

use super::{DeviceId, SessionId, Timestamp, UserId};

/// The session on whose behalf an operation runs. Every write checks in its transaction that the session is still
/// valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The session.
    pub session: SessionId,
    /// Its user.
    pub user: UserId,
    /// Its device.
    pub device: DeviceId,
    /// When the user was created. It never changes, so it is read once, with the session.
    pub user_since: Timestamp,
}

/// A valid session, looked up by its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// The session's id, user and device.
    pub caller: Caller,
    /// When it expires.
    pub expires_at: Timestamp,
}
