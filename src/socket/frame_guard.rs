//! Reads the headers of inbound WebSocket frames (RFC 6455, section 5.2) as the bytes come in.
//!
//! actix-ws checks a frame's size only after it has buffered the whole frame, so that a peer decides
//! how much memory it costs. The guard stands before it: it sees a length when it is declared, and
//! names a violation before any byte of that payload is passed on. It stores no payload itself.

/// Why a peer's bytes are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A message, its frames counted together, declares more than the limit: close code 4505.
    #[error("message larger than allowed")]
    FrameTooLarge,
    /// A breach of the framing rules of RFC 6455: close code 4504.
    #[error("breach of RFC 6455 framing")]
    Protocol,
}

/// A frame whose header has declared its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// Whether a data message begins with it. False for control frames and continuations.
    pub starts_message: bool,
    /// Whether the message ends with it. Control frames count as messages of their own.
    pub fin: bool,
    /// Payload bytes declared so far by the data message it belongs to; 0 for control frames.
    pub message: u64,
}

/// What [`FrameGuard::inspect`] came upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The end of the bytes: all of them may be passed on.
    End,
    /// A frame. If it is to wait, pass on the bytes before `start`, else look on from `seen`.
    Frame(Frame),
    /// A Close frame that ended at `start`; the bytes after it mean nothing.
    Closed,
    /// A violation by the frame that begins at `start`; nothing from there on may be passed on.
    Violation(Violation),
}

/// The outcome of one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    /// What ended the look.
    pub found: Found,
    /// Where in the bytes the frame concerned begins; 0 if it began in earlier bytes. Its first
    /// header bytes were passed on with those then, and are never enough to make a frame of.
    pub start: usize,
    /// Bytes that the guard has taken in: never show them to it again.
    pub seen: usize,
}

/// The incremental parser, one per connection. It may be fed in pieces of any size.
#[derive(Debug, Clone)]
pub(super) struct FrameGuard {
    max_message: u64,
    /// Payload bytes declared so far by a data message that still lacks its last frame.
    open_message: Option<u64>,
    /// First header byte of the current frame.
    head: u8,
    /// Declared payload length of the current frame, as far as it has come in.
    length: u64,
    part: Part,
}

/// The part of a frame to which the next byte belongs.
#[derive(Debug, Clone, Copy)]
enum Part {
    Head,
    Length,
    Extended {
        width: u8,
        left: u8,
    },
    Mask {
        left: u8,
    },
    Payload {
        left: u64,
    },
    /// After a Close frame.
    Nothing,
    Refused(Violation),
}

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const CONTROL: u8 = 0x08;
const CONTINUATION: u8 = 0x0;
const CLOSE: u8 = 0x8;
const MASKED: u8 = 0x80;
/// Longest payload of a control frame, and the longest that the 7-bit length can say.
const SHORT: u8 = 125;

impl FrameGuard {
    /// A guard at the beginning of a connection; messages may be `max_message` bytes long.
    pub fn new(max_message: u64) -> Self {
        Self { max_message, open_message: None, head: 0, length: 0, part: Part::Head }
    }

    /// Whether all data messages that began have ended, as far as the bytes seen tell.
    pub fn between_messages(&self) -> bool {
        self.open_message.is_none()
            && !matches!(self.part, Part::Mask { .. } | Part::Payload { .. } if self.head & CONTROL == 0)
    }

    /// Looks through `bytes` up to the first thing worth stopping for.
    pub fn inspect(&mut self, bytes: &[u8]) -> Look {
        let mut start = 0;
        let mut at = 0;
        let found = loop {
            match self.part {
                Part::Nothing => {
                    return Look { found: Found::Closed, start, seen: bytes.len() };
                }
                Part::Refused(violation) => break Found::Violation(violation),
                Part::Payload { left } => {
                    let here = (bytes.len() - at) as u64;
                    if here < left {
                        self.part = Part::Payload { left: left - here };
                        at = bytes.len();
                        break Found::End;
                    }
                    // Fits: `left` is at most what this slice still holds.
                    #[expect(clippy::cast_possible_truncation)]
                    {
                        at += left as usize;
                    }
                    start = at;
                    let closed = self.head & OPCODE == CLOSE;
                    self.part = if closed { Part::Nothing } else { Part::Head };
                }
                _ if at == bytes.len() => break Found::End,
                _ => {
                    let byte = bytes[at];
                    at += 1;
                    match self.take_header_byte(byte) {
                        Ok(Some(frame)) => break Found::Frame(frame),
                        Ok(None) => {}
                        Err(violation) => self.part = Part::Refused(violation),
                    }
                }
            }
        };
        Look { found, start, seen: at }
    }

