//! Finding users and deleting accounts: the ops `users.find` and `account.delete`.

use serde::{Deserialize, Serialize};

use crate::{
    frame::{EmptyReply, Op, SocketRequest},
    ids::UserId,
    value::Text,
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

/// `account.delete`: no parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteAccountRequest {}

impl SocketRequest for DeleteAccountRequest {
    const OP: Op = Op::AccountDelete;
    type Reply = EmptyReply;
}
