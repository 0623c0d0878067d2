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
    /// Identifies the device in other ops.
    pub device_id: DeviceId,
    /// For display; `None` if it was never set.
    pub name: Option<String>,
    /// The registration id, chosen by the device's Signal library or by the server.
    pub registration_id: u32,
    /// When it first signed in.
    pub created_at: Timestamp,
    /// When it last connected or disconnected; `None` if it never did.
    pub last_seen: Option<Timestamp>,
    /// Whether this is the requesting device.
    pub current: bool,
}

impl SocketRequest for ListDevicesRequest {
    const OP: Op = Op::DevicesList;
    type Reply = ListDevicesReply;
}

/// `devices.rename`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenameDeviceRequest {
    /// A device of the user; the requesting device if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<DeviceId>,
    /// The new name; see [`DEVICE_NAME_CHARS`](crate::limits::DEVICE_NAME_CHARS) for its length.
    pub name: Text,
}

impl SocketRequest for RenameDeviceRequest {
    const OP: Op = Op::DevicesRename;
    type Reply = EmptyReply;
}

/// `devices.revoke`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeDeviceRequest {
    /// Any device of the user, including the requesting one.
    pub device_id: DeviceId,
}

impl SocketRequest for RevokeDeviceRequest {
    const OP: Op = Op::DevicesRevoke;
    type Reply = EmptyReply;
}
