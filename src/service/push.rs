//! Push wake-ups: targets of devices, their confirmation, and the wake-ups that are due.
//!
//! Every node looks for due wake-ups, also of messages that other nodes accepted, so a wake-up is not lost with a node. A push says
//! only that messages wait. What a push service answers decides when the next push is due.

mod places;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::Rng;
use sealwire_push::{
    ApnsTarget, FcmTarget, Kind, Nonce, Notification, Outcome, Payload, Reason, Sender, Target, TargetError, Urgency,
    WebPushTarget,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use self::places::{PlaceHolder, Places};
use super::{Service, sliding_window::SlidingWindow};
use crate::{
    domain::{
        Caller, ClientNetwork, DeviceId, Refusal, Timestamp,
        push::{
            NONCE_BYTES, NONCE_LIFETIME, PushFailures, PushKind, PushNonce, PushState, PushTarget, WAKE_AGAIN_AFTER,
            nonce_pause,
        },
    },
    log_throttle::LogThrottle,
    metrics::{Metrics, PushResult, PushRoute},
    store::{DueWakeUp, NewPushTarget, PushRegistration, SettledWakeUp, Store},
    tasks::Work,
};

/// Interval between looks at the wake-ups that are due.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The pause after the database has failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// For how long a node takes a wake-up: longer than a push takes, with its wait for a place.
const TAKEN_FOR: Duration = Duration::from_secs(30);
/// Maximum number of wake-ups that are taken, or whose outcomes are written, in one transaction.
const PER_TRANSACTION: usize = 256;
/// Wake-ups are taken only if there is room for so many of each kind: small transactions would cost sends more than they give.
const MIN_TAKEN: usize = PER_TRANSACTION / 2;
/// How long outcomes are collected before they are written.
const WRITE_EVERY: Duration = Duration::from_millis(200);
/// How long a server that stops waits for wake-ups that are under way.
const FINISH_FOR: Duration = Duration::from_secs(2);
/// How long outcomes are collected before they are written while a server stops.
const GATHER_FOR: Duration = Duration::from_millis(50);
/// Maximum number of confirmations and tests that are being sent.
const MAX_REQUESTED: usize = 256;
/// Maximum number of confirmations that are being sent or wait for their next try. Each takes about 4 KB of memory.
const MAX_CONFIRMATIONS: usize = 4096;
/// The shortest pause after which a push is tried again for which there was no place.
const BUSY_PAUSE: Duration = Duration::from_millis(250);
/// Registrations of a device in an hour.
const REGISTRATIONS_PER_HOUR: usize = 5;
/// Tests of a device in a minute.
const TESTS_PER_MINUTE: usize = 1;
/// At most one failure is logged per interval.
const LOG_EVERY: Duration = Duration::from_mins(1);

/// What a client needs to know about push.
#[derive(Clone, Debug)]
pub struct PushStatus {
    /// Whether the device has a target.
    pub state: PushState,
    /// The server's public key for Web Push, in base64url.
    pub vapid_public_key: Option<String>,
    /// The kinds of targets that the server can send to.
    pub kinds: Vec<PushKind>,
}

/// Sends pushes, and counts those that devices ask for.
pub struct Pushes {
    /// `None` if no pushes can be sent.
    sender: Option<Sender>,
    store: Store,
    metrics: Arc<Metrics>,
    work: Work,
    /// Places for confirmations and tests while they are being sent.
    requested: Places,
    /// Places for confirmations, also while they wait for their next try.
    confirmations: Places,
    registrations: SlidingWindow<DeviceId>,
    tests: SlidingWindow<DeviceId>,
    failures: LogThrottle,
}

impl Pushes {
    /// Starts with nothing counted.
    #[must_use]
    pub fn new(sender: Option<Sender>, store: Store, metrics: Arc<Metrics>, work: Work) -> Self {
        Self {
            sender,
            store,
            metrics,
            work,
            requested: Places::new(MAX_REQUESTED),
            confirmations: Places::new(MAX_CONFIRMATIONS),
            registrations: SlidingWindow::new(REGISTRATIONS_PER_HOUR, Duration::from_hours(1)),
            tests: SlidingWindow::new(TESTS_PER_MINUTE, Duration::from_mins(1)),
            failures: LogThrottle::new(LOG_EVERY),
        }
    }

    /// The kinds of targets that can be sent to.
    fn kinds(&self) -> Vec<PushKind> {
        let kind = |kind: Kind| match kind {
            Kind::WebPush => PushKind::Webpush,
            Kind::Apns => PushKind::Apns,
            Kind::Fcm => PushKind::Fcm,
        };
        self.sender.iter().flat_map(Sender::kinds).map(kind).collect()
    }

    /// Checks a target that a client gives, or that is stored.
    ///
    /// # Errors
    /// The field that is invalid.
    fn parse(sender: &Sender, target: &PushTarget) -> Result<Target, TargetError> {
        Ok(match target {
            PushTarget::WebPush { endpoint, p256dh, auth } => {
                Target::WebPush(WebPushTarget::parse(endpoint, p256dh, auth, sender.endpoint_rules())?)
            }
            PushTarget::Apns { token, topic, is_sandbox } => {
                Target::Apns(ApnsTarget::parse(token, topic, *is_sandbox)?)
            }
            PushTarget::Fcm { token } => Target::Fcm(FcmTarget::parse(token)?),
        })
    }

    /// The label of a target in the metrics.
    fn route(&self, target: &PushTarget) -> PushRoute {
        let is_trusted = |endpoint: &str| self.sender.as_ref().is_some_and(|sender| sender.is_trusted(endpoint));
        match target {
            PushTarget::WebPush { endpoint, .. } if is_trusted(endpoint) => PushRoute::TrustedWebPush,
            PushTarget::WebPush { .. } => PushRoute::OtherWebPush,
            PushTarget::Apns { .. } => PushRoute::Apns,
            PushTarget::Fcm { .. } => PushRoute::Fcm,
        }
    }

    /// Sends a push, and counts what came of it. A stored target that the settings no longer allow has failed.
    async fn send(&self, target: &PushTarget, payload: Payload, time_to_live: Duration) -> Sent {
        let (sender, route) = (self.sender.as_ref(), self.route(target));
        let Some((sender, target)) = sender.and_then(|sender| Some((sender, Self::parse(sender, target).ok()?))) else {
            let result = PushResult::Rejected(Reason::NotConfigured);
            self.metrics.pushes.inc((route, result));
            return Sent::Rejected;
        };
        let notification = Notification { payload, urgency: Urgency::High, time_to_live };
        let (sent, result) = match sender.send(&target, &notification).await {
            Outcome::Delivered => (Sent::Accepted, PushResult::Accepted),
            Outcome::Gone => (Sent::Gone, PushResult::Gone),
            Outcome::Later { wait, reason } => (Sent::Later(wait), PushResult::Later(reason)),
            Outcome::Busy { wait } => (Sent::Busy(wait.max(BUSY_PAUSE)), PushResult::Busy),
            Outcome::Failed(reason @ Reason::NotConfigured) => (Sent::Elsewhere, PushResult::Rejected(reason)),
            Outcome::Failed(reason) => (Sent::Rejected, PushResult::Rejected(reason)),
        };
        self.metrics.pushes.inc((route, result));
        if let PushResult::Later(reason) | PushResult::Rejected(reason) = result
            && let Some(failures) = self.failures.count(Instant::now())
        {
            tracing::warn!(kind = target.kind().as_str(), reason = reason.as_str(), failures, "a push has failed");
        }
        sent
    }

    /// Spawns a push that a client asks for. A server that stops abandons it, because a slow push service could delay every
    /// stop; the client asks again.
    fn spawn<T>(&self, push: impl Future<Output = T> + Send + 'static) {
        let work = self.work.clone();
        self.work.spawn(async move {
            tokio::select! {
                _ = push => {}
                () = work.ending() => {}
            }
        });
    }

    /// Forgets a target that a push service does not know, unless the device has registered again.
    async fn forget(&self, device: DeviceId, id: PushRegistration) {
        match self.store.forget_push(device, id).await {
            Ok(true) => tracing::info!(device_id = %device, "a push target is gone"),
            Ok(false) => {}
            // The next push to it is answered in the same way.
            Err(error) => tracing::warn!(%error, "cannot delete a push target that is gone"),
        }
    }

    /// Sends a push that a device asks for. One that is displaced is sent later.
    async fn send_requested(
        &self,
        holder: PlaceHolder,
        target: &PushTarget,
        payload: Payload,
        time_to_live: Duration,
    ) -> Sent {
        let place = self.requested.enter(holder);
        place.hold(self.send(target, payload, time_to_live)).await.unwrap_or(Sent::Busy(BUSY_PAUSE))
    }

    /// Sends the nonce that confirms a target. Tries again while the target is still the one of the device.
    async fn send_nonce(&self, holder: PlaceHolder, new: &NewPushTarget, nonce: &PushNonce) {
        let deadline = tokio::time::Instant::now() + NONCE_LIFETIME;
        for failures in 0.. {
            let payload = Payload::Confirm { nonce: Nonce::new(nonce.0) };
            let retry_after = match self.send_requested(holder, &new.target, payload, NONCE_LIFETIME).await {
                Sent::Accepted | Sent::Rejected | Sent::Elsewhere => return,
                Sent::Gone => return self.forget(holder.device, new.id).await,
                Sent::Busy(wait) => Some(wait),
                Sent::Later(wait) => wait,
            };
            let Some(pause) = nonce_pause(failures, retry_after) else { return };
            if tokio::time::Instant::now() + pause >= deadline {
                return;
            }
            sleep(pause).await;
            match self.store.is_push_unconfirmed(holder.device, new.id).await {
                Ok(true) => {}
                // It was confirmed, replaced or removed.
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(%error, "cannot look up a push target that is to be confirmed");
                    return;
                }
            }
        }
    }

    /// Sends a wake-up that is due, and says what is to be written about it.
    async fn wake(&self, due: DueWakeUp, clock: impl Fn() -> Timestamp) -> Option<SettledWakeUp> {
        let sent = self.send(&due.target, Payload::Wake, WAKE_AGAIN_AFTER).await;
        let now = clock();
        let done = SettledWakeUp {
            next_at: now + WAKE_AGAIN_AFTER,
            is_done: true,
            failures: Some(PushFailures::default()),
            due,
        };
        Some(match sent {
            Sent::Accepted | Sent::Rejected => done,
            // It is due again half a minute after it was taken.
            Sent::Elsewhere => return None,
            Sent::Gone => {
                self.forget(done.due.device, done.due.id).await;
                return None;
            }
            Sent::Busy(wait) => SettledWakeUp { next_at: now + wait, is_done: false, failures: None, ..done },
            Sent::Later(wait) => {
                if let (failures, Some(next_at)) = done.due.failures.after(wait, now) {
                    SettledWakeUp { next_at, is_done: false, failures: Some(failures), ..done }
                } else {
                    self.metrics.pushes.inc((self.route(&done.due.target), PushResult::GivenUp));
                    SettledWakeUp { next_at: now + WAKE_AGAIN_AFTER.max(wait.unwrap_or_default()), ..done }
                }
            }
        })
    }
}

