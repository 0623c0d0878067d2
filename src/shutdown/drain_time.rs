//! How the time that stopping may take is divided, so that a step that hangs does not use up that of the others.

use std::time::Duration;

/// The time that stopping may take.
#[derive(Clone, Copy, Debug)]
pub struct DrainTime(u64);

impl DrainTime {
    /// A whole of that many seconds, but at least three.
    #[must_use]
    pub fn from_secs(seconds: u64) -> Self {
        Self(seconds.max(3))
    }

    /// The share of ordinary requests in seconds: a quarter of the whole.
    #[must_use]
    pub fn http_secs(self) -> u64 {
        (self.0 / 4).max(1)
    }

    /// The share of work behind sockets and requests: an eighth.
    #[must_use]
    pub fn work(self) -> Duration {
        Duration::from_secs(self.0) / 8
    }

    /// The share of sockets: the rest, less half a second to spare.
    #[must_use]
    pub fn sockets(self) -> Duration {
        let others = Duration::from_secs(self.http_secs()) + self.work() + Duration::from_millis(500);
        Duration::from_secs(self.0).saturating_sub(others)
    }

    /// The part of [`Self::sockets`] in which they get their replies. In what is left of it they are closed without.
    #[must_use]
    pub fn replies(self) -> Duration {
        self.sockets() * 3 / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_never_come_to_more_than_the_whole() {
        for seconds in (0..100).chain([3600]) {
            let time = DrainTime::from_secs(seconds);
            let shares = time.sockets() + Duration::from_secs(time.http_secs()) + time.work();
            assert!(shares < Duration::from_secs(seconds.max(3)), "{seconds}");
            assert!(time.sockets() > time.work() && time.work() > Duration::ZERO, "{seconds}");
            assert!(time.replies() + Duration::from_millis(200) < time.sockets(), "{seconds}");
        }
    }
}
