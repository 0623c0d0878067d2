//! Connections to the server: TCP and TLS, single HTTP requests, and the upgrade to a WebSocket. Each request has a
//! connection of its own, since a client makes few.

use std::{io, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{self, HeaderMap, HeaderValue},
    http::{request, uri::Scheme},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use sealwire_protocol::{
    Codec,
    error::{ErrorBody, HttpErrorBody},
    limits::{MAX_BODY_BYTES, MAX_FRAME_BYTES},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

use crate::error::{HttpError, InvalidUrl};

/// An open socket.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// How long opening a connection may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest frame that is read. The server's own frames are far smaller.
const MAX_RECEIVED_BYTES: usize = 2 * MAX_FRAME_BYTES;
/// Room for the frames of a client; tungstenite's default of 128 KiB is for servers.
const BUFFER_BYTES: usize = 16 * 1024;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The address of a server, and how to connect to it.
pub(crate) struct Endpoint {
    /// The `Host` header.
    authority: HeaderValue,
    host: String,
    port: u16,
    /// The path before `/v1`, without a slash at its end.
    prefix: String,
    security: Security,
}

/// Whether and how connections are encrypted.
pub(crate) enum Security {
    Plain,
    #[cfg(feature = "tls")]
    Tls(tokio_rustls::TlsConnector),
    #[cfg(not(feature = "tls"))]
    NotBuilt,
}

/// A response to an HTTP request, read whole.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Bytes,
}

impl Endpoint {
    /// Parses a URL. `security` makes the encryption for `https`.
    pub(crate) fn parse(url: &str, security: impl FnOnce() -> Security) -> Result<Self, InvalidUrl> {
        let uri: Uri = url.parse().map_err(|_| InvalidUrl)?;
        let (Some(authority), Some(scheme)) = (uri.authority(), uri.scheme()) else { return Err(InvalidUrl) };
        let (default_port, security) = if *scheme == Scheme::HTTP {
            (80, Security::Plain)
        } else if *scheme == Scheme::HTTPS {
            (443, security())
        } else {
            return Err(InvalidUrl);
        };
        if authority.as_str().contains('@') || authority.host().is_empty() || uri.query().is_some() {
            return Err(InvalidUrl);
        }
        Ok(Self {
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| InvalidUrl)?,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(default_port),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            security,
        })
    }

    /// Makes a request and reads the response.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<Reply, HttpError> {
        let work = async {
            let request = self.request(method, path, token)?.header(header::CONTENT_TYPE, "application/json");
            let response = self.send(request, body).await?;
            read(response).await
        };
        timeout(limit, work).await.map_err(|_| HttpError::TimedOut)?
    }

    /// Opens a WebSocket. A refusal of the server's is [`HttpError::Refused`].
    pub(crate) async fn upgrade(
        &self,
        token: &str,
        codec: Codec,
        nonce: [u8; 16],
        limit: Duration,
    ) -> Result<Socket, HttpError> {
        let work = async {
            let key = STANDARD.encode(nonce);
            let request = self
                .request(Method::GET, "/v1/socket", Some(token))?
                .header(header::CONNECTION, "Upgrade")
                .header(header::UPGRADE, "websocket")
                .header(header::SEC_WEBSOCKET_VERSION, "13")
                .header(header::SEC_WEBSOCKET_PROTOCOL, codec.subprotocol())
                .header(header::SEC_WEBSOCKET_KEY, &key);
            let response = self.send(request, Vec::new()).await?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(read(response).await?.into_error());
            }
            let is = |name, value: &str| {
                response.headers().get(name).is_some_and(|found| found.as_bytes() == value.as_bytes())
            };
            let accepted = is(header::SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes()))
                && is(header::SEC_WEBSOCKET_PROTOCOL, codec.subprotocol());
            if !accepted {
                return Err(HttpError::Unexpected { status: 101, retry_after: None });
            }
            let upgraded = hyper::upgrade::on(response).await.map_err(transport)?;
            let config = WebSocketConfig::default()
                .max_message_size(Some(MAX_RECEIVED_BYTES))
                .max_frame_size(Some(MAX_RECEIVED_BYTES))
                .read_buffer_size(BUFFER_BYTES)
                .write_buffer_size(BUFFER_BYTES);
            Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config)).await)
        };
        timeout(limit, work).await.map_err(|_| HttpError::TimedOut)?
    }

    fn request(&self, method: Method, path: &str, token: Option<&str>) -> Result<request::Builder, HttpError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.prefix))
            .header(header::HOST, &self.authority)
            .header(header::USER_AGENT, concat!("sealwire-client/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = token {
            let mut value =
                HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| HttpError::InvalidText("the token"))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        Ok(request)
    }

    async fn send(&self, request: request::Builder, body: Vec<u8>) -> Result<Response<Incoming>, HttpError> {
        let request = request.body(Full::new(Bytes::from(body))).map_err(transport)?;
        let stream = timeout(CONNECT_TIMEOUT, self.connect()).await.map_err(|_| HttpError::TimedOut)??;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(transport)?;
        // Ends with the response, or hands the connection over after an upgrade.
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(transport)
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, HttpError> {
        let failed = |error: io::Error| HttpError::Connect { server: format!("{}:{}", self.host, self.port), error };
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        match &self.security {
            Security::Plain => Ok(Box::new(tcp)),
            #[cfg(feature = "tls")]
            Security::Tls(connector) => {
                let name = tokio_rustls::rustls::pki_types::ServerName::try_from(self.host.clone());
                let name = name.map_err(|error| failed(io::Error::other(error)))?;
                Ok(Box::new(connector.connect(name, tcp).await.map_err(failed)?))
            }
            #[cfg(not(feature = "tls"))]
            Security::NotBuilt => Err(HttpError::NoTls),
        }
    }
}

