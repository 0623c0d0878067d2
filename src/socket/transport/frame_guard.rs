//! Checks inbound WebSocket frames as their bytes come in: how frames make up messages (RFC 6455, section 5.4), and how
//! large a message may be.
//!
//! actix-ws checks the size of a frame only after it has buffered all of it, so that a peer decides how much memory it
//! costs. The guard stands before it: it sees a length when it is declared, and reports a violation before any byte of
//! that payload is passed on. It stores no payload itself.

use super::frame_decoder::{Decoded, FrameDecoder, FramingError, Head, Opcode};

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

impl From<FramingError> for Violation {
    fn from(_: FramingError) -> Self {
        Self::Protocol
    }
}

/// A frame whose header has declared its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeclaredFrame {
    /// Whether a data message begins with it. False for control frames and continuations.
    pub starts_message: bool,
    /// Whether the message ends with it. Control frames count as messages of their own.
    pub fin: bool,
    /// Payload bytes declared so far by the data message it belongs to; 0 for control frames.
    pub message_bytes: u64,
}

/// Why an inspection stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// At the end of the bytes: all of them may be passed on.
    End,
    /// At a frame. If it is to wait, pass on the bytes before `frame_start`; otherwise inspect on from `seen`.
    Frame(DeclaredFrame),
    /// At a Close frame that ended at `frame_start`; the bytes after it mean nothing.
    Closed,
    /// At a violation by the frame that begins at `frame_start`; nothing from there on may be passed on.
    Violation(Violation),
}

/// The outcome of one inspection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inspection {
    pub stop: Stop,
    /// Offset in the bytes of the frame that `stop` is about; 0 if it began in earlier bytes. Its first header bytes were passed on
    /// with those then, and are never enough to make a frame of.
    pub frame_start: usize,
    /// Bytes that the guard has taken in: never show them to it again.
    pub seen: usize,
}

/// The guard of one connection. It may be fed in pieces of any size.
#[derive(Debug, Clone)]
pub(super) struct FrameGuard {
    decoder: FrameDecoder,
    max_message: u64,
    /// Payload bytes declared so far by a data message that still lacks its last frame.
    open_message: Option<u64>,
    end: Option<End>,
}

/// After it, no bytes are passed on.
#[derive(Debug, Clone, Copy)]
enum End {
    CloseFrame,
    Violation(Violation),
}

impl FrameGuard {
    /// A guard at the beginning of a connection; messages may be `max_message` bytes long.
    pub fn new(max_message: u64) -> Self {
        Self { decoder: FrameDecoder::new(), max_message, open_message: None, end: None }
    }

    /// Whether all data messages that began have ended, as far as the bytes seen tell.
    pub fn is_between_messages(&self) -> bool {
        let in_data_frame = self.decoder.is_past_length() && !self.decoder.head().opcode.is_control();
        self.open_message.is_none() && (self.end.is_some() || !in_data_frame)
    }

    /// Looks through `bytes` up to the first thing worth stopping for.
    pub fn inspect(&mut self, bytes: &[u8]) -> Inspection {
        let mut frame_start = 0;
        let mut seen = 0;
        let stop = loop {
            match self.end {
                Some(End::CloseFrame) => return Inspection { stop: Stop::Closed, frame_start, seen: bytes.len() },
                Some(End::Violation(violation)) => break Stop::Violation(violation),
                None if self.decoder.is_in_payload() => {
                    seen += self.decoder.skip_payload(bytes.len() - seen);
                    if self.decoder.is_in_payload() {
                        break Stop::End;
                    }
                    frame_start = seen;
                    if self.decoder.head().opcode == Opcode::Close {
                        self.end = Some(End::CloseFrame);
                    }
                }
                None if seen == bytes.len() => break Stop::End,
                None => {
                    let byte = bytes[seen];
                    seen += 1;
                    match self.take_header_byte(byte) {
                        Ok(Some(frame)) => break Stop::Frame(frame),
                        Ok(None) => {}
                        Err(violation) => self.end = Some(End::Violation(violation)),
                    }
                }
            }
        };
        Inspection { stop, frame_start, seen }
    }

    /// Returns the frame once its length is known.
    fn take_header_byte(&mut self, byte: u8) -> Result<Option<DeclaredFrame>, Violation> {
        match self.decoder.decode(byte)? {
            Decoded::Incomplete => Ok(None),
            Decoded::Head(head) => self.check_sequence(head).map(|()| None),
            Decoded::Length(length) => self.declare(self.decoder.head(), length).map(Some),
        }
    }

    /// A continuation needs a message to continue, and a new message must not begin inside another.
    fn check_sequence(&self, head: Head) -> Result<(), Violation> {
        let is_allowed = match head.opcode {
            Opcode::Continuation => self.open_message.is_some(),
            Opcode::Text | Opcode::Binary => self.open_message.is_none(),
            Opcode::Close | Opcode::Ping | Opcode::Pong => true,
        };
        if is_allowed { Ok(()) } else { Err(Violation::Protocol) }
    }

    /// Counts a frame of `length` payload bytes towards its message.
    fn declare(&mut self, Head { opcode, fin }: Head, length: u64) -> Result<DeclaredFrame, Violation> {
        if opcode.is_control() {
            return Ok(DeclaredFrame { starts_message: false, fin, message_bytes: 0 });
        }
        let starts_message = self.open_message.is_none();
        let message_bytes = self.open_message.unwrap_or(0).saturating_add(length);
        if message_bytes > self.max_message {
            return Err(Violation::FrameTooLarge);
        }
        self.open_message = (!fin).then_some(message_bytes);
        Ok(DeclaredFrame { starts_message, fin, message_bytes })
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
            (Ok(short @ 0..=125), _) => bytes.push(0x80 | short),
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

    /// What a guard reports of a stream of bytes.
    #[derive(Debug, Default, PartialEq)]
    struct Verdict {
        frames: Vec<DeclaredFrame>,
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
                let inspection = guard.inspect(&piece[seen..]);
                if inspection.frame_start > 0 {
                    frame_start = offset + seen + inspection.frame_start;
                }
                seen += inspection.seen;
                match inspection.stop {
                    Stop::End => break,
                    Stop::Frame(frame) => verdict.frames.push(frame),
                    Stop::Closed => verdict.closed = true,
                    Stop::Violation(violation) => verdict.violation = Some(violation),
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
        let told: Vec<_> = verdict.frames.iter().map(|f| (f.starts_message, f.fin, f.message_bytes)).collect();
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
    fn framing_violations_are_protocol_errors() {
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
            guard.is_between_messages()
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
