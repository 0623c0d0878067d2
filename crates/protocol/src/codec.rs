//! The two encodings of a frame, chosen by subprotocol: MessagePack in binary frames, JSON in text frames.

use rmp_serde::{config::HumanReadableConfig, decode::ReadRefReader};
use serde::{Deserialize, Deserializer, Serialize};
use serde_path_to_error::Path;
use thiserror::Error;

/// Maximum nesting depth of a MessagePack frame. The protocol needs five levels. (`serde_json` has its own limit.)
const MAX_DEPTH: usize = 32;
/// The markers of `bin` in `MessagePack`. A big-endian length of that many bits follows.
const BIN_8: u8 = 0xc4;
const BIN_16: u8 = 0xc5;
const BIN_32: u8 = 0xc6;

type MessagePackDeserializer<'a> =
    rmp_serde::Deserializer<ReadRefReader<'a, [u8]>, HumanReadableConfig<rmp_serde::config::DefaultConfig>>;

/// An encoding of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// `sealwire.v1.json`, in text frames.
    Json,
    /// `sealwire.v1.msgpack`, in binary frames.
    MsgPack,
}

/// The bytes are not exactly one value of the expected type. The error text quotes nothing of the input except names of
/// the protocol's own fields.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// A required field is absent.
    #[error("missing field `{path}`")]
    MissingField {
        /// The field, such as `messages[0].content`.
        path: String,
    },
    /// A field has a value of the wrong type, or one that its type excludes.
    #[error("`{path}`: expected {expected}")]
    InvalidField {
        /// The field, such as `messages[0].content`.
        path: String,
        /// What is expected, in words.
        expected: String,
    },
    /// The input is malformed, or no single field is at fault.
    #[error("malformed, or a field has the wrong type or value")]
    Malformed,
}

impl DecodeError {
    /// Builds the error from the path of the field and serde's error text. That text begins with the name of a missing
    /// field, or ends with what was expected; in between it may quote the input.
    fn locate(path: &Path, error: &impl ToString) -> Self {
        let text = error.to_string();
        let place = path.to_string();
        if let Some(rest) = text.strip_prefix("missing field `") {
            let name = rest.split('`').next().unwrap_or_default();
            let path = if path.iter().len() == 0 { name.to_owned() } else { format!("{place}.{name}") };
            return Self::MissingField { path };
        }
        let expected = match text.rsplit_once(", expected ") {
            // serde_json appends the position.
            Some((_, expected)) => in_words(expected.split(" at line ").next().unwrap_or_default()),
            // rmp_serde does not always say what it expected.
            None if text.starts_with("wrong msgpack marker") => "a value of another type",
            None => return Self::Malformed,
        };
        if path.iter().len() == 0 {
            return Self::Malformed;
        }
        Self::InvalidField { path: place, expected: expected.to_owned() }
    }

    /// Makes the path relative to `field`. A fault in `field` itself becomes [`Self::Malformed`].
    pub(crate) fn below(self, field: &str) -> Self {
        let strip = |path: String| path.strip_prefix(field)?.strip_prefix('.').map(str::to_owned);
        match self {
            Self::MissingField { path } => strip(path).map_or(Self::Malformed, |path| Self::MissingField { path }),
            Self::InvalidField { path, expected } => {
                strip(path).map_or(Self::Malformed, |path| Self::InvalidField { path, expected })
            }
            Self::Malformed => Self::Malformed,
        }
    }
}

/// Replaces the name of a Rust type in serde's text by words.
fn in_words(expected: &str) -> &str {
    match expected {
        "u8" => "an integer from 0 to 255",
        "u32" => "an integer from 0 to 4294967295",
        "u64" | "usize" => "a non-negative integer",
        "i64" => "an integer",
        other => other,
    }
}

impl Codec {
    /// Both encodings.
    pub const ALL: [Self; 2] = [Self::MsgPack, Self::Json];

    /// The WebSocket subprotocol's name.
    #[must_use]
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Self::Json => "sealwire.v1.json",
            Self::MsgPack => "sealwire.v1.msgpack",
        }
    }

    /// Decodes `bytes` as exactly one value.
    ///
    /// # Errors
    /// If `bytes` are not a valid value of the type, nest too deeply, or continue after the value.
    pub fn decode<'de, T: Deserialize<'de>>(self, bytes: &'de [u8]) -> Result<T, DecodeError> {
        match self {
            Self::Json => serde_json::from_slice(bytes).map_err(|_| {
                // Decoding again to locate the fault is slower, so it is done only after an error.
                let mut decoder = serde_json::Deserializer::from_slice(bytes);
                fault::<T, _>(&mut decoder)
            }),
            Self::MsgPack => {
                let mut decoder = messagepack(bytes);
                let value = T::deserialize(&mut decoder).map_err(|_| fault::<T, _>(&mut messagepack(bytes)))?;
                // The reader does not expose its position. All bytes are consumed if reading another value hits the
                // end.
                let rest: Result<serde::de::IgnoredAny, _> = Deserialize::deserialize(&mut decoder);
                match rest {
                    Err(rmp_serde::decode::Error::InvalidMarkerRead(end))
                        if end.kind() == std::io::ErrorKind::UnexpectedEof =>
                    {
                        Ok(value)
                    }
                    _ => Err(DecodeError::Malformed),
                }
            }
        }
    }

    /// Encodes one value.
    ///
    /// # Errors
    /// If the value cannot be encoded. Every type of the protocol can.
    pub fn encode<T: Serialize>(self, value: &T) -> Result<Vec<u8>, EncodeError> {
        match self {
            Self::Json => Ok(serde_json::to_vec(value)?),
            Self::MsgPack => {
                let mut bytes = Vec::with_capacity(128);
                value.serialize(&mut rmp_serde::Serializer::new(&mut bytes).with_struct_map().with_human_readable())?;
                Ok(bytes)
            }
        }
    }
}

