//! Codes and signing in: challenges, attempts, and the session that a correct code opens.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    DeviceRecord, NewSession, RevokedDevice, Store, StoreError, accounts, devices, locks, rows, sessions,
    sql::{accounts as sql, mailbox},
    tx::Tx,
};
use crate::domain::{
    Caller, ChallengeId, DeviceId, Email, Refusal, SessionId, Timestamp, UserId,
    otp::{self, CodePurpose},
    refusal::DeviceChoice,
};

/// Keyed hash of the network that asked for a challenge.
pub type NetworkTag = [u8; 32];

/// A challenge to insert.
pub struct NewChallenge {
    /// The id of the new challenge.
    pub id: ChallengeId,
    /// The address that its code is mailed to.
    pub email: Email,
    /// What the code is for.
    pub purpose: CodePurpose,
    /// Keyed hash of the code.
    pub hash: [u8; 32],
    /// The network that the request came from, as a keyed hash.
    pub network: NetworkTag,
    /// The current time.
    pub created_at: Timestamp,
}

/// A challenge of the same address within the last day.
pub struct PastChallenge {
    /// When it was created.
    pub created_at: Timestamp,
    /// The network that the request came from, as a keyed hash.
    pub network: Vec<u8>,
}

/// The device that a sign-in adds unless it names an existing one.
pub struct NewDevice {
    /// The id of the new device.
    pub id: DeviceId,
    /// A display name.
    pub name: Option<String>,
    /// The device's number in the client's Signal library.
    pub registration_id: u32,
}

/// A sign-in whose code was correct.
pub struct SignIn {
    /// The challenge that the code answers.
    pub challenge: ChallengeId,
    /// The address of the challenge.
    pub email: Email,
    /// The id for a new user, if the address has no user yet.
    pub new_user: UserId,
    /// The existing device that signs in again; `None` to add `new_device`.
    pub existing_device: Option<DeviceId>,
    /// The device to add.
    pub new_device: NewDevice,
    /// A device to revoke, so that the new one fits within the limit.
    pub replace: Option<DeviceId>,
    /// Maximum number of active devices of a user.
    pub max_devices: usize,
    /// The session to open.
    pub session: NewSession,
    /// The current time.
    pub now: Timestamp,
}

impl SignIn {
    /// Checks the sign-in against the user's active devices. Returns `unknown_device` or `device_limit` if they do not
    /// allow it.
    fn refusal(&self, active: &[DeviceRecord]) -> Option<Refusal> {
        let owns = |device: DeviceId| active.iter().any(|known| known.id == device);
        if !self.existing_device.into_iter().chain(self.replace).all(owns) {
            return Some(Refusal::UnknownDevice);
        }
        let remaining = active.len() - usize::from(self.replace.is_some());
        if self.existing_device.is_some() || remaining < self.max_devices {
            return None;
        }
        let choice = |device: &DeviceRecord| DeviceChoice {
            device_id: device.id,
            name: device.name.clone(),
            last_seen: device.last_seen,
        };
        Some(Refusal::DeviceLimit { devices: active.iter().map(choice).collect() })
    }
}

/// The result of a sign-in.
pub struct Redemption {
    /// The new session with its user and device.
    pub caller: Caller,
    /// Whether the user was created.
    pub user_is_new: bool,
    /// Whether a device was added.
    pub device_is_new: bool,
    /// The display name of the device that signed in.
    pub device_name: Option<String>,
    /// Earlier sessions of the device that ended, because it had the maximum number.
    pub ended: Vec<SessionId>,
    /// The device that was revoked.
    pub replaced: Option<RevokedDevice>,
    /// The user's other active devices, without the new and the replaced one.
    pub others: Vec<DeviceId>,
}

