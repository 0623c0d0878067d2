//! What both edges share of HTTP: error responses, bearer tokens, and which browser pages may talk to the server.

use actix_web::{
    HttpResponse,
    http::{
        StatusCode,
        header::{self, HeaderMap, HeaderValue},
    },
};
use serde::Serialize;

use super::{Code, Problem, code::REQUEST_TIMEOUT};
use crate::domain::token::Token;

#[derive(Serialize)]
struct Body<'a> {
    error: &'a Problem,
}

impl Problem {
    /// The HTTP response that carries this error.
    #[must_use]
    pub fn response(&self) -> HttpResponse {
        let status = self.status();
        let mut response = HttpResponse::build(status);
        if let Some(seconds) = self.retry_after_s() {
            response.insert_header((header::RETRY_AFTER, seconds.to_string()));
        }
        if self.http_status() == REQUEST_TIMEOUT {
            // What is still to come of the request would be taken for the next.
            response.force_close();
        }
        if self.code() == Code::Unauthorized {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        response.insert_header((header::CACHE_CONTROL, "no-store")).json(Body { error: self })
    }
}

impl Problem {
    fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The same as the bytes of an answer on a connection that ends with it, for one that no application has seen.
    #[must_use]
    pub fn as_http1(&self) -> Vec<u8> {
        let status = self.status();
        let body = serde_json::to_vec(&Body { error: self }).unwrap_or_default();
        let wait = self.retry_after_s().map(|seconds| format!("retry-after: {seconds}\r\n")).unwrap_or_default();
        let head = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncache-control: no-store\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n{wait}\r\n",
            body.len()
        );
        [head.into_bytes(), body].concat()
    }
}

/// A token in the `Authorization` header: `None` where there is no such header, an inner `None` where it holds no token.
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<Option<Token>> {
    let value = headers.get(header::AUTHORIZATION)?;
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| Token::parse(token.trim()))?
    });
    Some(token)
}

/// The browser origins that may use the API.
#[derive(Clone, Debug, Default)]
pub struct Origins(Vec<String>);

impl Origins {
    /// Takes origins in the form browsers send.
    #[must_use]
    pub fn new(allowed: &[String]) -> Self {
        Self(allowed.iter().map(|origin| origin.to_ascii_lowercase()).collect())
    }

    /// Whether a page of this origin may talk to a server that it reached as `host`. The server's own origin always
    /// may.
    #[must_use]
    pub fn allows(&self, origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
        let Ok(origin) = origin.to_str().map(str::to_ascii_lowercase) else { return false };
        if self.0.contains(&origin) {
            return true;
        }
        let Some((scheme, authority)) = origin.split_once("://") else { return false };
        let default_port = match scheme {
            "http" => ":80",
            "https" => ":443",
            _ => return false,
        };
        let host = host.and_then(|host| host.to_str().ok()).map(str::to_ascii_lowercase).unwrap_or_default();
        !host.is_empty() && with_port(authority, default_port) == with_port(&host, default_port)
    }
}

/// `host:port`, with the default port where none is written.
fn with_port(authority: &str, default_port: &str) -> String {
    let after_host = authority.rfind(']').map_or(0, |end| end + 1);
    if authority[after_host..].contains(':') { authority.to_owned() } else { format!("{authority}{default_port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_origin_and_the_configured_ones_are_allowed() {
        let origins = Origins::new(&["https://chat.example".to_owned()]);
        let allows = |origin: &'static str, host: &'static str| {
            origins.allows(&HeaderValue::from_static(origin), Some(&HeaderValue::from_static(host)))
        };
        assert!(allows("https://chat.example", "api.example"));
        assert!(allows("https://api.example", "api.example"));
        assert!(allows("https://api.example", "API.example:443"));
        assert!(allows("http://localhost:8080", "localhost:8080"));
        assert!(allows("http://[::1]:8080", "[::1]:8080"));
        assert!(allows("http://[::1]", "[::1]:80"));
        for (origin, host) in [
            ("https://evil.example", "api.example"),
            ("https://chat.example:444", "api.example"),
            ("https://api.example", "api.example:80"),
            ("https://chat.example.evil", "api.example"),
            ("null", "null"),
            ("file://", ""),
            ("https://", ""),
        ] {
            assert!(!allows(origin, host), "{origin} {host}");
        }
    }
}
