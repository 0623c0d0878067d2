//! Frames: requests as they come in, replies and events as they go out.

use std::{fmt, num::NonZeroU32};

use base64::{display::Base64Display, engine::general_purpose::STANDARD};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{
        self, DeserializeOwned, DeserializeSeed, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};

use super::{Codec, Problem, codec::DecodeError};
use crate::domain::{
    DeviceId, EndReason, Envelope, KeyKind, KeysStatus, MessageId, Refusal, SessionId, Timestamp, UserId,
    envelope::MAX_CONTENT,
};

/// Largest message, in bytes of payload, over all its frames.
pub const MAX_FRAME_BYTES: usize = 512 * 1024;
/// Requests of one socket that may wait for their replies.
pub const MAX_IN_FLIGHT: usize = 64;

macro_rules! ops {
    ($($variant:ident $name:literal;)*) => {
        /// An operation of the socket.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Op { $(#[doc = concat!("`", $name, "`")] $variant,)* }

        impl Op {
            /// Every op.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name on the wire.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            fn parse(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

ops! {
    SessionRenew  "session.renew";
    SessionLogout "session.logout";
    DevicesList   "devices.list";
    DevicesRename "devices.rename";
    DevicesRevoke "devices.revoke";
    UsersFind     "users.find";
    AccountDelete "account.delete";
    KeysPublish   "keys.publish";
    KeysStatus    "keys.status";
    KeysFetch     "keys.fetch";
    KeysClaim     "keys.claim";
    MessagesSend  "messages.send";
    MessagesAck   "messages.ack";
}

/// A request's number, chosen by the client: 1 to 2^32-1.
pub type RequestId = NonZeroU32;

/// A request of which only the outline is known yet.
#[derive(Debug)]
pub struct Request {
    /// To be repeated in the reply.
    pub id: RequestId,
    /// The op, or why the request is refused whatever its parameters are.
    pub op: Result<Op, Refusal>,
    has_params: bool,
}

impl Request {
    /// Reads a frame's outline.
    ///
    /// # Errors
    /// Where the frame is not one map with a valid `id`: the socket closes over it.
    pub fn decode(codec: Codec, frame: &[u8]) -> Result<Self, DecodeError> {
        let outline: Outline = codec.decode(frame)?;
        let id = match outline.id {
            Some(Shape::Integer(id)) => u32::try_from(id).ok().and_then(NonZeroU32::new),
            _ => None,
        };
        let id = id.ok_or(DecodeError::Malformed)?;
        let params = match outline.params {
            None | Some(Shape::Null) => Ok(false),
            Some(Shape::Map) => Ok(true),
            Some(_) => Err(Refusal::BadRequest("params must be a map".into())),
        };
        let op = match outline.op {
            Some(Shape::Text(name)) if name.contains('\0') => Err(Refusal::BadRequest("text must not hold NUL".into())),
            Some(Shape::Text(name)) => Op::parse(&name).ok_or(Refusal::UnknownOp),
            _ => Err(Refusal::BadRequest("op must be a string".into())),
        };
        let (op, has_params) = match (op, params) {
            (Ok(op), Ok(has_params)) => (Ok(op), has_params),
            (Err(refusal), _) | (_, Err(refusal)) => (Err(refusal), false),
        };
        Ok(Self { id, op, has_params })
    }

    /// Reads the parameters out of the same frame.
    ///
    /// # Errors
    /// `bad_request` where a required one is missing or one has the wrong type.
    pub fn params<T: DeserializeOwned>(&self, codec: Codec, frame: &[u8]) -> Result<T, Refusal> {
        let params = if self.has_params {
            codec.decode::<Carrier<T>>(frame).map(|carrier| carrier.params.0)
        } else {
            Codec::Json.decode(b"{}")
        };
        params.map_err(|error| Refusal::BadRequest(error.to_string().into()))
    }
}

#[derive(Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct Carrier<T> {
    params: Object<T>,
}

/// A value that must be a map. Derived implementations would also take an array, field by field.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapOnly<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for MapOnly<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(Named(map))).map(Object)
            }
        }
        deserializer.deserialize_map(MapOnly(std::marker::PhantomData))
    }
}

/// A value that must be a list. A plain `Vec` would also take the `bin` of `MessagePack`, as a list of numbers.
#[derive(Debug)]
pub struct List<T>(pub Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListOnly<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ListOnly<T> {
            type Value = List<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(List)
            }
        }
        deserializer.deserialize_any(ListOnly(std::marker::PhantomData))
    }
}

/// A map whose fields are known by their names alone. `MessagePack` allows any value as a key, and derived
/// implementations would take a number for the field in that place.
struct Named<A>(A);

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Named<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let Some(key) = self.0.next_key::<Shape>()? else { return Ok(None) };
        let name = match key {
            Shape::Text(name) => name,
            // No field has this name, so that it is passed over.
            _ => String::new(),
        };
        seed.deserialize(name.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.0.next_value_seed(seed)
    }
}

