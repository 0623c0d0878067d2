//! The user's own devices: the ops `devices.list`, `devices.rename` and `devices.revoke`.

use serde::{Deserialize, Serialize};

use crate::{
    frame::{EmptyReply, Op, SocketRequest},
    ids::DeviceId,
    time::Timestamp,
    value::Text,
};

/// `devices.list`: no parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListDevicesRequest {}

/// The result of `devices.list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListDevicesReply {
    /// The user's active devices, oldest first.
    pub devices: Vec<ListedDevice>,
}

/// An active device of the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedDevice {
    /// Names it in other ops.
    pub device_id: DeviceId,
    /// For people; `None` if it was never named.
    pub name: Option<String>,
    /// The number that its client library chose.
    pub registration_id: u32,
    /// When it first signed in.
    pub created_at: Timestamp,
    /// When it last connected or disconnected; `None` if it never did.
    pub last_seen: Option<Timestamp>,
    /// Whether it is the asking device.
    pub current: bool,
}

impl SocketRequest for ListDevicesRequest {
    const OP: Op = Op::DevicesList;
    type Reply = ListDevicesReply;
}

/// `devices.rename`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenameDeviceRequest {
    /// A device of the user; the asking one if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<DeviceId>,
    /// The new name, of as many characters as [`DEVICE_NAME_CHARS`](crate::limits::DEVICE_NAME_CHARS) allows.
    pub name: Text,
}

impl SocketRequest for RenameDeviceRequest {
    const OP: Op = Op::DevicesRename;
    type Reply = EmptyReply;
}

/// `devices.revoke`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeDeviceRequest {
    /// Any device of the user, the asking one included.
    pub device_id: DeviceId,
}

impl SocketRequest for RevokeDeviceRequest {
    const OP: Op = Op::DevicesRevoke;
    type Reply = EmptyReply;
}
