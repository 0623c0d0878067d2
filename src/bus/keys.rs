//! Derives a deployment's channel names, and the key that authenticates its payloads, from the server's secret. So two
//! deployments with different secrets can share a Redis.

use uuid::Uuid;
use zeroize::Zeroizing;

use crate::domain::{DeviceId, Timestamp, otp::ServerSecret};

/// The channel names and the payload key of a deployment.
pub struct BusKeys {
    prefix: String,
    payload_key: Zeroizing<[u8; 32]>,
}

/// What a channel of this deployment carries.
#[derive(Debug, PartialEq, Eq)]
pub enum Channel {
    /// The signals for a device.
    Device(DeviceId),
    /// The announcements of nodes.
    Nodes,
}

impl BusKeys {
    /// Derives the channel names and the key from the server's secret.
    #[must_use]
    pub fn new(secret: &ServerSecret) -> Self {
        let name = secret.tag(&[b"bus channels"]);
        let hex = name[..8].iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        Self { prefix: format!("sealwire:{hex}:"), payload_key: Zeroizing::new(secret.tag(&[b"bus payloads"])) }
    }

    /// The channel of a device's signals. It has no braces, which Redis Cluster would take for a hash tag.
    #[must_use]
    pub fn device_channel(&self, device: DeviceId) -> String {
        format!("{}device:{device}", self.prefix)
    }

    /// The channel on which all nodes announce themselves.
    #[must_use]
    pub fn nodes_channel(&self) -> String {
        format!("{}nodes", self.prefix)
    }

    /// Parses the name of a channel; `None` if it is not a channel of this deployment.
    #[must_use]
    pub fn parse_channel(&self, name: &str) -> Option<Channel> {
        match name.strip_prefix(&self.prefix)? {
            "nodes" => Some(Channel::Nodes),
            rest => Some(Channel::Device(DeviceId::parse(rest.strip_prefix("device:")?)?)),
        }
    }

    /// The authentication tag of a payload on a channel: keyed BLAKE3 over the length of the channel's name, the name
    /// and the payload.
    #[must_use]
    pub fn tag(&self, channel: &str, payload: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.payload_key);
        hasher.update(&(channel.len() as u64).to_le_bytes()).update(channel.as_bytes()).update(payload);
        hasher.finalize()
    }
}

/// The publishing node and the time, which every payload contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publisher {
    /// The publishing node.
    pub node: Uuid,
    /// When it publishes, by the clock of the database.
    pub at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_belong_to_the_secret() {
        let (ours, theirs) = (BusKeys::new(&ServerSecret::new([1; 32])), BusKeys::new(&ServerSecret::new([2; 32])));
        let device = DeviceId(Uuid::from_u128(7));
        let name = ours.device_channel(device);
        assert_eq!(name.len(), "sealwire:0123456789abcdef:device:00000000-0000-0000-0000-000000000007".len());
        assert_eq!(ours.parse_channel(&name), Some(Channel::Device(device)));
        assert_eq!(ours.parse_channel(&ours.nodes_channel()), Some(Channel::Nodes));
        assert_eq!(theirs.parse_channel(&name), None);
        for other in ["", "sealwire:device:x", &format!("{name}0"), &format!("{}x", ours.nodes_channel())] {
            assert_eq!(ours.parse_channel(other), None, "{other}");
        }
        assert_ne!(ours.tag("a", b"b"), ours.tag("ab", b""));
        assert_ne!(ours.tag("a", b"b"), theirs.tag("a", b"b"));
    }
}
