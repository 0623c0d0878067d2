//! Decides which browser pages may use the API.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use actix_web::http::header::HeaderValue;

/// Maximum number of pairs of origin and host that are logged in one [`LOG_SPAN`].
const MAX_LOGGED: usize = 100;
/// Each refused pair is logged at most once in this time.
const LOG_SPAN: Duration = Duration::from_hours(1);
/// Maximum number of characters of a header that are logged.
const MAX_SHOWN: usize = 100;

/// The browser origins that may use the API. Clones share the memory of what was logged.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    allowed: Vec<String>,
    refused: Arc<Mutex<LoggedRefusals>>,
}

/// The refused pairs of origin and host that were logged since the beginning of the span.
#[derive(Debug, Default)]
struct LoggedRefusals {
    since: Option<Instant>,
    pairs: HashSet<(String, String)>,
}

impl LoggedRefusals {
    /// Whether to log a refusal: each pair once in a span, and at most [`MAX_LOGGED`] pairs. Remembers the pair if so.
    fn should_log(&mut self, pair: (String, String), now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= LOG_SPAN) {
            *self = Self { since: Some(now), pairs: HashSet::new() };
        }
        self.pairs.len() < MAX_LOGGED && self.pairs.insert(pair)
    }
}

impl Origins {
    /// Takes the allowed origins as browsers send them: scheme, host and, unless it is the default, port.
    #[must_use]
    pub fn new(allowed: &[String]) -> Self {
        let allowed = allowed.iter().map(|origin| origin.to_ascii_lowercase()).collect();
        Self { allowed, refused: Arc::default() }
    }

    /// Like [`Self::allows`], and logs a refusal: often a proxy changes `Host`, or the origin is not configured.
    #[must_use]
    pub fn allows_or_logs(&self, origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
        let is_allowed = self.allows(origin, host);
        if !is_allowed {
            let shown = |value: &HeaderValue| -> String {
                String::from_utf8_lossy(value.as_bytes()).chars().take(MAX_SHOWN).collect()
            };
            let (origin, host) = (shown(origin), host.map(shown).unwrap_or_default());
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            if refused.should_log((origin.clone(), host.clone()), Instant::now()) {
                tracing::warn!(
                    origin,
                    host,
                    "a page was refused because its Origin is neither this Host nor allowed; if the page is yours, add its \
                     origin to server.allowed_origins, or let the proxy pass on Host unchanged"
                );
            }
        }
        is_allowed
    }

    /// Whether a page of this origin may use the API. `host` is the `Host` header of its request: a page of the
    /// server's own origin always may.
    #[must_use]
    pub fn allows(&self, origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
        let Ok(origin) = origin.to_str().map(str::to_ascii_lowercase) else { return false };
        if self.allowed.contains(&origin) {
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
    fn a_refused_pair_is_logged_once_an_hour_and_at_most_100_are() {
        let (mut logged, start) = (LoggedRefusals::default(), Instant::now());
        let pair = |n: usize| (format!("https://{n}.example"), "chat.example".to_owned());
        assert!(logged.should_log(pair(0), start));
        assert!(!logged.should_log(pair(0), start));
        assert_eq!((1..500).filter(|n| logged.should_log(pair(*n), start)).count(), MAX_LOGGED - 1);
        assert!(logged.should_log(pair(0), start + LOG_SPAN));
    }

    #[test]
    fn the_servers_own_origin_and_the_configured_ones_are_allowed() {
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
