//! Envelopes, which carry ciphertext from one device to another, and the rules of sending.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
pub use sealwire_protocol::limits::{MAX_CONTENT, TTL_DEFAULT};
use uuid::Uuid;

use super::{DeviceId, MessageId, Refusal, Timestamp, UserId};

/// How long a message id is remembered, so that repeats are recognized.
pub const MESSAGE_ID_RETENTION: Duration = Duration::from_hours(24);

/// A message for one device: its sender and opaque content.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The message id, chosen by the sender; the same in the envelopes for all devices.
    pub message: MessageId,
    /// The sending user.
    pub from_user: UserId,
    /// The sending device.
    pub from_device: DeviceId,
    /// The type of the content, as a number that clients define.
    pub kind: u8,
    /// Ciphertext.
    pub content: Bytes,
    /// When the server accepted the message.
    pub accepted_at: Timestamp,
}

impl std::fmt::Debug for Envelope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}: {} bytes", self.message, self.from_device, self.content.len())
    }
}

/// An envelope in a send request.
#[derive(Clone, PartialEq, Eq)]
pub struct OutgoingEnvelope {
    /// The receiving device.
    pub device: DeviceId,
    /// See [`Envelope::kind`].
    pub kind: u8,
    /// Ciphertext: 1 to [`MAX_CONTENT`] bytes.
    pub content: Bytes,
}

impl std::fmt::Debug for OutgoingEnvelope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes for {}", self.content.len(), self.device)
    }
}

impl OutgoingEnvelope {
    /// A hash of type and content, by which repeats are recognized.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        *blake3::Hasher::new().update(&[self.kind]).update(&self.content).finalize().as_bytes()
    }
}

/// The outcome of a send for one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecipientOutcome {
    /// The receiving device.
    pub device: DeviceId,
    /// See [`OutgoingEnvelope::digest`].
    pub digest: [u8; 32],
    /// Whether it was stored; if not, the mailbox was full.
    pub stored: bool,
}

impl RecipientOutcome {
    const BYTES: usize = 16 + 32 + 1;

    /// Encodes outcomes for storage: per device 16 bytes of id, 32 bytes of digest and one byte for `stored`,
    /// concatenated.
    #[must_use]
    pub fn encode(outcome: &[Self]) -> Vec<u8> {
        let one = |sent: &Self| [&sent.device.0.as_bytes()[..], &sent.digest, &[u8::from(sent.stored)]].concat();
        outcome.iter().flat_map(one).collect()
    }

    /// Reads what [`Self::encode`] wrote; `None` for any other bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Vec<Self>> {
        let (all, rest) = bytes.as_chunks::<{ Self::BYTES }>();
        let one = |bytes: &[u8; Self::BYTES]| {
            let device = DeviceId(Uuid::from_slice(&bytes[..16]).ok()?);
            Some(Self { device, digest: bytes[16..48].try_into().ok()?, stored: bytes[48] == 1 })
        };
        if rest.is_empty() { all.iter().map(one).collect() } else { None }
    }
}

/// A device of the receiving user.
#[derive(Clone, Copy, Debug)]
pub struct Recipient {
    /// The device.
    pub device: DeviceId,
    /// Whether a message has to name it. A device whose signed prekey has expired may be left out, because no session
    /// can be opened with it.
    pub required: bool,
}

/// Checks that a message names each required recipient once, except those that it skips, and names only recipients. The
/// sending device is not a recipient. If there are recipients, at least one must be named or skipped; if there are none,
/// an empty message is valid.
///
/// # Errors
/// `devices_mismatch`
pub fn check_devices(
    recipients: &[Recipient],
    sender: DeviceId,
    named: &[OutgoingEnvelope],
    skipped: &[DeviceId],
) -> Result<(), Refusal> {
    let mut expected: BTreeSet<DeviceId> = recipients.iter().map(|recipient| recipient.device).collect();
    expected.remove(&sender);
    let all = expected.len();
    for device in skipped {
        expected.remove(device);
    }
    let mut extra = BTreeSet::new();
    for OutgoingEnvelope { device, .. } in named {
        if !expected.remove(device) {
            extra.insert(*device);
        }
    }
    let is_nothing_named = expected.len() == all;
    let required =
        |device: &DeviceId| is_nothing_named || recipients.iter().any(|one| one.device == *device && one.required);
    let missing: Vec<DeviceId> = expected.into_iter().filter(required).collect();
    if missing.is_empty() && extra.is_empty() {
        Ok(())
    } else {
        Err(Refusal::DevicesMismatch { missing, extra: extra.into_iter().collect() })
    }
}

