//! The lock of an account, and the approvals that it asks for.

use std::{sync::Arc, time::Duration};

use chrono::DateTime;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Notifications, Service, mailer::Mail};
use crate::{
    domain::{
        ApprovalId, Caller, ClientNetwork, DeviceId, Email, PendingApproval, Refusal, Session, Signal, Timestamp,
        UserId,
        approval::{self, Lock, PresentedRecoveryKey},
        token::Token,
    },
    store::{
        AccountStatus, ApprovalRequested, ApprovalState, Approved, ApprovedSession, Decided, Decision, DueApproval,
        Store, StoreError,
    },
};

/// Interval between looks at the requests that are due or about which a mail is due.
const EVERY: Duration = Duration::from_secs(10);

/// A request for an approval, as the one who makes it sees it.
pub struct RequestedApproval {
    /// Identifies it.
    pub id: ApprovalId,
    /// Proves who made it.
    pub poll_token: String,
    /// Two digits to enter on the device that approves.
    pub number: String,
    /// When it is approved unless a device denies it.
    pub decides_at: Timestamp,
}

/// A decision as a client makes it.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Approves the request if the number is that of the request; denies it otherwise.
    Approve {
        /// Two digits.
        number: String,
        /// A device of the user to revoke, instead of the one that the request names.
        replace: Option<DeviceId>,
    },
    /// Denies the request.
    Deny,
}

/// The answer to a poll of a request.
pub enum PolledApproval {
    /// It waits for a decision.
    Pending {
        /// When it is approved unless a device denies it.
        decides_at: Timestamp,
    },
    /// It was approved: the session with its token.
    Approved(Session, Token),
}

impl Service {
    /// Locks the account: from now on a new device needs an approval.
    ///
    /// # Errors
    /// `session_revoked`, `device_too_new`, `invalid_code`, `rate_limited`
    pub async fn lock_account(
        &self,
        caller: &Caller,
        lock: &Lock,
        recovery_key: Option<PresentedRecoveryKey>,
        network: ClientNetwork,
    ) -> Result<(), Refusal> {
        let change = |now| async move { self.store.lock_account(caller, lock, recovery_key.as_ref(), now).await };
        if let Some(email) = self.change_lock(caller, change).await? {
            tracing::info!(user_id = %caller.user, device_id = %caller.device, "account locked");
            self.mailer.send(Mail::locked(email).caused_from(Some(network)));
        }
        Ok(())
    }

    /// Unlocks the account. Pending requests stay pending.
    ///
    /// # Errors
    /// `session_revoked`, `device_too_new`, `invalid_code`, `rate_limited`
    pub async fn unlock_account(
        &self,
        caller: &Caller,
        recovery_key: Option<PresentedRecoveryKey>,
        network: ClientNetwork,
    ) -> Result<(), Refusal> {
        let change = |now| async move { self.store.unlock_account(caller, recovery_key.as_ref(), now).await };
        if let Some(email) = self.change_lock(caller, change).await? {
            tracing::info!(user_id = %caller.user, device_id = %caller.device, "account unlocked");
            self.mailer.send(Mail::unlocked(email).caused_from(Some(network)));
        }
        Ok(())
    }

    /// Changes the lock, and returns the address to mail; `None` if nothing has changed. Every change is mailed, so what is
    /// limited is the changes: a limit on the mails would let a thief hide one.
    ///
    /// # Errors
    /// `rate_limited` if the device has made too many changes, and those of `change`
    async fn change_lock<Done>(
        &self,
        caller: &Caller,
        change: impl FnOnce(Timestamp) -> Done,
    ) -> Result<Option<Email>, Refusal>
    where
        Done: Future<Output = Result<Option<Email>, StoreError>>,
    {
        let now = self.now();
        self.limits.lock_change(caller.device, now)?;
        let changed = change(now).await;
        if !matches!(changed, Ok(Some(_))) {
            self.limits.give_back_lock_change(caller.device, now);
        }
        Ok(changed?)
    }

