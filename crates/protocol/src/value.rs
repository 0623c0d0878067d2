//! Strict value types for requests, and [`Named`], for names of which a newer server may have more. The strict types
//! are needed because serde's derived code is more lenient than the protocol: it accepts arrays for maps, and the `bin`
//! of `MessagePack` for lists and text.

use std::fmt;

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        self, DeserializeOwned, DeserializeSeed, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
        Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};

/// A value that must be a map. Derived code would also accept an array of the fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
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
                T::deserialize(MapAccessDeserializer::new(TextKeys(map))).map(Object)
            }
        }
        deserializer.deserialize_map(MapOnly(std::marker::PhantomData))
    }
}

/// A map of which a malformed one is not an error of the request: it counts as a wrong value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lenient<T>(pub Option<T>);

impl<T: Serialize> Serialize for Lenient<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, bound = "T: Deserialize<'de>")]
        enum Either<T> {
            Valid(Object<T>),
            Malformed(IgnoredAny),
        }
        Ok(match Either::deserialize(deserializer)? {
            Either::Valid(Object(value)) => Self(Some(value)),
            Either::Malformed(IgnoredAny) => Self(None),
        })
    }
}

/// A value that must be a list. A plain `Vec` would also accept the `bin` of `MessagePack`, as a list of numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
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

/// A map whose fields are identified only by name. `MessagePack` allows any value as a key, and derived code would
/// accept a number as the index of a field.
struct TextKeys<A>(A);

impl<'de, A: MapAccess<'de>> MapAccess<'de> for TextKeys<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let Some(key) = self.0.next_key::<Shape>()? else { return Ok(None) };
        let name = match key {
            Shape::Text(name) => name,
            // No field has this name, so the entry is ignored.
            _ => String::new(),
        };
        seed.deserialize(name.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.0.next_value_seed(seed)
    }
}

/// The type of a value, with the contents that [`RequestOutline`](crate::frame::RequestOutline) needs.
pub(crate) enum Shape {
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

/// Text without NUL characters. `Debug` shows only its length.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Text(String);

impl Text {
    /// Returns the text; `None` if it contains a NUL character.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (!text.contains('\0')).then(|| Self(text.to_owned()))
    }

    /// The standard base64 of bytes, for fields that have base64 in a text.
    #[must_use]
    pub fn base64(bytes: &[u8]) -> Self {
        Self(STANDARD.encode(bytes))
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(StringOnly("text without NUL", Self::parse))
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of text", self.0.len())
    }
}

/// Bytes encoded as standard base64 text in both encodings. Written with padding; accepted with full or no padding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Base64(pub Vec<u8>);

impl Base64 {
    /// Decodes base64 text; `None` if it is invalid.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let engine = if text.contains('=') { STANDARD } else { STANDARD_NO_PAD };
        engine.decode(text).ok().map(Self)
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(StringOnly("base64 text", Self::parse))
    }
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

/// The standard base64 text, with padding, of a public key or signature in a reply. It is kept as text because the
/// server stores it as text and clients often pass it on unchanged. [`Self::decode`] returns the bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub struct Base64Text(pub String);

impl Base64Text {
    /// Decodes the text; `None` if it is not base64.
    #[must_use]
    pub fn decode(&self) -> Option<Vec<u8>> {
        Base64::parse(&self.0).map(|bytes| bytes.0)
    }
}

impl<'de> Deserialize<'de> for Base64Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_str(StringOnly("base64 text", |text: &str| Base64::parse(text).map(|_| Self(text.to_owned()))))
    }
}

/// A value identified by its name, from a set that later versions may extend. A client keeps an unknown name as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named<T> {
    /// A value of this version.
    Known(T),
    /// A name that this version does not know.
    Unknown(String),
}

impl<T> Named<T> {
    /// Returns the value; `None` if this version does not know it.
    #[must_use]
    pub fn known(self) -> Option<T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }
}

impl<T> From<T> for Named<T> {
    fn from(value: T) -> Self {
        Self::Known(value)
    }
}

impl<T: Serialize> Serialize for Named<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Known(value) => value.serialize(serializer),
            Self::Unknown(word) => serializer.serialize_str(word),
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(StringOnly("a word", |word: &str| {
            let known = T::deserialize(IntoDeserializer::<de::value::Error>::into_deserializer(word));
            Some(known.map_or_else(|_| Self::Unknown(word.to_owned()), Self::Known))
        }))
    }
}

/// A visitor that accepts only strings and parses them with the function. The text describes what is expected.
pub(crate) struct StringOnly<F>(pub(crate) &'static str, pub(crate) F);

impl<T, F: FnOnce(&str) -> Option<T>> de::Visitor<'_> for StringOnly<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.1)(text).ok_or_else(|| E::invalid_value(Unexpected::Other("text"), &self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Codec, Timestamp};

    #[test]
    fn base64_uses_the_standard_alphabet_and_optional_padding() {
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
    fn a_malformed_lenient_map_is_no_error() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Inner {
            text: Text,
        }
        #[derive(Debug, PartialEq, Deserialize)]
        struct Outer {
            inner: Option<Lenient<Inner>>,
        }
        let decoded = |text: &str| Codec::Json.decode::<Outer>(text.as_bytes()).unwrap().inner;
        let valid = decoded(r#"{"inner":{"text":"a","more":1}}"#);
        assert_eq!(valid, Some(Lenient(Some(Inner { text: Text::parse("a").unwrap() }))));
        for malformed in ["7", "\"a\"", "[\"a\"]", "{}", r#"{"text":7}"#, r#"{"text":"a\u0000"}"#] {
            assert_eq!(decoded(&format!("{{\"inner\":{malformed}}}")), Some(Lenient(None)), "{malformed}");
        }
        assert_eq!(decoded("{}"), None);
        assert_eq!(decoded(r#"{"inner":null}"#), None);
    }

    #[test]
    fn bin_is_not_accepted_as_text() {
        assert!(Codec::MsgPack.decode::<Text>(b"\xa2hi").is_ok());
        assert!(Codec::MsgPack.decode::<Text>(b"\xc4\x02hi").is_err());
        assert!(Codec::Json.decode::<Text>(br#""a\u0000""#).is_err());
        assert!(Codec::MsgPack.decode::<Timestamp>(b"\xb42026-06-01T12:00:00Z").is_ok());
        assert!(Codec::MsgPack.decode::<Timestamp>(b"\xc4\x142026-06-01T12:00:00Z").is_err());
    }
}
