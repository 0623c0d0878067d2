//! Apple Push Notification service: requests over HTTP/2 with a token signed by a `.p8` key.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue},
};
use ring::{error::Unspecified, rand::SystemRandom, signature::EcdsaKeyPair};
use serde::{Deserialize, Serialize};

use crate::{
    endpoint::{Endpoint, EndpointRules, InvalidEndpoint},
    http::{Head, unix_seconds},
    jwt,
    key_text::{self, KeyError},
    notification::{Fields, Notification, Urgency},
    outcome::{Outcome, Reason, Verdict},
    settings::ApnsSettings,
    target::ApnsTarget,
};

/// Apple refuses tokens that are older than an hour.
const TOKEN_USE: Duration = Duration::from_mins(50);
/// Apple refuses a new token within 20 minutes of the last (`TooManyProviderTokenUpdates`).
const MIN_TOKEN_USE: Duration = Duration::from_mins(20);

const TOPIC: HeaderName = HeaderName::from_static("apns-topic");
const PUSH_TYPE: HeaderName = HeaderName::from_static("apns-push-type");
const PRIORITY: HeaderName = HeaderName::from_static("apns-priority");
const EXPIRATION: HeaderName = HeaderName::from_static("apns-expiration");
const COLLAPSE_ID: HeaderName = HeaderName::from_static("apns-collapse-id");

/// A key of an Apple developer account for APNs. `Debug` does not show it.
pub struct ApnsKey(EcdsaKeyPair);

impl ApnsKey {
    /// Reads the content of a `.p8` file.
    ///
    /// # Errors
    /// If it is not a key on P-256 in PKCS#8.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        key_text::ecdsa(text).map(Self)
    }
}

impl fmt::Debug for ApnsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApnsKey")
    }
}

/// Makes the requests of APNs.
pub(crate) struct Apns {
    key: ApnsKey,
    key_id: String,
    team_id: String,
    host: Endpoint,
    sandbox_host: Endpoint,
    alert: String,
    token: Mutex<Option<ProviderToken>>,
}

/// The `Authorization` header, and when it was made.
#[derive(Clone)]
pub(crate) struct ProviderToken {
    header: HeaderValue,
    made_at: SystemTime,
}

#[derive(Serialize)]
struct ProviderClaims<'a> {
    iss: &'a str,
    iat: u64,
}

/// The body of a request. The type is an alert that the app may change, since Apple drops notifications that
/// run an app in the background without showing anything.
#[derive(Serialize)]
struct ApnsRequest<'a> {
    aps: Aps<'a>,
    #[serde(flatten)]
    fields: Fields,
}

#[derive(Serialize)]
struct Aps<'a> {
    alert: Alert<'a>,
    #[serde(rename = "mutable-content")]
    mutable_content: u8,
}

#[derive(Serialize)]
struct Alert<'a> {
    body: &'a str,
}

/// The body of a refusal.
#[derive(Deserialize)]
struct ApnsRefusal {
    reason: String,
}

impl Apns {
    /// # Errors
    /// If the rules do not allow one of the hosts.
    pub(crate) fn new(settings: ApnsSettings, rules: &EndpointRules) -> Result<Self, InvalidEndpoint> {
        Ok(Self {
            host: Endpoint::parse(&settings.host, rules)?,
            sandbox_host: Endpoint::parse(&settings.sandbox_host, rules)?,
            key: settings.key,
            key_id: settings.key_id,
            team_id: settings.team_id,
            alert: settings.alert,
            token: Mutex::new(None),
        })
    }

    /// The host of a target.
    pub(crate) fn host(&self, target: &ApnsTarget) -> &Endpoint {
        if target.is_sandbox() { &self.sandbox_host } else { &self.host }
    }

    /// The origins of both hosts.
    pub(crate) fn origins(&self) -> [&Arc<str>; 2] {
        [self.host.origin(), self.sandbox_host.origin()]
    }

