//! Asks the server on this machine whether it is ready, over its own port. For container runtimes, whose images have no
//! other HTTP client.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use thiserror::Error;

/// How long connecting, writing or reading may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of an answer that are read; the real one is far shorter.
const MOST_BYTES: u64 = 4096;

/// Why the server is not ready.
#[derive(Debug, Error)]
pub enum NotReady {
    /// The port is 0, so the server listens on one that is not known here.
    #[error("server.bind takes any free port: give it a number")]
    NoPort,
    /// Nothing answers.
    #[error("nothing answers at {address}: {source}")]
    Silent {
        /// The address that was asked.
        address: SocketAddr,
        /// Why connecting, writing or reading failed.
        source: io::Error,
    },
    /// It answers with something else than 200; its status line and body.
    #[error("not ready: {0}")]
    Refused(String),
}

/// Asks `/readyz` of the server that listens on `bind`.
///
/// # Errors
/// If it does not answer that it is ready.
pub fn ask(bind: SocketAddr) -> Result<(), NotReady> {
    if bind.port() == 0 {
        return Err(NotReady::NoPort);
    }
    let address = reachable(bind);
    let answer = exchange(address).map_err(|source| NotReady::Silent { address, source })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.starts_with("HTTP/1.1 200 ") {
        return Ok(());
    }
    let status = head.lines().next().unwrap_or_default();
    Err(NotReady::Refused(format!("{status} {body}")))
}

/// The address at which to ask a server that listens on `bind`: the loopback address if it listens on all.
fn reachable(bind: SocketAddr) -> SocketAddr {
    let ip = match bind.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bind.port())
}

fn exchange(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MOST_BYTES).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_all_addresses_is_asked_on_the_loopback_one() {
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
