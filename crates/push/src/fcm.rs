//! Firebase Cloud Messaging by its HTTP v1 API, with the access token of a Google service account (RFC 7523).

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use ring::{error::Unspecified, rand::SystemRandom, signature::RsaKeyPair};
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex, time::Instant};
use zeroize::Zeroizing;

use crate::{
    endpoint::{Endpoint, EndpointRules, InvalidEndpoint},
    http::{Head, unix_seconds},
    jwt,
    key_text::{self, KeyError},
    notification::{Fields, Notification, Urgency},
    outcome::{Outcome, Reason, Verdict},
    settings::FcmSettings,
    target::FcmTarget,
};

const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
const GRANT_TYPE: &str = "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer";
/// How long the token is valid that an access token is asked for with. Google allows an hour.
const ASSERTION_VALIDITY: Duration = Duration::from_hours(1);
/// An access token is renewed this long before it ends, or halfway through if it is valid for less than twice that.
const RENEWAL_MARGIN: Duration = Duration::from_mins(5);
/// After a refusal, no access token is asked for during this time.
const REFUSAL_PAUSE: Duration = Duration::from_secs(5);
/// The longest access token that is accepted. Google's have at most 2048 bytes.
const MAX_ACCESS_TOKEN: usize = 4096;

/// A Google service account. `Debug` does not show its key.
pub struct ServiceAccount {
    project_id: String,
    client_email: String,
    token_uri: String,
    key_id: Option<String>,
    key: RsaKeyPair,
}

/// The JSON of a service account, as Google's console gives it.
#[derive(Deserialize)]
struct AccountFile {
    project_id: Option<String>,
    client_email: Option<String>,
    token_uri: Option<String>,
    private_key_id: Option<String>,
    private_key: Option<String>,
}

impl ServiceAccount {
    /// Reads the JSON key of a service account.
    ///
    /// # Errors
    /// If it is not JSON, if a field is missing, or if the private key is not an RSA key.
    pub fn parse(json: &str) -> Result<Self, KeyError> {
        // The error of the parser may contain what it read.
        let file: AccountFile = serde_json::from_str(json).map_err(|_| KeyError::Account("to be a JSON object"))?;
        let private_key = file.private_key.map(Zeroizing::new);
        let is_project = |id: &String| {
            !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.:_".contains(&byte))
        };
        Ok(Self {
            project_id: file.project_id.filter(is_project).ok_or(KeyError::Account("a valid project_id"))?,
            client_email: file.client_email.ok_or(KeyError::Account("client_email"))?,
            token_uri: file.token_uri.ok_or(KeyError::Account("token_uri"))?,
            key_id: file.private_key_id,
            key: key_text::rsa(&private_key.ok_or(KeyError::Account("private_key"))?)?,
        })
    }
}

impl fmt::Debug for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceAccount")
    }
}

/// Makes the requests of FCM.
pub(crate) struct Fcm {
    account: ServiceAccount,
    host: Endpoint,
    uri: Uri,
    token_endpoint: Endpoint,
    access: Mutex<AccessState>,
}

/// What is known about the access token.
#[derive(Default)]
pub(crate) struct AccessState {
    token: Option<AccessToken>,
    /// The last refusal, and until when it holds.
    refusal: Option<(Outcome, Instant)>,
}

/// The `Authorization` header, and for how long it is used.
#[derive(Clone)]
pub(crate) struct AccessToken {
    header: HeaderValue,
    made_at: SystemTime,
    lifetime: Duration,
}

#[derive(Serialize)]
struct AssertionClaims<'a> {
    iss: &'a str,
    scope: &'static str,
    aud: &'a str,
    iat: u64,
    exp: u64,
}

#[derive(Deserialize)]
struct Grant {
    access_token: String,
    expires_in: u64,
}

#[derive(Serialize)]
struct FcmRequest<'a> {
    message: FcmMessage<'a>,
}

#[derive(Serialize)]
struct FcmMessage<'a> {
    token: &'a str,
    data: Fields,
    android: Android,
}

