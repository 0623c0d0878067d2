//! Encodes, authenticates and decodes the payloads that nodes publish: a version byte, the id of the publishing node
//! (16 bytes), the time by the clock of the database (microseconds since 1970, 8 bytes, big-endian), the content, and
//! an authentication tag (32 bytes) over the channel and everything before it.
//!
//! The content is MessagePack, with fields identified by their order and variants by their names. Nodes of two versions
//! may run side by side, so each version must be able to read the other's content.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use super::keys::{BusKeys, Publisher};
use crate::domain::{
    ApprovalId, ApprovalKind, DeviceId, Envelope, KeyKind, MessageId, PendingApproval, SessionId, Signal, Timestamp,
    UserId,
};

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
    // Nodes without migration 6 drop a payload with this variant. Only signals about mail share a payload, so no other
    // signal is lost with it.
    SessionsChanged { device: DeviceId, opened: Vec<SessionId>, ended: Vec<SessionId> },
    ApprovalRequested(ApprovalPayload),
}

/// The encoded form of a [`PendingApproval`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalPayload {
    id: ApprovalId,
    kind: ApprovalKind,
    device_name: Option<String>,
    client_network: Option<String>,
    created_at: Timestamp,
    decides_at: Timestamp,
}

impl From<&PendingApproval> for ApprovalPayload {
    fn from(approval: &PendingApproval) -> Self {
        let PendingApproval { id, kind, device_name, client_network, created_at, decides_at } = approval.clone();
        Self { id, kind, device_name, client_network, created_at, decides_at }
    }
}

impl From<ApprovalPayload> for PendingApproval {
    fn from(payload: ApprovalPayload) -> Self {
        let ApprovalPayload { id, kind, device_name, client_network, created_at, decides_at } = payload;
        Self { id, kind, device_name, client_network, created_at, decides_at }
    }
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
            Signal::SessionsChanged { device, opened, ended } => {
                Self::SessionsChanged { device: *device, opened: opened.clone(), ended: ended.clone() }
            }
            Signal::ApprovalRequested(approval) => Self::ApprovalRequested(ApprovalPayload::from(&**approval)),
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
            SignalPayload::SessionsChanged { device, opened, ended } => Self::SessionsChanged { device, opened, ended },
            SignalPayload::ApprovalRequested(approval) => Self::ApprovalRequested(Box::new(approval.into())),
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

/// The version of the payload format.
const VERSION: u8 = 1;
/// Length of the authentication tag.
const TAG_BYTES: usize = 32;
/// Length of everything before the content: version, node and time.
const HEAD_BYTES: usize = 1 + 16 + 8;
/// Older payloads are dropped, so that a recorded payload cannot be replayed later.
const MAX_AGE: Duration = Duration::from_secs(30);

/// Why a payload is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PayloadError {
    /// Its tag is missing or was not made with this deployment's key.
    #[error("not authentic: another program publishes on this deployment's channels")]
    NotAuthentic,
    /// It was published more than 30 seconds ago.
    #[error("published more than 30 seconds ago")]
    TooOld,
    /// Its format, or a signal in it, is unknown: the publishing node has another version.
    #[error("unknown format: it comes from a node of another version")]
    OtherVersion,
}

/// Encodes the signals of one publish on a channel.
///
/// # Errors
/// If MessagePack cannot encode a signal. It can encode all existing signals.
pub fn encode_signals(
    keys: &BusKeys,
    channel: &str,
    publisher: Publisher,
    signals: &[Signal],
) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    let payloads: Vec<SignalPayload> = signals.iter().map(SignalPayload::from).collect();
    Ok(seal(keys, channel, publisher, &rmp_serde::to_vec(&payloads)?))
}

/// Decodes the signals of a publish on a channel, with the publishing node.
///
/// # Errors
/// If the payload is not authentic, too old, or of another version.
pub fn decode_signals(
    keys: &BusKeys,
    channel: &str,
    payload: &[u8],
    now: Timestamp,
) -> Result<(Uuid, Vec<Signal>), PayloadError> {
    let (node, content) = open(keys, channel, payload, now)?;
    let payloads: Vec<SignalPayload> = rmp_serde::from_slice(content).map_err(|_| PayloadError::OtherVersion)?;
    Ok((node, payloads.into_iter().map(Signal::from).collect()))
}

/// Encodes the announcement of a node of this deployment.
#[must_use]
pub fn encode_announcement(keys: &BusKeys, publisher: Publisher, deployment: Uuid) -> Vec<u8> {
    seal(keys, &keys.nodes_channel(), publisher, deployment.as_bytes())
}

/// Decodes an announcement into the node and its deployment.
///
/// # Errors
/// If the payload is not authentic, too old, or of another version.
pub fn decode_announcement(keys: &BusKeys, payload: &[u8], now: Timestamp) -> Result<(Uuid, Uuid), PayloadError> {
    let (node, content) = open(keys, &keys.nodes_channel(), payload, now)?;
    Ok((node, Uuid::from_slice(content).map_err(|_| PayloadError::OtherVersion)?))
}

fn seal(keys: &BusKeys, channel: &str, publisher: Publisher, content: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(HEAD_BYTES + content.len() + TAG_BYTES);
    payload.push(VERSION);
    payload.extend_from_slice(publisher.node.as_bytes());
    payload.extend_from_slice(&publisher.at.as_micros().to_be_bytes());
    payload.extend_from_slice(content);
    let tag = keys.tag(channel, &payload);
    payload.extend_from_slice(tag.as_bytes());
    payload
}

