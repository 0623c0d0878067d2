//! JSON values whose maps keep the order of their fields. Formats them, and checks them against a schema.

use std::{
    fmt::{self, Write},
    slice,
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};

/// A map or list is written on one line if the line has at most this many characters.
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

/// Returns a map with these fields.
pub fn map<const N: usize>(fields: [(&str, Json); N]) -> Json {
    Json::Map(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Returns a list of these values.
pub fn list<T: Into<Json>>(items: impl IntoIterator<Item = T>) -> Json {
    Json::List(items.into_iter().map(Into::into).collect())
}

/// Returns a reference to another part of the document.
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

    /// Returns the value to which a reference such as `#/components/schemas/Suite` points.
    pub fn follow(&self, pointer: &str) -> &Self {
        let path = pointer.strip_prefix("#/").unwrap_or_else(|| panic!("{pointer} points outside the document"));
        path.split('/').fold(self, |at, name| at.field(name).unwrap_or_else(|| panic!("{pointer} points to nothing")))
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

    /// Formats a document. What fits into [`LINE_CHARS`] is written on one line.
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

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_none(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Integer(value) => serializer.serialize_i64(*value),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => serializer.collect_seq(items),
            Self::Map(fields) => serializer.collect_map(fields.iter().map(|(name, value)| (name, value))),
        }
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

/// Checks a value against a schema. Stricter than JSON Schema: fields that the schema does not have are not allowed.
///
/// # Errors
/// The first fault of the value, with its path.
///
/// # Panics
/// If the schema contains a keyword or format that this function does not know.
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
                    return fault(&format!("has no field {name}"));
                }
            }
            ("properties", Json::Map(fields)) => {
                for (name, field) in fields {
                    let Some(schema) = expected.field(name) else {
                        return fault(&format!("has the unknown field {name}"));
                    };
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
                    "uuid" => is_like(text, "00000000-0000-0000-0000-000000000000"),
                    "date-time" => is_like(text.get(..19).unwrap_or_default(), "0000-00-00T00:00:00"),
                    other => panic!("the format {other} is not known"),
                };
                if !is_valid {
                    return fault(&format!("is not a valid {expected}"));
                }
            }
            ("contentEncoding", Json::Text(text)) if !is_base64(text) => {
                return fault("is not base64");
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

/// Whether a text equals the pattern, with any hexadecimal digit in place of each 0.
fn is_like(text: &str, pattern: &str) -> bool {
    let fits = |(c, expected): (char, char)| if expected == '0' { c.is_ascii_hexdigit() } else { c == expected };
    text.len() == pattern.len() && text.chars().zip(pattern.chars()).all(fits)
}

fn is_base64(text: &str) -> bool {
    let digits = text.trim_end_matches('=');
    digits.len() % 4 != 1 && digits.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '/'))
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
