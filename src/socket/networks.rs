//! Limits the open connections, and the new ones per second, of each client network (IPv4 /24, IPv6 /48).

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

/// A network may open as many connections at once as its rate allows in this time.
const BURST: Duration = Duration::from_secs(20);
/// `retry_after` of a connection refused because its network has too many open connections.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// Idle networks are removed from memory when there are more networks than this.
const PRUNE_ABOVE: usize = 10_000;
/// Refusals are logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The limits; 0 turns one off.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetworkLimits {
    /// Open connections that have upgraded to a WebSocket.
    pub sockets: usize,
    /// Open connections that have not upgraded.
    pub http: usize,
    /// New connections per second.
    pub connects_per_second: u32,
}

/// Which limit a connection counts towards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionKind {
    /// Not upgraded.
    Http,
    /// Upgraded to a WebSocket.
    Socket,
}

/// Counts the connections of all networks. Clones share the counts.
#[derive(Clone, Debug)]
pub struct Networks {
    state: Arc<NetworksState>,
}

#[derive(Debug)]
struct NetworksState {
    limits: NetworkLimits,
    table: Mutex<NetworkTable>,
    refusals: LogThrottle,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct NetworkTable {
    counts: HashMap<ClientNetwork, NetworkCounts>,
    prune_above: usize,
}

#[derive(Debug, Default)]
struct NetworkCounts {
    http: usize,
    sockets: usize,
    /// The rate of new connections; `None` before the first one.
    connects: Option<TokenBucket<Instant>>,
}

impl NetworkCounts {
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

/// An open connection in the counts of its network. Dropping this removes it from them.
#[derive(Debug)]
#[must_use = "dropping this removes the connection from the counts"]
pub struct CountedConnection {
    networks: Networks,
    network: ClientNetwork,
    kind: ConnectionKind,
}

impl Networks {
    /// Enforces these limits. No connection is counted yet.
    #[must_use]
    pub fn new(limits: NetworkLimits, metrics: Arc<Metrics>) -> Self {
        let table = Mutex::new(NetworkTable { counts: HashMap::new(), prune_above: PRUNE_ABOVE });
        let refusals = LogThrottle::new(LOG_INTERVAL);
        Self { state: Arc::new(NetworksState { limits, table, refusals, metrics }) }
    }

    /// Counts a refused connection in the metrics. `limit` may be a network's limit or one of the node.
    pub fn count_refused(&self, limit: Limit) {
        self.state.metrics.connections_refused.inc(limit);
    }

    fn table(&self) -> MutexGuard<'_, NetworkTable> {
        self.state.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a new connection towards the network's rate.
    ///
    /// # Errors
    /// `rate_limited` if the network is over its rate.
    pub fn count_new(&self, network: ClientNetwork, now: Instant) -> Result<(), Refusal> {
        let rate = self.state.limits.connects_per_second;
        if rate == 0 {
            return Ok(());
        }
        let mut table = self.table();
        let connects = table.entry(network, now).connects.get_or_insert_with(|| TokenBucket::full(now));
        connects
            .take(Duration::from_secs(1) / rate, BURST, now)
            .map_err(|retry_after| self.refusal(Limit::NetworkConnects, retry_after, now))
    }

    /// Counts an open connection until the returned value is dropped.
    ///
    /// # Errors
    /// `rate_limited` if the network has reached its limit of open connections.
    pub fn count_open(
        &self,
        network: ClientNetwork,
        kind: ConnectionKind,
        now: Instant,
    ) -> Result<CountedConnection, Refusal> {
        let (max, limit) = match kind {
            ConnectionKind::Http => (self.state.limits.http, Limit::NetworkHttp),
            ConnectionKind::Socket => (self.state.limits.sockets, Limit::NetworkSockets),
        };
        let mut table = self.table();
        let count = table.entry(network, now).of(kind);
        if max > 0 && *count >= max {
            return Err(self.refusal(limit, RETRY_AFTER, now));
        }
        *count += 1;
        Ok(CountedConnection { networks: self.clone(), network, kind })
    }

