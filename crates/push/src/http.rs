//! The HTTP client: bounded answers, no redirects, no proxies, and only addresses that the rules allow.

mod connector;
mod look_ups;
mod resolver;

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, StatusCode,
    body::Incoming,
    header::{HeaderValue, RETRY_AFTER},
};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use tokio_rustls::rustls::ClientConfig;

use self::connector::{ConnectError, Connector};
pub(crate) use self::look_ups::LookUps;
pub use self::resolver::{Resolve, Resolving, SystemResolver};
use crate::{
    endpoint::EndpointRules,
    outcome::{Outcome, Reason},
};

/// The largest head of an answer over HTTP/1, and the largest header list over HTTP/2, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// The most that is read of a body, in bytes.
const MAX_BODY: usize = 8 * 1024;
/// What an HTTP/2 server may send of a body, and of all bodies of a connection, before it is read, in bytes.
const STREAM_WINDOW: u32 = 16 * 1024;
const CONNECTION_WINDOW: u32 = 64 * 1024;
/// How long the rest of a body is waited for once the status is known.
const BODY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection without requests is kept, if it is kept at all.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections without requests that are kept for each origin. Over HTTP/2 it is one.
const IDLE_PER_ORIGIN: usize = 2;
/// How often an HTTP/2 connection is checked while it has requests, and how long the answer may take. Without it, a
/// connection that broke silently would be used until TCP gives up, which takes many minutes.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long APNs connections are kept. Apple asks for connections that are kept.
const APNS_IDLE_TIMEOUT: Duration = Duration::from_hours(1);

/// How connections are made and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    /// A connection for the request alone: the number of origins that connections are kept for is limited.
    Single,
    /// Connections are kept for further requests.
    Kept,
    /// HTTP/2 only, with one connection that is kept.
    Http2,
}

/// Sends requests.
pub(crate) struct HttpClient {
    single: Client<Connector, Full<Bytes>>,
    kept: Client<Connector, Full<Bytes>>,
    http2: Client<Connector, Full<Bytes>>,
}

/// What the head of an answer says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    /// The wait that the service asks for, at most [`Outcome::MAX_WAIT`].
    pub(crate) retry_after: Option<Duration>,
}

/// An answer, of which the body has not been read.
pub(crate) struct Answer {
    pub(crate) head: Head,
    body: Incoming,
}

impl HttpClient {
    /// `timeout` limits how long a connection takes to open. Names of origins that connections are not kept for are
    /// looked up by `single_look_ups`, so that their look-ups cannot delay the others.
    pub(crate) fn new(
        rules: &EndpointRules,
        tls: &ClientConfig,
        timeout: Duration,
        look_ups: LookUps,
        single_look_ups: LookUps,
    ) -> Self {
        let (look_ups, single_look_ups) = (Arc::new(look_ups), Arc::new(single_look_ups));
        let alpn = |protocols: &[&[u8]]| {
            let mut tls = tls.clone();
            tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            tls
        };
        let either = Arc::new(alpn(&[b"h2", b"http/1.1"]));
        let http2 = Arc::new(alpn(&[b"h2"]));
        let connector = |look_ups, tls| Connector::new(rules.clone(), look_ups, tls, timeout);

        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http1_max_buf_size(MAX_HEAD)
            .http2_max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT);
        let single = builder.pool_max_idle_per_host(0).build(connector(single_look_ups, Arc::clone(&either)));
        let kept = builder.pool_max_idle_per_host(IDLE_PER_ORIGIN).build(connector(Arc::clone(&look_ups), either));
        let http2 = builder.http2_only(true).pool_idle_timeout(APNS_IDLE_TIMEOUT).build(connector(look_ups, http2));
        Self { single, kept, http2 }
    }

    /// Sends a request. Returns when the head of the answer is there.
    ///
    /// # Errors
    /// The outcome if there is no answer.
    pub(crate) async fn send(
        &self,
        pool: Pool,
        request: Request<Full<Bytes>>,
        now: SystemTime,
    ) -> Result<Answer, Outcome> {
        let client = match pool {
            Pool::Single => &self.single,
            Pool::Kept => &self.kept,
            Pool::Http2 => &self.http2,
        };
        let response = client.request(request).await.map_err(|error| no_answer(&error))?;
        let (parts, body) = response.into_parts();
        let retry_after = parts.headers.get(RETRY_AFTER).and_then(|value| parse_retry_after(value, now));
        Ok(Answer { head: Head { status: parts.status, retry_after }, body })
    }
}

impl Head {
    /// What an answer means that has no meaning of its own in one of the services.
    pub(crate) fn judge(&self) -> Outcome {
        let later = |reason| Outcome::Later { wait: self.retry_after, reason };
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => later(Reason::RateLimited),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => later(Reason::ServerError),
            status if status.is_server_error() => later(Reason::ServerError),
            status if status.is_redirection() => Outcome::Failed(Reason::Redirected),
            _ => Outcome::Failed(Reason::Rejected),
        }
    }
}

impl Answer {
    /// Reads the body: its first 8 KiB, or what came of it in time. Reading to the end keeps the connection usable, so
    /// this is called even if the body is not needed.
    pub(crate) async fn read(mut self) -> Vec<u8> {
        let mut read = Vec::new();
        let whole = async {
            while let Some(Ok(frame)) = self.body.frame().await {
                let Ok(data) = frame.into_data() else { continue };
                let room = MAX_BODY - read.len();
                read.extend_from_slice(&data[..data.len().min(room)]);
                if data.len() > room {
                    break;
                }
            }
        };
        // A body that is not whole is judged like any other that does not parse.
        let _ = tokio::time::timeout(BODY_TIMEOUT, whole).await;
        read
    }
}

/// What it means that there is no answer.
fn no_answer(error: &(dyn Error + 'static)) -> Outcome {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<ConnectError>() {
            return match error {
                ConnectError::Forbidden => Outcome::Failed(Reason::ForbiddenAddress),
                ConnectError::Timeout => Outcome::later(Reason::Timeout),
                ConnectError::Name(_) => Outcome::later(Reason::Name),
                ConnectError::Tcp(_) => Outcome::later(Reason::Connection),
                ConnectError::Tls(_) => Outcome::later(Reason::Tls),
            };
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && error.is_parse()
        {
            return Outcome::later(Reason::Protocol);
        }
        cause = error.source();
    }
    Outcome::later(Reason::Connection)
}

/// Reads `Retry-After` (RFC 9110 §10.2.3): seconds, or a date.
fn parse_retry_after(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are a long time too.
        text.parse().map_or(Duration::MAX, Duration::from_secs)
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(wait.min(Outcome::MAX_WAIT))
}

/// Seconds since 1970, as tokens have them; 0 before.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_of_at_most_a_day() {
        let now = UNIX_EPOCH + Duration::from_secs(1_445_412_421);
        let parse = |text| parse_retry_after(&HeaderValue::from_static(text), now).map(|wait| wait.as_secs());
        assert_eq!(parse("120"), Some(120));
        assert_eq!(parse(" 0 "), Some(0));
        assert_eq!(parse("Wed, 21 Oct 2015 07:28:00 GMT"), Some(59));
        assert_eq!(parse("Wed, 21 Oct 2015 07:26:00 GMT"), Some(0));
        assert_eq!(parse("99999999999999999999999"), Some(86_400));
        assert_eq!(parse("Fri, 31 Dec 9999 23:59:59 GMT"), Some(86_400));
        for text in ["", "-1", "1.5", "soon", "+1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
