//! Messages as the app gives them to be sent, and as it gets them.

use std::time::Duration;

use sealwire_protocol::{
    Codec, Timestamp,
    access::{AccessKey, ShownKey},
    events::{MessageEvent, MessageSender},
    ids::{DeviceId, MessageId, UserId},
    messages::{ContentError, DeviceMessage, MessageContent, SendMessageReply, SendMessageRequest},
    value::{List, Object},
};

use crate::{error::RequestError, outbox::Place, storage::Record};

/// How records of the outbox are encoded: as on the wire.
const STORED: Codec = Codec::MsgPack;
/// The beginning of the keys of records of the outbox.
const PREFIX: &str = "outbox/";

/// A message to be sent: a ciphertext for each device of a user.
///
/// Keep its ciphertexts until it is answered: a repeat under the same id must have the same content for each device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Names the message. The receiving devices get it too.
    pub message_id: MessageId,
    /// The recipient.
    pub to: UserId,
    /// A ciphertext for each addressable device of the recipient, without the sending device.
    pub ciphertexts: Vec<Ciphertext>,
    /// Devices that the app cannot encrypt for, such as those of another suite.
    pub skip: Vec<DeviceId>,
    /// How long the message waits for its devices, one minute to 30 days; 30 days if `None`.
    pub ttl: Option<Duration>,
    /// Whether devices that do not receive it at once are woken by a push.
    pub is_urgent: bool,
    /// The access key that the recipient has shared.
    pub access: Option<AccessKey>,
}

/// The message for one device.
#[derive(Clone, PartialEq, Eq)]
pub struct Ciphertext {
    /// The device.
    pub device_id: DeviceId,
    /// The type of the content, a numbering of the clients' own.
    pub kind: u8,
    /// 1 byte to 32 KiB.
    pub content: Vec<u8>,
}

impl std::fmt::Debug for Ciphertext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of type {} for {}", self.content.len(), self.kind, self.device_id)
    }
}

impl Outgoing {
    /// A message that names no device yet. Draw its id with [`Client::new_message_id`](crate::Client::new_message_id).
    #[must_use]
    pub fn new(message_id: MessageId, to: UserId) -> Self {
        Self { message_id, to, ciphertexts: Vec::new(), skip: Vec::new(), ttl: None, is_urgent: true, access: None }
    }

    /// Adds the ciphertext for a device.
    #[must_use]
    pub fn device(mut self, device_id: DeviceId, kind: u8, content: impl Into<Vec<u8>>) -> Self {
        self.ciphertexts.push(Ciphertext { device_id, kind, content: content.into() });
        self
    }

    /// Adds a device that the app cannot encrypt for.
    #[must_use]
    pub fn skip(mut self, device_id: DeviceId) -> Self {
        self.skip.push(device_id);
        self
    }

    /// Sets how long the message waits for its devices.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Wakes no device for the message. Devices that are connected get it at once all the same.
    #[must_use]
    pub fn not_urgent(mut self) -> Self {
        self.is_urgent = false;
        self
    }

    /// Shows the access key that the recipient has shared.
    #[must_use]
    pub fn access(mut self, key: AccessKey) -> Self {
        self.access = Some(key);
        self
    }

    /// The request that sends it.
    pub(crate) fn request(&self, codec: Codec, ephemeral: bool) -> SendMessageRequest<'_> {
        let messages = self.ciphertexts.iter().map(|one| {
            let content = MessageContent::new(codec, &one.content);
            Object(DeviceMessage { device_id: one.device_id, kind: one.kind, content })
        });
        SendMessageRequest {
            message_id: self.message_id,
            to: self.to,
            ephemeral: ephemeral.then_some(true),
            ttl_s: self.ttl.map(|ttl| ttl.as_secs()),
            urgent: (!self.is_urgent).then_some(false),
            messages: List(messages.collect()),
            skip: (!self.skip.is_empty()).then(|| List(self.skip.clone())),
            access: self.access.clone().map(|key| ShownKey(Some(key))),
        }
    }

    fn from_request(request: SendMessageRequest<'_>) -> Self {
        let SendMessageRequest { message_id, to, ttl_s, urgent, messages: List(messages), skip, access, .. } = request;
        let ciphertexts = messages.into_iter().map(|Object(DeviceMessage { device_id, kind, content })| Ciphertext {
            device_id,
            kind,
            content: content.as_bytes().to_vec(),
        });
        Self {
            message_id,
            to,
            ciphertexts: ciphertexts.collect(),
            skip: skip.map(|List(devices)| devices).unwrap_or_default(),
            ttl: ttl_s.map(Duration::from_secs),
            is_urgent: urgent.unwrap_or(true),
            access: access.and_then(|ShownKey(key)| key),
        }
    }
}

