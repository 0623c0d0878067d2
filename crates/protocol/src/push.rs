//! Push wake-ups: the ops `push.register`, `push.confirm`, `push.remove` and `push.test`.

use serde::{Deserialize, Serialize};

use crate::{
    frame::{EmptyReply, Op, SocketRequest},
    value::{Named, Text},
};

/// A kind of push service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PushKind {
    /// Web Push (RFC 8030), of browsers and `UnifiedPush` apps.
    Webpush,
    /// The Apple Push Notification service.
    Apns,
    /// Firebase Cloud Messaging.
    Fcm,
}

impl PushKind {
    /// All values.
    pub const ALL: [Self; 3] = [Self::Webpush, Self::Apns, Self::Fcm];

    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Webpush => "webpush",
            Self::Apns => "apns",
            Self::Fcm => "fcm",
        }
    }

    /// The value with exactly this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }
}

/// Whether a device has a push target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PushState {
    /// It has none.
    #[default]
    None,
    /// It has one that it has not confirmed. No wake-ups are sent to it.
    Unconfirmed,
    /// It has one that it has confirmed.
    Active,
}

/// `push.register`: replaces the device's push target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterPushRequest {
    /// One of the kinds in `welcome.push`.
    pub kind: Named<PushKind>,
    /// With `webpush`: the endpoint of the subscription, an `https` URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Text>,
    /// With `webpush`: the public key of the subscription, 65 bytes in base64url.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p256dh: Option<Text>,
    /// With `webpush`: the secret of the subscription, 16 bytes in base64url.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Text>,
    /// With `apns`: the device token, in hexadecimal. With `fcm`: the registration token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Text>,
    /// With `apns`: the bundle id of the app.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<Text>,
    /// With `apns`: whether the token is of the development environment; false if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<bool>,
}

/// The result of `push.register`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterPushReply {
    /// `unconfirmed` if a push with a nonce follows; `active` if the device has confirmed the same target before.
    pub state: Named<PushState>,
}

impl SocketRequest for RegisterPushRequest {
    const OP: Op = Op::PushRegister;
    type Reply = RegisterPushReply;
}

/// `push.confirm`: confirms the device's push target with the nonce that was pushed to it. Repeatable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmPushRequest {
    /// The nonce, as it was pushed.
    pub nonce: Text,
}

/// The result of `push.confirm`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmPushReply {
    /// Always `active`.
    pub state: Named<PushState>,
}

impl SocketRequest for ConfirmPushRequest {
    const OP: Op = Op::PushConfirm;
    type Reply = ConfirmPushReply;
}

/// `push.remove`: no parameters. Deletes the device's push target. Repeatable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovePushRequest {}

impl SocketRequest for RemovePushRequest {
    const OP: Op = Op::PushRemove;
    type Reply = EmptyReply;
}

/// `push.test`: no parameters. Sends a wake-up to the device's push target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestPushRequest {}

impl SocketRequest for TestPushRequest {
    const OP: Op = Op::PushTest;
    type Reply = EmptyReply;
}

/// The `push` of a welcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WelcomePush {
    /// Whether the device has a push target.
    pub state: Named<PushState>,
    /// The public key that browsers take as `applicationServerKey`, in base64url; `None` without `webpush`.
    pub vapid_public_key: Option<Text>,
    /// The kinds of push services that this server sends to.
    pub kinds: Vec<Named<PushKind>>,
}