/// What came of a push.
enum Sent {
    Accepted,
    Gone,
    Later(Option<Duration>),
    /// There was no place for it; there should be one after this time.
    Busy(Duration),
    Rejected,
    /// This node does not send pushes of its kind; another one may.
    Elsewhere,
}

fn invalid(error: &TargetError) -> Refusal {
    Refusal::InvalidField { path: error.field().into(), expected: error.expected() }
}

impl Service {
    /// Returns the state of a device's push target, and what a client needs to register one.
    pub(super) fn push_status(&self, state: PushState) -> PushStatus {
        let sender = self.pushes.sender.as_ref();
        let vapid_public_key = sender.and_then(Sender::vapid_public_key).map(str::to_owned);
        PushStatus { state, vapid_public_key, kinds: self.pushes.kinds() }
    }

    /// Replaces the push target of the caller's device, and sends a nonce to it, unless the same target is active.
    ///
    /// # Errors
    /// `session_revoked`, `bad_request`, `rate_limited`, `unavailable`
    pub async fn register_push(
        &self,
        caller: &Caller,
        network: ClientNetwork,
        target: PushTarget,
    ) -> Result<PushState, Refusal> {
        let sender = self.pushes.sender.as_ref().filter(|_| self.pushes.kinds().contains(&target.kind()));
        let unknown = || Refusal::InvalidField { path: "kind".into(), expected: "a kind in welcome.push" };
        let parsed = Pushes::parse(sender.ok_or_else(unknown)?, &target).map_err(|error| invalid(&error))?;
        let target = canonical(&parsed);
        let now = self.now();
        if self.store.active_target(caller, now).await?.is_some_and(|(_, active)| active == target) {
            return Ok(PushState::Active);
        }
        let limited = self.pushes.registrations.take(&[(caller.device, 1)], now);
        limited.map_err(|retry_after| Refusal::RateLimited { retry_after })?;
        let mut bytes = [0; NONCE_BYTES];
        self.entropy.draw(|rng| rng.fill_bytes(&mut bytes));
        let nonce = PushNonce(bytes);
        let new = NewPushTarget { id: PushRegistration(self.entropy.uuid()), target, nonce_hash: nonce.hash() };
        self.store.register_push(caller, &new, now).await?;
        let (pushes, holder) = (self.pushes.clone(), place_holder(caller, network));
        // Ends the one of the target before.
        let place = pushes.confirmations.enter(holder);
        self.pushes.spawn(place.hold(async move { pushes.send_nonce(holder, &new, &nonce).await }));
        Ok(PushState::Unconfirmed)
    }