    /// Counts and returns a refusal. Logs it unless one was logged within [`LOG_INTERVAL`].
    fn refusal(&self, limit: Limit, retry_after: Duration, now: Instant) -> Refusal {
        self.count_refused(limit);
        if let Some(connections) = self.state.refusals.count(now) {
            tracing::warn!(connections, "connections were refused: their networks are over their limits");
        }
        Refusal::RateLimited { retry_after }
    }
}

impl NetworkTable {
    fn entry(&mut self, network: ClientNetwork, now: Instant) -> &mut NetworkCounts {
        if self.counts.len() > self.prune_above {
            self.counts.retain(|_, counts| !counts.is_idle(now));
            // Not again before the table has doubled, so that many active networks do not cost a scan per connection.
            self.prune_above = (2 * self.counts.len()).max(PRUNE_ABOVE);
        }
        self.counts.entry(network).or_default()
    }
}

impl Drop for CountedConnection {
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
    fn connections_are_counted_by_kind_and_network_until_they_end() {
        let networks = networks(NetworkLimits { sockets: 2, http: 1, connects_per_second: 0 });
        let now = Instant::now();
        let first = networks.count_open(network(1), ConnectionKind::Socket, now).unwrap();
        let _second = networks.count_open(network(1), ConnectionKind::Socket, now).unwrap();
        assert_eq!(refused(networks.count_open(network(1), ConnectionKind::Socket, now)), RETRY_AFTER);
        let _other = networks.count_open(network(2), ConnectionKind::Socket, now).unwrap();
        let _http = networks.count_open(network(1), ConnectionKind::Http, now).unwrap();
        refused(networks.count_open(network(1), ConnectionKind::Http, now));
        drop(first);
        let _third = networks.count_open(network(1), ConnectionKind::Socket, now).unwrap();
    }

    #[test]
    fn new_connections_are_limited_by_a_rate_with_a_burst() {
        let networks = networks(NetworkLimits { connects_per_second: 5, ..NetworkLimits::default() });
        let start = Instant::now();
        let taken = |at, tries: usize| (0..tries).filter(|_| networks.count_new(network(1), at).is_ok()).count();
        assert_eq!(taken(start, 150), 100);
        assert_eq!(refused(networks.count_new(network(1), start)), Duration::from_millis(200));
        assert!(networks.count_new(network(2), start).is_ok(), "another network has its own count");
        assert_eq!(taken(start + Duration::from_secs(1), 10), 5);
        assert_eq!(taken(start + Duration::from_mins(10), 150), 100);
    }

    #[test]
    fn zero_turns_a_limit_off() {
        let networks = networks(NetworkLimits::default());
        let now = Instant::now();
        let open: Vec<_> =
            (0..1000).map(|_| networks.count_open(network(1), ConnectionKind::Socket, now).unwrap()).collect();
        assert!((0..1000).all(|_| networks.count_new(network(1), now).is_ok()));
        drop(open);
    }

    #[test]
    fn idle_networks_are_removed_from_memory() {
        let networks = networks(NetworkLimits { connects_per_second: 1000, ..NetworkLimits::default() });
        let start = Instant::now();
        let kept = networks.count_open(network(1), ConnectionKind::Socket, start).unwrap();
        for second in 0..5u64 {
            let now = start + Duration::from_secs(second);
            for index in 0..u32::try_from(PRUNE_ABOVE).unwrap() {
                let [_, a, b, c] = (index + 1_000_000 * u32::try_from(second).unwrap()).to_be_bytes();
                networks.count_new(ClientNetwork::V4([a, b, c]), now).unwrap();
            }
        }
        assert!(networks.table().counts.len() <= 2 * PRUNE_ABOVE + 1);
        assert!(networks.table().counts.contains_key(&network(1)));
        drop(kept);
    }
}
