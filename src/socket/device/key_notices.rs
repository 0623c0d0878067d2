//! What a client knows of its own keys, so that it is sent each notice once.

use std::time::Duration;

use crate::domain::{
    KeyKind, KeysStatus, Timestamp,
    bundle::{SignedPrekeyStatus, depth},
};

/// How long before its expiry a client is asked to rotate its signed prekey.
const ROTATION_NOTICE: Duration = Duration::from_hours(72);

/// The notices of one connection.
pub struct KeyNotices {
    /// The signed prekey, until the notice of its expiry has been sent.
    unannounced: Option<SignedPrekeyStatus>,
    known: [Known; 2],
}

/// What the client knows of a pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Known {
    pool_version: i64,
    /// How low the pool is ([`depth`]).
    depth: i32,
}

fn known(keys: &KeysStatus) -> [Known; 2] {
    [keys.one_time, keys.pq_one_time]
        .map(|count| Known { pool_version: keys.pool_version, depth: depth(count, keys.threshold) })
}

impl KeyNotices {
    /// The client is being sent this status.
    pub fn new(keys: &KeysStatus) -> Self {
        Self { unannounced: keys.signed_prekey, known: known(keys) }
    }

    /// The client has published, and was sent this status.
    pub fn note_publish(&mut self, keys: &KeysStatus) {
        for (known, published) in self.known.iter_mut().zip(known(keys)) {
            // A signal of a version that is known already has overtaken the reply.
            if published.pool_version > known.pool_version {
                *known = Known { depth: published.depth.min(known.depth), ..published };
            }
        }
    }

    /// The client has published a new signed prekey.
    pub fn note_rotation(&mut self, signed_prekey: Option<SignedPrekeyStatus>) {
        self.unannounced = signed_prekey;
    }

    /// Whether it is news to the client that a pool is this low. True once.
    pub fn take_low_pool(&mut self, kind: KeyKind, remaining: u32, threshold: u32, pool_version: i64) -> bool {
        let signalled = Known { pool_version, depth: depth(remaining, threshold) };
        let known = &mut self.known[usize::from(kind == KeyKind::PqOneTime)];
        let is_news = signalled > *known;
        if is_news {
            *known = signalled;
        }
        is_news
    }

    /// The signed prekey, if its expiry is to be announced now. Returned once.
    pub fn take_rotation_notice(&mut self, now: Timestamp) -> Option<SignedPrekeyStatus> {
        self.unannounced.take_if(|key| key.expires_at.before(ROTATION_NOTICE) <= now)
    }

    /// When the expiry of the signed prekey is to be announced.
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
    fn a_level_is_news_once_and_again_after_a_publish() {
        let mut notices = KeyNotices::new(&status(15, 1, None));
        let mut is_news = |remaining, version| notices.take_low_pool(KeyKind::OneTime, remaining, 20, version);
        assert!(!is_news(15, 1), "the welcome said so");
        assert!(is_news(9, 1) && !is_news(8, 1), "the next level, once");
        assert!(!is_news(20, 0), "an older version");
        notices.note_publish(&status(100, 2, None));
        assert!(notices.take_low_pool(KeyKind::OneTime, 20, 20, 2));
        assert!(notices.take_low_pool(KeyKind::PqOneTime, 20, 20, 2), "the other pool is counted apart");
    }

    #[test]
    fn a_signal_that_overtakes_the_reply_to_a_publish_stays_known() {
        let mut notices = KeyNotices::new(&status(100, 1, None));
        assert!(notices.take_low_pool(KeyKind::OneTime, 18, 20, 2));
        notices.note_publish(&status(100, 2, None));
        assert!(!notices.take_low_pool(KeyKind::OneTime, 18, 20, 2));
    }

    #[test]
    fn the_expiry_of_a_signed_prekey_is_announced_once_for_each_key() {
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
