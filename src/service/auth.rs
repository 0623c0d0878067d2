//! Sign-in, sessions, and the connections of a session.

use rand::RngExt;
use subtle::ConstantTimeEq;

use super::{Notifications, Service, approvals::RequestedApproval, limits::challenge_wait, mailer::Mail};
use crate::{
    domain::{
        ApprovalId, Caller, ChallengeId, ClientNetwork, DeviceId, Email, KeysStatus, PendingApproval, Refusal, Session,
        SessionId, Signal, UserId, approval::PresentedRecoveryKey, envelope::MailboxStatus, otp::OtpCode, token::Token,
    },
    store::{ConnectionRegistration, NewChallenge, NewDevice, NewSession, SignIn, SignInOutcome, SignedIn},
};

/// A challenge whose code was handed to the mailer.
pub struct Challenge {
    /// Identifies the challenge when its code is redeemed.
    pub id: ChallengeId,
}

/// A code to redeem, and the device to sign in with it.
pub struct SignInRequest {
    /// The challenge that the code belongs to.
    pub challenge: ChallengeId,
    /// The address that the code was mailed to.
    pub email: Email,
    /// The code that the client entered.
    pub code: OtpCode,
    /// An existing device that signs in again; `None` adds a device.
    pub existing_device: Option<DeviceId>,
    /// The name of a new device.
    pub device_name: Option<String>,
    /// The registration id of a new device; random if `None`.
    pub registration_id: Option<u32>,
    /// A device to revoke in the same transaction.
    pub replace: Option<DeviceId>,
    /// The signature that proves the identity of the existing device, or of the one to replace. Empty if there is none.
    pub proof: Vec<u8>,
    /// The recovery key of a locked account, if the client presents one.
    pub recovery_key: Option<PresentedRecoveryKey>,
}

/// The answer to a correct code.
pub enum SignInAnswer {
    /// The session with its token.
    SignedIn(Session, Token),
    /// The account is locked; the device waits for an approval.
    Waiting(RequestedApproval),
}

/// A newly opened connection.
pub struct OpenedConnection {
    /// Greater than the epoch of every earlier connection of the device.
    pub epoch: i64,
    /// The device's keys when it connected.
    pub keys: KeysStatus,
    /// The device's mailbox when it connected.
    pub mailbox: MailboxStatus,
    /// The pending requests that the device may decide, oldest first.
    pub approvals: Vec<PendingApproval>,
}

impl Service {
    /// Creates a challenge and mails its code. Does the same work for every address, so that timing does not show
    /// whether an address has an account.
    ///
    /// # Errors
    /// `rate_limited`
    pub async fn request_code(&self, email: Email, network: ClientNetwork) -> Result<Challenge, Refusal> {
        let now = self.now();
        self.limits.otp(network, now)?;
        let id = ChallengeId(self.entropy.uuid());
        let code = self.entropy.draw(OtpCode::generate);
        let network = self.secret.tag(&[b"network", network.as_bytes()]);
        let challenge = NewChallenge {
            id,
            hash: code.hash(&self.secret, id, &email),
            email: email.clone(),
            network,
            created_at: now,
        };
        let limits = &self.policy.limits;
        self.store.create_challenge(&challenge, |past| challenge_wait(limits, past, &network, now)).await?;
        self.mailer.send(Mail::code(email, &code));
        self.metrics.codes_mailed.inc();
        Ok(Challenge { id })
    }

    /// Redeems a code and returns a new session with its token, or a request for an approval if the account is locked.
    /// Every attempt is counted before the code is compared.
    ///
    /// # Errors
    /// `invalid_code`, `too_many_attempts`, `rate_limited`, `unknown_device`, `proof_required`, `device_limit`
    pub async fn sign_in(
        &self,
        request: SignInRequest,
        network: ClientNetwork,
    ) -> Result<(SignInAnswer, Notifications), Refusal> {
        let now = self.now();
        self.limits.verify(network, now)?;
        let SignInRequest { challenge, email, code, .. } = &request;
        let expected = self.store.count_attempt(*challenge, email, now).await?;
        let hash = code.hash(&self.secret, *challenge, email);
        if !bool::from(hash[..].ct_eq(&expected[..])) {
            return Err(Refusal::InvalidCode);
        }
        let token = self.entropy.draw(Token::generate);
        let registration_id =
            request.registration_id.unwrap_or_else(|| self.entropy.draw(|rng| rng.random_range(1..=16380)));
        let sign_in = SignIn {
            challenge: request.challenge,
            email: request.email,
            new_user: UserId(self.entropy.uuid()),
            existing_device: request.existing_device,
            new_device: NewDevice { id: DeviceId(self.entropy.uuid()), name: request.device_name, registration_id },
            replace: request.replace,
            proof: request.proof,
            recovery_key: request.recovery_key,
            approval: ApprovalId(self.entropy.uuid()),
            client_network: Some(network.to_string()),
            max_devices: self.policy.max_devices,
            session: self.new_session(&token),
            now,
        };
        match self.store.redeem(&sign_in).await? {
            SignInOutcome::SignedIn(signed_in) => {
                let session = Session { caller: signed_in.caller, expires_at: signed_in.expires_at };
                Ok((SignInAnswer::SignedIn(session, token), self.signed_in(signed_in)))
            }
            SignInOutcome::Requested { user, approval } => {
                let notifications = match approval.new {
                    Some((request, deciders)) => {
                        tracing::info!(user_id = %user, request_id = %approval.id, "a new device waits for an approval");
                        self.announce_request(sign_in.email, &request, deciders)
                    }
                    None => Notifications::default(),
                };
                Ok((SignInAnswer::Waiting(self.requested_approval(approval.id, approval.decides_at)), notifications))
            }
        }
    }

