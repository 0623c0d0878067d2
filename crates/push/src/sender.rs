//! Sends notifications.

use std::{fmt, sync::Arc, time::SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use ring::{error::Unspecified, rand::SystemRandom};
use tokio::time::timeout;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, crypto::ring as provider};

use crate::{
    apns::{self, Apns},
    endpoint::{Endpoint, EndpointRules},
    fcm::{self, AccessToken, Fcm},
    http::{Answer, HttpClient, LookUps, Pool, Resolve, SystemResolver},
    notification::Notification,
    origins::{Origins, Place},
    outcome::{Outcome, Reason, Verdict},
    settings::{Limits, Settings, WebPushSettings},
    target::{ApnsTarget, FcmTarget, Kind, Target, WebPushTarget},
    web_push::{self, WebPush},
};

/// Look-ups of names at a time, for origins that connections are kept for, and again for the others. Each takes a thread,
/// for as long as the system's resolver wants.
const LOOK_UPS: usize = 32;
/// The longest subject of VAPID tokens.
const MAX_SUBJECT: usize = 256;

/// Sends notifications. Clones share limits and connections.
///
/// Use it from one tokio runtime: its connections belong to the runtime that opened them.
#[derive(Clone)]
pub struct Sender(Arc<Inner>);

struct Inner {
    web_push: Option<WebPush>,
    apns: Option<Apns>,
    fcm: Option<Fcm>,
    rules: EndpointRules,
    limits: Limits,
    origins: Origins,
    http: HttpClient,
    random: SystemRandom,
    clock: Box<dyn Fn() -> SystemTime + Send + Sync>,
}

/// A sender cannot be made from its settings.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The subject of VAPID tokens is invalid.
    #[error("the subject of web push is not a mailto: or https: URL of at most {MAX_SUBJECT} bytes")]
    Subject,
    /// An identifier of APNs is invalid.
    #[error("the {0} of APNs is not made of letters and digits")]
    ApnsIdentifier(&'static str),
    /// A URL of the settings is not one that requests are sent to.
    #[error("a URL of {0} is not an https URL of a public host, on port 443 or from 1024 on")]
    Url(Kind),
    /// The system has no root certificates.
    #[error("the system has no root certificates: install them (ca-certificates)")]
    NoRoots,
    /// A root certificate of the settings is invalid.
    #[error("a root certificate is invalid: {0}")]
    Root(rustls::Error),
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(rustls::Error),
}

/// What a sender uses now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Notifications that are under way.
    pub under_way: usize,
    /// Sends that wait for their turn.
    pub waiting: usize,
    /// Origins that the sender remembers.
    pub origins: usize,
}

impl Sender {
    /// A sender with the resolver of the operating system. `clock` gives the time of day, for tokens.
    ///
    /// # Errors
    /// If a setting is invalid, or if the system has no root certificates.
    pub fn new(settings: Settings, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Result<Self, SetupError> {
        Self::build(settings, Box::new(clock), Arc::new(SystemResolver))
    }

    /// A sender with another resolver, such as one of a test.
    ///
    /// # Errors
    /// As [`Sender::new`].
    pub fn with_resolver(
        settings: Settings,
        clock: impl Fn() -> SystemTime + Send + Sync + 'static,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, SetupError> {
        Self::build(settings, Box::new(clock), resolver)
    }

    fn build(
        settings: Settings,
        clock: Box<dyn Fn() -> SystemTime + Send + Sync>,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, SetupError> {
        let tls = tls(&settings)?;
        let rules = EndpointRules::new(settings.allow_insecure, &settings.forbidden_networks);
        let web_push = settings.web_push.map(set_up_web_push).transpose()?;
        if let Some(apns) = &settings.apns {
            for (name, value) in [("key id", &apns.key_id), ("team id", &apns.team_id)] {
                if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                    return Err(SetupError::ApnsIdentifier(name));
                }
            }
        }
        let apns =
            settings.apns.map(|apns| Apns::new(apns, &rules)).transpose().map_err(|_| SetupError::Url(Kind::Apns))?;
        let fcm = settings.fcm.map(|fcm| Fcm::new(fcm, &rules)).transpose().map_err(|_| SetupError::Url(Kind::Fcm))?;
        let limits = settings.limits;
        let mut pinned: Vec<(Kind, Arc<str>)> =
            apns.iter().flat_map(Apns::origins).map(|origin| (Kind::Apns, Arc::clone(origin))).collect();
        pinned.extend(fcm.iter().map(|fcm| (Kind::Fcm, Arc::clone(fcm.host().origin()))));
        let look_ups = LookUps::new(Arc::clone(&resolver), LOOK_UPS);
        let single_look_ups = LookUps::new(resolver, LOOK_UPS);
        Ok(Self(Arc::new(Inner {
            origins: Origins::new(limits, settings.trusted_services, pinned),
            http: HttpClient::new(&rules, &tls, limits.timeout, look_ups, single_look_ups),
            random: SystemRandom::new(),
            web_push,
            apns,
            fcm,
            rules,
            limits,
            clock,
        })))
    }

    /// The kinds of targets that notifications are sent to.
    #[must_use]
    pub fn kinds(&self) -> Vec<Kind> {
        let configured = |kind: &Kind| match kind {
            Kind::WebPush => self.0.web_push.is_some(),
            Kind::Apns => self.0.apns.is_some(),
            Kind::Fcm => self.0.fcm.is_some(),
        };
        Kind::ALL.into_iter().filter(configured).collect()
    }

    /// The public key that browsers need to subscribe: 65 bytes in unpadded base64url. `None` without Web Push.
    #[must_use]
    pub fn vapid_public_key(&self) -> Option<&str> {
        self.0.web_push.as_ref().map(WebPush::public_key)
    }

    /// The rules for endpoints of Web Push.
    #[must_use]
    pub fn endpoint_rules(&self) -> &EndpointRules {
        &self.0.rules
    }

    /// What the sender uses now.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let (under_way, waiting, origins) = self.0.origins.usage();
        Usage { under_way, waiting, origins }
    }

