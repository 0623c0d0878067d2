//! Requests and replies on the socket. Frames that the server sends without a request are in [`events`](crate::events).

use std::{fmt, num::NonZeroU32};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, IgnoredAny, MapAccess, Visitor},
    ser::SerializeStruct,
};
use thiserror::Error;

use crate::{
    codec::{Codec, DecodeError},
    codes::ProtocolFault,
    error::ErrorBody,
    value::{Object, Shape},
};

macro_rules! ops {
    ($($variant:ident $name:literal;)*) => {
        /// An operation that a client can request on the socket.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Op { $(#[doc = concat!("`", $name, "`")] $variant,)* }

        impl Op {
            /// All ops.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name on the wire.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The op with exactly this name.
            #[must_use]
            pub fn parse(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

ops! {
    SessionRenew  "session.renew";
    SessionLogout "session.logout";
    SessionsList  "sessions.list";
    SessionsEnd   "sessions.end";
    DevicesList   "devices.list";
    DevicesRename "devices.rename";
    DevicesRevoke "devices.revoke";
    DevicesDecide "devices.decide";
    UsersFind     "users.find";
    AccountLock   "account.lock";
    AccountUnlock "account.unlock";
    AccountStatus "account.status";
    AccountDelete "account.delete";
    AccountChangeEmail "account.change_email";
    AccessSet     "access.set";
    BlocksAdd     "blocks.add";
    BlocksRemove  "blocks.remove";
    BlocksList    "blocks.list";
    KeysPublish   "keys.publish";
    KeysStatus    "keys.status";
    KeysFetch     "keys.fetch";
    KeysClaim     "keys.claim";
    MessagesSend  "messages.send";
    MessagesAck   "messages.ack";
    PushRegister  "push.register";
    PushConfirm   "push.confirm";
    PushTest      "push.test";
    PushRemove    "push.remove";
}

impl Serialize for Op {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The id of a request, chosen by the client: 1 to 2³² − 1.
pub type RequestId = NonZeroU32;

/// Implemented by the parameters of each op.
pub trait SocketRequest {
    /// The op.
    const OP: Op;
    /// The op's result.
    type Reply;
}

/// A request, as a client sends it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RequestFrame<'a, T> {
    /// Repeated in the reply.
    pub id: RequestId,
    /// The op.
    pub op: Op,
    /// The parameters of the op.
    pub params: &'a T,
}

impl<'a, T: SocketRequest> RequestFrame<'a, T> {
    /// Creates a request. The type of the parameters determines the op.
    #[must_use]
    pub const fn new(id: RequestId, params: &'a T) -> Self {
        Self { id, op: T::OP, params }
    }
}

/// A request whose parameters are not decoded yet. The server decodes this first.
#[derive(Debug)]
pub struct RequestOutline {
    /// Repeated in the reply.
    pub id: RequestId,
    /// The op, or why the request is refused before its parameters are decoded.
    pub op: Result<Op, OutlineError>,
    has_params: bool,
}

/// A request has a valid id, but cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OutlineError {
    /// This version of the protocol does not have the op.
    #[error("no such op")]
    UnknownOp,
    /// `op` is not a string.
    #[error("op must be a string")]
    OpIsNotText,
    /// `op` contains a NUL character.
    #[error("text must not contain NUL")]
    Nul,
    /// `params` is not a map.
    #[error("params must be a map")]
    ParamsAreNotMap,
}

impl RequestOutline {
    /// Decodes id and op of a frame.
    ///
    /// # Errors
    /// If the frame is not a single map with a valid `id`. The server then closes the socket.
    pub fn decode(codec: Codec, frame: &[u8]) -> Result<Self, ProtocolFault> {
        let outline: Outline = codec.decode(frame).map_err(|_| ProtocolFault::Undecodable)?;
        let id = match outline.id {
            Some(Shape::Integer(id)) => u32::try_from(id).ok().and_then(NonZeroU32::new),
            None => return Err(ProtocolFault::IdMissing),
            Some(_) => None,
        };
        let id = id.ok_or(ProtocolFault::IdInvalid)?;
        let params = match outline.params {
            None | Some(Shape::Null) => Ok(false),
            Some(Shape::Map) => Ok(true),
            Some(_) => Err(OutlineError::ParamsAreNotMap),
        };
        let op = match outline.op {
            Some(Shape::Text(name)) if name.contains('\0') => Err(OutlineError::Nul),
            Some(Shape::Text(name)) => Op::parse(&name).ok_or(OutlineError::UnknownOp),
            _ => Err(OutlineError::OpIsNotText),
        };
        let (op, has_params) = match (op, params) {
            (Ok(op), Ok(has_params)) => (Ok(op), has_params),
            (Err(error), _) | (_, Err(error)) => (Err(error), false),
        };
        Ok(Self { id, op, has_params })
    }

    /// Decodes the parameters from the same frame.
    ///
    /// # Errors
    /// If a required parameter is missing, or one is invalid.
    pub fn params<'de, T: Deserialize<'de>>(&self, codec: Codec, frame: &'de [u8]) -> Result<T, DecodeError> {
        if self.has_params {
            codec.decode::<ParamsOnly<T>>(frame).map(|carrier| carrier.params.0).map_err(|error| error.below("params"))
        } else {
            Codec::Json.decode(b"{}")
        }
    }
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
struct ParamsOnly<T> {
    params: Object<T>,
}

/// The three fields of a request, whatever their types.
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
                        return Err(de::Error::custom("duplicate field"));
                    }
                }
                Ok(outline)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// A reply: the `result` of the op, or an `error`.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplyFrame<T> {
    /// The id of the request that this answers.
    pub id: RequestId,
    /// The result or the error.
    pub result: Result<T, ErrorBody>,
}

impl<T: Serialize> Serialize for ReplyFrame<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut frame = serializer.serialize_struct("ReplyFrame", 2)?;
        frame.serialize_field("id", &self.id)?;
        match &self.result {
            Ok(result) => frame.serialize_field("result", result)?,
            Err(error) => frame.serialize_field("error", error)?,
        }
        frame.end()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ReplyFrame<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(bound(deserialize = "T: Deserialize<'de>"))]
        struct Fields<T> {
            id: RequestId,
            result: Option<T>,
            error: Option<ErrorBody>,
        }
        let Fields { id, result, error } = Fields::deserialize(deserializer)?;
        let result = match (result, error) {
            (Some(result), None) => Ok(result),
            (None, Some(error)) => Err(error),
            _ => return Err(de::Error::custom("a reply has either a result or an error")),
        };
        Ok(Self { id, result })
    }
}

