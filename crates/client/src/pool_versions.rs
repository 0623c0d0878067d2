//! Tells `prekeys.low` events that a publish has overtaken from those that still hold.

use std::sync::atomic::{AtomicI64, Ordering};

use sealwire_protocol::keys::{KeyKind, PublishKeysReply};

/// For each pool, the version after the last publish of this client that changed it.
///
/// The server counts the changes of both pools together, so an event with an older version than that of a publish to the
/// other pool may still hold.
#[derive(Debug, Default)]
pub(crate) struct PoolVersions([AtomicI64; 2]);

impl PoolVersions {
    pub(crate) fn note_publish(&self, reply: &PublishKeysReply) {
        for (kind, report) in [(KeyKind::OneTime, &reply.one_time), (KeyKind::PqOneTime, &reply.pq_one_time)] {
            if !report.accepted.is_empty() || !report.withdrawn.is_empty() {
                self.of(kind).fetch_max(reply.status.pool_version, Ordering::Relaxed);
            }
        }
    }

    /// Whether an event about this pool is older than the last publish to it.
    pub(crate) fn is_overtaken(&self, kind: KeyKind, pool_version: i64) -> bool {
        pool_version < self.of(kind).load(Ordering::Relaxed)
    }

    fn of(&self, kind: KeyKind) -> &AtomicI64 {
        &self.0[usize::from(kind == KeyKind::PqOneTime)]
    }
}

#[cfg(test)]
mod tests {
    use sealwire_protocol::keys::{KeyIdReport, KeysStatusReply};

    use super::*;

    fn publish(one_time: &[u32], pq_withdrawn: &[u32], pool_version: i64) -> PublishKeysReply {
        let report = |accepted: &[u32], withdrawn: &[u32]| KeyIdReport {
            accepted: accepted.to_vec(),
            duplicate: Vec::new(),
            conflict: Vec::new(),
            already_issued: Vec::new(),
            over_cap: Vec::new(),
            withdrawn: withdrawn.to_vec(),
        };
        let status = KeysStatusReply {
            suite: None,
            identity_key: None,
            signed_prekey: None,
            pq_last_resort: None,
            one_time: 100,
            pq_one_time: 100,
            threshold: 20,
            pool_version,
            digest: None,
        };
        PublishKeysReply { one_time: report(one_time, &[]), pq_one_time: report(&[], pq_withdrawn), status }
    }

    #[test]
    fn only_a_publish_to_the_same_pool_overtakes_an_event() {
        let versions = PoolVersions::default();
        versions.note_publish(&publish(&[1], &[], 2));
        assert!(versions.is_overtaken(KeyKind::OneTime, 1));
        assert!(!versions.is_overtaken(KeyKind::OneTime, 2));
        assert!(!versions.is_overtaken(KeyKind::PqOneTime, 1));
        versions.note_publish(&publish(&[], &[7], 3));
        assert!(!versions.is_overtaken(KeyKind::OneTime, 2), "the other pool was changed");
        assert!(versions.is_overtaken(KeyKind::PqOneTime, 2));
        versions.note_publish(&publish(&[], &[], 9));
        assert!(!versions.is_overtaken(KeyKind::OneTime, 2), "nothing was changed");
    }
}