/// Checks a payload, and returns the publishing node and the content.
fn open<'p>(
    keys: &BusKeys,
    channel: &str,
    payload: &'p [u8],
    now: Timestamp,
) -> Result<(Uuid, &'p [u8]), PayloadError> {
    let (sealed, tag) = payload.split_last_chunk::<TAG_BYTES>().ok_or(PayloadError::NotAuthentic)?;
    // `blake3::Hash` compares in constant time.
    if keys.tag(channel, sealed) != *tag {
        return Err(PayloadError::NotAuthentic);
    }
    let (head, content) = sealed.split_first_chunk::<HEAD_BYTES>().ok_or(PayloadError::OtherVersion)?;
    if head[0] != VERSION {
        return Err(PayloadError::OtherVersion);
    }
    let node = Uuid::from_slice(&head[1..17]).map_err(|_| PayloadError::OtherVersion)?;
    let at = head[17..].try_into().map(i64::from_be_bytes).map_err(|_| PayloadError::OtherVersion)?;
    if at < now.before(MAX_AGE).as_micros() || at > (now + MAX_AGE).as_micros() {
        return Err(PayloadError::TooOld);
    }
    Ok((node, content))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::otp::ServerSecret;

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
            Signal::SessionsChanged {
                device: device(14),
                opened: vec![SessionId(Uuid::from_u128(15))],
                ended: vec![SessionId(Uuid::from_u128(16))],
            },
            Signal::ApprovalRequested(Box::new(PendingApproval {
                id: ApprovalId(Uuid::from_u128(17)),
                kind: ApprovalKind::Device,
                device_name: Some("tablet".to_owned()),
                client_network: None,
                created_at: Timestamp::parse("2026-01-01T00:00:00Z").unwrap(),
                decides_at: Timestamp::parse("2026-01-01T00:00:00Z").unwrap(),
            })),
        ]
    }

    fn keys() -> BusKeys {
        BusKeys::new(&ServerSecret::new([7; 32]))
    }

    fn publisher() -> Publisher {
        Publisher { node: NODE, at: Timestamp::parse("2026-01-01T00:00:00Z").unwrap() }
    }

    #[test]
    fn every_signal_survives_encoding_and_decoding() {
        let bytes = encode_signals(&keys(), "channel", publisher(), &every_signal()).unwrap();
        assert!(bytes.len() < 1450, "content is encoded as bytes: {}", bytes.len());
        let decoded = decode_signals(&keys(), "channel", &bytes, publisher().at);
        assert_eq!(decoded, Ok((NODE, every_signal())));
    }

    #[test]
    fn an_announcement_names_node_and_deployment() {
        let deployment = Uuid::from_u128(9);
        let bytes = encode_announcement(&keys(), publisher(), deployment);
        assert_eq!(decode_announcement(&keys(), &bytes, publisher().at), Ok((NODE, deployment)));
    }

    #[test]
    fn a_payload_of_another_deployment_channel_or_content_is_not_authentic() {
        let bytes = encode_signals(&keys(), "channel", publisher(), &every_signal()).unwrap();
        let foreign = BusKeys::new(&ServerSecret::new([8; 32]));
        let decode = |keys: &BusKeys, channel: &str, bytes: &[u8]| {
            decode_signals(keys, channel, bytes, publisher().at).map(|(node, _)| node)
        };
        assert_eq!(decode(&foreign, "channel", &bytes), Err(PayloadError::NotAuthentic));
        assert_eq!(decode(&keys(), "other", &bytes), Err(PayloadError::NotAuthentic));
        for place in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            assert_eq!(decode(&keys(), "channel", &changed), Err(PayloadError::NotAuthentic), "byte {place}");
            assert_eq!(decode(&keys(), "channel", &bytes[..place]), Err(PayloadError::NotAuthentic));
        }
    }

    #[test]
    fn a_signal_of_a_newer_version_is_dropped_as_such() {
        let content = rmp_serde::to_vec(&["SomethingNew"]).unwrap();
        let bytes = seal(&keys(), "channel", publisher(), &content);
        assert_eq!(decode_signals(&keys(), "channel", &bytes, publisher().at), Err(PayloadError::OtherVersion));
    }

    #[test]
    fn a_payload_is_dropped_after_30_seconds() {
        let at = publisher().at;
        let bytes = encode_signals(&keys(), "channel", publisher(), &[Signal::DeviceRevoked]).unwrap();
        let after = |age| decode_signals(&keys(), "channel", &bytes, at + age).map(|(node, _)| node);
        assert_eq!(after(Duration::from_secs(30)), Ok(NODE));
        assert_eq!(after(Duration::from_micros(30_000_001)), Err(PayloadError::TooOld));
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
            format!("81{}93{}91{}91{}", word("SessionsChanged"), id(14), id(15), id(16)),
            format!("81{}96{}{}{}c0{time}{time}", word("ApprovalRequested"), id(17), word("device"), word("tablet")),
        ];
        let bytes = encode_signals(&keys(), "channel", publisher(), &every_signal()).unwrap();
        let (sealed, _) = bytes.split_last_chunk::<TAG_BYTES>().unwrap();
        let time = publisher().at.as_micros();
        let head = format!("01{}01{time:016x}", "00".repeat(15));
        assert_eq!(hex(sealed), format!("{head}9b{}", signals.concat()));
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }
}
