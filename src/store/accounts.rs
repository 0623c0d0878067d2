//! Challenges, users and sessions.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{SWEEP_STEP, Store, StoreError, authorize, read, rows, serialize, sql, transaction};
use crate::domain::{
    Caller, ChallengeId, DeviceId, Email, Refusal, Session, SessionId, Timestamp, UserId, otp, refusal::DeviceChoice,
    token::TokenHash,
};

/// Keyed hash of the network from which a challenge was asked for.
pub type NetworkTag = [u8; 32];

/// A challenge to be written.
pub struct NewChallenge {
    /// Its id.
    pub id: ChallengeId,
    /// For whom.
    pub email: Email,
    /// Keyed hash of the code.
    pub hash: [u8; 32],
    /// From where.
    pub network: NetworkTag,
    /// Now.
    pub created_at: Timestamp,
}

/// An earlier challenge of the same address, of the last day.
pub struct PastChallenge {
    /// When it was made.
    pub created_at: Timestamp,
    /// From where.
    pub network: Vec<u8>,
}

/// The session that a sign-in or a renewal opens.
pub struct NewSession {
    /// Its id.
    pub id: SessionId,
    /// Hash of its token.
    pub token_hash: TokenHash,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// The device that a sign-in makes unless it names an existing one.
pub struct NewDevice {
    /// Its id.
    pub id: DeviceId,
    /// For people.
    pub name: Option<String>,
    /// For the client's library.
    pub registration_id: u32,
}

/// A sign-in whose code was right.
pub struct SignIn {
    /// The challenge.
    pub challenge: ChallengeId,
    /// Its address.
    pub email: Email,
    /// Used if the address is new.
    pub new_user: UserId,
    /// The device that signs in again, if it names itself.
    pub existing_device: Option<DeviceId>,
    /// Otherwise the one to make.
    pub new_device: NewDevice,
    /// A device to revoke in exchange.
    pub replace: Option<DeviceId>,
    /// Active devices that a user may have.
    pub max_devices: usize,
    /// The session to open.
    pub session: NewSession,
    /// Now.
    pub now: Timestamp,
}

/// What a sign-in did.
pub struct Redemption {
    /// Whose session it is.
    pub caller: Caller,
    /// Whether the user existed before and got a new device.
    pub added_to_known_user: bool,
    /// Whether a device was made.
    pub device_is_new: bool,
    /// The user's other active devices, without the new and the replaced one.
    pub others: Vec<DeviceId>,
}

/// What presenting a token found.
pub struct Presented {
    /// The session.
    pub session: Session,
    /// The session that this presentation ended.
    pub superseded: Option<SessionId>,
}

impl Store {
    /// Writes a challenge unless `wait` finds, in the address's challenges of the last day (newest first), that it must
    /// wait.
    ///
    /// # Errors
    /// `rate_limited`, and the store's own.
    pub async fn create_challenge(
        &self,
        new: &NewChallenge,
        wait: impl Fn(&[PastChallenge]) -> Option<Duration>,
    ) -> Result<(), StoreError> {
        let day_ago = new.created_at.before(Duration::from_hours(24));
        transaction!(self, |tx| {
            serialize!(self, tx, [sql::SERIALIZE_EMAIL], new.email.as_str());
            let past: Vec<(DateTime<Utc>, Vec<u8>)> = sqlx::query_as(sql::CHALLENGES_OF)
                .bind(new.email.as_str())
                .bind(day_ago.to_utc())
                .fetch_all(&mut *tx)
                .await?;
            let past: Vec<_> = past
                .into_iter()
                .map(|(created_at, network)| PastChallenge { created_at: rows::time(created_at), network })
                .collect();
            if let Some(retry_after) = wait(&past) {
                return Err(Refusal::RateLimited { retry_after }.into());
            }
            sqlx::query(sql::INSERT_CHALLENGE)
                .bind(new.id.0)
                .bind(new.email.as_str())
                .bind(&new.hash[..])
                .bind((new.created_at + otp::LIFETIME).to_utc())
                .bind(new.created_at.to_utc())
                .bind(&new.network[..])
                .execute(&mut *tx)
                .await?;
        });
        Ok(())
    }

