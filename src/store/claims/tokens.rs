//! Drain-limit tokens of uncommitted claims.

use crate::domain::{DeviceId, Timestamp, UserId, keyed_buckets::DrainLimit};

/// Drain-limit tokens taken in a transaction. Dropping this refunds them unless [`Self::commit`] was called.
pub struct TakenTokens<'a> {
    drain: &'a DrainLimit,
    pairs: Vec<(UserId, DeviceId)>,
}

impl<'a> TakenTokens<'a> {
    pub fn new(drain: &'a DrainLimit) -> Self {
        Self { drain, pairs: Vec::new() }
    }

    /// Takes a token. Returns whether there was one.
    pub fn take(&mut self, user: UserId, target: DeviceId, now: Timestamp) -> bool {
        let taken = self.drain.take(user, target, now).is_ok();
        if taken {
            self.pairs.push((user, target));
        }
        taken
    }

    /// Keeps the tokens, after the claims were committed.
    pub fn commit(&mut self) {
        self.pairs.clear();
    }

    /// Refunds the token of a claim that took no key.
    pub fn refund(&mut self, user: UserId, target: DeviceId) {
        if let Some(at) = self.pairs.iter().rposition(|pair| *pair == (user, target)) {
            self.pairs.swap_remove(at);
            self.drain.refund(user, target);
        }
    }
}

impl Drop for TakenTokens<'_> {
    fn drop(&mut self) {
        for (user, target) in self.pairs.drain(..) {
            self.drain.refund(user, target);
        }
    }
}
