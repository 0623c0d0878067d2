//! Users and accounts: the ops `users.find`, `account.delete` and `account.change_email`. Types that contain a code do
//! not implement `Debug`, so that it cannot be logged.

use serde::{Deserialize, Serialize};

use crate::{
    approvals::RequestedApproval,
    auth::WorkProof,
    frame::{EmptyReply, Op, SocketRequest},
    ids::{ChallengeId, UserId},
    value::{Lenient, Text},
};

/// `users.find`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindUserRequest {
    /// The address to look up.
    pub email: Text,
}

/// The result of `users.find`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindUserReply {
    /// The user with that address.
    pub user_id: UserId,
}

impl SocketRequest for FindUserRequest {
    const OP: Op = Op::UsersFind;
    type Reply = FindUserReply;
}

/// `account.delete`
#[derive(Clone, Serialize, Deserialize)]
pub struct DeleteAccountRequest {
    /// The challenge of a code for `delete` that was mailed to the user's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub challenge_id: Option<ChallengeId>,
    /// The code: eight digits; spaces and dashes are ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Text>,
    /// Pays for exceeding a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<Lenient<WorkProof>>,
}

impl SocketRequest for DeleteAccountRequest {
    const OP: Op = Op::AccountDelete;
    type Reply = EmptyReply;
}

/// `account.change_email`. On a locked account a device decides it, or time.
#[derive(Clone, Serialize, Deserialize)]
pub struct ChangeEmailRequest {
    /// The new address.
    pub email: Text,
    /// The challenge of a code for `change_email` that was mailed to the new address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub challenge_id: Option<ChallengeId>,
    /// The code: eight digits; spaces and dashes are ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Text>,
    /// Pays for exceeding a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<Lenient<WorkProof>>,
}

impl SocketRequest for ChangeEmailRequest {
    const OP: Op = Op::AccountChangeEmail;
    type Reply = ChangeEmailReply;
}

/// The result of `account.change_email`.
#[derive(Clone, Serialize, Deserialize)]
pub struct ChangeEmailReply {
    /// The request that waits for an approval; `None` if the address was changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<RequestedApproval>,
}