/// The three fields of a request, of whatever type.
#[derive(Default)]
struct Outline {
    id: Option<Shape>,
    op: Option<Shape>,
    params: Option<Shape>,
}

impl<'de> Deserialize<'de> for Outline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Outline;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a request")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Outline, A::Error> {
                let mut outline = Outline::default();
                while let Some(key) = map.next_key::<Shape>()? {
                    let field = match &key {
                        Shape::Text(name) if name == "id" => &mut outline.id,
                        Shape::Text(name) if name == "op" => &mut outline.op,
                        Shape::Text(name) if name == "params" => &mut outline.params,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    if field.replace(map.next_value()?).is_some() {
                        return Err(de::Error::custom("a field stands twice"));
                    }
                }
                Ok(outline)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// What kind of value stands in a place, with as much of it as the outline needs.
enum Shape {
    Null,
    Integer(u64),
    Text(String),
    Map,
    Other,
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
                Ok(Shape::Other)
            }
            fn visit_i64<E>(self, value: i64) -> Result<Shape, E> {
                Ok(u64::try_from(value).map_or(Shape::Other, Shape::Integer))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Shape, E> {
                Ok(Shape::Integer(value))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Shape, E> {
                Ok(Shape::Other)
            }
            fn visit_str<E>(self, value: &str) -> Result<Shape, E> {
                Ok(Shape::Text(value.to_owned()))
            }
            fn visit_bytes<E>(self, _: &[u8]) -> Result<Shape, E> {
                Ok(Shape::Other)
            }
            fn visit_unit<E>(self) -> Result<Shape, E> {
                Ok(Shape::Null)
            }
            fn visit_none<E>(self) -> Result<Shape, E> {
                Ok(Shape::Null)
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shape, D::Error> {
                IgnoredAny::deserialize(deserializer).map(|_| Shape::Other)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Shape::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Shape::Map)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A reply with a result.
#[derive(Serialize)]
pub struct Success<'a, T> {
    /// The request's.
    pub id: RequestId,
    /// What the op gives.
    pub result: &'a T,
}

/// A reply with an error.
#[derive(Serialize)]
pub struct Failure<'a> {
    /// The request's.
    pub id: RequestId,
    /// What went wrong.
    pub error: &'a Problem,
}

/// The result of ops that give nothing: an empty map.
#[derive(Serialize)]
pub struct Empty {}

/// What the server says unasked.
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
    use proptest::prelude::*;

    use super::*;

    fn json(text: &str) -> Result<Request, DecodeError> {
        Request::decode(Codec::Json, text.as_bytes())
    }

    #[test]
    fn a_frame_without_a_valid_id_is_no_request() {
        for frame in [
            "",
            "7",
            "null",
            "[]",
            r#"[7,"keys.status"]"#,
            "{}",
            r#"{"op":"keys.status"}"#,
            r#"{"id":0,"op":"x"}"#,
            r#"{"id":-1}"#,
            r#"{"id":1.0}"#,
            r#"{"id":"1"}"#,
            r#"{"id":4294967296}"#,
            r#"{"id":null}"#,
            r#"{"id":1,"id":2}"#,
            r#"{"id":1} x"#,
        ] {
            assert!(json(frame).is_err(), "{frame}");
        }
    }

    #[test]
    fn with_a_valid_id_wrong_types_are_bad_requests() {
        for frame in [
            r#"{"id":1}"#,
            r#"{"id":1,"op":5}"#,
            r#"{"id":1,"op":null}"#,
            r#"{"id":1,"op":"keys.status","params":[]}"#,
            r#"{"id":1,"op":"keys.status","params":"x"}"#,
        ] {
            assert!(matches!(json(frame).unwrap().op, Err(Refusal::BadRequest(_))), "{frame}");
        }
        assert!(matches!(json(r#"{"id":4294967295,"op":"nonsense"}"#).unwrap().op, Err(Refusal::UnknownOp)));
        for frame in [
            r#"{"id":1,"op":"keys.status"}"#,
            r#"{"id":1,"op":"keys.status","params":null}"#,
            r#"{"id":1,"op":"keys.status","params":{"x":1},"y":2}"#,
        ] {
            assert_eq!(json(frame).unwrap().op.unwrap(), Op::KeysStatus);
        }
    }

    #[test]
    fn params_are_read_from_either_encoding() {
        #[derive(Deserialize, Debug)]
        struct P {
            n: Option<u32>,
        }
        let text = br#"{"id":1,"op":"keys.status","params":{"n":5}}"#;
        let request = Request::decode(Codec::Json, text).unwrap();
        assert_eq!(request.params::<P>(Codec::Json, text).unwrap().n, Some(5));
        let value: serde_json::Value = serde_json::from_slice(text).unwrap();
        let pack = Codec::MsgPack.encode(&value).unwrap();
        let request = Request::decode(Codec::MsgPack, &pack).unwrap();
        assert_eq!(request.params::<P>(Codec::MsgPack, &pack).unwrap().n, Some(5));
    }

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

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for codec in Codec::ALL {
                let _ = Request::decode(codec, &bytes);
            }
        }
    }
}
