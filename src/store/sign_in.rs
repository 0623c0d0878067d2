//! Codes and signing in: challenges, attempts, and the session that a correct code opens.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    DeviceRecord, NewSession, Store, StoreError, account_lock, accounts,
    approvals::{self, ApprovalRequested, AsksFor, NewApproval},
    keys, locks, rows,
    signed_in::{NewDevice, SignedIn, device_limit, open_session},
    sql::accounts as sql,
    tx::Tx,
};
use crate::domain::{
    ApprovalId, ChallengeId, DeviceId, Email, Refusal, Timestamp, UserId,
    approval::{Lock, PresentedRecoveryKey},
    otp::{self, CodePurpose},
    signature::{self, device_proof_message},
};

/// A device that was not connected for this long can be replaced without a proof.
const REPLACED_WITHOUT_PROOF: Duration = Duration::from_hours(7 * 24);

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
    /// The signature that shows that the client holds the identity key of the existing device, or of the one to replace.
    /// Empty if there is none.
    pub proof: Vec<u8>,
    /// The recovery key of a locked account, if the client presents one.
    pub recovery_key: Option<PresentedRecoveryKey>,
    /// The id for a request, if the account is locked.
    pub approval: ApprovalId,
    /// The network of the client, for the devices that decide the request.
    pub client_network: Option<String>,
    /// Maximum number of active devices of a user.
    pub max_devices: usize,
    /// The session to open.
    pub session: NewSession,
    /// The current time.
    pub now: Timestamp,
}

/// The outcome of a sign-in with a correct code.
pub enum SignInOutcome {
    /// The device is signed in.
    SignedIn(SignedIn),
    /// The account is locked, and a device has to approve the request.
    Requested {
        /// The locked user.
        user: UserId,
        /// The request.
        approval: ApprovalRequested,
    },
}

/// Why a correct code opens no session.
enum Refused {
    /// The attempt is refunded.
    Refunded(Refusal),
    /// The attempt counts, because something else was guessed.
    Counted(Refusal),
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Refunded(refusal)
    }
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

    /// Uses up a correct code and opens a session, or makes a request for one if the account is locked. If the user's
    /// devices do not allow that, the attempt is refunded and the code stays usable. A code that made a request stays
    /// usable too, and gives the same request again.
    ///
    /// # Errors
    /// `invalid_code` if a parallel sign-in used the code first, or if the recovery key is wrong: then the attempt
    /// counts; `unknown_device`, `proof_required`, `device_limit`, `rate_limited`
    pub async fn redeem(&self, sign_in: &SignIn) -> Result<SignInOutcome, StoreError> {
        let redeemed = self.retrying(|| async {
            let mut tx = self.begin().await?;
            use_challenge(&mut tx, sign_in.challenge).await?;
            // A refusal is a value, because the refund has to be committed.
            let outcome = sign_in.run(&mut tx).await?;
            let release = match &outcome {
                Ok(SignInOutcome::SignedIn(_)) => None,
                Ok(SignInOutcome::Requested { .. }) | Err(Refused::Refunded(_)) => Some(sql::REFUND_ATTEMPT),
                Err(Refused::Counted(_)) => Some(sql::RELEASE_CHALLENGE),
            };
            if let Some(release) = release {
                tx.query(release).bind(sign_in.challenge.0).execute().await?;
            }
            tx.commit().await?;
            Ok(outcome)
        });
        match redeemed.await? {
            Ok(outcome) => Ok(outcome),
            Err(Refused::Refunded(refusal) | Refused::Counted(refusal)) => Err(refusal.into()),
        }
    }
}