    /// Counts, logs and mails a sign-in, and returns the signals for the user's devices.
    pub(super) fn signed_in(&self, signed_in: SignedIn) -> Notifications {
        let SignedIn { caller, email, user_is_known, device_is_new, device_name, replaced, others, .. } = signed_in;
        self.metrics.sign_ins.inc();
        if user_is_known && device_is_new {
            self.mailer.send(Mail::device_added(email, device_name.as_deref()));
        }
        tracing::info!(
            user_id = %caller.user,
            device_id = %caller.device,
            session_id = %caller.session,
            new_device = device_is_new,
            "signed in"
        );
        let mut notifications = Notifications::default();
        if device_is_new {
            let removed = replaced.into_iter().collect();
            notifications =
                Notifications::to_all(others, &Signal::DevicesChanged { added: vec![caller.device], removed });
        }
        match replaced {
            Some(replaced) => notifications.and(replaced, Signal::DeviceRevoked),
            None => notifications,
        }
    }

    pub(super) fn new_session(&self, token: &Token) -> NewSession {
        NewSession {
            id: SessionId(self.entropy.uuid()),
            token_hash: token.hash(),
            expires_at: self.now() + self.policy.session_lifetime,
        }
    }

    /// Returns the session of a token. The first use of a renewed token ends the session that it replaces.
    ///
    /// # Errors
    /// `unauthorized`
    pub async fn authenticate(&self, token: &Token) -> Result<(Session, Notifications), Refusal> {
        let presented = self.store.present(&token.hash(), self.now()).await?;
        let device = presented.session.caller.device;
        let ended = |session| (device, Signal::LoggedOut { sessions: vec![session] });
        Ok((presented.session, Notifications(presented.superseded.map(ended).into_iter().collect())))
    }

    /// Opens a connection; older connections of the device are closed. The connection must be attached to the hub
    /// already, so that no signal sent between this call and the welcome is lost.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn open_connection(&self, caller: Caller) -> Result<OpenedConnection, Refusal> {
        self.bus.subscribe(caller.device).await;
        let now = self.now();
        let connection = self.connections.submit(ConnectionRegistration { caller, now }).await?;
        self.bus.publish(caller.device, Signal::Displaced { epoch: connection.epoch });
        let keys = self.store.keys_status(caller.device).await?;
        let mailbox = self.store.mailbox(caller.device).await?;
        let approvals =
            if connection.has_pending_approval { self.store.decidable_approvals(&caller).await? } else { Vec::new() };
        Ok(OpenedConnection { epoch: connection.epoch, keys, mailbox, approvals })
    }

    /// Records the end of a connection. Call it once for each call of [`Self::open_connection`], even a failed one.
    pub async fn disconnect(&self, device: DeviceId) {
        self.bus.unsubscribe(device).await;
        // Best effort: if the queue is full, only an update of `last_seen` is lost.
        let _ = self.disconnects.submit((device, self.now())).await;
    }

    /// Creates the session that replaces this one, and returns it with its token. Both are valid until the new token is
    /// used.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn renew(&self, caller: &Caller) -> Result<(Session, Token), Refusal> {
        let token = self.entropy.draw(Token::generate);
        let new = self.new_session(&token);
        self.store.renew_session(caller, &new, self.now()).await?;
        let caller = Caller { session: new.id, ..*caller };
        Ok((Session { caller, expires_at: new.expires_at }, token))
    }

    /// Ends a session, together with its predecessor or successor if a renewal is not finished.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn logout(&self, caller: &Caller) -> Result<Notifications, Refusal> {
        let sessions = self.store.end_session(caller, self.now()).await?;
        Ok(Notifications::default().and(caller.device, Signal::LoggedOut { sessions }))
    }
}
