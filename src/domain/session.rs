//! Who is asking.

use super::{DeviceId, SessionId, Timestamp, UserId};

/// The session in whose name an operation runs. Every statement that changes anything checks that it still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The session.
    pub session: SessionId,
    /// Its user.
    pub user: UserId,
    /// Its device.
    pub device: DeviceId,
}

/// A valid session, as its token found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Who it speaks for.
    pub caller: Caller,
    /// When it ends.
    pub expires_at: Timestamp,
}
