//! The names of the Redis channels: one for each connected device, and one for the probes of each node.

use uuid::Uuid;

use crate::domain::DeviceId;

const DEVICES: &str = "sealwire:device:";
const PROBES: &str = "sealwire:probe:";

/// What a message is about, as its channel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Signals for a device.
    Device(DeviceId),
    /// A probe of this node.
    Probe,
}

impl Channel {
    /// Reads a channel's name; `None` if it is not one of ours.
    pub fn parse(name: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?;
        if name.starts_with(PROBES) {
            return Some(Self::Probe);
        }
        name.strip_prefix(DEVICES).and_then(DeviceId::parse).map(Self::Device)
    }
}

/// The channel of a device.
pub fn device_channel(device: &DeviceId) -> String {
    format!("{DEVICES}{device}")
}

/// The channel of a node's probes.
pub fn probe_channel(node: Uuid) -> String {
    format!("{PROBES}{node}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let id = Uuid::from_u128(7);
        assert_eq!(Channel::parse(device_channel(&DeviceId(id)).as_bytes()), Some(Channel::Device(DeviceId(id))));
        assert_eq!(Channel::parse(probe_channel(id).as_bytes()), Some(Channel::Probe));
        assert_eq!(Channel::parse(b"sealwire:device:x"), None);
        assert_eq!(Channel::parse(b"\xff"), None);
    }
}
