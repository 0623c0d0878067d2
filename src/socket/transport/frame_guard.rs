//! Checks inbound WebSocket frames as their bytes are received: the order of fragments (RFC 6455, section 5.4) and the
//! size of messages.
//!
//! The codec of actix-http checks the size of a frame only after it has buffered the whole frame, so a peer could make it
//! use any amount of memory. The guard inspects the bytes first. It reports a violation when a header declares the length,
//! before any byte of that payload is passed on. It stores no payload itself.

use sealwire_protocol::ProtocolFault;

use super::frame_decoder::{Decoded, FrameDecoder, FrameHead, Opcode};

/// Why the bytes of a peer are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A message is larger than the limit, counting all its frames: close code 4505.
    #[error("the message is too large")]
    FrameTooLarge,
    /// The bytes violate the framing rules of RFC 6455: close code 4504.
    #[error("{}", .0.reason())]
    Protocol(ProtocolFault),
}

impl From<ProtocolFault> for Violation {
    fn from(fault: ProtocolFault) -> Self {
        Self::Protocol(fault)
    }
}

/// A frame whose header has declared its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeclaredFrame {
    /// Whether it is the first frame of a data message. False for control frames and continuations.
    pub starts_message: bool,
    /// Whether it is the last frame of its message. True for control frames, which are messages of their own.
    pub fin: bool,
    /// Payload bytes of its data message, up to and including this frame; 0 for control frames.
    pub message_bytes: u64,
    /// Payload bytes of this frame.
    pub frame_bytes: u64,
}

/// What an inspection stopped at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InspectionResult {
    /// The end of the bytes. All of them may be passed on.
    EndOfBytes,
    /// A frame whose length was just declared. If it has to wait, pass on only the bytes before `frame_start`.
    /// Otherwise continue the inspection after the `seen` bytes.
    Frame(DeclaredFrame),
    /// The end of a Close frame, at `frame_start`. Discard the bytes after it.
    Closed,
    /// A violation in the frame that begins at `frame_start`. Discard the bytes from there on.
    Violation(Violation),
}

/// What [`FrameGuard::inspect`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inspection {
    /// What the inspection stopped at.
    pub result: InspectionResult,
    /// Offset of the current frame in the inspected bytes; 0 if the frame began in earlier bytes. In that case its
    /// first header bytes may have been passed on, but not enough of them for the codec to parse a frame.
    pub frame_start: usize,
    /// The number of bytes inspected. Do not pass them to the guard again.
    pub seen: usize,
}

/// The guard of one connection. The bytes may be split at any position.
#[derive(Debug, Clone)]
pub(super) struct FrameGuard {
    decoder: FrameDecoder,
    max_message: u64,
    /// Payload bytes declared so far by a fragmented data message, until its last frame.
    open_message: Option<u64>,
    terminated: Option<Terminated>,
}

/// Why no more bytes are passed on.
#[derive(Debug, Clone, Copy)]
enum Terminated {
    CloseFrame,
    Violation(Violation),
}

impl FrameGuard {
    /// The guard of a new connection. Messages may have at most `max_message` bytes.
    pub fn new(max_message: u64) -> Self {
        Self { decoder: FrameDecoder::new(), max_message, open_message: None, terminated: None }
    }

    /// The maximum size of a message in bytes.
    pub fn max_message(&self) -> u64 {
        self.max_message
    }

    /// Whether every data message whose length has been declared is complete.
    pub fn is_between_messages(&self) -> bool {
        let in_data_frame = self.decoder.is_past_length() && !self.decoder.head().opcode.is_control();
        self.open_message.is_none() && (self.terminated.is_some() || !in_data_frame)
    }

    /// Whether the next byte begins a message. False inside a frame, even a control frame, and between fragments.
    pub fn is_idle(&self) -> bool {
        self.terminated.is_some() || (self.open_message.is_none() && self.decoder.is_between_frames())
    }

    /// Whether a fragmented message has begun and its last frame has not been declared.
    pub fn is_in_message(&self) -> bool {
        self.open_message.is_some()
    }