    /// The request that delivers a notification.
    pub(crate) fn request(
        &self,
        target: &ApnsTarget,
        notification: &Notification,
        token: &ProviderToken,
        now: SystemTime,
    ) -> Result<Request<Full<Bytes>>, Unspecified> {
        let content = ApnsRequest {
            aps: Aps { alert: Alert { body: &self.alert }, mutable_content: 1 },
            fields: notification.payload.fields(),
        };
        let body = serde_json::to_vec(&content).map_err(|_| Unspecified)?;
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        let path = format!("/3/device/{}", target.token());
        *request.uri_mut() = self.host(target).with_path(&path).map_err(|_| Unspecified)?;
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, token.header.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(TOPIC, HeaderValue::try_from(target.topic()).map_err(|_| Unspecified)?);
        headers.insert(PUSH_TYPE, HeaderValue::from_static("alert"));
        let priority = match notification.urgency {
            Urgency::Normal => "5",
            Urgency::High => "10",
        };
        headers.insert(PRIORITY, HeaderValue::from_static(priority));
        // Zero: Apple does not store the notification.
        let expiration = match notification.ttl_seconds() {
            0 => 0,
            ttl => unix_seconds(now).saturating_add(ttl),
        };
        headers.insert(EXPIRATION, HeaderValue::from(expiration));
        headers.insert(COLLAPSE_ID, HeaderValue::from_static(notification.payload.topic()));
        Ok(request)
    }

    /// The token for the next request.
    pub(crate) fn token(&self, now: SystemTime, random: &SystemRandom) -> Result<ProviderToken, Unspecified> {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(token) = &*token
            && now.duration_since(token.made_at).is_ok_and(|age| age < TOKEN_USE)
        {
            return Ok(token.clone());
        }
        let claims = ProviderClaims { iss: &self.team_id, iat: unix_seconds(now) };
        let jwt = jwt::es256(&self.key.0, Some(&self.key_id), &claims, random)?;
        let mut header = HeaderValue::try_from(format!("bearer {jwt}")).map_err(|_| Unspecified)?;
        header.set_sensitive(true);
        let made = ProviderToken { header, made_at: now };
        *token = Some(made.clone());
        Ok(made)
    }

    /// Discards a token that was refused because of its age. Returns whether a new one may be used now.
    pub(crate) fn discard(&self, refused: &ProviderToken, now: SystemTime) -> bool {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if token.as_ref().is_some_and(|token| token.made_at != refused.made_at) {
            return true;
        }
        let is_old = now.duration_since(refused.made_at).is_ok_and(|age| age >= MIN_TOKEN_USE);
        if is_old {
            *token = None;
        }
        is_old
    }
}

