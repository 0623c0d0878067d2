//! Events: frames that the server sends without a request.

use serde::{Deserialize, Serialize};

use crate::{
    approvals::PendingApproval,
    auth::EndReason,
    error::ErrorBody,
    ids::{DeviceId, MessageId, SessionId, UserId},
    keys::{KeyKind, KeysStatusReply},
    limits::{MAX_CONTENT, MAX_FRAME_BYTES, MAX_IN_FLIGHT},
    messages::MessageContent,
    push::WelcomePush,
    time::Timestamp,
    value::Named,
};

/// An event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", content = "data")]
pub enum Event<'a> {
    /// The only frame of a socket whose upgrade was refused, followed by the close. Browsers get it instead of an HTTP
    /// response, which they would not show to the page.
    #[serde(rename = "refused")]
    Refused(Box<ErrorBody>),
    /// The first frame of every socket whose upgrade was not refused.
    #[serde(rename = "welcome")]
    Welcome(Box<Welcome>),
    /// A pool of the device's one-time keys is low.
    #[serde(rename = "prekeys.low")]
    PrekeysLow {
        /// The pool.
        kind: Named<KeyKind>,
        /// Unissued keys in it.
        remaining: u32,
        /// A pool with at most this many keys is announced as low.
        threshold: u32,
        /// If it is smaller than the `pool_version` after the client's last publish that changed this pool, the event is
        /// outdated. Publishes to the other pool increase it, too.
        pool_version: i64,
    },
    /// The signed prekey expires soon, so the device should publish a new one.
    #[serde(rename = "signed_prekey.expiring")]
    SignedPrekeyExpiring {
        /// The id of the signed prekey.
        key_id: u32,
        /// When it stops being served.
        expires_at: Timestamp,
    },
    /// Other devices of the user were added or revoked.
    #[serde(rename = "devices.changed")]
    DevicesChanged {
        /// New devices.
        added: Vec<DeviceId>,
        /// Revoked devices.
        removed: Vec<DeviceId>,
    },
    /// A new device, or another address of the account, waits for an approval by one of the user's devices. Also sent
    /// after each welcome while the request is pending.
    #[serde(rename = "devices.requested")]
    DevicesRequested(Box<PendingApproval>),
    /// Sessions of one of the user's devices were opened or ended.
    #[serde(rename = "sessions.changed")]
    SessionsChanged {
        /// The device of the sessions.
        device_id: DeviceId,
        /// Sessions that a sign-in opened.
        opened: Vec<SessionId>,
        /// Sessions that ended other than by expiry or renewal.
        ended: Vec<SessionId>,
    },
    /// The session ended. The close follows.
    #[serde(rename = "session.revoked")]
    SessionRevoked {
        /// Why it ended.
        reason: Named<EndReason>,
    },
    /// A message for this device.
    #[serde(rename = "message")]
    Message(#[serde(borrow)] MessageEvent<'a>),
    /// All messages that were in the mailbox when the device connected have been sent.
    #[serde(rename = "mailbox.drained")]
    MailboxDrained {},
    /// The node is stopping. The close follows.
    #[serde(rename = "server.draining")]
    ServerDraining {
        /// Milliseconds to wait before reconnecting; random, so that clients do not all return at once.
        reconnect_in_ms: u64,
    },
}

impl Event<'_> {
    /// The names of all events. A client ignores events with other names: they come from a newer server.
    pub const NAMES: [&'static str; 11] = [
        "welcome",
        "refused",
        "prekeys.low",
        "signed_prekey.expiring",
        "devices.changed",
        "devices.requested",
        "sessions.changed",
        "session.revoked",
        "message",
        "mailbox.drained",
        "server.draining",
    ];
}

/// The data of `message`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageEvent<'a> {
    /// The sequence number in the device's mailbox, to be acked; `None` if the message is ephemeral.
    pub seq: Option<i64>,
    /// Chosen by the sender.
    pub message_id: MessageId,
    /// The sending device.
    pub from: MessageSender,
    /// The type of the content. Clients define the numbers.
    #[serde(rename = "type")]
    pub kind: u8,
    /// Ciphertext.
    #[serde(borrow)]
    pub content: MessageContent<'a>,
    /// When the server accepted the message.
    pub accepted_at: Timestamp,
    /// Whether the message is ephemeral: not stored, and not to be acked.
    pub ephemeral: bool,
}

/// The sender of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageSender {
    /// The sending user.
    pub user_id: UserId,
    /// The sending device.
    pub device_id: DeviceId,
}

/// The data of `welcome`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The session of the socket.
    pub session_id: SessionId,
    /// The user of the socket's session.
    pub user_id: UserId,
    /// The device of the session.
    pub device_id: DeviceId,
    /// When the session ends unless it is renewed.
    pub expires_at: Timestamp,
    /// The current time on the server.
    pub server_time: Timestamp,
    /// Seconds between the server's pings.
    pub heartbeat_s: u64,
    /// Limits that a client must respect.
    pub limits: WelcomeLimits,
    /// The device's keys on the server.
    pub keys: KeysStatusReply,
    /// The device's mailbox.
    pub mailbox: WelcomeMailbox,
    /// What this server understands beyond the first version. Servers ignore unknown request fields, so a client looks
    /// here before it relies on one.
    #[serde(default)]
    pub features: Vec<Named<Feature>>,
    /// The device's push target, and what a client needs to register one; absent on earlier servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push: Option<WelcomePush>,
}

/// An addition to the protocol, as `features` of a welcome names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// `keys.publish` takes `replace` and `expect_pool_version`, and `keys.status` takes `digest`.
    Replace,
    /// `messages.send` takes `skip`.
    Skip,
    /// `keys.claim` and `keys.fetch` take `suites`.
    Suites,
    /// There is `access.set`, and `messages.send`, `keys.claim` and `keys.fetch` take `access`.
    Access,
    /// There are `blocks.add`, `blocks.remove` and `blocks.list`.
    Blocks,
    /// Accounts can be locked: `account.lock`, `account.unlock`, `account.status`, `devices.decide`, `devices.requested`.
    Lock,
    /// There are `push.register`, `push.confirm`, `push.remove` and `push.test`, and `messages.send` takes `urgent`.
    Push,
}

impl Feature {
    /// All features of this version.
    pub const ALL: [Self; 7] =
        [Self::Replace, Self::Skip, Self::Suites, Self::Access, Self::Blocks, Self::Lock, Self::Push];
}

/// The `limits` of a welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WelcomeLimits {
    /// The largest message on the socket, in bytes: [`MAX_FRAME_BYTES`].
    pub frame_bytes: usize,
    /// The largest content of a message for one device, in bytes: [`MAX_CONTENT`].
    pub content_bytes: usize,
    /// Requests that may be unanswered: [`MAX_IN_FLIGHT`].
    pub in_flight: usize,
}

impl Default for WelcomeLimits {
    fn default() -> Self {
        Self { frame_bytes: MAX_FRAME_BYTES, content_bytes: MAX_CONTENT, in_flight: MAX_IN_FLIGHT }
    }
}

/// The `mailbox` of a welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WelcomeMailbox {
    /// The number of envelopes stored at that moment.
    pub waiting: u64,
    /// The total number of envelopes that expired undelivered. If it has grown, messages were lost.
    pub expired_total: u64,
}
