//! The push service and address of a device. Targets are valid by type, and secrets: `Debug` shows only their kind.

use std::{fmt, str::FromStr};

use base64::{
    Engine,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::URL_SAFE_NO_PAD},
};
use ring::{agreement, rand::SystemRandom};

use crate::{
    endpoint::{Endpoint, EndpointRules},
    record::{AUTH_SECRET, PUBLIC_KEY, Subscription},
};

/// Browsers give unpadded base64url; some libraries pad it.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Hex digits of an APNs device token. Apple's have 64 today, and may become longer.
const APNS_TOKEN: std::ops::RangeInclusive<usize> = 32..=200;
/// The longest bundle identifier that is accepted.
const MAX_APNS_TOPIC: usize = 255;
/// The longest FCM registration token that is accepted. Today's have about 160 characters.
const MAX_FCM_TOKEN: usize = 4096;

/// A kind of push service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Web Push: browsers, and apps by `UnifiedPush`.
    WebPush,
    /// Apple Push Notification service.
    Apns,
    /// Firebase Cloud Messaging.
    Fcm,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::WebPush, Self::Apns, Self::Fcm];

    /// The name in the protocol: `webpush`, `apns` or `fcm`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WebPush => "webpush",
            Self::Apns => "apns",
            Self::Fcm => "fcm",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name is not that of a kind of push service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a kind of push service: webpush, apns or fcm")]
pub struct UnknownKind;

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or(UnknownKind)
    }
}

/// A field of a target is invalid. Does not contain its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is not {expected}")]
pub struct TargetError {
    field: &'static str,
    expected: &'static str,
}

impl TargetError {
    /// The field, by its name in the protocol.
    #[must_use]
    pub fn field(self) -> &'static str {
        self.field
    }

    /// What a valid value is, for people.
    #[must_use]
    pub fn expected(self) -> &'static str {
        self.expected
    }
}

/// The push service and address of a device.
#[derive(Clone, PartialEq, Eq)]
pub enum Target {
    /// A subscription of Web Push.
    WebPush(WebPushTarget),
    /// A device token of APNs.
    Apns(ApnsTarget),
    /// A registration token of FCM.
    Fcm(FcmTarget),
}

impl Target {
    /// The kind of push service.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::WebPush(_) => Kind::WebPush,
            Self::Apns(_) => Kind::Apns,
            Self::Fcm(_) => Kind::Fcm,
        }
    }
}

/// A subscription of Web Push (RFC 8030), with the keys of its user agent (RFC 8291).
#[derive(Clone, PartialEq, Eq)]
pub struct WebPushTarget {
    pub(crate) endpoint: Endpoint,
    pub(crate) subscription: Subscription,
}

impl WebPushTarget {
    /// Parses what a browser gives: `endpoint`, and the keys `p256dh` and `auth` in base64url.
    ///
    /// # Errors
    /// If the rules do not allow the endpoint, if `p256dh` is not an uncompressed point on P-256, or if `auth` is not
    /// 16 bytes.
    pub fn parse(endpoint: &str, p256dh: &str, auth: &str, rules: &EndpointRules) -> Result<Self, TargetError> {
        let endpoint = Endpoint::parse(endpoint, rules).map_err(|_| TargetError {
            field: "endpoint",
            expected: "an https URL of a public host, on port 443 or from 1024 on, of at most 2048 bytes",
        })?;
        let public_key: [u8; PUBLIC_KEY] = decode(p256dh).filter(is_on_curve).ok_or(TargetError {
            field: "p256dh",
            expected: "an uncompressed point on P-256, 65 bytes in base64url",
        })?;
        let auth_secret: [u8; AUTH_SECRET] =
            decode(auth).ok_or(TargetError { field: "auth", expected: "16 bytes in base64url" })?;
        Ok(Self { endpoint, subscription: Subscription { public_key, auth_secret } })
    }