    /// Counts a guess, in a transaction of its own, and gives the hash to compare it with.
    ///
    /// # Errors
    /// `invalid_code` and `too_many_attempts`, where nothing was counted.
    pub async fn count_attempt(
        &self,
        challenge: ChallengeId,
        email: &Email,
        now: Timestamp,
    ) -> Result<Vec<u8>, StoreError> {
        let hash = transaction!(self, |tx| {
            let row: Option<(bool, DateTime<Utc>, i32)> = sqlx::query_as(sql::CHALLENGE_FOR_UPDATE.on(self))
                .bind(challenge.0)
                .bind(email.as_str())
                .fetch_optional(&mut *tx)
                .await?;
            let (used, expires_at, attempts) = row.ok_or(Refusal::InvalidCode)?;
            if used || rows::time(expires_at) <= now {
                return Err(Refusal::InvalidCode.into());
            }
            if attempts >= otp::MAX_ATTEMPTS {
                return Err(Refusal::TooManyAttempts.into());
            }
            let counted: Option<(Vec<u8>,)> = sqlx::query_as(sql::COUNT_ATTEMPT)
                .bind(challenge.0)
                .bind(now.to_utc())
                .bind(otp::MAX_ATTEMPTS)
                .fetch_optional(&mut *tx)
                .await?;
            counted.ok_or(Refusal::TooManyAttempts)?.0
        });
        Ok(hash)
    }

    /// Turns a right code into a session. Where the devices stand against it, the attempt is given back and the code
    /// stays usable.
    ///
    /// # Errors
    /// `invalid_code` where a parallel sign-in used the code first, `device_limit`, `unknown_device`.
    pub async fn redeem(&self, sign_in: &SignIn) -> Result<Redemption, StoreError> {
        // The refund has to be committed, so the refusal travels out of the transaction as a value.
        let outcome = transaction!(self, |tx| {
            let used = sqlx::query(sql::USE_CHALLENGE).bind(sign_in.challenge.0).execute(&mut *tx).await?;
            if used.rows_affected() == 0 {
                return Err(Refusal::InvalidCode.into());
            }
            let known: Option<(Uuid,)> =
                sqlx::query_as(sql::USER_BY_EMAIL).bind(sign_in.email.as_str()).fetch_optional(&mut *tx).await?;
            if known.is_none() && (sign_in.existing_device.is_some() || sign_in.replace.is_some()) {
                // Nobody's device can be meant, and no user is made for a refusal.
                sqlx::query(sql::REFUND_ATTEMPT).bind(sign_in.challenge.0).execute(&mut *tx).await?;
                return Ok(Err(Refusal::UnknownDevice));
            }
            let (user,): (Uuid,) = sqlx::query_as(sql::UPSERT_USER)
                .bind(sign_in.new_user.0)
                .bind(sign_in.email.as_str())
                .bind(sign_in.now.to_utc())
                .fetch_one(&mut *tx)
                .await?;
            let user = UserId(user);
            serialize!(self, tx, sql::SERIALIZE_USER, user.0);
            let active: Vec<rows::DeviceRow> =
                sqlx::query_as(sql::ACTIVE_DEVICES).bind(user.0).fetch_all(&mut *tx).await?;
            let owns = |device: DeviceId| active.iter().any(|row| row.0 == device.0);
            let after_replacement = active.len() - usize::from(sign_in.replace.is_some_and(owns));
            let refusal = if !sign_in.existing_device.into_iter().chain(sign_in.replace).all(owns) {
                Some(Refusal::UnknownDevice)
            } else if sign_in.existing_device.is_none() && after_replacement >= sign_in.max_devices {
                let choice = |row: &rows::DeviceRow| DeviceChoice {
                    device_id: DeviceId(row.0),
                    name: row.1.clone(),
                    last_seen: row.4.map(rows::time),
                };
                Some(Refusal::DeviceLimit { devices: active.iter().map(choice).collect() })
            } else {
                None
            };
            if let Some(refusal) = refusal {
                sqlx::query(sql::REFUND_ATTEMPT).bind(sign_in.challenge.0).execute(&mut *tx).await?;
                Err(refusal)
            } else {
                let now = sign_in.now.to_utc();
                if let Some(replaced) = sign_in.replace {
                    super::devices::revoke!(tx, replaced, user);
                }
                let device = sign_in.existing_device.unwrap_or(sign_in.new_device.id);
                if sign_in.existing_device.is_none() {
                    sqlx::query(sql::INSERT_DEVICE)
                        .bind(device.0)
                        .bind(user.0)
                        .bind(&sign_in.new_device.name)
                        .bind(i64::from(sign_in.new_device.registration_id))
                        .bind(now)
                        .execute(&mut *tx)
                        .await?;
                    sqlx::query(sql::mailbox::INSERT_MAILBOX).bind(device.0).execute(&mut *tx).await?;
                }
                let caller = Caller { session: sign_in.session.id, user, device };
                insert_session!(tx, caller, sign_in.session, sign_in.now, None::<Uuid>);
                let others = active.iter().map(|row| DeviceId(row.0));
                let others = others.filter(|id| *id != device && Some(*id) != sign_in.replace).collect();
                let device_is_new = sign_in.existing_device.is_none();
                Ok(Redemption { caller, added_to_known_user: known.is_some() && device_is_new, device_is_new, others })
            }
        });
        Ok(outcome?)
    }