impl Store {
    /// Inserts a challenge, unless `wait` returns how long the client has to wait. `wait` gets the challenges of the
    /// address in the last day, newest first.
    ///
    /// # Errors
    /// `rate_limited`
    pub async fn create_challenge(
        &self,
        new: &NewChallenge,
        wait: impl Fn(&[PastChallenge]) -> Option<Duration>,
    ) -> Result<(), StoreError> {
        let day_ago = new.created_at.before(Duration::from_hours(24));
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            locks::email(&mut tx, &new.email).await?;
            let past: Vec<(DateTime<Utc>, Vec<u8>)> =
                tx.query(sql::CHALLENGES_OF).bind(new.email.as_str()).bind(day_ago.to_utc()).fetch_all().await?;
            let past: Vec<_> = past
                .into_iter()
                .map(|(created_at, network)| PastChallenge { created_at: rows::time(created_at), network })
                .collect();
            if let Some(retry_after) = wait(&past) {
                return Err(Refusal::RateLimited { retry_after }.into());
            }
            tx.query(sql::INSERT_CHALLENGE)
                .bind(new.id.0)
                .bind(new.email.as_str())
                .bind(rows::hash_to_hex(&new.hash))
                .bind((new.created_at + otp::LIFETIME).to_utc())
                .bind(new.created_at.to_utc())
                .bind(&new.network[..])
                .bind(new.purpose.name())
                .execute()
                .await?;
            tx.commit().await
        })
        .await
    }

    /// Counts an attempt, in its own transaction so that a later failure cannot undo it. Returns the hash to compare
    /// the code with.
    ///
    /// # Errors
    /// `invalid_code` or `too_many_attempts`; the attempt is not counted then. A challenge with another address or purpose
    /// is `invalid_code`.
    pub async fn count_attempt(
        &self,
        challenge: ChallengeId,
        email: &Email,
        purpose: CodePurpose,
        now: Timestamp,
    ) -> Result<[u8; 32], StoreError> {
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            let row: Option<(bool, DateTime<Utc>, i32)> = tx
                .query(sql::CHALLENGE_FOR_UPDATE)
                .bind(challenge.0)
                .bind(email.as_str())
                .bind(purpose.name())
                .fetch_optional()
                .await?;
            let (used, expires_at, attempts) = row.ok_or(Refusal::InvalidCode)?;
            if used || rows::time(expires_at) <= now {
                return Err(Refusal::InvalidCode.into());
            }
            if attempts >= otp::MAX_ATTEMPTS {
                return Err(Refusal::TooManyAttempts.into());
            }
            let counted: Option<(String,)> = tx
                .query(sql::COUNT_ATTEMPT)
                .bind(challenge.0)
                .bind(now.to_utc())
                .bind(otp::MAX_ATTEMPTS)
                .fetch_optional()
                .await?;
            let (hash,) = counted.ok_or(Refusal::TooManyAttempts)?;
            let hash = rows::hash_from_hex(&hash)?;
            tx.commit().await?;
            Ok(hash)
        })
        .await
    }

    /// Uses up a correct code and opens a session. If the user's devices do not allow that, the attempt is refunded and
    /// the code stays usable.
    ///
    /// # Errors
    /// `invalid_code` if a parallel sign-in used the code first, `device_limit`, `unknown_device`
    pub async fn redeem(&self, sign_in: &SignIn) -> Result<Redemption, StoreError> {
        let redeemed = self.retrying(|| async {
            let mut tx = self.begin().await?;
            use_challenge(&mut tx, sign_in.challenge).await?;
            let redeemed = open_session(&mut tx, sign_in).await?;
            if redeemed.is_err() {
                // The refund has to be committed, so the refusal leaves the transaction as a value.
                refund(&mut tx, sign_in.challenge).await?;
            }
            tx.commit().await?;
            Ok(redeemed)
        });
        Ok(redeemed.await??)
    }
}

/// Uses up a challenge whose code was compared. It locks the challenge, and so comes before the locks of
/// [`locks`].
///
/// # Errors
/// `invalid_code` if it was used in the meantime
pub(super) async fn use_challenge(tx: &mut Tx<'_>, challenge: ChallengeId) -> Result<(), StoreError> {
    match tx.query(sql::USE_CHALLENGE).bind(challenge.0).execute().await? {
        0 => Err(Refusal::InvalidCode.into()),
        _ => Ok(()),
    }
}

/// Makes a challenge that the transaction has used usable again, and gives the attempt back.
pub(super) async fn refund(tx: &mut Tx<'_>, challenge: ChallengeId) -> Result<(), StoreError> {
    tx.query(sql::REFUND_ATTEMPT).bind(challenge.0).execute().await?;
    Ok(())
}

/// Opens the session, and adds or revokes devices as requested. A refusal is a value, because the caller still commits.
async fn open_session(tx: &mut Tx<'_>, sign_in: &SignIn) -> Result<Result<Redemption, Refusal>, StoreError> {
    let known: Option<(Uuid,)> = tx.query(sql::USER_BY_EMAIL).bind(sign_in.email.as_str()).fetch_optional().await?;
    if known.is_none() && (sign_in.existing_device.is_some() || sign_in.replace.is_some()) {
        // The address has no user and so no devices. Do not create a user only to refuse the request.
        return Ok(Err(Refusal::UnknownDevice));
    }
    let now = sign_in.now.to_utc();
    let (user, user_since): (Uuid, DateTime<Utc>) =
        tx.query(sql::UPSERT_USER).bind(sign_in.new_user.0).bind(sign_in.email.as_str()).bind(now).fetch_one().await?;
    let user = UserId(user);
    locks::user(tx, user).await?;
    let active = accounts::active(tx, user).await?;
    if let Some(refusal) = sign_in.refusal(&active) {
        return Ok(Err(refusal));
    }
    let replaced = match sign_in.replace {
        Some(replaced) => devices::revoke(tx, replaced, user, sign_in.now).await?,
        None => None,
    };
    let device = sign_in.existing_device.unwrap_or(sign_in.new_device.id);
    let device_is_new = sign_in.existing_device.is_none();
    let mut ended = Vec::new();
    let device_name = if device_is_new {
        insert_device(tx, user, &sign_in.new_device, sign_in.now).await?;
        sign_in.new_device.name.clone()
    } else {
        ended = sessions::make_room(tx, device, sign_in.now).await?;
        active.iter().find(|known| known.id == device).and_then(|known| known.name.clone())
    };
    let caller = Caller { session: sign_in.session.id, user, device, user_since: rows::time(user_since) };
    sessions::insert(tx, &caller, &sign_in.session, sign_in.now, None).await?;
    let others = active.into_iter().map(|known| known.id);
    let others = others.filter(|id| *id != device && Some(*id) != sign_in.replace).collect();
    let user_is_new = known.is_none();
    Ok(Ok(Redemption { caller, user_is_new, device_is_new, device_name, ended, replaced, others }))
}

/// Inserts a device with an empty mailbox.
pub(super) async fn insert_device(
    tx: &mut Tx<'_>,
    user: UserId,
    new: &NewDevice,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.query(sql::INSERT_DEVICE)
        .bind(new.id.0)
        .bind(user.0)
        .bind(new.name.as_deref())
        .bind(i64::from(new.registration_id))
        .bind(now.to_utc())
        .execute()
        .await?;
    tx.query(mailbox::INSERT_MAILBOX).bind(new.id.0).execute().await?;
    Ok(())
}
