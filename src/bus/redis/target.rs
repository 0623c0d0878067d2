//! Finds the Redis server of `bus.url`: the one at that address, or the master that sentinels report.

use form_urlencoded::parse;
use redis::{
    Client, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, RedisError,
    io::tcp::TcpSettings,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use thiserror::Error;

/// The default port of a sentinel.
const SENTINEL_PORT: u16 = 26379;

/// `bus.url` is malformed. The text is the form that it takes, and contains no part of the URL, which may hold a
/// password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BusUrlError {
    /// It is not the URL of a Redis server.
    #[error(
        "redis://[USER:PASSWORD@]HOST[:PORT][/DB] or rediss://…; in a password, percent-encode characters such as @ / # ? %"
    )]
    Server,
    /// It begins like a URL of sentinels but is not one.
    #[error(
        "redis-sentinel://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…][/DB]?master=NAME, with a percent-encoded password"
    )]
    Sentinels,
}

/// The server to connect to.
pub(super) enum BusTarget {
    /// A server at a fixed address.
    Server(Box<Client>),
    /// The server that sentinels report as the master.
    Sentinels(Box<SentinelClient>),
}

impl BusTarget {
    /// Parses a `redis://`, `rediss://` or `redis-sentinel://` URL.
    ///
    /// # Errors
    /// If the URL is invalid or has another scheme.
    pub fn parse(url: &str) -> Result<Self, BusUrlError> {
        match url.strip_prefix("redis-sentinel://") {
            Some(rest) => sentinels(rest).map(|client| Self::Sentinels(Box::new(client))).ok_or(BusUrlError::Sentinels),
            None => server(url).map(|client| Self::Server(Box::new(client))).ok_or(BusUrlError::Server),
        }
    }

    /// A client of the server. Each call asks the sentinels again.
    ///
    /// # Errors
    /// If no sentinel answers, or the server that they report is not a master.
    pub async fn client(&mut self) -> Result<Client, RedisError> {
        match self {
            Self::Server(client) => Ok((**client).clone()),
            Self::Sentinels(client) => client.async_get_client().await,
        }
    }
}

fn tcp_settings() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn server(url: &str) -> Option<Client> {
    // Without a host, the library would connect to 127.0.0.1.
    let authority = url.split_once("://")?.1;
    if authority.is_empty() || authority.starts_with('/') {
        return None;
    }
    let info = url.into_connection_info().ok()?;
    if info.redis_settings().db() < 0 {
        return None;
    }
    let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Client::open(info.set_redis_settings(redis).set_tcp_settings(tcp_settings())).ok()
}

fn sentinels(rest: &str) -> Option<SentinelClient> {
    let (place, query) = rest.split_once('?')?;
    let master = parse(query.as_bytes()).find(|(key, name)| key == "master" && !name.is_empty())?.1;
    let (place, database) = match place.split_once('/') {
        Some((place, "")) => (place, 0),
        Some((place, database)) => (place, database.parse().ok()?),
        None => (place, 0),
    };
    let (credentials, hosts) = match place.rsplit_once('@') {
        Some((credentials, hosts)) => (Some(credentials), hosts),
        None => (None, place),
    };
    let addresses = hosts.split(',').map(address).collect::<Option<Vec<_>>>()?;
    let mut builder = SentinelClientBuilder::new(addresses, &*master, SentinelServerType::Master).ok()?;
    builder = builder.set_client_to_redis_protocol(ProtocolVersion::RESP3).set_client_to_redis_db(database);
    builder = builder.set_client_to_redis_tcp_settings(tcp_settings());
    if let Some((user, password)) = credentials.map(|text| text.split_once(':').unwrap_or((text, ""))) {
        if !user.is_empty() {
            builder = builder.set_client_to_redis_username(decoded(user)?);
        }
        if !password.is_empty() {
            builder = builder.set_client_to_redis_password(decoded(password)?);
        }
    }
    builder.build().ok()
}

fn address(text: &str) -> Option<ConnectionAddr> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') => (host, port.parse().ok()?),
        _ => (text, SENTINEL_PORT),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then(|| ConnectionAddr::Tcp(host.to_owned(), port))
}

fn decoded(text: &str) -> Option<String> {
    percent_encoding::percent_decode_str(text).decode_utf8().ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_servers_and_sentinels_are_accepted() {
        for url in [
            "redis://127.0.0.1",
            "redis://:p%23ss@127.0.0.1:6379/1",
            "rediss://chat.example:6380",
            "redis-sentinel://a:26379,b:26379?master=chat",
            "redis-sentinel://:p%40ss@[::1]:26379,b/2?master=chat",
        ] {
            assert!(BusTarget::parse(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn the_error_of_a_malformed_url_contains_no_part_of_it() {
        for url in [
            "redis://",
            "redis:///1",
            "redis://:p#ss@127.0.0.1:6379",
            "redis://:p/ss@127.0.0.1:6379",
            "redis-sentinel://",
            "redis-sentinel://a:26379",
            "redis-sentinel://a:26379?master",
            "redis-sentinel://?master=chat",
            "redis-sentinel://a:p#ss?master=chat",
            "redis-sentinel://a/x?master=chat",
        ] {
            let error = BusTarget::parse(url).err().unwrap_or_else(|| panic!("{url}")).to_string();
            assert!(!error.contains("p#ss") && !error.contains("ss@1"), "{error}");
        }
    }
}
