//! The configuration. Later layers override earlier ones: `config/default.toml` (compiled in), a file, the environment.
//! All values are checked once, at the start.

mod check;
mod layers;
mod shown;

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
    shown::{Source, Sources},
};
use crate::{domain::otp::ServerSecret, sqlite_file::SqliteUrlError, usage_limits::UsageLimits};

const DEFAULTS: &str = include_str!("../config/default.toml");
const ENV_PREFIX: &str = "SEALWIRE__";

/// The configuration is invalid.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    File {
        /// The path given on the command line.
        path: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration file {path} is not valid TOML: {why}")]
    Syntax {
        /// The path given on the command line.
        path: String,
        /// The parser's reason and the line number, without the text of the line, which may contain a secret.
        why: String,
    },
    /// There is no such setting.
    #[error("unknown setting {name}{}; to see all settings, remove it and run `sealwire check-config`", did_you_mean(.resembles.as_deref()))]
    Unknown {
        /// The setting, or the environment variable if it has no section.
        name: String,
        /// A setting whose name is almost the same.
        resembles: Option<String>,
    },
    /// The value has the wrong type, is out of range, or is malformed.
    #[error("{key} takes {takes}")]
    Invalid {
        /// The setting, such as `server.bind`.
        key: String,
        /// The values that it takes, in words.
        takes: String,
    },
    /// `database.url` does not name a SQLite file that a server can use.
    #[error("database.url: {0}")]
    SqliteUrl(#[from] SqliteUrlError),
}

fn did_you_mean(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!(" (did you mean {name}?)"))
}

fn unknown(name: &str) -> ConfigError {
    ConfigError::Unknown { name: name.to_owned(), resembles: resembling(name, shown::names()) }
}

/// The name with the smallest edit distance to `wanted`; `None` if that distance exceeds 1 plus an eighth of the length
/// of `wanted`.
fn resembling(wanted: &str, names: impl IntoIterator<Item = String>) -> Option<String> {
    let distance = |name: &String| strsim::damerau_levenshtein(name, wanted);
    names.into_iter().min_by_key(distance).filter(|name| distance(name) <= 1 + wanted.len() / 8)
}

/// The environment variable of a setting.
fn variable(name: &str) -> String {
    format!("{ENV_PREFIX}{}", name.replace('.', "__").to_uppercase())
}

fn invalid(key: &str, takes: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { key: key.to_owned(), takes: takes.into() }
}

/// A secret text. `Debug` shows only whether it is set.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Returns the text.
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
    /// `[server]`: the listener for clients.
    pub server: ServerConfig,
    /// `[admin]`: the listener for the operator.
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
    /// `[mailbox]`: the size of mailboxes.
    pub mailbox: MailboxConfig,
    /// `[push]`: wake-ups by push services.
    pub push: PushConfig,
    /// `[limits]`: rate and connection limits.
    pub limits: LimitsConfig,
}

/// `[server]`
#[derive(Clone, Debug, Deserialize)]
pub struct ServerConfig {
    /// Address and port of the listener; for port 0 the system chooses one.
    pub bind: SocketAddr,
    /// Origins, as in the `Origin` header, of web pages that may use the API besides the server's own.
    pub allowed_origins: Vec<String>,
    /// Proxies whose `X-Forwarded-For` is trusted.
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// Worker threads; 0 for one per core.
    pub workers: usize,
    /// Maximum number of open sockets; 0 to derive it from the limit on open files.
    pub max_connections: usize,
    /// Maximum number of open connections that have not upgraded to WebSocket; 0 to derive it likewise.
    pub max_http_connections: usize,
    /// Maximum number of bytes queued for one socket.
    pub outbox_bytes: usize,
    /// Memory budget in MiB for messages being received, requests in flight and outboxes of all sockets together.
    pub memory_budget_mb: usize,
    /// Maximum number of seconds that stopping takes.
    pub drain_s: u64,
    /// Whether the try-it page is served.
    pub demo: DemoSetting,
}

