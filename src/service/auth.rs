//! Sign-in, sessions, and the connections of a session.

use std::time::Duration;

use rand::RngExt;
use subtle::ConstantTimeEq;
use tokio::sync::SemaphorePermit;

use super::{
    Notifications, Service,
    approvals::RequestedApproval,
    limits::{CodeRequest, CodeVerdict, GUESSES_WITHOUT_PROOF, judge_code, proof_bits},
    mailer::Mail,
    push::PushStatus,
};
use crate::{
    domain::{
        ApprovalId, Caller, ChallengeId, ClientNetwork, DeviceId, Email, KeysStatus, PendingApproval, Refusal, Session,
        SessionId, Signal, Timestamp, UserId,
        approval::PresentedRecoveryKey,
        envelope::MailboxStatus,
        network::CountedNetwork,
        otp::{CodePurpose, OtpCode},
        token::{Token, TokenHash},
        work::{MAX_BITS, PaidAction, PresentedWork, ProvenWork, WorkScope},
    },
    metrics::ProofOutcome,
    store::{
        CodeDecision, CodeHistory, ConnectionRegistration, EndedSessions, FoundSession, GuessFrom, NetworkTag,
        NewChallenge, NewDevice, NewSession, Place, RegisteredConnection, RevokedDevice, SessionRecord, SignIn,
        SignInOutcome, SignedIn, Store, TokenLookup,
    },
};

/// How long a request whose network is over its limit waits for its turn to read the database. Longer than a statement
/// waits for a lock.
const OVER_LIMIT_WAIT: Duration = Duration::from_secs(2);

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
    /// The proof of work that the client presents, if any.
    pub work: PresentedWork,
}

/// The place of a network for an attempt to redeem a code.
struct VerifyPlace {
    /// The proof to spend if the network is over a limit, with the refusal in case that it was spent before.
    paying: Option<(ProvenWork, Refusal)>,
    /// Whether a place of this minute was taken. It is given back if the code is right.
    is_taken: bool,
}

/// A request for a code.
pub struct RequestedCode {
    /// The address to mail it to.
    pub email: Email,
    /// What it is for.
    pub purpose: CodePurpose,
    /// The token that the client presents, if any. One that does not hold is ignored.
    pub token: Option<Token>,
    /// The proof of work that the client presents, if any.
    pub work: PresentedWork,
}

/// The answer to a correct code.
pub enum SignInAnswer {
    /// The session with its token.
    SignedIn(Session, Token),
    /// The account is locked; the device waits for an approval.
    Waiting(RequestedApproval),
}

/// A code that confirms an operation.
pub struct Confirmation {
    /// The challenge that the code belongs to.
    pub challenge: ChallengeId,
    /// The code that the client entered.
    pub code: OtpCode,
    /// The proof of work that the client presents, if any.
    pub work: PresentedWork,
}

/// A guess at a code.
pub(super) struct Guess<'a> {
    /// The challenge that the code belongs to.
    pub challenge: ChallengeId,
    /// The address that the code was mailed to.
    pub email: &'a Email,
    /// What the code is for.
    pub purpose: CodePurpose,
    /// The code that the client entered.
    pub code: &'a OtpCode,
    /// The proof of work that the client presents, if any.
    pub work: &'a PresentedWork,
    /// The client's network.
    pub network: ClientNetwork,
}

/// A token whose session was looked up.
pub struct LookedUpToken {
    hash: TokenHash,
    /// The client's network.
    network: ClientNetwork,
    found: Option<FoundSession>,
    /// The token's place among the look-ups, until it has been presented.
    _own: Place<TokenHash>,
}

impl LookedUpToken {
    /// The session if presenting the token changes nothing. Otherwise see [`Service::present`].
    #[must_use]
    pub fn presented_before(&self) -> Option<Session> {
        self.found.as_ref()?.presented_before()
    }
}

/// What a request holds that reads the database although its network is over its limit.
enum OverLimitTurn<'s> {
    /// The place of its token, which belongs to the address.
    Token { _token: LookedUpToken },
    /// One of the few places of all other such requests.
    Common { _permit: SemaphorePermit<'s> },
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
    /// The device's push target, and what a client needs to register one.
    pub push: PushStatus,
}