    /// Advances the header by one byte; answers with the frame once its length is known.
    fn take_header_byte(&mut self, byte: u8) -> Result<Option<Frame>, Violation> {
        match self.part {
            Part::Head => {
                self.head = byte;
                self.check_head()?;
                self.part = Part::Length;
                Ok(None)
            }
            Part::Length => {
                if byte & MASKED == 0 {
                    return Err(Violation::Protocol);
                }
                let short = byte & !MASKED;
                if short <= SHORT {
                    return self.declare(short.into()).map(Some);
                }
                if self.head & CONTROL != 0 {
                    return Err(Violation::Protocol);
                }
                let width = if short == 126 { 2 } else { 8 };
                self.length = 0;
                self.part = Part::Extended { width, left: width };
                Ok(None)
            }
            Part::Extended { width, left } => {
                self.length = self.length << 8 | u64::from(byte);
                if left > 1 {
                    self.part = Part::Extended { width, left: left - 1 };
                    return Ok(None);
                }
                let least = if width == 2 { u64::from(SHORT) + 1 } else { 1 << 16 };
                if self.length < least || self.length >> 63 != 0 {
                    return Err(Violation::Protocol);
                }
                self.declare(self.length).map(Some)
            }
            Part::Mask { left: 1 } => {
                self.part = Part::Payload { left: self.length };
                Ok(None)
            }
            Part::Mask { left } => {
                self.part = Part::Mask { left: left - 1 };
                Ok(None)
            }
            Part::Payload { .. } | Part::Nothing | Part::Refused(_) => Ok(None),
        }
    }

    /// The rules that the first byte alone can break.
    fn check_head(&self) -> Result<(), Violation> {
        let opcode = self.head & OPCODE;
        let sound = self.head & RESERVED == 0
            && match opcode {
                CONTINUATION => self.open_message.is_some(),
                0x1 | 0x2 => self.open_message.is_none(),
                CLOSE | 0x9 | 0xa => self.head & FIN != 0,
                _ => false,
            };
        if sound { Ok(()) } else { Err(Violation::Protocol) }
    }

    /// Takes note of a frame of `length` payload bytes; its mask comes next.
    fn declare(&mut self, length: u64) -> Result<Frame, Violation> {
        self.length = length;
        self.part = Part::Mask { left: 4 };
        let fin = self.head & FIN != 0;
        if self.head & CONTROL != 0 {
            return Ok(Frame { starts_message: false, fin, message: 0 });
        }
        let starts_message = self.open_message.is_none();
        let message = self.open_message.unwrap_or(0).saturating_add(length);
        if message > self.max_message {
            return Err(Violation::FrameTooLarge);
        }
        self.open_message = (!fin).then_some(message);
        Ok(Frame { starts_message, fin, message })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const MAX: u64 = 1000;

    /// A masked client frame.
    fn frame(head: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = header(head, payload.len() as u64);
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Its header alone, with the shortest encoding of `length`.
    fn header(head: u8, length: u64) -> Vec<u8> {
        let mut bytes = vec![head];
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(short), _) if short <= SHORT => bytes.push(MASKED | short),
            (_, Ok(medium)) => {
                bytes.push(0xfe);
                bytes.extend_from_slice(&medium.to_be_bytes());
            }
            _ => {
                bytes.push(0xff);
                bytes.extend_from_slice(&length.to_be_bytes());
            }
        }
        bytes.extend_from_slice(b"mask");
        bytes
    }

    /// What a guard has to say about a stream of bytes.
    #[derive(Debug, Default, PartialEq)]
    struct Verdict {
        frames: Vec<Frame>,
        violation: Option<Violation>,
        closed: bool,
        /// Bytes before the frame that ended the stream.
        passed: usize,
    }

    fn judge<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Verdict {
        let mut guard = FrameGuard::new(MAX);
        let mut verdict = Verdict::default();
        // Where, in the whole stream, the frame being parsed begins.
        let mut frame_start = 0;
        let mut offset = 0;
        for piece in pieces {
            let mut seen = 0;
            loop {
                let look = guard.inspect(&piece[seen..]);
                if look.start > 0 {
                    frame_start = offset + seen + look.start;
                }
                seen += look.seen;
                match look.found {
                    Found::End => break,
                    Found::Frame(frame) => verdict.frames.push(frame),
                    Found::Closed => verdict.closed = true,
                    Found::Violation(violation) => verdict.violation = Some(violation),
                }
                if verdict.closed || verdict.violation.is_some() {
                    verdict.passed = frame_start;
                    return verdict;
                }
            }
            offset += piece.len();
        }
        verdict.passed = offset;
        verdict
    }

    fn violation(bytes: &[u8]) -> Option<Violation> {
        judge([bytes]).violation
    }

    #[test]
    fn announces_each_frame_and_the_message_it_belongs_to() {
        let bytes = [
            frame(0x81, b"hello"),
            frame(0x02, &[7; 200]),
            frame(0x89, b"ping"),
            frame(0x80, &[7; 300]),
            frame(0x82, b""),
        ]
        .concat();
        let verdict = judge([&bytes[..]]);
        let told: Vec<_> = verdict.frames.iter().map(|f| (f.starts_message, f.fin, f.message)).collect();
        assert_eq!(told, [(true, true, 5), (true, false, 200), (false, true, 0), (false, true, 500), (true, true, 0)]);
        assert_eq!((verdict.violation, verdict.passed), (None, bytes.len()));
    }