/// `server.demo`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum DemoSetting {
    /// Served if the mailer is `log:`, the listener is bound to a loopback address, and there is no proxy.
    #[serde(rename = "auto")]
    Auto,
    /// Served. The listener must be bound to a loopback address.
    #[serde(rename = "true")]
    On,
    /// Not served.
    #[serde(rename = "false")]
    Off,
}

/// `[admin]`
#[derive(Clone, Debug, Deserialize)]
pub struct AdminConfig {
    /// Address and port of the listener; for port 0 the system chooses one.
    pub bind: SocketAddr,
    /// Bearer token that requests must present; empty to require none.
    pub token: Secret,
    /// Host names allowed in requests, besides IP addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
}

/// `[database]`
#[derive(Clone, Debug, Deserialize)]
pub struct DatabaseConfig {
    /// `sqlite://FILE` or `postgres://…`. May contain a password.
    pub url: Secret,
    /// Maximum number of connections to PostgreSQL. With SQLite, of those that read.
    pub max_connections: u32,
    /// Whether `url` leads to a pooler that pools transactions.
    pub pooler: bool,
    /// With `pooler`, the URL of PostgreSQL itself. May contain a password.
    pub migrate_url: Secret,
}

/// `[bus]`
#[derive(Clone, Debug, Deserialize)]
pub struct BusConfig {
    /// `local`, `redis://…`, `rediss://…` or `redis-sentinel://…`. May contain a password.
    pub url: Secret,
}

/// `[mailer]`
#[derive(Clone, Debug, Deserialize)]
pub struct MailerConfig {
    /// `log:`, `file:DIR`, `smtp://…` or `smtps://…`. May contain a password.
    pub url: Secret,
    /// The sender of mails: an address with or without a name.
    pub from: String,
}

/// `[auth]`
#[derive(Clone, Debug, Deserialize)]
pub struct AuthConfig {
    /// The server secret, 32 bytes in base64; empty to use the one in a file beside the SQLite database.
    pub secret: Secret,
    /// Lifetime in days of a session that is not renewed.
    pub session_days: f64,
    /// Maximum number of active devices per user.
    pub max_devices: usize,
    /// Age in hours of a published device from which younger devices may not disturb the others; 0 turns it off.
    pub device_age_hours: u64,
}

/// `[keys]`
#[derive(Clone, Debug, Deserialize)]
pub struct KeysConfig {
    /// The owner is notified when a pool has at most this many unissued keys.
    pub low_watermark: u32,
    /// Default lifetime in days of a signed prekey published without `expires_at`.
    pub signed_prekey_days: f64,
}

/// `[mailbox]`
#[derive(Clone, Debug, Deserialize)]
pub struct MailboxConfig {
    /// Maximum number of envelopes in one mailbox.
    pub max_envelopes: u32,
    /// Maximum number of bytes of content in one mailbox.
    pub max_bytes: u64,
    /// Maximum number of envelopes from one sending user in one mailbox.
    pub max_per_sender: u32,
    /// Maximum number of bytes of content from one sending user in one mailbox.
    pub max_bytes_per_sender: u64,
    /// The share of a mailbox that all strangers to its owner have together; 0 turns the limit off.
    pub stranger_share: f64,
}

