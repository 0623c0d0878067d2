//! The names of the Redis channels.

/// Followed by the device id.
pub const DEVICE_CHANNEL: &str = "sealwire:device:";

/// Followed by the node id.
pub const PROBE_CHANNEL: &str = "sealwire:probe:";