    /// Confirms the push target of the caller's device.
    ///
    /// # Errors
    /// `session_revoked`; `not_found` if there is no target, or the nonce is another one or past its time.
    pub async fn confirm_push(&self, caller: &Caller, nonce: &PushNonce) -> Result<(), Refusal> {
        Ok(self.store.confirm_push(caller, &nonce.hash(), self.policy.push_after, self.now()).await?)
    }

    /// Deletes the push target of the caller's device.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn remove_push(&self, caller: &Caller) -> Result<(), Refusal> {
        Ok(self.store.remove_push(caller, self.now()).await?)
    }

    /// Sends a wake-up to the push target of the caller's device.
    ///
    /// # Errors
    /// `session_revoked`, `rate_limited`, `unavailable`; `not_found` if the device has no active target.
    pub async fn test_push(&self, caller: &Caller, network: ClientNetwork) -> Result<(), Refusal> {
        let now = self.now();
        let (id, target) = self.store.active_target(caller, now).await?.ok_or(Refusal::NotFound)?;
        let limited = self.pushes.tests.take(&[(caller.device, 1)], now);
        limited.map_err(|retry_after| Refusal::RateLimited { retry_after })?;
        let (pushes, holder) = (self.pushes.clone(), place_holder(caller, network));
        self.pushes.spawn(async move {
            if let Sent::Gone = pushes.send_requested(holder, &target, Payload::Wake, WAKE_AGAIN_AFTER).await {
                pushes.forget(holder.device, id).await;
            }
        });
        Ok(())
    }

    /// The number of pushes to push services that are under way.
    #[must_use]
    pub fn pushes_under_way(&self) -> usize {
        self.pushes.sender.as_ref().map_or(0, |sender| sender.usage().under_way)
    }
}

