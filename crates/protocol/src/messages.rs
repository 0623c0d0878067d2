//! Messages: the ops `messages.send` and `messages.ack`, and message content in either encoding.

use std::{borrow::Cow, fmt};

use base64::{display::Base64Display, engine::general_purpose::STANDARD};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Unexpected},
};
use thiserror::Error;

use crate::{
    access::ShownKey,
    codec::{Codec, is_bin},
    codes::Code,
    frame::{Op, SocketRequest},
    ids::{DeviceId, MessageId, UserId},
    time::Timestamp,
    value::{Base64, List, Named, Object},
};

/// `messages.send`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendMessageRequest<'a> {
    /// Chosen by the sending device. A repeat with the same id is not stored again.
    pub message_id: MessageId,
    /// The recipient.
    pub to: UserId,
    /// Whether the message is only for devices that are connected now; false if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<bool>,
    /// Seconds that the message is kept for its devices, within [`TTL_SECONDS`](crate::limits::TTL_SECONDS);
    /// [`TTL_DEFAULT`](crate::limits::TTL_DEFAULT) if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
    /// Whether devices that are not connected are woken by a push; true if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub urgent: Option<bool>,
    /// One for each addressable device of the recipient, at most
    /// [`MAX_MESSAGES_PER_SEND`](crate::limits::MAX_MESSAGES_PER_SEND).
    #[serde(borrow)]
    pub messages: List<Object<DeviceMessage<'a>>>,
    /// Addressable devices that get no message because the client cannot encrypt for them, at most
    /// [`MAX_MESSAGES_PER_SEND`](crate::limits::MAX_MESSAGES_PER_SEND). They are not reported as missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip: Option<List<DeviceId>>,
    /// The access key that the recipient has shared; see `access.set` in `docs/protocol.md`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<ShownKey>,
}

/// The message for one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMessage<'a> {
    /// The receiving device.
    pub device_id: DeviceId,
    /// The type of the content. Clients define the numbers.
    #[serde(rename = "type")]
    pub kind: u8,
    /// Ciphertext, 1 to [`MAX_CONTENT`](crate::limits::MAX_CONTENT) bytes.
    #[serde(borrow)]
    pub content: MessageContent<'a>,
}

/// The result of `messages.send`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendMessageReply {
    /// When the message was first accepted.
    pub accepted_at: Timestamp,
    /// Whether a message with this id had been accepted before.
    pub duplicate: bool,
    /// The number of devices for which a message with this id was stored, including earlier attempts; 0 if it is
    /// ephemeral.
    #[serde(default)]
    pub stored: u64,
    /// The devices that could not store it.
    pub undelivered: Vec<UndeliveredDevice>,
}

/// A device that could not store a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndeliveredDevice {
    /// The device, as in the request.
    pub device_id: DeviceId,
    /// The reason: always [`Code::MailboxFull`].
    pub reason: Named<Code>,
}

impl SocketRequest for SendMessageRequest<'_> {
    const OP: Op = Op::MessagesSend;
    type Reply = SendMessageReply;
}

/// `messages.ack`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckMessagesRequest {
    /// The sequence numbers of received envelopes, at most [`MAX_SEQS_PER_ACK`](crate::limits::MAX_SEQS_PER_ACK).
    pub seqs: List<u64>,
}

/// The result of `messages.ack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckMessagesReply {
    /// How many of these envelopes were still in the mailbox.
    pub acked: u64,
}

impl SocketRequest for AckMessagesRequest {
    const OP: Op = Op::MessagesAck;
    type Reply = AckMessagesReply;
}

