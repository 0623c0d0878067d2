//! The two encodings of a frame, chosen by subprotocol: MessagePack in binary frames, JSON in text frames.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How deep a request may nest. The protocol needs five levels.
const MAX_DEPTH: usize = 32;
/// Markers of `bin` in `MessagePack`; a big-endian length of that many bits follows.
const BIN_8: u8 = 0xc4;
const BIN_16: u8 = 0xc5;
const BIN_32: u8 = 0xc6;

/// An encoding of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// `sealwire.v1.json`, in text frames.
    Json,
    /// `sealwire.v1.msgpack`, in binary frames.
    MsgPack,
}

/// The bytes are not one whole value of the expected shape. The text never repeats what was sent, apart from the names
/// of the protocol's own fields.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// A required field is absent.
    #[error("{0}")]
    MissingField(String),
    /// Anything else.
    #[error("a field has the wrong type or value")]
    Malformed,
}

impl DecodeError {
    fn from_text(text: &str) -> Self {
        // serde words this one with the name of the field alone; other messages may quote the input.
        match text.find("missing field `") {
            Some(0) => {
                let end = text[15..].find('`').map_or(text.len(), |at| 15 + at + 1);
                Self::MissingField(text[..end].to_owned())
            }
            _ => Self::Malformed,
        }
    }
}

impl Codec {
    /// Both encodings, as they are offered.
    pub const ALL: [Self; 2] = [Self::MsgPack, Self::Json];

    /// The WebSocket subprotocol's name.
    #[must_use]
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Self::Json => "sealwire.v1.json",
            Self::MsgPack => "sealwire.v1.msgpack",
        }
    }

    /// Decodes one value that fills all of `bytes`.
    ///
    /// # Errors
    /// If the bytes are not such a value, nest too deeply, or go on after it.
    pub fn decode<'de, T: Deserialize<'de>>(self, bytes: &'de [u8]) -> Result<T, DecodeError> {
        match self {
            Self::Json => serde_json::from_slice(bytes).map_err(|error| DecodeError::from_text(&error.to_string())),
            Self::MsgPack => {
                let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes).with_human_readable();
                decoder.set_max_depth(MAX_DEPTH);
                let value = T::deserialize(&mut decoder).map_err(|error| DecodeError::from_text(&error.to_string()))?;
                // The reader has no position, but what it has not read is what another value would start with.
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
    /// If the value cannot be written in this encoding. Every type of the protocol can.
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

/// Whether bytes that were read from a `MessagePack` frame, and borrow from it, are a `bin` there: a `str` that is not
/// UTF-8 is read as bytes too.
pub(crate) fn is_bin(frame: &[u8], bytes: &[u8]) -> bool {
    let Some(start) = bytes.first().and_then(|first| frame.element_offset(first)) else { return bytes.is_empty() };
    let before = &frame[..start];
    let follow = |marker: u8, length: &[u8]| before.strip_suffix(length).is_some_and(|head| head.ends_with(&[marker]));
    let length = bytes.len();
    u8::try_from(length).is_ok_and(|length| follow(BIN_8, &length.to_be_bytes()))
        || u16::try_from(length).is_ok_and(|length| follow(BIN_16, &length.to_be_bytes()))
        || u32::try_from(length).is_ok_and(|length| follow(BIN_32, &length.to_be_bytes()))
}

/// A value that has no encoding.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// As JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// As MessagePack.
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
    fn both_encodings_round_trip_and_want_the_whole_input() {
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
        let wrong = Codec::Json.decode::<Sample>(br#"{"number":"secret"}"#).unwrap_err();
        assert!(!wrong.to_string().contains("secret"));
    }

    #[test]
    fn bin_is_told_from_text_that_is_no_utf_8() {
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
        // Lengths that hold the markers themselves, and what stands before them may look like one.
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
        assert!(!is_bin(b"\xc4\x01x", &Vec::from(*b"x")), "bytes from elsewhere");
    }

    #[test]
    fn deep_nesting_is_refused() {
        let json = "[".repeat(100_000);
        assert!(Codec::Json.decode::<serde::de::IgnoredAny>(json.as_bytes()).is_err());
        let pack = vec![0x91; 100_000];
        assert!(Codec::MsgPack.decode::<serde::de::IgnoredAny>(&pack).is_err());
    }
}