/// The kind of a frame from the server. A client decodes this first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerOutline {
    /// The reply to the request with this id: a [`ReplyFrame`].
    Reply(RequestId),
    /// The event with this name: an [`Event`](crate::events::Event), if this version has it.
    Event(String),
}

impl ServerOutline {
    /// Decodes the kind of a frame.
    ///
    /// # Errors
    /// If the frame is neither a reply nor an event.
    pub fn decode(codec: Codec, frame: &[u8]) -> Result<Self, DecodeError> {
        #[derive(Deserialize)]
        struct Fields {
            id: Option<RequestId>,
            event: Option<String>,
        }
        match codec.decode(frame)? {
            Fields { id: Some(id), event: None } => Ok(Self::Reply(id)),
            Fields { id: None, event: Some(name) } => Ok(Self::Event(name)),
            _ => Err(DecodeError::Malformed),
        }
    }
}

/// The result of ops that return nothing: an empty map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmptyReply {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(text: &str) -> Result<RequestOutline, ProtocolFault> {
        RequestOutline::decode(Codec::Json, text.as_bytes())
    }

    #[test]
    fn a_frame_without_a_valid_id_is_refused() {
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
    fn a_request_with_a_valid_id_may_still_have_an_invalid_op_or_params() {
        for (frame, error) in [
            (r#"{"id":1}"#, OutlineError::OpIsNotText),
            (r#"{"id":1,"op":5}"#, OutlineError::OpIsNotText),
            (r#"{"id":1,"op":null}"#, OutlineError::OpIsNotText),
            (r#"{"id":1,"op":"a\u0000"}"#, OutlineError::Nul),
            (r#"{"id":1,"op":"keys.status","params":[]}"#, OutlineError::ParamsAreNotMap),
            (r#"{"id":1,"op":"keys.status","params":"x"}"#, OutlineError::ParamsAreNotMap),
            (r#"{"id":4294967295,"op":"nonsense"}"#, OutlineError::UnknownOp),
        ] {
            assert_eq!(json(frame).unwrap().op, Err(error), "{frame}");
        }
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
        let request = RequestOutline::decode(Codec::Json, text).unwrap();
        assert_eq!(request.params::<P>(Codec::Json, text).unwrap().n, Some(5));
        let value: serde_json::Value = serde_json::from_slice(text).unwrap();
        let pack = Codec::MsgPack.encode(&value).unwrap();
        let request = RequestOutline::decode(Codec::MsgPack, &pack).unwrap();
        assert_eq!(request.params::<P>(Codec::MsgPack, &pack).unwrap().n, Some(5));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for codec in Codec::ALL {
                let _ = RequestOutline::decode(codec, &bytes);
            }
        }
    }
}
