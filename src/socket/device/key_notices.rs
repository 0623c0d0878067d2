//! What a client has been told of its own keys, so that it is told each thing once.

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

    /// Whether the client has yet to hear that a pool is this low. True once.
    pub fn take_low_pool(&mut self, kind: KeyKind, remaining: u32, threshold: u32, pool_version: i64) -> bool {
        let heard = Known { pool_version, depth: depth(remaining, threshold) };
        let known = &mut self.known[usize::from(kind == KeyKind::PqOneTime)];
        let is_news = heard > *known;
        if is_news {
            *known = heard;
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
