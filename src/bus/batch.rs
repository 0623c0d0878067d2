//! Signal batches: the signals for one device in one publish to other nodes, in order.

use crate::domain::Signal;

/// Maximum number of bytes of stored content in one batch. The receiving node reads other envelopes from the store.
const MAX_STORED_BYTES: usize = 16 * 1024;

/// Signals for one device.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SignalBatch {
    signals: Vec<Signal>,
    /// Bytes of content of stored envelopes.
    stored_bytes: usize,
    /// Bytes of content, ephemeral messages included.
    bytes: usize,
}

impl From<Signal> for SignalBatch {
    fn from(signal: Signal) -> Self {
        let mut batch = Self::default();
        batch.add(signal, true);
        batch
    }
}

impl SignalBatch {
    /// Adds a signal. A stored envelope is included if `with_envelope` and it fits; otherwise only its sequence number
    /// is. Of several numbers in a row only the last is kept.
    pub fn add(&mut self, signal: Signal, with_envelope: bool) {
        let signal = match signal {
            Signal::Mail { seq, envelope } => {
                let fits = |bytes| with_envelope && self.stored_bytes + bytes <= MAX_STORED_BYTES;
                let envelope = envelope.filter(|envelope| fits(envelope.content.len()));
                if let (None, Some(Signal::Mail { seq: last, envelope: None })) = (&envelope, self.signals.last_mut()) {
                    *last = seq;
                    return;
                }
                let bytes = envelope.as_ref().map_or(0, |envelope| envelope.content.len());
                self.stored_bytes += bytes;
                self.bytes += bytes;
                Signal::Mail { seq, envelope }
            }
            Signal::Ephemeral(envelope) => {
                self.bytes += envelope.content.len();
                Signal::Ephemeral(envelope)
            }
            signal => signal,
        };
        self.signals.push(signal);
    }

    /// Removes all content: of stored envelopes only the numbers are kept, and ephemeral messages are dropped. Returns
    /// how many were dropped.
    pub fn drop_content(&mut self) -> usize {
        let mut dropped = 0;
        for signal in std::mem::take(self).signals {
            if matches!(signal, Signal::Ephemeral(_)) {
                dropped += 1;
            } else {
                self.add(signal, false);
            }
        }
        dropped
    }

    /// The number of bytes of content.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The signals, in the order in which to deliver them.
    pub fn signals(&self) -> &[Signal] {
        &self.signals
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;

    use super::*;
    use crate::domain::{DeviceId, Envelope, MessageId, Timestamp, UserId};

    fn envelope(bytes: usize) -> Arc<Envelope> {
        Arc::new(Envelope {
            message: MessageId(Uuid::nil()),
            from_user: UserId(Uuid::nil()),
            from_device: DeviceId(Uuid::nil()),
            kind: 0,
            content: vec![7; bytes].into(),
            accepted_at: Timestamp::parse("2026-01-01T00:00:00Z").unwrap(),
        })
    }

    fn mail(seq: i64, bytes: usize) -> Signal {
        Signal::Mail { seq, envelope: Some(envelope(bytes)) }
    }

    fn number(seq: i64) -> Signal {
        Signal::Mail { seq, envelope: None }
    }

    #[test]
    fn an_envelope_is_included_if_it_is_wanted_and_fits() {
        let mut batch = SignalBatch::default();
        batch.add(mail(1, 10_000), true);
        batch.add(mail(2, 10_000), true);
        batch.add(mail(3, 6_384), true);
        batch.add(mail(4, 1), true);
        batch.add(mail(5, 1), false);
        assert_eq!(batch.signals(), [mail(1, 10_000), number(2), mail(3, 6_384), number(5)]);
        assert_eq!(batch.bytes(), MAX_STORED_BYTES);
    }

    #[test]
    fn ephemeral_messages_keep_their_place_among_stored_mail() {
        let mut batch = SignalBatch::default();
        let ephemeral = Signal::Ephemeral(envelope(20_000));
        for signal in [mail(1, 10), ephemeral.clone(), mail(2, 10), mail(3, 10)] {
            batch.add(signal, false);
        }
        assert_eq!(batch.signals(), [number(1), ephemeral, number(3)]);
        assert_eq!(batch.bytes(), 20_000);
        assert_eq!(batch.drop_content(), 1);
        assert_eq!((batch.signals(), batch.bytes()), (&[number(3)][..], 0));
    }
}
