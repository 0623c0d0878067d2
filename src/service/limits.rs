//! Limits on sign-in, on looking people up, on claims and on messages. Those per network, per user and per device are
//! counted in memory, by each node for itself; those per address are counts over stored challenges.

use std::time::Duration;

use super::sliding_window::SlidingWindow;
use crate::{
    domain::{ClientNetwork, DeviceId, Refusal, Timestamp, UserId, keyed_buckets::KeyedBuckets},
    store::PastChallenge,
};

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// The limits of the use cases; 0 turns one off.
#[derive(Clone, Debug)]
pub struct LimitSettings {
    /// Codes per hour to one address.
    pub otp_per_email_hour: usize,
    /// Codes per day to one address.
    pub otp_per_email_day: usize,
    /// Codes per hour to one address, requested from one network.
    pub otp_per_email_network_hour: usize,
    /// Codes per hour requested from one network.
    pub otp_per_network_hour: usize,
    /// Code guesses per minute from one network.
    pub verify_per_network_minute: usize,
    /// Addresses per hour looked up by one user.
    pub find_per_user_hour: usize,
    /// Key-taking claims of one user on one device that are served in a burst.
    pub claim_burst: u32,
    /// Seconds until one more such claim is served.
    pub claim_refill_s: u64,
    /// Messages per second sent by one device.
    pub sends_per_device_second: u32,
}

/// The limits that are counted in memory.
pub struct Limits {
    otp_per_network: SlidingWindow<ClientNetwork>,
    verify_per_network: SlidingWindow<ClientNetwork>,
    find_per_user: SlidingWindow<UserId>,
    sends_per_device: KeyedBuckets<DeviceId>,
}

impl Limits {
    /// Nothing is counted yet.
    #[must_use]
    pub fn new(settings: &LimitSettings) -> Self {
        let sends = settings.sends_per_device_second;
        Self {
            otp_per_network: SlidingWindow::new(settings.otp_per_network_hour, HOUR),
            verify_per_network: SlidingWindow::new(settings.verify_per_network_minute, MINUTE),
            find_per_user: SlidingWindow::new(settings.find_per_user_hour, HOUR),
            sends_per_device: KeyedBuckets::new(sends, Duration::from_secs(1) / sends.max(1)),
        }
    }

    /// Counts a request for a code; `rate_limited` if the network has made too many.
    pub fn otp(&self, network: ClientNetwork, now: Timestamp) -> Result<(), Refusal> {
        self.otp_per_network.take(network, now)
    }

    /// Counts a guess at a code; `rate_limited` if the network has made too many.
    pub fn verify(&self, network: ClientNetwork, now: Timestamp) -> Result<(), Refusal> {
        self.verify_per_network.take(network, now)
    }

    /// Counts a look-up of an address; `rate_limited` if the user has made too many.
    pub fn find(&self, user: UserId, now: Timestamp) -> Result<(), Refusal> {
        self.find_per_user.take(user, now)
    }

    /// Counts a message; `rate_limited` if the device has sent too many.
    pub fn send(&self, device: DeviceId, now: Timestamp) -> Result<(), Refusal> {
        self.sends_per_device.take(device, now).map_err(|retry_after| Refusal::RateLimited { retry_after })
    }
}

/// How long an address must wait for its next code, given its codes of the last day, newest first; `None` if it need not.
pub fn challenge_wait(
    settings: &LimitSettings,
    past: &[PastChallenge],
    network: &[u8],
    now: Timestamp,
) -> Option<Duration> {
    let wait = |limit: usize, span: Duration, matching: &dyn Fn(&PastChallenge) -> bool| {
        // The limit-th newest in the span is the one that has to age out of it.
        let oldest_that_counts =
            past.iter().filter(|one| one.created_at > now.before(span) && matching(one)).nth(limit.checked_sub(1)?)?;
        Some((oldest_that_counts.created_at + span).since(now))
    };
    [
        wait(settings.otp_per_email_network_hour, HOUR, &|one| one.network == network),
        wait(settings.otp_per_email_hour, HOUR, &|_| true),
        wait(settings.otp_per_email_day, DAY, &|_| true),
    ]
    .into_iter()
    .flatten()
    .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Timestamp {
        Timestamp::parse("2026-01-01T00:00:00Z").unwrap()
    }

    #[test]
    fn an_address_waits_for_whichever_limit_is_longest() {
        let settings = LimitSettings {
            otp_per_email_hour: 3,
            otp_per_email_day: 5,
            otp_per_email_network_hour: 2,
            otp_per_network_hour: 0,
            verify_per_network_minute: 0,
            find_per_user_hour: 0,
            claim_burst: 0,
            claim_refill_s: 1,
            sends_per_device_second: 0,
        };
        let made = |minutes_ago: u64, network: u8| PastChallenge {
            created_at: start().before(Duration::from_mins(minutes_ago)),
            network: vec![network],
        };
        let wait =
            |past: &[PastChallenge]| challenge_wait(&settings, past, &[1], start()).map(|wait| wait.as_secs() / 60);
        assert_eq!(wait(&[]), None);
        assert_eq!(wait(&[made(1, 1)]), None);
        assert_eq!(wait(&[made(1, 1), made(10, 1)]), Some(50));
        assert_eq!(wait(&[made(1, 2), made(10, 1)]), None);
        assert_eq!(wait(&[made(1, 2), made(10, 1), made(20, 3)]), Some(40));
        assert_eq!(wait(&[made(1, 2), made(70, 2), made(80, 2), made(90, 2), made(100, 2)]), Some(24 * 60 - 100));
        let off = LimitSettings {
            otp_per_email_hour: 0,
            otp_per_email_day: 0,
            otp_per_email_network_hour: 0,
            ..settings.clone()
        };
        assert_eq!(challenge_wait(&off, &[made(1, 1), made(1, 1), made(1, 1)], &[1], start()), None);
    }
}