/// Maximum size of a mailbox.
#[derive(Clone, Copy, Debug)]
pub struct MailboxBounds {
    /// Limit for all senders together.
    pub all: MailboxSize,
    /// Limit for each sending user.
    pub per_sender: MailboxSize,
    /// Limit for all strangers together; `None` if there is none. They may always have one envelope.
    pub strangers: Option<MailboxSize>,
}

/// The size of a mailbox, or of a share of it: number and bytes of envelopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MailboxSize {
    /// Number of envelopes.
    pub envelopes: u64,
    /// Bytes of their content.
    pub bytes: u64,
}

impl MailboxSize {
    /// A share of this size, such as 0.25, rounded down, but at least one envelope; `None` for a share of 0.
    #[must_use]
    pub fn share(self, share: f64) -> Option<Self> {
        // A product such as 0.29 * 100 may be a little too small.
        let part = |whole: u64| {
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "sizes are far below 2^52, and a share is between 0 and 1"
            )]
            let part = (whole as f64 * share + 1e-6).floor() as u64;
            part
        };
        (share > 0.0).then(|| Self { envelopes: part(self.envelopes).max(1), bytes: part(self.bytes) })
    }

    /// The size with one more envelope of `bytes`.
    #[must_use]
    pub fn plus(self, bytes: usize) -> Self {
        Self { envelopes: self.envelopes + 1, bytes: self.bytes.saturating_add(bytes as u64) }
    }

    /// The size with one envelope of `bytes` less.
    #[must_use]
    pub fn minus(self, bytes: u64) -> Self {
        Self { envelopes: self.envelopes.saturating_sub(1), bytes: self.bytes.saturating_sub(bytes) }
    }

    /// The smaller of both numbers each.
    #[must_use]
    pub fn at_most(self, other: Self) -> Self {
        Self { envelopes: self.envelopes.min(other.envelopes), bytes: self.bytes.min(other.bytes) }
    }

    /// Whether both numbers are within `bound`.
    #[must_use]
    pub fn fits(self, bound: Self) -> bool {
        self.envelopes <= bound.envelopes && self.bytes <= bound.bytes
    }
}

/// The state of a mailbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MailboxStatus {
    /// The number of the newest envelope ever stored; 0 if there was none.
    pub head: i64,
    /// Number of envelopes stored now.
    pub waiting: u64,
    /// Number of envelopes that ever expired before they were acked.
    pub expired_total: u64,
}

/// Which envelopes to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MailPageRequest {
    /// Only envelopes with greater numbers.
    pub after: i64,
    /// Only envelopes with this number or a smaller one.
    pub through: i64,
    /// Maximum number of envelopes.
    pub envelopes: u32,
    /// Once the content read so far reaches this number of bytes, no further envelope is read.
    pub bytes: usize,
}

/// Envelopes of a mailbox, in order of their numbers.
#[derive(Debug, Default)]
pub struct MailPage {
    /// Envelopes with their numbers. Acked envelopes leave gaps.
    pub envelopes: Vec<(i64, Arc<Envelope>)>,
    /// Whether these are all that the request asked for.
    pub complete: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(n: u128) -> DeviceId {
        DeviceId(Uuid::from_u128(n))
    }

    fn to(devices: &[u128]) -> Vec<OutgoingEnvelope> {
        devices
            .iter()
            .map(|n| OutgoingEnvelope { device: device(*n), kind: 0, content: Bytes::from_static(b"x") })
            .collect()
    }

    fn recipients(devices: &[(u128, bool)]) -> Vec<Recipient> {
        devices.iter().map(|(n, required)| Recipient { device: device(*n), required: *required }).collect()
    }

