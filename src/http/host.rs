//! The host names that a request is addressed to.
//!
//! With DNS rebinding, a web page can make a browser send requests to this server, but only with the page's own host
//! name. So a listener that must not serve other pages checks the name. An IP address cannot be rebound.

use std::net::IpAddr;

use actix_web::{
    dev::RequestHead,
    http::{header, uri::Authority},
};

/// The host that a client addresses, from the `Host` header or the request line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHost {
    /// The name in lower case without a final dot, or an IP address without brackets.
    pub name: String,
    /// The port; `None` if it is the default one of the scheme.
    pub port: Option<u16>,
}

impl RequestHost {
    /// Parses `host` or `host:port`. `None` if it is malformed or contains a user name.
    pub fn parse(text: &str) -> Option<Self> {
        let authority = text.parse::<Authority>().ok().filter(|authority| !authority.as_str().contains('@'))?;
        let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(&name);
        Some(Self { name: bare.to_owned(), port: authority.port_u16() })
    }

    /// Returns the host of a request. `None` unless the request has exactly one `Host` header, and the host in its request
    /// line, if there is one, is the same.
    pub fn of(head: &RequestHead) -> Option<Self> {
        let mut headers = head.headers.get_all(header::HOST);
        let (Some(host), None) = (headers.next(), headers.next()) else { return None };
        let host = Self::parse(host.to_str().ok()?)?;
        // A host in the request line takes precedence over the header.
        let is_same =
            head.uri.authority().is_none_or(|authority| Self::parse(authority.as_str()).as_ref() == Some(&host));
        is_same.then_some(host)
    }

    /// The IP address, if the host is one.
    pub fn address(&self) -> Option<IpAddr> {
        self.name.parse().ok()
    }

    /// Whether the host can only be this machine: `localhost` or a loopback address.
    pub fn is_loopback(&self) -> bool {
        self.name == "localhost" || self.address().is_some_and(|address| address.to_canonical().is_loopback())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_localhost_and_loopback_addresses_are_this_machine() {
        for host in ["localhost", "LOCALHOST.", "localhost:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]", "[::1]:8080"]
        {
            assert!(RequestHost::parse(host).is_some_and(|host| host.is_loopback()), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "a.localhost",
            "evil@localhost",
            "localhost@evil.example",
            "192.0.2.7",
            "0.0.0.0:8080",
            "[2001:db8::1]",
            "127.1",
            "0x7f000001",
            "2130706433",
        ] {
            assert!(!RequestHost::parse(host).is_some_and(|host| host.is_loopback()), "{host}");
        }
    }
}
