//! Tracks what a client knows about its own keys, so that it is sent each notice once.

use std::time::Duration;

use crate::domain::{
    KeyKind, KeysStatus, Timestamp,
    bundle::{SignedPrekeyStatus, levels_reached},
};

/// How long before a signed prekey expires its client is asked to rotate it.
const ROTATION_NOTICE: Duration = Duration::from_hours(72);

/// The key notices of one connection.
pub struct KeyNotices {
    /// The signed prekey, until the notice that it expires has been sent.
    unannounced: Option<SignedPrekeyStatus>,
    known_pools: [KnownPool; 2],
}

/// What the client knows about a pool of one-time prekeys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct KnownPool {
    pool_version: i64,
    /// The number of low-water levels that the pool has reached.
    levels_reached: i32,
}

fn known_pools(keys: &KeysStatus) -> [KnownPool; 2] {
    [keys.one_time, keys.pq_one_time].map(|count| KnownPool {
        pool_version: keys.pool_version,
        levels_reached: levels_reached(count, keys.threshold),
    })
}

impl KeyNotices {
    /// The state of a client that is being sent `keys` in the welcome.
    pub fn new(keys: &KeysStatus) -> Self {
        Self { unannounced: keys.signed_prekey, known_pools: known_pools(keys) }
    }

    /// Records that the client has published keys, which changed some pools, and was sent this status.
    ///
    /// The version counts changes of both pools. That of a pool that was not changed stays, because a signal for it may
    /// be older than the publish and still be unknown.
    pub fn note_publish(&mut self, keys: &KeysStatus, changed_pools: [bool; 2]) {
        for ((known, published), changed) in self.known_pools.iter_mut().zip(known_pools(keys)).zip(changed_pools) {
            // An equal version means that a signal has overtaken the reply to the publish.
            if changed && published.pool_version > known.pool_version {
                // A publish does not raise the level: if claims lower the pool, their signal does.
                *known = KnownPool { levels_reached: published.levels_reached.min(known.levels_reached), ..published };
            }
        }
    }

    /// Records that the client has published a signed prekey.
    pub fn note_rotation(&mut self, signed_prekey: Option<SignedPrekeyStatus>) {
        self.unannounced = signed_prekey;
    }

    /// Returns true once if the client does not know yet that a pool is this low.
    pub fn take_low_pool(&mut self, kind: KeyKind, remaining: u32, threshold: u32, pool_version: i64) -> bool {
        let signalled = KnownPool { pool_version, levels_reached: levels_reached(remaining, threshold) };
        let known = &mut self.known_pools[usize::from(kind == KeyKind::PqOneTime)];
        let is_unknown = signalled > *known;
        if is_unknown {
            *known = signalled;
        }
        is_unknown
    }

    /// Returns the signed prekey once, when the notice that it expires is due.
    pub fn take_rotation_notice(&mut self, now: Timestamp) -> Option<SignedPrekeyStatus> {
        self.unannounced.take_if(|key| key.expires_at.before(ROTATION_NOTICE) <= now)
    }

    /// When the notice that the signed prekey expires is due; `None` if it was sent.
    pub fn rotation_notice_at(&self) -> Option<Timestamp> {
        self.unannounced.map(|key| key.expires_at.before(ROTATION_NOTICE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(one_time: u32, pool_version: i64, signed_prekey: Option<SignedPrekeyStatus>) -> KeysStatus {
        KeysStatus {
            suite: None,
            identity_key: None,
            signed_prekey,
            pq_last_resort: None,
            one_time,
            pq_one_time: 100,
            threshold: 20,
            pool_version,
        }
    }

    #[test]
    fn a_low_level_is_announced_once_and_again_after_a_publish() {
        let mut notices = KeyNotices::new(&status(15, 1, None));
        let mut is_unknown = |remaining, version| notices.take_low_pool(KeyKind::OneTime, remaining, 20, version);
        assert!(!is_unknown(15, 1), "the welcome announced it");
        assert!(is_unknown(9, 1) && !is_unknown(8, 1), "the next level is announced once");
        assert!(!is_unknown(20, 0), "an older version");
        notices.note_publish(&status(100, 2, None), [true, false]);
        assert!(notices.take_low_pool(KeyKind::OneTime, 20, 20, 2));
        assert!(notices.take_low_pool(KeyKind::PqOneTime, 20, 20, 2), "each pool is tracked separately");
    }

    #[test]
    fn a_signal_that_overtakes_the_reply_to_a_publish_is_not_announced_again() {
        let mut notices = KeyNotices::new(&status(100, 1, None));
        assert!(notices.take_low_pool(KeyKind::OneTime, 18, 20, 2));
        notices.note_publish(&status(100, 2, None), [true, false]);
        assert!(!notices.take_low_pool(KeyKind::OneTime, 18, 20, 2));
    }

    #[test]
    fn a_publish_to_the_other_pool_does_not_make_a_signal_outdated() {
        let mut notices = KeyNotices::new(&status(100, 1, None));
        notices.note_publish(&status(18, 2, None), [false, true]);
        assert!(notices.take_low_pool(KeyKind::OneTime, 18, 20, 1), "counted before the publish, and still low");
        assert!(!notices.take_low_pool(KeyKind::PqOneTime, 18, 20, 1), "counted before the publish to this pool");
    }

    #[test]
    fn the_expiry_of_each_signed_prekey_is_announced_once() {
        let expires_at = Timestamp::parse("2026-01-10T00:00:00Z").unwrap();
        let key = Some(SignedPrekeyStatus { key_id: 1, expires_at });
        let mut notices = KeyNotices::new(&status(100, 1, key));
        let due = expires_at.before(ROTATION_NOTICE);
        assert_eq!(notices.rotation_notice_at(), Some(due));
        assert_eq!(notices.take_rotation_notice(due.before(Duration::from_secs(1))), None);
        assert_eq!(notices.take_rotation_notice(due), key);
        assert_eq!((notices.take_rotation_notice(due), notices.rotation_notice_at()), (None, None));
        notices.note_rotation(key);
        assert_eq!(notices.take_rotation_notice(due), key);
    }
}
