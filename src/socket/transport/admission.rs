//! Who may connect at all, looked at before a byte is read; and what becomes of those who may not.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use actix_http::error::DispatchError;
use ipnet::IpNet;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{
    Budget, Reservation,
    pump::{Linger, Scratch},
    watched::Watched,
};
use crate::{
    domain::{ClientNetwork, Refusal},
    edge::{Problem, is_proxy},
    metrics::{Limit, Metrics},
    socket::networks::{Kind, NetworkLimits, Networks, Place},
};

/// Connections that are being told why they were refused. Those beyond it are closed without a word.
const TURNED_AWAY_AT_ONCE: usize = 128;
/// How long a client may take to begin its request.
const ASKING_TIME: Duration = Duration::from_secs(1);
/// How long writing the refusal may take; it fits any socket's buffer.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// Decides about new connections. Clones share the counts.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Connections of this node that are no sockets (yet).
    pub http: Budget,
    /// What each client network has.
    pub networks: Networks,
    /// Proxies, behind which are many networks: the limits for one are not for theirs.
    pub trusted_proxies: Arc<[IpNet]>,
    turned_away: Budget,
}

/// A connection's places in the counts, until it is upgraded or ends.
#[derive(Debug)]
pub(super) struct Admitted {
    _node: Reservation,
    _network: Option<Place>,
}

impl Admission {
    /// At most so many connections that are no sockets, each network within its limits.
    #[must_use]
    pub fn new(http: usize, networks: Networks, trusted_proxies: &[IpNet]) -> Self {
        Self {
            http: Budget::new(http),
            networks,
            trusted_proxies: trusted_proxies.into(),
            turned_away: Budget::new(TURNED_AWAY_AT_ONCE),
        }
    }

    /// Lets everybody in.
    #[must_use]
    pub fn unlimited() -> Self {
        let networks = Networks::new(NetworkLimits::default(), Arc::new(Metrics::new()));
        Self::new(usize::MAX, networks, &[])
    }

    /// More connections than actix-server can have at a time, so that its own limit is never met.
    #[must_use]
    pub fn beyond_all(&self) -> usize {
        self.http.limit().saturating_add(2 * TURNED_AWAY_AT_ONCE)
    }

    /// Takes a new connection into the counts.
    pub(super) fn admit(
        &self,
        stream: TcpStream,
        peer: Option<SocketAddr>,
        scratch: &Scratch,
    ) -> Result<Watched, (TcpStream, Refusal)> {
        match self.places(peer) {
            Ok(places) => Ok(Watched::new(stream, places, scratch.clone())),
            Err(refusal) => Err((stream, refusal)),
        }
    }

    fn places(&self, peer: Option<SocketAddr>) -> Result<Admitted, Refusal> {
        let mut network = None;
        if let Some(peer) = peer.filter(|peer| !is_proxy(peer.ip(), &self.trusted_proxies)) {
            let (from, now) = (ClientNetwork::from(peer.ip()), Instant::now());
            self.networks.connect(from, now)?;
            network = Some(self.networks.enter(from, Kind::Http, now)?);
        }
        let Some(node) = self.http.try_reserve(1) else {
            self.networks.count_refused(Limit::Http);
            return Err(Refusal::Unavailable);
        };
        Ok(Admitted { _node: node, _network: network })
    }

    /// Tells a client why it was refused, if it is not one of too many.
    pub(super) async fn turn_away(
        self,
        mut stream: TcpStream,
        refusal: Refusal,
        scratch: Scratch,
    ) -> Result<(), DispatchError> {
        let Some(_place) = self.turned_away.try_reserve(1) else { return Ok(()) };
        // Clients take an answer that comes before they have asked for a fault of the server's.
        let _ = timeout(ASKING_TIME, stream.readable()).await;
        let answer = Problem::from(refusal).as_http1();
        if let Ok(Ok(())) = timeout(ANSWER_TIME, stream.write_all(&answer)).await {
            let mut linger = Linger::default();
            std::future::poll_fn(|cx| linger.poll(&mut stream, &scratch, cx)).await;
        }
        Ok(())
    }
}