    /// Finds the session of a token. The first presentation of a renewed one ends the session it replaces.
    ///
    /// # Errors
    /// `unauthorized` where there is none that holds.
    pub async fn present(&self, token: &TokenHash, now: Timestamp) -> Result<Presented, StoreError> {
        type Row = (Uuid, Uuid, Uuid, DateTime<Utc>, Option<Uuid>);
        let row: Option<Row> = read!(self, |db| sqlx::query_as(sql::SESSION_BY_TOKEN)
            .bind(&token[..])
            .bind(now.to_utc())
            .fetch_optional(db)
            .await?);
        let (id, user, device, expires_at, replaces) = row.ok_or(Refusal::Unauthorized)?;
        let caller = Caller { session: SessionId(id), user: UserId(user), device: DeviceId(device) };
        let session = Session { caller, expires_at: rows::time(expires_at) };
        let Some(replaced) = replaces else { return Ok(Presented { session, superseded: None }) };
        let superseded = transaction!(self, |tx| {
            serialize!(self, tx, sql::SERIALIZE_DEVICE, device);
            let settled = sqlx::query(sql::SETTLE_SESSION).bind(id).execute(&mut *tx).await?;
            let ended = if settled.rows_affected() == 1 {
                sqlx::query(sql::DELETE_SESSION).bind(replaced).execute(&mut *tx).await?.rows_affected()
            } else {
                // A parallel presentation or a logout came first; what remains of the session decides.
                let alive: Option<(i32,)> =
                    sqlx::query_as(sql::SESSION_LIVES).bind(id).bind(now.to_utc()).fetch_optional(&mut *tx).await?;
                alive.ok_or(Refusal::Unauthorized)?;
                0
            };
            (ended == 1).then_some(SessionId(replaced))
        });
        Ok(Presented { session, superseded })
    }

    /// Whether the caller's session holds.
    ///
    /// # Errors
    /// `session_revoked` where it does not.
    pub async fn check_session(&self, caller: &Caller, now: Timestamp) -> Result<(), StoreError> {
        let row: Option<(Option<Uuid>,)> = read!(self, |db| sqlx::query_as(sql::AUTHORIZE)
            .bind(caller.session.0)
            .bind(caller.device.0)
            .bind(now.to_utc())
            .fetch_optional(db)
            .await?);
        row.map(|_| ()).ok_or_else(|| Refusal::SessionRevoked.into())
    }

    /// Makes the one successor of the caller's session; an earlier one that was never presented goes.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn renew_session(&self, caller: &Caller, new: &NewSession, now: Timestamp) -> Result<(), StoreError> {
        transaction!(self, |tx| {
            serialize!(self, tx, sql::SERIALIZE_DEVICE, caller.device.0);
            let replaces = authorize!(tx, caller, now);
            // A successor that was not presented yet is renewed in the name of the session that the client still has.
            let mut base = caller.session.0;
            if let Some(older) = replaces {
                let alive: Option<(i32,)> =
                    sqlx::query_as(sql::SESSION_LIVES).bind(older).bind(now.to_utc()).fetch_optional(&mut *tx).await?;
                if alive.is_some() {
                    base = older;
                }
            }
            sqlx::query(sql::DELETE_SUCCESSOR).bind(base).bind(caller.device.0).execute(&mut *tx).await?;
            insert_session!(tx, caller, new, now, Some(base));
        });
        Ok(())
    }

