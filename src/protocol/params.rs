//! The parameters of every op and the bodies of the HTTP requests, with what can be refused while reading them.

use std::{fmt, time::Duration};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use serde::{Deserialize, Deserializer, de};

use super::{
    Codec,
    frame::{List, Object},
};
use crate::domain::{
    ChallengeId, ClaimId, DeviceId, Email, MessageId, Refusal, Suite, Timestamp, UserId,
    envelope::{MAX_CONTENT, Outgoing, TTL_DEFAULT},
    otp::OtpCode,
    publish::{PlainKey, PublishRequest, SignedKey},
};

/// Devices that one fetch or claim may name.
const MAX_DEVICE_IDS: usize = 100;
/// Messages that one send may carry: as many as a user may have devices at the most.
const MAX_MESSAGES: usize = 100;
/// The largest integer of the protocol: what a double holds exactly, with all below it.
const MAX_INTEGER: i64 = (1 << 53) - 1;
/// Seqs that one ack may name.
const MAX_SEQS: usize = 1000;
/// How long a message may wait.
const TTL_SECONDS: std::ops::RangeInclusive<u64> = 60..=30 * 24 * 3600;
/// Characters of a device name.
const NAME_CHARS: std::ops::RangeInclusive<usize> = 1..=64;
/// Registration ids of the Signal libraries, which use 14 bits and keep 0 free.
pub const REGISTRATION_IDS: std::ops::RangeInclusive<u32> = 1..=16380;

/// Text that is really text (no `bin` of MessagePack) and free of NUL.
#[derive(Clone)]
pub struct Text(String);

impl Text {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(StringOnly(|text: &str| (!text.contains('\0')).then(|| Self(text.to_owned()))))
    }
}

/// Base64 of key material or of a signature. Padding may be left out, but not in part.
struct Base64(Vec<u8>);

impl Base64 {
    fn parse(text: &str) -> Option<Self> {
        let engine = if text.contains('=') { STANDARD } else { STANDARD_NO_PAD };
        engine.decode(text).ok().map(Self)
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(StringOnly(Self::parse))
    }
}

/// Takes strings alone and parses them with the function.
struct StringOnly<F>(F);

impl<T, F: FnOnce(&str) -> Option<T>> de::Visitor<'_> for StringOnly<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a well-formed string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).ok_or_else(|| E::custom("not well-formed"))
    }
}

fn suite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Suite>, D::Error> {
    let name = Option::<Text>::deserialize(deserializer)?;
    name.map(|name| Suite::parse(name.as_str()).ok_or_else(|| de::Error::custom("no such suite"))).transpose()
}

/// No parameters: any map will do.
#[derive(Deserialize)]
pub struct Nothing {}

/// `POST /v1/auth/otp`
#[derive(Deserialize)]
pub struct OtpBody {
    email: Text,
}

impl OtpBody {
    /// The address.
    ///
    /// # Errors
    /// `bad_request` where it is none.
    pub fn email(&self) -> Result<Email, Refusal> {
        parse_email(&self.email)
    }
}

/// `POST /v1/auth/verify`
#[derive(Deserialize)]
pub struct VerifyBody {
    /// As answered by `otp`.
    pub challenge_id: ChallengeId,
    email: Text,
    code: Text,
    device: Option<Object<DeviceBody>>,
    /// A device of the user to revoke in exchange.
    pub replace_device_id: Option<DeviceId>,
}

impl VerifyBody {
    /// The address.
    ///
    /// # Errors
    /// `bad_request` where it is none.
    pub fn email(&self) -> Result<Email, Refusal> {
        parse_email(&self.email)
    }

    /// The guess.
    ///
    /// # Errors
    /// `bad_request` where it is not eight digits; such a guess is not counted.
    pub fn code(&self) -> Result<OtpCode, Refusal> {
        OtpCode::parse(self.code.as_str()).ok_or_else(|| Refusal::BadRequest("a code has eight digits".into()))
    }

    /// Which device signs in.
    ///
    /// # Errors
    /// `bad_request` for a wrong name or registration id, or where an existing device would replace another.
    pub fn device(&mut self) -> Result<DeviceBody, Refusal> {
        let device = self.device.take().map_or_else(DeviceBody::default, |device| device.0);
        device.check()?;
        if device.id.is_some() && self.replace_device_id.is_some() {
            return Err(Refusal::BadRequest("replace_device_id does not go with device.id".into()));
        }
        Ok(device)
    }
}