#[derive(Serialize)]
struct Android {
    priority: &'static str,
    ttl: String,
    collapse_key: &'static str,
}

/// The body of a refusal.
#[derive(Deserialize)]
struct FcmRefusal {
    error: FcmError,
}

#[derive(Deserialize)]
struct FcmError {
    #[serde(default)]
    details: Vec<ErrorDetail>,
}

#[derive(Deserialize)]
struct ErrorDetail {
    #[serde(rename = "errorCode", default)]
    error_code: String,
    #[serde(rename = "fieldViolations", default)]
    field_violations: Vec<FieldViolation>,
}

#[derive(Deserialize)]
struct FieldViolation {
    #[serde(default)]
    field: String,
}

impl Fcm {
    /// # Errors
    /// If the rules do not allow the host or the URL of the account's tokens.
    pub(crate) fn new(settings: FcmSettings, rules: &EndpointRules) -> Result<Self, InvalidEndpoint> {
        let host = Endpoint::parse(&settings.host, rules)?;
        let uri = host.with_path(&format!("/v1/projects/{}/messages:send", settings.account.project_id))?;
        let token_endpoint = Endpoint::parse(&settings.account.token_uri, rules)?;
        Ok(Self { account: settings.account, host, uri, token_endpoint, access: Mutex::default() })
    }

    pub(crate) fn host(&self) -> &Endpoint {
        &self.host
    }

    /// What is known about the access token. The caller that finds none asks for one while the others wait.
    pub(crate) fn access(&self) -> &Mutex<AccessState> {
        &self.access
    }

    /// The request that delivers a notification.
    pub(crate) fn request(
        &self,
        target: &FcmTarget,
        notification: &Notification,
        token: &AccessToken,
    ) -> Result<Request<Full<Bytes>>, Unspecified> {
        let priority = match notification.urgency {
            Urgency::Normal => "NORMAL",
            Urgency::High => "HIGH",
        };
        let message = FcmMessage {
            token: target.token(),
            data: notification.payload.fields(),
            android: Android {
                priority,
                ttl: format!("{}s", notification.ttl_seconds()),
                collapse_key: notification.payload.topic(),
            },
        };
        let body = serde_json::to_vec(&FcmRequest { message }).map_err(|_| Unspecified)?;
        let mut request = post(self.uri.clone(), Bytes::from(body), "application/json");
        request.headers_mut().insert(AUTHORIZATION, token.header.clone());
        Ok(request)
    }

    /// The request for an access token.
    pub(crate) fn token_request(
        &self,
        now: SystemTime,
        random: &SystemRandom,
    ) -> Result<Request<Full<Bytes>>, Unspecified> {
        let account = &self.account;
        let claims = AssertionClaims {
            iss: &account.client_email,
            scope: SCOPE,
            aud: &account.token_uri,
            iat: unix_seconds(now),
            exp: unix_seconds(now + ASSERTION_VALIDITY),
        };
        let assertion = jwt::rs256(&account.key, account.key_id.as_deref(), &claims, random)?;
        let body = format!("grant_type={GRANT_TYPE}&assertion={assertion}");
        Ok(post(self.token_endpoint.uri().clone(), Bytes::from(body), "application/x-www-form-urlencoded"))
    }
}

fn post(uri: Uri, body: Bytes, content_type: &'static str) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    request
}

impl AccessState {
    /// The access token, or the refusal that still holds, or `None` if a token has to be asked for.
    pub(crate) fn current(&self, now: SystemTime) -> Option<Result<AccessToken, Outcome>> {
        if let Some(token) = &self.token
            && now.duration_since(token.made_at).is_ok_and(|age| age < token.lifetime)
        {
            return Some(Ok(token.clone()));
        }
        let (outcome, until) = self.refusal?;
        (Instant::now() < until).then_some(Err(outcome))
    }

    /// Discards an access token that was refused.
    pub(crate) fn discard(&mut self, refused: &AccessToken) {
        if self.token.as_ref().is_some_and(|token| token.header == refused.header) {
            self.token = None;
        }
    }

