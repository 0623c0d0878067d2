//! Sign-in over HTTP, and the ops `session.renew`, `session.logout`, `sessions.list` and `sessions.end`. Types that contain a code or a token do not
//! implement `Debug`, so that neither can be logged.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    frame::{EmptyReply, Op, SocketRequest},
    ids::{ChallengeId, DeviceId, SessionId, UserId},
    time::Timestamp,
    value::{Lenient, Object, StringOnly, Text},
};

/// The body of `POST /v1/auth/otp`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtpRequest {
    /// The address to mail the code to.
    pub email: Text,
    /// What the code is for; to sign in if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purpose: Option<CodePurpose>,
    /// Pays for exceeding a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<Lenient<WorkProof>>,
}

/// A proof of work for the salt of an earlier refusal: `details.proof` of `rate_limited`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkProof {
    /// The salt of the refusal.
    pub salt: Text,
    /// Unpadded base64url of at most 32 bytes, such that SHA-256 of the bytes of salt and nonce begins with enough zero
    /// bits.
    pub nonce: Text,
}

/// What a mailed code is for. It does nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodePurpose {
    /// `sign_in`: `POST /v1/auth/verify`.
    SignIn,
    /// `delete`: `account.delete`.
    Delete,
    /// `change_email`: `account.change_email`, mailed to the new address.
    ChangeEmail,
}

impl CodePurpose {
    /// All purposes.
    pub const ALL: [Self; 3] = [Self::SignIn, Self::Delete, Self::ChangeEmail];

    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SignIn => "sign_in",
            Self::Delete => "delete",
            Self::ChangeEmail => "change_email",
        }
    }

    /// The purpose with exactly this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.name() == name)
    }
}

impl Serialize for CodePurpose {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for CodePurpose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(StringOnly("sign_in, delete or change_email", Self::parse))
    }
}

/// The response to `POST /v1/auth/otp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtpReply {
    /// Identifies the challenge in [`VerifyRequest`].
    pub challenge_id: ChallengeId,
    /// Seconds until the code expires.
    pub expires_in_s: u64,
    /// Seconds after which the client may offer to request another code.
    pub resend_in_s: u64,
}

/// The body of `POST /v1/auth/verify`.
#[derive(Clone, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// From [`OtpReply::challenge_id`].
    pub challenge_id: ChallengeId,
    /// The address that the code was mailed to.
    pub email: Text,
    /// Eight digits; spaces and dashes are ignored.
    pub code: Text,
    /// The device to sign in; a new device without a name if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<Object<DeviceDescription>>,
    /// A device of the user to revoke in the same transaction. Must not be combined with [`DeviceDescription::id`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replace_device_id: Option<DeviceId>,
    /// Under a lock, signs in a new device without an approval: base64 of the 32 bytes whose hash locked the account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_key: Option<Text>,
    /// Pays for exceeding a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<Lenient<WorkProof>>,
}

/// The `device` of [`VerifyRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceDescription {
    /// An existing device of the user that signs in again; the other fields are then ignored. If absent, a new device
    /// is created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<DeviceId>,
    /// The name of the new device, for display.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Text>,
    /// The registration id chosen by the client's Signal library; the server draws one if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration_id: Option<u32>,
    /// Shows that the client holds the identity key of the device that signs in again, or of the device to replace:
    /// base64 of a signature over [`device_proof_message`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<Text>,
}

/// The text before the ids in [`device_proof_message`].
const DEVICE_PROOF_LABEL: &[u8; 24] = b"sealwire-device-proof-v1";

/// What a device signs with its identity key, in its suite, to sign in again or to be replaced: the text
/// `sealwire-device-proof-v1`, then the 16 bytes of the challenge id and of the device id.
#[must_use]
pub fn device_proof_message(challenge: ChallengeId, device: DeviceId) -> [u8; 56] {
    let mut message = [0; 56];
    message[..24].copy_from_slice(DEVICE_PROOF_LABEL);
    message[24..40].copy_from_slice(challenge.0.as_bytes());
    message[40..].copy_from_slice(device.0.as_bytes());
    message
}

/// A session: the response to `GET /v1/auth/session`, and to a `POST /v1/auth/verify` or `POST /v1/auth/approval` that
/// signs in.
#[derive(Clone, Serialize, Deserialize)]
pub struct SessionReply {
    /// The user who signed in.
    pub user_id: UserId,
    /// The device of the session.
    pub device_id: DeviceId,
    /// The session that the token belongs to.
    pub session_id: SessionId,
    /// The token of the new session; absent in the response to `GET /v1/auth/session`.
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
    /// The token of the new session.
    pub token: String,
    /// When the new session ends unless it is renewed in turn.
    pub expires_at: Timestamp,
    /// The new session. The socket belongs to it from this reply on.
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

/// `sessions.list`: no parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSessionsRequest {}

/// The result of `sessions.list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSessionsReply {
    /// The valid sessions of the user's devices, oldest first.
    pub sessions: Vec<ListedSession>,
}

/// A session of the user. A session and the renewal that replaces it are one entry, until the renewed token is first
/// presented: that of the renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedSession {
    /// Identifies the session in `sessions.end`.
    pub session_id: SessionId,
    /// Its device.
    pub device_id: DeviceId,
    /// When it was opened by a sign-in or a renewal.
    pub created_at: Timestamp,
    /// When it ends unless it is renewed.
    pub expires_at: Timestamp,
    /// When its device last connected or disconnected; `None` if it never did.
    pub last_seen: Option<Timestamp>,
    /// Whether this is the session of the request.
    pub current: bool,
}

impl SocketRequest for ListSessionsRequest {
    const OP: Op = Op::SessionsList;
    type Reply = ListSessionsReply;
}

/// `sessions.end`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndSessionRequest {
    /// A session of the user, including that of the request.
    pub session_id: SessionId,
}

impl SocketRequest for EndSessionRequest {
    const OP: Op = Op::SessionsEnd;
    type Reply = EmptyReply;
}

/// Why a token is not valid: `details.reason` of `unauthorized`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvalidTokenReason {
    /// The request has no token, the server never issued it, or its session ended more than 30 days ago.
    Unknown,
    /// The session expired.
    Expired,
    /// The session was logged out.
    LoggedOut,
    /// The session was renewed, and a newer token has been used or issued.
    Superseded,
    /// The device was revoked or replaced. The client wipes its data.
    DeviceRevoked,
    /// The account was deleted. The client wipes its data.
    AccountDeleted,
}

impl InvalidTokenReason {
    /// All reasons.
    pub const ALL: [Self; 6] =
        [Self::Unknown, Self::Expired, Self::LoggedOut, Self::Superseded, Self::DeviceRevoked, Self::AccountDeleted];

    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::LoggedOut => "logged_out",
            Self::Superseded => "superseded",
            Self::DeviceRevoked => "device_revoked",
            Self::AccountDeleted => "account_deleted",
        }
    }

    /// The reason with exactly this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// It was logged out, or replaced by its renewal when the new token was first used.
    Logout,
    /// It expired.
    Expired,
    /// Its device was revoked or replaced.
    DeviceRevoked,
    /// Its user was deleted.
    AccountDeleted,
}
