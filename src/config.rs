//! The configuration: `config/default.toml` (compiled in), then a file, then the environment; typed and checked once.

mod check;
mod layers;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ipnet::IpNet;
use serde::Deserialize;
use thiserror::Error;
use toml::{Table, Value};

use self::{
    check::check,
    layers::{parse_as, same_kind, set},
};
use crate::{domain::otp::ServerSecret, sqlite_file::SqliteUrlError};

const DEFAULTS: &str = include_str!("../config/default.toml");
const ENV_PREFIX: &str = "SEALWIRE__";

/// A configuration that a server cannot be started with.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    File {
        /// The path as it was given.
        path: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration file {path} is not TOML: {why}")]
    Syntax {
        /// The path as it was given.
        path: String,
        /// The parser's reason with the number of the line, but without its text, which may hold a secret.
        why: String,
    },
    /// There is no such setting.
    #[error("unknown setting {0}; config/default.toml lists all settings")]
    Unknown(String),
    /// The value is of the wrong kind, out of range, or has no valid form.
    #[error("{key} takes {takes}")]
    Invalid {
        /// The setting, such as `server.bind`.
        key: String,
        /// What it takes.
        takes: String,
    },
    /// `database.url` names no SQLite file that a server can be run on.
    #[error("database.url: {0}")]
    SqliteUrl(#[from] SqliteUrlError),
}

fn invalid(key: &str, takes: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { key: key.to_owned(), takes: takes.into() }
}

/// Text that must not be shown; `Debug` says only whether it is set.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "unset" } else { "set" })
    }
}

/// All settings.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// `[server]`: the clients' listener.
    pub server: ServerConfig,
    /// `[admin]`: the operator's listener.
    pub admin: AdminConfig,
    /// `[database]`: the store.
    pub database: DatabaseConfig,
    /// `[bus]`: how signals travel between nodes.
    pub bus: BusConfig,
    /// `[mailer]`: how mail is sent.
    pub mailer: MailerConfig,
    /// `[auth]`: sign-in and sessions.
    pub auth: AuthConfig,
    /// `[keys]`: prekeys.
    pub keys: KeysConfig,
    /// `[mailbox]`: what may wait for a device.
    pub mailbox: MailboxConfig,
    /// `[limits]`: limits on clients.
    pub limits: LimitsConfig,
}

/// `[server]`
#[derive(Clone, Debug, Deserialize)]
pub struct ServerConfig {
    /// Address and port; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Origins in the form browsers send.
    pub allowed_origins: Vec<String>,
    /// Proxies whose `X-Forwarded-For` is trusted.
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// Worker threads; 0 for one per core.
    pub workers: usize,
    /// Open sockets; 0 to derive the number from the limit of open files.
    pub max_connections: usize,
    /// Open connections that are not upgraded, or not yet; 0 to derive the number likewise.
    pub max_http_connections: usize,
    /// Bytes that may wait to be sent to one socket.
    pub outbox_bytes: usize,
    /// MiB that requests in flight and outboxes of all sockets may hold together.
    pub memory_budget_mb: usize,
    /// Seconds that stopping may take.
    pub drain_s: u64,
}

/// `[admin]`
#[derive(Clone, Debug, Deserialize)]
pub struct AdminConfig {
    /// Address and port; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Bearer token; empty for none.
    pub token: Secret,
    /// Host names under which the listener may be asked, besides addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
}

/// `[database]`
#[derive(Clone, Debug, Deserialize)]
pub struct DatabaseConfig {
    /// `sqlite://FILE` or `postgres://…`. May hold a password.
    pub url: Secret,
    /// Connections to PostgreSQL; to SQLite, those that read.
    pub max_connections: u32,
}

/// `[bus]`
#[derive(Clone, Debug, Deserialize)]
pub struct BusConfig {
    /// `local`, `redis://…` or `rediss://…`. May hold a password.
    pub url: Secret,
}

/// `[mailer]`
#[derive(Clone, Debug, Deserialize)]
pub struct MailerConfig {
    /// `log:`, `file:DIR`, `smtp://…` or `smtps://…`. May hold a password.
    pub url: Secret,
    /// The sender of mails, an address with or without a name.
    pub from: String,
}

/// `[auth]`
#[derive(Clone, Debug, Deserialize)]
pub struct AuthConfig {
    /// 32 bytes in base64; empty to keep one beside the SQLite file.
    pub secret: Secret,
    /// Days that a session lasts unless it is renewed.
    pub session_days: f64,
    /// Active devices of one user.
    pub max_devices: usize,
}

