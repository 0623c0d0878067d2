//! URLs that notifications may be sent to: [`EndpointRules`] say which, and an [`Endpoint`] is one that they allow.

use std::{fmt, net::IpAddr, sync::Arc};

use hyper::Uri;
use ipnet::IpNet;
use url::{Host, Url};

use crate::address::is_public;

/// The longest endpoint, in bytes.
const MAX_ENDPOINT: usize = 2048;

/// Rules for URLs and addresses that requests are sent to.
#[derive(Clone, Debug, Default)]
pub struct EndpointRules {
    allow_insecure: bool,
    forbidden: Arc<[IpNet]>,
}

impl EndpointRules {
    /// Rules that forbid every address that is not public ([`is_public`]) and those in `forbidden`, such as the public
    /// addresses of an internal network or the NAT64 prefix of a provider.
    ///
    /// `allow_insecure` allows loopback addresses that are not in `forbidden`, on any port, and `http` to them. It is for
    /// tests.
    #[must_use]
    pub fn new(allow_insecure: bool, forbidden: &[IpNet]) -> Self {
        Self { allow_insecure, forbidden: forbidden.into() }
    }

    /// Returns whether a connection to `address` is allowed; if it is not `secure` (not TLS), only to loopback.
    pub(crate) fn allow(&self, address: IpAddr, secure: bool) -> bool {
        if self.forbidden.iter().any(|network| network.contains(&address)) {
            return false;
        }
        if address.is_loopback() {
            return self.allow_insecure;
        }
        secure && is_public(address)
    }

    fn allow_host(&self, host: &Host<&str>, secure: bool) -> bool {
        match host {
            Host::Ipv4(address) => self.allow((*address).into(), secure),
            Host::Ipv6(address) => self.allow((*address).into(), secure),
            Host::Domain("localhost") => self.allow_insecure,
            // The address is checked when it is connected to. A name without a dot is one of the local network.
            Host::Domain(name) => secure && name.trim_end_matches('.').contains('.'),
        }
    }
}

/// A URL that the rules allow. `Debug` does not show it: the path of an endpoint is a secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    uri: Uri,
    text: Box<str>,
    origin: Arc<str>,
}

/// The URL is not one that requests are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an https URL of a public host, on port 443 or from 1024 on, of at most {MAX_ENDPOINT} bytes")]
pub struct InvalidEndpoint;

impl Endpoint {
    /// Parses a URL and checks it.
    ///
    /// Any port that only an administrator can listen on is refused, except 443: other services are there.
    ///
    /// # Errors
    /// If it is not a URL, is too long, has user information or a fragment, or if the rules do not allow it.
    pub(crate) fn parse(text: &str, rules: &EndpointRules) -> Result<Self, InvalidEndpoint> {
        // The parser would drop tabs and line breaks, and escape what is not ASCII.
        if text.len() > MAX_ENDPOINT || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidEndpoint);
        }
        let url = Url::parse(text).map_err(|_| InvalidEndpoint)?;
        let secure = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(InvalidEndpoint),
        };
        let host = url.host().ok_or(InvalidEndpoint)?;
        let port = url.port_or_known_default().ok_or(InvalidEndpoint)?;
        let is_port_allowed = port == 443 || port >= 1024 || (rules.allow_insecure && port != 0);
        if has_user_information(text)
            || url.fragment().is_some()
            || !rules.allow_host(&host, secure)
            || !is_port_allowed
            || url.as_str().len() > MAX_ENDPOINT
        {
            return Err(InvalidEndpoint);
        }
        let uri = url.as_str().parse().map_err(|_| InvalidEndpoint)?;
        let origin = url.origin().ascii_serialization().into();
        Ok(Self { uri, text: url.as_str().into(), origin })
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Scheme, host and port (RFC 6454 §6.2), without the port if it is the scheme's default.
    pub(crate) fn origin(&self) -> &Arc<str> {
        &self.origin
    }

    /// This URL with `path` in place of its own.
    ///
    /// # Errors
    /// If `path` is not one of a URL.
    pub(crate) fn with_path(&self, path: &str) -> Result<Uri, InvalidEndpoint> {
        format!("{}{path}", self.origin).parse().map_err(|_| InvalidEndpoint)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Endpoint")
    }
}

