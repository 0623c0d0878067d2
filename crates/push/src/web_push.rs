//! Web Push: requests by RFC 8030, encrypted by RFC 8291, with the server's identity by RFC 8292.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, StatusCode,
    header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue},
};
use ring::{
    error::Unspecified,
    rand::SystemRandom,
    signature::{EcdsaKeyPair, KeyPair},
};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
    http::{Head, unix_seconds},
    jwt,
    key_text::{self, KeyError},
    notification::{Notification, Urgency},
    outcome::Outcome,
    record,
    target::WebPushTarget,
};

/// The plaintext of every message is padded to this, so that its length does not tell what it says.
const PADDED: usize = 128;
/// How long a token is valid. RFC 8292 §2 allows 24 hours; this leaves room for clocks that differ.
const TOKEN_VALIDITY: Duration = Duration::from_hours(12);
/// A token is used for half its validity.
const TOKEN_USE: Duration = Duration::from_hours(6);

const TTL: HeaderName = HeaderName::from_static("ttl");
const URGENCY: HeaderName = HeaderName::from_static("urgency");
const TOPIC: HeaderName = HeaderName::from_static("topic");

/// The key that identifies this server to push services (VAPID). `Debug` does not show it.
pub struct VapidKey {
    key: EcdsaKeyPair,
    public: String,
}

impl VapidKey {
    /// Makes a key: PKCS#8 in base64, for [`VapidKey::parse`].
    ///
    /// # Errors
    /// If the operating system cannot provide randomness.
    pub fn generate() -> Result<Zeroizing<String>, KeyError> {
        key_text::generate_ecdsa()
    }

    /// Reads a key on P-256 in PKCS#8, as PEM or base64, with its public key: what [`VapidKey::generate`] or
    /// `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256` makes.
    ///
    /// # Errors
    /// If it is not such a key.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let key = key_text::ecdsa(text)?;
        let public = URL_SAFE_NO_PAD.encode(key.public_key());
        Ok(Self { key, public })
    }

    /// The public key: 65 bytes in unpadded base64url, as browsers expect it for `applicationServerKey`.
    #[must_use]
    pub fn public(&self) -> &str {
        &self.public
    }
}

impl fmt::Debug for VapidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VapidKey")
    }
}

/// Makes the requests of Web Push.
pub(crate) struct WebPush {
    key: VapidKey,
    subject: String,
}

/// The `Authorization` header for one origin, until it has to be renewed.
#[derive(Default)]
pub(crate) struct VapidToken(Mutex<Option<(HeaderValue, SystemTime)>>);

#[derive(Serialize)]
struct VapidClaims<'a> {
    aud: &'a str,
    exp: u64,
    sub: &'a str,
}

impl WebPush {
    pub(crate) fn new(key: VapidKey, subject: String) -> Self {
        Self { key, subject }
    }

    pub(crate) fn public_key(&self) -> &str {
        self.key.public()
    }

    /// The request that delivers a notification. `token` is the one of the target's origin.
    pub(crate) fn request(
        &self,
        target: &WebPushTarget,
        notification: &Notification,
        token: &VapidToken,
        now: SystemTime,
        random: &SystemRandom,
    ) -> Result<Request<Full<Bytes>>, Unspecified> {
        let plaintext = serde_json::to_vec(&notification.payload.fields()).map_err(|_| Unspecified)?;
        let body = record::encrypt(&target.subscription, &plaintext, PADDED, random)?;
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = target.endpoint.uri().clone();
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, self.authorization(target.endpoint.origin(), token, now, random)?);
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("aes128gcm"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(TTL, HeaderValue::from(notification.ttl_seconds()));
        headers.insert(TOPIC, HeaderValue::from_static(notification.payload.topic()));
        let urgency = match notification.urgency {
            Urgency::Normal => "normal",
            Urgency::High => "high",
        };
        headers.insert(URGENCY, HeaderValue::from_static(urgency));
        Ok(request)
    }

    /// `vapid t=TOKEN, k=KEY` (RFC 8292 §3).
    fn authorization(
        &self,
        origin: &Arc<str>,
        token: &VapidToken,
        now: SystemTime,
        random: &SystemRandom,
    ) -> Result<HeaderValue, Unspecified> {
        let mut token = token.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((header, made_at)) = &*token
            && now.duration_since(*made_at).is_ok_and(|age| age < TOKEN_USE)
        {
            return Ok(header.clone());
        }
        let claims = VapidClaims { aud: origin, exp: unix_seconds(now + TOKEN_VALIDITY), sub: &self.subject };
        let jwt = jwt::es256(&self.key.key, None, &claims, random)?;
        let header = format!("vapid t={jwt}, k={}", self.key.public);
        let mut header = HeaderValue::try_from(header).map_err(|_| Unspecified)?;
        header.set_sensitive(true);
        *token = Some((header.clone(), now));
        Ok(header)
    }
}