/// What an answer of APNs means ("Handling notification responses from APNs").
///
/// `BadDeviceToken` ends the target whether the token is malformed or belongs to the other of the two hosts. A 404 does
/// not: it is about the path, which this server makes.
pub(crate) fn judge(head: &Head, body: &[u8]) -> Verdict {
    if head.status.is_success() {
        return Verdict::Done(Outcome::Delivered);
    }
    let refusal = serde_json::from_slice::<ApnsRefusal>(body).ok();
    let reason = refusal.as_ref().map_or("", |refusal| refusal.reason.as_str());
    Verdict::Done(match (head.status, reason) {
        (StatusCode::GONE, _) | (StatusCode::BAD_REQUEST, "BadDeviceToken") => Outcome::Gone,
        (StatusCode::FORBIDDEN, "ExpiredProviderToken") => return Verdict::RenewToken,
        (StatusCode::FORBIDDEN, "Forbidden") => Outcome::Failed(Reason::Rejected),
        (StatusCode::FORBIDDEN, _) => Outcome::Later { wait: head.retry_after, reason: Reason::Credentials },
        (StatusCode::BAD_REQUEST, "IdleTimeout") => Outcome::later(Reason::ServerError),
        _ => head.judge(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::VapidKey;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn apns() -> Apns {
        let settings = ApnsSettings {
            key: ApnsKey::parse(&VapidKey::generate().unwrap()).unwrap(),
            key_id: "ABC123DEFG".into(),
            team_id: "DEF123GHIJ".into(),
            host: ApnsSettings::HOST.into(),
            sandbox_host: ApnsSettings::SANDBOX_HOST.into(),
            alert: "New message".into(),
        };
        Apns::new(settings, &EndpointRules::default()).unwrap()
    }

    #[test]
    fn a_token_is_used_for_fifty_minutes() {
        let apns = apns();
        let random = SystemRandom::new();
        let token = |now| apns.token(at(now), &random).unwrap().header;
        let first = token(1_800_000_000);
        assert_eq!(token(1_800_002_999), first);
        let second = token(1_800_003_000);
        assert_ne!(second, first);
        assert_ne!(token(1_700_000_000), second, "after the clock was set back");
        assert_eq!(format!("{first:?}"), "Sensitive");
    }

    #[test]
    fn a_refused_token_is_renewed_only_if_apple_accepts_a_new_one() {
        let apns = apns();
        let random = SystemRandom::new();
        let first = apns.token(at(1_800_000_000), &random).unwrap();
        assert!(!apns.discard(&first, at(1_800_001_199)));
        assert_eq!(apns.token(at(1_800_001_199), &random).unwrap().header, first.header);
        assert!(apns.discard(&first, at(1_800_001_200)));
        let second = apns.token(at(1_800_001_200), &random).unwrap();
        assert_ne!(second.header, first.header);
        // Another request used the first token too, and learns of its refusal now.
        assert!(apns.discard(&first, at(1_800_001_200)));
        assert_eq!(apns.token(at(1_800_001_200), &random).unwrap().header, second.header);
    }

    #[test]
    fn every_documented_answer_is_judged() {
        use Outcome::{Delivered, Failed, Gone};
        let wait = None;
        let later = |reason| Outcome::Later { wait, reason };
        let cases = [
            (200, "", Delivered),
            (400, "BadCollapseId", Failed(Reason::Rejected)),
            (400, "BadDeviceToken", Gone),
            (400, "BadExpirationDate", Failed(Reason::Rejected)),
            (400, "BadMessageId", Failed(Reason::Rejected)),
            (400, "BadPriority", Failed(Reason::Rejected)),
            (400, "BadTopic", Failed(Reason::Rejected)),
            (400, "DeviceTokenNotForTopic", Failed(Reason::Rejected)),
            (400, "DuplicateHeaders", Failed(Reason::Rejected)),
            (400, "IdleTimeout", later(Reason::ServerError)),
            (400, "InvalidPushType", Failed(Reason::Rejected)),
            (400, "MissingDeviceToken", Failed(Reason::Rejected)),
            (400, "MissingTopic", Failed(Reason::Rejected)),
            (400, "PayloadEmpty", Failed(Reason::Rejected)),
            (400, "TopicDisallowed", Failed(Reason::Rejected)),
            (403, "BadCertificate", later(Reason::Credentials)),
            (403, "BadCertificateEnvironment", later(Reason::Credentials)),
            (403, "BadEnvironmentKeyIdInToken", later(Reason::Credentials)),
            (403, "Forbidden", Failed(Reason::Rejected)),
            (403, "InvalidProviderToken", later(Reason::Credentials)),
            (403, "MissingProviderToken", later(Reason::Credentials)),
            (403, "UnrelatedKeyIdInToken", later(Reason::Credentials)),
            (404, "BadPath", Failed(Reason::Rejected)),
            (405, "MethodNotAllowed", Failed(Reason::Rejected)),
            (410, "ExpiredToken", Gone),
            (410, "Unregistered", Gone),
            (413, "PayloadTooLarge", Failed(Reason::Rejected)),
            (429, "TooManyProviderTokenUpdates", later(Reason::RateLimited)),
            (429, "TooManyRequests", later(Reason::RateLimited)),
            (500, "InternalServerError", later(Reason::ServerError)),
            (503, "ServiceUnavailable", later(Reason::ServerError)),
            (503, "Shutdown", later(Reason::ServerError)),
        ];
        let judged = |status: u16, body: &str| {
            judge(&Head { status: StatusCode::from_u16(status).unwrap(), retry_after: wait }, body.as_bytes())
        };
        for (status, reason, outcome) in cases {
            let body = format!(r#"{{"reason":"{reason}","timestamp":1}}"#);
            assert_eq!(judged(status, &body), Verdict::Done(outcome), "{status} {reason}");
        }
        assert_eq!(judged(403, r#"{"reason":"ExpiredProviderToken"}"#), Verdict::RenewToken);
        assert_eq!(judged(400, "<html>BadDeviceToken"), Verdict::Done(Failed(Reason::Rejected)));
    }
}