    /// The most sends that can be waiting or under way at a time. Origins that are neither proven nor trusted take at most half
    /// of it.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.0.limits.under_way + self.0.limits.waiting
    }

    /// Whether an endpoint belongs to one of [`Settings::trusted_services`].
    #[must_use]
    pub fn is_trusted(&self, endpoint: &str) -> bool {
        Endpoint::parse(endpoint, &self.0.rules).is_ok_and(|endpoint| self.0.origins.is_trusted(endpoint.origin()))
    }

    /// From now on nothing new is sent. Sends that wait for their turn end with [`Outcome::Busy`]; those that are under way go
    /// on.
    pub fn close(&self) {
        self.0.origins.close();
    }

    /// Sends a notification. Takes at most twice [`Limits::timeout`]: once to wait for its turn, once to be sent.
    pub async fn send(&self, target: &Target, notification: &Notification) -> Outcome {
        let inner = &*self.0;
        match target {
            Target::WebPush(target) => match &inner.web_push {
                Some(web_push) => inner.send_web_push(web_push, target, notification).await,
                None => Outcome::Failed(Reason::NotConfigured),
            },
            Target::Apns(target) => match &inner.apns {
                Some(apns) => inner.send_apns(apns, target, notification).await,
                None => Outcome::Failed(Reason::NotConfigured),
            },
            Target::Fcm(target) => match &inner.fcm {
                Some(fcm) => inner.send_fcm(fcm, target, notification).await,
                None => Outcome::Failed(Reason::NotConfigured),
            },
        }
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("kinds", &self.kinds()).finish_non_exhaustive()
    }
}

impl Inner {
    async fn send_web_push(&self, web_push: &WebPush, target: &WebPushTarget, notification: &Notification) -> Outcome {
        let place = match self.origins.take(Kind::WebPush, target.endpoint.origin()).await {
            Ok(place) => place,
            Err(wait) => return Outcome::Busy { wait },
        };
        let pool = if place.is_proven() { Pool::Kept } else { Pool::Single };
        let sent = async {
            let now = (self.clock)();
            let request = web_push.request(target, notification, place.vapid_token(), now, &self.random);
            let answer = self.exchange(&place, pool, request, now).await?;
            let outcome = web_push::judge(&answer.head);
            answer.read().await;
            Ok(outcome)
        };
        self.in_time(&place, sent).await
    }

