//! Checks what the types of the settings do not: ranges, syntax, and settings that depend on each other.

use std::{net::SocketAddr, ops::RangeInclusive};

use sealwire_push::{ApnsKey, ServiceAccount, VapidKey};
use toml::{Table, Value};

use super::{ConfigError, decode_secret, invalid, parse_network};
use crate::sqlite_file::SqliteFile;

/// Minimum length of `admin.token` in characters. Attempts are not slowed down, so the token must be hard to guess.
const MIN_ADMIN_TOKEN: usize = 16;

/// Length of the identifiers of Apple's keys and teams.
const APNS_ID_CHARS: usize = 10;

const BUS_SCHEMES: [&str; 3] = ["redis://", "rediss://", "redis-sentinel://"];

/// The valid values of the settings that are whole numbers.
const RANGES: [(&str, RangeInclusive<i64>); 35] = [
    ("server.workers", 0..=1024),
    ("server.max_connections", 0..=10_000_000),
    ("server.max_http_connections", 0..=10_000_000),
    ("server.outbox_bytes", 65_536..=1 << 30),
    ("server.memory_budget_mb", 16..=1 << 20),
    ("server.drain_s", 3..=3600),
    ("database.max_connections", 6..=10_000),
    ("auth.max_devices", 1..=100),
    ("auth.device_age_hours", 0..=8760),
    ("keys.low_watermark", 0..=500),
    ("mailbox.max_envelopes", 1..=1_000_000_000),
    ("mailbox.max_bytes", 32_768..=1 << 40),
    ("mailbox.max_per_sender", 1..=1_000_000_000),
    ("mailbox.max_bytes_per_sender", 32_768..=1 << 40),
    ("push.after_ms", 0..=3_600_000),
    ("limits.otp_per_email_hour", 0..=1000),
    ("limits.otp_per_email_day", 0..=1000),
    ("limits.otp_per_email_network_hour", 0..=1000),
    ("limits.otp_per_network_hour", 0..=1_000_000),
    ("limits.verify_per_network_minute", 0..=1_000_000),
    ("limits.wrong_guesses_per_network_day", 0..=1_000_000),
    ("limits.session_failures_per_network_minute", 0..=1_000_000),
    ("limits.poll_failures_per_network_minute", 0..=1_000_000),
    ("limits.lock_changes_per_device_hour", 0..=1_000_000),
    ("limits.find_per_user_hour", 0..=1_000_000),
    ("limits.signup_proof_bits", 0..=24),
    ("limits.claim_burst", 0..=1_000_000),
    ("limits.claim_refill_s", 1..=31_536_000),
    ("limits.stranger_keys_per_device_hour", 0..=1000),
    ("limits.sends_per_device_second", 0..=1_000_000),
    ("limits.sends_per_pair_second", 0..=1_000_000),
    ("limits.connections_per_network", 0..=10_000_000),
    ("limits.http_connections_per_network", 0..=10_000_000),
    ("limits.connects_per_network_second", 0..=1_000_000),
    ("limits.requests_per_connection_second", 0..=10_000_000),
];