impl Service {
    /// Creates a challenge and mails its code. Does the same work for every address, so that timing does not show
    /// whether an address has an account. A code that deletes an account is not mailed to an address without one.
    ///
    /// # Errors
    /// `rate_limited`
    pub async fn request_code(&self, request: RequestedCode, network: ClientNetwork) -> Result<Challenge, Refusal> {
        let RequestedCode { email, purpose, token, work } = request;
        let now = self.now();
        let scope = WorkScope { action: PaidAction::Otp, email: &email, network };
        let proven = scope.check(&self.secret, &work, now);
        let network_wait = self.limits.otp(network, now).err();
        let _looking = match network_wait {
            Some(retry_after) if proven.is_none() => {
                match self.over_limit_turn(&email, token.as_ref(), network).await? {
                    Some(turn) => Some(turn),
                    None => return Err(self.work_required(&scope, retry_after, MAX_BITS, now)),
                }
            }
            _ => None,
        };
        let is_useful = match purpose {
            CodePurpose::SignIn | CodePurpose::ChangeEmail => true,
            CodePurpose::Delete => self.store.user_by_email(&email).await?.is_some(),
        };
        let id = ChallengeId(self.entropy.uuid());
        let code = self.entropy.draw(OtpCode::generate);
        let challenge = NewChallenge {
            id,
            purpose,
            hash: code.hash(&self.secret, id, &email, purpose),
            network: self.secret.tag(&[b"network", network.as_bytes()]),
            known_network: self.known_network(&email, network),
            token: token.as_ref().map(Token::hash),
            email: email.clone(),
            created_at: now,
        };
        let decide = |history: &CodeHistory, is_unspent: bool| {
            let work = proven.as_ref().filter(|_| is_unspent);
            let proven_bits = work.map(|work| work.bits);
            let request = CodeRequest { network: &challenge.network, network_wait, proven_bits, now };
            match judge_code(&self.policy.limits, history, &request) {
                CodeVerdict::Send { spends_proof, is_paid } => {
                    CodeDecision::Send { spend: work.copied().filter(|_| spends_proof), is_paid }
                }
                CodeVerdict::Refuse { retry_after, bits: Some(bits) } => {
                    CodeDecision::Refuse(self.work_required(&scope, retry_after, bits, now))
                }
                CodeVerdict::Refuse { retry_after, bits: None } => {
                    CodeDecision::Refuse(Refusal::RateLimited { retry_after })
                }
            }
        };
        if self.store.create_challenge(&challenge, decide).await? {
            self.metrics.proofs.inc(ProofOutcome::Accepted);
        }
        let mail = Mail::code(email, &code, purpose).caused_from(Some(network));
        if is_useful {
            if let Some(shown) = &self.shown_codes {
                shown.add(id, code, now);
            }
            self.metrics.codes_mailed.inc();
        }
        self.mailer.send_or(mail, !is_useful, withdraw(self.store.clone(), id)).await;
        Ok(Challenge { id })
    }

    /// Returns the code of a challenge for the try-it page. `None` if the page is not served, mails are not printed, or
    /// the code was never made, has expired or is not among the latest.
    #[must_use]
    pub fn shown_code(&self, challenge: ChallengeId) -> Option<OtpCode> {
        self.shown_codes.as_ref()?.get(challenge, self.now())
    }

    /// Returns the keyed hash under which an address knows a network.
    pub(super) fn known_network(&self, email: &Email, network: ClientNetwork) -> NetworkTag {
        self.secret.tag(&[b"known network", email.as_str().as_bytes(), network.as_bytes()])
    }