    /// Returns the lock of the account and its pending requests.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn account_status(&self, caller: &Caller) -> Result<AccountStatus, Refusal> {
        Ok(self.store.account_status(caller, self.now()).await?)
    }

    /// Returns a request as the one who made it sees it. If it is new, mails the address and returns the signals for the
    /// devices that may decide it. `network` is the client's.
    pub(super) async fn requested(
        &self,
        user: UserId,
        email: Email,
        requested: ApprovalRequested,
        network: ClientNetwork,
    ) -> (RequestedApproval, Notifications) {
        let ApprovalRequested { id, decides_at, new } = requested;
        let notifications = match new {
            Some((request, deciders)) => {
                tracing::info!(user_id = %user, request_id = %id, kind = request.kind.name(), "approval requested");
                self.announce(email, request, deciders, None, Some(network)).await
            }
            None => Notifications::default(),
        };
        let poll_token = approval::poll_token(&self.secret, id);
        (RequestedApproval { id, poll_token, number: approval::number(&self.secret, id), decides_at }, notifications)
    }

    /// Mails the address of a pending request, and returns the signals for the devices that may decide it. If the mail is
    /// dropped, or this node dies before it has recorded `mailed_at`, the background task announces the request again.
    /// `network` is the one that the request came from.
    async fn announce(
        &self,
        email: Email,
        request: PendingApproval,
        deciders: Vec<DeviceId>,
        mailed_at: Option<Timestamp>,
        network: Option<ClientNetwork>,
    ) -> Notifications {
        let mail = Mail::approval_requested(email, &request, self.now()).caused_from(network);
        let (recorded, is_recorded) = oneshot::channel::<()>();
        let (store, id) = (self.store.clone(), request.id);
        let forget = async move {
            // Until what is recorded below can be replaced.
            let _ = is_recorded.await;
            note_mailed(&store, id, None).await;
        };
        self.mailer.send_or_else(mail, forget);
        if mailed_at.is_none() {
            note_mailed(&self.store, id, Some(self.now())).await;
        }
        drop(recorded);
        Notifications::to_all(deciders, &Signal::ApprovalRequested(Box::new(request)))
    }

    /// Decides a request. `network` is the client's.
    ///
    /// # Errors
    /// `session_revoked`, `not_found`, `device_too_new`, `denied` if the number is wrong, `device_limit`,
    /// `unknown_device`, `email_taken`
    pub async fn decide(
        &self,
        caller: &Caller,
        id: ApprovalId,
        verdict: Verdict,
        network: ClientNetwork,
    ) -> Result<Notifications, Refusal> {
        let right = approval::number(&self.secret, id);
        let (decision, is_wrong) = match verdict {
            Verdict::Approve { number, replace } if number == right => (Decision::Approve { replace }, false),
            Verdict::Approve { .. } => (Decision::Deny, true),
            Verdict::Deny => (Decision::Deny, false),
        };
        let new = self.approved_session(id);
        let decided = self.store.decide(caller, id, decision, &new, self.now()).await?;
        if matches!(decided, Decided::Denied) {
            tracing::info!(user_id = %caller.user, device_id = %caller.device, request_id = %id, "approval denied");
        }
        match decided {
            _ if is_wrong => Err(Refusal::Denied),
            Decided::Approved(approved) => Ok(self.approved(id, approved, Some(network))),
            Decided::Before | Decided::Denied => Ok(Notifications::default()),
        }
    }

    /// Returns the state of a request to the one who made it. A request whose time has come is approved first, unless the
    /// clock is not trusted. An unknown request or a wrong token counts for the network.
    ///
    /// Polls of a request wait for each other, so that however many there are, they occupy few database connections.
    ///
    /// # Errors
    /// `rate_limited`; `not_found` if there is no such request, the token is wrong, or the token of the session was
    /// presented; `denied`; `unavailable` if too many polls of the request wait
    pub async fn poll_approval(
        &self,
        id: ApprovalId,
        poll_token: &str,
        network: ClientNetwork,
    ) -> Result<(PolledApproval, Notifications), Refusal> {
        let now = self.now();
        if !approval::is_poll_token(&self.secret, id, poll_token) {
            let counted = self.limits.poll_failure(network, now);
            counted.map_err(|retry_after| Refusal::RateLimited { retry_after })?;
            return Err(Refusal::NotFound);
        }
        let _place = self.polls.enter(id).await?;
        let _permit = self.poll_permits.acquire().await.map_err(|_| Refusal::Unavailable)?;
        let mut notifications = Notifications::default();
        let mut state = self.store.approval_state(id, now).await?;
        if matches!(state, ApprovalState::Pending { decides_at } if decides_at <= now)
            && let Some(cutoff) = self.cutoff().await?
        {
            notifications = self.approve_by_time(id, cutoff.now, Some(network)).await?;
            state = self.store.approval_state(id, now).await?;
        }
        match state {
            ApprovalState::Pending { decides_at } => Ok((PolledApproval::Pending { decides_at }, notifications)),
            ApprovalState::Approved(session) => {
                let token = approval::session_token(&self.secret, id);
                Ok((PolledApproval::Approved(session, token), notifications))
            }
            ApprovalState::Denied => Err(Refusal::Denied),
        }
    }

    /// Approves a request if its time has come at `now`, a time that can be trusted.
    async fn approve_by_time(
        &self,
        id: ApprovalId,
        now: Timestamp,
        network: Option<ClientNetwork>,
    ) -> Result<Notifications, Refusal> {
        let new = self.approved_session(id);
        let approved = self.store.approve_by_time(id, &new, now).await?;
        Ok(approved.map(|approved| self.approved(id, approved, network)).unwrap_or_default())
    }

    /// Sends the mails about what an approval did, and returns the signals. `network` is that of the client that decided or
    /// polled, or else that the request came from.
    fn approved(&self, id: ApprovalId, approved: Approved, network: Option<ClientNetwork>) -> Notifications {
        match approved {
            Approved::SignedIn(signed_in) => self.signed_in(*signed_in, network),
            Approved::AddressChanged { old } => {
                tracing::info!(request_id = %id, "address changed");
                self.mailer.send(Mail::address_changed(old).caused_from(network));
                Notifications::default()
            }
        }
    }

    /// What the approval of a request creates.
    fn approved_session(&self, id: ApprovalId) -> ApprovedSession {
        ApprovedSession {
            device: DeviceId(self.entropy.uuid()),
            session: self.new_session(&approval::session_token(&self.secret, id)),
            max_devices: self.policy.max_devices,
        }
    }

    /// Sends the mails that are due, and approves the requests whose time has come.
    async fn look_at_approvals(&self) -> Result<(), Refusal> {
        // Under a clock that is not trusted, time decides nothing, and no time is recorded at which a mail was sent.
        let Some(cutoff) = self.cutoff().await? else { return Ok(()) };
        for (email, request, deciders) in self.store.take_reminders(cutoff).await? {
            let network = request.client_network.as_deref().and_then(ClientNetwork::parse);
            let notifications = self.announce(email, request, deciders, Some(cutoff.now), network).await;
            self.notify(notifications);
        }
        let mut after = (Timestamp::from(DateTime::UNIX_EPOCH), ApprovalId(Uuid::nil()));
        loop {
            let due = self.store.due_approvals(after, self.policy.max_devices, cutoff.now).await?;
            let Some(last) = due.last() else { break };
            after = (last.at, last.id);
            for DueApproval { id, client_network, .. } in due {
                let network = client_network.as_deref().and_then(ClientNetwork::parse);
                match self.approve_by_time(id, cutoff.now, network).await {
                    Ok(notifications) => self.notify(notifications),
                    Err(error) => tracing::warn!(request_id = %id, %error, "cannot approve a request by time"),
                }
            }
        }
        Ok(())
    }
}

/// Records when the last mail about a request was sent; `None` if it was dropped.
async fn note_mailed(store: &Store, id: ApprovalId, at: Option<Timestamp>) {
    if let Err(error) = store.note_mailed(id, at).await {
        tracing::warn!(request_id = %id, %error, "cannot record whether a request was mailed");
    }
}

/// Approves requests whose time has come, and mails about pending ones once a day. Never returns.
pub async fn look_at_approvals_forever(service: Arc<Service>) {
    loop {
        if let Err(error) = service.look_at_approvals().await {
            tracing::warn!(%error, "cannot look at the requests that wait for an approval");
        }
        tokio::time::sleep(EVERY).await;
    }
}