/// Checks all settings.
///
/// # Errors
/// The first setting that is invalid.
pub(super) fn check(settings: &Table) -> Result<(), ConfigError> {
    let value = |name: &str| {
        let (section, key) = name.split_once('.')?;
        settings.get(section)?.get(key)
    };
    let text = |name: &str| value(name).and_then(Value::as_str).unwrap_or_default();
    let whole = |name: &str| value(name).and_then(Value::as_integer).unwrap_or_default();
    let number = |name: &str| value(name).and_then(Value::as_float).unwrap_or_default();
    let list = |name: &str| value(name).and_then(Value::as_array).cloned().unwrap_or_default();

    for name in ["server.bind", "admin.bind"] {
        require(text(name).parse::<SocketAddr>().is_ok(), name, "an address and port, such as 127.0.0.1:8080")?;
    }
    let same = text("server.bind") == text("admin.bind") && !text("server.bind").ends_with(":0");
    require(!same, "admin.bind", "another address or port than server.bind")?;
    for origin in list("server.allowed_origins") {
        let is_valid = origin.as_str().is_some_and(is_origin);
        require(is_valid, "server.allowed_origins", "origins, such as https://chat.example, without a path")?;
    }
    for host in list("admin.allowed_hosts") {
        let is_valid = host.as_str().is_some_and(is_host_name);
        require(is_valid, "admin.allowed_hosts", "host names, such as status.example, without a port")?;
    }
    for (name, example) in [("server.trusted_proxies", "10.0.0.0/8"), ("push.forbidden_networks", "2001:db8:64::/96")] {
        let is_network = |value: &Value| value.as_str().is_some_and(|text| parse_network(text).is_some());
        let takes = format!("addresses or networks, such as {example}");
        require(list(name).iter().all(is_network), name, &takes)?;
    }
    let demo = text("server.demo");
    require(["auto", "true", "false"].contains(&demo), "server.demo", "auto, true or false")?;
    let is_local = text("server.bind").parse::<SocketAddr>().is_ok_and(|bind| bind.ip().to_canonical().is_loopback());
    let takes = "auto or false, since server.bind is not a loopback address and the page shows sign-in codes";
    require(is_local || demo != "true", "server.demo", takes)?;
    let token = text("admin.token");
    let is_long = token.trim().chars().count() >= MIN_ADMIN_TOKEN;
    require(token.is_empty() || is_long, "admin.token", &format!("{MIN_ADMIN_TOKEN} characters or more"))?;
    let loopback = text("admin.bind").parse::<SocketAddr>().is_ok_and(|bind| bind.ip().is_loopback());
    require(loopback || !token.is_empty(), "admin.token", "a token, since admin.bind is not a loopback address")?;
    for (name, range) in RANGES {
        let takes = format!("a whole number from {} to {}", range.start(), range.end());
        require(range.contains(&whole(name)), name, &takes)?;
    }
    for (name, max) in [("auth.session_days", 3650.0), ("keys.signed_prekey_days", 90.0)] {
        let days = number(name);
        require(days > 0.0 && days <= max, name, &format!("days, above 0 and up to {max}"))?;
    }
    let share = number("mailbox.stranger_share");
    require((0.0..=1.0).contains(&share), "mailbox.stranger_share", "a share from 0 to 1, such as 0.25")?;
    for name in ["database.url", "database.migrate_url", "bus.url", "mailer.url"] {
        let is_valid = !has_unescaped_character(text(name));
        require(
            is_valid,
            name,
            "a URL whose user name and password are percent-encoded: %40 for @, %2F for /, %23 for #, %3F for ?",
        )?;
    }
    let postgres = ["postgres://", "postgresql://"].iter().any(|scheme| text("database.url").starts_with(scheme));
    let sqlite = text("database.url").starts_with("sqlite:");
    require(postgres || sqlite, "database.url", "sqlite://FILE or postgres://…")?;
    let pooler = value("database.pooler").and_then(Value::as_bool).unwrap_or_default();
    require(postgres || !pooler, "database.pooler", "false with SQLite")?;
    let takes = "the postgres://… URL of PostgreSQL itself, since database.pooler is set";
    require(!pooler || text("database.migrate_url").starts_with("postgres"), "database.migrate_url", takes)?;
    if sqlite {
        SqliteFile::from_url(text("database.url"))?;
    }
    let bus = text("bus.url");
    let known = bus == "local" || BUS_SCHEMES.iter().any(|scheme| bus.starts_with(scheme));
    require(known, "bus.url", "\"local\", redis://HOST:PORT, rediss://HOST:PORT or redis-sentinel://…?master=NAME")?;
    let mailer = text("mailer.url");
    let known = mailer == "log:"
        || ["file:", "smtp://", "smtps://"]
            .iter()
            .any(|scheme| mailer.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()));
    require(known, "mailer.url", "log:, file:DIR, smtp://HOST or smtps://HOST")?;
    let from = text("mailer.from").parse::<lettre::message::Mailbox>();
    require(from.is_ok(), "mailer.from", "a sender, such as Sealwire <no-reply@chat.example>")?;
    check_push(&text)?;
    for service in list("push.trusted_services") {
        let is_valid = service.as_str().is_some_and(is_push_service);
        require(is_valid, "push.trusted_services", "hosts in lower case, such as push.example or *.push.example")?;
    }
    let secret = text("auth.secret");
    require(secret.is_empty() || decode_secret(secret).is_some(), "auth.secret", "32 bytes in base64")?;
    require(
        !postgres || !secret.is_empty(),
        "auth.secret",
        "32 bytes in base64, the same on every node, with PostgreSQL",
    )
}