#[cfg(feature = "tls")]
impl Security {
    /// TLS with the system's root certificates.
    pub(crate) fn system() -> Self {
        use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
        let mut roots = RootCertStore::empty();
        // What cannot be read is missing, and shows as a certificate that is not trusted.
        let (_, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = std::sync::Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        #[expect(clippy::expect_used, reason = "the provider has ciphers for both versions")]
        let builder = builder.expect("ring supports TLS 1.2 and 1.3");
        Self::with(builder.with_root_certificates(roots).with_no_client_auth())
    }

    /// TLS with this configuration.
    pub(crate) fn with(mut config: tokio_rustls::rustls::ClientConfig) -> Self {
        // A WebSocket needs HTTP/1.1.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self::Tls(std::sync::Arc::new(config).into())
    }
}

#[cfg(not(feature = "tls"))]
impl Security {
    pub(crate) fn system() -> Self {
        Self::NotBuilt
    }
}

async fn read(response: Response<Incoming>) -> Result<Reply, HttpError> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, 4 * MAX_BODY_BYTES).collect().await.map_err(HttpError::Transport)?.to_bytes();
    Ok(Reply { status: head.status, retry_after: retry_after(&head.headers), body })
}

/// The `Retry-After` header, if it is a number of seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

fn transport(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> HttpError {
    HttpError::Transport(error.into())
}

impl Reply {
    /// Decodes the body of a success.
    ///
    /// # Errors
    /// If the status is another one, or the body has another form.
    pub(crate) fn success<T: serde::de::DeserializeOwned>(self, status: StatusCode) -> Result<T, HttpError> {
        if self.status != status {
            return Err(self.into_error());
        }
        serde_json::from_slice(&self.body).map_err(|_| self.into_unexpected())
    }

    /// The error of a response that is not a success.
    pub(crate) fn into_error(self) -> HttpError {
        let Ok(HttpErrorBody { error }) = serde_json::from_slice::<HttpErrorBody<ErrorBody>>(&self.body) else {
            return self.into_unexpected();
        };
        let header_ms = self.retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        let retry_after_ms = error.retry_after_ms.or(header_ms);
        HttpError::Refused(Box::new(ErrorBody { retry_after_ms, ..error }))
    }

    fn into_unexpected(self) -> HttpError {
        HttpError::Unexpected { status: self.status.as_u16(), retry_after: self.retry_after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(url: &str) -> Option<(String, u16, String, String)> {
        let endpoint = Endpoint::parse(url, || Security::Plain).ok()?;
        let authority = endpoint.authority.to_str().unwrap().to_owned();
        Some((endpoint.host, endpoint.port, authority, endpoint.prefix))
    }

    #[test]
    fn urls_have_a_scheme_a_host_and_optionally_a_port_and_a_path() {
        let expect = |url: &str, host: &str, port, authority: &str, prefix: &str| {
            assert_eq!(parts(url), Some((host.to_owned(), port, authority.to_owned(), prefix.to_owned())), "{url}");
        };
        expect("http://127.0.0.1:8080", "127.0.0.1", 8080, "127.0.0.1:8080", "");
        expect("https://chat.example/", "chat.example", 443, "chat.example", "");
        expect("http://[::1]:81/chat/", "::1", 81, "[::1]:81", "/chat");
        for wrong in [
            "",
            "chat.example",
            "/v1",
            "ftp://chat.example",
            "http://",
            "http://a@b.example",
            "http://b.example/?q",
            "ws://b.example",
        ] {
            assert_eq!(parts(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_the_error_object_makes_a_refusal() {
        let reply = |status: u16, body: &str| Reply {
            status: StatusCode::from_u16(status).unwrap(),
            retry_after: Some(Duration::from_secs(3)),
            body: Bytes::copy_from_slice(body.as_bytes()),
        };
        let refused = reply(503, r#"{"error":{"code":"unavailable","message":"m","retryable":true}}"#).into_error();
        assert_eq!(refused.code(), Some(sealwire_protocol::Code::Unavailable));
        assert_eq!(refused.retry_after(), Some(Duration::from_secs(3)), "from the header");
        for body in ["", "<html>bad gateway</html>", "{}"] {
            let error = reply(502, body).into_error();
            assert!(matches!(error, HttpError::Unexpected { status: 502, .. }) && error.retryable(), "{body}");
        }
        assert!(!reply(404, "<html>").into_error().retryable());
    }
}
