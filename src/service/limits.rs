//! Enforces the rate limits on sign-in, user look-ups and messages. Limits per network, user and device are counted in
//! memory, by each node separately; limits per address are counted over the stored challenges. The limit on claims is
//! enforced by the store.

use std::time::Duration;

use super::sliding_window::SlidingWindow;
use crate::{
    domain::{
        ClientNetwork, DeviceId, Refusal, Timestamp, UserId, clock_guard::TOLERATED_AHEAD, keyed_buckets::KeyedBuckets,
    },
    store::PastChallenge,
    usage_limits::UsageLimits,
};

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// The limits that are counted in memory.
pub struct Limits {
    otp_per_network: SlidingWindow<ClientNetwork>,
    verify_per_network: SlidingWindow<ClientNetwork>,
    find_per_user: SlidingWindow<UserId>,
    sends_per_device: KeyedBuckets<DeviceId>,
}

impl Limits {
    /// Starts with nothing counted.
    #[must_use]
    pub fn new(settings: &UsageLimits) -> Self {
        let sends = settings.sends_per_device_second;
        Self {
            otp_per_network: SlidingWindow::new(settings.otp_per_network_hour, HOUR),
            verify_per_network: SlidingWindow::new(settings.verify_per_network_minute, MINUTE),
            find_per_user: SlidingWindow::new(settings.find_per_user_hour, HOUR),
            sends_per_device: KeyedBuckets::new(sends, Duration::from_secs(1) / sends.max(1)),
        }
    }

    /// Counts a request for a code.
    ///
    /// # Errors
    /// `rate_limited` if the network has made too many.
    pub fn otp(&self, network: ClientNetwork, now: Timestamp) -> Result<(), Refusal> {
        self.otp_per_network.take(network, now)
    }

    /// Counts an attempt to redeem a code.
    ///
    /// # Errors
    /// `rate_limited` if the network has made too many.
    pub fn verify(&self, network: ClientNetwork, now: Timestamp) -> Result<(), Refusal> {
        self.verify_per_network.take(network, now)
    }

    /// Counts a look-up of an address.
    ///
    /// # Errors
    /// `rate_limited` if the user has made too many.
    pub fn find(&self, user: UserId, now: Timestamp) -> Result<(), Refusal> {
        self.find_per_user.take(user, now)
    }

    /// Counts a message.
    ///
    /// # Errors
    /// `rate_limited` if the device has sent too many.
    pub fn send(&self, device: DeviceId, now: Timestamp) -> Result<(), Refusal> {
        self.sends_per_device.take(device, now).map_err(|retry_after| Refusal::RateLimited { retry_after })
    }
}

/// Returns how long an address must wait for its next code; `None` if it need not wait. `past` holds its challenges of
/// the last day, newest first; `network` is the keyed hash of the requesting network.
pub fn challenge_wait(
    settings: &UsageLimits,
    past: &[PastChallenge],
    network: &[u8],
    now: Timestamp,
) -> Option<Duration> {
    // A challenge from further in the future was stored under a wrong clock.
    let latest = now + TOLERATED_AHEAD;
    let wait = |limit: usize, span: Duration, matching: &dyn Fn(&PastChallenge) -> bool| {
        // If the span holds `limit` challenges, the next is allowed when the oldest of the `limit` newest leaves the
        // span.
        let oldest_that_counts = past
            .iter()
            .filter(|one| one.created_at > now.before(span) && one.created_at <= latest && matching(one))
            .nth(limit.checked_sub(1)?)?;
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
    fn an_address_waits_for_the_limit_with_the_longest_wait() {
        let settings = UsageLimits {
            otp_per_email_hour: 3,
            otp_per_email_day: 5,
            otp_per_email_network_hour: 2,
            otp_per_network_hour: 0,
            verify_per_network_minute: 0,
            find_per_user_hour: 0,
            claim_burst: 0,
            claim_refill_s: 1,
            stranger_keys_per_device_hour: 0,
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
        let off = UsageLimits {
            otp_per_email_hour: 0,
            otp_per_email_day: 0,
            otp_per_email_network_hour: 0,
            ..settings.clone()
        };
        assert_eq!(challenge_wait(&off, &[made(1, 1), made(1, 1), made(1, 1)], &[1], start()), None);
    }
}