/// # Errors
/// The setting, unless it is valid.
fn require(is_valid: bool, name: &str, takes: &str) -> Result<(), ConfigError> {
    if is_valid { Ok(()) } else { Err(invalid(name, takes)) }
}

/// Checks the texts of `[push]`.
///
/// # Errors
/// The first setting that is invalid.
fn check_push<'t>(text: &impl Fn(&str) -> &'t str) -> Result<(), ConfigError> {
    let contact = text("push.contact");
    let is_contact =
        ["mailto:", "https://"].iter().any(|scheme| contact.len() > scheme.len() && contact.starts_with(scheme));
    require(contact.is_empty() || is_contact, "push.contact", "a mailto: or https:// URL")?;
    let key = text("push.vapid_key");
    let takes = "a private key of P-256 in PKCS #8, as PEM or base64";
    require(key.is_empty() || VapidKey::parse(key).is_ok(), "push.vapid_key", takes)?;
    let key = text("push.apns_key");
    let takes = "the .p8 key of an Apple developer account, as PEM or base64";
    require(key.is_empty() || ApnsKey::parse(key).is_ok(), "push.apns_key", takes)?;
    for name in ["push.apns_key_id", "push.apns_team_id"] {
        let id = text(name);
        let is_id = id.len() == APNS_ID_CHARS && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        require(id.is_empty() || is_id, name, "ten letters and digits")?;
        require(key.is_empty() || !id.is_empty(), name, "ten letters and digits, since push.apns_key is set")?;
    }
    let account = text("push.fcm_account");
    let is_account = account.is_empty() || ServiceAccount::parse(account).is_ok();
    require(is_account, "push.fcm_account", "the JSON key of a Google service account")?;
    for name in ["push.apns_url", "push.apns_sandbox_url", "push.fcm_url"] {
        let is_url = ["https://", "http://"]
            .iter()
            .any(|scheme| text(name).len() > scheme.len() && text(name).starts_with(scheme));
        require(is_url, name, "an https:// URL")?;
    }
    Ok(())
}

/// Whether the text is a host, a host with a port, or `*.` and a domain, in lower case.
fn is_push_service(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "1"));
    let domain = host.strip_prefix("*.").unwrap_or(host);
    port.parse::<u16>().is_ok()
        && (domain.len() == host.len() || !text.contains(':'))
        && domain.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        })
}

/// Whether a user name or password in a URL seems to contain an unescaped `/`, `?` or `#`: whether an `@` follows the
/// first such character. The `@` before the host otherwise precedes it.
fn has_unescaped_character(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    scheme != "sqlite" && rest[end..].contains('@')
}

/// Whether the text is `scheme://host[:port]`, as browsers write an origin.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    matches!(scheme, "http" | "https" | "app" | "capacitor" | "tauri" | "chrome-extension" | "moz-extension")
        && !authority.is_empty()
        && !authority.contains(['/', '?', '#', '@', ' '])
}

fn is_host_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}