    /// Waits until a request for a code may read the database although its network is over its limit; `None` if it may not
    /// within two seconds. A request with a valid token of the address waits only for others with this token, because the
    /// limit of the network does not concern it, and any client of a network can fill the queue of all others.
    ///
    /// # Errors
    /// `unavailable` if too many look-ups of this token wait
    async fn over_limit_turn(
        &self,
        email: &Email,
        token: Option<&Token>,
        network: ClientNetwork,
    ) -> Result<Option<OverLimitTurn<'_>>, Refusal> {
        if let Some(token) = token {
            let looked_up = self.look_up(token, network).await?;
            match looked_up.found.map(|found| found.user()) {
                Some(user) if self.store.user_by_email(email).await? == Some(user) => {
                    return Ok(Some(OverLimitTurn::Token { _token: looked_up }));
                }
                Some(_) => {}
                None => self.count_session_failure(network),
            }
        }
        Ok(self.over_limit_permit().await.map(|permit| OverLimitTurn::Common { _permit: permit }))
    }

    /// Counts a look-up of an invalid token whose answer does not depend on it.
    fn count_session_failure(&self, network: ClientNetwork) {
        if self.limits.session_failure(network, self.now()).is_err() {
            self.metrics.session_failures_limited.inc();
        }
    }

    /// Waits for the place of a request whose network is over its limit; `None` if there is none within two seconds. The
    /// places are given in the order of the calls, so that a flood from a network delays its other clients but does not
    /// keep them from what they are entitled to. Clients wait in their own HTTP connections, whose number is limited.
    async fn over_limit_permit(&self) -> Option<SemaphorePermit<'_>> {
        tokio::time::timeout(OVER_LIMIT_WAIT, self.over_limit_permits.acquire()).await.ok()?.ok()
    }

    /// Offers a proof of work for a request that has reached a limit.
    fn work_required(&self, scope: &WorkScope<'_>, retry_after: Duration, bits: u8, now: Timestamp) -> Refusal {
        self.metrics.proofs.inc(ProofOutcome::Offered);
        let work = self.entropy.draw(|rng| scope.offer(&self.secret, bits, now, rng));
        Refusal::WorkRequired { retry_after, work }
    }

    /// Returns the keyed hashes of the networks by which wrong guesses count, each with its limit per day. None if the
    /// limits are off.
    fn guess_networks(&self, network: ClientNetwork) -> Vec<(NetworkTag, u64)> {
        let limits = &self.policy.limits;
        if limits.verify_per_network_minute == 0 || limits.wrong_guesses_per_network_day == 0 {
            return Vec::new();
        }
        let tag = |network: CountedNetwork| {
            let (prefix, bits) = network.parts();
            self.secret.tag(&[b"guesses", &[bits], prefix])
        };
        let limit = |factor: u32| u64::from(factor).saturating_mul(limits.wrong_guesses_per_network_day as u64);
        network.counted().into_iter().map(|(network, factor)| (tag(network), limit(factor))).collect()
    }

    /// Counts an attempt of a network to redeem a code, before the code is compared.
    ///
    /// # Errors
    /// `rate_limited` without a proof that suffices
    async fn count_verify(
        &self,
        scope: &WorkScope<'_>,
        work: &PresentedWork,
        now: Timestamp,
    ) -> Result<VerifyPlace, Refusal> {
        let minute = self.limits.verify(scope.network, now).err();
        let is_taken = minute.is_none();
        let day = match self.guess_networks(scope.network) {
            networks if is_taken && !networks.is_empty() => self.store.guess_wait(&networks, now).await?,
            _ => None,
        };
        let Some(retry_after) = minute.max(day) else { return Ok(VerifyPlace { paying: None, is_taken }) };
        let proven = scope.check(&self.secret, work, now);
        let permit = if proven.is_none() { self.over_limit_permit().await } else { None };
        let bits = match (&proven, &permit) {
            (None, None) => MAX_BITS,
            _ => proof_bits(self.store.paid_codes(scope.email, now).await?),
        };
        let refusal = self.work_required(scope, retry_after, bits, now);
        match proven.filter(|work| work.bits >= bits) {
            Some(work) => Ok(VerifyPlace { paying: Some((work, refusal)), is_taken }),
            None => Err(refusal),
        }
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
        let SignInRequest { challenge, email, code, work, .. } = &request;
        let guess = Guess { challenge: *challenge, email, purpose: CodePurpose::SignIn, code, work, network };
        let is_taken = self.guess(&guess, now).await?;
        let token = self.entropy.draw(Token::generate);
        let registration_id =
            request.registration_id.unwrap_or_else(|| self.entropy.draw(|rng| rng.random_range(1..=16380)));
        let known_network = self.known_network(email, network);
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
            known_network,
            max_devices: self.policy.max_devices,
            session: self.new_session(&token),
            now,
        };
        let redeemed = self.store.redeem(&sign_in).await.map_err(Refusal::from);
        let counts = matches!(redeemed, Err(Refusal::UnknownDevice | Refusal::ProofRequired | Refusal::InvalidCode));
        if is_taken && !counts {
            self.limits.give_back_verify(network, now);
        }
        match redeemed? {
            SignInOutcome::SignedIn(signed_in) => {
                let session = Session { caller: signed_in.caller, expires_at: signed_in.expires_at };
                Ok((SignInAnswer::SignedIn(session, token), self.signed_in(signed_in, Some(network))))
            }
            SignInOutcome::Requested { user, approval } => {
                let (requested, notifications) = self.requested(user, sign_in.email, approval, network).await;
                Ok((SignInAnswer::Waiting(requested), notifications))
            }
        }
    }

    /// Counts, logs and mails a sign-in, and returns the signals for the user's devices. `network` is the client's, or that
    /// of the device that approved the sign-in.
    pub(super) fn signed_in(&self, signed_in: SignedIn, network: Option<ClientNetwork>) -> Notifications {
        self.metrics.sign_ins.inc();
        self.mail_sign_in(&signed_in, network);
        let SignedIn { caller, device_is_new, .. } = &signed_in;
        tracing::info!(
            user_id = %caller.user,
            device_id = %caller.device,
            session_id = %caller.session,
            new_device = device_is_new,
            "signed in"
        );
        sign_in_notifications(signed_in)
    }

    /// Compares the code that confirms an operation.
    ///
    /// # Errors
    /// `rate_limited`, `invalid_code`, `too_many_attempts`
    pub(super) async fn confirm(&self, guess: &Guess<'_>, now: Timestamp) -> Result<(), Refusal> {
        if self.guess(guess, now).await? {
            self.limits.give_back_verify(guess.network, now);
        }
        Ok(())
    }

    /// Counts a guess at a code for the network and the address, and compares it. Returns whether the guess, which was
    /// right, holds a place of the network.
    ///
    /// # Errors
    /// `rate_limited`, `invalid_code`, `too_many_attempts`
    async fn guess(&self, guess: &Guess<'_>, now: Timestamp) -> Result<bool, Refusal> {
        let Guess { email, network, work, .. } = *guess;
        let scope = WorkScope { action: PaidAction::Verify, email, network };
        let VerifyPlace { paying, is_taken } = self.count_verify(&scope, work, now).await?;
        let spend = paying.as_ref().map(|(work, _)| work);
        let networks: Vec<_> = self.guess_networks(network).into_iter().map(|(tag, _)| tag).collect();
        let is_counted = self.check_code(guess, GuessFrom { networks: &networks, work: spend }, now).await?;
        if let Some((_, refusal)) = paying {
            if !is_counted {
                return Err(refusal);
            }
            self.metrics.proofs.inc(ProofOutcome::Accepted);
        }
        Ok(is_taken)
    }

    /// Counts a guess at a code and compares it. Returns false if the proof that pays for the guess was spent before; then
    /// nothing was compared. Mails the owner if there were many wrong guesses in a day.
    ///
    /// # Errors
    /// `invalid_code`, `too_many_attempts`
    async fn check_code(&self, guess: &Guess<'_>, from: GuessFrom<'_>, now: Timestamp) -> Result<bool, Refusal> {
        let Guess { challenge, email, purpose, code, network, .. } = *guess;
        let Some(guess) = self.store.count_attempt(challenge, email, purpose, from, now).await? else {
            return Ok(false);
        };
        let hash = code.hash(&self.secret, challenge, email, purpose);
        if bool::from(hash[..].ct_eq(&guess.hash[..])) {
            self.store.give_back_guess(guess.id).await?;
            return Ok(true);
        }
        self.metrics.wrong_guesses.inc();
        if guess.wrong_today >= GUESSES_WITHOUT_PROOF {
            let owners = self.store.note_guess_notice(email, now).await?;
            if !owners.is_empty() {
                tracing::warn!("somebody guesses the codes of an address; its owner is mailed");
            }
            for owner in owners {
                self.mailer.send(Mail::codes_guessed(owner).caused_from(Some(network)));
            }
        }
        Err(Refusal::InvalidCode)
    }

    /// Mails the person that somebody has signed in, except at the first sign-in of a user, and that a device was
    /// revoked for it.
    fn mail_sign_in(&self, signed_in: &SignedIn, network: Option<ClientNetwork>) {
        let (email, name) = (signed_in.email.clone(), signed_in.device_name.as_deref());
        let send = |mail: Mail| self.mailer.send(mail.caused_from(network));
        if let Some(replaced) = &signed_in.replaced {
            send(Mail::device_revoked(email.clone(), replaced.name.as_deref()));
        }
        match (signed_in.user_is_new, signed_in.device_is_new) {
            (true, _) => {}
            (false, true) => send(Mail::device_added(email, name)),
            (false, false) => send(Mail::signed_in_again(email, name)),
        }
    }

    pub(super) fn new_session(&self, token: &Token) -> NewSession {
        NewSession {
            id: SessionId(self.entropy.uuid()),
            token_hash: token.hash(),
            expires_at: self.now() + self.policy.session_lifetime,
        }
    }

    /// Looks up the session of a token. May be called on any runtime; look-ups at the same time share a statement.
    ///
    /// A valid token is served however many look-ups of its network have failed, because neighbours can cause these. Beyond
    /// the limit, few look-ups run at a time, so that invalid tokens cost the database little.
    ///
    /// # Errors
    /// `unavailable` if too many look-ups of this token wait
    pub async fn look_up(&self, token: &Token, network: ClientNetwork) -> Result<LookedUpToken, Refusal> {
        let (hash, now) = (token.hash(), self.now());
        let own = self.lookups.enter(hash).await?;
        let _slow = self.slow_down(network, now).await?;
        let found = self.tokens.submit(TokenLookup { hash, now }).await?;
        Ok(LookedUpToken { hash, network, found, _own: own })
    }

    /// Takes one of few permits if many look-ups of the network have failed. Hold it during a look-up.
    async fn slow_down(&self, network: ClientNetwork, now: Timestamp) -> Result<Option<SemaphorePermit<'_>>, Refusal> {
        if !self.limits.has_session_failures(network, now) {
            return Ok(None);
        }
        let permit = self.over_limit_lookups.acquire().await;
        permit.map(Some).map_err(|_| Refusal::Unavailable)
    }

    /// Presents a token that was looked up, and returns its session. The first use of a renewed token ends the session
    /// that it replaces.
    ///
    /// # Errors
    /// `unauthorized`; `rate_limited` instead if the token is invalid and its network has presented too many of them
    pub async fn present(&self, token: LookedUpToken) -> Result<(Session, Notifications), Refusal> {
        if let Some(session) = token.presented_before() {
            return Ok((session, Notifications::default()));
        }
        let (LookedUpToken { hash, network, found, _own }, now) = (token, self.now());
        let _slow = self.slow_down(network, now).await?;
        let presented = match self.store.present_found(&hash, found, now).await.map_err(Refusal::from) {
            Err(invalid @ Refusal::Unauthorized(_)) => {
                let Err(retry_after) = self.limits.session_failure(network, now) else { return Err(invalid) };
                self.metrics.session_failures_limited.inc();
                return Err(Refusal::RateLimited { retry_after });
            }
            presented => presented?,
        };
        let device = presented.session.caller.device;
        let ended = |session| (device, Signal::LoggedOut { sessions: vec![session] });
        Ok((presented.session, Notifications(presented.superseded.map(ended).into_iter().collect())))
    }

    /// Returns the session of a token: [`Self::look_up`] and [`Self::present`].
    ///
    /// # Errors
    /// Those of both
    pub async fn authenticate(
        &self,
        token: &Token,
        network: ClientNetwork,
    ) -> Result<(Session, Notifications), Refusal> {
        self.present(self.look_up(token, network).await?).await
    }

    /// Opens a connection; older connections of the device are closed. The connection must be attached to the hub
    /// already, so that no signal sent between this call and the welcome is lost. May be called on any runtime.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn open_connection(&self, caller: Caller) -> Result<OpenedConnection, Refusal> {
        self.bus.subscribe(caller.device).await;
        let now = self.now();
        let connection = self.connections.submit(ConnectionRegistration { caller, now }).await?;
        self.bus.publish(caller.device, Signal::Displaced { epoch: connection.epoch });
        let RegisteredConnection { epoch, has_pending_approval, keys, mailbox, push } = connection;
        let approvals = if has_pending_approval {
            let store = self.store.clone();
            Box::pin(self.on_own_runtime(async move { store.decidable_approvals(&caller).await })).await?
        } else {
            Vec::new()
        };
        Ok(OpenedConnection { epoch, keys, mailbox, approvals, push: self.push_status(push) })
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
        Ok(ended_notifications(self.store.end_session(caller, self.now()).await?))
    }

    /// Returns the valid sessions of the user, oldest first.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn list_sessions(&self, caller: &Caller) -> Result<Vec<SessionRecord>, Refusal> {
        Ok(self.store.list_sessions(caller, self.now()).await?)
    }

    /// Ends a session of the user, together with its predecessor or successor if a renewal is not finished. Returns
    /// whether the caller's session was one of them.
    ///
    /// # Errors
    /// `session_revoked`, `not_found`, `device_too_new`
    pub async fn end_session(&self, caller: &Caller, session: SessionId) -> Result<(bool, Notifications), Refusal> {
        let ended = self.store.end_session_of_user(caller, session, self.now()).await?;
        Ok((ended.sessions.contains(&caller.session), ended_notifications(ended)))
    }
}