    async fn send_apns(&self, apns: &Apns, target: &ApnsTarget, notification: &Notification) -> Outcome {
        let place = match self.origins.take(Kind::Apns, apns.host(target).origin()).await {
            Ok(place) => place,
            Err(wait) => return Outcome::Busy { wait },
        };
        let sent = async {
            let mut is_renewed = false;
            loop {
                let now = (self.clock)();
                let token = apns.token(now, &self.random).map_err(encryption_failed)?;
                let request = apns.request(target, notification, &token, now);
                let answer = self.exchange(&place, Pool::Http2, request, now).await?;
                let head = answer.head;
                match apns::judge(&head, &answer.read().await) {
                    Verdict::Done(outcome) => return Ok(outcome),
                    Verdict::RenewToken if !is_renewed && apns.discard(&token, now) => is_renewed = true,
                    Verdict::RenewToken => return Ok(Outcome::later(Reason::Credentials)),
                }
            }
        };
        self.in_time(&place, sent).await
    }

    async fn send_fcm(&self, fcm: &Fcm, target: &FcmTarget, notification: &Notification) -> Outcome {
        let place = match self.origins.take(Kind::Fcm, fcm.host().origin()).await {
            Ok(place) => place,
            Err(wait) => return Outcome::Busy { wait },
        };
        let sent = async {
            let mut is_renewed = false;
            loop {
                let token = self.access_token(fcm).await?;
                let request = fcm.request(target, notification, &token);
                let answer = self.exchange(&place, Pool::Kept, request, (self.clock)()).await?;
                let head = answer.head;
                match fcm::judge(&head, &answer.read().await) {
                    Verdict::Done(outcome) => return Ok(outcome),
                    Verdict::RenewToken if !is_renewed => {
                        fcm.access().lock().await.discard(&token);
                        is_renewed = true;
                    }
                    Verdict::RenewToken => return Ok(Outcome::later(Reason::Credentials)),
                }
            }
        };
        self.in_time(&place, sent).await
    }

    /// The access token for FCM. Of several callers one asks for it, and the others wait.
    async fn access_token(&self, fcm: &Fcm) -> Result<AccessToken, Outcome> {
        let mut access = fcm.access().lock().await;
        let now = (self.clock)();
        if let Some(known) = access.current(now) {
            return known;
        }
        let asked = async {
            let request = fcm.token_request(now, &self.random).map_err(encryption_failed)?;
            let answer = self.http.send(Pool::Kept, request, now).await?;
            Ok((answer.head, answer.read().await))
        };
        // Shorter than the send, so that a service that hangs is noted as a refusal, and not asked by each send.
        let granted = timeout(self.limits.timeout / 2, asked).await.unwrap_or(Err(Outcome::later(Reason::Timeout)));
        access.keep(granted, now)
    }

    /// Sends a request, and notes whether the origin answers.
    async fn exchange(
        &self,
        place: &Place<'_>,
        pool: Pool,
        request: Result<Request<Full<Bytes>>, Unspecified>,
        now: SystemTime,
    ) -> Result<Answer, Outcome> {
        let request = request.map_err(encryption_failed)?;
        let answer = self.http.send(pool, request, now).await;
        match &answer {
            Ok(_) => place.answered(),
            Err(_) => place.failed(),
        }
        answer
    }

    async fn in_time(&self, place: &Place<'_>, sent: impl Future<Output = Result<Outcome, Outcome>>) -> Outcome {
        if let Ok(Ok(outcome) | Err(outcome)) = timeout(self.limits.timeout, sent).await {
            outcome
        } else {
            place.failed();
            Outcome::later(Reason::Timeout)
        }
    }
}

fn encryption_failed(_: Unspecified) -> Outcome {
    Outcome::Failed(Reason::Encryption)
}

fn set_up_web_push(settings: WebPushSettings) -> Result<WebPush, SetupError> {
    let subject = settings.subject;
    let is_valid = subject.len() <= MAX_SUBJECT
        && (subject.starts_with("mailto:") || subject.starts_with("https:"))
        && subject.bytes().all(|byte| byte.is_ascii_graphic());
    if is_valid { Ok(WebPush::new(settings.key, subject)) } else { Err(SetupError::Subject) }
}

fn tls(settings: &Settings) -> Result<ClientConfig, SetupError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for root in &settings.extra_roots {
        roots.add(root.clone()).map_err(SetupError::Root)?;
    }
    let is_in_use = settings.web_push.is_some() || settings.apns.is_some() || settings.fcm.is_some();
    if roots.is_empty() && is_in_use && !settings.allow_insecure {
        return Err(SetupError::NoRoots);
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(SetupError::Tls)?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