impl SignIn {
    /// Opens the session or makes the request.
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Result<SignInOutcome, Refused>, StoreError> {
        let known: Option<(Uuid,)> = tx.query(sql::USER_BY_EMAIL).bind(self.email.as_str()).fetch_optional().await?;
        if known.is_none() && (self.existing_device.is_some() || self.replace.is_some()) {
            // The address has no user and so no devices. Do not create a user only to refuse the request.
            return Ok(Err(Refusal::UnknownDevice.into()));
        }
        let (user,): (Uuid,) = tx
            .query(sql::UPSERT_USER)
            .bind(self.new_user.0)
            .bind(self.email.as_str())
            .bind(self.now.to_utc())
            .fetch_one()
            .await?;
        let user = UserId(user);
        locks::user(tx, user).await?;
        let active = accounts::active(tx, user).await?;
        let owns = |device: DeviceId| active.iter().any(|known| known.id == device);
        if !self.existing_device.into_iter().chain(self.replace).all(owns) {
            return Ok(Err(Refusal::UnknownDevice.into()));
        }
        let lock = account_lock::read(tx, user).await?;
        let is_recovered = lock.as_ref().zip(self.recovery_key.as_ref()).map(|(lock, key)| key.opens(lock));
        let Some(is_proven) = self.check_proof(tx, &active, is_recovered == Some(true)).await? else {
            return Ok(Err(Refusal::ProofRequired.into()));
        };
        if is_recovered == Some(false) && !is_proven {
            return Ok(Err(Refused::Counted(Refusal::InvalidCode)));
        }
        if !is_proven && let Some(outcome) = self.await_approval(tx, user, lock, is_recovered.is_some()).await? {
            return Ok(outcome);
        }
        if self.existing_device.is_none()
            && let Some(refusal) = device_limit(&active, self.replace, self.max_devices)
        {
            return Ok(Err(refusal.into()));
        }
        let signed_in = open_session(
            tx,
            user,
            active,
            self.existing_device,
            self.new_device.clone(),
            self.replace,
            &self.session,
            self.now,
        )
        .await?;
        Ok(Ok(SignInOutcome::SignedIn(SignedIn { user_is_new: user == self.new_user, ..signed_in })))
    }

    /// Checks the proof of the device that signs in again or is replaced. The recovery key stands in for the proof of a
    /// device that is replaced: a person who has lost it cannot give its proof. Returns whether the device that signs in
    /// has proved its identity; `None` if a proof is required and is missing or wrong.
    async fn check_proof(
        &self,
        tx: &mut Tx<'_>,
        active: &[DeviceRecord],
        is_recovered: bool,
    ) -> Result<Option<bool>, StoreError> {
        let recently = self.now.before(REPLACED_WITHOUT_PROOF);
        let was_connected = |device: DeviceId| {
            active.iter().any(|known| known.id == device && known.last_seen.is_some_and(|seen| seen > recently))
        };
        let Some(device) =
            self.existing_device.or(self.replace.filter(|device| !is_recovered && was_connected(*device)))
        else {
            return Ok(Some(false));
        };
        let Some(identity) = keys::identity(tx, device).await? else { return Ok(Some(false)) };
        let message = device_proof_message(self.challenge, device);
        let proves = signature::verify(identity.suite, &identity.key, &message, &self.proof).is_ok();
        Ok(proves.then_some(self.existing_device.is_some()))
    }

    /// Makes the request of a new device, or finds the one that it made before, if the account is locked. `None` if it
    /// may sign in at once.
    async fn await_approval(
        &self,
        tx: &mut Tx<'_>,
        user: UserId,
        lock: Option<Lock>,
        is_recovered: bool,
    ) -> Result<Option<Result<SignInOutcome, Refused>>, StoreError> {
        if is_recovered {
            approvals::withdraw(tx, self.challenge, self.now).await?;
            return Ok(None);
        }
        if let Some(approval) = approvals::of_challenge(tx, self.challenge, user).await? {
            return Ok(Some(Ok(SignInOutcome::Requested { user, approval })));
        }
        let Some(lock) = lock else { return Ok(None) };
        let new = NewApproval {
            id: self.approval,
            challenge: self.challenge,
            asks_for: AsksFor::Device {
                existing_device: self.existing_device,
                registration_id: self.new_device.registration_id,
                replace: self.replace,
            },
            device_name: self.new_device.name.clone(),
            client_network: self.client_network.clone(),
        };
        let requested = approvals::request(tx, user, &new, Duration::from_secs(lock.wait_s), self.now).await?;
        Ok(Some(match requested {
            Ok(approval) => Ok(SignInOutcome::Requested { user, approval }),
            Err(refusal) => Err(refusal.into()),
        }))
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
