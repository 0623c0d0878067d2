//! Limits the open connections, and the new ones per second, of each client network: a /24 of IPv4, or a /48 of IPv6 and,
//! with multiples of its limits, the /40 and /32 around it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    domain::{ClientNetwork, Refusal, network::CountedNetwork, token_bucket::TokenBucket},
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

/// The limits of a /24 of IPv4 or a /48 of IPv6; 0 turns one off.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetworkLimits {
    /// Open connections that have upgraded to a WebSocket.
    pub sockets: usize,
    /// Open connections that have upgraded, of a /40 or /32 of IPv6, which otherwise have a multiple of `sockets`. Not of a
    /// single network, which may be a proxy.
    pub widest_sockets: usize,
    /// Open connections that have not upgraded.
    pub http: usize,
    /// Open connections of any network that have not upgraded, however wide it is.
    pub widest_http: usize,
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
    counts: HashMap<CountedNetwork, NetworkCounts>,
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

    fn count(&self, kind: ConnectionKind) -> usize {
        match kind {
            ConnectionKind::Http => self.http,
            ConnectionKind::Socket => self.sockets,
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.http == 0 && self.sockets == 0 && self.connects.is_none_or(|bucket| bucket.missing(now).is_zero())
    }
}

/// An open connection in the counts of its networks. Dropping this removes it from them.
#[derive(Debug)]
#[must_use = "dropping this removes the connection from the counts"]
pub struct CountedConnection {
    networks: Networks,
    /// It is in the counts of this network and of those around it.
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

    /// Counts a new connection towards the rates of the network and of those around it. A refused one counts for none.
    ///
    /// # Errors
    /// `rate_limited` if one of them is over its rate.
    pub fn count_new(&self, network: ClientNetwork, now: Instant) -> Result<(), Refusal> {
        let rate = self.state.limits.connects_per_second;
        if rate == 0 {
            return Ok(());
        }
        let mut table = self.table();
        let costs = network.counted().into_iter().map(|(network, factor)| {
            let per_second = rate.saturating_mul(factor);
            (network, Duration::from_secs(1) / per_second)
        });
        let costs: Vec<_> = costs.collect();
        let lacking = |(network, cost): &(CountedNetwork, Duration)| {
            let connects = table.counts.get(network)?.connects?;
            Some(connects.lacking(*cost, BURST, now))
        };
        if let Some(wait) = costs.iter().filter_map(lacking).max().filter(|wait| !wait.is_zero()) {
            return Err(self.refusal(Limit::NetworkConnects, wait, now));
        }
        for (network, cost) in costs {
            let connects = table.entry(network, now).connects.get_or_insert_with(|| TokenBucket::full(now));
            // Cannot fail: none of the buckets lacks anything.
            let _ = connects.take(cost, BURST, now);
        }
        Ok(())
    }

    /// Counts an open connection of the network, and of those around it, until the returned value is dropped.
    ///
    /// # Errors
    /// `rate_limited` if one of them has reached its limit of open connections.
    pub fn count_open(
        &self,
        network: ClientNetwork,
        kind: ConnectionKind,
        now: Instant,
    ) -> Result<CountedConnection, Refusal> {
        let NetworkLimits { sockets, widest_sockets, http, widest_http, .. } = self.state.limits;
        // The limit of a single network, and those of any network and of a wide one, however many times the first that has.
        let (max, any, wide, limit) = match kind {
            ConnectionKind::Http => (http, widest_http, widest_http, Limit::NetworkHttp),
            ConnectionKind::Socket => (sockets, usize::MAX, widest_sockets, Limit::NetworkSockets),
        };
        let mut table = self.table();
        let counted = network.counted();
        let is_full = |(network, factor): &(CountedNetwork, u32)| {
            let open = table.counts.get(network).map_or(0, |counts| counts.count(kind));
            let most = if *factor > 1 { wide } else { any };
            open >= max.saturating_mul(usize::try_from(*factor).unwrap_or(usize::MAX)).min(most)
        };
        if max > 0 && counted.iter().any(is_full) {
            return Err(self.refusal(limit, RETRY_AFTER, now));
        }
        for (counted, _) in counted {
            *table.entry(counted, now).of(kind) += 1;
        }
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
    fn entry(&mut self, network: CountedNetwork, now: Instant) -> &mut NetworkCounts {
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
        let mut table = self.networks.table();
        for (counted, _) in self.network.counted() {
            if let Some(counts) = table.counts.get_mut(&counted) {
                *counts.of(self.kind) -= 1;
            }
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
        let networks =
            networks(NetworkLimits { sockets: 2, widest_sockets: 1, http: 1, widest_http: 1, connects_per_second: 0 });
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

    /// A network in `2001:db8::/32`, in the /40 of this number.
    fn ipv6(wide: u8, narrow: u8) -> ClientNetwork {
        ClientNetwork::V6([0x20, 0x01, 0x0d, 0xb8, wide, narrow])
    }

    #[test]
    fn many_small_networks_of_a_wide_one_have_eight_and_32_times_its_limits() {
        let networks = networks(NetworkLimits {
            sockets: 3,
            widest_sockets: 90,
            http: 2,
            widest_http: 40,
            connects_per_second: 1,
        });
        let now = Instant::now();
        for (kind, each, widest) in [(ConnectionKind::Socket, 3, 90), (ConnectionKind::Http, 2, 40)] {
            let opened = |network| {
                let mut open = Vec::new();
                while let Ok(one) = networks.count_open(network, kind, now) {
                    open.push(one);
                }
                open
            };
            assert_eq!(opened(ipv6(9, 9)).len(), each);
            let of_40: Vec<_> = (0..20).flat_map(|narrow| opened(ipv6(1, narrow))).collect();
            assert_eq!(of_40.len(), 8 * each);
            let of_32: Vec<_> =
                (2..40).flat_map(|wide| (0..8).flat_map(|n| opened(ipv6(wide, n))).collect::<Vec<_>>()).collect();
            assert_eq!(of_40.len() + of_32.len(), widest);
            assert_eq!(opened(ClientNetwork::V6([0x20, 0x01, 0x0d, 0xb9, 0, 0])).len(), each, "another /32");
            drop(of_32);
            assert_eq!(opened(ipv6(7, 7)).len(), each, "what has ended is in no count");
        }
        let refused_at = |networks: &Networks, mut next: Box<dyn FnMut(u8) -> ClientNetwork>| {
            (0..=u8::MAX).map(|n| networks.count_new(next(n), now).is_ok()).filter(|is_ok| *is_ok).count()
        };
        let rates = |next: Box<dyn FnMut(u8) -> ClientNetwork>| {
            let networks = Networks::new(
                NetworkLimits { connects_per_second: 1, ..NetworkLimits::default() },
                Arc::new(Metrics::new()),
            );
            refused_at(&networks, next)
        };
        assert_eq!(rates(Box::new(|_| ipv6(1, 1))), 20);
        assert_eq!(rates(Box::new(|n| ipv6(1, n))), 8 * 20);
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
        assert!(networks.table().counts.contains_key(&network(1).counted()[0].0));
        drop(kept);
    }
}
