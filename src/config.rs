//! The configuration: `config/default.toml` (compiled in), then a file, then the environment; typed and checked once.

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

/// Replaces a known setting by what `read` makes of the new value, given the default as an example of its kind.
fn set(
    settings: &mut Table,
    section: &str,
    key: &str,
    read: impl FnOnce(&Value) -> Result<Value, &'static str>,
) -> Result<(), ConfigError> {
    let name = format!("{section}.{key}");
    let current = settings.get_mut(section).and_then(Value::as_table_mut).and_then(|table| table.get_mut(key));
    let Some(current) = current else { return Err(ConfigError::Unknown(name)) };
    *current = read(current).map_err(|takes| invalid(&name, takes))?;
    Ok(())
}

fn same_kind(example: &Value, value: Value) -> Result<Value, &'static str> {
    #[expect(clippy::cast_precision_loss, reason = "a number of days")]
    match (example, value) {
        (Value::Float(_), Value::Integer(whole)) => Ok(Value::Float(whole as f64)),
        (example, value) if example.same_type(&value) => Ok(value),
        (example, _) => Err(kind(example)),
    }
}

fn parse_as(example: &Value, text: &str) -> Result<Value, &'static str> {
    let list = || text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(|item| item.to_owned().into());
    let parsed = match example {
        Value::Integer(_) => text.trim().parse().ok().map(Value::Integer),
        Value::Float(_) => text.trim().parse().ok().map(Value::Float),
        Value::Boolean(_) => text.trim().parse().ok().map(Value::Boolean),
        Value::Array(_) => Some(Value::Array(list().collect())),
        _ => Some(Value::String(text.to_owned())),
    };
    parsed.ok_or(kind(example))
}

fn kind(example: &Value) -> &'static str {
    match example {
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Array(_) => "a list",
        _ => "a text",
    }
}

/// Checks the values that have a range or a grammar.
fn check(settings: &Table) -> Result<(), ConfigError> {
    let value = |name: &str| {
        let (section, key) = name.split_once('.')?;
        settings.get(section)?.get(key)
    };
    let text = |name: &str| value(name).and_then(Value::as_str).unwrap_or_default();
    let whole = |name: &str| value(name).and_then(Value::as_integer).unwrap_or_default();
    let number = |name: &str| value(name).and_then(Value::as_float).unwrap_or_default();
    let list = |name: &str| value(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let require = |holds: bool, name: &str, takes: &str| if holds { Ok(()) } else { Err(invalid(name, takes)) };

    for name in ["server.bind", "admin.bind"] {
        require(text(name).parse::<SocketAddr>().is_ok(), name, "an address and port, such as 127.0.0.1:8080")?;
    }
    for origin in list("server.allowed_origins") {
        let holds = origin.as_str().is_some_and(is_origin);
        require(holds, "server.allowed_origins", "origins, such as https://chat.example, without a path")?;
    }
    for proxy in list("server.trusted_proxies") {
        let holds = proxy.as_str().is_some_and(|text| parse_network(text).is_some());
        require(holds, "server.trusted_proxies", "addresses or networks, such as 10.0.0.0/8")?;
    }
    let loopback = text("admin.bind").parse::<SocketAddr>().is_ok_and(|bind| bind.ip().is_loopback());
    require(
        loopback || !text("admin.token").is_empty(),
        "admin.token",
        "a token, since admin.bind is not a loopback address",
    )?;
    for (name, range) in [
        ("server.workers", 0..=1024),
        ("server.max_connections", 0..=10_000_000),
        ("server.outbox_bytes", 65_536..=1 << 30),
        ("server.memory_budget_mb", 16..=1 << 20),
        ("server.drain_s", 3..=3600),
        ("database.max_connections", 1..=10_000),
        ("auth.max_devices", 1..=100),
        ("keys.low_watermark", 0..=500),
        ("mailbox.max_envelopes", 1..=1_000_000_000),
        ("mailbox.max_bytes", 32_768..=1 << 40),
        ("mailbox.max_per_sender", 1..=1_000_000_000),
        ("mailbox.max_bytes_per_sender", 32_768..=1 << 40),
        ("limits.otp_per_email_hour", 0..=1000),
        ("limits.otp_per_email_day", 0..=1000),
        ("limits.otp_per_email_network_hour", 0..=1000),
        ("limits.otp_per_network_hour", 0..=1_000_000),
        ("limits.verify_per_network_minute", 0..=1_000_000),
        ("limits.find_per_user_hour", 0..=1_000_000),
        ("limits.claim_burst", 0..=1_000_000),
        ("limits.claim_refill_s", 1..=31_536_000),
        ("limits.sends_per_device_second", 0..=1_000_000),
    ] {
        let takes = format!("a whole number from {} to {}", range.start(), range.end());
        require(range.contains(&whole(name)), name, &takes)?;
    }
    for (name, most) in [("auth.session_days", 3650.0), ("keys.signed_prekey_days", 90.0)] {
        let days = number(name);
        require(days > 0.0 && days <= most, name, &format!("days, above 0 and up to {most}"))?;
    }
    let postgres = ["postgres://", "postgresql://"].iter().any(|scheme| text("database.url").starts_with(scheme));
    require(postgres || text("database.url").starts_with("sqlite:"), "database.url", "sqlite://FILE or postgres://…")?;
    let bus = text("bus.url");
    require(bus == "local" || bus.starts_with("redis://"), "bus.url", "\"local\" or redis://HOST:PORT")?;
    let mailer = text("mailer.url");
    let known = mailer == "log:"
        || ["file:", "smtp://", "smtps://"]
            .iter()
            .any(|scheme| mailer.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()));
    require(known, "mailer.url", "log:, file:DIR, smtp://HOST or smtps://HOST")?;
    let from = text("mailer.from").parse::<lettre::message::Mailbox>();
    require(from.is_ok(), "mailer.from", "a sender, such as Sealwire <no-reply@chat.example>")?;
    let secret = text("auth.secret");
    require(secret.is_empty() || decode_secret(secret).is_some(), "auth.secret", "32 bytes in base64")?;
    require(
        !postgres || !secret.is_empty(),
        "auth.secret",
        "32 bytes in base64, the same on every node, with PostgreSQL",
    )
}

/// `scheme://host[:port]`, as browsers write it.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    matches!(scheme, "http" | "https" | "app" | "capacitor" | "tauri" | "chrome-extension" | "moz-extension")
        && !authority.is_empty()
        && !authority.contains(['/', '?', '#', '@', ' '])
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
