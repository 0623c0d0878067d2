//! Access settings and blocks.

use super::Service;
use crate::domain::{Caller, Refusal, UserId, access::NewAccess};

impl Service {
    /// Replaces the access settings of the caller's user.
    ///
    /// # Errors
    /// `session_revoked`, `device_too_new`
    pub async fn set_access(&self, caller: &Caller, new: &NewAccess) -> Result<(), Refusal> {
        Ok(self.store.set_access(caller, new, self.now()).await?)
    }

    /// Drops messages from `blocked` to the caller's user from now on.
    ///
    /// # Errors
    /// `session_revoked`; `bad_request` if it is the caller's own user, or if too many users are blocked.
    pub async fn add_block(&self, caller: &Caller, blocked: UserId) -> Result<(), Refusal> {
        if blocked == caller.user {
            return Err(Refusal::InvalidField { path: "user_id".into(), expected: "another user than your own" });
        }
        Ok(self.store.add_block(caller, blocked, self.now()).await?)
    }

    /// Accepts messages from a user again.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn remove_block(&self, caller: &Caller, blocked: UserId) -> Result<(), Refusal> {
        Ok(self.store.remove_block(caller, blocked, self.now()).await?)
    }

    /// Returns the users that the caller's user has blocked, in the order of their ids.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn blocks(&self, caller: &Caller) -> Result<Vec<UserId>, Refusal> {
        Ok(self.store.blocks(caller, self.now()).await?)
    }
}
