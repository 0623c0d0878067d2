//! The requests of an app, one method for each op.

use std::time::Duration;

use sealwire_protocol::{
    access::{
        AccessKey, AddBlockRequest, ListBlocksRequest, RemoveBlockRequest, SetAccessRequest, ShownKey, Strangers,
    },
    approvals::{
        AccountStatusReply, AccountStatusRequest, DecideRequest, LockAccountRequest, RequestedApproval,
        UnlockAccountRequest,
    },
    auth::{EndSessionRequest, ListSessionsRequest, ListedSession, LogoutRequest},
    devices::{ListDevicesRequest, ListedDevice, RenameDeviceRequest, RevokeDeviceRequest},
    frame::SocketRequest,
    ids::{ApprovalId, DeviceId, SessionId, UserId},
    keys::{BundlesReply, FetchKeysRequest, KeysStatusReply, KeysStatusRequest, PublishKeysReply, PublishKeysRequest},
    users::{ChangeEmailRequest, DeleteAccountRequest, FindUserRequest},
    value::{Lenient, Text},
};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::{sync::oneshot, time::timeout};

use super::Client;
use crate::{
    driver::Command,
    error::RequestError,
    proof_of_work::{MAX_PROOFS, Offer, PaidByProof},
    reconnect::End,
    server::Challenge,
};

impl Client {
    /// Finds the user of an address.
    ///
    /// # Errors
    /// `not_found` if no user has it; `rate_limited`.
    pub async fn find_user(&self, email: &str) -> Result<UserId, RequestError> {
        Ok(self.request(FindUserRequest { email: text(email)? }).await?.user_id)
    }

    /// Publishes keys of this device.
    ///
    /// # Errors
    /// Those of `keys.publish`.
    pub async fn publish_keys(&self, keys: PublishKeysRequest) -> Result<PublishKeysReply, RequestError> {
        let reply = self.request(keys).await?;
        self.inner.shared.pool_versions.note_publish(&reply);
        Ok(reply)
    }

    /// What the server holds of this device's keys, with a digest to compare with
    /// [`HeldKeys::digest`](crate::HeldKeys::digest).
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn keys_status(&self) -> Result<KeysStatusReply, RequestError> {
        self.request(KeysStatusRequest { digest: Some(true) }).await
    }

    /// Gets the bundles of a user's devices, without taking one-time keys: to compare identity keys. `access` is the access
    /// key that the user has shared, if they have.
    ///
    /// # Errors
    /// `not_found` for an unknown user, or one who refuses strangers.
    pub async fn fetch_keys(&self, user: UserId, access: Option<AccessKey>) -> Result<BundlesReply, RequestError> {
        let access = access.map(|key| ShownKey(Some(key)));
        self.request(FetchKeysRequest { user_id: user, device_ids: None, suites: None, access }).await
    }

