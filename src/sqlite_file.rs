//! Parses `sqlite:` URLs: the path of a SQLite database and of the files beside it.
//!
//! sqlx decodes percent escapes in the path of a URL, so all code that needs such a path gets it from [`SqliteFile`].
//! URLs under which the data would not be in one writable file are refused.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    str::FromStr,
};

use sqlx::sqlite::SqliteConnectOptions;
use thiserror::Error;

/// A `sqlite:` URL that a server cannot use.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SqliteUrlError {
    /// SQLite would keep the data in memory.
    #[error(
        "a SQLite database in memory is lost when the server stops, and every connection gets one of its own; \
         name a file, such as sqlite://data/sealwire.db"
    )]
    InMemory,
    /// The path is empty. SQLite would use a temporary file.
    #[error("the SQLite URL names no file; name one, such as sqlite://data/sealwire.db")]
    NoFile,
    /// The path ends with a slash, `.` or `..`.
    #[error("{} is a folder; name a file in it, such as sealwire.db", .0.display())]
    Folder(PathBuf),
    /// The path begins with `file:`, which SQLite takes for the beginning of a URI.
    #[error("{} is a URI of SQLite's own; write sqlite://FILE", .0.display())]
    Uri(PathBuf),
    /// The decoded path has a NUL byte.
    #[error("the path in the SQLite URL has a NUL byte (%00)")]
    Nul,
    /// `mode=ro` or `immutable`.
    #[error("the SQLite URL opens the file for reading only, but a server writes; leave out mode=ro and immutable")]
    ReadOnly,
    /// The path is not UTF-8 once it is decoded, or a parameter is unknown.
    #[error("the SQLite URL is invalid: {0}")]
    Invalid(String),
}

/// A SQLite database file and the paths of the files beside it.
#[derive(Clone, Debug)]
pub struct SqliteFile {
    options: SqliteConnectOptions,
    legacy_secret: PathBuf,
}

impl SqliteFile {
    /// Reads a URL such as `sqlite://data/sealwire.db`, `sqlite:///var/lib/sealwire/sealwire.db` or
    /// `sqlite://my%20chat.db?mode=rwc`. Does not access the file system.
    ///
    /// # Errors
    /// If the URL is invalid, or does not name a writable file.
    pub fn from_url(url: &str) -> Result<Self, SqliteUrlError> {
        check_parameters(url)?;
        let options = SqliteConnectOptions::from_str(url).map_err(|error| SqliteUrlError::Invalid(reason(&error)))?;
        let path = options.get_filename();
        match path.to_str().unwrap_or_default() {
            "" => Err(SqliteUrlError::NoFile),
            // SQLite keeps the first in memory. sqlx gives names like the second to databases in memory.
            ":memory:" => Err(SqliteUrlError::InMemory),
            name if name.starts_with("file:sqlx-in-memory-") => Err(SqliteUrlError::InMemory),
            name if name.contains('\0') => Err(SqliteUrlError::Nul),
            name if name.starts_with("file:") => Err(SqliteUrlError::Uri(path.to_owned())),
            name if name.ends_with('/') || name.ends_with("/.") || path.file_name().is_none() => {
                Err(SqliteUrlError::Folder(path.to_owned()))
            }
            _ => Ok(Self { legacy_secret: legacy_secret(url), options }),
        }
    }

    /// The sqlx options for connecting: path and parameters of the URL.
    #[must_use]
    pub fn options(&self) -> &SqliteConnectOptions {
        &self.options
    }

    /// The database file, relative to the working directory unless the URL has an absolute path.
    #[must_use]
    pub fn database(&self) -> &Path {
        self.options.get_filename()
    }

    /// The server's secret: `sealwire.secret` beside `sealwire.db`. Databases in one folder whose names differ only in
    /// the extension share it.
    #[must_use]
    pub fn secret(&self) -> PathBuf {
        if self.database().extension().is_some_and(|extension| extension == "secret") {
            return self.beside(".secret");
        }
        self.database().with_extension("secret")
    }

    /// The key for Web Push: `sealwire.db-vapid` beside `sealwire.db`. No two databases share it.
    #[must_use]
    pub fn vapid_key(&self) -> PathBuf {
        self.beside("-vapid")
    }

    /// The path at which earlier versions kept the secret, if it differs from [`Self::secret`]: they did not decode
    /// the path.
    #[must_use]
    pub fn legacy_secret(&self) -> Option<&Path> {
        Some(self.legacy_secret.as_path()).filter(|former| *former != self.secret())
    }