fn place_holder(caller: &Caller, network: ClientNetwork) -> PlaceHolder {
    PlaceHolder { device: caller.device, user: caller.user, network }
}

/// The target in the form in which it is stored and compared.
fn canonical(target: &Target) -> PushTarget {
    match target {
        Target::WebPush(target) => {
            PushTarget::WebPush { endpoint: target.endpoint().to_owned(), p256dh: target.p256dh(), auth: target.auth() }
        }
        Target::Apns(target) => PushTarget::Apns {
            token: target.token().to_owned(),
            topic: target.topic().to_owned(),
            is_sandbox: target.is_sandbox(),
        },
        Target::Fcm(target) => PushTarget::Fcm { token: target.token().to_owned() },
    }
}

/// Wakes devices whose wake-ups are due. Never returns.
pub async fn wake_devices_forever(service: Arc<Service>) {
    let mut under_way = JoinSet::new();
    let mut outcomes: Vec<SettledWakeUp> = Vec::new();
    let (mut look_at, mut write_at) = (tokio::time::Instant::now(), tokio::time::Instant::now());
    // A server that stops waits for it.
    let mut unfinished = None;
    let mut ending = Box::pin(service.pushes.work.ending());
    let kinds = service.pushes.kinds();
    let capacity = service.pushes.sender.as_ref().map_or(0, Sender::capacity);
    loop {
        // Pushes that find no place hold none of these, so services that hang leave some for those that do not.
        let limit = capacity.saturating_sub(under_way.len()) / kinds.len().max(1);
        tokio::select! {
            Some(outcome) = under_way.join_next() => {
                if outcomes.is_empty() {
                    write_at = tokio::time::Instant::now() + WRITE_EVERY;
                }
                outcomes.extend(outcome.ok().flatten());
                if outcomes.len() >= PER_TRANSACTION {
                    service.settle_wake_ups(&mut outcomes).await;
                }
            }
            () = tokio::time::sleep_until(write_at), if !outcomes.is_empty() => {
                service.settle_wake_ups(&mut outcomes).await;
            }
            () = tokio::time::sleep_until(look_at), if limit >= MIN_TAKEN => {
                let limit = limit.min(PER_TRANSACTION);
                let mut pause = LOOK_EVERY;
                for kind in &kinds {
                    let now = service.now();
                    match service.store.take_due_wake_ups(*kind, limit, now + TAKEN_FOR, now).await {
                        Ok(taken) => {
                            if taken.len() == limit {
                                // There may be more.
                                pause = Duration::ZERO;
                            }
                            for due in taken {
                                let service = service.clone();
                                under_way.spawn(async move { service.pushes.wake(due, || service.now()).await });
                            }
                        }
                        Err(error) => {
                            tracing::warn!(%error, "cannot look for devices to wake");
                            pause = PAUSE_AFTER_FAILURE;
                            break;
                        }
                    }
                }
                look_at = tokio::time::Instant::now() + pause;
            }
            () = &mut ending => break,
        }
        let is_idle = under_way.is_empty() && outcomes.is_empty();
        unfinished = if is_idle { None } else { unfinished.or_else(|| Some(service.pushes.work.begin())) };
    }
    // Those that wait for a place end, and are given back. One that was sent and not recorded would be sent again.
    if let Some(sender) = &service.pushes.sender {
        sender.close();
    }
    // It is written as it comes, because the time may end sooner.
    let finish = async {
        while let Some(outcome) = under_way.join_next().await {
            outcomes.extend(outcome.ok().flatten());
            sleep(GATHER_FOR).await;
            while let Some(outcome) = under_way.try_join_next() {
                outcomes.extend(outcome.ok().flatten());
            }
            service.settle_wake_ups(&mut outcomes).await;
        }
    };
    // Those that are not finished by then are due again half a minute after they were taken.
    let _ = timeout(FINISH_FOR, finish).await;
    service.settle_wake_ups(&mut outcomes).await;
    drop(unfinished);
    std::future::pending::<()>().await;
}

impl Service {
    /// How long the oldest wake-up of a kind has been due and was not taken.
    ///
    /// # Errors
    /// `unavailable`
    pub async fn overdue_wake_up(&self, kind: PushKind) -> Result<Duration, Refusal> {
        Ok(self.store.overdue_wake_up(kind, self.now()).await?)
    }

    /// Writes what came of wake-ups. If that fails, they are due again half a minute after they were taken.
    async fn settle_wake_ups(&self, outcomes: &mut Vec<SettledWakeUp>) {
        for outcomes in outcomes.chunks(PER_TRANSACTION) {
            if let Err(error) = self.store.settle_wake_ups(outcomes).await {
                tracing::warn!(%error, "cannot record that devices were woken");
            }
        }
        outcomes.clear();
    }
}
