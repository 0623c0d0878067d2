//! Limits on what clients may ask for. Those per network and per user are counted on each node.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde::Deserialize;

use crate::{
    domain::{DeviceId, Refusal, Timestamp, UserId, bucket::KeyedBuckets},
    store::PastChallenge,
};

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
/// Keys that one window remembers before it forgets those that have nothing in it.
const TIDY_ABOVE: usize = 10_000;

/// The configured limits; 0 turns one off.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitSettings {
    /// Codes an hour to one address.
    pub otp_per_email_hour: usize,
    /// Codes a day to one address.
    pub otp_per_email_day: usize,
    /// Codes an hour to one address, asked for from one network.
    pub otp_per_email_network_hour: usize,
    /// Codes an hour asked for from one network.
    pub otp_per_network_hour: usize,
    /// Guesses a minute from one network.
    pub verify_per_network_minute: usize,
    /// Addresses an hour looked up by one user.
    pub find_per_user_hour: usize,
    /// Claims of one user on one device that are served at once.
    pub claim_burst: u32,
    /// Seconds until one more.
    pub claim_refill_s: u64,
    /// Messages a second that one device may send.
    pub sends_per_device_second: u32,
    /// Open sockets of one client network.
    pub connections_per_network: usize,
    /// Open connections of one client network that are no sockets.
    pub http_connections_per_network: usize,
    /// New connections a second from one client network.
    pub connects_per_network_second: u32,
    /// Requests a second on one socket.
    pub requests_per_connection_second: u32,
}

/// A client's address cut to what one customer is usually given: /24 of IPv4, /48 of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientNetwork {
    /// The first three bytes.
    V4([u8; 3]),
    /// The first six bytes.
    V6([u8; 6]),
}

impl From<IpAddr> for ClientNetwork {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => {
                let [a, b, c, _] = v4.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(v6) => {
                let o = v6.octets();
                Self::V6([o[0], o[1], o[2], o[3], o[4], o[5]])
            }
        }
    }
}

impl ClientNetwork {
    /// The bytes that tell networks apart.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::V4(bytes) => bytes,
            Self::V6(bytes) => bytes,
        }
    }
}

/// At most `limit` events in any `span`, for each key.
struct SlidingWindow<K> {
    limit: usize,
    span: Duration,
    events: Mutex<HashMap<K, VecDeque<Timestamp>>>,
    tidy_above: AtomicUsize,
}

impl<K: Eq + Hash> SlidingWindow<K> {
    fn new(limit: usize, span: Duration) -> Self {
        Self { limit, span, events: Mutex::default(), tidy_above: AtomicUsize::new(TIDY_ABOVE) }
    }

    /// Counts an event, or says how long until one would be allowed.
    fn take(&self, key: K, now: Timestamp) -> Result<(), Refusal> {
        if self.limit == 0 {
            return Ok(());
        }
        let since = now.before(self.span);
        let mut all = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() > self.tidy_above.load(Ordering::Relaxed) {
            all.retain(|_, events| events.back().is_some_and(|last| *last > since));
            // Not again before it has doubled: a crowd of keys must not cost a scan each.
            self.tidy_above.store((2 * all.len()).max(TIDY_ABOVE), Ordering::Relaxed);
        }
        let events = all.entry(key).or_default();
        while events.front().is_some_and(|first| *first <= since) {
            events.pop_front();
        }
        match events.front() {
            Some(first) if events.len() >= self.limit => {
                Err(Refusal::RateLimited { retry_after: (*first + self.span).since(now) })
            }
            _ => {
                events.push_back(now);
                Ok(())
            }
        }
    }
}

/// The limits that a node counts itself.
pub struct Limits {
    otp_per_network: SlidingWindow<ClientNetwork>,
    verify_per_network: SlidingWindow<ClientNetwork>,
    find_per_user: SlidingWindow<UserId>,
    sends_per_device: KeyedBuckets<DeviceId>,
}

impl Limits {
    /// Starts with nothing counted.
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

    /// Counts a request for a code.
    pub fn otp(&self, network: ClientNetwork, now: Timestamp) -> Result<(), Refusal> {
        self.otp_per_network.take(network, now)
    }

    /// Counts a guess.
    pub fn verify(&self, network: ClientNetwork, now: Timestamp) -> Result<(), Refusal> {
        self.verify_per_network.take(network, now)
    }

    /// Counts a look-up of an address.
    pub fn find(&self, user: UserId, now: Timestamp) -> Result<(), Refusal> {
        self.find_per_user.take(user, now)
    }

    /// Counts a message.
    pub fn send(&self, device: DeviceId, now: Timestamp) -> Result<(), Refusal> {
        self.sends_per_device.take(device, now).map_err(|retry_after| Refusal::RateLimited { retry_after })
    }
}

/// How long an address must wait for its next code, given its codes of the last day, newest first.
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
    fn a_window_slides() {
        let window = SlidingWindow::new(2, MINUTE);
        assert!(window.take(1, start()).is_ok());
        assert!(window.take(1, start() + Duration::from_secs(30)).is_ok());
        let refused = window.take(1, start() + Duration::from_secs(40)).unwrap_err();
        assert_eq!(refused, Refusal::RateLimited { retry_after: Duration::from_secs(20) });
        assert!(window.take(2, start()).is_ok(), "another key is counted apart");
        assert!(window.take(1, start() + MINUTE).is_ok());
        assert!(window.take(1, start() + Duration::from_secs(61)).is_err());
    }

    #[test]
    fn networks_are_cut_and_mapped_addresses_are_ipv4() {
        let network = |text: &str| ClientNetwork::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(network("192.0.2.1"), network("192.0.2.250"));
        assert_ne!(network("192.0.2.1"), network("192.0.3.1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.9"));
        assert_eq!(network("2001:db8:1:2::1"), network("2001:db8:1:ffff::1"));
        assert_ne!(network("2001:db8:1::1"), network("2001:db8:2::1"));
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
            connections_per_network: 0,
            http_connections_per_network: 0,
            connects_per_network_second: 0,
            requests_per_connection_second: 0,
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