/// Withdraws a challenge whose code was not mailed, so that it does not use up the budget of its address.
async fn withdraw(store: Store, challenge: ChallengeId) {
    if let Err(error) = store.withdraw_challenge(challenge).await {
        tracing::warn!(%error, "a code that was not mailed counts for its address");
    }
}

/// The signals after sessions were ended: the event before the close.
fn ended_notifications(ended: EndedSessions) -> Notifications {
    let EndedSessions { device, sessions, devices } = ended;
    let changed = Signal::SessionsChanged { device, opened: vec![], ended: sessions.clone() };
    Notifications::to_all(devices, &changed).and(device, Signal::LoggedOut { sessions })
}

/// The signals after a device was revoked or replaced: the event before the close. `others` are the remaining devices.
pub(super) fn revoked_notifications(revoked: RevokedDevice, others: &[DeviceId]) -> Notifications {
    let RevokedDevice { id: device, sessions, .. } = revoked;
    let concerned = others.iter().copied().chain([device]);
    let changed = Signal::SessionsChanged { device, opened: vec![], ended: sessions };
    Notifications::to_all(concerned, &changed).and(device, Signal::DeviceRevoked)
}

fn sign_in_notifications(redeemed: SignedIn) -> Notifications {
    let SignedIn { caller, device_is_new, ended, replaced, others, .. } = redeemed;
    let device = caller.device;
    let mut notifications = Notifications::default();
    if device_is_new {
        let removed = replaced.iter().map(|replaced| replaced.id).collect();
        let changed = Signal::DevicesChanged { added: vec![device], removed };
        notifications = Notifications::to_all(others.iter().copied(), &changed);
    }
    if let Some(replaced) = replaced {
        notifications.0.extend(revoked_notifications(replaced, &others).0);
    }
    // A new device cannot be connected yet.
    let connected = others.into_iter().chain((!device_is_new).then_some(device));
    let changed = Signal::SessionsChanged { device, opened: vec![caller.session], ended: ended.clone() };
    notifications = notifications.and_all(connected, &changed);
    if ended.is_empty() { notifications } else { notifications.and(device, Signal::LoggedOut { sessions: ended }) }
}
