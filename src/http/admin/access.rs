//! Access control of the operator's listener: checks the host of a request, then its token.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use actix_web::{
    Error, HttpResponse,
    body::{BoxBody, MessageBody},
    dev::{RequestHead, ServiceRequest, ServiceResponse},
    http::{
        Method, StatusCode,
        header::{self, ContentType, HeaderMap, HeaderValue},
    },
    middleware::Next,
    web::Data,
};
use base64::{Engine, engine::general_purpose::STANDARD};

use super::Admin;
use crate::{http::host::RequestHost, log_throttle::LogThrottle, metrics::AccessDenied};

/// Wrong tokens are logged at most once per interval.
const LOG_EVERY: Duration = Duration::from_mins(1);

/// The access rules of the operator's listener.
pub struct Access {
    /// Hashed, so that comparing takes constant time.
    token: Option<blake3::Hash>,
    hosts: Vec<String>,
    /// Counts and logs wrong tokens.
    wrong_tokens: LogThrottle,
}

impl Access {
    /// Allows requests with this token (any request if it is empty) to an IP address, `localhost` or one of `hosts`.
    #[must_use]
    pub fn new(token: &str, hosts: &[String]) -> Self {
        Self {
            token: Some(token.trim()).filter(|token| !token.is_empty()).map(|token| blake3::hash(token.as_bytes())),
            hosts: hosts.iter().map(|host| host.trim_end_matches('.').to_ascii_lowercase()).collect(),
            wrong_tokens: LogThrottle::new(LOG_EVERY),
        }
    }

    /// Checks a request's host, then its token.
    ///
    /// # Errors
    /// The first check that fails.
    fn check(&self, head: &RequestHead) -> Result<(), AccessDenied> {
        if !self.is_known_host(head) {
            return Err(AccessDenied::Host);
        }
        let checked = self.check_token(&head.headers);
        if checked == Err(AccessDenied::WrongToken) {
            self.log_wrong_token(head.peer_addr);
        }
        checked
    }

    fn log_wrong_token(&self, peer: Option<SocketAddr>) {
        if let Some(guesses) = self.wrong_tokens.count(Instant::now()) {
            let client = peer.map(|peer| peer.ip().to_string());
            tracing::warn!(guesses, client, "a client sent a wrong token to the operator's listener");
        }
    }

    /// Whether the host of the request is an IP address, `localhost` or an allowed name.
    fn is_known_host(&self, head: &RequestHead) -> bool {
        RequestHost::of(head).is_some_and(|host| self.is_known(&host))
    }

    fn is_known(&self, host: &RequestHost) -> bool {
        host.address().is_some() || host.name == "localhost" || self.hosts.contains(&host.name)
    }

    /// Checks the token, if one is configured: a bearer token, or the password of HTTP Basic with any user name.
    fn check_token(&self, headers: &HeaderMap) -> Result<(), AccessDenied> {
        let Some(token) = &self.token else { return Ok(()) };
        let Some(value) = headers.get(header::AUTHORIZATION) else { return Err(AccessDenied::NoToken) };
        match presented_token(value.as_bytes()) {
            Some(presented) if blake3::hash(&presented) == *token => Ok(()),
            _ => Err(AccessDenied::WrongToken),
        }
    }
}

/// Middleware: refuses requests that [`Access`] does not allow, and all methods except GET and HEAD.
pub async fn check_access(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let refused = request.app_data::<Data<Admin>>().and_then(|admin| {
        if let Err(denied) = admin.access.check(request.head()) {
            admin.metrics.access_denied.inc(denied);
            return Some(explain(denied));
        }
        (!matches!(*request.method(), Method::GET | Method::HEAD)).then(|| {
            let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "this listener only answers GET and HEAD");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        })
    });
    match refused {
        Some(response) => Ok(request.into_response(response)),
        None => Ok(next.call(request).await?.map_into_boxed_body()),
    }
}

fn explain(denied: AccessDenied) -> HttpResponse {
    if denied == AccessDenied::Host {
        let why = "unknown host name: use an IP address, or add the name to admin.allowed_hosts";
        return refusal(StatusCode::FORBIDDEN, why);
    }
    let mut response =
        refusal(StatusCode::UNAUTHORIZED, "present admin.token, as a bearer token or as the password of HTTP Basic");
    let challenge = HeaderValue::from_static("Basic realm=\"sealwire\", charset=\"UTF-8\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

/// A response with the reason for a refusal, as plain text.
pub fn refusal(status: StatusCode, why: &'static str) -> HttpResponse {
    HttpResponse::build(status).content_type(ContentType::plaintext()).body(format!("{why}\n"))
}

/// The token in the value of an `Authorization` header.
fn presented_token(value: &[u8]) -> Option<Vec<u8>> {
    let (scheme, rest) = value.split_at(value.iter().position(|byte| *byte == b' ')?);
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(rest.to_vec());
    }
    if scheme.eq_ignore_ascii_case(b"basic") {
        let decoded = STANDARD.decode(rest).ok()?;
        let colon = decoded.iter().position(|byte| *byte == b':')?;
        return Some(decoded[colon + 1..].to_vec());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_localhost_and_allowed_names_are_accepted_as_host() {
        let access = Access::new("", &["Status.Example".to_owned()]);
        for host in [
            "localhost",
            "localhost:9090",
            "LOCALHOST.",
            "127.0.0.1",
            "127.0.0.1:9090",
            "[::1]:9090",
            "192.0.2.7:80",
            "status.example",
            "status.example:443",
            "STATUS.example.",
        ] {
            assert!(RequestHost::parse(host).is_some_and(|host| access.is_known(&host)), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:9090",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "localhost@evil",
            "evil@localhost",
            "xlocalhost",
            "status.example.evil",
            "127.1",
            "0x7f000001",
            "a b",
        ] {
            assert!(!RequestHost::parse(host).is_some_and(|host| access.is_known(&host)), "{host}");
        }
    }

    #[test]
    fn the_token_is_read_from_bearer_and_from_basic() {
        let found = |value: &str| presented_token(value.as_bytes()).map(|token| String::from_utf8(token).unwrap());
        assert_eq!(found("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(found("bearer  abc ").as_deref(), Some("abc"));
        assert_eq!(found(&format!("Basic {}", STANDARD.encode("anyone:a:b"))).as_deref(), Some("a:b"));
        assert_eq!(found(&format!("basic {}", STANDARD.encode(":abc"))).as_deref(), Some("abc"));
        for none in ["", "abc", "Bearer", "Basic !", "Digest abc"] {
            assert_eq!(found(none), None, "{none}");
        }
        assert_eq!(found(&format!("Basic {}", STANDARD.encode("abc"))), None, "a user name without a password");
    }
}