    /// The lock of the one process that serves this file: `sealwire.db-lock` beside `sealwire.db`, named like SQLite's
    /// `sealwire.db-wal`. No two databases share it.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.beside("-lock")
    }

    /// The lock of earlier versions: `sealwire.lock` beside `sealwire.db`. Databases whose names differ only in the
    /// extension share it.
    #[must_use]
    pub fn legacy_lock(&self) -> PathBuf {
        self.database().with_extension("lock")
    }

    /// The path of the database with `suffix` appended.
    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = OsString::from(self.database());
        path.push(suffix);
        path.into()
    }
}

/// Refuses parameters that put the data into memory or make it read-only. sqlx refuses unknown parameters.
fn check_parameters(url: &str) -> Result<(), SqliteUrlError> {
    let parameters = url.split_once('?').map(|(_, parameters)| parameters).unwrap_or_default();
    for (key, value) in form_urlencoded::parse(parameters.as_bytes()) {
        match (&*key, &*value) {
            ("mode", "memory") | ("vfs", "memdb") => return Err(SqliteUrlError::InMemory),
            ("mode", "ro") | ("immutable", "true" | "1") => return Err(SqliteUrlError::ReadOnly),
            _ => {}
        }
    }
    Ok(())
}

/// The reason for which sqlx refuses a URL, without the prefix "error with configuration: ".
fn reason(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Configuration(reason) => reason.to_string(),
        other => other.to_string(),
    }
}