/// `[push]`
#[derive(Clone, Debug, Deserialize)]
pub struct PushConfig {
    /// Milliseconds after which a device that has not acked an urgent message is woken.
    pub after_ms: u64,
    /// The key for Web Push, PKCS #8 as PEM or base64; empty to use the one in a file beside the SQLite database.
    pub vapid_key: Secret,
    /// Whom push services can contact: a `mailto:` or `https:` URL; empty for the address of `mailer.from`.
    pub contact: String,
    /// The `.p8` key for APNs, as PEM or base64; empty for none.
    pub apns_key: Secret,
    /// The identifier of that key.
    pub apns_key_id: String,
    /// The identifier of the developer team.
    pub apns_team_id: String,
    /// What a device of Apple shows if the app does not replace it.
    pub apns_alert: String,
    /// The JSON of the service account for FCM; empty for none.
    pub fcm_account: Secret,
    /// The URL of APNs.
    pub apns_url: String,
    /// The URL of APNs for the development environment.
    pub apns_sandbox_url: String,
    /// The URL of FCM.
    pub fcm_url: String,
    /// Services of Web Push that share no places with those that clients choose.
    pub trusted_services: Vec<String>,
    /// Networks that no push is sent to, besides those that are not public.
    #[serde(deserialize_with = "networks")]
    pub forbidden_networks: Vec<IpNet>,
    /// Whether endpoints may be on this machine.
    pub allow_insecure: bool,
}

/// `[limits]`. 0 turns a limit off.
#[derive(Clone, Debug, Deserialize)]
pub struct LimitsConfig {
    /// The limits of the use cases.
    #[serde(flatten)]
    pub usage: UsageLimits,
    /// Open sockets of one client network.
    pub connections_per_network: usize,
    /// Open connections of one client network that have not upgraded to WebSocket.
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

/// The configuration, and the source of each value.
#[derive(Debug)]
pub struct LoadedConfig {
    /// All settings.
    pub config: Config,
    /// The settings as TOML, with secrets hidden and the source of each value in a comment.
    pub toml: String,
    /// Environment variables that were ignored although their names resemble that of a setting, each with the name that
    /// was probably meant.
    pub ignored: Vec<(String, String)>,
}

impl LoadedConfig {
    /// Reads the defaults, then the file, then the environment, and checks every value.
    ///
    /// # Errors
    /// If the file cannot be read, or a setting is unknown or invalid. The error names the first such setting.
    pub fn load(file: Option<&Path>, environment: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let mut settings = defaults();
        let mut sources = Sources::new();
        let mut ignored = Vec::new();
        if let Some(path) = file {
            let shown = path.display().to_string();
            let text =
                std::fs::read_to_string(path).map_err(|source| ConfigError::File { path: shown.clone(), source })?;
            let layer: Table = text.parse().map_err(|error: toml::de::Error| {
                let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
                ConfigError::Syntax { path: shown.clone(), why: format!("line {line}: {}", error.message()) }
            })?;
            for (section, values) in layer {
                let Value::Table(values) = values else { return Err(unknown(&section)) };
                for (key, value) in values {
                    set(&mut settings, &section, &key, |kind| same_kind(kind, value))?;
                    sources.insert(format!("{section}.{key}"), Source::File(shown.clone()));
                }
            }
        }
        for (name, text) in environment {
            let Some(path) = name.strip_prefix(ENV_PREFIX) else {
                let meant = || resembling(&name.replace("__", "_"), shown::names().iter().map(|name| misspelt(name)));
                if name.starts_with("SEALWIRE_")
                    && let Some(meant) =
                        meant().and_then(|meant| shown::names().into_iter().find(|name| misspelt(name) == meant))
                {
                    ignored.push((name, variable(&meant)));
                }
                continue;
            };
            let path = path.to_lowercase();
            let (section, key) = path.split_once("__").ok_or_else(|| {
                let resembles = resembling(&name, shown::names().iter().map(|name| variable(name)));
                ConfigError::Unknown { name: name.clone(), resembles }
            })?;
            set(&mut settings, section, key, |kind| parse_as(kind, &text))?;
            sources.insert(format!("{section}.{key}"), Source::Environment(name));
        }
        check(&settings)?;
        let toml = shown::to_toml(&settings, &sources);
        // Cannot fail: all types match the defaults, and `check` has accepted the values.
        let config = settings
            .try_into()
            .map_err(|error: toml::de::Error| invalid("the configuration", error.message().to_owned()))?;
        Ok(Self { config, toml, ignored })
    }
}

/// The environment variable of a setting, misspelt with one underscore where there should be two.
fn misspelt(name: &str) -> String {
    variable(name).replace("__", "_")
}

impl Config {
    /// Loads the configuration alone, see [`LoadedConfig::load`].
    ///
    /// # Errors
    /// Those of [`LoadedConfig::load`].
    pub fn load(file: Option<&Path>, environment: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        LoadedConfig::load(file, environment).map(|loaded| loaded.config)
    }