    /// Keeps what the answer to a request for an access token says.
    pub(crate) fn keep(
        &mut self,
        answer: Result<(Head, Vec<u8>), Outcome>,
        now: SystemTime,
    ) -> Result<AccessToken, Outcome> {
        let granted = answer.and_then(|(head, body)| grant(&head, &body, now));
        match &granted {
            Ok(token) => *self = Self { token: Some(token.clone()), refusal: None },
            Err(outcome) => self.refusal = Some((*outcome, Instant::now() + REFUSAL_PAUSE)),
        }
        granted
    }
}

/// Reads the answer to a request for an access token (RFC 6749 §5).
fn grant(head: &Head, body: &[u8], now: SystemTime) -> Result<AccessToken, Outcome> {
    if !head.status.is_success() {
        return Err(match head.judge() {
            Outcome::Failed(_) => Outcome::later(Reason::Credentials),
            outcome => outcome,
        });
    }
    let grant: Grant = serde_json::from_slice(body).map_err(|_| Outcome::later(Reason::Protocol))?;
    let access_token = Zeroizing::new(grant.access_token);
    if access_token.len() > MAX_ACCESS_TOKEN {
        return Err(Outcome::later(Reason::Protocol));
    }
    let header = Zeroizing::new(format!("Bearer {}", access_token.as_str()));
    let mut header = HeaderValue::try_from(header.as_str()).map_err(|_| Outcome::later(Reason::Protocol))?;
    header.set_sensitive(true);
    let validity = Duration::from_secs(grant.expires_in);
    let lifetime = validity.saturating_sub(RENEWAL_MARGIN).max(validity / 2);
    Ok(AccessToken { header, made_at: now, lifetime })
}