    #[test]
    fn verdict_is_the_same_at_every_split_point() {
        let good = [frame(0x81, b"hello"), frame(0x02, &[7; 200]), frame(0x8a, b""), frame(0x80, b"x")];
        let endings = [
            frame(0x88, b"\x03\xe8"),
            header(0x82, MAX + 1),
            header(0x82, 200_000_000),
            header(0xc1, 3),
            vec![0x82, 5],
        ];
        for ending in endings {
            let bytes = [good.concat(), ending, frame(0x81, b"after")].concat();
            let whole = judge([&bytes[..]]);
            assert!(whole.closed || whole.violation.is_some());
            for at in 0..=bytes.len() {
                assert_eq!(judge([&bytes[..at], &bytes[at..]]), whole, "split at {at}");
            }
            assert_eq!(judge(bytes.chunks(1)), whole, "byte by byte");
        }
    }

    #[test]
    fn frames_before_the_violation_pass_and_its_own_bytes_do_not() {
        let bytes = [frame(0x81, b"fine"), header(0x82, MAX + 1)].concat();
        let verdict = judge([&bytes[..]]);
        assert_eq!(verdict.violation, Some(Violation::FrameTooLarge));
        assert_eq!(verdict.passed, frame(0x81, b"fine").len());
    }

    #[test]
    fn the_limit_is_inclusive_and_counts_fragments_together() {
        assert_eq!(violation(&header(0x82, MAX)), None);
        assert_eq!(violation(&header(0x82, MAX + 1)), Some(Violation::FrameTooLarge));
        assert_eq!(violation(&header(0x82, 1 << 62)), Some(Violation::FrameTooLarge));
        let first = frame(0x02, &[0; 600]);
        assert_eq!(violation(&[first.clone(), header(0x80, 400)].concat()), None);
        let over = [first, header(0x00, 401)].concat();
        assert_eq!(violation(&over), Some(Violation::FrameTooLarge));
    }

    #[test]
    fn breaches_of_the_framing_rules_are_named() {
        let unfinished = frame(0x01, b"part");
        let breaches: &[(&str, Vec<u8>)] = &[
            ("reserved bit", header(0xc1, 1)),
            ("unknown data opcode", header(0x83, 1)),
            ("unknown control opcode", header(0x8b, 1)),
            ("unmasked", vec![0x81, 1]),
            ("fragmented ping", header(0x09, 1)),
            ("long ping", header(0x89, 126)),
            ("continuation of nothing", header(0x80, 1)),
            ("message inside a message", [unfinished, header(0x81, 1)].concat()),
            ("16-bit length below 126", vec![0x81, 0xfe, 0, 125]),
            ("64-bit length below 65536", vec![0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff]),
            ("64-bit length with its top bit", vec![0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]),
        ];
        for (what, bytes) in breaches {
            assert_eq!(violation(bytes), Some(Violation::Protocol), "{what}");
        }
    }

    #[test]
    fn after_a_close_frame_nothing_matters() {
        let bytes = [frame(0x88, b""), vec![0xff; 50]].concat();
        let verdict = judge([&bytes[..]]);
        assert_eq!((verdict.violation, verdict.closed, verdict.passed), (None, true, 6));
    }

    #[test]
    fn knows_when_it_stands_between_messages() {
        let mut guard = FrameGuard::new(MAX);
        let mut after = |bytes: &[u8]| {
            let mut seen = 0;
            while seen < bytes.len() {
                seen += guard.inspect(&bytes[seen..]).seen;
            }
            guard.between_messages()
        };
        assert!(after(&frame(0x81, b"whole")));
        assert!(!after(&header(0x02, 2)));
        assert!(!after(b"ab"), "a message lacks its last frame");
        assert!(!after(&frame(0x89, b"ping")));
        assert!(after(&frame(0x80, b"last")));
    }

    proptest! {
        /// Mostly sound frames, some of them damaged, cut anywhere.
        #[test]
        fn chunking_does_not_change_the_verdict(
            frames in vec((prop_oneof![Just(0x81u8), Just(0x02), Just(0x00), Just(0x80), Just(0x89), any::<u8>()],
                           vec(any::<u8>(), 0..300)), 0..8),
            damage in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
            cuts in vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut bytes: Vec<u8> = frames.iter().flat_map(|(head, payload)| frame(*head, payload)).collect();
            if let (Some((at, value)), false) = (damage, bytes.is_empty()) {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            cuts.insert(0, 0);
            cuts.push(bytes.len());
            let pieces = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
            prop_assert_eq!(judge(pieces), judge([&bytes[..]]));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..2000), size in 1usize..50) {
            prop_assert_eq!(judge(bytes.chunks(size)), judge([&bytes[..]]));
        }
    }
}