/// `[keys]`
#[derive(Clone, Debug, Deserialize)]
pub struct KeysConfig {
    /// Unissued keys of a pool at which its owner is notified.
    pub low_watermark: u32,
    /// Default lifetime in days of a signed prekey published without `expires_at`.
    pub signed_prekey_days: f64,
}

/// `[mailbox]`
#[derive(Clone, Debug, Deserialize)]
pub struct MailboxConfig {
    /// Envelopes that may wait for one device.
    pub max_envelopes: u32,
    /// Bytes of content that may wait for one device.
    pub max_bytes: u64,
    /// Envelopes of one sending user that may wait for one device.
    pub max_per_sender: u32,
    /// Bytes of content of one sending user that may wait for one device.
    pub max_bytes_per_sender: u64,
}

/// `[limits]`. 0 turns one off.
#[derive(Clone, Debug, Deserialize)]
pub struct LimitsConfig {
    /// Codes per hour to one address.
    pub otp_per_email_hour: usize,
    /// Codes per day to one address.
    pub otp_per_email_day: usize,
    /// Codes per hour to one address, requested from one client network.
    pub otp_per_email_network_hour: usize,
    /// Codes per hour requested from one client network.
    pub otp_per_network_hour: usize,
    /// Code guesses per minute from one client network.
    pub verify_per_network_minute: usize,
    /// Addresses per hour looked up by one user.
    pub find_per_user_hour: usize,
    /// Key-taking claims of one user on one device that are served in a burst.
    pub claim_burst: u32,
    /// Seconds until one more such claim is served.
    pub claim_refill_s: u64,
    /// Messages per second sent by one device.
    pub sends_per_device_second: u32,
    /// Open sockets of one client network.
    pub connections_per_network: usize,
    /// Open connections of one client network that are not upgraded, or not yet.
    pub http_connections_per_network: usize,
    /// New connections per second from one client network.
    pub connects_per_network_second: u32,
    /// Requests per second on one socket.
    pub requests_per_connection_second: u32,
}

fn networks<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| parse_network(text).ok_or_else(|| serde::de::Error::custom("not a network"))).collect()
}

fn parse_network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

impl Config {
    /// Reads the defaults, then the file, then the environment, and checks every value.
    ///
    /// # Errors
    /// If the file cannot be read, or for the first setting that is unknown or invalid, with what it takes.
    pub fn load(file: Option<&Path>, environment: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let mut settings = defaults();
        if let Some(path) = file {
            let shown = path.display().to_string();
            let text =
                std::fs::read_to_string(path).map_err(|source| ConfigError::File { path: shown.clone(), source })?;
            let layer: Table = text.parse().map_err(|error: toml::de::Error| {
                let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
                ConfigError::Syntax { path: shown, why: format!("line {line}: {}", error.message()) }
            })?;
            for (section, values) in layer {
                let Value::Table(values) = values else { return Err(ConfigError::Unknown(section)) };
                for (key, value) in values {
                    set(&mut settings, &section, &key, |kind| same_kind(kind, value))?;
                }
            }
        }
        for (name, text) in environment {
            let Some(path) = name.strip_prefix(ENV_PREFIX) else { continue };
            let path = path.to_lowercase();
            let (section, key) = path.split_once("__").ok_or_else(|| ConfigError::Unknown(name.clone()))?;
            set(&mut settings, section, key, |kind| parse_as(kind, &text))?;
        }
        check(&settings)?;
        // The kinds match the defaults and `check` has passed what has a grammar, so this names no setting.
        settings.try_into().map_err(|error: toml::de::Error| invalid("the configuration", error.message().to_owned()))
    }

    /// How long a session lasts.
    #[must_use]
    pub fn session_lifetime(&self) -> Duration {
        days(self.auth.session_days)
    }

    /// Default lifetime of a signed prekey published without `expires_at`.
    #[must_use]
    pub fn signed_prekey_lifetime(&self) -> Duration {
        days(self.keys.signed_prekey_days)
    }

    /// The configured server secret, unless `auth.secret` is empty.
    #[must_use]
    pub fn server_secret(&self) -> Option<ServerSecret> {
        decode_secret(self.auth.secret.reveal())
    }
}

