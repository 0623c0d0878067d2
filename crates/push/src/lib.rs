use std::time::{Duration, SystemTime};
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    WebPush,
    Apns,
    Fcm,
}
impl Kind {
    pub fn as_str(self) -> &'static str {
        "webpush"
    }
}
#[derive(Clone, PartialEq, Eq)]
pub enum Target {
    WebPush(WebPushTarget),
    Apns(ApnsTarget),
    Fcm(FcmTarget),
}
impl Target {
    pub fn kind(&self) -> Kind {
        Kind::WebPush
    }
}
#[derive(Clone, PartialEq, Eq)]
pub struct WebPushTarget(String, String, String);
impl WebPushTarget {
    pub fn parse(a: &str, b: &str, c: &str, _: &EndpointRules) -> Result<Self, TargetError> {
        Ok(Self(a.into(), b.into(), c.into()))
    }
    pub fn endpoint(&self) -> &str {
        &self.0
    }
    pub fn p256dh(&self) -> String {
        self.1.clone()
    }
    pub fn auth(&self) -> String {
        self.2.clone()
    }
}
#[derive(Clone, PartialEq, Eq)]
pub struct ApnsTarget(String, String, bool);
impl ApnsTarget {
    pub fn parse(a: &str, b: &str, c: bool) -> Result<Self, TargetError> {
        Ok(Self(a.into(), b.into(), c))
    }
    pub fn token(&self) -> &str {
        &self.0
    }
    pub fn topic(&self) -> &str {
        &self.1
    }
    pub fn is_sandbox(&self) -> bool {
        self.2
    }
}
#[derive(Clone, PartialEq, Eq)]
pub struct FcmTarget(String);
impl FcmTarget {
    pub fn parse(a: &str) -> Result<Self, TargetError> {
        Ok(Self(a.into()))
    }
    pub fn token(&self) -> &str {
        &self.0
    }
}
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct TargetError;
impl TargetError {
    pub fn field(&self) -> &'static str {
        "x"
    }
    pub fn expected(&self) -> &'static str {
        "x"
    }
}
#[derive(Clone, Copy)]
pub struct EndpointRules;
#[derive(Clone)]
pub struct Nonce(pub [u8; 16]);
impl Nonce {
    pub fn new(b: [u8; 16]) -> Self {
        Self(b)
    }
}
#[derive(Clone)]
pub enum Payload {
    Wake,
    Confirm { nonce: Nonce },
}
#[derive(Clone, Copy)]
pub enum Urgency {
    Normal,
    High,
}
pub struct Notification {
    pub payload: Payload,
    pub urgency: Urgency,
    pub time_to_live: Duration,
}
pub enum Outcome {
    Delivered,
    Gone,
    Later { wait: Option<Duration>, reason: Reason },
    Busy,
    Failed(Reason),
}
#[derive(Clone, Copy)]
pub struct Reason;
impl Reason {
    pub fn as_str(self) -> &'static str {
        "x"
    }
}
#[derive(Default)]
pub struct Settings {
    pub web_push: Option<WebPushSettings>,
    pub apns: Option<()>,
    pub fcm: Option<()>,
    pub allow_insecure: bool,
    pub limits: (),
}
pub struct WebPushSettings {
    pub key: VapidKey,
    pub subject: String,
}
pub struct VapidKey;
impl VapidKey {
    pub fn generate() -> Result<zeroize::Zeroizing<String>, KeyError> {
        Ok(zeroize::Zeroizing::new("x".into()))
    }
    pub fn parse(_: &str) -> Result<Self, KeyError> {
        Ok(Self)
    }
}
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct KeyError;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct SetupError;
#[derive(Clone)]
pub struct Sender;
pub struct Usage {
    pub under_way: usize,
}
impl Sender {
    pub fn new(_: Settings, _: impl Fn() -> SystemTime + Send + Sync + 'static) -> Result<Self, SetupError> {
        Ok(Self)
    }
    pub fn kinds(&self) -> Vec<Kind> {
        vec![Kind::WebPush]
    }
    pub fn vapid_public_key(&self) -> Option<&str> {
        None
    }
    pub async fn send(&self, _: &Target, _: &Notification) -> Outcome {
        Outcome::Delivered
    }
    pub fn usage(&self) -> Usage {
        Usage { under_way: 0 }
    }
    pub fn endpoint_rules(&self) -> EndpointRules {
        EndpointRules
    }
}
