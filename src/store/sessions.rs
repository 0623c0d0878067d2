//! Looking up, renewing and ending sessions.
//!
//! `sessions.replaces` of a renewed session is the session that it replaces. When the renewed token is first presented,
//! one transaction deletes that session and clears the column.
//!
//! The hash of an ended session's token is kept with the reason, so that a client with an invalid token learns whether
//! to sign in again or to wipe its data.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Store, StoreError, locks, rows,
    sql::{Sql, accounts as sql},
    tx::{Query, Tx},
};
use crate::domain::{
    Caller, DeviceId, Refusal, Session, SessionId, Timestamp, UserId, refusal::InvalidTokenReason, token::TokenHash,
};

/// Number of ended sessions of a device that are kept when it renews or ends a session, so that a client that renews in
/// a loop does not fill the table.
const ENDED_PER_DEVICE: i64 = 200;

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

/// Whether a session exists and has not expired. Does not check its device.
async fn is_valid(tx: &mut Tx<'_>, session: Uuid, now: Timestamp) -> Result<bool, StoreError> {
    let row: Option<(i32,)> = tx.query(sql::SESSION_IS_VALID).bind(session).bind(now.to_utc()).fetch_optional().await?;
    Ok(row.is_some())
}

/// Records why sessions end or ended. `text` takes the reason, the time and the `ids` that select the sessions. It runs
/// before the sessions are deleted, because it reads their token hashes.
async fn record_ended<const N: usize>(
    tx: &mut Tx<'_>,
    text: Sql,
    reason: InvalidTokenReason,
    now: Timestamp,
    ids: [Uuid; N],
) -> Result<(), StoreError> {
    let statement = tx.query(text).bind(reason.name()).bind(now.to_utc());
    ids.into_iter().fold(statement, Query::bind).execute().await?;
    Ok(())
}

/// Deletes all but the newest [`ENDED_PER_DEVICE`] ended sessions of a device.
async fn delete_older_ended(tx: &mut Tx<'_>, device: DeviceId) -> Result<(), StoreError> {
    tx.query(sql::DELETE_OLDER_ENDED).bind(device.0).bind(ENDED_PER_DEVICE).execute().await?;
    Ok(())
}

/// Ends all sessions of a device that is being revoked. The reason also replaces that of its earlier sessions.
pub(super) async fn end_sessions_of_device(
    tx: &mut Tx<'_>,
    device: DeviceId,
    now: Timestamp,
) -> Result<(), StoreError> {
    for text in [sql::UPDATE_ENDED_OF_DEVICE, sql::RECORD_SESSIONS_OF_DEVICE] {
        record_ended(tx, text, InvalidTokenReason::DeviceRevoked, now, [device.0]).await?;
    }
    tx.query(sql::DELETE_SESSIONS_OF_DEVICE).bind(device.0).execute().await?;
    Ok(())
}

/// Records the end of all sessions of a user. Called before the user is deleted, because that deletes the sessions too.
/// The reason also replaces that of the user's earlier sessions.
pub(super) async fn record_deletion(tx: &mut Tx<'_>, user: UserId, now: Timestamp) -> Result<(), StoreError> {
    for text in [sql::UPDATE_ENDED_OF_USER, sql::RECORD_SESSIONS_OF_USER] {
        record_ended(tx, text, InvalidTokenReason::AccountDeleted, now, [user.0]).await?;
    }
    Ok(())
}

/// Why a token without a valid session is invalid.
async fn why_invalid(tx: &mut Tx<'_>, token: &TokenHash) -> Result<InvalidTokenReason, StoreError> {
    let reason: Option<(String,)> = tx.query(sql::WHY_INVALID).bind(rows::hash_to_hex(token)).fetch_optional().await?;
    Ok(reason.and_then(|(name,)| InvalidTokenReason::parse(&name)).unwrap_or(InvalidTokenReason::Unknown))
}

impl Store {
    /// Finds the session of a token. The first presentation of a renewed token ends the session that it replaces.
    ///
    /// # Errors
    /// `unauthorized` with the reason if no valid session has this token.
    pub async fn present(&self, token: &TokenHash, now: Timestamp) -> Result<PresentedSession, StoreError> {
        type TokenSessionRow = (Uuid, Uuid, Uuid, DateTime<Utc>, Option<Uuid>, DateTime<Utc>);
        let mut tx = self.read().await?;
        let found: Option<TokenSessionRow> =
            tx.query(sql::SESSION_BY_TOKEN).bind(rows::hash_to_hex(token)).bind(now.to_utc()).fetch_optional().await?;
        let Some((id, user, device, expires_at, replaces, user_since)) = found else {
            return Err(Refusal::Unauthorized(why_invalid(&mut tx, token).await?).into());
        };
        // Returns the connection to the pool, because `supersede` takes another.
        drop(tx);
        let caller = Caller {
            session: SessionId(id),
            user: UserId(user),
            device: DeviceId(device),
            user_since: rows::time(user_since),
        };
        let session = Session { caller, expires_at: rows::time(expires_at) };
        let superseded = match replaces {
            Some(replaced) => self.supersede(&caller, token, replaced, now).await?,
            None => None,
        };
        Ok(PresentedSession { session, superseded })
    }

    /// Ends the session that the caller's session replaces. Returns it if this call ended it.
    async fn supersede(
        &self,
        caller: &Caller,
        token: &TokenHash,
        replaced: Uuid,
        now: Timestamp,
    ) -> Result<Option<SessionId>, StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::device(&mut tx, caller.device).await?;
            let cleared = tx.query(sql::CLEAR_REPLACES).bind(caller.session.0).execute().await?;
            let ended = if cleared == 1 {
                record_ended(&mut tx, sql::RECORD_SESSION, InvalidTokenReason::Superseded, now, [replaced]).await?;
                delete_older_ended(&mut tx, caller.device).await?;
                tx.query(sql::DELETE_SESSION).bind(replaced).execute().await?
            } else {
                // A parallel presentation has cleared the column, or a logout has deleted the caller's session.
                if !is_valid(&mut tx, caller.session.0, now).await? {
                    return Err(Refusal::Unauthorized(why_invalid(&mut tx, token).await?).into());
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

    /// Inserts the session that replaces the caller's. An earlier renewal whose token was never presented ends.
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
            let successor = [base, caller.device.0];
            record_ended(&mut tx, sql::RECORD_SUCCESSOR, InvalidTokenReason::Superseded, now, successor).await?;
            delete_older_ended(&mut tx, caller.device).await?;
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
            let pair = [caller.device.0, caller.session.0];
            record_ended(&mut tx, sql::RECORD_PAIR, InvalidTokenReason::LoggedOut, now, pair).await?;
            delete_older_ended(&mut tx, caller.device).await?;
            let ended: Vec<(Uuid,)> =
                tx.query(sql::DELETE_PAIR).bind(caller.device.0).bind(caller.session.0).fetch_all().await?;
            tx.commit().await?;
            Ok(ended.into_iter().map(|(id,)| SessionId(id)).collect())
        })
        .await
    }
}
