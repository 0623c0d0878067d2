//! Access settings and blocks of users.

use uuid::Uuid;

use super::{Store, StoreError, locks, rows, sessions, sql::access as sql};
use crate::domain::{
    AccessKey, AccessSettings, Caller, Refusal, Timestamp, UserId,
    access::{MAX_BLOCKS, NewAccess, Strangers},
};

/// The columns of [`AccessSettings`].
pub(super) fn settings(key: Option<Vec<u8>>, strangers: &str) -> Result<AccessSettings, StoreError> {
    let wrong = |what: &str| rows::corrupt(what.into());
    let key = key.map(|key| key.try_into().map(AccessKey).map_err(|_| wrong("the length of an access key")));
    let strangers = Strangers::parse(strangers).ok_or_else(|| wrong("what strangers may do"))?;
    Ok(AccessSettings { key: key.transpose()?, strangers })
}

impl Store {
    /// Replaces the access settings of the caller's user.
    ///
    /// # Errors
    /// `session_revoked`, `device_too_new`
    pub async fn set_access(&self, caller: &Caller, new: &NewAccess, now: Timestamp) -> Result<(), StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::user(&mut tx, caller.user).await?;
            sessions::authorize(&mut tx, caller, now).await?;
            self.require_old_enough(&mut tx, caller, now).await?;
            tx.query(sql::SET_ACCESS)
                .bind(caller.user.0)
                .bind(new.settings.key.as_ref().map(|key| key.0.to_vec()))
                .bind(new.settings.strangers.name())
                .bind(new.sealed)
                .execute()
                .await?;
            tx.commit().await
        })
        .await
    }

    /// Blocks a user for the caller's user. Does nothing if it is blocked.
    ///
    /// # Errors
    /// `session_revoked`; `bad_request` if [`MAX_BLOCKS`] users are blocked.
    pub async fn add_block(&self, caller: &Caller, blocked: UserId, now: Timestamp) -> Result<(), StoreError> {
        self.change_block(caller, blocked, true, now).await
    }

    /// Ends a block of the caller's user. Does nothing if there is none.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn remove_block(&self, caller: &Caller, blocked: UserId, now: Timestamp) -> Result<(), StoreError> {
        self.change_block(caller, blocked, false, now).await
    }

    async fn change_block(
        &self,
        caller: &Caller,
        blocked: UserId,
        is_added: bool,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let (text, change) = if is_added { (sql::INSERT_BLOCK, 1) } else { (sql::DELETE_BLOCK, -1) };
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::user(&mut tx, caller.user).await?;
            sessions::authorize(&mut tx, caller, now).await?;
            if tx.query(text).bind(caller.user.0).bind(blocked.0).execute().await? == 0 {
                return Ok(());
            }
            let counted = tx
                .query(sql::COUNT_BLOCKS)
                .bind(caller.user.0)
                .bind(change)
                .bind(i64::try_from(MAX_BLOCKS).unwrap_or(i64::MAX))
                .execute()
                .await?;
            if counted == 0 {
                return Err(
                    Refusal::InvalidField { path: "user_id".into(), expected: "at most 10000 blocked users" }.into()
                );
            }
            tx.commit().await
        })
        .await
    }

    /// The users that the caller's user has blocked, in the order of their ids.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn blocks(&self, caller: &Caller, now: Timestamp) -> Result<Vec<UserId>, StoreError> {
        let mut tx = self.read().await?;
        sessions::authorize(&mut tx, caller, now).await?;
        let found: Vec<(Uuid,)> = tx.query(sql::BLOCKS).bind(caller.user.0).fetch_all().await?;
        Ok(found.into_iter().map(|(id,)| UserId(id)).collect())
    }
}