/// What an answer of FCM means ("FCM error codes").
///
/// A 404 without `UNREGISTERED` does not end the target: it is about the project, which the operator configures.
pub(crate) fn judge(head: &Head, body: &[u8]) -> Verdict {
    if head.status.is_success() {
        return Verdict::Done(Outcome::Delivered);
    }
    let details = serde_json::from_slice::<FcmRefusal>(body).map(|refusal| refusal.error.details).unwrap_or_default();
    let has_code = |code| details.iter().any(|detail| detail.error_code == code);
    let is_token_invalid = || {
        let mut violations = details.iter().flat_map(|detail| &detail.field_violations);
        violations.any(|violation| violation.field == "message.token")
    };
    let credentials = Outcome::Later { wait: head.retry_after, reason: Reason::Credentials };
    Verdict::Done(match head.status {
        StatusCode::NOT_FOUND if has_code("UNREGISTERED") => Outcome::Gone,
        StatusCode::BAD_REQUEST if is_token_invalid() => Outcome::Gone,
        StatusCode::UNAUTHORIZED if has_code("THIRD_PARTY_AUTH_ERROR") => credentials,
        StatusCode::UNAUTHORIZED => return Verdict::RenewToken,
        StatusCode::FORBIDDEN if has_code("SENDER_ID_MISMATCH") => Outcome::Failed(Reason::Rejected),
        StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => credentials,
        _ => head.judge(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn head(status: u16) -> Head {
        Head { status: StatusCode::from_u16(status).unwrap(), retry_after: None }
    }

    fn error(status: u16, details: &str) -> Verdict {
        judge(
            &head(status),
            format!(r#"{{"error":{{"code":{status},"message":"m","details":[{details}]}}}}"#).as_bytes(),
        )
    }

    fn code(code: &str) -> String {
        format!(r#"{{"@type":"type.googleapis.com/google.firebase.fcm.v1.FcmError","errorCode":"{code}"}}"#)
    }

    fn violation(field: &str) -> String {
        format!(r#"{{"@type":"type.googleapis.com/google.rpc.BadRequest","fieldViolations":[{{"field":"{field}"}}]}}"#)
    }

    #[test]
    fn every_documented_answer_is_judged() {
        let later = |reason| Verdict::Done(Outcome::later(reason));
        let rejected = || Verdict::Done(Outcome::Failed(Reason::Rejected));
        assert_eq!(judge(&head(200), br#"{"name":"projects/p/messages/1"}"#), Verdict::Done(Outcome::Delivered));
        assert_eq!(error(404, &code("UNREGISTERED")), Verdict::Done(Outcome::Gone));
        assert_eq!(error(404, ""), later(Reason::Credentials));
        assert_eq!(judge(&head(404), b"<html>UNREGISTERED</html>"), later(Reason::Credentials));
        let invalid_token = format!("{},{}", code("INVALID_ARGUMENT"), violation("message.token"));
        assert_eq!(error(400, &invalid_token), Verdict::Done(Outcome::Gone));
        assert_eq!(
            error(400, &format!("{},{}", code("INVALID_ARGUMENT"), violation("message.android.ttl"))),
            rejected()
        );
        assert_eq!(error(400, &code("INVALID_ARGUMENT")), rejected());
        assert_eq!(error(401, ""), Verdict::RenewToken);
        assert_eq!(error(401, &code("THIRD_PARTY_AUTH_ERROR")), later(Reason::Credentials));
        assert_eq!(error(403, &code("SENDER_ID_MISMATCH")), rejected());
        assert_eq!(error(403, ""), later(Reason::Credentials));
        assert_eq!(error(429, &code("QUOTA_EXCEEDED")), later(Reason::RateLimited));
        assert_eq!(error(500, &code("INTERNAL")), later(Reason::ServerError));
        assert_eq!(error(503, &code("UNAVAILABLE")), later(Reason::ServerError));
        assert_eq!(judge(&head(502), b"<!DOCTYPE html>"), later(Reason::ServerError));
    }

    #[tokio::test(start_paused = true)]
    async fn access_tokens_are_kept_until_shortly_before_they_end() {
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds);
        let mut access = AccessState::default();
        assert!(access.current(at(0)).is_none());
        let answer = (head(200), br#"{"access_token":"ya29.a","expires_in":3599,"token_type":"Bearer"}"#.to_vec());
        let token = access.keep(Ok(answer), at(0)).unwrap();
        assert_eq!(token.header, "Bearer ya29.a");
        assert_eq!(format!("{:?}", token.header), "Sensitive");
        assert!(matches!(access.current(at(3298)), Some(Ok(_))));
        assert!(access.current(at(3299)).is_none());
        access.discard(&token);
        assert!(access.current(at(0)).is_none());

        let short = (head(200), br#"{"access_token":"b","expires_in":100}"#.to_vec());
        access.keep(Ok(short), at(0)).unwrap();
        assert!(matches!(access.current(at(49)), Some(Ok(_))));
        assert!(access.current(at(50)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_refusal_no_token_is_asked_for_at_once() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_001);
        let mut access = AccessState::default();
        for (status, body, reason) in [
            (400, r#"{"error":"invalid_grant"}"#, Reason::Credentials),
            (401, "", Reason::Credentials),
            (503, "", Reason::ServerError),
            (429, "", Reason::RateLimited),
            (200, "garbage", Reason::Protocol),
            (200, r#"{"access_token":"a\r\nb","expires_in":1}"#, Reason::Protocol),
        ] {
            let refused = access.keep(Ok((head(status), body.into())), now).err();
            assert_eq!(refused, Some(Outcome::later(reason)), "{status} {body}");
            assert!(matches!(access.current(now), Some(Err(_))));
            tokio::time::advance(REFUSAL_PAUSE).await;
            assert!(access.current(now).is_none());
        }
    }

    #[test]
    fn accounts_that_miss_a_field_say_which() {
        let error = |json: &str| ServiceAccount::parse(json).unwrap_err().to_string();
        assert!(error("secret").contains("JSON object"));
        assert!(error("{}").contains("project_id"));
        assert!(error(r#"{"project_id":"a/b"}"#).contains("project_id"));
        assert!(error(r#"{"project_id":"p"}"#).contains("client_email"));
        assert!(error(r#"{"project_id":"p","client_email":"e"}"#).contains("token_uri"));
        assert!(error(r#"{"project_id":"p","client_email":"e","token_uri":"u"}"#).contains("private_key"));
    }
}
