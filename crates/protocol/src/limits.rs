//! Bounds of the protocol that no setting changes. What an operator may change is in `docs/protocol.md`, under Limits.

use std::{ops::RangeInclusive, time::Duration};

/// Largest message on the socket, in bytes of payload over all its frames.
pub const MAX_FRAME_BYTES: usize = 512 * 1024;
/// Requests of one socket that may be unanswered.
pub const MAX_IN_FLIGHT: usize = 64;
/// Largest body of an HTTP request, in bytes.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// Largest content of one message for one device, in bytes; at least 1.
pub const MAX_CONTENT: usize = 32 * 1024;
/// Messages in one `messages.send`: one for each device of the recipient, and no user may have more devices.
pub const MAX_MESSAGES_PER_SEND: usize = 100;
/// Seqs in one `messages.ack`.
pub const MAX_SEQS_PER_ACK: usize = 1000;
/// Seconds that a message may wait for its devices.
pub const TTL_SECONDS: RangeInclusive<u64> = 60..=30 * 24 * 3600;
/// How long a message waits for its devices if its sender does not say.
pub const TTL_DEFAULT: Duration = Duration::from_hours(30 * 24);
/// Devices named in one `keys.fetch` or `keys.claim`.
pub const MAX_DEVICE_IDS: usize = 100;
/// Keys of one kind in one `keys.publish`.
pub const MAX_KEYS_PER_PUBLISH: usize = 100;
/// Unissued keys of one kind that a device may keep.
pub const MAX_POOL: usize = 500;
/// How far ahead a signed prekey may expire.
pub const MAX_SIGNED_PREKEY_LIFETIME: Duration = Duration::from_hours(90 * 24);
/// Characters of a device's name.
pub const DEVICE_NAME_CHARS: RangeInclusive<usize> = 1..=64;
/// Registration ids: the Signal libraries use 14 bits and keep 0 free.
pub const REGISTRATION_IDS: RangeInclusive<u32> = 1..=16380;
/// The largest integer: a double holds it and all below it exactly.
pub const MAX_INTEGER: i64 = (1 << 53) - 1;