    /// The user's active devices.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn devices(&self) -> Result<Vec<ListedDevice>, RequestError> {
        Ok(self.request(ListDevicesRequest {}).await?.devices)
    }

    /// Names a device of the user.
    ///
    /// # Errors
    /// `unknown_device`; `device_too_new`.
    pub async fn rename_device(&self, device: DeviceId, name: &str) -> Result<(), RequestError> {
        self.request(RenameDeviceRequest { device_id: Some(device), name: text(name)? }).await.map(drop)
    }

    /// Revokes a device of the user.
    ///
    /// # Errors
    /// `unknown_device`, also for a device that is revoked already; `device_too_new`.
    pub async fn revoke_device(&self, device: DeviceId) -> Result<(), RequestError> {
        self.request(RevokeDeviceRequest { device_id: device }).await.map(drop)
    }

    /// The user's valid sessions.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn sessions(&self) -> Result<Vec<ListedSession>, RequestError> {
        Ok(self.request(ListSessionsRequest {}).await?.sessions)
    }

    /// Ends a session of the user.
    ///
    /// # Errors
    /// `not_found` if there is no such session; `device_too_new`.
    pub async fn end_session(&self, session: SessionId) -> Result<(), RequestError> {
        self.request(EndSessionRequest { session_id: session }).await.map(drop)
    }

    /// Renews the session now. The client also does that by itself, when half of the session's life is over.
    ///
    /// # Errors
    /// As [`request`](Self::request); [`RequestError::Storage`] if the new token cannot be stored. The session stays as
    /// it was then.
    pub async fn renew_session(&self) -> Result<(), RequestError> {
        let (reply, answer) = oneshot::channel();
        let work = async {
            self.inner.commands.send(Command::Renew(reply)).await.map_err(|_| self.ended())?;
            answer.await.map_err(|_| self.ended())?
        };
        timeout(self.inner.options.request_timeout, work).await.map_err(|_| RequestError::TimedOut)?
    }

    /// Logs out: ends the session, and the client with [`End::LoggedOut`]. The device keeps its keys.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn log_out(&self) -> Result<(), RequestError> {
        match self.request(LogoutRequest {}).await {
            // The reply was lost.
            Err(RequestError::Ended(End::LoggedOut)) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Deletes the account, with a code for [`CodePurpose::Delete`](sealwire_protocol::auth::CodePurpose::Delete). The
    /// client ends with [`End::AccountDeleted`].
    ///
    /// # Errors
    /// `device_too_new`, `invalid_code`, `too_many_attempts`.
    pub async fn delete_account(&self, challenge: &Challenge, code: &str) -> Result<(), RequestError> {
        let request = DeleteAccountRequest { challenge_id: Some(challenge.id), code: Some(text(code)?), proof: None };
        match self.request_with_proof(request).await {
            // The reply was lost.
            Err(RequestError::Ended(End::AccountDeleted)) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Makes a request; again with a proof of work if the server offers that.
    async fn request_with_proof<T>(&self, mut request: T) -> Result<T::Reply, RequestError>
    where
        T: SocketRequest + PaidByProof + Clone,
        T::Reply: DeserializeOwned,
    {
        for _ in 0..MAX_PROOFS {
            let refused = match self.request(request.clone()).await {
                Err(RequestError::Refused(refused)) => refused,
                other => return other,
            };
            let Some(offer) = Offer::of(&refused) else { return Err(RequestError::Refused(refused)) };
            // If it is too hard, the person can wait.
            let Ok(proof) = offer.solve().await else { return Err(RequestError::Refused(refused)) };
            *request.proof() = Some(Lenient(Some(proof)));
        }
        self.request(request).await
    }

    /// Gives the account another address: that of the challenge, whose code is for
    /// [`CodePurpose::ChangeEmail`](sealwire_protocol::auth::CodePurpose::ChangeEmail). If the account is locked, returns
    /// the request that waits for an approval: show the person its number.
    ///
    /// # Errors
    /// `device_too_new`, `invalid_code`, `too_many_attempts`, `email_taken`, `rate_limited`.
    pub async fn change_email(
        &self,
        challenge: &Challenge,
        code: &str,
    ) -> Result<Option<RequestedApproval>, RequestError> {
        let (email, code) = (text(&challenge.email)?, text(code)?);
        let request = ChangeEmailRequest { email, challenge_id: Some(challenge.id), code: Some(code), proof: None };
        Ok(self.request_with_proof(request).await?.approval)
    }

    /// Draws a recovery key, for [`lock_account`](Self::lock_account).
    #[must_use]
    pub fn new_recovery_key(&self) -> [u8; 32] {
        self.inner.shared.random.bytes()
    }

    /// Locks the account: a new device then also needs an approval by another one, or the recovery key. Show the key to the
    /// person before; the server gets only its hash. `wait` is the time after which a request is approved unless a device
    /// denies it, a day to 30 days; a week if `None`. If the account is locked already, a young device needs the `present`
    /// recovery key.
    ///
    /// # Errors
    /// `device_too_new`; `invalid_code` if the present recovery key is wrong.
    pub async fn lock_account(
        &self,
        recovery_key: &[u8; 32],
        wait: Option<Duration>,
        present: Option<&[u8; 32]>,
    ) -> Result<(), RequestError> {
        let request = LockAccountRequest {
            recovery_key_hash: Text::base64(&Sha256::digest(recovery_key)),
            wait_s: wait.map(|wait| wait.as_secs()),
            recovery_key: present.map(|key| Text::base64(key)),
        };
        self.request(request).await.map(drop)
    }

    /// Unlocks the account. A young device needs the recovery key.
    ///
    /// # Errors
    /// `device_too_new`; `invalid_code` if the recovery key is wrong.
    pub async fn unlock_account(&self, recovery_key: Option<&[u8; 32]>) -> Result<(), RequestError> {
        self.request(UnlockAccountRequest { recovery_key: recovery_key.map(|key| Text::base64(key)) }).await.map(drop)
    }

    /// Whether the account is locked, and what waits for an approval.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn account_status(&self) -> Result<AccountStatusReply, RequestError> {
        self.request(AccountStatusRequest {}).await
    }

    /// Approves a request of [`Event::ApprovalRequested`](crate::Event::ApprovalRequested). `number` is what the person has
    /// read from the new device and entered here. A wrong one denies the request.
    ///
    /// # Errors
    /// `denied` if the number is wrong; `not_found` if there is no such request or it was denied; `device_limit`, after
    /// which it can be approved with [`DecideRequest::replace_device_id`]; `device_too_new`.
    pub async fn approve(&self, request: ApprovalId, number: &str) -> Result<(), RequestError> {
        let number = Some(text(number)?);
        let request = DecideRequest { request_id: request, approve: true, number, replace_device_id: None };
        self.request(request).await.map(drop)
    }

    /// Denies a request of [`Event::ApprovalRequested`](crate::Event::ApprovalRequested).
    ///
    /// # Errors
    /// `not_found` if there is no such request or it was approved; `device_too_new`.
    pub async fn deny(&self, request: ApprovalId) -> Result<(), RequestError> {
        let request = DecideRequest { request_id: request, approve: false, number: None, replace_device_id: None };
        self.request(request).await.map(drop)
    }

    /// Sets the access key of the user, 16 random bytes, and what people may do who do not show it.
    ///
    /// # Errors
    /// `bad_request` for [`Strangers::Refuse`] without a key; `device_too_new`.
    pub async fn set_access(&self, key: Option<AccessKey>, strangers: Strangers) -> Result<(), RequestError> {
        self.request(SetAccessRequest { key, strangers: strangers.into(), sealed: None }).await.map(drop)
    }

    /// Drops what a user sends, from now on.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn block(&self, user: UserId) -> Result<(), RequestError> {
        self.request(AddBlockRequest { user_id: user }).await.map(drop)
    }

    /// Accepts messages of a user again.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn unblock(&self, user: UserId) -> Result<(), RequestError> {
        self.request(RemoveBlockRequest { user_id: user }).await.map(drop)
    }

    /// The blocked users.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn blocked(&self) -> Result<Vec<UserId>, RequestError> {
        Ok(self.request(ListBlocksRequest {}).await?.user_ids)
    }
}

fn text(text: &str) -> Result<Text, RequestError> {
    Text::parse(text).ok_or(RequestError::InvalidText)
}
