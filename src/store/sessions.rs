//! Looking up, renewing and ending sessions.
//!
//! `sessions.replaces` of a renewed session is the session that it replaces. When the renewed token is first presented,
//! one transaction deletes that session and clears the column.
//!
//! The hash of an ended session's token is kept with the reason, so that a client with an invalid token learns whether
//! to sign in again or to wipe its data.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    BatchItem, BatchOutcome, Store, StoreError, accounts,
    error::fail_all,
    locks, rows,
    sql::{Sql, accounts as sql},
    tx::{Column, Query, Tx},
};
use crate::domain::{
    Caller, DeviceId, Refusal, Session, SessionId, Timestamp, UserId, refusal::InvalidTokenReason, token::TokenHash,
};

/// Number of ended sessions of a device that are kept when it renews or ends a session, so that a client that renews in
/// a loop does not fill the table.
const ENDED_PER_DEVICE: i64 = 200;

/// Maximum number of sessions of a device when it signs in again, renewals that replace another included. Beyond it the
/// oldest end. With the limit on devices it bounds a user's sessions.
pub(super) const MAX_PER_DEVICE: i64 = 30;

/// A session to insert.
pub struct NewSession {
    /// The id of the new session.
    pub id: SessionId,
    /// The hash of its token.
    pub token_hash: TokenHash,
    /// When it expires.
    pub expires_at: Timestamp,
}

/// A token to look up.
#[derive(Clone, Copy)]
pub struct TokenLookup {
    /// The hash of the token.
    pub hash: TokenHash,
    /// The current time.
    pub now: Timestamp,
}

impl BatchItem for TokenLookup {
    fn user(&self) -> Option<UserId> {
        None
    }
}

/// The valid session of a token.
#[derive(Clone, Copy)]
pub struct FoundSession {
    session: Session,
    /// The session that it replaces, if its token was never presented.
    replaces: Option<Uuid>,
    /// Whether an approval opened it, and its token was never presented.
    is_from_approval: bool,
}

impl FoundSession {
    /// The user of the session.
    #[must_use]
    pub fn user(&self) -> UserId {
        self.session.caller.user
    }

    /// The session if its token was presented before, so that presenting it again changes nothing.
    #[must_use]
    pub fn presented_before(&self) -> Option<Session> {
        (self.replaces.is_none() && !self.is_from_approval).then_some(self.session)
    }
}

/// The result of [`Store::present`].
pub struct PresentedSession {
    /// The session of the token.
    pub session: Session,
    /// The session that this presentation ended.
    pub superseded: Option<SessionId>,
}

/// A valid session of a user. A session and the renewal that replaces it are one: that of the renewal.
pub struct SessionRecord {
    /// The session.
    pub id: SessionId,
    /// Its device.
    pub device: DeviceId,
    /// When it was opened.
    pub created_at: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
    /// When its device last connected or disconnected.
    pub last_seen: Option<Timestamp>,
    /// Whether it is the caller's.
    pub is_current: bool,
}

