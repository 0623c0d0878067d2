//! Opens connections, only to addresses that the rules allow.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::Uri;
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, pki_types::ServerName},
};
use tower_service::Service;

use super::look_ups::LookUps;
use crate::endpoint::EndpointRules;

/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 4;
/// How long one address is tried. Shorter than the whole, so that a second address can be reached if the first is not.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);

/// Opens connections.
#[derive(Clone)]
pub(crate) struct Connector {
    rules: EndpointRules,
    look_ups: Arc<LookUps>,
    tls: Arc<ClientConfig>,
    timeout: Duration,
}

/// Why a connection was not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no address of the host is allowed")]
    Forbidden,
    #[error("the connection was not opened in time")]
    Timeout,
    #[error("the host name cannot be resolved: {0}")]
    Name(io::Error),
    #[error("cannot connect: {0}")]
    Tcp(io::Error),
    #[error("the TLS handshake failed: {0}")]
    Tls(io::Error),
}

impl Connector {
    pub(crate) fn new(rules: EndpointRules, look_ups: Arc<LookUps>, tls: Arc<ClientConfig>, timeout: Duration) -> Self {
        Self { rules, look_ups, tls, timeout }
    }

    async fn connect(self, uri: Uri) -> Result<TokioIo<Stream>, ConnectError> {
        let secure = uri.scheme_str() == Some("https");
        let authority = uri.host().unwrap_or_default();
        let host = authority.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(authority);
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });

        let stream = self.connect_tcp(host, port, secure).await?;
        if !secure {
            return Ok(TokioIo::new(Stream::Plain(stream)));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|error| ConnectError::Tls(io::Error::other(error)))?;
        let stream = TlsConnector::from(self.tls).connect(name, stream).await.map_err(ConnectError::Tls)?;
        Ok(TokioIo::new(Stream::Tls(Box::new(stream))))
    }

    /// Connects to the first address that accepts. Every address is checked, whether the host is a literal or a name:
    /// what a name resolved to earlier says nothing about now.
    async fn connect_tcp(&self, host: &str, port: u16, secure: bool) -> Result<TcpStream, ConnectError> {
        let addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => self.look_ups.resolve(host).await.map_err(ConnectError::Name)?,
        };
        if addresses.is_empty() {
            return Err(ConnectError::Name(io::ErrorKind::NotFound.into()));
        }
        let mut failure = ConnectError::Forbidden;
        let allowed = addresses.into_iter().filter(|&address| self.rules.allow(address, secure));
        for address in allowed.take(MAX_ADDRESSES) {
            match timeout(ADDRESS_TIMEOUT, TcpStream::connect(SocketAddr::new(address, port))).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true).map_err(ConnectError::Tcp)?;
                    return Ok(stream);
                }
                Ok(Err(error)) => failure = ConnectError::Tcp(error),
                Err(_) => failure = ConnectError::Timeout,
            }
        }
        Err(failure)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            // The client may go on connecting in the background after its request took another connection.
            timeout(connector.timeout, connector.connect(uri)).await.unwrap_or(Err(ConnectError::Timeout))
        })
    }
}

/// A connection, with TLS or without.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Self::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => Connected::new().negotiated_h2(),
            _ => Connected::new(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