    fn mismatch(outcome: Result<(), Refusal>) -> (Vec<DeviceId>, Vec<DeviceId>) {
        match outcome {
            Err(Refusal::DevicesMismatch { missing, extra }) => (missing, extra),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_message_names_every_device_but_the_sending_one() {
        let all = recipients(&[(1, true), (2, true), (3, true)]);
        assert!(check_devices(&all, device(9), &to(&[3, 1, 2]), &[]).is_ok());
        assert!(check_devices(&all, device(2), &to(&[1, 3]), &[]).is_ok());
        assert_eq!(mismatch(check_devices(&all, device(9), &to(&[2]), &[])), (vec![device(1), device(3)], vec![]));
        assert_eq!(mismatch(check_devices(&all, device(2), &to(&[1, 2, 3]), &[])), (vec![], vec![device(2)]));
        let both = mismatch(check_devices(&all, device(9), &to(&[1, 1, 2, 7, 7]), &[]));
        assert_eq!(both, (vec![device(3)], vec![device(1), device(7)]));
    }

    #[test]
    fn a_device_that_is_not_required_may_be_left_out_or_named() {
        let some = recipients(&[(1, true), (2, false)]);
        assert!(check_devices(&some, device(9), &to(&[1]), &[]).is_ok());
        assert!(check_devices(&some, device(9), &to(&[1, 2]), &[]).is_ok());
        assert!(check_devices(&[], device(9), &to(&[]), &[]).is_ok());
    }

    #[test]
    fn at_least_one_device_is_named_or_skipped() {
        let optional = recipients(&[(1, false)]);
        let nothing = mismatch(check_devices(&optional, device(9), &to(&[]), &[device(7)]));
        assert_eq!(nothing, (vec![device(1)], vec![]), "unknown ids in skip do not count");
        assert!(check_devices(&optional, device(9), &to(&[]), &[device(1)]).is_ok());
        assert!(check_devices(&optional, device(1), &to(&[]), &[]).is_ok(), "the sending device is the only one");
    }

    #[test]
    fn a_skipped_device_is_neither_missing_nor_sent_to() {
        let all = recipients(&[(1, true), (2, true), (3, true)]);
        assert!(check_devices(&all, device(9), &to(&[1, 2]), &[device(3), device(7)]).is_ok());
        assert!(check_devices(&all, device(9), &to(&[]), &[device(1), device(2), device(3)]).is_ok());
        let still = mismatch(check_devices(&all, device(9), &to(&[1]), &[device(3)]));
        assert_eq!(still, (vec![device(2)], vec![]));
    }

    #[test]
    fn encoded_outcomes_decode_to_the_same() {
        let sent = |n: u8, stored| RecipientOutcome { device: device(n.into()), digest: [n; 32], stored };
        let outcome = vec![sent(1, true), sent(2, false)];
        let bytes = RecipientOutcome::encode(&outcome);
        assert_eq!(RecipientOutcome::decode(&bytes), Some(outcome));
        assert_eq!(RecipientOutcome::decode(&[]), Some(vec![]));
        assert_eq!(RecipientOutcome::decode(&bytes[1..]), None);
    }

    #[test]
    fn a_share_of_a_mailbox_is_rounded_down_to_at_least_one_envelope() {
        let whole = MailboxSize { envelopes: 10, bytes: 100 };
        let size = |envelopes, bytes| Some(MailboxSize { envelopes, bytes });
        assert_eq!(whole.share(0.25), size(2, 25));
        assert_eq!(whole.share(0.29), size(2, 29));
        assert_eq!(whole.share(0.01), size(1, 1));
        assert_eq!(whole.share(1.0), size(10, 100));
        assert_eq!(whole.share(0.0), None);
    }

    #[test]
    fn digests_differ_if_type_or_content_differs() {
        let one = OutgoingEnvelope { device: device(1), kind: 1, content: Bytes::from_static(b"abc") };
        assert_eq!(one.digest(), one.clone().digest());
        assert_ne!(one.digest(), OutgoingEnvelope { kind: 2, ..one.clone() }.digest());
        assert_ne!(one.digest(), OutgoingEnvelope { content: Bytes::from_static(b"abd"), ..one }.digest());
    }
}