/// The content of a message in a frame: base64 text in JSON, `bin` in `MessagePack`. Content decoded from `MessagePack`
/// borrows from the frame.
#[derive(Clone, PartialEq, Eq)]
pub enum MessageContent<'a> {
    /// Encoded as base64 text. Contains the decoded bytes.
    Text(Cow<'a, [u8]>),
    /// Encoded as bytes.
    Bytes(Cow<'a, [u8]>),
}

/// The content does not have the form that the encoding requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("content is base64 text in JSON and bin in MessagePack")]
pub struct ContentError;

impl<'a> MessageContent<'a> {
    /// Creates content to be encoded with `codec`.
    #[must_use]
    pub const fn new(codec: Codec, bytes: &'a [u8]) -> Self {
        match codec {
            Codec::Json => Self::Text(Cow::Borrowed(bytes)),
            Codec::MsgPack => Self::Bytes(Cow::Borrowed(bytes)),
        }
    }

    /// Returns the bytes of content that was decoded from `frame` with `codec`.
    ///
    /// # Errors
    /// If the content is not base64 text in JSON, or not `bin` in `MessagePack`.
    pub fn read(self, codec: Codec, frame: &[u8]) -> Result<Cow<'a, [u8]>, ContentError> {
        match (codec, self) {
            (Codec::Json, Self::Text(bytes)) => Ok(bytes),
            (Codec::MsgPack, Self::Bytes(bytes)) if is_bin(frame, &bytes) => Ok(bytes),
            _ => Err(ContentError),
        }
    }

    /// Returns the bytes, whatever their encoding.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(bytes) | Self::Bytes(bytes) => bytes,
        }
    }
}

impl fmt::Debug for MessageContent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of content", self.as_bytes().len())
    }
}

impl Serialize for MessageContent<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(bytes) => serializer.collect_str(&Base64Display::new(bytes, &STANDARD)),
            Self::Bytes(bytes) => serializer.serialize_bytes(bytes),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for MessageContent<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrBytes;
        impl<'de> de::Visitor<'de> for TextOrBytes {
            type Value = MessageContent<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("base64 text in JSON, bin in MessagePack")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                let Base64(bytes) =
                    Base64::parse(text).ok_or_else(|| E::invalid_value(Unexpected::Other("text"), &self))?;
                Ok(MessageContent::Text(bytes.into()))
            }
            fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
                Ok(MessageContent::Bytes(bytes.into()))
            }
        }
        deserializer.deserialize_any(TextOrBytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";

    fn content_of(codec: Codec, frame: &[u8]) -> Option<Result<Vec<u8>, ContentError>> {
        let request: SendMessageRequest<'_> = codec.decode(frame).ok()?;
        let List(mut messages) = request.messages;
        let Object(message) = messages.pop()?;
        Some(message.content.read(codec, frame).map(Cow::into_owned))
    }

    #[test]
    fn content_is_base64_in_json_and_bin_in_messagepack() {
        let json = |content: &str| {
            let text = format!(
                r#"{{"message_id":"{ID}","to":"{ID}","messages":[{{"device_id":"{ID}","type":255,"content":{content}}}]}}"#
            );
            content_of(Codec::Json, text.as_bytes())
        };
        assert_eq!(json("\"aGk=\""), Some(Ok(b"hi".to_vec())));
        assert_eq!(json("\"\""), Some(Ok(Vec::new())));
        for wrong in ["null", "5", "[104,105]", "\"*\"", "{}"] {
            assert_eq!(json(wrong), None, "{wrong}");
        }

        let pack = |content: &[u8]| {
            let text = |name: &str| [&[0xd9, u8::try_from(name.len()).unwrap()], name.as_bytes()].concat();
            let message =
                [&b"\x83"[..], &text("device_id"), &text(ID), &text("type"), b"\x07", &text("content"), content];
            let message = message.concat();
            let head = [text("message_id"), text(ID), text("to"), text(ID), text("messages"), vec![0x91]].concat();
            let whole = [&b"\x83"[..], &head, &message].concat();
            content_of(Codec::MsgPack, &whole)
        };
        assert_eq!(pack(b"\xc4\x02hi"), Some(Ok(b"hi".to_vec())));
        for text in [&b"\xa4aGk="[..], b"\xa2\xff\xfe", b"\xd9\x02\xff\xfe"] {
            assert_eq!(pack(text), Some(Err(ContentError)), "a string is not bin: {text:x?}");
        }
        assert_eq!(pack(b"\x92\x68\x69"), None);
    }
}
