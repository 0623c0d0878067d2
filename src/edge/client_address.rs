//! Determines the address of a client, also behind trusted proxies.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
};

use actix_web::http::header::HeaderMap;
use ipnet::IpNet;

/// Whether an ignored `X-Forwarded-For` has been logged. It is logged once per process, because every client can send
/// one.
static WARNED: AtomicBool = AtomicBool::new(false);

/// Returns the client's address: that of the peer or, if the peer is a trusted proxy, the last address in
/// `X-Forwarded-For` that is not a trusted proxy. A malformed entry is ignored, and so are all entries before it.
/// Without a `peer`, the peer's address counts as 0.0.0.0.
#[must_use]
pub fn client_address(peer: Option<SocketAddr>, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip().to_canonical());
    let forwarded = headers.get_all("x-forwarded-for").filter_map(|value| value.to_str().ok());
    if !is_proxy(peer, trusted) && headers.contains_key("x-forwarded-for") && !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            %peer,
            "X-Forwarded-For of this peer is ignored, so all its clients count as one; if it is your proxy, add it to \
             server.trusted_proxies"
        );
    }
    nearest_untrusted(peer, forwarded, trusted)
}

/// Whether an address belongs to a trusted proxy.
#[must_use]
pub fn is_proxy(peer: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&peer.to_canonical()))
}

fn nearest_untrusted<'a>(
    peer: IpAddr,
    forwarded: impl DoubleEndedIterator<Item = &'a str>,
    trusted: &[IpNet],
) -> IpAddr {
    let mut nearest = peer;
    for hop in forwarded.rev().flat_map(|line| line.rsplit(',')) {
        if !is_proxy(nearest, trusted) {
            break;
        }
        let Some(address) = parse_hop(hop.trim()) else { break };
        nearest = address;
    }
    nearest
}

/// Parses an address with or without a port.
fn parse_hop(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()))?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x_forwarded_for_is_used_only_behind_trusted_proxies() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let client = |peer: &str, forwarded: &[&'static str]| {
            nearest_untrusted(peer.parse().unwrap(), forwarded.iter().copied(), &trusted).to_string()
        };
        assert_eq!(client("192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(client("::1", &["203.0.113.9, 198.51.100.7:4444, 10.2.3.4"]), "198.51.100.7");
        assert_eq!(client("10.0.0.1", &["203.0.113.9", "10.2.3.4, 10.9.9.9"]), "203.0.113.9");
        assert_eq!(client("10.0.0.1", &["[2001:db8::1]:9"]), "2001:db8::1");
        assert_eq!(client("10.0.0.1", &["junk"]), "10.0.0.1");
    }
}
