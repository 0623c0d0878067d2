//! Limits the connections that have not upgraded. Decides on each new connection before a byte is read, and answers
//! those that it refuses.
//!
//! Anybody can open connections and leave them idle. So a node that has no place left gives up the oldest connection of
//! the network that has most, rather than refuse a client of another network.

use std::{
    net::SocketAddr,
    sync::Arc,
    task::Context,
    time::{Duration, Instant},
};

use actix_http::error::DispatchError;
use ipnet::IpNet;
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::Semaphore, time::timeout};
use uuid::Uuid;

use super::{linger::Linger, scratch::Scratch};
use crate::{
    domain::{ClientNetwork, Refusal, UserId},
    edge::{Problem, is_proxy},
    metrics::{Limit, Metrics},
    socket::{
        networks::{ConnectionKind, CountedConnection, NetworkLimits, Networks},
        shares::{Account, Holder, SharedBudget, SharedReservation},
    },
};

/// Maximum number of refused connections that are being answered at once. Further ones are closed without a response.
const MAX_REFUSALS: usize = 128;
/// How long to wait for the first byte of a refused client's request.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long writing a refusal may take. The refusal is smaller than the send buffer of any socket.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Accepts or refuses new TCP connections. Clones share the counts.
#[derive(Clone, Debug)]
pub struct ConnectionLimiter {
    /// Budget for the connections of this node that have not upgraded.
    pub http: SharedBudget,
    /// The limits on each client network.
    pub networks: Networks,
    /// Proxies. The limits on a network do not apply to them, because a proxy connects for clients of many networks.
    pub trusted_proxies: Arc<[IpNet]>,
    /// Permits for refused connections that are being answered.
    refusals: Arc<Semaphore>,
}

/// The slots of an accepted connection in the node's budget and in its network's count. Dropping this frees them.
#[derive(Debug)]
pub(super) struct ConnectionSlots {
    node: NodeSlot,
    /// `None` for a trusted proxy.
    _network: Option<CountedConnection>,
    networks: Networks,
}

/// A unit of the node's budget.
#[derive(Debug)]
enum NodeSlot {
    /// Can be given up.
    Client(Account),
    /// Of a trusted proxy, which connects for clients of many networks.
    Proxy { _slot: SharedReservation },
    /// Was given up.
    Displaced,
}

impl ConnectionSlots {
    /// Whether the connection was given up, and has to end. If not, wakes the connection's task when it is.
    pub(super) fn is_displaced(&mut self, cx: &Context<'_>) -> bool {
        if let NodeSlot::Client(account) = &self.node
            && account.poll_given_up(cx).is_ready()
        {
            self.networks.count_refused(Limit::Http);
            self.node = NodeSlot::Displaced;
        }
        matches!(self.node, NodeSlot::Displaced)
    }
}

/// Before an upgrade, a client's user is not known: a user of its own stands for each network.
fn holder_of(network: ClientNetwork) -> Holder {
    let (mut id, bytes) = ([0xff; 16], network.as_bytes());
    id[..bytes.len()].copy_from_slice(bytes);
    Holder { network, user: UserId(Uuid::from_bytes(id)) }
}

impl ConnectionLimiter {
    /// Accepts at most `http` connections that have not upgraded, and from each network as many as `networks` allows.
    #[must_use]
    pub fn new(http: usize, networks: Networks, trusted_proxies: &[IpNet]) -> Self {
        Self {
            // Nobody has a smaller share: a network has a limit of its own.
            http: SharedBudget::new(http, http),
            networks,
            trusted_proxies: trusted_proxies.into(),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
        }
    }

    /// Accepts all connections.
    #[must_use]
    pub fn unlimited() -> Self {
        let networks = Networks::new(NetworkLimits::default(), Arc::new(Metrics::new()));
        Self::new(usize::MAX, networks, &[])
    }

    /// A connection limit for actix-server that it never reaches, because this limiter refuses connections earlier.
    pub(super) fn unreachable_limit(&self) -> usize {
        self.http.limit().saturating_add(2 * MAX_REFUSALS)
    }

