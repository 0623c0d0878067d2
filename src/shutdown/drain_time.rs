//! Divides the time limit for stopping among the steps, so that a step that hangs does not use up the time of the
//! others.

use std::time::Duration;

/// The time limit for stopping.
#[derive(Clone, Copy, Debug)]
pub struct DrainTime(u64);

impl DrainTime {
    /// A limit of `seconds`, or of three seconds if that is more.
    #[must_use]
    pub fn from_secs(seconds: u64) -> Self {
        Self(seconds.max(3))
    }

    /// The share of HTTP requests in seconds: a quarter of the limit, at least one.
    #[must_use]
    pub fn http_secs(self) -> u64 {
        (self.0 / 4).max(1)
    }

    /// The share of work on the store and mails: an eighth of the limit.
    #[must_use]
    pub fn work(self) -> Duration {
        Duration::from_secs(self.0) / 8
    }

    /// The share of sockets: the rest, less half a second in reserve.
    #[must_use]
    pub fn sockets(self) -> Duration {
        let others = Duration::from_secs(self.http_secs()) + self.work() + Duration::from_millis(500);
        Duration::from_secs(self.0).saturating_sub(others)
    }

    /// The part of [`Self::sockets`] in which sockets may still answer their requests: three quarters of it.
    #[must_use]
    pub fn replies(self) -> Duration {
        self.sockets() * 3 / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_add_up_to_less_than_the_limit() {
        for seconds in (0..100).chain([3600]) {
            let time = DrainTime::from_secs(seconds);
            let shares = time.sockets() + Duration::from_secs(time.http_secs()) + time.work();
            assert!(shares < Duration::from_secs(seconds.max(3)), "{seconds}");
            assert!(time.sockets() > time.work() && time.work() > Duration::ZERO, "{seconds}");
            assert!(time.replies() + Duration::from_millis(200) < time.sockets(), "{seconds}");
        }
    }
}
