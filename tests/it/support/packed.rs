//! Converts values to and from MessagePack, where a message's `content` is bytes; in a `serde_json::Value` it is base64.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, SeqAccess, Visitor},
    ser::Error,
};
use serde_json::Value;

/// Serializes a value, with `content` as bytes.
pub struct Packed<'a>(pub &'a Value);

impl Serialize for Packed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Array(items) => serializer.collect_seq(items.iter().map(Packed)),
            Value::Object(fields) => serializer.collect_map(fields.iter().map(|(key, value)| (key, Field(key, value)))),
            plain => plain.serialize(serializer),
        }
    }
}

struct Field<'a>(&'a str, &'a Value);

impl Serialize for Field<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.0, self.1) {
            ("content", Value::String(text)) => {
                serializer.serialize_bytes(&STANDARD.decode(text).map_err(S::Error::custom)?)
            }
            (_, value) => Packed(value).serialize(serializer),
        }
    }
}

/// Deserializes a value, with bytes as base64.
pub struct Unpacked(pub Value);

impl<'de> Deserialize<'de> for Unpacked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a value")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_str<E>(self, text: &str) -> Result<Value, E> {
                Ok(text.into())
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Value, E> {
                Ok(STANDARD.encode(bytes).into())
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut items = Vec::new();
                while let Some(Unpacked(item)) = seq.next_element()? {
                    items.push(item);
                }
                Ok(items.into())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut fields = serde_json::Map::new();
                while let Some((key, Unpacked(value))) = map.next_entry::<String, _>()? {
                    fields.insert(key, value);
                }
                Ok(fields.into())
            }
        }
        deserializer.deserialize_any(Any).map(Self)
    }
}