/// Decodes a server secret; `None` unless it is 32 bytes in base64.
#[must_use]
pub fn decode_secret(text: &str) -> Option<ServerSecret> {
    STANDARD.decode(text.trim()).ok()?.try_into().ok().map(ServerSecret::new)
}

fn days(days: f64) -> Duration {
    Duration::from_secs_f64(days * 86_400.0)
}

fn defaults() -> Table {
    #[expect(clippy::expect_used, reason = "the text is compiled in, and every test reads it")]
    DEFAULTS.parse().expect("config/default.toml is TOML")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::load(None, environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn the_defaults_hold() {
        let config = load(&[]).unwrap();
        assert_eq!(config.server.bind.to_string(), "127.0.0.1:8080");
        assert_eq!(config.session_lifetime(), Duration::from_hours(30 * 24));
    }

    #[test]
    fn production_toml_holds() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/production.toml");
        let config = Config::load(Some(&path), std::iter::empty()).unwrap();
        assert_eq!(config.server.trusted_proxies.len(), 2);
    }

    #[test]
    fn the_environment_wins_and_lists_are_split() {
        let config = load(&[
            ("SEALWIRE__SERVER__BIND", "127.0.0.1:0"),
            ("SEALWIRE__SERVER__TRUSTED_PROXIES", "10.0.0.0/8, 192.0.2.1"),
            ("SEALWIRE__AUTH__SESSION_DAYS", "0.00005"),
            ("SEALWIRE__LIMITS__CLAIM_BURST", "0"),
            ("PATH", "/bin"),
        ])
        .unwrap();
        assert_eq!(config.server.trusted_proxies.len(), 2);
        assert_eq!(config.session_lifetime(), Duration::from_millis(4320));
        assert_eq!(config.limits.claim_burst, 0);
    }

    #[test]
    fn what_cannot_be_is_named_with_what_it_takes() {
        for (name, value, expected) in [
            ("SEALWIRE__SERVER__BIMD", "x", "server.bimd"),
            ("SEALWIRE__SERVER", "x", "SEALWIRE__SERVER"),
            ("SEALWIRE__SERVER__BIND", "nowhere", "server.bind takes an address"),
            ("SEALWIRE__SERVER__WORKERS", "many", "server.workers takes a whole number"),
            ("SEALWIRE__SERVER__OUTBOX_BYTES", "5", "server.outbox_bytes takes a whole number from"),
            ("SEALWIRE__SERVER__ALLOWED_ORIGINS", "chat.example", "server.allowed_origins takes origins"),
            ("SEALWIRE__SERVER__TRUSTED_PROXIES", "proxy", "server.trusted_proxies takes addresses"),
            ("SEALWIRE__ADMIN__BIND", "0.0.0.0:9090", "admin.token takes a token"),
            ("SEALWIRE__ADMIN__TOKEN", "fifteen letters", "admin.token takes 16 characters or more"),
            ("SEALWIRE__ADMIN__TOKEN", "   fourteen chars     ", "admin.token takes 16 characters or more"),
            ("SEALWIRE__ADMIN__ALLOWED_HOSTS", "status.example:9090", "admin.allowed_hosts takes host names"),
            ("SEALWIRE__AUTH__SECRET", "c2hvcnQ=", "auth.secret takes 32 bytes"),
            ("SEALWIRE__AUTH__SESSION_DAYS", "0", "auth.session_days takes days"),
            ("SEALWIRE__MAILER__URL", "pigeon:", "mailer.url takes"),
            ("SEALWIRE__MAILER__FROM", "nobody", "mailer.from takes"),
            ("SEALWIRE__DATABASE__URL", "mysql://x", "database.url takes"),
            ("SEALWIRE__DATABASE__URL", "sqlite::memory:", "database.url: a SQLite database in memory"),
            ("SEALWIRE__DATABASE__URL", "sqlite://data/", "database.url: data/ is a folder"),
            ("SEALWIRE__BUS__URL", "carrier", "bus.url takes"),
        ] {
            let error = load(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}={value}: {error}");
        }
    }

    #[test]
    fn secrets_stay_out_of_debug() {
        let secret = STANDARD.encode([7; 32]);
        let config =
            load(&[("SEALWIRE__AUTH__SECRET", &secret), ("SEALWIRE__MAILER__URL", "smtp://u:hunter2@h")]).unwrap();
        let shown = format!("{config:?}");
        assert!(!shown.contains(&secret) && !shown.contains("hunter2"), "{shown}");
        assert!(config.server_secret().is_some());
    }
}
