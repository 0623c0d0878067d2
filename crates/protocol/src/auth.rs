//! Signing in over HTTP, and the ops `session.renew` and `session.logout`. Types that hold a code or a token have no
//! `Debug`, so that neither gets into a log.

use serde::{Deserialize, Serialize};

use crate::{
    frame::{EmptyReply, Op, SocketRequest},
    ids::{ChallengeId, DeviceId, SessionId, UserId},
    time::Timestamp,
    value::{Object, Text},
};

/// The body of `POST /v1/auth/otp`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtpRequest {
    /// The address that gets the code.
    pub email: Text,
}

/// The answer to `POST /v1/auth/otp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtpReply {
    /// To be presented with the code.
    pub challenge_id: ChallengeId,
    /// Seconds until the code expires.
    pub expires_in_s: u64,
    /// Seconds after which the client may offer to send another code.
    pub resend_in_s: u64,
}

/// The body of `POST /v1/auth/verify`.
#[derive(Clone, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// From [`OtpReply::challenge_id`].
    pub challenge_id: ChallengeId,
    /// The address of the challenge.
    pub email: Text,
    /// Eight digits; spaces and dashes are ignored.
    pub code: Text,
    /// The device that signs in; a new one without a name if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<Object<DeviceDescription>>,
    /// A device of the user to revoke in the same step. Not together with [`DeviceDescription::id`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replace_device_id: Option<DeviceId>,
}

/// The `device` of [`VerifyRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceDescription {
    /// An existing device of the user that signs in again; the other fields are ignored then. Without it a new device
    /// is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<DeviceId>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Text>,
    /// The number that the client's library chose; drawn by the server if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration_id: Option<u32>,
}

/// The answer to `POST /v1/auth/verify` and `GET /v1/auth/session`.
#[derive(Clone, Serialize, Deserialize)]
pub struct SessionReply {
    /// The user who signed in.
    pub user_id: UserId,
    /// On which device.
    pub device_id: DeviceId,
    /// The session of the token.
    pub session_id: SessionId,
    /// The new session's token; absent from the answer to `GET /v1/auth/session`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// When the session ends unless it is renewed.
    pub expires_at: Timestamp,
}

/// `session.renew`: no parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewSessionRequest {}

/// The result of `session.renew`.
#[derive(Clone, Serialize, Deserialize)]
pub struct RenewSessionReply {
    /// The successor's token.
    pub token: String,
    /// When the successor ends unless it is renewed in turn.
    pub expires_at: Timestamp,
    /// The successor, to which the socket belongs from this reply on.
    pub session_id: SessionId,
}

impl SocketRequest for RenewSessionRequest {
    const OP: Op = Op::SessionRenew;
    type Reply = RenewSessionReply;
}

/// `session.logout`: no parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogoutRequest {}

impl SocketRequest for LogoutRequest {
    const OP: Op = Op::SessionLogout;
    type Reply = EmptyReply;
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// It was logged out, or superseded when the token of its renewal was presented.
    Logout,
    /// Its time was up.
    Expired,
    /// Its device was revoked or replaced.
    DeviceRevoked,
    /// Its user was deleted.
    AccountDeleted,
}