    /// The lifetime of a session that is not renewed.
    #[must_use]
    pub fn session_lifetime(&self) -> Duration {
        days(self.auth.session_days)
    }

    /// The age of a published device from which younger devices may not disturb the others. Zero if that is off.
    #[must_use]
    pub fn device_age(&self) -> Duration {
        Duration::from_secs(self.auth.device_age_hours * 3600)
    }

    /// Default lifetime of a signed prekey published without `expires_at`.
    #[must_use]
    pub fn signed_prekey_lifetime(&self) -> Duration {
        days(self.keys.signed_prekey_days)
    }

    /// Whether mails are only printed to standard output.
    #[must_use]
    pub fn prints_mails(&self) -> bool {
        self.mailer.url.reveal() == "log:"
    }

    /// Whether the try-it page is served.
    #[must_use]
    pub fn serves_demo(&self) -> bool {
        let is_local = self.server.bind.ip().to_canonical().is_loopback() && self.server.trusted_proxies.is_empty();
        match self.server.demo {
            DemoSetting::Auto => self.prints_mails() && is_local,
            DemoSetting::On => true,
            DemoSetting::Off => false,
        }
    }

    /// How long after an urgent message a device that acks nothing is woken.
    #[must_use]
    pub fn push_after(&self) -> Duration {
        Duration::from_millis(self.push.after_ms)
    }

    /// The URL by which push services can contact the operator.
    #[must_use]
    pub fn push_contact(&self) -> String {
        if !self.push.contact.is_empty() {
            return self.push.contact.clone();
        }
        // `check` has parsed it.
        let from = self.mailer.from.parse::<lettre::message::Mailbox>();
        from.map_or_else(|_| "mailto:sealwire@localhost".to_owned(), |from| format!("mailto:{}", from.email))
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
    fn the_defaults_are_valid() {
        let config = load(&[]).unwrap();
        assert_eq!(config.server.bind.to_string(), "127.0.0.1:8080");
        assert_eq!(config.session_lifetime(), Duration::from_hours(30 * 24));
    }

    #[test]
    fn production_toml_is_valid() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/production.toml");
        let config = Config::load(Some(&path), std::iter::empty()).unwrap();
        assert_eq!(config.server.trusted_proxies.len(), 2);
    }

    #[test]
    fn the_environment_overrides_the_defaults_and_its_lists_are_split_at_commas() {
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
        assert_eq!(config.limits.usage.claim_burst, 0);
    }