/// The path of the secret as earlier versions derived it from the URL.
fn legacy_secret(url: &str) -> PathBuf {
    let file = url.trim_start_matches("sqlite:").trim_start_matches("//");
    Path::new(file.split('?').next().unwrap_or(file)).with_extension("secret")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_and_the_lock_are_beside_the_database_that_sqlx_opens() {
        for (url, database, secret, lock) in [
            ("sqlite://data/sealwire.db", "data/sealwire.db", "data/sealwire.secret", "data/sealwire.db-lock"),
            ("sqlite://data/my%20chat.db", "data/my chat.db", "data/my chat.secret", "data/my chat.db-lock"),
            ("sqlite://b%20folder/x.db", "b folder/x.db", "b folder/x.secret", "b folder/x.db-lock"),
            (
                "sqlite://feature%252Fname/x.db",
                "feature%2Fname/x.db",
                "feature%2Fname/x.secret",
                "feature%2Fname/x.db-lock",
            ),
            ("sqlite://feature%2Fname/x.db", "feature/name/x.db", "feature/name/x.secret", "feature/name/x.db-lock"),
            ("sqlite:///var/lib/x.db", "/var/lib/x.db", "/var/lib/x.secret", "/var/lib/x.db-lock"),
            ("sqlite:////var/lib/x.db", "//var/lib/x.db", "//var/lib/x.secret", "//var/lib/x.db-lock"),
            ("sqlite:relative.db", "relative.db", "relative.secret", "relative.db-lock"),
            ("sqlite:/absolute.db", "/absolute.db", "/absolute.secret", "/absolute.db-lock"),
            ("sqlite://../x.db", "../x.db", "../x.secret", "../x.db-lock"),
            ("sqlite://no-ending", "no-ending", "no-ending.secret", "no-ending-lock"),
            ("sqlite://two.dots.db", "two.dots.db", "two.dots.secret", "two.dots.db-lock"),
            ("sqlite://.hidden", ".hidden", ".hidden.secret", ".hidden-lock"),
            ("sqlite://ends.in.secret", "ends.in.secret", "ends.in.secret.secret", "ends.in.secret-lock"),
            ("sqlite://ends.in.lock", "ends.in.lock", "ends.in.secret", "ends.in.lock-lock"),
            ("sqlite://x.db?mode=rwc", "x.db", "x.secret", "x.db-lock"),
            ("sqlite://x.db?mode=rw&cache=private", "x.db", "x.secret", "x.db-lock"),
            ("sqlite://what%3F%23.db?mode=rwc", "what?#.db", "what?#.secret", "what?#.db-lock"),
            ("sqlite://100%.db", "100%.db", "100%.secret", "100%.db-lock"),
            ("sqlite://%zz%2.db", "%zz%2.db", "%zz%2.secret", "%zz%2.db-lock"),
            ("sqlite://caf%C3%A9.db", "café.db", "café.secret", "café.db-lock"),
            ("sqlite://plus+.db", "plus+.db", "plus+.secret", "plus+.db-lock"),
            ("sqlite://./:memory:", "./:memory:", "./:memory:.secret", "./:memory:-lock"),
        ] {
            let file = SqliteFile::from_url(url).unwrap();
            assert_eq!(file.database(), Path::new(database), "{url}");
            assert_eq!(file.database(), SqliteConnectOptions::from_str(url).unwrap().get_filename(), "{url}");
            assert_eq!(file.secret(), Path::new(secret), "{url}");
            assert_eq!(file.lock(), Path::new(lock), "{url}");
            assert!(!file.lock().to_string_lossy().ends_with(".lock"), "{url}: never the lock of an earlier version");
        }
    }

    #[test]
    fn databases_that_differ_in_their_extension_have_locks_of_their_own() {
        let urls = ["sqlite://data/a.db", "sqlite://data/a.sqlite", "sqlite://data/a"];
        let files = urls.map(|url| SqliteFile::from_url(url).unwrap());
        for (index, file) in files.iter().enumerate() {
            assert!(files[..index].iter().all(|other| other.lock() != file.lock()), "{file:?}");
            assert!(files.iter().all(|other| other.legacy_lock() != file.lock()), "{file:?}");
            assert_eq!(file.secret(), Path::new("data/a.secret"));
        }
    }

    #[test]
    fn the_former_path_of_a_secret_is_known_if_it_differs() {
        for (url, former) in [
            ("sqlite://data/sealwire.db?mode=rwc", None),
            ("sqlite:///var/lib/x.db", None),
            ("sqlite://my%20chat.db", Some("my%20chat.secret")),
            ("sqlite://feature%2Fname/x.db", Some("feature%2Fname/x.secret")),
            ("sqlite:////var/lib/x.db", Some("var/lib/x.secret")),
        ] {
            let file = SqliteFile::from_url(url).unwrap();
            assert_eq!(file.legacy_secret(), former.map(Path::new), "{url}");
        }
    }

    #[test]
    fn a_url_that_is_not_of_one_writable_file_is_refused_with_the_reason() {
        let path = PathBuf::from;
        for (url, expected) in [
            ("sqlite::memory:", SqliteUrlError::InMemory),
            ("sqlite://:memory:", SqliteUrlError::InMemory),
            ("sqlite::memory:?cache=shared", SqliteUrlError::InMemory),
            ("sqlite://%3Amemory%3A", SqliteUrlError::InMemory),
            ("sqlite://x.db?mode=memory", SqliteUrlError::InMemory),
            ("sqlite://x.db?mode=%6Demory&cache=shared", SqliteUrlError::InMemory),
            ("sqlite://?mode=memory", SqliteUrlError::InMemory),
            ("sqlite://x.db?vfs=memdb", SqliteUrlError::InMemory),
            ("sqlite:", SqliteUrlError::NoFile),
            ("sqlite://", SqliteUrlError::NoFile),
            ("sqlite://?mode=rwc", SqliteUrlError::NoFile),
            ("sqlite:///", SqliteUrlError::Folder(path("/"))),
            ("sqlite://data/", SqliteUrlError::Folder(path("data/"))),
            ("sqlite://data/..", SqliteUrlError::Folder(path("data/.."))),
            ("sqlite://.", SqliteUrlError::Folder(path("."))),
            ("sqlite:file:x.db", SqliteUrlError::Uri(path("file:x.db"))),
            ("sqlite://file:x.db%3Fmode=memory", SqliteUrlError::Uri(path("file:x.db?mode=memory"))),
            ("sqlite://x%00.db", SqliteUrlError::Nul),
            ("sqlite://x.db?mode=ro", SqliteUrlError::ReadOnly),
            ("sqlite://x.db?immutable=1", SqliteUrlError::ReadOnly),
        ] {
            assert_eq!(SqliteFile::from_url(url).unwrap_err(), expected, "{url}");
        }
        for url in ["sqlite://%ff.db", "sqlite://x.db?mode=rx", "sqlite://x.db?journal=off", "sqlite://x.db?cache=big"]
        {
            let error = SqliteFile::from_url(url).unwrap_err();
            assert!(matches!(error, SqliteUrlError::Invalid(_)), "{url}: {error}");
        }
    }
}
