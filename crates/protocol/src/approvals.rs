//! The lock of an account, and the approvals that it asks for: the ops `account.lock`, `account.unlock`,
//! `account.status` and `devices.decide`, and `POST /v1/auth/approval`. Types that contain a recovery key or a poll token
//! do not implement `Debug`, so that neither can be logged.

use serde::{Deserialize, Serialize};

use crate::{
    frame::{EmptyReply, Op, SocketRequest},
    ids::{ApprovalId, DeviceId},
    time::Timestamp,
    value::{Named, Text},
};

/// `account.lock`
#[derive(Clone, Serialize, Deserialize)]
pub struct LockAccountRequest {
    /// Base64 of the SHA-256 of the recovery key: 32 random bytes that only the user keeps.
    pub recovery_key_hash: Text,
    /// Seconds after which a request is approved unless a device denies it, within
    /// [`LOCK_WAIT_SECONDS`](crate::limits::LOCK_WAIT_SECONDS);
    /// [`LOCK_WAIT_DEFAULT`](crate::limits::LOCK_WAIT_DEFAULT) if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_s: Option<u64>,
    /// The recovery key of the present lock, in base64. Without it, a locked account can be locked anew only by a device
    /// that is older than the present `wait_s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_key: Option<Text>,
}

impl SocketRequest for LockAccountRequest {
    const OP: Op = Op::AccountLock;
    type Reply = EmptyReply;
}

/// `account.unlock`
#[derive(Clone, Serialize, Deserialize)]
pub struct UnlockAccountRequest {
    /// The recovery key, in base64. Without it, only a device that is older than `wait_s` can unlock the account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_key: Option<Text>,
}

impl SocketRequest for UnlockAccountRequest {
    const OP: Op = Op::AccountUnlock;
    type Reply = EmptyReply;
}

/// `account.status`: no parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountStatusRequest {}

/// The result of `account.status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountStatusReply {
    /// Whether the account is locked.
    pub locked: bool,
    /// Seconds after which a request is approved unless a device denies it; `None` if the account is not locked.
    pub wait_s: Option<u64>,
    /// The requests that wait for an approval, oldest first.
    pub pending: Vec<PendingApproval>,
}

impl SocketRequest for AccountStatusRequest {
    const OP: Op = Op::AccountStatus;
    type Reply = AccountStatusReply;
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalKind {
    /// To sign in on a new device.
    Device,
    /// To change the address of the account.
    ChangeEmail,
}

impl ApprovalKind {
    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::ChangeEmail => "change_email",
        }
    }

    /// The kind with exactly this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Device, Self::ChangeEmail].into_iter().find(|kind| kind.name() == name)
    }
}

/// A request that waits for an approval: an entry of `pending`, and the data of the event `devices.requested`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingApproval {
    /// Identifies the request in [`DecideRequest`].
    pub request_id: ApprovalId,
    /// What it asks for.
    pub kind: Named<ApprovalKind>,
    /// The name of the new device, or of the device that wants to change the address; `None` if it has none.
    pub device_name: Option<String>,
    /// The network that the request came from, such as `203.0.113.0/24`; `None` if the server does not know it.
    pub client_network: Option<String>,
    /// When the request was made.
    pub created_at: Timestamp,
    /// When it is approved unless a device denies it.
    pub decides_at: Timestamp,
}

/// `devices.decide`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecideRequest {
    /// From [`PendingApproval::request_id`].
    pub request_id: ApprovalId,
    /// Whether the request is approved.
    pub approve: bool,
    /// The two digits that the new device shows. Required to approve; a wrong number denies the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<Text>,
    /// A device of the user to revoke in the same transaction, instead of the one that the request names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replace_device_id: Option<DeviceId>,
}

impl SocketRequest for DecideRequest {
    const OP: Op = Op::DevicesDecide;
    type Reply = EmptyReply;
}

/// A request as the one who makes it sees it.
#[derive(Clone, Serialize, Deserialize)]
pub struct RequestedApproval {
    /// The request.
    pub request_id: ApprovalId,
    /// Proves in [`PollApprovalRequest`] who made the request; `None` if it is not polled, for a change of the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll_token: Option<String>,
    /// Two digits to show. The person enters them on the device that approves.
    pub number: String,
    /// When the request is approved unless a device denies it.
    pub decides_at: Timestamp,
}

/// The body of `POST /v1/auth/approval`.
#[derive(Clone, Serialize, Deserialize)]
pub struct PollApprovalRequest {
    /// From [`RequestedApproval::request_id`].
    pub request_id: ApprovalId,
    /// From [`RequestedApproval::poll_token`].
    pub poll_token: Text,
}

/// The response to `POST /v1/auth/verify` with status 202: the account is locked, and the sign-in waits for an approval.
#[derive(Clone, Serialize, Deserialize)]
pub struct ApprovalRequestedReply {
    /// The request.
    pub approval: RequestedApproval,
}

/// The response to `POST /v1/auth/approval` with status 202: the request is pending. With status 201 it is a
/// [`SessionReply`](crate::auth::SessionReply).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalPendingReply {
    /// The request.
    pub approval: UndecidedApproval,
}

/// The `approval` of [`ApprovalPendingReply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndecidedApproval {
    /// When the request is approved unless a device denies it.
    pub decides_at: Timestamp,
}
