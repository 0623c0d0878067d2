//! The encoding of signals between nodes: MessagePack, with fields identified by their order and variants by their
//! names. Nodes of two versions may run side by side, so each version must be able to read the other's payloads.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::{DeviceId, Envelope, KeyKind, MessageId, SessionId, Signal, Timestamp, UserId};

/// The encoded form of a [`Signal`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SignalPayload {
    PrekeysLow { kind: KeyKind, remaining: u32, pool_version: i64 },
    DevicesChanged { added: Vec<DeviceId>, removed: Vec<DeviceId> },
    LoggedOut { sessions: Vec<SessionId> },
    DeviceRevoked,
    AccountDeleted,
    Displaced { epoch: i64 },
    Mail { seq: i64, envelope: Option<EnvelopePayload> },
    Ephemeral(EnvelopePayload),
}

/// The encoded form of an [`Envelope`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvelopePayload {
    message: MessageId,
    from_user: UserId,
    from_device: DeviceId,
    kind: u8,
    content: Bytes,
    accepted_at: Timestamp,
}

impl From<&Signal> for SignalPayload {
    fn from(signal: &Signal) -> Self {
        match signal {
            Signal::PrekeysLow { kind, remaining, pool_version } => {
                Self::PrekeysLow { kind: *kind, remaining: *remaining, pool_version: *pool_version }
            }
            Signal::DevicesChanged { added, removed } => {
                Self::DevicesChanged { added: added.clone(), removed: removed.clone() }
            }
            Signal::LoggedOut { sessions } => Self::LoggedOut { sessions: sessions.clone() },
            Signal::DeviceRevoked => Self::DeviceRevoked,
            Signal::AccountDeleted => Self::AccountDeleted,
            Signal::Displaced { epoch } => Self::Displaced { epoch: *epoch },
            Signal::Mail { seq, envelope } => {
                Self::Mail { seq: *seq, envelope: envelope.as_deref().map(EnvelopePayload::from) }
            }
            Signal::Ephemeral(envelope) => Self::Ephemeral(EnvelopePayload::from(&**envelope)),
        }
    }
}

impl From<SignalPayload> for Signal {
    fn from(payload: SignalPayload) -> Self {
        match payload {
            SignalPayload::PrekeysLow { kind, remaining, pool_version } => {
                Self::PrekeysLow { kind, remaining, pool_version }
            }
            SignalPayload::DevicesChanged { added, removed } => Self::DevicesChanged { added, removed },
            SignalPayload::LoggedOut { sessions } => Self::LoggedOut { sessions },
            SignalPayload::DeviceRevoked => Self::DeviceRevoked,
            SignalPayload::AccountDeleted => Self::AccountDeleted,
            SignalPayload::Displaced { epoch } => Self::Displaced { epoch },
            SignalPayload::Mail { seq, envelope } => {
                Self::Mail { seq, envelope: envelope.map(|envelope| Envelope::from(envelope).into()) }
            }
            SignalPayload::Ephemeral(envelope) => Self::Ephemeral(Envelope::from(envelope).into()),
        }
    }
}

impl From<&Envelope> for EnvelopePayload {
    fn from(envelope: &Envelope) -> Self {
        Self {
            message: envelope.message,
            from_user: envelope.from_user,
            from_device: envelope.from_device,
            kind: envelope.kind,
            // Shares the buffer.
            content: envelope.content.clone(),
            accepted_at: envelope.accepted_at,
        }
    }
}

impl From<EnvelopePayload> for Envelope {
    fn from(payload: EnvelopePayload) -> Self {
        let EnvelopePayload { message, from_user, from_device, kind, content, accepted_at } = payload;
        Self { message, from_user, from_device, kind, content, accepted_at }
    }
}

/// Encodes the signals of one publish, together with the publishing node.
///
/// # Errors
/// If a signal cannot be encoded. This does not happen: every signal can.
pub fn encode(node: Uuid, signals: &[Signal]) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    let payloads: Vec<SignalPayload> = signals.iter().map(SignalPayload::from).collect();
    rmp_serde::to_vec(&(node, payloads))
}

/// Decodes a payload into the publishing node and its signals.
///
/// # Errors
/// If the payload is from a node of another version and contains a signal that this version does not know.
pub fn decode(payload: &[u8]) -> Result<(Uuid, Vec<Signal>), rmp_serde::decode::Error> {
    let (node, payloads) = rmp_serde::from_slice::<(Uuid, Vec<SignalPayload>)>(payload)?;
    Ok((node, payloads.into_iter().map(Signal::from).collect()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const NODE: Uuid = Uuid::from_u128(1);

    fn every_signal() -> Vec<Signal> {
        let device = |n| DeviceId(Uuid::from_u128(n));
        let envelope = Arc::new(Envelope {
            message: MessageId(Uuid::from_u128(2)),
            from_user: UserId(Uuid::from_u128(3)),
            from_device: device(4),
            kind: 5,
            content: vec![0xff; 300].into(),
            accepted_at: Timestamp::parse("2026-01-01T00:00:00Z").unwrap(),
        });
        vec![
            Signal::PrekeysLow { kind: KeyKind::PqOneTime, remaining: 7, pool_version: 8 },
            Signal::DevicesChanged { added: vec![device(9)], removed: vec![] },
            Signal::LoggedOut { sessions: vec![SessionId(Uuid::from_u128(10))] },
            Signal::DeviceRevoked,
            Signal::AccountDeleted,
            Signal::Displaced { epoch: 11 },
            Signal::Mail { seq: 12, envelope: None },
            Signal::Mail { seq: 13, envelope: Some(envelope.clone()) },
            Signal::Ephemeral(envelope),
        ]
    }

    #[test]
    fn every_signal_survives_encoding_and_decoding() {
        let bytes = encode(NODE, &every_signal()).unwrap();
        assert!(bytes.len() < 1200, "content is encoded as bytes: {}", bytes.len());
        assert_eq!(decode(&bytes).unwrap(), (NODE, every_signal()));
    }

    /// Nodes of earlier versions write and read these bytes.
    #[test]
    fn the_encoding_is_that_of_earlier_versions() {
        let id = |n: u8| format!("d924{}", hex(format!("00000000-0000-0000-0000-0000000000{n:02x}").as_bytes()));
        let word = |text: &str| format!("{:02x}{}", 0xa0 | text.len(), hex(text.as_bytes()));
        let time = word("2026-01-01T00:00:00.000000Z");
        let content = format!("c5012c{}", "ff".repeat(300));
        let envelope = format!("96{}{}{}05{content}{time}", id(2), id(3), id(4));
        let signals = [
            format!("81{}93{}0708", word("PrekeysLow"), word("pq_one_time")),
            format!("81{}9291{}90", word("DevicesChanged"), id(9)),
            format!("81{}9191{}", word("LoggedOut"), id(10)),
            word("DeviceRevoked"),
            word("AccountDeleted"),
            format!("81{}910b", word("Displaced")),
            format!("81{}920cc0", word("Mail")),
            format!("81{}920d{envelope}", word("Mail")),
            format!("81{}{envelope}", word("Ephemeral")),
        ];
        let node = format!("c410{}01", "00".repeat(15));
        assert_eq!(hex(&encode(NODE, &every_signal()).unwrap()), format!("92{node}99{}", signals.concat()));
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }
}
