//! Why the server closes a socket.

use sealwire_protocol::{CloseCode, ProtocolFault};

use super::transport::Cutoff;

/// The code and the reason text of a Close frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    /// The close code.
    pub code: CloseCode,
    /// The reason text: that of the code, or one that names the violated rule.
    pub reason: &'static str,
}

impl From<CloseCode> for Closing {
    fn from(code: CloseCode) -> Self {
        Self { code, reason: code.reason() }
    }
}

impl From<ProtocolFault> for Closing {
    fn from(fault: ProtocolFault) -> Self {
        Self { code: CloseCode::ProtocolError, reason: fault.reason() }
    }
}

impl From<Cutoff> for Closing {
    fn from(cutoff: Cutoff) -> Self {
        let (code, reason) = match cutoff {
            Cutoff::MessageTooSlow => (CloseCode::Idle, "idle: message too slow"),
            Cutoff::MessageGivenUp => (CloseCode::Unavailable, "unavailable: message given up"),
            Cutoff::PlaceGivenUp => (CloseCode::Unavailable, "unavailable: place given up"),
            Cutoff::NotReading => (CloseCode::SlowConsumer, "slow consumer: queue does not move"),
            Cutoff::QueueGivenUp => (CloseCode::SlowConsumer, "slow consumer: queue given up"),
        };
        Self { code, reason }
    }
}