    /// Ends the caller's session and the one it is paired with by a renewal. Gives what ended.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn end_session(&self, caller: &Caller, now: Timestamp) -> Result<Vec<SessionId>, StoreError> {
        let ended: Vec<(Uuid,)> = transaction!(self, |tx| {
            serialize!(self, tx, sql::SERIALIZE_DEVICE, caller.device.0);
            authorize!(tx, caller, now);
            sqlx::query_as(sql::DELETE_PAIR).bind(caller.device.0).bind(caller.session.0).fetch_all(&mut *tx).await?
        });
        Ok(ended.into_iter().map(|(id,)| SessionId(id)).collect())
    }

    /// The user of an address.
    ///
    /// # Errors
    /// The store's own.
    pub async fn user_by_email(&self, email: &Email) -> Result<Option<UserId>, StoreError> {
        let row: Option<(Uuid,)> =
            read!(self, |db| sqlx::query_as(sql::USER_BY_EMAIL).bind(email.as_str()).fetch_optional(db).await?);
        Ok(row.map(|(id,)| UserId(id)))
    }

    /// Deletes the caller's user with everything that hangs on it. Gives the devices that were active.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn delete_account(&self, caller: &Caller, now: Timestamp) -> Result<Vec<DeviceId>, StoreError> {
        let active = self.list_devices(caller, now).await?;
        self.empty_mailboxes(&active.iter().map(|device| device.id).collect::<Vec<_>>()).await?;
        let devices: Vec<rows::DeviceRow> = transaction!(self, |tx| {
            serialize!(self, tx, sql::SERIALIZE_USER, caller.user.0);
            authorize!(tx, caller, now);
            let devices = sqlx::query_as(sql::ACTIVE_DEVICES).bind(caller.user.0).fetch_all(&mut *tx).await?;
            serialize!(self, tx, [sql::SERIALIZE_MAILBOXES], caller.user.0);
            sqlx::query(sql::DELETE_USER).bind(caller.user.0).execute(&mut *tx).await?;
            devices
        });
        Ok(devices.into_iter().map(|row| DeviceId(row.0)).collect())
    }

    /// Deletes what has outlived its use: ended sessions, day-old challenges, and the memory of day-old claims and sends (a
    /// social graph) with the key material of issued PQ keys. Gives the rows handled.
    ///
    /// # Errors
    /// The store's own.
    pub async fn sweep(&self, now: Timestamp) -> Result<u64, StoreError> {
        let day_ago = now.before(Duration::from_hours(24));
        let steps = [
            (sql::SWEEP_SESSIONS, now),
            (sql::SWEEP_CHALLENGES, day_ago),
            (sql::SWEEP_CLAIMS, day_ago),
            (sql::SWEEP_PQ_CLAIMS, day_ago),
            (sql::mailbox::SWEEP_SENDS, day_ago),
        ];
        let mut swept = 0;
        for (text, until) in steps {
            loop {
                let rows = transaction!(self, |tx| {
                    sqlx::query(text).bind(until.to_utc()).bind(SWEEP_STEP).execute(&mut *tx).await?.rows_affected()
                });
                swept += rows;
                if i64::try_from(rows).is_ok_and(|rows| rows < SWEEP_STEP) {
                    break;
                }
            }
        }
        Ok(swept)
    }
}

macro_rules! insert_session {
    ($tx:ident, $caller:expr, $new:expr, $now:expr, $replaces:expr) => {
        sqlx::query(sql::INSERT_SESSION)
            .bind($new.id.0)
            .bind($caller.user.0)
            .bind($caller.device.0)
            .bind(&$new.token_hash[..])
            .bind($new.expires_at.to_utc())
            .bind($now.to_utc())
            .bind($replaces)
            .execute(&mut *$tx)
            .await?
    };
}
use insert_session;
