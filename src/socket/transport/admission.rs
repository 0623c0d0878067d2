//! Decides which connections are accepted, before a byte is read, and answers those that are not.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_http::error::DispatchError;
use ipnet::IpNet;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use super::{linger::Linger, scratch::Scratch};
use crate::{
    domain::{ClientNetwork, Refusal},
    edge::{Problem, is_proxy},
    metrics::{Limit, Metrics},
    socket::{
        budget::{Budget, Reservation},
        networks::{ConnectionKind, CountedConnection, NetworkLimits, Networks},
    },
};

/// Refused connections that are being answered at a time. Those beyond it are closed without an answer.
const REFUSALS_AT_ONCE: usize = 128;
/// How long a client may take to begin its request.
const ASKING_TIME: Duration = Duration::from_secs(1);
/// How long writing the refusal may take; it fits any socket's buffer.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// Decides about new connections. Clones share the counts.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Connections of this node that have not upgraded.
    pub http: Budget,
    /// The limits on each client network.
    pub networks: Networks,
    /// Proxies. Many networks connect through one, so the limits on a network do not apply to it.
    pub trusted_proxies: Arc<[IpNet]>,
    refusals: Budget,
}

/// A connection's places in the counts, until it is upgraded or ends.
#[derive(Debug)]
pub(super) struct Admitted {
    _node: Reservation,
    _network: Option<CountedConnection>,
}

impl Admission {
    /// Admits at most `http` connections that have not upgraded, from each network as many as its limits allow.
    #[must_use]
    pub fn new(http: usize, networks: Networks, trusted_proxies: &[IpNet]) -> Self {
        Self {
            http: Budget::new(http),
            networks,
            trusted_proxies: trusted_proxies.into(),
            refusals: Budget::new(REFUSALS_AT_ONCE),
        }
    }

    /// Admits all connections.
    #[must_use]
    pub fn unlimited() -> Self {
        let networks = Networks::new(NetworkLimits::default(), Arc::new(Metrics::new()));
        Self::new(usize::MAX, networks, &[])
    }

    /// More connections than actix-server can have at a time, so that its own limit is never met.
    #[must_use]
    pub fn beyond_all(&self) -> usize {
        self.http.limit().saturating_add(2 * REFUSALS_AT_ONCE)
    }

    /// Takes a new connection from `peer` into the counts.
    ///
    /// # Errors
    /// `rate_limited` by its network's limits, `unavailable` if the node has no more connections to give.
    pub(super) fn admit(&self, peer: Option<SocketAddr>) -> Result<Admitted, Refusal> {
        let mut network = None;
        if let Some(peer) = peer.filter(|peer| !is_proxy(peer.ip(), &self.trusted_proxies)) {
            let (from, now) = (ClientNetwork::from(peer.ip()), Instant::now());
            self.networks.count_new(from, now)?;
            network = Some(self.networks.count_open(from, ConnectionKind::Http, now)?);
        }
        let Some(node) = self.http.try_reserve(1) else {
            self.networks.count_refused(Limit::Http);
            return Err(Refusal::Unavailable);
        };
        Ok(Admitted { _node: node, _network: network })
    }

    /// Answers a refused connection with the reason, unless too many are being answered.
    pub(super) async fn refuse(
        self,
        mut stream: TcpStream,
        refusal: Refusal,
        scratch: Scratch,
    ) -> Result<(), DispatchError> {
        let Some(_place) = self.refusals.try_reserve(1) else { return Ok(()) };
        // Clients take an answer that comes before their request for a fault of the server.
        let _ = timeout(ASKING_TIME, stream.readable()).await;
        let answer = Problem::from(refusal).as_http1();
        if let Ok(Ok(())) = timeout(ANSWER_TIME, stream.write_all(&answer)).await {
            let mut linger = Linger::default();
            std::future::poll_fn(|cx| linger.poll(&mut stream, &scratch, cx)).await;
        }
        Ok(())
    }
}