    /// The URL of the subscription.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        self.endpoint.as_str()
    }

    /// The public key of the user agent: 65 bytes in unpadded base64url.
    #[must_use]
    pub fn p256dh(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.subscription.public_key)
    }

    /// The authentication secret: 16 bytes in unpadded base64url.
    #[must_use]
    pub fn auth(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.subscription.auth_secret)
    }
}

fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    // Longer than any padding makes it.
    if text.len() > N.div_ceil(3) * 4 {
        return None;
    }
    BASE64URL.decode(text).ok()?.try_into().ok()
}

/// Agrees on a secret with the key, which fails if it is not a point on the curve.
fn is_on_curve(public_key: &[u8; PUBLIC_KEY]) -> bool {
    agreement::EphemeralPrivateKey::generate(&agreement::ECDH_P256, &SystemRandom::new()).is_ok_and(|private_key| {
        let public_key = agreement::UnparsedPublicKey::new(&agreement::ECDH_P256, public_key);
        agreement::agree_ephemeral(private_key, &public_key, |_| ()).is_ok()
    })
}

/// A device token of APNs, with the app that it belongs to.
#[derive(Clone, PartialEq, Eq)]
pub struct ApnsTarget {
    token: Box<str>,
    topic: Box<str>,
    is_sandbox: bool,
}

impl ApnsTarget {
    /// Parses a device token in hex, and the bundle identifier of the app as the topic. `is_sandbox` is true for builds
    /// for development.
    ///
    /// # Errors
    /// If the token is not 16 to 100 bytes in hex, or if the topic is not a bundle identifier.
    pub fn parse(token: &str, topic: &str, is_sandbox: bool) -> Result<Self, TargetError> {
        let is_token = APNS_TOKEN.contains(&token.len())
            && token.len().is_multiple_of(2)
            && token.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_token {
            return Err(TargetError { field: "token", expected: "16 to 100 bytes in hex" });
        }
        let is_topic = !topic.is_empty()
            && topic.len() <= MAX_APNS_TOPIC
            && topic.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'));
        if !is_topic {
            let expected = "the bundle identifier of an app: 1 to 255 letters, digits, dots and hyphens";
            return Err(TargetError { field: "topic", expected });
        }
        Ok(Self { token: token.to_ascii_lowercase().into(), topic: topic.into(), is_sandbox })
    }

    /// The device token: hex in lower case.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The bundle identifier of the app.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Whether the token belongs to Apple's sandbox.
    #[must_use]
    pub fn is_sandbox(&self) -> bool {
        self.is_sandbox
    }
}

/// A registration token of FCM.
#[derive(Clone, PartialEq, Eq)]
pub struct FcmTarget {
    token: Box<str>,
}

impl FcmTarget {
    /// Parses a registration token.
    ///
    /// # Errors
    /// If it is not 1 to 4096 printable ASCII characters.
    pub fn parse(token: &str) -> Result<Self, TargetError> {
        let is_token =
            !token.is_empty() && token.len() <= MAX_FCM_TOKEN && token.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_token {
            return Err(TargetError { field: "token", expected: "1 to 4096 printable ASCII characters" });
        }
        Ok(Self { token: token.into() })
    }

    /// The registration token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({})", self.kind())
    }
}

impl fmt::Debug for WebPushTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebPushTarget")
    }
}

impl fmt::Debug for ApnsTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApnsTarget")
    }
}