    /// Whether a frame whose length has been declared is incomplete.
    pub fn is_in_frame(&self) -> bool {
        self.decoder.is_past_length()
    }

    /// Payload bytes that are missing of the data frame that is being received; 0 between data frames.
    pub fn missing_payload(&self) -> u64 {
        let is_in_data = self.decoder.is_past_length() && !self.decoder.head().opcode.is_control();
        if is_in_data && self.terminated.is_none() { self.decoder.remaining() } else { 0 }
    }

    /// Inspects `bytes` up to the first frame, end or violation. See [`InspectionResult`].
    pub fn inspect(&mut self, bytes: &[u8]) -> Inspection {
        let mut frame_start = 0;
        let mut seen = 0;
        let result = loop {
            match self.terminated {
                Some(Terminated::CloseFrame) => {
                    return Inspection { result: InspectionResult::Closed, frame_start, seen: bytes.len() };
                }
                Some(Terminated::Violation(violation)) => break InspectionResult::Violation(violation),
                None if self.decoder.is_in_payload() => {
                    seen += self.decoder.skip_payload(bytes.len() - seen);
                    if self.decoder.is_in_payload() {
                        break InspectionResult::EndOfBytes;
                    }
                    frame_start = seen;
                    if self.decoder.head().opcode == Opcode::Close {
                        self.terminated = Some(Terminated::CloseFrame);
                    }
                }
                None if seen == bytes.len() => break InspectionResult::EndOfBytes,
                None => {
                    let byte = bytes[seen];
                    seen += 1;
                    match self.take_header_byte(byte) {
                        Ok(Some(frame)) => break InspectionResult::Frame(frame),
                        Ok(None) => {}
                        Err(violation) => self.terminated = Some(Terminated::Violation(violation)),
                    }
                }
            }
        };
        Inspection { result, frame_start, seen }
    }

    /// Decodes a header byte. Returns the frame when the byte completes its length.
    fn take_header_byte(&mut self, byte: u8) -> Result<Option<DeclaredFrame>, Violation> {
        match self.decoder.decode(byte)? {
            Decoded::Incomplete => Ok(None),
            Decoded::Head(head) => self.check_sequence(head).map(|()| None),
            Decoded::Length(length) => self.declare(self.decoder.head(), length).map(Some),
        }
    }

    /// Checks that a continuation follows an incomplete message, and that no message begins inside another.
    fn check_sequence(&self, head: FrameHead) -> Result<(), Violation> {
        match (head.opcode, self.open_message) {
            (Opcode::Continuation, None) => Err(ProtocolFault::Continuation.into()),
            (Opcode::Text | Opcode::Binary, Some(_)) => Err(ProtocolFault::UnfinishedMessage.into()),
            _ => Ok(()),
        }
    }