fn messagepack(bytes: &[u8]) -> MessagePackDeserializer<'_> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes).with_human_readable();
    decoder.set_max_depth(MAX_DEPTH);
    decoder
}

/// Decodes again, to find out why and where decoding fails.
fn fault<'de, T: Deserialize<'de>, D: Deserializer<'de, Error: ToString>>(decoder: D) -> DecodeError {
    match serde_path_to_error::deserialize::<_, T>(decoder) {
        Ok(_) => DecodeError::Malformed, // The value is followed by more bytes.
        Err(error) => DecodeError::locate(error.path(), error.inner()),
    }
}

/// Whether `bytes`, which must borrow from a `MessagePack` frame, are a `bin` there. Needed because `rmp_serde` also
/// reads a `str` that is not UTF-8 as bytes.
pub(crate) fn is_bin(frame: &[u8], bytes: &[u8]) -> bool {
    let Some(start) = bytes.first().and_then(|first| frame.element_offset(first)) else { return bytes.is_empty() };
    let before = &frame[..start];
    let follow = |marker: u8, length: &[u8]| before.strip_suffix(length).is_some_and(|head| head.ends_with(&[marker]));
    let length = bytes.len();
    u8::try_from(length).is_ok_and(|length| follow(BIN_8, &length.to_be_bytes()))
        || u16::try_from(length).is_ok_and(|length| follow(BIN_16, &length.to_be_bytes()))
        || u32::try_from(length).is_ok_and(|length| follow(BIN_32, &length.to_be_bytes()))
}

/// A value cannot be encoded.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// In JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// In MessagePack.
    #[error(transparent)]
    MsgPack(#[from] rmp_serde::encode::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        number: u32,
        text: Option<String>,
    }

    #[test]
    fn both_encodings_round_trip_and_reject_trailing_bytes() {
        let sample = Sample { number: 7, text: None };
        for codec in Codec::ALL {
            let mut bytes = codec.encode(&sample).unwrap();
            assert_eq!(codec.decode::<Sample>(&bytes).unwrap(), sample);
            bytes.push(b'1');
            assert_eq!(codec.decode::<Sample>(&bytes).unwrap_err(), DecodeError::Malformed, "{codec:?}");
        }
    }

    #[test]
    fn a_missing_field_is_named_and_a_wrong_one_is_not_quoted() {
        let missing = Codec::Json.decode::<Sample>(br#"{"text":"secret"}"#).unwrap_err();
        assert_eq!(missing.to_string(), "missing field `number`");
        let missing = Codec::MsgPack.decode::<Sample>(b"\x80").unwrap_err();
        assert_eq!(missing.to_string(), "missing field `number`");
        let wrong = Codec::Json.decode::<Sample>(br#"{"number":"secret, expected x"}"#).unwrap_err();
        assert_eq!(wrong.to_string(), "`number`: expected an integer from 0 to 4294967295");
        let wrong = Codec::MsgPack.decode::<Sample>(b"\x81\xa6number\xa6secret").unwrap_err();
        assert_eq!(wrong.to_string(), "`number`: expected a value of another type");
    }

    #[test]
    fn bin_is_distinguished_from_a_str_that_is_not_utf_8() {
        let heads = |length: u32| {
            let [.., high, low] = length.to_be_bytes();
            let long = |marker: u8| [&[marker][..], &length.to_be_bytes()].concat();
            let mut heads = vec![(true, long(BIN_32)), (false, long(0xdb))];
            if length <= 0xffff {
                heads.extend([(true, vec![BIN_16, high, low]), (false, vec![0xda, high, low])]);
            }
            if length <= 0xff {
                heads.extend([(true, vec![BIN_8, low]), (false, vec![0xd9, low])]);
            }
            if length <= 31 {
                heads.push((false, vec![0xa0 | low]));
            }
            heads
        };
        // Lengths whose bytes look like markers, after bytes that look like markers.
        for length in [1, 4, 31, 32, 0xa1, 0xc4, 0xc5, 0xc6, 0xff, 0x100, 0xc4c4, 0xc5c5, 0xc600, 0xffff, 0x1_0000] {
            for before in [0x00, BIN_8, BIN_16, BIN_32] {
                for (is_bytes, head) in heads(length) {
                    let content = vec![0xff; length as usize];
                    let frame = [&[0x92, 0xc4, 0x01, before][..], &head, &content].concat();
                    let (_, read): (&[u8], &[u8]) = Codec::MsgPack.decode(&frame).unwrap();
                    assert_eq!(is_bin(&frame, read), is_bytes, "{before:x} {head:x?}");
                }
            }
        }
        assert!(is_bin(b"\xc4\x00", b""));
        assert!(!is_bin(b"\xc4\x01x", &Vec::from(*b"x")), "bytes that do not borrow from the frame");
    }

    #[test]
    fn deep_nesting_is_refused() {
        let json = "[".repeat(100_000);
        assert!(Codec::Json.decode::<serde::de::IgnoredAny>(json.as_bytes()).is_err());
        let pack = vec![0x91; 100_000];
        assert!(Codec::MsgPack.decode::<serde::de::IgnoredAny>(&pack).is_err());
    }
}
