//! The session of a device: what signing in gives, and what a client connects with.

use std::{fmt, time::Duration};

use sealwire_protocol::{
    Timestamp,
    auth::{RenewSessionReply, SessionReply},
    ids::{DeviceId, SessionId, UserId},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::StorageError,
    storage::{Record, Storage},
};

/// The key of the session's record.
pub(crate) const KEY: &str = "session";

/// A signed-in device. It contains the token, so keep it as you keep a password; `Debug` does not show the token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The user.
    pub user_id: UserId,
    /// The device. Name it when the person signs in again on it.
    pub device_id: DeviceId,
    /// The session that the token belongs to.
    pub session_id: SessionId,
    /// When the session ends unless it is renewed, by the server's clock.
    pub expires_at: Timestamp,
    token: String,
    /// The longest time until the expiry that was seen, in seconds: about the session's whole life.
    #[serde(default)]
    life_s: u64,
    #[serde(default)]
    ended: bool,
}

impl Session {
    /// The session that a [`Client`](crate::Client) keeps in this storage, with the latest token. `None` if it has kept
    /// none: sign in.
    ///
    /// # Errors
    /// If the storage fails, or contains a session that cannot be read.
    pub async fn load(storage: &impl Storage) -> Result<Option<Self>, StorageError> {
        stored(&storage.load().await.map_err(StorageError::new)?)
    }

    /// From the reply to a sign-in; `None` if the reply has no token.
    pub(crate) fn from_reply(reply: SessionReply) -> Option<Self> {
        let SessionReply { user_id, device_id, session_id, token, expires_at, .. } = reply;
        Some(Self { user_id, device_id, session_id, expires_at, token: token?, life_s: 0, ended: false })
    }

    /// The successor that `session.renew` has made.
    pub(crate) fn renewed(&self, reply: RenewSessionReply) -> Self {
        let RenewSessionReply { token, expires_at, session_id } = reply;
        Self { session_id, expires_at, token, life_s: 0, ended: false, ..*self }
    }

    /// The token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Whether a client has learned that the session is not valid any more. Sign in, naming
    /// [`device_id`](Self::device_id) to keep the device.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Marks the session as ended.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// The record to keep.
    pub(crate) fn record(&self) -> Record {
        // All parts are text and numbers.
        let value = serde_json::to_vec(self).unwrap_or_default();
        Record { key: KEY.to_owned(), value }
    }

    /// How long to wait before the session is renewed: until less than half of its life is left. `server_time` is the time
    /// on the server's clock, which the client's own may differ from.
    pub(crate) fn renew_in(&mut self, server_time: Timestamp) -> Duration {
        let left = self.expires_at.since(server_time);
        self.life_s = self.life_s.max(left.as_secs());
        left.saturating_sub(Duration::from_secs(self.life_s / 2))
    }
}

/// The session among the records of a storage.
pub(crate) fn stored(records: &[Record]) -> Result<Option<Session>, StorageError> {
    let Some(record) = records.iter().find(|record| record.key == KEY) else { return Ok(None) };
    serde_json::from_slice(&record.value).map(Some).map_err(StorageError::new)
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("user_id", &self.user_id)
            .field("device_id", &self.device_id)
            .field("session_id", &self.session_id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use sealwire_protocol::ids::{DeviceId, SessionId, UserId};
    use uuid::Uuid;

    use super::*;
    use crate::MemoryStorage;

    const DAY: Duration = Duration::from_hours(24);

    fn session(expires_at: Timestamp) -> Session {
        let id = Uuid::from_u128(1);
        let reply = SessionReply {
            user_id: UserId(id),
            device_id: DeviceId(id),
            session_id: SessionId(id),
            token: Some("secret".to_owned()),
            expires_at,
        };
        Session::from_reply(reply).unwrap()
    }

    #[test]
    fn a_session_is_renewed_when_half_of_its_life_is_over() {
        let opened = Timestamp::parse("2026-06-01T12:00:00Z").unwrap();
        let mut session = session(opened + 30 * DAY);
        assert_eq!(session.renew_in(opened), 15 * DAY);
        assert_eq!(session.renew_in(opened + 14 * DAY), DAY);
        assert_eq!(session.renew_in(opened + 16 * DAY), Duration::ZERO);
        assert_eq!(session.renew_in(opened + 40 * DAY), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_stored_session_is_found_again_and_does_not_show_its_token() {
        let storage = MemoryStorage::new();
        assert_eq!(Session::load(&storage).await.unwrap(), None);
        let session = session(Timestamp::parse("2026-06-01T12:00:00Z").unwrap());
        storage.save(session.record()).await.unwrap();
        assert_eq!(Session::load(&storage).await.unwrap().as_ref(), Some(&session));
        assert!(!format!("{session:?}").contains("secret"));
    }
}
