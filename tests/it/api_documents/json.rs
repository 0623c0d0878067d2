//! JSON whose maps keep the order of their fields, how it is written, and the check of a value against a schema.

use std::{
    fmt::{self, Write},
    slice,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};

/// The longest line that a map or list is written on.
const LINE_CHARS: usize = 130;

#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Integer(i64),
    Text(String),
    List(Vec<Json>),
    Map(Vec<(String, Json)>),
}

/// A map with these fields.
pub fn map<const N: usize>(fields: [(&str, Json); N]) -> Json {
    Json::Map(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// A list of these values.
pub fn list<T: Into<Json>>(items: impl IntoIterator<Item = T>) -> Json {
    Json::List(items.into_iter().map(Into::into).collect())
}

/// A reference to another part of the document.
pub fn reference(pointer: &str) -> Json {
    map([("$ref", pointer.into())])
}

impl Json {
    pub fn parse(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in\n{text}"))
    }

    pub fn field(&self, name: &str) -> Option<&Self> {
        let Self::Map(fields) = self else { return None };
        fields.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    /// The value that a reference such as `#/components/schemas/Suite` leads to.
    pub fn follow(&self, pointer: &str) -> &Self {
        let path = pointer.strip_prefix("#/").unwrap_or_else(|| panic!("{pointer} leads out of the document"));
        path.split('/').fold(self, |at, name| at.field(name).unwrap_or_else(|| panic!("{pointer} leads nowhere")))
    }

    pub fn text(&self) -> &str {
        let Self::Text(text) = self else { panic!("{self:?} is not text") };
        text
    }

    pub fn items(&self) -> &[Self] {
        let Self::List(items) = self else { panic!("{self:?} is not a list") };
        items
    }

    pub fn fields(&self) -> &[(String, Self)] {
        let Self::Map(fields) = self else { panic!("{self:?} is not a map") };
        fields
    }

    /// Adds fields to a map.
    pub fn with<const N: usize>(mut self, more: [(&str, Json); N]) -> Self {
        let Self::Map(fields) = &mut self else { panic!("{self:?} is not a map") };
        fields.extend(more.into_iter().map(|(name, value)| (name.to_owned(), value)));
        self
    }

    /// Adds the fields of another map.
    pub fn joined(mut self, other: Self) -> Self {
        let (Self::Map(fields), Self::Map(more)) = (&mut self, other) else { panic!("only maps are joined") };
        fields.extend(more);
        self
    }

    /// The text of a document: what fits is written on one line.
    pub fn pretty(&self) -> String {
        let mut text = String::new();
        self.write(&mut text, 0, 0);
        text.push('\n');
        text
    }

    fn write(&self, out: &mut String, indent: usize, used: usize) {
        let line = self.to_string();
        let (open, close, parts): (_, _, Vec<(String, &Self)>) = match self {
            Self::Map(fields) => {
                ('{', '}', fields.iter().map(|(name, value)| (format!("{}: ", quoted(name)), value)).collect())
            }
            Self::List(items) => ('[', ']', items.iter().map(|item| (String::new(), item)).collect()),
            _ => (' ', ' ', Vec::new()),
        };
        if parts.is_empty() || indent + used + line.chars().count() <= LINE_CHARS {
            out.push_str(&line);
            return;
        }
        out.push(open);
        for (index, (name, part)) in parts.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(out, "{comma}\n{}{name}", " ".repeat(indent + 2)).unwrap();
            part.write(out, indent + 2, name.chars().count() + 1);
        }
        write!(out, "\n{}{close}", " ".repeat(indent)).unwrap();
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => value.fmt(f),
            Self::Integer(value) => value.fmt(f),
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(ToString::to_string).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Self::Map(fields) if fields.is_empty() => f.write_str("{}"),
            Self::Map(fields) => {
                let fields: Vec<String> =
                    fields.iter().map(|(name, value)| format!("{}: {value}", quoted(name))).collect();
                write!(f, "{{ {} }}", fields.join(", "))
            }
        }
    }
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Json {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&serde_json::Value> for Json {
    fn from(value: &serde_json::Value) -> Self {
        Self::parse(&value.to_string())
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Json;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON without fractions")
            }
            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Bool(value))
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<Json, E> {
                i64::try_from(value).map(Json::Integer).map_err(E::custom)
            }
            fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
                Ok(Json::Integer(value))
            }
            fn visit_str<E>(self, text: &str) -> Result<Json, E> {
                Ok(text.into())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Json::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = access.next_entry()? {
                    fields.push(field);
                }
                Ok(Json::Map(fields))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Checks a value against a schema. Stricter than JSON Schema in two ways: a field that the schema does not have is a
/// fault of the value, and a keyword that this function does not know is a fault of the schema.
///
/// # Errors
/// The first fault of the value, with its place.
pub fn check(document: &Json, schema: &Json, value: &Json) -> Result<(), String> {
    let fault = |what: &str| Err(format!("{value} {what}"));
    let as_integer = |limit: &Json| if let Json::Integer(limit) = limit { *limit } else { panic!("{limit:?}") };
    let length = match value {
        Json::Text(text) => text.chars().count(),
        Json::List(items) => items.len(),
        _ => 0,
    };
    let length = i64::try_from(length).unwrap();
    for (keyword, expected) in schema.fields() {
        match (keyword.as_str(), value) {
            ("$ref", _) => check(document, document.follow(expected.text()), value)?,
            ("anyOf", _) => {
                let faults: Vec<String> =
                    expected.items().iter().filter_map(|one| check(document, one, value).err()).collect();
                if faults.len() == expected.items().len() {
                    return Err(faults.join("; or "));
                }
            }
            ("type", _) => {
                let names = if let Json::List(names) = expected { names } else { slice::from_ref(expected) };
                if !names.iter().any(|name| name.text() == type_name(value)) {
                    return fault(&format!("is not of type {expected}"));
                }
            }
            ("enum", _) if !expected.items().contains(value) => return fault("is not in the list"),
            ("const", _) if expected != value => return fault(&format!("is not {expected}")),
            ("minimum", Json::Integer(number)) if *number < as_integer(expected) => return fault("is too small"),
            ("maximum", Json::Integer(number)) if *number > as_integer(expected) => return fault("is too large"),
            ("minLength" | "minItems", _) if length < as_integer(expected) => return fault("is too short"),
            ("maxLength" | "maxItems", _) if length > as_integer(expected) => return fault("is too long"),
            ("required", Json::Map(_)) => {
                if let Some(name) = expected.items().iter().find(|name| value.field(name.text()).is_none()) {
                    return fault(&format!("lacks {name}"));
                }
            }
            ("properties", Json::Map(fields)) => {
                for (name, field) in fields {
                    let Some(schema) = expected.field(name) else { return fault(&format!("has {name}")) };
                    check(document, schema, field).map_err(|error| format!("{name}: {error}"))?;
                }
            }
            ("items", Json::List(items)) => {
                for (index, item) in items.iter().enumerate() {
                    check(document, expected, item).map_err(|error| format!("[{index}]: {error}"))?;
                }
            }
            ("format", Json::Text(text)) => {
                let is_valid = match expected.text() {
                    "uuid" => sealwire_protocol::ids::DeviceId::parse(text).is_some(),
                    "date-time" => sealwire_protocol::Timestamp::parse(text).is_some(),
                    other => panic!("the format {other} is not known"),
                };
                if !is_valid {
                    return fault(&format!("is no {expected}"));
                }
            }
            ("contentEncoding", Json::Text(text)) if sealwire_protocol::value::Base64::parse(text).is_none() => {
                return fault("is no base64");
            }
            (
                "enum" | "const" | "minimum" | "maximum" | "minLength" | "minItems" | "maxLength" | "maxItems"
                | "required" | "properties" | "items" | "format" | "contentEncoding" | "title" | "description",
                _,
            ) => {}
            (unknown, _) if unknown.starts_with("x-") => {}
            (unknown, _) => panic!("the keyword {unknown} is not known"),
        }
    }
    Ok(())
}

fn type_name(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Integer(_) => "integer",
        Json::Text(_) => "string",
        Json::List(_) => "array",
        Json::Map(_) => "object",
    }
}