    /// Counts a new connection from `peer`, and returns its slots.
    ///
    /// # Errors
    /// `rate_limited` if the peer's network is over its limits, `unavailable` if the node's budget is exhausted.
    pub(super) fn try_accept(&self, peer: Option<SocketAddr>) -> Result<ConnectionSlots, Refusal> {
        let (mut network, mut holder) = (None, None);
        if let Some(peer) = peer.filter(|peer| !is_proxy(peer.ip(), &self.trusted_proxies)) {
            let (from, now) = (ClientNetwork::from(peer.ip()), Instant::now());
            self.networks.count_new(from, now)?;
            network = Some(self.networks.count_open(from, ConnectionKind::Http, now)?);
            holder = Some(holder_of(from));
        }
        let account = self.http.account(holder.unwrap_or(Holder::NOBODY));
        let node = match holder {
            Some(_) => account.grow(1).map(|()| NodeSlot::Client(account)),
            None => account.reserve(1).map(|slot| NodeSlot::Proxy { _slot: slot }),
        };
        let Ok(node) = node else {
            self.networks.count_refused(Limit::Http);
            return Err(Refusal::Unavailable);
        };
        Ok(ConnectionSlots { node, _network: network, networks: self.networks.clone() })
    }

    /// Sends the refusal to the client and closes the connection. Closes it without a response if [`MAX_REFUSALS`]
    /// others are being answered.
    pub(super) async fn refuse(
        self,
        mut stream: TcpStream,
        refusal: Refusal,
        scratch: Scratch,
    ) -> Result<(), DispatchError> {
        let Ok(_place) = self.refusals.try_acquire() else { return Ok(()) };
        // HTTP clients treat a response that arrives before they have sent a request as a server error.
        let _ = timeout(FIRST_BYTE_TIMEOUT, stream.readable()).await;
        let response = Problem::from(refusal).as_http1();
        if let Ok(Ok(())) = timeout(RESPONSE_TIMEOUT, stream.write_all(&response)).await {
            let mut linger = Linger::default();
            std::future::poll_fn(|cx| linger.poll(&mut stream, &scratch, cx)).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker_ref;

    use super::*;

    fn accept(limiter: &ConnectionLimiter, network: u8) -> Result<ConnectionSlots, Refusal> {
        limiter.try_accept(Some(([192, 0, network, 1], 1).into()))
    }

    fn is_displaced(slots: &mut ConnectionSlots) -> bool {
        slots.is_displaced(&Context::from_waker(noop_waker_ref()))
    }

    #[test]
    fn a_full_node_gives_up_the_oldest_connection_of_the_network_that_has_most() {
        let metrics = Arc::new(Metrics::new());
        let networks = Networks::new(NetworkLimits::default(), metrics.clone());
        let limiter = ConnectionLimiter::new(4, networks, &["192.0.9.0/24".parse().unwrap()]);
        let mut oldest = accept(&limiter, 1).unwrap();
        let mut many: Vec<_> = (0..3).map(|_| accept(&limiter, 2).unwrap()).collect();
        let mut new = accept(&limiter, 3).unwrap();
        let mut proxy = accept(&limiter, 9).unwrap();
        let displaced: Vec<bool> = many.iter_mut().map(is_displaced).collect();
        assert_eq!(displaced, [true, true, false]);
        for kept in [&mut oldest, &mut new, &mut proxy] {
            assert!(!is_displaced(kept));
        }
        assert_eq!((limiter.http.in_use(), metrics.connections_refused.get(Limit::Http)), (4, 2));
        drop(many);
        assert_eq!(limiter.http.in_use(), 3, "those that were given up are not given back again");
        let _proxies: Vec<_> = (0..3).map(|_| accept(&limiter, 9).unwrap()).collect();
        assert!(is_displaced(&mut oldest) && is_displaced(&mut new));
        assert!(matches!(accept(&limiter, 1), Err(Refusal::Unavailable)), "proxies have all places");
        assert!(!is_displaced(&mut proxy));
    }
}