/// The `device` of [`VerifyBody`].
#[derive(Default, Deserialize)]
pub struct DeviceBody {
    /// An existing device; a new one is made without.
    pub id: Option<DeviceId>,
    /// For people.
    pub name: Option<Text>,
    /// For the client's library.
    pub registration_id: Option<u32>,
}

impl DeviceBody {
    fn check(&self) -> Result<(), Refusal> {
        if let Some(name) = &self.name {
            check_name(name)?;
        }
        match self.registration_id {
            Some(id) if !REGISTRATION_IDS.contains(&id) => {
                Err(Refusal::BadRequest("registration_id is 1 to 16380".into()))
            }
            _ => Ok(()),
        }
    }
}

fn check_name(name: &Text) -> Result<(), Refusal> {
    if NAME_CHARS.contains(&name.as_str().chars().count()) {
        Ok(())
    } else {
        Err(Refusal::BadRequest("a name has 1 to 64 characters".into()))
    }
}

/// `devices.rename`
#[derive(Deserialize)]
pub struct Rename {
    /// The asking device if absent.
    pub device_id: Option<DeviceId>,
    name: Text,
}

impl Rename {
    /// The new name.
    ///
    /// # Errors
    /// `bad_request` where it is empty or too long.
    pub fn name(&self) -> Result<&str, Refusal> {
        check_name(&self.name).map(|()| self.name.as_str())
    }
}

/// `devices.revoke`
#[derive(Deserialize)]
pub struct Revoke {
    /// Any device of the user.
    pub device_id: DeviceId,
}

/// `users.find`
#[derive(Deserialize)]
pub struct Find {
    email: Text,
}

impl Find {
    /// The address.
    ///
    /// # Errors
    /// `bad_request` where it is none.
    pub fn email(&self) -> Result<Email, Refusal> {
        parse_email(&self.email)
    }
}

fn parse_email(text: &Text) -> Result<Email, Refusal> {
    Email::parse(text.as_str()).ok_or_else(|| Refusal::BadRequest("not an e-mail address".into()))
}

/// `keys.fetch`
#[derive(Deserialize)]
pub struct Fetch {
    /// Whose devices.
    pub user_id: UserId,
    device_ids: Option<List<DeviceId>>,
}

impl Fetch {
    /// The named devices, each once, or `None` for all of them.
    ///
    /// # Errors
    /// `bad_request` where more than a hundred are named.
    pub fn device_ids(self) -> Result<Option<Vec<DeviceId>>, Refusal> {
        distinct(self.device_ids)
    }
}

/// `keys.claim`
#[derive(Deserialize)]
pub struct Claim {
    /// Whose devices.
    pub user_id: UserId,
    device_ids: Option<List<DeviceId>>,
    /// The intent.
    pub claim_id: ClaimId,
}

impl Claim {
    /// See [`Fetch::device_ids`].
    ///
    /// # Errors
    /// `bad_request` where more than a hundred are named.
    pub fn device_ids(self) -> Result<Option<Vec<DeviceId>>, Refusal> {
        distinct(self.device_ids)
    }
}

fn distinct(ids: Option<List<DeviceId>>) -> Result<Option<Vec<DeviceId>>, Refusal> {
    let Some(List(mut ids)) = ids else { return Ok(None) };
    let mut seen = std::collections::HashSet::new();
    ids.retain(|id| seen.insert(*id));
    if ids.len() > MAX_DEVICE_IDS {
        return Err(Refusal::BadRequest("at most 100 device_ids".into()));
    }
    Ok(Some(ids))
}

/// `keys.publish`
#[derive(Deserialize)]
pub struct Publish {
    #[serde(default, deserialize_with = "suite")]
    suite: Option<Suite>,
    identity_key: Option<Base64>,
    signed_prekey: Option<Object<SignedPrekeyBody>>,
    one_time_prekeys: Option<List<Object<KeyBody>>>,
    pq_last_resort: Option<Object<SignedKeyBody>>,
    pq_one_time: Option<List<Object<SignedKeyBody>>>,
}

#[derive(Deserialize)]
struct KeyBody {
    key_id: u32,
    public_key: Base64,
}

