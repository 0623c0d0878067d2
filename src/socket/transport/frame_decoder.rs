//! Decodes the headers of inbound WebSocket frames (RFC 6455, section 5.2) byte by byte, and skips payloads without
//! storing them. It checks each frame on its own; [`super::frame_guard`] checks their sequence.

use sealwire_protocol::ProtocolFault;

/// The type of a frame (RFC 6455, section 11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    /// Whether this is a control frame, which may stand between the fragments of a message.
    pub fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// The first byte of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHead {
    /// The type of the frame.
    pub opcode: Opcode,
    /// Whether the frame is the last of its message.
    pub fin: bool,
}

/// What [`FrameDecoder::decode`] has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// Nothing yet.
    Incomplete,
    /// The head: the first byte.
    Head(FrameHead),
    /// The length of the payload in bytes. The mask and the payload follow.
    Length(u64),
}

/// The decoder of one connection.
#[derive(Clone, Debug)]
pub(super) struct FrameDecoder {
    part: Part,
    head: FrameHead,
    /// The payload length as decoded so far; in the payload, the number of bytes that remain.
    length: u64,
}

/// The part of a frame to which the next byte belongs.
#[derive(Clone, Copy, Debug)]
enum Part {
    Head,
    Length,
    /// An extended length of `width` bytes, of which `left` are missing.
    Extended {
        width: u8,
        left: u8,
    },
    Mask {
        left: u8,
    },
    Payload,
}

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;
/// Maximum payload length of a control frame, and of any frame without an extended length.
const MAX_SHORT: u8 = 125;

impl FrameDecoder {
    /// A decoder that expects the first frame.
    pub fn new() -> Self {
        Self { part: Part::Head, head: FrameHead { opcode: Opcode::Continuation, fin: true }, length: 0 }
    }

    /// The head of the current frame, once it has been decoded. Before that, that of the previous frame.
    pub fn head(&self) -> FrameHead {
        self.head
    }

    /// Whether the length of the current frame has been decoded and its end has not been reached.
    pub fn is_past_length(&self) -> bool {
        matches!(self.part, Part::Mask { .. } | Part::Payload)
    }

    /// Whether the next byte begins a frame.
    pub fn is_between_frames(&self) -> bool {
        matches!(self.part, Part::Head)
    }

    /// Payload bytes of the current frame that are missing, once its length has been decoded.
    pub fn remaining(&self) -> u64 {
        self.length
    }

    /// Whether the next bytes are payload, which [`Self::skip_payload`] skips. True even if the payload is empty.
    pub fn is_in_payload(&self) -> bool {
        matches!(self.part, Part::Payload)
    }

    /// Skips at most `available` bytes of the payload, and returns how many. At the end of the payload the decoder
    /// expects the next frame.
    pub fn skip_payload(&mut self, available: usize) -> usize {
        let skipped = usize::try_from(self.length).unwrap_or(usize::MAX).min(available);
        self.length -= skipped as u64;
        if self.length == 0 {
            self.part = Part::Head;
        }
        skipped
    }

    /// Decodes one byte of a header or a mask.
    ///
    /// # Errors
    /// If a reserved bit is set, the opcode is unknown, the mask is missing, the length is not in its shortest form, or a
    /// control frame is fragmented or longer than 125 bytes.
    pub fn decode(&mut self, byte: u8) -> Result<Decoded, ProtocolFault> {
        match self.part {
            Part::Head => {
                let opcode = Opcode::from_bits(byte & OPCODE).ok_or(ProtocolFault::UnknownOpcode)?;
                let fin = byte & FIN != 0;
                if byte & RESERVED != 0 {
                    return Err(ProtocolFault::ReservedBits);
                }
                if opcode.is_control() && !fin {
                    return Err(ProtocolFault::ControlFrame);
                }
                self.head = FrameHead { opcode, fin };
                self.part = Part::Length;
                Ok(Decoded::Head(self.head))
            }
            Part::Length => {
                let short = byte & !MASKED;
                if byte & MASKED == 0 {
                    return Err(ProtocolFault::Unmasked);
                }
                if short > MAX_SHORT && self.head.opcode.is_control() {
                    return Err(ProtocolFault::ControlFrame);
                }
                if short <= MAX_SHORT {
                    return Ok(self.declare(short.into()));
                }
                let width = if short == 126 { 2 } else { 8 };
                self.length = 0;
                self.part = Part::Extended { width, left: width };
                Ok(Decoded::Incomplete)
            }
            Part::Extended { width, left } => {
                self.length = self.length << 8 | u64::from(byte);
                if left > 1 {
                    self.part = Part::Extended { width, left: left - 1 };
                    return Ok(Decoded::Incomplete);
                }
                let least = if width == 2 { u64::from(MAX_SHORT) + 1 } else { 1 << 16 };
                if self.length < least || self.length >> 63 != 0 {
                    return Err(ProtocolFault::LengthForm);
                }
                Ok(self.declare(self.length))
            }
            Part::Mask { left } => {
                self.part = if left > 1 { Part::Mask { left: left - 1 } } else { Part::Payload };
                Ok(Decoded::Incomplete)
            }
            Part::Payload => Ok(Decoded::Incomplete),
        }
    }

    fn declare(&mut self, length: u64) -> Decoded {
        self.length = length;
        self.part = Part::Mask { left: 4 };
        Decoded::Length(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes all bytes. Returns the head, and what the last byte completed.
    fn decode(bytes: &[u8]) -> Result<(FrameHead, Decoded), ProtocolFault> {
        let mut decoder = FrameDecoder::new();
        let mut last = Decoded::Incomplete;
        for byte in bytes {
            last = decoder.decode(*byte)?;
        }
        Ok((decoder.head(), last))
    }

    #[test]
    fn a_length_has_one_of_three_forms() {
        let text = FrameHead { opcode: Opcode::Text, fin: true };
        assert_eq!(decode(&[0x81, 0x85]), Ok((text, Decoded::Length(5))));
        assert_eq!(decode(&[0x81, 0xfe, 1, 0]), Ok((text, Decoded::Length(256))));
        assert_eq!(decode(&[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 0]), Ok((text, Decoded::Length(65_536))));
        assert_eq!(decode(&[0x81, 0xfe, 1]), Ok((text, Decoded::Incomplete)));
        let fragment = FrameHead { opcode: Opcode::Binary, fin: false };
        assert_eq!(decode(&[0x02]), Ok((fragment, Decoded::Head(fragment))));
    }

    #[test]
    fn a_payload_is_skipped_in_parts_and_an_empty_one_ends_immediately() {
        let mut decoder = FrameDecoder::new();
        for byte in [0x81, 0x85, 1, 2, 3, 4] {
            assert!(!decoder.is_in_payload());
            decoder.decode(byte).unwrap();
        }
        assert!(decoder.is_in_payload() && decoder.is_past_length());
        assert_eq!(decoder.skip_payload(3), 3);
        assert!(decoder.is_in_payload());
        assert_eq!(decoder.skip_payload(10), 2);
        assert!(!decoder.is_past_length());
        for byte in [0x89, 0x80, 1, 2, 3, 4] {
            decoder.decode(byte).unwrap();
        }
        assert!(decoder.is_in_payload());
        assert_eq!(decoder.skip_payload(0), 0);
        assert!(!decoder.is_in_payload());
    }
}
