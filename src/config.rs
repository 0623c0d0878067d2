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
use crate::{domain::otp::ServerSecret, service::LimitSettings};

const DEFAULTS: &str = include_str!("../config/default.toml");
const ENV_PREFIX: &str = "SEALWIRE__";

/// A configuration that cannot be started with.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    File {
        /// As given.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration file {path} is not TOML: {why}")]
    Syntax {
        /// As given.
        path: String,
        /// Why; without the line itself, which may hold a secret.
        why: String,
    },
    /// A key that means nothing.
    #[error("unknown setting {0}; config/default.toml lists all settings")]
    Unknown(String),
    /// A value that cannot be.
    #[error("{key} takes {takes}")]
    Invalid {
        /// The setting.
        key: String,
        /// What it takes.
        takes: String,
    },
}

fn invalid(key: &str, takes: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { key: key.to_owned(), takes: takes.into() }
}

/// Text that Debug does not show.
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
    /// The clients' listener.
    pub server: ServerConfig,
    /// The operators' listener.
    pub admin: AdminConfig,
    /// The store.
    pub database: DatabaseConfig,
    /// The bus.
    pub bus: BusConfig,
    /// Mail.
    pub mailer: MailerConfig,
    /// Sign-in and sessions.
    pub auth: AuthConfig,
    /// Prekeys.
    pub keys: KeysConfig,
    /// Mailboxes.
    pub mailbox: MailboxConfig,
    /// Limits on clients.
    pub limits: LimitSettings,
}

/// `[server]`
#[derive(Clone, Debug, Deserialize)]
pub struct ServerConfig {
    /// Address and port; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Origins in the form browsers send.
    pub allowed_origins: Vec<String>,
    /// Proxies whose word about the client is believed.
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// Threads; 0: one per core.
    pub workers: usize,
    /// Sockets; 0: derived.
    pub max_connections: usize,
    /// Connections that are no sockets; 0: derived.
    pub max_http_connections: usize,
    /// Bytes per socket.
    pub outbox_bytes: usize,
    /// MiB per node.
    pub memory_budget_mb: usize,
    /// Seconds that stopping may take.
    pub drain_s: u64,
}

/// `[admin]`
#[derive(Clone, Debug, Deserialize)]
pub struct AdminConfig {
    /// Address and port.
    pub bind: SocketAddr,
    /// Bearer token.
    pub token: Secret,
    /// Host names.
    pub allowed_hosts: Vec<String>,
}

/// `[database]`
#[derive(Clone, Debug, Deserialize)]
pub struct DatabaseConfig {
    /// May hold a password, so Debug does not show it.
    pub url: Secret,
    /// Connections for reading.
    pub max_connections: u32,
}

/// `[bus]`
#[derive(Clone, Debug, Deserialize)]
pub struct BusConfig {
    /// May hold a password.
    pub url: Secret,
}

/// `[mailer]`
#[derive(Clone, Debug, Deserialize)]
pub struct MailerConfig {
    /// May hold a password.
    pub url: Secret,
    /// The sender.
    pub from: String,
}

/// `[auth]`
#[derive(Clone, Debug, Deserialize)]
pub struct AuthConfig {
    /// 32 bytes in base64, or empty.
    pub secret: Secret,
    /// Days.
    pub session_days: f64,
    /// Active devices.
    pub max_devices: usize,
}

/// `[keys]`
#[derive(Clone, Debug, Deserialize)]
pub struct KeysConfig {
    /// Keys.
    pub low_watermark: u32,
    /// Days.
    pub signed_prekey_days: f64,
}

/// `[mailbox]`
#[derive(Clone, Debug, Deserialize)]
pub struct MailboxConfig {
    /// Envelopes per device.
    pub max_envelopes: u32,
    /// Bytes of content per device.
    pub max_bytes: u64,
    /// Envelopes of one sending user per device.
    pub max_per_sender: u32,
    /// Bytes of one sending user per device.
    pub max_bytes_per_sender: u64,
}

fn networks<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| parse_network(text).ok_or_else(|| serde::de::Error::custom("not a network"))).collect()
}

fn parse_network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

impl Config {
    /// Reads the layers and checks every value.
    ///
    /// # Errors
    /// Names the first setting that is unknown or impossible, and what it takes.
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

    /// How long a signed prekey is served that does not say itself.
    #[must_use]
    pub fn signed_prekey_lifetime(&self) -> Duration {
        days(self.keys.signed_prekey_days)
    }

    /// The configured server secret, if there is one.
    #[must_use]
    pub fn server_secret(&self) -> Option<ServerSecret> {
        decode_secret(self.auth.secret.reveal())
    }
}

/// Reads a server secret's text form.
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