/// What an answer of a push service means (RFC 8030 §5 and §7.3).
pub(crate) fn judge(head: &Head) -> Outcome {
    match head.status {
        StatusCode::NOT_FOUND | StatusCode::GONE => Outcome::Gone,
        status if status.is_success() => Outcome::Delivered,
        _ => head.judge(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    use super::*;
    use crate::{EndpointRules, Payload, Reason};

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn verify(public_key: &str, token: &str) -> serde_json::Value {
        let decode = |text| URL_SAFE_NO_PAD.decode(text).unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, decode(public_key))
            .verify(signed.as_bytes(), &decode(signature))
            .unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        let header: serde_json::Value = serde_json::from_slice(&decode(header)).unwrap();
        assert_eq!(header, serde_json::json!({"typ": "JWT", "alg": "ES256"}));
        serde_json::from_slice(&decode(claims)).unwrap()
    }

    fn split(header: &HeaderValue) -> (String, String) {
        let text = header.to_str().unwrap().strip_prefix("vapid t=").unwrap();
        let (token, key) = text.split_once(", k=").unwrap();
        (token.to_owned(), key.to_owned())
    }

    /// RFC 8292 §2.4. Proves that the tests verify what other implementations sign.
    #[test]
    fn the_token_of_rfc_8292_verifies() {
        let token = "eyJ0eXAiOiJKV1QiLCJhbGciOiJFUzI1NiJ9.eyJhdWQiOiJodHRwczovL3B1c2guZXhhbXBsZS5uZXQiLCJleHAiOjE0NTM1MjM3NjgsInN1YiI6Im1haWx0bzpwdXNoQGV4YW1wbGUuY29tIn0.i3CYb7t4xfxCDquptFOepC9GAu_HLGkMlMuCGSK2rpiUfnK9ojFwDXb1JrErtmysazNjjvW2L9OkSSHzvoD1oA";
        let key = "BA1Hxzyi1RUM1b5wjxsn7nGxAszw2u61m164i3MrAIxHF6YK5h4SDYic-dRuU_RCPCfA5aq9ojSwk5Y2EmClBPs";
        let claims = verify(key, token);
        let expected = serde_json::json!({
            "aud": "https://push.example.net", "exp": 1_453_523_768, "sub": "mailto:push@example.com",
        });
        assert_eq!(claims, expected);
    }

    fn web_push() -> WebPush {
        WebPush::new(VapidKey::parse(&VapidKey::generate().unwrap()).unwrap(), "mailto:push@example.com".into())
    }

    #[test]
    fn tokens_name_the_origin_and_are_renewed_in_time() {
        let web_push = web_push();
        let random = SystemRandom::new();
        let origin: Arc<str> = "https://push.example.net:8443".into();
        let token = VapidToken::default();
        let authorization = |now| split(&web_push.authorization(&origin, &token, at(now), &random).unwrap());

        let (first, key) = authorization(1_800_000_000);
        assert_eq!(key, web_push.public_key());
        let claims = verify(&key, &first);
        let expected = serde_json::json!({
            "aud": "https://push.example.net:8443", "exp": 1_800_043_200, "sub": "mailto:push@example.com",
        });
        assert_eq!(claims, expected);
        assert_eq!(authorization(1_800_021_599).0, first);
        let (renewed, key) = authorization(1_800_021_600);
        assert_eq!(verify(&key, &renewed)["exp"], 1_800_064_800);
        // The clock was set back: the token may be valid for longer than services accept.
        let (renewed, key) = authorization(1_700_000_000);
        assert_eq!(verify(&key, &renewed)["exp"], 1_700_043_200);
    }

    #[test]
    fn requests_have_the_headers_of_web_push_and_one_size() {
        let target = WebPushTarget::parse(
            "https://push.example.net/s?e=1",
            "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",
            "BTBZMqHH6r4Tts7J_aSIgg",
            &EndpointRules::default(),
        );
        let target = target.unwrap();
        let web_push = web_push();
        let request = |payload, urgency| {
            let notification = Notification { payload, urgency, time_to_live: Duration::from_mins(1) };
            let token = VapidToken::default();
            web_push.request(&target, &notification, &token, at(1_800_000_000), &SystemRandom::new()).unwrap()
        };
        let wake = request(Payload::Wake, Urgency::High);
        let confirm = request(Payload::Confirm { nonce: crate::Nonce::new([255; 16]) }, Urgency::Normal);
        let header = |request: &Request<Full<Bytes>>, name: &str| request.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(wake.uri(), "https://push.example.net/s?e=1");
        assert_eq!(wake.method(), Method::POST);
        assert_eq!(header(&wake, "ttl"), "60");
        assert_eq!((header(&wake, "urgency"), header(&confirm, "urgency")), ("high".into(), "normal".into()));
        assert_eq!(
            (header(&wake, "topic"), header(&confirm, "topic")),
            ("sealwire-wake".into(), "sealwire-confirm".into())
        );
        assert_eq!(header(&wake, "content-encoding"), "aes128gcm");
        let size = |request: &Request<Full<Bytes>>| hyper::body::Body::size_hint(request.body()).exact().unwrap();
        assert_eq!(size(&wake), size(&confirm));
        assert!(!format!("{:?}", wake.headers()).contains("vapid"), "the token is marked as sensitive");
    }

    #[test]
    fn answers_are_judged() {
        let wait = Some(Duration::from_secs(7));
        let judged = |status: u16| judge(&Head { status: StatusCode::from_u16(status).unwrap(), retry_after: wait });
        for status in [200, 201, 202, 204] {
            assert_eq!(judged(status), Outcome::Delivered, "{status}");
        }
        for status in [404, 410] {
            assert_eq!(judged(status), Outcome::Gone, "{status}");
        }
        assert_eq!(judged(429), Outcome::Later { wait, reason: Reason::RateLimited });
        for status in [408, 425, 500, 502, 503, 504, 599] {
            assert_eq!(judged(status), Outcome::Later { wait, reason: Reason::ServerError }, "{status}");
        }
        for status in [301, 302, 304, 307, 308] {
            assert_eq!(judged(status), Outcome::Failed(Reason::Redirected), "{status}");
        }
        for status in [400, 401, 403, 405, 406, 413, 415, 426] {
            assert_eq!(judged(status), Outcome::Failed(Reason::Rejected), "{status}");
        }
    }
}
