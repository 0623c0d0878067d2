//! Where a SQLite database, its secret and its locks are, for URLs of every form.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    path::Path,
    process::{Command, Output, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use tempfile::TempDir;

use crate::support::ServerProcess;

/// Runs the binary until it exits.
fn run(folder: &Path, command: &str, url: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sealwire"))
        .arg(command)
        .env("SEALWIRE__DATABASE__URL", url)
        .env("SEALWIRE__SERVER__BIND", "127.0.0.1:0")
        .env("SEALWIRE__ADMIN__BIND", "127.0.0.1:0")
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Asserts that a command fails with this reason in its error line.
fn assert_refused(output: &Output, why: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let reason = said.lines().find(|line| line.starts_with("sealwire: ")).unwrap_or_default();
    assert!(reason.contains(why), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_files_of_a_database_are_in_its_folder_under_its_decoded_name() {
    for (url, folder, name) in [
        ("sqlite://data/my%20chat.db", "data", "my chat"),
        ("sqlite://b%20folder/sealwire.db", "b folder", "sealwire"),
        ("sqlite://feature%252Fname/sealwire.db", "feature%2Fname", "sealwire"),
        ("sqlite://feature%2Fname/sealwire.db?mode=rwc", "feature/name", "sealwire"),
        ("sqlite:data/relative.db", "data", "relative"),
    ] {
        let server = ServerProcess::start(&[("DATABASE__URL", url)]).await;
        let expected = ["db", "db-wal", "db-shm", "db-lock", "db-vapid", "lock", "secret"]
            .map(|ending| format!("{name}.{ending}"));
        assert_eq!(names(&server.path(folder)), BTreeSet::from(expected), "{url}");
        let root = folder.split('/').next().unwrap();
        assert_eq!(names(&server.path("")), BTreeSet::from([root, "mail", "server.log"].map(str::to_owned)), "{url}");
    }
}

#[test]
fn database_urls_without_a_persistent_file_are_refused_and_create_no_files() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("existing")).unwrap();
    for (url, why) in [
        ("sqlite::memory:", "in memory is lost when the server stops"),
        ("sqlite://:memory:", "in memory"),
        ("sqlite://%3Amemory%3A", "in memory"),
        ("sqlite://x.db?mode=memory&cache=shared", "in memory"),
        ("sqlite://", "names no file"),
        ("sqlite://data/", "data/ is a folder"),
        ("sqlite://x%00.db", "NUL byte"),
        ("sqlite://%ff.db", "invalid"),
        ("sqlite://x.db?mode=ro", "mode=ro"),
        ("sqlite:file:x.db", "sqlite://FILE"),
    ] {
        for command in ["serve", "migrate", "check-config"] {
            let output = run(folder.path(), command, url);
            assert_refused(&output, why);
            assert_refused(&output, "database.url: ");
        }
    }
    for command in ["serve", "migrate", "check-config"] {
        assert_refused(&run(folder.path(), command, "sqlite://existing"), "existing: is a directory");
    }
    assert_eq!(names(folder.path()), BTreeSet::from(["existing".to_owned()]));
    assert_eq!(names(&folder.path().join("existing")), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_whose_names_differ_only_in_the_extension_can_be_served_together() {
    let first = ServerProcess::start(&[("DATABASE__URL", "sqlite://a.db")]).await;
    let secret = fs::read_to_string(first.path("a.secret")).unwrap();
    for name in ["a.sqlite", "a"] {
        let url = format!("sqlite://{}", first.path(name).display());
        let second = ServerProcess::start(&[("DATABASE__URL", &url)]).await;
        assert_refused(&run(&second.path(""), "serve", &url), "is in use by a running server");
    }
    assert_refused(&run(&first.path(""), "serve", "sqlite://a.db"), "a.db is in use by a running server");
    assert_eq!(fs::read_to_string(first.path("a.secret")).unwrap(), secret, "all of them share one secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_version_and_this_one_cannot_use_a_file_at_the_same_time() {
    let folder = TempDir::new().unwrap();
    let old_lock_file = || -> File {
        let path = folder.path().join("sealwire.lock");
        OpenOptions::new().create(true).truncate(false).write(true).open(path).unwrap()
    };
    let url = format!("sqlite://{}", folder.path().join("sealwire.db").display());
    let earlier = old_lock_file();
    earlier.try_lock().unwrap();
    for command in ["serve", "migrate"] {
        assert_refused(&run(folder.path(), command, &url), "sealwire.db is in use by a running server");
    }
    drop(earlier);
    let server = ServerProcess::start(&[("DATABASE__URL", &url)]).await;
    assert!(old_lock_file().try_lock().is_err(), "an earlier version cannot start now");
    drop(server);
    old_lock_file().try_lock().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_under_the_undecoded_name_of_its_database_is_moved() {
    let folder = TempDir::new().unwrap();
    let secret = STANDARD.encode([7; 32]);
    fs::write(folder.path().join("my%20chat.secret"), &secret).unwrap();
    let url = format!("sqlite://{}/my%20chat.db", folder.path().display());
    let server = ServerProcess::start(&[("DATABASE__URL", &url)]).await;
    assert_eq!(fs::read_to_string(folder.path().join("my chat.secret")).unwrap(), secret);
    assert!(!folder.path().join("my%20chat.secret").exists());
    assert!(fs::read_to_string(server.path("server.log")).unwrap().contains("moved the server secret"));
}
