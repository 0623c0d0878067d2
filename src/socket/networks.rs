//! Limits on each client network (/24 of IPv4, /48 of IPv6): its open connections, and its new ones per second.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    domain::{ClientNetwork, Refusal, token_bucket::TokenBucket},
    log_throttle::LogThrottle,
    metrics::{Limit, Metrics},
};

/// A network may make as many new connections at once as its rate allows in this time.
const BURST: Duration = Duration::from_secs(20);
/// `retry_after` of a refusal that holds until a connection of the network ends.
const RETRY: Duration = Duration::from_secs(10);
/// Networks kept in memory before those with nothing open are forgotten.
const TIDY_ABOVE: usize = 10_000;
/// Refusals are logged at most this often.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// The bounds; 0 turns one off.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetworkLimits {
    /// Open sockets.
    pub sockets: usize,
    /// Open connections that are not sockets.
    pub http: usize,
    /// New connections per second.
    pub connects_per_second: u32,
}

/// What a connection counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionKind {
    /// Before an upgrade, or without one.
    Http,
    /// Upgraded.
    Socket,
}

/// The counts of all networks. Clones share them.
#[derive(Clone, Debug)]
pub struct Networks {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: NetworkLimits,
    table: Mutex<Table>,
    refusals: LogThrottle,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Table {
    counts: HashMap<ClientNetwork, Counts>,
    tidy_above: usize,
}

#[derive(Debug, Default)]
struct Counts {
    http: usize,
    sockets: usize,
    /// New connections; `None` if the network has never made one.
    connects: Option<TokenBucket<Instant>>,
}

impl Counts {
    fn of(&mut self, kind: ConnectionKind) -> &mut usize {
        match kind {
            ConnectionKind::Http => &mut self.http,
            ConnectionKind::Socket => &mut self.sockets,
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.http == 0 && self.sockets == 0 && self.connects.is_none_or(|bucket| bucket.missing(now).is_zero())
    }
}

/// A connection that counts for its network until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the count"]
pub struct Place {
    networks: Networks,
    network: ClientNetwork,
    kind: ConnectionKind,
}

impl Networks {
    /// Nothing is open yet.
    #[must_use]
    pub fn new(limits: NetworkLimits, metrics: Arc<Metrics>) -> Self {
        let table = Mutex::new(Table { counts: HashMap::new(), tidy_above: TIDY_ABOVE });
        let refusals = LogThrottle::new(REPORT_EVERY);
        Self { shared: Arc::new(Shared { limits, table, refusals, metrics }) }
    }

