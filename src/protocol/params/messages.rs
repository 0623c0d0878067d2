//! Messages: sent, acked.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, de};

use crate::{
    domain::{
        DeviceId, MessageId, Refusal, UserId,
        envelope::{MAX_CONTENT, Outgoing, TTL_DEFAULT},
    },
    protocol::{
        Codec,
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
pub struct Send {
    /// The sending device's name for the message.
    pub message_id: MessageId,
    /// Whose devices.
    pub to: UserId,
    ephemeral: Option<bool>,
    ttl_s: Option<u64>,
    messages: List<Object<MessageBody>>,
}

#[derive(Deserialize)]
struct MessageBody {
    device_id: DeviceId,
    #[serde(rename = "type")]
    kind: u8,
    content: Content,
}

impl Send {
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

    /// What each device is sent.
    ///
    /// # Errors
    /// `bad_request` where there are more than a hundred, or one is empty or not written as the encoding wants it;
    /// `payload_too_large`
    pub fn envelopes(self, codec: Codec) -> Result<Vec<Outgoing>, Refusal> {
        let List(messages) = self.messages;
        if messages.len() > MAX_MESSAGES {
            return Err(Refusal::BadRequest("at most 100 messages".into()));
        }
        for Object(message) in &messages {
            if message.content.is_text != (codec == Codec::Json) {
                return Err(Refusal::BadRequest("content is base64 in JSON and bin in MessagePack".into()));
            }
            if message.content.bytes.is_empty() {
                return Err(Refusal::BadRequest("content must not be empty".into()));
            }
        }
        if messages.iter().any(|Object(message)| message.content.bytes.len() > MAX_CONTENT) {
            return Err(Refusal::PayloadTooLarge);
        }
        let outgoing = |Object(message): Object<MessageBody>| Outgoing {
            device: message.device_id,
            kind: message.kind,
            content: message.content.bytes.into(),
        };
        Ok(messages.into_iter().map(outgoing).collect())
    }
}

/// The content of a message, as either encoding writes it.
struct Content {
    bytes: Vec<u8>,
    is_text: bool,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrBin;
        impl de::Visitor<'_> for TextOrBin {
            type Value = Content;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("content")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Content, E> {
                let Base64(bytes) = Base64::parse(text).ok_or_else(|| E::custom("not base64"))?;
                Ok(Content { bytes, is_text: true })
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Content, E> {
                Ok(Content { bytes: bytes.to_owned(), is_text: false })
            }
        }
        deserializer.deserialize_any(TextOrBin)
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
            Codec::Json.decode::<Send>(text.as_bytes()).map(|send| send.envelopes(Codec::Json))
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
            Codec::MsgPack.decode::<Send>(&whole).map(|send| send.envelopes(Codec::MsgPack))
        };
        assert_eq!(&pack(b"\xc4\x02hi").unwrap().unwrap()[0].content[..], b"hi");
        assert!(matches!(pack(b"\xa4aGk=").unwrap(), Err(Refusal::BadRequest(_))), "a string is not bin");
        assert!(pack(b"\x92\x68\x69").is_err());
    }
}
