//! Stores the server secret and the key for Web Push in files beside the SQLite database. Used if `auth.secret` or
//! `push.vapid_key` is empty.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rand::Rng;
use sealwire_push::VapidKey;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{clock::Entropy, config::decode_secret, domain::otp::ServerSecret, sqlite_file::SqliteFile};

/// The file cannot be read or created.
#[derive(Debug, Error)]
#[error("cannot read or create the {what} {}: {source}", path.display())]
pub struct SecretFileError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

const SECRET: &str = "server secret";
const VAPID_KEY: &str = "key for Web Push";

/// Returns the key for Web Push from the file beside the database. Creates the file with a new key if it does not exist;
/// its folder must exist.
///
/// # Errors
/// If the file cannot be read or written, or its content is not a key.
pub fn read_or_create_vapid_key(file: &SqliteFile) -> Result<VapidKey, SecretFileError> {
    let path = file.vapid_key();
    let make = || VapidKey::generate().map_err(io::Error::other);
    let key = match read(&path, parse_vapid_key) {
        Ok(None) => create(&path, parse_vapid_key, make),
        Ok(Some(key)) => Ok(key),
        Err(error) => Err(error),
    };
    key.map_err(|source| SecretFileError { what: VAPID_KEY, path, source })
}

/// Checks that the key for Web Push beside the database can be read, if there is one.
///
/// # Errors
/// If the file cannot be read, or holds anything but a key.
pub fn check_vapid_key(file: &SqliteFile) -> Result<(), SecretFileError> {
    let path = file.vapid_key();
    read(&path, parse_vapid_key).map(drop).map_err(|source| SecretFileError { what: VAPID_KEY, path, source })
}

fn parse_vapid_key(text: &str) -> io::Result<Option<VapidKey>> {
    if text.is_empty() {
        return Ok(None);
    }
    VapidKey::parse(text).map(Some).map_err(io::Error::other)
}

/// Returns the secret from the file beside the database. Creates the file with a random secret if it does not exist;
/// its folder must exist.
///
/// Earlier versions did not decode percent escapes in the path of the database URL. A secret at such a path is moved.
///
/// # Errors
/// If the file cannot be read or written, or its content is not 32 bytes in base64.
pub fn read_or_create(file: &SqliteFile, entropy: &Entropy) -> Result<ServerSecret, SecretFileError> {
    let path = file.secret();
    let failed = |source| SecretFileError { what: SECRET, path: path.clone(), source };
    let mut found = read(&path, parse).map_err(failed)?;
    if found.is_none()
        && let Some(former) = file.legacy_secret()
    {
        found = move_former(former, &path).map_err(|source| {
            let path = former.to_owned();
            SecretFileError { what: SECRET, path, source }
        })?;
    }
    match found {
        Some(secret) => Ok(secret),
        None => create(&path, parse, || Ok(random_secret(entropy))).map_err(failed),
    }
}

/// Checks that the secret beside the database can be read, if there is one.
///
/// # Errors
/// If the file cannot be read, or holds anything but 32 bytes in base64.
pub fn check(file: &SqliteFile) -> Result<(), SecretFileError> {
    let path = file.secret();
    read(&path, parse).map(drop).map_err(|source| SecretFileError { what: SECRET, path, source })
}

/// Reads a secret. Returns `None` if the file does not exist or is empty: a server that crashes while creating it
/// leaves an empty file.
fn read<T>(path: &Path, parse: impl Fn(&str) -> io::Result<Option<T>>) -> io::Result<Option<T>> {
    match fs::read_to_string(path) {
        Ok(text) => parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(text: &str) -> io::Result<Option<ServerSecret>> {
    if text.is_empty() {
        return Ok(None);
    }
    decode_secret(text).map(Some).ok_or_else(|| io::Error::other("not 32 bytes in base64"))
}

/// Moves the secret of an earlier version, or uses it where it is if it cannot be moved.
fn move_former(former: &Path, path: &Path) -> io::Result<Option<ServerSecret>> {
    let Some(secret) = read(former, parse)? else { return Ok(None) };
    let (from, to) = (former.display(), path.display());
    match fs::rename(former, path) {
        Ok(()) => tracing::warn!(%from, %to, "moved the server secret, so that it is beside the database"),
        Err(error) => tracing::warn!(%from, %to, %error, "the server secret is not beside the database; move it there"),
    }
    Ok(Some(secret))
}

/// Returns 32 random bytes in base64.
fn random_secret(entropy: &Entropy) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; 32]);
    entropy.draw(|rng| rng.fill_bytes(bytes.as_mut()));
    Zeroizing::new(STANDARD.encode(*bytes))
}