/// Sessions that were ended: one, or a pair of a session and its renewal.
pub struct EndedSessions {
    /// Their device.
    pub device: DeviceId,
    /// The sessions.
    pub sessions: Vec<SessionId>,
    /// The active devices of their user.
    pub devices: Vec<DeviceId>,
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

/// Ends the oldest sessions of a device that is about to get one more, if it has [`MAX_PER_DEVICE`]. Returns those that
/// ended.
pub(super) async fn make_room(tx: &mut Tx<'_>, device: DeviceId, now: Timestamp) -> Result<Vec<SessionId>, StoreError> {
    let keep = MAX_PER_DEVICE - 1;
    let reason = InvalidTokenReason::LoggedOut.name();
    tx.query(sql::RECORD_OLDER_SESSIONS).bind(reason).bind(now.to_utc()).bind(device.0).bind(keep).execute().await?;
    let ended: Vec<(Uuid,)> = tx.query(sql::DELETE_OLDER_SESSIONS).bind(device.0).bind(keep).fetch_all().await?;
    if !ended.is_empty() {
        delete_older_ended(tx, device).await?;
    }
    Ok(ids(ended))
}

fn ids(rows: Vec<(Uuid,)>) -> Vec<SessionId> {
    rows.into_iter().map(|(id,)| SessionId(id)).collect()
}

/// Ends a session of a device, and the session that it replaces or that replaces it. Returns both.
async fn end_pair(
    tx: &mut Tx<'_>,
    device: DeviceId,
    session: SessionId,
    now: Timestamp,
) -> Result<Vec<SessionId>, StoreError> {
    record_ended(tx, sql::RECORD_PAIR, InvalidTokenReason::LoggedOut, now, [device.0, session.0]).await?;
    delete_older_ended(tx, device).await?;
    Ok(ids(tx.query(sql::DELETE_PAIR).bind(device.0).bind(session.0).fetch_all().await?))
}

/// Ends all sessions of a device that is being revoked, and returns them. The reason also replaces that of its earlier
/// sessions.
pub(super) async fn end_sessions_of_device(
    tx: &mut Tx<'_>,
    device: DeviceId,
    now: Timestamp,
) -> Result<Vec<SessionId>, StoreError> {
    for text in [sql::UPDATE_ENDED_OF_DEVICE, sql::RECORD_SESSIONS_OF_DEVICE] {
        record_ended(tx, text, InvalidTokenReason::DeviceRevoked, now, [device.0]).await?;
    }
    Ok(ids(tx.query(sql::DELETE_SESSIONS_OF_DEVICE).bind(device.0).fetch_all().await?))
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
    /// Finds the sessions of tokens, in the order of the tokens: `None` for one without a valid session.
    pub async fn look_up_tokens(&self, tokens: Vec<TokenLookup>) -> Vec<Result<Option<FoundSession>, StoreError>> {
        let outcome = self.run_batch("tokens", &tokens, |tokens, _| async {
            let answers = self.find_sessions(tokens).await?.into_iter().map(Ok).collect();
            Ok(BatchOutcome { answers, signals: Vec::new() })
        });
        outcome.await.map_or_else(|error| fail_all(&error, tokens.len()), |outcome| outcome.answers)
    }

    async fn find_sessions(&self, tokens: &[TokenLookup]) -> Result<Vec<Option<FoundSession>>, StoreError> {
        type TokenRow = (i64, Uuid, Uuid, Uuid, DateTime<Utc>, Option<Uuid>, DateTime<Utc>, Option<Uuid>);
        let Some(now) = tokens.iter().map(|token| token.now).max() else { return Ok(Vec::new()) };
        let rows: Vec<TokenRow> = self
            .read()
            .await?
            .query(sql::SESSIONS_BY_TOKENS)
            .bind_rows([
                Column::Integers((0..).take(tokens.len()).collect()),
                Column::Texts(tokens.iter().map(|token| rows::hash_to_hex(&token.hash)).collect()),
            ])
            .bind(now.to_utc())
            .fetch_packed()
            .await?;
        let mut found = vec![None; tokens.len()];
        for (place, id, user, device, expires_at, replaces, user_since, approval) in rows {
            let caller = Caller {
                session: SessionId(id),
                user: UserId(user),
                device: DeviceId(device),
                user_since: rows::time(user_since),
            };
            let session = Session { caller, expires_at: rows::time(expires_at) };
            if let Some(wanted) = usize::try_from(place).ok().and_then(|place| found.get_mut(place)) {
                *wanted = Some(FoundSession { session, replaces, is_from_approval: approval.is_some() });
            }
        }
        Ok(found)
    }

    /// Presents a token. The first presentation of a renewed token ends the session that it replaces.
    ///
    /// # Errors
    /// `unauthorized` with the reason if no valid session has this token.
    pub async fn present(&self, token: &TokenHash, now: Timestamp) -> Result<PresentedSession, StoreError> {
        let found = self.find_sessions(&[TokenLookup { hash: *token, now }]).await?.pop().flatten();
        self.present_found(token, found, now).await
    }

    /// Presents a token whose session was looked up.
    ///
    /// # Errors
    /// Those of [`Self::present`]
    pub async fn present_found(
        &self,
        token: &TokenHash,
        found: Option<FoundSession>,
        now: Timestamp,
    ) -> Result<PresentedSession, StoreError> {
        let Some(FoundSession { session, replaces, is_from_approval }) = found else {
            return Err(Refusal::Unauthorized(why_invalid(&mut self.read().await?, token).await?).into());
        };
        let caller = session.caller;
        if is_from_approval {
            self.note_presented(&caller).await?;
        }
        let superseded = match replaces {
            Some(replaced) => self.supersede(&caller, token, replaced, now).await?,
            None => None,
        };
        Ok(PresentedSession { session, superseded })
    }

    /// Notes that the token of a session that an approval opened was presented, so that no poll gets it again.
    async fn note_presented(&self, caller: &Caller) -> Result<(), StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            tx.query(sql::CLEAR_APPROVAL).bind(caller.session.0).execute().await?;
            tx.commit().await
        })
        .await
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

    /// Ends the caller's session and the session that it replaces or that replaces it.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn end_session(&self, caller: &Caller, now: Timestamp) -> Result<EndedSessions, StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::device(&mut tx, caller.device).await?;
            authorize(&mut tx, caller, now).await?;
            let sessions = end_pair(&mut tx, caller.device, caller.session, now).await?;
            let devices = accounts::active_ids(&mut tx, caller.user).await?;
            tx.commit().await?;
            Ok(EndedSessions { device: caller.device, sessions, devices })
        })
        .await
    }

    /// The valid sessions of the caller's user, oldest first: at most 30 of each device.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn list_sessions(&self, caller: &Caller, now: Timestamp) -> Result<Vec<SessionRecord>, StoreError> {
        type SessionRow = (Uuid, Uuid, DateTime<Utc>, DateTime<Utc>, Option<Uuid>, Option<DateTime<Utc>>);
        let mut tx = self.read().await?;
        authorize(&mut tx, caller, now).await?;
        let found: Vec<SessionRow> =
            tx.query(sql::SESSIONS_OF_USER).bind(caller.user.0).bind(now.to_utc()).fetch_all().await?;
        let replaced: HashSet<Uuid> = found.iter().filter_map(|row| row.4).collect();
        let newest = found.into_iter().filter(|row| !replaced.contains(&row.0));
        let record = |(id, device, created_at, expires_at, replaces, last_seen): SessionRow| SessionRecord {
            id: SessionId(id),
            device: DeviceId(device),
            created_at: rows::time(created_at),
            expires_at: rows::time(expires_at),
            last_seen: last_seen.map(rows::time),
            is_current: id == caller.session.0 || replaces == Some(caller.session.0),
        };
        Ok(newest.map(record).collect())
    }

    /// Ends a session of the caller's user and the session that it replaces or that replaces it.
    ///
    /// # Errors
    /// `session_revoked`, `not_found`; `device_too_new` for a session of another device
    pub async fn end_session_of_user(
        &self,
        caller: &Caller,
        session: SessionId,
        now: Timestamp,
    ) -> Result<EndedSessions, StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::user(&mut tx, caller.user).await?;
            authorize(&mut tx, caller, now).await?;
            let statement = tx.query(sql::DEVICE_OF_SESSION).bind(session.0).bind(caller.user.0).bind(now.to_utc());
            let device: Option<(Uuid,)> = statement.fetch_optional().await?;
            let device = DeviceId(device.ok_or(Refusal::NotFound)?.0);
            self.may_disturb(&mut tx, caller, device, now).await?;
            let sessions = end_pair(&mut tx, device, session, now).await?;
            let devices = accounts::active_ids(&mut tx, caller.user).await?;
            tx.commit().await?;
            Ok(EndedSessions { device, sessions, devices })
        })
        .await
    }
}