impl fmt::Debug for FcmTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FcmTarget")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: &str = "https://push.example.org/secret-path";
    // RFC 8291 appendix A.
    const P256DH: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";

    fn web_push(endpoint: &str, p256dh: &str, auth: &str) -> Result<WebPushTarget, TargetError> {
        WebPushTarget::parse(endpoint, p256dh, auth, &EndpointRules::default())
    }

    #[test]
    fn a_subscription_is_kept_as_it_was_given() {
        let target = web_push(ENDPOINT, P256DH, AUTH).unwrap();
        assert_eq!((target.endpoint(), target.p256dh(), target.auth()), (ENDPOINT, P256DH.into(), AUTH.into()));
        assert_eq!(web_push(ENDPOINT, &format!("{P256DH}="), &format!("{AUTH}==")).unwrap(), target);
    }

    #[test]
    fn invalid_keys_name_their_field() {
        let mut off_curve = P256DH.to_owned();
        off_curve.replace_range(40..41, "A");
        let field = |result: Result<WebPushTarget, TargetError>| result.unwrap_err().field();
        assert_eq!(field(web_push(ENDPOINT, &off_curve, AUTH)), "p256dh");
        assert_eq!(field(web_push(ENDPOINT, &P256DH[..80], AUTH)), "p256dh");
        assert_eq!(field(web_push(ENDPOINT, &"A".repeat(87), AUTH)), "p256dh");
        assert_eq!(field(web_push(ENDPOINT, &"A".repeat(1_000_000), AUTH)), "p256dh");
        assert_eq!(field(web_push(ENDPOINT, P256DH, "BTBZ")), "auth");
        assert_eq!(field(web_push(ENDPOINT, P256DH, "BTBZMqHH6r4Tts7J/aSIgg")), "auth");
        assert_eq!(field(web_push("https://10.0.0.1/", P256DH, AUTH)), "endpoint");
    }

    #[test]
    fn device_tokens_of_apns_are_hex() {
        let token = "00FC13ADFF785122B4AD28809A3420982341241421348097878E577C991DE8F0";
        let target = ApnsTarget::parse(token, "org.example.App-1", true).unwrap();
        assert_eq!(
            (target.token(), target.topic(), target.is_sandbox()),
            (&*token.to_lowercase(), "org.example.App-1", true)
        );
        for (token, topic, field) in [
            (&token[..30], "org.example", "token"),
            (&token[..63], "org.example", "token"),
            (&"0".repeat(202), "org.example", "token"),
            ("../../3/device/00fc13adff785122b4ad28809a342098", "org.example", "token"),
            (token, "", "topic"),
            (token, "org.example\r\nx: y", "topic"),
            (token, &"a".repeat(256), "topic"),
        ] {
            assert_eq!(ApnsTarget::parse(token, topic, false).unwrap_err().field(), field);
        }
    }

    #[test]
    fn registration_tokens_of_fcm_are_printable() {
        assert_eq!(FcmTarget::parse("bk3RNwTe3H0:CI2k_HHw").unwrap().token(), "bk3RNwTe3H0:CI2k_HHw");
        for token in ["", "a b", "a\n", "é", &"a".repeat(4097)] {
            assert_eq!(FcmTarget::parse(token).unwrap_err().field(), "token");
        }
    }

    #[test]
    fn nothing_secret_is_shown() {
        let targets = [
            Target::WebPush(web_push(ENDPOINT, P256DH, AUTH).unwrap()),
            Target::Apns(ApnsTarget::parse(&"ab".repeat(32), "org.example", false).unwrap()),
            Target::Fcm(FcmTarget::parse("bk3RNwTe3H0").unwrap()),
        ];
        assert_eq!(format!("{targets:?}"), "[Target(webpush), Target(apns), Target(fcm)]");
        let Target::WebPush(inner) = &targets[0] else { unreachable!() };
        assert_eq!(format!("{inner:?}"), "WebPushTarget");
        let error = web_push("https://user:password@example.org", P256DH, AUTH).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("password"));
    }

    #[test]
    fn kinds_have_the_names_of_the_protocol() {
        assert_eq!(Kind::ALL.map(Kind::as_str), ["webpush", "apns", "fcm"]);
        assert_eq!("apns".parse(), Ok(Kind::Apns));
        assert_eq!("APNS".parse::<Kind>(), Err(UnknownKind));
    }
}
