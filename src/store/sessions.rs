//! Looking up, renewing and ending sessions.
//!
//! `sessions.replaces` of a renewed session is the session that it replaces. When the renewed token is first presented,
//! one transaction deletes that session and clears the column.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Store, StoreError, locks, rows, sql::accounts as sql, tx::Tx};
use crate::domain::{Caller, DeviceId, Refusal, Session, SessionId, Timestamp, UserId, token::TokenHash};

/// A session to insert.
pub struct NewSession {
    /// The id of the new session.
    pub id: SessionId,
    /// The hash of its token.
    pub token_hash: TokenHash,
    /// When it expires.
    pub expires_at: Timestamp,
}

/// The result of [`Store::present`].
pub struct PresentedSession {
    /// The session of the token.
    pub session: Session,
    /// The session that this presentation ended.
    pub superseded: Option<SessionId>,
}

/// Checks that the caller's session is valid. Returns the session that it replaces, if its token was never presented.
///
/// # Errors
/// `session_revoked`
pub(super) async fn authorize(tx: &mut Tx<'_>, caller: &Caller, now: Timestamp) -> Result<Option<Uuid>, StoreError> {
    let row: Option<(Option<Uuid>,)> = tx
        .query(sql::AUTHORIZE)
        .bind(caller.session.0)
        .bind(caller.device.0)
        .bind(now.to_utc())
        .fetch_optional()
        .await?;
    Ok(row.ok_or(Refusal::SessionRevoked)?.0)
}

/// Inserts a session of the caller's user and device.
pub(super) async fn insert(
    tx: &mut Tx<'_>,
    caller: &Caller,
    new: &NewSession,
    now: Timestamp,
    replaces: Option<Uuid>,
) -> Result<(), StoreError> {
    tx.query(sql::INSERT_SESSION)
        .bind(new.id.0)
        .bind(caller.user.0)
        .bind(caller.device.0)
        .bind(rows::hash_to_hex(&new.token_hash))
        .bind(new.expires_at.to_utc())
        .bind(now.to_utc())
        .bind(replaces)
        .execute()
        .await?;
    Ok(())
}

async fn is_valid(tx: &mut Tx<'_>, session: Uuid, now: Timestamp) -> Result<bool, StoreError> {
    let row: Option<(i32,)> = tx.query(sql::SESSION_IS_VALID).bind(session).bind(now.to_utc()).fetch_optional().await?;
    Ok(row.is_some())
}

impl Store {
    /// Finds the session of a token. The first presentation of a renewed token ends the session that it replaces.
    ///
    /// # Errors
    /// `unauthorized` if no valid session has this token.
    pub async fn present(&self, token: &TokenHash, now: Timestamp) -> Result<PresentedSession, StoreError> {
        type TokenSessionRow = (Uuid, Uuid, Uuid, DateTime<Utc>, Option<Uuid>);
        let found: Option<TokenSessionRow> = self
            .read()
            .await?
            .query(sql::SESSION_BY_TOKEN)
            .bind(rows::hash_to_hex(token))
            .bind(now.to_utc())
            .fetch_optional()
            .await?;
        let (id, user, device, expires_at, replaces) = found.ok_or(Refusal::Unauthorized)?;
        let caller = Caller { session: SessionId(id), user: UserId(user), device: DeviceId(device) };
        let session = Session { caller, expires_at: rows::time(expires_at) };
        let superseded = match replaces {
            Some(replaced) => self.supersede(&caller, replaced, now).await?,
            None => None,
        };
        Ok(PresentedSession { session, superseded })
    }

    /// Ends the session that the caller's replaces. Returns it if this call is the one that ended it.
    async fn supersede(
        &self,
        caller: &Caller,
        replaced: Uuid,
        now: Timestamp,
    ) -> Result<Option<SessionId>, StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::device(&mut tx, caller.device).await?;
            let cleared = tx.query(sql::CLEAR_REPLACES).bind(caller.session.0).execute().await?;
            let ended = if cleared == 1 {
                tx.query(sql::DELETE_SESSION).bind(replaced).execute().await?
            } else {
                // A parallel request or a logout was first; the session may have been deleted.
                if !is_valid(&mut tx, caller.session.0, now).await? {
                    return Err(Refusal::Unauthorized.into());
                }
                0
            };
            tx.commit().await?;
            Ok((ended == 1).then_some(SessionId(replaced)))
        })
        .await
    }

    /// Checks that the caller's session is valid.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn check_session(&self, caller: &Caller, now: Timestamp) -> Result<(), StoreError> {
        authorize(&mut self.read().await?, caller, now).await.map(drop)
    }

    /// Inserts the renewed session of the caller's. An earlier renewal whose token was never presented is deleted.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn renew_session(&self, caller: &Caller, new: &NewSession, now: Timestamp) -> Result<(), StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::device(&mut tx, caller.device).await?;
            // If the caller's session is itself a renewal that was never presented, the new one replaces the original
            // session.
            let base = match authorize(&mut tx, caller, now).await? {
                Some(older) if is_valid(&mut tx, older, now).await? => older,
                _ => caller.session.0,
            };
            tx.query(sql::DELETE_SUCCESSOR).bind(base).bind(caller.device.0).execute().await?;
            insert(&mut tx, caller, new, now, Some(base)).await?;
            tx.commit().await
        })
        .await
    }

    /// Ends the caller's session and the session that it replaces or that replaces it. Returns the sessions that ended.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn end_session(&self, caller: &Caller, now: Timestamp) -> Result<Vec<SessionId>, StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::device(&mut tx, caller.device).await?;
            authorize(&mut tx, caller, now).await?;
            let ended: Vec<(Uuid,)> =
                tx.query(sql::DELETE_PAIR).bind(caller.device.0).bind(caller.session.0).fetch_all().await?;
            tx.commit().await?;
            Ok(ended.into_iter().map(|(id,)| SessionId(id)).collect())
        })
        .await
    }
}
