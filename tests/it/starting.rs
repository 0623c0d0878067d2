//! Starting the server: signals during the start, unusable databases and mail servers, invalid settings. Also covers
//! `check-config`, which finds such errors without a start.

use std::{
    fs,
    io::Read,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{ConnectOptions, Executor, postgres::PgConnectOptions};
use tempfile::TempDir;

use crate::support::{PATIENCE, Services, eventually, mail_server::MailServer};

fn command(folder: &Path, arguments: &[&str], settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealwire"));
    command
        .args(arguments)
        .env("SEALWIRE__SERVER__BIND", "127.0.0.1:0")
        .env("SEALWIRE__ADMIN__BIND", "127.0.0.1:0")
        .env("SEALWIRE__DATABASE__URL", format!("sqlite://{}", folder.join("sealwire.db").display()))
        .env("SEALWIRE__AUTH__SECRET", STANDARD.encode([7; 32]))
        .envs(settings.iter().copied())
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(folder: &Path, arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    command(folder, arguments, settings).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A running process. It is killed when this is dropped.
struct RunningProcess(Child);

impl RunningProcess {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap(), signal).unwrap();
    }

    /// Waits until the process ends. Returns its exit code and its log.
    async fn wait(&mut self) -> (Option<i32>, String) {
        let child = tokio::sync::Mutex::new(&mut self.0);
        let status = eventually("the process ends", async || child.lock().await.try_wait().unwrap()).await;
        let mut log = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status.code(), log)
    }
}

