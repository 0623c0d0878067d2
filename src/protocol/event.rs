//! Events: what the server says unasked.

use base64::{display::Base64Display, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::{
    Codec,
    frame::{MAX_FRAME_BYTES, MAX_IN_FLIGHT},
};
use crate::domain::{
    DeviceId, EndReason, Envelope, KeyKind, KeysStatus, MessageId, SessionId, Timestamp, UserId, envelope::MAX_CONTENT,
};

/// An event, with the name that it has on the wire.
#[derive(Serialize)]
#[serde(tag = "event", content = "data")]
pub enum Event<'a> {
    /// The first frame of every socket.
    #[serde(rename = "welcome")]
    Welcome(&'a Welcome),
    /// A pool of the device's keys runs low.
    #[serde(rename = "prekeys.low")]
    PrekeysLow {
        /// Which pool.
        kind: KeyKind,
        /// Unissued keys in it.
        remaining: u32,
        /// The configured low-water mark.
        threshold: u32,
        /// Lets a client tell whether it has published since.
        pool_version: i64,
    },
    /// The signed prekey should be rotated.
    #[serde(rename = "signed_prekey.expiring")]
    SignedPrekeyExpiring {
        /// Its id.
        key_id: u32,
        /// When it stops being served.
        expires_at: Timestamp,
    },
    /// Other devices of the user came or went.
    #[serde(rename = "devices.changed")]
    DevicesChanged {
        /// New devices.
        added: &'a [DeviceId],
        /// Revoked devices.
        removed: &'a [DeviceId],
    },
    /// The session ended; the close follows.
    #[serde(rename = "session.revoked")]
    SessionRevoked {
        /// Why.
        reason: EndReason,
    },
    /// A message.
    #[serde(rename = "message")]
    Message {
        /// Its number in the device's mailbox; none where it is ephemeral.
        seq: Option<i64>,
        /// The sender's name for it.
        message_id: MessageId,
        /// Who sent it.
        from: From,
        /// In a numbering of the clients' own.
        #[serde(rename = "type")]
        kind: u8,
        /// Ciphertext.
        content: Content<'a>,
        /// When it was accepted.
        accepted_at: Timestamp,
        /// Whether it is stored nowhere and cannot be acked.
        ephemeral: bool,
    },
    /// What was in the mailbox when the device connected has been sent.
    #[serde(rename = "mailbox.drained")]
    MailboxDrained {},
    /// The node is being stopped; the close follows.
    #[serde(rename = "server.draining")]
    ServerDraining {
        /// When to come back, jittered.
        reconnect_in_ms: u64,
    },
}

impl<'a> Event<'a> {
    /// An envelope as its device is told of it; without a number it is ephemeral.
    #[must_use]
    pub fn message(codec: Codec, seq: Option<i64>, envelope: &'a Envelope) -> Self {
        Self::Message {
            seq,
            message_id: envelope.message,
            from: From { user_id: envelope.from_user, device_id: envelope.from_device },
            kind: envelope.kind,
            content: Content { codec, bytes: &envelope.content },
            accepted_at: envelope.accepted_at,
            ephemeral: seq.is_none(),
        }
    }
}

/// Who sent a message.
#[derive(Serialize)]
pub struct From {
    /// The user.
    pub user_id: UserId,
    /// The device.
    pub device_id: DeviceId,
}

/// The content of a message: `bin` in `MessagePack`, base64 in JSON.
pub struct Content<'a> {
    codec: Codec,
    bytes: &'a [u8],
}

impl Serialize for Content<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.codec {
            Codec::MsgPack => serializer.serialize_bytes(self.bytes),
            Codec::Json => serializer.collect_str(&Base64Display::new(self.bytes, &STANDARD)),
        }
    }
}

/// What a client is told first.
#[derive(Serialize)]
pub struct Welcome {
    /// The socket's session.
    pub session_id: SessionId,
    /// Who this is.
    pub user_id: UserId,
    /// On which device.
    pub device_id: DeviceId,
    /// When the session ends unless renewed.
    pub expires_at: Timestamp,
    /// The server's clock.
    pub server_time: Timestamp,
    /// Seconds between the server's pings.
    pub heartbeat_s: u64,
    /// Bounds a client must keep.
    pub limits: Limits,
    /// The device's keys.
    pub keys: KeysStatus,
    /// The device's mailbox.
    pub mailbox: MailboxSummary,
}

/// The bounds of a socket.
#[derive(Serialize)]
pub struct Limits {
    /// [`MAX_FRAME_BYTES`]
    pub frame_bytes: usize,
    /// [`MAX_CONTENT`]
    pub content_bytes: usize,
    /// [`MAX_IN_FLIGHT`]
    pub in_flight: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { frame_bytes: MAX_FRAME_BYTES, content_bytes: MAX_CONTENT, in_flight: MAX_IN_FLIGHT }
    }
}

/// What waits for a device.
#[derive(Serialize)]
pub struct MailboxSummary {
    /// Envelopes stored at that moment.
    pub waiting: u64,
    /// Envelopes that ever timed out undelivered.
    pub expired_total: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_shape_of_the_contract() {
        let event = Event::PrekeysLow { kind: KeyKind::PqOneTime, remaining: 3, threshold: 20, pool_version: 2 };
        let expected =
            r#"{"event":"prekeys.low","data":{"kind":"pq_one_time","remaining":3,"threshold":20,"pool_version":2}}"#;
        assert_eq!(String::from_utf8(Codec::Json.encode(&event).unwrap()).unwrap(), expected);
        let event = Event::SessionRevoked { reason: EndReason::DeviceRevoked };
        assert_eq!(
            Codec::Json.encode(&event).unwrap(),
            br#"{"event":"session.revoked","data":{"reason":"device_revoked"}}"#
        );
    }
}
