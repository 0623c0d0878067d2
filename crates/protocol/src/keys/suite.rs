//! Suites: the kinds of keys of a device, and its signature scheme.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::value::StringOnly;

/// The kinds of keys that a device publishes, and its signature scheme. Set once per device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suite {
    /// `signal-pqxdh`: 33-byte X25519 keys and 1569-byte PQ keys, `XEdDSA`.
    SignalPqxdh,
    /// `signal-x3dh`: 33-byte X25519 keys, `XEdDSA`.
    SignalX3dh,
    /// `ed25519-x3dh`: a 32-byte Ed25519 identity, 32-byte X25519 prekeys, Ed25519.
    Ed25519X3dh,
}

impl Suite {
    /// All suites.
    pub const ALL: [Self; 3] = [Self::SignalPqxdh, Self::SignalX3dh, Self::Ed25519X3dh];

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SignalPqxdh => "signal-pqxdh",
            Self::SignalX3dh => "signal-x3dh",
            Self::Ed25519X3dh => "ed25519-x3dh",
        }
    }

    /// The suite with exactly this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.as_str() == name)
    }

    /// Whether bundles of this suite contain a PQ prekey.
    #[must_use]
    pub const fn has_pq(self) -> bool {
        matches!(self, Self::SignalPqxdh)
    }

    /// Whether serialized curve keys begin with libsignal's type byte.
    #[must_use]
    pub const fn has_type_byte(self) -> bool {
        matches!(self, Self::SignalPqxdh | Self::SignalX3dh)
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Suite {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Suite {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(StringOnly("the name of a suite", Self::parse))
    }
}