    /// Adds a frame of `length` payload bytes to its message.
    fn declare(&mut self, FrameHead { opcode, fin }: FrameHead, length: u64) -> Result<DeclaredFrame, Violation> {
        if opcode.is_control() {
            return Ok(DeclaredFrame { starts_message: false, fin, message_bytes: 0, frame_bytes: length });
        }
        let starts_message = self.open_message.is_none();
        let message_bytes = self.open_message.unwrap_or(0).saturating_add(length);
        if message_bytes > self.max_message {
            return Err(Violation::FrameTooLarge);
        }
        self.open_message = (!fin).then_some(message_bytes);
        Ok(DeclaredFrame { starts_message, fin, message_bytes, frame_bytes: length })
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

    /// The header of a masked client frame, with the shortest encoding of `length`.
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

    /// What a guard reports about a stream of bytes.
    #[derive(Debug, Default, PartialEq)]
    struct Report {
        frames: Vec<DeclaredFrame>,
        violation: Option<Violation>,
        closed: bool,
        /// The number of bytes that may be passed on.
        passed: usize,
    }

    fn inspect_all<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Report {
        let mut guard = FrameGuard::new(MAX);
        let mut report = Report::default();
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
                match inspection.result {
                    InspectionResult::EndOfBytes => break,
                    InspectionResult::Frame(frame) => report.frames.push(frame),
                    InspectionResult::Closed => report.closed = true,
                    InspectionResult::Violation(violation) => report.violation = Some(violation),
                }
                if report.closed || report.violation.is_some() {
                    report.passed = frame_start;
                    return report;
                }
            }
            offset += piece.len();
        }
        report.passed = offset;
        report
    }

    fn violation(bytes: &[u8]) -> Option<Violation> {
        inspect_all([bytes]).violation
    }

    #[test]
    fn reports_each_frame_and_the_size_of_its_message() {
        let bytes = [
            frame(0x81, b"hello"),
            frame(0x02, &[7; 200]),
            frame(0x89, b"ping"),
            frame(0x80, &[7; 300]),
            frame(0x82, b""),
        ]
        .concat();
        let report = inspect_all([&bytes[..]]);
        let reported: Vec<_> = report.frames.iter().map(|f| (f.starts_message, f.fin, f.message_bytes)).collect();
        assert_eq!(
            reported,
            [(true, true, 5), (true, false, 200), (false, true, 0), (false, true, 500), (true, true, 0)]
        );
        assert_eq!((report.violation, report.passed), (None, bytes.len()));
    }

    #[test]
    fn the_report_is_the_same_at_every_split_point() {
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
            let whole = inspect_all([&bytes[..]]);
            assert!(whole.closed || whole.violation.is_some());
            for at in 0..=bytes.len() {
                assert_eq!(inspect_all([&bytes[..at], &bytes[at..]]), whole, "split at {at}");
            }
            assert_eq!(inspect_all(bytes.chunks(1)), whole, "byte by byte");
        }
    }

    #[test]
    fn frames_before_a_violation_are_passed_on_and_its_own_bytes_are_not() {
        let bytes = [frame(0x81, b"fine"), header(0x82, MAX + 1)].concat();
        let report = inspect_all([&bytes[..]]);
        assert_eq!(report.violation, Some(Violation::FrameTooLarge));
        assert_eq!(report.passed, frame(0x81, b"fine").len());
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
    fn violations_of_the_framing_rules_are_reported() {
        let unfinished = frame(0x01, b"part");
        let violations = [
            (ProtocolFault::ReservedBits, header(0xc1, 1)),
            (ProtocolFault::UnknownOpcode, header(0x83, 1)),
            (ProtocolFault::UnknownOpcode, header(0x8b, 1)),
            (ProtocolFault::Unmasked, vec![0x81, 1]),
            (ProtocolFault::ControlFrame, header(0x09, 1)),
            (ProtocolFault::ControlFrame, header(0x89, 126)),
            (ProtocolFault::Continuation, header(0x80, 1)),
            (ProtocolFault::UnfinishedMessage, [unfinished, header(0x81, 1)].concat()),
            // A 16-bit length below 126, a 64-bit one below 65,536, and one with its top bit.
            (ProtocolFault::LengthForm, vec![0x81, 0xfe, 0, 125]),
            (ProtocolFault::LengthForm, vec![0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff]),
            (ProtocolFault::LengthForm, vec![0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]),
        ];
        for (fault, bytes) in violations {
            assert_eq!(violation(&bytes), Some(Violation::Protocol(fault)));
        }
    }

    #[test]
    fn bytes_after_a_close_frame_are_ignored() {
        let bytes = [frame(0x88, b""), vec![0xff; 50]].concat();
        let report = inspect_all([&bytes[..]]);
        assert_eq!((report.violation, report.closed, report.passed), (None, true, 6));
    }

    #[test]
    fn a_message_is_incomplete_until_its_last_frame() {
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
        /// Mostly valid frames, some of them damaged, split at random positions.
        #[test]
        fn splitting_does_not_change_the_report(
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
            prop_assert_eq!(inspect_all(pieces), inspect_all([&bytes[..]]));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..2000), size in 1usize..50) {
            prop_assert_eq!(inspect_all(bytes.chunks(size)), inspect_all([&bytes[..]]));
        }
    }
}
