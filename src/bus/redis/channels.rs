//! The names of the Redis channels.

pub const DEVICE_CHANNEL: &str = "sealwire:device:";

pub const PROBE_CHANNEL: &str = "sealwire:probe:";