/// A message with its place in the outbox and the record that keeps it over a crash, from
/// [`Client::prepare`](crate::Client::prepare).
#[derive(Clone, Debug)]
pub struct Prepared {
    pub(crate) place: Place,
    pub(crate) message: Outgoing,
    pub(crate) record: Record,
}

impl Prepared {
    pub(crate) fn new(place: Place, message: Outgoing) -> Result<Self, RequestError> {
        let value = STORED.encode(&message.request(STORED, false))?;
        // Padded, so that the order of the keys is that of the messages.
        let record = Record { key: format!("{PREFIX}{place:020}"), value };
        Ok(Self { place, message, record })
    }

    /// Reads a record of the outbox; `None` if it is another record, or damaged.
    pub(crate) fn from_record(record: &Record) -> Option<Self> {
        let place = record.key.strip_prefix(PREFIX)?.parse().ok()?;
        let message = Outgoing::from_request(STORED.decode(&record.value).ok()?);
        Some(Self { place, message, record: record.clone() })
    }

    /// The record to store in the transaction that also stores the state of the encrypted sessions.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }
}

/// The answer to a message that was sent.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Sent {
    /// The message.
    pub message_id: MessageId,
    /// Its recipient.
    pub to: UserId,
    /// Accepted, or refused for good. After `devices_mismatch`, claim the keys of the
    /// [missing devices](RequestError::mismatch), and send it again under the same id with the same ciphertexts and the
    /// missing ones.
    pub result: Result<SendMessageReply, RequestError>,
}

/// A message that has arrived.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Its number in the device's mailbox; `None` if it is ephemeral. Store it with the message, and give the highest to
    /// [`Options::last_seq`](crate::Options::last_seq) at the next start.
    pub seq: Option<i64>,
    /// Chosen by the sender.
    pub message_id: MessageId,
    /// The sending user and device.
    pub from: MessageSender,
    /// The type of the content, a numbering of the clients' own.
    pub kind: u8,
    /// Ciphertext.
    pub content: Vec<u8>,
    /// When the server accepted it.
    pub accepted_at: Timestamp,
    /// Whether it is ephemeral: not stored by the server, and not acked.
    pub ephemeral: bool,
}

impl Message {
    pub(crate) fn from_event(event: MessageEvent<'_>, codec: Codec, frame: &[u8]) -> Result<Self, ContentError> {
        let MessageEvent { seq, message_id, from, kind, content, accepted_at, ephemeral } = event;
        let content = content.read(codec, frame)?.into_owned();
        Ok(Self { seq, message_id, from, kind, content, accepted_at, ephemeral })
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("seq", &self.seq)
            .field("message_id", &self.message_id)
            .field("from", &self.from)
            .field("kind", &self.kind)
            .field("content", &format_args!("{} bytes", self.content.len()))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_stored_message_is_read_back_and_keys_are_in_order() {
        let device = DeviceId(Uuid::from_u128(3));
        let message = Outgoing::new(MessageId(Uuid::from_u128(1)), UserId(Uuid::from_u128(2)))
            .device(device, 3, b"\0ciphertext")
            .skip(DeviceId(Uuid::from_u128(4)))
            .ttl(Duration::from_mins(2))
            .access(AccessKey([7; 16]));
        let prepared = Prepared::new(9, message.clone()).unwrap();
        let read = Prepared::from_record(prepared.record()).unwrap();
        assert_eq!((read.place, read.message), (9, message.clone()));
        assert!(prepared.record().key < Prepared::new(10, message.clone()).unwrap().record().key);
        assert!(Prepared::from_record(&Record { key: "session".to_owned(), value: Vec::new() }).is_none());
        assert!(!format!("{message:?}").contains("cipher\"") && format!("{message:?}").contains("11 bytes"));
    }
}