/// Returns whether the authority has an `@`. The parser drops an empty user name, so its result does not tell.
fn has_user_information(text: &str) -> bool {
    let after_scheme = text.split_once(':').map_or(text, |(_, rest)| rest).trim_start_matches(['/', '\\']);
    after_scheme.split(['/', '\\', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(text: &str, rules: &EndpointRules) -> bool {
        Endpoint::parse(text, rules).is_ok()
    }

    #[test]
    fn endpoints_of_push_services_are_allowed() {
        let rules = EndpointRules::default();
        for text in [
            "https://fcm.googleapis.com/fcm/send/dpH5lCsTSSM:APA91bHqjZxM0VImWWqDRN7U0a3AycjUf4O",
            "https://updates.push.services.mozilla.com/wpush/v2/gAAAAABX3",
            "https://web.push.apple.com/QGuQyavXutnMH",
            "https://wns2-par02p.notify.windows.com/w/?token=BQYAAAAyLeyz%2f%3d",
            "https://ntfy.example.org:8443/upDGv3?up=1",
            "https://93.184.216.34/x",
            "https://[2606:2800:220:1::1]/x",
        ] {
            assert!(allowed(text, &rules), "{text}");
        }
    }

    #[test]
    fn other_urls_are_refused() {
        let rules = EndpointRules::default();
        let long = format!("https://push.example.org/{}", "a".repeat(MAX_ENDPOINT));
        for text in [
            "",
            "push.example.org/x",
            "http://push.example.org/x",
            "ftp://push.example.org/x",
            "file:///etc/passwd",
            "https:///x",
            "https://user@push.example.org/x",
            "https://user:password@push.example.org/x",
            "https://@push.example.org/x",
            "https:\\\\@push.example.org/x",
            "https://push.example.org/x#fragment",
            "https://push.example.org:25/x",
            "https://push.example.org:80/x",
            "https://push.example.org:0/x",
            "https://push.example.org:65536/x",
            "https://push.exam\tple.org/x",
            "https://push.example.org/x y",
            "https://localhost/x",
            "https://intranet/x",
            "https://intranet./x",
            long.as_str(),
        ] {
            assert!(!allowed(text, &rules), "{text}");
        }
    }

    #[test]
    fn addresses_that_are_not_public_are_refused_however_they_are_written() {
        let rules = EndpointRules::default();
        for host in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "127.0.0.1.",
            "0",
            "10.0.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.168.1.1",
            "172.16.0.1",
            "224.0.0.1",
            "[::1]",
            "[::]",
            "[fe80::1]",
            "[fd00::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:93.184.216.34]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "%31%32%37.0.0.1",
        ] {
            assert!(!allowed(&format!("https://{host}/x"), &rules), "{host}");
        }
    }

    #[test]
    fn insecure_rules_allow_loopback_only() {
        let rules = EndpointRules::new(true, &[]);
        for text in ["http://127.0.0.1:80/x", "http://[::1]:9/x", "http://localhost:8080/x", "https://127.0.0.1:81/x"] {
            assert!(allowed(text, &rules), "{text}");
            assert!(!allowed(text, &EndpointRules::default()), "{text}");
        }
        for text in ["http://push.example.org/x", "http://93.184.216.34/x", "https://10.0.0.1/x", "http://10.0.0.1/x"] {
            assert!(!allowed(text, &rules), "{text}");
        }
    }

    #[test]
    fn networks_can_be_forbidden() {
        let forbidden = ["93.184.216.0/24", "2606:4700:64::/96", "127.0.0.2/32"].map(|text| text.parse().unwrap());
        let rules = EndpointRules::new(false, &forbidden);
        for host in ["93.184.216.34", "1572395042", "0x5db8d822", "[2606:4700:64::a00:1]", "[2606:4700:64::10.0.0.1]"] {
            assert!(!allowed(&format!("https://{host}/x"), &rules), "{host}");
        }
        for host in ["93.184.217.34", "[2606:4700:65::a00:1]", "push.example.org"] {
            assert!(allowed(&format!("https://{host}/x"), &rules), "{host}");
        }
        let insecure = EndpointRules::new(true, &forbidden);
        assert!(!allowed("http://127.0.0.2:8080/x", &insecure));
        assert!(allowed("http://127.0.0.1:8080/x", &insecure));
    }

    #[test]
    fn the_origin_leaves_out_the_default_port_and_the_path_can_be_replaced() {
        let endpoint = Endpoint::parse("https://Push.Example.org:443/a?b", &EndpointRules::default()).unwrap();
        assert_eq!(endpoint.origin().as_ref(), "https://push.example.org");
        assert_eq!(endpoint.with_path("/c").unwrap(), "https://push.example.org/c");
        assert_eq!(format!("{endpoint:?}"), "Endpoint");
    }
}
