//! Fixed limits of the protocol. For limits that an operator can change see `docs/protocol.md`, under Limits.

use std::{ops::RangeInclusive, time::Duration};

/// Maximum size of a WebSocket message: bytes of payload in all of its frames.
pub const MAX_FRAME_BYTES: usize = 512 * 1024;
/// Maximum number of unanswered requests on one socket.
pub const MAX_IN_FLIGHT: usize = 64;
/// Maximum size of an HTTP request body, in bytes.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// Maximum size of the content for one device, in bytes. The minimum is 1.
pub const MAX_CONTENT: usize = 32 * 1024;
/// Maximum number of messages in one `messages.send`: one per device of the recipient. No user can have more devices.
pub const MAX_MESSAGES_PER_SEND: usize = 100;
/// Maximum number of sequence numbers in one `messages.ack`.
pub const MAX_SEQS_PER_ACK: usize = 1000;
/// Allowed values of `ttl_s`: seconds that a message is kept for its devices.
pub const TTL_SECONDS: RangeInclusive<u64> = 60..=30 * 24 * 3600;
/// How long a message without `ttl_s` is kept for its devices.
pub const TTL_DEFAULT: Duration = Duration::from_hours(30 * 24);
/// Size of an access key, in bytes.
pub const ACCESS_KEY_BYTES: usize = 16;
/// Maximum number of users that a user can block.
pub const MAX_BLOCKS: usize = 10_000;
/// Maximum number of device ids in one `keys.fetch` or `keys.claim`.
pub const MAX_DEVICE_IDS: usize = 100;
/// Maximum number of one-time keys of each kind in one `keys.publish`.
pub const MAX_KEYS_PER_PUBLISH: usize = 100;
/// What a `keys.status` with a digest costs, as a number of ordinary requests.
pub const DIGEST_COST: u32 = 50;
/// The number of requests as which `blocks.list` counts towards the request rate: its reply may have 10,000 ids.
pub const BLOCKS_LIST_COST: u32 = 10;
/// Maximum number of unissued one-time keys of each kind per device.
pub const MAX_POOL: usize = 500;
/// Maximum time until a published signed prekey expires.
pub const MAX_SIGNED_PREKEY_LIFETIME: Duration = Duration::from_hours(90 * 24);
/// Allowed numbers of characters in a device's name.
pub const DEVICE_NAME_CHARS: RangeInclusive<usize> = 1..=64;
/// Allowed registration ids. The Signal libraries use 14 bits, and never 0.
pub const REGISTRATION_IDS: RangeInclusive<u32> = 1..=16380;
/// Allowed values of `wait_s` of a lock: seconds after which a request is approved unless a device denies it.
pub const LOCK_WAIT_SECONDS: RangeInclusive<u64> = 24 * 3600..=30 * 24 * 3600;
/// The `wait_s` of a lock without one.
pub const LOCK_WAIT_DEFAULT: Duration = Duration::from_hours(7 * 24);
/// The largest integer in the protocol. A double represents it and all smaller ones exactly.
pub const MAX_INTEGER: i64 = (1 << 53) - 1;
