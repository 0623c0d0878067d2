//! Prints the settings in force as TOML, with secrets hidden and the source of each value.

use std::{collections::HashMap, fmt, fmt::Write};

use toml::{Table, Value};

use super::DEFAULTS;

/// Printed instead of a secret.
const HIDDEN: &str = "***";

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `config/default.toml`.
    Default,
    /// The configuration file with this path.
    File(String),
    /// The environment variable with this name.
    Environment(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {path}"),
            Self::Environment(name) => write!(f, "environment {name}"),
        }
    }
}

/// The sources of settings, by name (`server.bind`). A setting that is missing has its default.
pub(super) type Sources = HashMap<String, Source>;

/// The names of all settings, in the order of `config/default.toml`.
pub(super) fn names() -> Vec<String> {
    let mut section = "";
    let mut names = Vec::new();
    for line in DEFAULTS.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            names.push(format!("{section}.{key}"));
        }
    }
    names
}

/// The settings as TOML that the server can read, except that secrets are hidden. The source of each value is in a
/// comment on its line.
pub(super) fn to_toml(settings: &Table, sources: &Sources) -> String {
    let mut text = String::new();
    let mut last_section = String::new();
    for name in names() {
        let Some((section, key)) = name.split_once('.') else { continue };
        let Some(value) = settings.get(section).and_then(|section| section.get(key)) else { continue };
        if last_section != section {
            let gap = if text.is_empty() { "" } else { "\n" };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{gap}[{section}]");
            section.clone_into(&mut last_section);
        }
        let source = sources.get(&name).unwrap_or(&Source::Default);
        let _ = writeln!(text, "{key} = {} # {source}", without_secret(&name, value));
    }
    text
}

fn without_secret(name: &str, value: &Value) -> Value {
    match (name, value.as_str()) {
        ("auth.secret" | "admin.token" | "push.vapid_key" | "push.apns_key" | "push.fcm_account", Some(text))
            if !text.is_empty() =>
        {
            HIDDEN.into()
        }
        ("database.url" | "database.migrate_url" | "bus.url" | "mailer.url", Some(url)) => without_password(url).into(),
        _ => value.clone(),
    }
}

/// Hides the password of a URL: the text between the user name and the last `@`, and the values of query parameters
/// whose name contains `password`.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let rest = match rest.rsplit_once('@') {
        Some((credentials, host)) => match credentials.split_once(':') {
            Some((user, _)) => format!("{user}:{HIDDEN}@{host}"),
            None => format!("{credentials}@{host}"),
        },
        None => rest.to_owned(),
    };
    let hidden = |parameter: &str| match parameter.split_once('=') {
        Some((name, _)) if name.contains("password") => format!("{name}={HIDDEN}"),
        _ => parameter.to_owned(),
    };
    let query = query.map(|query| query.split('&').map(hidden).collect::<Vec<_>>().join("&"));
    query.map_or_else(|| format!("{scheme}://{rest}"), |query| format!("{scheme}://{rest}?{query}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_password_of_a_url_is_hidden() {
        for (url, shown) in [
            ("log:", "log:"),
            ("sqlite://data/a.db", "sqlite://data/a.db"),
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("redis://:hunter2@127.0.0.1", "redis://:***@127.0.0.1"),
            ("postgres://me@db/chat", "postgres://me@db/chat"),
            ("postgres://me:hunter2@db/chat?sslmode=require", "postgres://me:***@db/chat?sslmode=require"),
            ("postgres://db/chat?user=me&password=hunter2", "postgres://db/chat?user=me&password=***"),
            ("smtp://me%40x:hunter%402@mail", "smtp://me%40x:***@mail"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }

    #[test]
    fn every_default_is_shown_with_its_source_and_can_be_parsed_again() {
        let settings = super::super::defaults();
        let sources = Sources::from([
            ("server.bind".to_owned(), Source::File("a.toml".to_owned())),
            ("auth.secret".to_owned(), Source::Environment("SEALWIRE__AUTH__SECRET".to_owned())),
        ]);
        let text = to_toml(&settings, &sources);
        assert_eq!(text.parse::<Table>().unwrap(), settings);
        assert!(
            text.starts_with("[server]\nbind = \"127.0.0.1:8080\" # file a.toml\nallowed_origins = [] # default\n")
        );
        assert!(text.contains("\n\n[auth]\nsecret = \"\" # environment SEALWIRE__AUTH__SECRET\n"), "{text}");
    }
}
