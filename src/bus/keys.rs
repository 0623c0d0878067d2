//! What makes the bus of a deployment its own: its channels, and the key that authenticates its payloads. Both are derived
//! from the server's secret, so two deployments can share a Redis.

use uuid::Uuid;
use zeroize::Zeroizing;

use crate::domain::{DeviceId, Timestamp, otp::ServerSecret};

/// The names of a deployment's channels, and its key for payloads.
pub struct BusKeys {
    prefix: String,
    payloads: Zeroizing<[u8; 32]>,
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
    /// Derives names and key from the server's secret.
    #[must_use]
    pub fn new(secret: &ServerSecret) -> Self {
        let name = secret.tag(&[b"bus channels"]);
        let hex = name[..8].iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        Self { prefix: format!("sealwire:{hex}:"), payloads: Zeroizing::new(secret.tag(&[b"bus payloads"])) }
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

    /// What a channel carries; `None` if it is not one of this deployment's.
    #[must_use]
    pub fn channel(&self, name: &str) -> Option<Channel> {
        match name.strip_prefix(&self.prefix)? {
            "nodes" => Some(Channel::Nodes),
            rest => Some(Channel::Device(DeviceId::parse(rest.strip_prefix("device:")?)?)),
        }
    }

    /// The tag of a payload on a channel: keyed BLAKE3 over both, the name preceded by its length.
    #[must_use]
    pub fn tag(&self, channel: &str, payload: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.payloads);
        hasher.update(&(channel.len() as u64).to_le_bytes()).update(channel.as_bytes()).update(payload);
        hasher.finalize()
    }
}

/// Who publishes, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publisher {
    /// The publishing node.
    pub node: Uuid,
    /// The time of the database.
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
        assert_eq!(ours.channel(&name), Some(Channel::Device(device)));
        assert_eq!(ours.channel(&ours.nodes_channel()), Some(Channel::Nodes));
        assert_eq!(theirs.channel(&name), None);
        for other in ["", "sealwire:device:x", &format!("{name}0"), &format!("{}x", ours.nodes_channel())] {
            assert_eq!(ours.channel(other), None, "{other}");
        }
        assert_ne!(ours.tag("a", b"b"), ours.tag("ab", b""));
        assert_ne!(ours.tag("a", b"b"), theirs.tag("a", b"b"));
    }
}
