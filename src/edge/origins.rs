//! Decides which browser pages may use the API.

use actix_web::http::header::HeaderValue;

/// The allowed browser origins.
#[derive(Clone, Debug, Default)]
pub struct Origins(Vec<String>);

impl Origins {
    /// Takes the allowed origins as browsers send them: scheme, host and, unless it is the default, port.
    #[must_use]
    pub fn new(allowed: &[String]) -> Self {
        Self(allowed.iter().map(|origin| origin.to_ascii_lowercase()).collect())
    }

    /// Whether a page of this origin may use the API. `host` is the `Host` header of its request: a page of the
    /// server's own origin always may.
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

/// Returns `host:port`, with the default port if the authority has none.
fn with_port(authority: &str, default_port: &str) -> String {
    let after_host = authority.rfind(']').map_or(0, |end| end + 1);
    if authority[after_host..].contains(':') { authority.to_owned() } else { format!("{authority}{default_port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_origin_of_the_server_and_the_configured_ones_are_allowed() {
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