#[derive(Deserialize)]
struct SignedKeyBody {
    key_id: u32,
    public_key: Base64,
    signature: Base64,
}

#[derive(Deserialize)]
struct SignedPrekeyBody {
    key_id: u32,
    public_key: Base64,
    signature: Base64,
    expires_at: Option<Timestamp>,
}

impl Publish {
    /// Whether it carries a signed prekey.
    #[must_use]
    pub fn rotates_signed_prekey(&self) -> bool {
        self.signed_prekey.is_some()
    }
}

impl From<SignedKeyBody> for SignedKey {
    fn from(body: SignedKeyBody) -> Self {
        Self { key_id: body.key_id, public_key: body.public_key.0, signature: body.signature.0 }
    }
}

fn items<T>(list: Option<List<T>>) -> impl Iterator<Item = T> {
    list.into_iter().flat_map(|List(items)| items)
}

impl From<Publish> for PublishRequest {
    fn from(body: Publish) -> Self {
        let expires_at = body.signed_prekey.as_ref().and_then(|key| key.0.expires_at);
        let signed_prekey = body.signed_prekey.map(|Object(key)| SignedKey {
            key_id: key.key_id,
            public_key: key.public_key.0,
            signature: key.signature.0,
        });
        let plain = |Object(key): Object<KeyBody>| PlainKey { key_id: key.key_id, public_key: key.public_key.0 };
        Self {
            suite: body.suite,
            identity_key: body.identity_key.map(|key| key.0),
            signed_prekey,
            expires_at,
            one_time: items(body.one_time_prekeys).map(plain).collect(),
            pq_last_resort: body.pq_last_resort.map(|key| key.0.into()),
            pq_one_time: items(body.pq_one_time).map(|key| key.0.into()).collect(),
        }
    }
}

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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn base64_padding_is_optional_and_the_alphabet_standard() {
        for (text, bytes) in [
            ("\"/+8=\"", Some(vec![0xff, 0xef])),
            ("\"/+8\"", Some(vec![0xff, 0xef])),
            ("\"_-8\"", None),
            ("\"/+8\\n\"", None),
            ("\"BQ=\"", None),
            ("5", None),
        ] {
            assert_eq!(serde_json::from_str::<Base64>(text).ok().map(|b| b.0), bytes, "{text}");
        }
    }

    #[test]
    fn parts_of_a_publish_must_be_maps_and_strings() {
        for wrong in [
            r#"{"suite":"rot13"}"#,
            r#"{"suite":5}"#,
            r#"{"identity_key":[1]}"#,
            r#"{"signed_prekey":[1,"AA","AA"]}"#,
            r#"{"one_time_prekeys":{"key_id":1}}"#,
            r#"{"one_time_prekeys":[[1,"AA"]]}"#,
            r#"{"one_time_prekeys":[{"key_id":-1,"public_key":"AA"}]}"#,
            r#"{"one_time_prekeys":[{"key_id":1.5,"public_key":"AA"}]}"#,
            r#"{"signed_prekey":{"key_id":1,"public_key":"AA","signature":"AA","expires_at":"soon"}}"#,
        ] {
            assert!(serde_json::from_str::<Publish>(wrong).is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<Publish>(r#"{"suite":null,"one_time_prekeys":null,"new_field":[]}"#).is_ok());
    }

    #[test]
    fn bin_is_not_text_in_messagepack() {
        assert!(Codec::MsgPack.decode::<Text>(b"\xa2hi").is_ok());
        assert!(Codec::MsgPack.decode::<Text>(b"\xc4\x02hi").is_err());
        assert!(Codec::Json.decode::<Text>(br#""a\u0000""#).is_err());
        assert!(Codec::MsgPack.decode::<Timestamp>(b"\xb42026-06-01T12:00:00Z").is_ok());
        assert!(Codec::MsgPack.decode::<Timestamp>(b"\xc4\x142026-06-01T12:00:00Z").is_err());
    }

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

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for codec in Codec::ALL {
                let _ = codec.decode::<Publish>(&bytes);
                let _ = codec.decode::<Claim>(&bytes);
                let _ = codec.decode::<Send>(&bytes);
                let _ = codec.decode::<Ack>(&bytes);
                let _ = codec.decode::<VerifyBody>(&bytes);
            }
        }
    }
}
