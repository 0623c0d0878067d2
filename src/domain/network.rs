//! The network that a client comes from.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// A client's address truncated to a prefix, /24 of IPv4 or /48 of IPv6, so that the addresses between which one client
/// can easily change count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientNetwork {
    /// The first three bytes.
    V4([u8; 3]),
    /// The first six bytes.
    V6([u8; 6]),
}

/// A network by which limits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CountedNetwork {
    prefix: [u8; 6],
    bits: u8,
}

impl CountedNetwork {
    /// The bytes of the prefix, and its length in bits.
    #[must_use]
    pub fn parts(&self) -> (&[u8], u8) {
        (&self.prefix[..usize::from(self.bits / 8)], self.bits)
    }
}

/// The widths at which IPv6 is judged, each with how many times the limit of a /48 applies to it. One customer may have
/// a /40 or /32, and so thousands of /48.
const IPV6_WIDTHS: [(u8, u32); 3] = [(48, 1), (40, 8), (32, 32)];

impl From<IpAddr> for ClientNetwork {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => {
                let [a, b, c, _] = v4.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(v6) => {
                let o = v6.octets();
                Self::V6([o[0], o[1], o[2], o[3], o[4], o[5]])
            }
        }
    }
}

impl ClientNetwork {
    /// Parses what [`Display`](fmt::Display) shows; `None` if it is invalid.
    #[must_use]
    pub fn parse(shown: &str) -> Option<Self> {
        Some(shown.split_once('/')?.0.parse::<IpAddr>().ok()?.into())
    }

    /// The networks by which limits count a client, each with how many times the limit of a single network applies to
    /// it: a /24 of IPv4, or the /48, the /40 and the /32 of IPv6.
    #[must_use]
    pub fn counted(&self) -> Vec<(CountedNetwork, u32)> {
        match self {
            Self::V4(_) => vec![(self.truncated(24), 1)],
            Self::V6(_) => IPV6_WIDTHS.iter().map(|(bits, factor)| (self.truncated(*bits), *factor)).collect(),
        }
    }

    /// The widest network by which limits count a client: a /24 of IPv4, a /32 of IPv6.
    #[must_use]
    pub fn widest(&self) -> CountedNetwork {
        self.truncated(match self {
            Self::V4(_) => 24,
            Self::V6(_) => 32,
        })
    }

    fn truncated(self, bits: u8) -> CountedNetwork {
        let mut prefix = [0; 6];
        let bytes = usize::from(bits / 8);
        prefix[..bytes].copy_from_slice(&self.as_bytes()[..bytes]);
        CountedNetwork { prefix, bits }
    }

    /// The bytes of the prefix.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::V4(bytes) => bytes,
            Self::V6(bytes) => bytes,
        }
    }
}

/// The prefix with its length, such as `203.0.113.0/24`.
impl fmt::Display for ClientNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::V4([a, b, c]) => write!(f, "{}/24", Ipv4Addr::new(a, b, c, 0)),
            Self::V6(prefix) => {
                let mut octets = [0; 16];
                octets[..6].copy_from_slice(&prefix);
                write!(f, "{}/48", Ipv6Addr::from(octets))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_truncated_and_ipv4_mapped_ones_count_as_ipv4() {
        let network = |text: &str| ClientNetwork::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(network("192.0.2.1"), network("192.0.2.250"));
        assert_ne!(network("192.0.2.1"), network("192.0.3.1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.9"));
        assert_eq!(network("2001:db8:1:2::1"), network("2001:db8:1:ffff::1"));
        assert_ne!(network("2001:db8:1::1"), network("2001:db8:2::1"));
    }

    #[test]
    fn ipv6_counts_at_three_widths_with_growing_limits() {
        let counted = |text: &str| ClientNetwork::from(text.parse::<IpAddr>().unwrap()).counted();
        let factors: Vec<u32> = counted("2001:db8:1::1").iter().map(|(_, factor)| *factor).collect();
        assert_eq!(factors, [1, 8, 32]);
        let same = |one: &str, other: &str| {
            counted(one).iter().zip(counted(other)).filter(|(one, other)| **one == *other).count()
        };
        assert_eq!(same("2001:db8:1::1", "2001:db8:1:ffff::1"), 3);
        assert_eq!(same("2001:db8:100::1", "2001:db8:1ff::1"), 2, "the same /40");
        assert_eq!(same("2001:db8:100::1", "2001:db8:ff00::1"), 1, "the same /32");
        assert_eq!(same("2001:db8:1::1", "2001:db9:1::1"), 0);
        assert_eq!(counted("192.0.2.1"), counted("192.0.2.9"));
        assert_eq!(counted("192.0.2.1")[0].0.parts(), (&[192, 0, 2][..], 24));
        assert_eq!(counted("192.0.2.1").len(), 1);
        for address in ["192.0.2.1", "2001:db8:1::1"] {
            let widest = ClientNetwork::from(address.parse::<IpAddr>().unwrap()).widest();
            assert_eq!(Some(widest), counted(address).last().map(|(network, _)| *network));
        }
    }

    #[test]
    fn a_network_is_shown_with_the_length_of_its_prefix() {
        let shown = |text: &str| ClientNetwork::from(text.parse::<IpAddr>().unwrap()).to_string();
        assert_eq!(shown("203.0.113.9"), "203.0.113.0/24");
        assert_eq!(shown("2001:db8:1:2::1"), "2001:db8:1::/48");
        for address in ["203.0.113.9", "2001:db8:1:2::1"] {
            let network = ClientNetwork::from(address.parse::<IpAddr>().unwrap());
            assert_eq!(ClientNetwork::parse(&network.to_string()), Some(network));
        }
        assert_eq!(ClientNetwork::parse("203.0.113.0"), None);
    }
}
