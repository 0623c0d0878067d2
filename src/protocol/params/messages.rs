//! Messages: sent, acked.

use std::{fmt, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, de};

use crate::{
    domain::{
        DeviceId, MessageId, Refusal, UserId,
        envelope::{MAX_CONTENT, Outgoing, TTL_DEFAULT},
    },
    protocol::{
        Codec,
        codec::is_bin,
        value::{Base64, List, Object},
    },
};

/// Messages that one send may carry: as many as a user may have devices at the most.
const MAX_MESSAGES: usize = 100;
/// The largest integer of the protocol: what a double holds exactly, with all below it.
const MAX_INTEGER: i64 = (1 << 53) - 1;
/// Seqs that one ack may name.
const MAX_SEQS: usize = 1000;
/// How long a message may wait.
const TTL_SECONDS: std::ops::RangeInclusive<u64> = 60..=30 * 24 * 3600;

/// `messages.send`
#[derive(Deserialize)]
pub struct Send<'a> {
    /// The sending device's name for the message.
    pub message_id: MessageId,
    /// Whose devices.
    pub to: UserId,
    ephemeral: Option<bool>,
    ttl_s: Option<u64>,
    #[serde(borrow)]
    messages: List<Object<MessageBody<'a>>>,
}

#[derive(Deserialize)]
struct MessageBody<'a> {
    device_id: DeviceId,
    #[serde(rename = "type")]
    kind: u8,
    #[serde(borrow)]
    content: Content<'a>,
}

impl Send<'_> {
    /// Only for who is connected now.
    #[must_use]
    pub fn ephemeral(&self) -> bool {
        self.ephemeral.unwrap_or(false)
    }

    /// How long it waits for its devices.
    ///
    /// # Errors
    /// `bad_request` where that is less than a minute or more than thirty days.
    pub fn ttl(&self) -> Result<Duration, Refusal> {
        match self.ttl_s {
            None => Ok(TTL_DEFAULT),
            Some(seconds) if TTL_SECONDS.contains(&seconds) => Ok(Duration::from_secs(seconds)),
            Some(_) => Err(Refusal::BadRequest("ttl_s is 60 to 2592000".into())),
        }
    }

    /// What each device is sent. `frame` is the one that this was read from.
    ///
    /// # Errors
    /// `bad_request` where there are more than a hundred, or one is empty or not written as the encoding wants it;
    /// `payload_too_large`
    pub fn envelopes(self, codec: Codec, frame: &[u8]) -> Result<Vec<Outgoing>, Refusal> {
        let List(messages) = self.messages;
        if messages.len() > MAX_MESSAGES {
            return Err(Refusal::BadRequest("at most 100 messages".into()));
        }
        let outgoing = |Object(message): Object<MessageBody<'_>>| {
            let content = message.content.read(codec, frame)?;
            Ok(Outgoing { device: message.device_id, kind: message.kind, content })
        };
        let envelopes: Vec<Outgoing> = messages.into_iter().map(outgoing).collect::<Result<_, Refusal>>()?;
        if envelopes.iter().any(|outgoing| outgoing.content.len() > MAX_CONTENT) {
            return Err(Refusal::PayloadTooLarge);
        }
        Ok(envelopes)
    }
}

/// The content of a message, as it stands in a frame.
enum Content<'a> {
    Base64(Vec<u8>),
    Raw(&'a [u8]),
}

impl Content<'_> {
    /// The bytes. `frame` is the one that this was read from.
    fn read(self, codec: Codec, frame: &[u8]) -> Result<Bytes, Refusal> {
        let content: Bytes = match (codec, self) {
            (Codec::Json, Self::Base64(bytes)) => bytes.into(),
            (Codec::MsgPack, Self::Raw(bytes)) if is_bin(frame, bytes) => Bytes::copy_from_slice(bytes),
            _ => return Err(Refusal::BadRequest("content is base64 in JSON and bin in MessagePack".into())),
        };
        if content.is_empty() {
            return Err(Refusal::BadRequest("content must not be empty".into()));
        }
        Ok(content)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrBytes;
        impl<'de> de::Visitor<'de> for TextOrBytes {
            type Value = Content<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("content")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Content<'de>, E> {
                let Base64(bytes) = Base64::parse(text).ok_or_else(|| E::custom("not base64"))?;
                Ok(Content::Base64(bytes))
            }
            fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Content<'de>, E> {
                Ok(Content::Raw(bytes))
            }
        }
        deserializer.deserialize_any(TextOrBytes)
    }
}

/// `messages.ack`
#[derive(Deserialize)]
pub struct Ack {
    seqs: List<u64>,
}

impl Ack {
    /// The numbers of the envelopes.
    ///
    /// # Errors
    /// `bad_request` where there are more than a thousand, or one that no mailbox can count to.
    pub fn seqs(self) -> Result<Vec<i64>, Refusal> {
        let List(seqs) = self.seqs;
        if seqs.len() > MAX_SEQS {
            return Err(Refusal::BadRequest("at most 1000 seqs".into()));
        }
        let number = |seq: u64| i64::try_from(seq).ok().filter(|seq| *seq <= MAX_INTEGER);
        let numbers: Option<Vec<i64>> = seqs.into_iter().map(number).collect();
        numbers.ok_or_else(|| Refusal::BadRequest("a seq is at most 2^53 - 1".into()))
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::STANDARD};

    use super::*;

    #[test]
    fn content_is_base64_in_json_and_bin_in_messagepack() {
        let id = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        let json = |content: &str| {
            let text = format!(
                r#"{{"message_id":"{id}","to":"{id}","messages":[{{"device_id":"{id}","type":255,"content":{content}}}]}}"#
            );
            Codec::Json.decode::<Send<'_>>(text.as_bytes()).map(|send| send.envelopes(Codec::Json, text.as_bytes()))
        };
        assert_eq!(&json("\"aGk=\"").unwrap().unwrap()[0].content[..], b"hi");
        assert!(matches!(json("\"\"").unwrap(), Err(Refusal::BadRequest(_))));
        for wrong in ["null", "5", "[104,105]", "\"*\"", "{}"] {
            assert!(json(wrong).is_err(), "{wrong}");
        }
        let large = STANDARD.encode(vec![7; MAX_CONTENT + 1]);
        assert_eq!(json(&format!("\"{large}\"")).unwrap(), Err(Refusal::PayloadTooLarge));

        let pack = |content: &[u8]| {
            let text = |name: &str| [&[0xd9, u8::try_from(name.len()).unwrap()], name.as_bytes()].concat();
            let message =
                [&b"\x83"[..], &text("device_id"), &text(id), &text("type"), b"\x07", &text("content"), content];
            let message = message.concat();
            let head = [text("message_id"), text(id), text("to"), text(id), text("messages"), vec![0x91]].concat();
            let whole = [&b"\x83"[..], &head, &message].concat();
            Codec::MsgPack.decode::<Send<'_>>(&whole).map(|send| send.envelopes(Codec::MsgPack, &whole))
        };
        assert_eq!(&pack(b"\xc4\x02hi").unwrap().unwrap()[0].content[..], b"hi");
        for text in [&b"\xa4aGk="[..], b"\xa2\xff\xfe", b"\xd9\x02\xff\xfe"] {
            assert!(matches!(pack(text).unwrap(), Err(Refusal::BadRequest(_))), "a string is not bin: {text:x?}");
        }
        assert!(pack(b"\x92\x68\x69").is_err());
    }
}