    /// Counts a connection that was refused by a limit, of its network or of the node.
    pub fn count_refused(&self, limit: Limit) {
        self.shared.metrics.connections_refused.inc(limit);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.shared.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a new connection against the network's rate.
    ///
    /// # Errors
    /// `rate_limited`
    pub fn connect(&self, network: ClientNetwork, now: Instant) -> Result<(), Refusal> {
        let rate = self.shared.limits.connects_per_second;
        if rate == 0 {
            return Ok(());
        }
        let mut table = self.table();
        let connects = table.entry(network, now).connects.get_or_insert_with(|| TokenBucket::full(now));
        connects
            .take(Duration::from_secs(1) / rate, BURST, now)
            .map_err(|retry_after| self.refuse(Limit::NetworkConnects, retry_after, now))
    }

    /// Counts an open connection until the returned place is dropped.
    ///
    /// # Errors
    /// `rate_limited`
    pub fn enter(&self, network: ClientNetwork, kind: ConnectionKind, now: Instant) -> Result<Place, Refusal> {
        let (max, limit) = match kind {
            ConnectionKind::Http => (self.shared.limits.http, Limit::NetworkHttp),
            ConnectionKind::Socket => (self.shared.limits.sockets, Limit::NetworkSockets),
        };
        let mut table = self.table();
        let count = table.entry(network, now).of(kind);
        if max > 0 && *count >= max {
            return Err(self.refuse(limit, RETRY, now));
        }
        *count += 1;
        Ok(Place { networks: self.clone(), network, kind })
    }

    /// Counts a refusal, and logs it unless one was logged a moment ago.
    fn refuse(&self, limit: Limit, retry_after: Duration, now: Instant) -> Refusal {
        self.count_refused(limit);
        if let Some(connections) = self.shared.refusals.count(now) {
            tracing::warn!(connections, "connections were refused: their networks are over their limits");
        }
        Refusal::RateLimited { retry_after }
    }
}

impl Table {
    fn entry(&mut self, network: ClientNetwork, now: Instant) -> &mut Counts {
        if self.counts.len() > self.tidy_above {
            self.counts.retain(|_, counts| !counts.is_idle(now));
            // Not again before it has doubled: a crowd of networks must not cost a scan each.
            self.tidy_above = (2 * self.counts.len()).max(TIDY_ABOVE);
        }
        self.counts.entry(network).or_default()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(counts) = self.networks.table().counts.get_mut(&self.network) {
            *counts.of(self.kind) -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(limits: NetworkLimits) -> Networks {
        Networks::new(limits, Arc::new(Metrics::new()))
    }

    fn network(last: u8) -> ClientNetwork {
        ClientNetwork::V4([192, 0, last])
    }

    fn refused<T: std::fmt::Debug>(outcome: Result<T, Refusal>) -> Duration {
        match outcome.unwrap_err() {
            Refusal::RateLimited { retry_after } => retry_after,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn places_are_counted_by_kind_and_network_and_come_back() {
        let networks = networks(NetworkLimits { sockets: 2, http: 1, connects_per_second: 0 });
        let now = Instant::now();
        let first = networks.enter(network(1), ConnectionKind::Socket, now).unwrap();
        let _second = networks.enter(network(1), ConnectionKind::Socket, now).unwrap();
        assert_eq!(refused(networks.enter(network(1), ConnectionKind::Socket, now)), RETRY);
        let _other = networks.enter(network(2), ConnectionKind::Socket, now).unwrap();
        let _http = networks.enter(network(1), ConnectionKind::Http, now).unwrap();
        refused(networks.enter(network(1), ConnectionKind::Http, now));
        drop(first);
        let _third = networks.enter(network(1), ConnectionKind::Socket, now).unwrap();
    }

    #[test]
    fn new_connections_have_a_rate_with_room_for_a_crowd() {
        let networks = networks(NetworkLimits { connects_per_second: 5, ..NetworkLimits::default() });
        let start = Instant::now();
        let taken = |at, tries: usize| (0..tries).filter(|_| networks.connect(network(1), at).is_ok()).count();
        assert_eq!(taken(start, 150), 100);
        assert_eq!(refused(networks.connect(network(1), start)), Duration::from_millis(200));
        assert!(networks.connect(network(2), start).is_ok(), "another network is counted apart");
        assert_eq!(taken(start + Duration::from_secs(1), 10), 5);
        assert_eq!(taken(start + Duration::from_mins(10), 150), 100);
    }

    #[test]
    fn zero_turns_a_limit_off() {
        let networks = networks(NetworkLimits::default());
        let now = Instant::now();
        let places: Vec<_> =
            (0..1000).map(|_| networks.enter(network(1), ConnectionKind::Socket, now).unwrap()).collect();
        assert!((0..1000).all(|_| networks.connect(network(1), now).is_ok()));
        drop(places);
    }

    #[test]
    fn networks_with_nothing_open_are_forgotten() {
        let networks = networks(NetworkLimits { connects_per_second: 1000, ..NetworkLimits::default() });
        let start = Instant::now();
        let kept = networks.enter(network(1), ConnectionKind::Socket, start).unwrap();
        for second in 0..5u64 {
            let now = start + Duration::from_secs(second);
            for index in 0..u32::try_from(TIDY_ABOVE).unwrap() {
                let [_, a, b, c] = (index + 1_000_000 * u32::try_from(second).unwrap()).to_be_bytes();
                networks.connect(ClientNetwork::V4([a, b, c]), now).unwrap();
            }
        }
        assert!(networks.table().counts.len() <= 2 * TIDY_ABOVE + 1);
        assert!(networks.table().counts.contains_key(&network(1)));
        drop(kept);
    }
}