impl Drop for RunningProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_a_start_that_waits_for_its_database() {
    // A database that accepts connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://u:p@{}/db", silent.local_addr().unwrap());
    for signal in [Signal::TERM, Signal::INT] {
        for (arguments, code) in [(&["serve"][..], 0), (&["migrate"], 143)] {
            let folder = TempDir::new().unwrap();
            let mut starting = RunningProcess(
                command(folder.path(), arguments, &[("SEALWIRE__DATABASE__URL", &url)]).spawn().unwrap(),
            );
            // It has connected, so its signal handlers are installed.
            let (_connection, _) = silent.accept().unwrap();
            let began = Instant::now();
            starting.signal(signal);
            let (status, log) = starting.wait().await;
            assert_eq!(status, Some(code), "{arguments:?}: {log}");
            assert!(began.elapsed() < Duration::from_secs(9), "it ended before the database timeout");
            assert!(log.contains("stopped by a signal"), "{log}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_database_is_reported_at_once_with_its_address_and_the_cause() {
    let folder = TempDir::new().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("postgres://u:hunter2@{free}/db");
    for command in ["serve", "migrate"] {
        let began = Instant::now();
        let output = run(folder.path(), &[command], &[("SEALWIRE__DATABASE__URL", &url)]);
        assert_eq!(output.status.code(), Some(1));
        assert!(began.elapsed() < PATIENCE);
        let errors = stderr(&output);
        assert!(errors.contains(&free.to_string()) && errors.to_lowercase().contains("refused"), "{errors}");
        assert!(!errors.contains("hunter2") && !errors.contains("timed out"), "{errors}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_another_application_is_refused() {
    let folder = TempDir::new().unwrap();
    let postgres = Services::shared().database().await;
    let mut admin = postgres.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
    admin.execute("CREATE TABLE users (name TEXT)").await.unwrap();
    let file = folder.path().join("other.db");
    let sqlite = format!("sqlite://{}", file.display());
    let mut other =
        sqlx::sqlite::SqliteConnectOptions::new().filename(&file).create_if_missing(true).connect().await.unwrap();
    other.execute("CREATE TABLE devices (name TEXT)").await.unwrap();
    drop(other);
    let text = folder.path().join("text.db");
    fs::write(
        &text,
        "this is a text that is much longer than the header of a database file, which has 100 bytes. ".repeat(9),
    )
    .unwrap();
    let text = format!("sqlite://{}", text.display());
    for url in [&postgres, &sqlite, &text] {
        for arguments in [&["serve"][..], &["migrate"], &["check-config", "--connect"]] {
            let output = run(folder.path(), arguments, &[("SEALWIRE__DATABASE__URL", url)]);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}");
            assert!(stderr(&output).contains("not a Sealwire database"), "{}", stderr(&output));
        }
    }
}

#[test]
fn migrate_prints_whether_it_applied_migrations() {
    let folder = TempDir::new().unwrap();
    let first = run(folder.path(), &["migrate"], &[]);
    assert!(first.status.success() && stdout(&first).contains("migrations were applied"), "{}", stdout(&first));
    let second = run(folder.path(), &["migrate"], &[]);
    assert_eq!(stdout(&second), "the database is up to date: no migration was needed\n");
}

#[test]
fn check_config_and_serve_refuse_the_same_settings_and_print_no_secret() {
    let folder = TempDir::new().unwrap();
    for (name, value, expected, secret) in [
        // NUL, which no output contains, stands for a setting without a secret.
        ("BUS__URL", "redis://:p#ss@127.0.0.1:6379", ["bus.url", "percent-encode"], "p#ss"),
        ("BUS__URL", "redis://", ["bus.url", "redis://"], "\0"),
        ("BUS__URL", "redis-sentinel://a,b", ["bus.url", "master=NAME"], "\0"),
        ("MAILER__URL", "smtp://me:pass#word@mail.example", ["mailer.url", "percent-encode"], "word@"),
        ("MAILER__URL", "smtp://me:pa/ss@mail.example", ["mailer.url", "percent-encode"], "ss@"),
        ("MAILER__URL", "smtps://mail.example:notaport", ["mailer.url", "smtps://"], "\0"),
        ("DATABASE__URL", "postgres://u:a?E':d@H@127.0.0.1/db", ["database.url", "percent-encode"], "E':d"),
        ("BUS__URL", "redis://127.0.0.1/-1", ["bus.url", "redis://"], "\0"),
        ("DATABASE__URL", "postgres://u@127.0.0.1:1/d?pasword=hunter2", ["database.url", "pasword"], "hunter2"),
        ("DATABASE__URL", "postgres://u@127.0.0.1:1/d?sslrootcert=/none", ["database.url", "sslrootcert"], "/none"),
        ("DATABASE__URL", "postgres://u:p@[::1/db", ["database.url", "postgres://"], "\0"),
        (
            "SERVER__ALLOWED_ORIGIN",
            "https://chat.example",
            ["server.allowed_origin (", "server.allowed_origins?"],
            "\0",
        ),
        ("SERVER_BIND", "127.0.0.1:0", ["SEALWIRE__SERVER_BIND", "SEALWIRE__SERVER__BIND?"], "\0"),
    ] {
        let name = format!("SEALWIRE__{name}");
        for arguments in [&["check-config"][..], &["serve"]] {
            let output = run(folder.path(), arguments, &[(&name, value)]);
            assert_eq!(output.status.code(), Some(1), "{name} {value}: {}", stdout(&output));
            let errors = stderr(&output);
            assert!(expected.iter().all(|part| errors.contains(part)), "{errors}");
            assert!(!errors.contains(secret), "{errors}");
            assert!(stdout(&output).is_empty());
        }
    }
    assert!(!folder.path().join("sealwire.db").exists(), "no database was created");
}

#[test]
fn an_environment_variable_that_resembles_a_setting_causes_a_warning() {
    let folder = TempDir::new().unwrap();
    let output = run(
        folder.path(),
        &["check-config"],
        &[("SEALWIRE_SERVER_BIND", "127.0.0.1:9000"), ("SEALWIRE_UNRELATED", "x"), ("SEALWIRE_HOME", "x")],
    );
    assert!(output.status.success());
    let errors = stderr(&output);
    assert!(errors.contains("SEALWIRE_SERVER_BIND is ignored; did you mean SEALWIRE__SERVER__BIND?"), "{errors}");
    assert!(!errors.contains("UNRELATED") && !errors.contains("SEALWIRE_HOME"), "{errors}");
}

#[test]
fn check_config_prints_toml_with_the_source_of_each_value_and_hides_secrets() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("sealwire.toml");
    fs::write(&file, "[auth]\nmax_devices = 41\nsession_days = 7\n").unwrap();
    let output = run(
        folder.path(),
        &["check-config", "--config", file.to_str().unwrap()],
        &[
            ("SEALWIRE__AUTH__MAX_DEVICES", "42"),
            ("SEALWIRE__ADMIN__TOKEN", "hunter-of-the-operator"),
            ("SEALWIRE__MAILER__URL", "smtp://user:hunter-mail@mail.example"),
        ],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    let shown = stdout(&output);
    let table: toml::Table = shown.parse().unwrap();
    assert_eq!(table["auth"]["max_devices"].as_integer(), Some(42));
    assert_eq!(table["mailer"]["url"].as_str(), Some("smtp://user:***@mail.example"));
    for line in [
        "max_devices = 42 # environment SEALWIRE__AUTH__MAX_DEVICES".to_owned(),
        format!("session_days = 7.0 # file {}", file.display()),
        "low_watermark = 20 # default".to_owned(),
        "token = \"***\" # environment SEALWIRE__ADMIN__TOKEN".to_owned(),
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} in {shown}");
    }
    assert!(!shown.contains("hunter") && !shown.contains(&STANDARD.encode([7; 32])));
    assert!(!folder.path().join("sealwire.db").exists(), "check-config creates no database");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_config_with_connect_tries_every_backend() {
    let folder = TempDir::new().unwrap();
    let services = Services::shared();
    let (database, mail) = (services.database().await, MailServer::start().await);
    let mailer = format!("smtp://{}", mail.address);
    let good = [
        ("SEALWIRE__DATABASE__URL", database.as_str()),
        ("SEALWIRE__BUS__URL", services.redis.as_str()),
        ("SEALWIRE__MAILER__URL", mailer.as_str()),
    ];
    let arguments = ["check-config", "--mail-to", "operator@example.org"];
    let (path, all) = (folder.path().to_owned(), good.map(|(name, value)| (name, value.to_owned())));
    let output = tokio::task::spawn_blocking(move || {
        run(&path, &arguments, &all.each_ref().map(|(name, value)| (*name, value.as_str())))
    })
    .await
    .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let errors = stderr(&output);
    for line in ["database: the database answers", "bus: Redis answers", "mailer: the test mail was sent"] {
        assert!(errors.contains(line), "{errors}");
    }
    eventually("the test mail has arrived", async || {
        mail.state.mails().iter().any(|mail| mail.data.contains("A test mail of Sealwire")).then_some(())
    })
    .await;
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (place, (name, value, part)) in [
        ("SEALWIRE__DATABASE__URL", format!("postgres://u:p@{free}/db"), "database: cannot connect to PostgreSQL at"),
        ("SEALWIRE__BUS__URL", format!("redis://{free}"), "bus: cannot reach the Redis"),
        ("SEALWIRE__MAILER__URL", format!("smtp://{free}"), "mailer: cannot reach the mail server"),
    ]
    .iter()
    .enumerate()
    {
        let mut settings = good;
        settings[place] = (name, value);
        let output = run(folder.path(), &["check-config", "--connect"], &settings);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
        assert!(!stdout(&output).is_empty(), "the settings are printed nevertheless");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_mail_server_causes_a_warning_at_the_start() {
    let folder = TempDir::new().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("smtp://{free}");
    let log = folder.path().join("server.log");
    let mut command = command(folder.path(), &["serve"], &[("SEALWIRE__MAILER__URL", &url)]);
    let mut server =
        RunningProcess(command.stderr(fs::File::create(&log).unwrap()).stdout(Stdio::null()).spawn().unwrap());
    let read = || fs::read_to_string(&log).unwrap();
    eventually("the server listens and has logged the warning", async || {
        let log = read();
        (log.contains("\"listening\"") && log.contains("no mail can be sent now")).then_some(())
    })
    .await;
    server.signal(Signal::TERM);
    let child = tokio::sync::Mutex::new(&mut server.0);
    let status = eventually("the server stops", async || child.lock().await.try_wait().unwrap()).await;
    assert!(status.success());
}

#[test]
fn a_mail_folder_that_cannot_be_created_is_reported_with_its_setting() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let output = run(folder.path(), &["serve"], &[("SEALWIRE__MAILER__URL", "file:file/mail")]);
    assert_eq!(output.status.code(), Some(1));
    let errors = stderr(&output);
    assert!(errors.contains("mailer.url") && errors.contains("file/mail"), "{errors}");
}
