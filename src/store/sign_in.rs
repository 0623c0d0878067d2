//! Signing in: the session that a correct code opens.

use std::time::Duration;

use uuid::Uuid;

use super::{
    DeviceRecord, NewSession, Store, StoreError, account_lock, accounts,
    approvals::{self, ApprovalRequested, AsksFor, NewApproval},
    challenges::{NetworkTag, use_challenge},
    keys, locks,
    signed_in::{NewDevice, SignedIn, device_limit, open_session},
    sql::{accounts as sql, challenges},
    tx::Tx,
};
use crate::domain::{
    ApprovalId, ChallengeId, DeviceId, Email, Refusal, Timestamp, UserId,
    approval::{Lock, PresentedRecoveryKey},
    signature::{self, device_proof_message},
};

/// A device that was not connected for this long can be replaced without a proof.
const REPLACED_WITHOUT_PROOF: Duration = Duration::from_hours(7 * 24);

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
    /// The network of the client, as the keyed hash under which the address will know it.
    pub known_network: NetworkTag,
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
                Ok(SignInOutcome::Requested { .. }) | Err(Refused::Refunded(_)) => Some(challenges::REFUND_ATTEMPT),
                Err(Refused::Counted(_)) => Some(challenges::RELEASE_CHALLENGE),
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
            Some(&self.known_network),
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
            known_network: Some(self.known_network),
        };
        let requested = approvals::request(tx, user, &new, Duration::from_secs(lock.wait_s), self.now).await?;
        Ok(Some(match requested {
            Ok(approval) => Ok(SignInOutcome::Requested { user, approval }),
            Err(refusal) => Err(refusal.into()),
        }))
    }
}