/// Creates a secret in a file that only its owner can read. Locks the file, and returns the secret of another server
/// that created it first: two servers that share the file may start at the same time.
fn create<T>(
    path: &Path,
    parse: impl Fn(&str) -> io::Result<Option<T>>,
    make: impl FnOnce() -> io::Result<Zeroizing<String>>,
) -> io::Result<T> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.lock()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    if let Some(secret) = parse(&text)? {
        return Ok(secret);
    }
    let made = make()?;
    write(&mut file, &made)?;
    parse(&made)?.ok_or_else(|| io::Error::other("what was made is not a secret"))
}

fn write(file: &mut File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(folder: &Path, in_url: &str) -> SqliteFile {
        SqliteFile::from_url(&format!("sqlite://{}/{in_url}", folder.display())).unwrap()
    }

    fn entropy() -> Entropy {
        Entropy::from_system().unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_secret_is_created_once_and_then_reused() {
        let folder = tempfile::tempdir().unwrap();
        let file = database(folder.path(), "my%20chat.db");
        read_or_create(&file, &entropy()).unwrap();
        let made = fs::read_to_string(folder.path().join("my chat.secret")).unwrap();
        read_or_create(&file, &entropy()).unwrap();
        read_or_create(&database(folder.path(), "my%20chat.sqlite"), &entropy()).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("my chat.secret")).unwrap(), made);
        assert_eq!(names(folder.path()), ["my chat.secret"]);
    }

    #[test]
    fn a_secret_under_the_undecoded_name_is_moved() {
        let folder = tempfile::tempdir().unwrap();
        let text = STANDARD.encode([7; 32]);
        fs::write(folder.path().join("my%20chat.secret"), &text).unwrap();
        read_or_create(&database(folder.path(), "my%20chat.db"), &entropy()).unwrap();
        assert_eq!(names(folder.path()), ["my chat.secret"]);
        assert_eq!(fs::read_to_string(folder.path().join("my chat.secret")).unwrap(), text);

        // If there are two, the one in the right place is used, and the other stays.
        let other = STANDARD.encode([8; 32]);
        fs::write(folder.path().join("my%20chat.secret"), &other).unwrap();
        read_or_create(&database(folder.path(), "my%20chat.db"), &entropy()).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("my chat.secret")).unwrap(), text);
        assert_eq!(names(folder.path()), ["my chat.secret", "my%20chat.secret"]);
    }

    #[test]
    fn a_secret_that_cannot_be_moved_is_used_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("gone%2Fchat.secret"), STANDARD.encode([7; 32])).unwrap();
        // The folder of the new place does not exist.
        read_or_create(&database(folder.path(), "gone%2Fchat.db"), &entropy()).unwrap();
        assert_eq!(names(folder.path()), ["gone%2Fchat.secret"]);
    }

    #[test]
    fn an_empty_file_is_filled_and_a_file_without_a_secret_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("x.secret");
        fs::write(&secret, "").unwrap();
        read_or_create(&database(folder.path(), "x.db"), &entropy()).unwrap();
        assert_eq!(STANDARD.decode(fs::read(&secret).unwrap()).unwrap().len(), 32);
        fs::write(&secret, "hunter2").unwrap();
        let error = read_or_create(&database(folder.path(), "x.db"), &entropy()).err().unwrap().to_string();
        assert!(error.contains("x.secret: not 32 bytes in base64") && !error.contains("hunter2"), "{error}");
    }
}
