//! `sealwire healthcheck`: asks the server on this machine whether it is ready. For container images without an HTTP
//! client.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use thiserror::Error;

/// Timeout for connecting, and for each read and write.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum number of bytes to read of a response. A real one is far shorter.
const MAX_RESPONSE_BYTES: u64 = 4096;

/// The server is not ready, or cannot be asked.
#[derive(Debug, Error)]
pub enum NotReady {
    /// `server.bind` has port 0, so the server's port is unknown.
    #[error("server.bind has port 0, so the server's port is unknown: set a port")]
    NoPort,
    /// No server answers.
    #[error("nothing answers at {address}: {source}")]
    NoAnswer {
        /// The address that was asked.
        address: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The server answers with a status other than 200. Contains the status line and the body.
    #[error("not ready: {0}")]
    Refused(String),
}

/// Requests `/readyz` from the server that listens on `bind`.
///
/// # Errors
/// If the server does not answer 200.
pub fn ask(bind: SocketAddr) -> Result<(), NotReady> {
    if bind.port() == 0 {
        return Err(NotReady::NoPort);
    }
    let address = reachable(bind);
    let answer = exchange(address).map_err(|source| NotReady::NoAnswer { address, source })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.starts_with("HTTP/1.1 200 ") {
        return Ok(());
    }
    let status = head.lines().next().unwrap_or_default();
    Err(NotReady::Refused(format!("{status} {body}")))
}

/// The address at which to reach a server that listens on `bind`: the loopback address if it listens on all addresses.
fn reachable(bind: SocketAddr) -> SocketAddr {
    let ip = match bind.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bind.port())
}

fn exchange(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_RESPONSE_BYTES).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_listens_on_all_addresses_is_asked_on_the_loopback_address() {
        for (bind, asked) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::1]:8080"),
            ("127.0.0.9:8080", "127.0.0.9:8080"),
            ("[fd00::1]:1", "[fd00::1]:1"),
        ] {
            assert_eq!(reachable(bind.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
