//! Requests as they come in and replies as they go out.

use std::{fmt, num::NonZeroU32};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, IgnoredAny, MapAccess, Visitor},
};

use super::{
    Codec, Problem,
    codec::DecodeError,
    value::{Object, Shape},
};
use crate::domain::Refusal;

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
    pub fn params<'de, T: Deserialize<'de>>(&self, codec: Codec, frame: &'de [u8]) -> Result<T, Refusal> {
        let params = if self.has_params {
            codec.decode::<Carrier<T>>(frame).map(|carrier| carrier.params.0)
        } else {
            Codec::Json.decode(b"{}")
        };
        params.map_err(|error| Refusal::BadRequest(error.to_string().into()))
    }
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
struct Carrier<T> {
    params: Object<T>,
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

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for codec in Codec::ALL {
                let _ = Request::decode(codec, &bytes);
            }
        }
    }
}