    #[test]
    fn an_invalid_setting_is_reported_with_the_values_it_takes() {
        for (name, value, expected) in [
            ("SEALWIRE__SERVER__BIMD", "x", "server.bimd"),
            ("SEALWIRE__SERVER", "x", "SEALWIRE__SERVER"),
            ("SEALWIRE__SERVER__BIND", "nowhere", "server.bind takes an address"),
            ("SEALWIRE__SERVER__WORKERS", "many", "server.workers takes a whole number"),
            ("SEALWIRE__SERVER__OUTBOX_BYTES", "5", "server.outbox_bytes takes a whole number from"),
            ("SEALWIRE__SERVER__ALLOWED_ORIGINS", "chat.example", "server.allowed_origins takes origins"),
            ("SEALWIRE__SERVER__TRUSTED_PROXIES", "proxy", "server.trusted_proxies takes addresses"),
            ("SEALWIRE__SERVER__DEMO", "yes", "server.demo takes auto, true or false"),
            ("SEALWIRE__ADMIN__BIND", "0.0.0.0:9090", "admin.token takes a token"),
            ("SEALWIRE__ADMIN__TOKEN", "fifteen letters", "admin.token takes 16 characters or more"),
            ("SEALWIRE__ADMIN__TOKEN", "   fourteen chars     ", "admin.token takes 16 characters or more"),
            ("SEALWIRE__ADMIN__ALLOWED_HOSTS", "status.example:9090", "admin.allowed_hosts takes host names"),
            ("SEALWIRE__AUTH__SECRET", "c2hvcnQ=", "auth.secret takes 32 bytes"),
            ("SEALWIRE__AUTH__SESSION_DAYS", "0", "auth.session_days takes days"),
            ("SEALWIRE__PUSH__TRUSTED_SERVICES", "https://push.example", "push.trusted_services takes hosts"),
            ("SEALWIRE__PUSH__TRUSTED_SERVICES", "Push.example", "push.trusted_services takes hosts"),
            ("SEALWIRE__PUSH__TRUSTED_SERVICES", "push.example:http", "push.trusted_services takes hosts"),
            ("SEALWIRE__PUSH__TRUSTED_SERVICES", "*.push.example:8443", "push.trusted_services takes hosts"),
            ("SEALWIRE__PUSH__TRUSTED_SERVICES", "*", "push.trusted_services takes hosts"),
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
    fn the_try_it_page_is_served_only_to_this_machine_and_unless_set_only_with_the_mailer_log() {
        let serves = |settings: &[(&str, &str)]| load(settings).map(|config| config.serves_demo());
        let (demo, mailer) = ("SEALWIRE__SERVER__DEMO", ("SEALWIRE__MAILER__URL", "smtp://localhost"));
        let (bind, proxies) = ("SEALWIRE__SERVER__BIND", ("SEALWIRE__SERVER__TRUSTED_PROXIES", "127.0.0.1"));
        for local in ["127.0.0.1:8080", "127.9.9.9:0", "[::1]:8080", "[::ffff:127.0.0.1]:8080"] {
            assert!(serves(&[(bind, local)]).unwrap(), "{local}");
            assert!(serves(&[(bind, local), (demo, "true")]).unwrap(), "{local}");
        }
        for off in [vec![mailer], vec![proxies], vec![(demo, "false")], vec![(bind, "0.0.0.0:8080")]] {
            assert!(!serves(&off).unwrap(), "{off:?}");
        }
        assert!(serves(&[mailer, (demo, "true")]).unwrap());
        for public in ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:8080"] {
            let error = serves(&[(bind, public), (demo, "true")]).unwrap_err().to_string();
            assert!(error.contains("server.demo") && error.contains("server.bind"), "{error}");
        }
    }

    #[test]
    fn the_file_may_set_a_text_to_true() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        std::fs::write(&path, "[server]\ndemo = false\n").unwrap();
        assert!(!Config::load(Some(&path), std::iter::empty()).unwrap().serves_demo());
    }

    #[test]
    fn both_listeners_cannot_have_one_address() {
        let on = |port: &str| {
            let address = format!("127.0.0.1:{port}");
            load(&[("SEALWIRE__SERVER__BIND", &address), ("SEALWIRE__ADMIN__BIND", &address)])
        };
        assert!(on("9000").unwrap_err().to_string().contains("admin.bind takes another address or port"));
        assert!(on("0").is_ok(), "the system chooses two ports");
    }

    #[test]
    fn debug_shows_no_secrets() {
        let secret = STANDARD.encode([7; 32]);
        let config =
            load(&[("SEALWIRE__AUTH__SECRET", &secret), ("SEALWIRE__MAILER__URL", "smtp://u:hunter2@h")]).unwrap();
        let shown = format!("{config:?}");
        assert!(!shown.contains(&secret) && !shown.contains("hunter2"), "{shown}");
        assert!(config.server_secret().is_some());
    }
}
