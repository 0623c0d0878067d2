//! The built binary: its subcommands, its secret file, and how it stops.

use std::{
    collections::HashSet,
    fs,
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::StreamExt;
use reqwest::StatusCode;
use sealwire::domain::{Suite, keys::IdentityKey, signature};
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Executor, postgres::PgConnectOptions, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use crate::support::{
    Codec, PATIENCE, Server, ServerProcess, Services, Socket,
    http::{challenge, mails, post},
    sign_in,
    socket::connect_raw,
};

/// Runs the binary until it exits, in a folder that holds its database.
fn run(folder: &Path, arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    let database = format!("sqlite://{}", folder.join("sealwire.db").display());
    Command::new(env!("CARGO_BIN_EXE_sealwire"))
        .args(arguments)
        .env("SEALWIRE__DATABASE__URL", database)
        .env("SEALWIRE__SERVER__BIND", "127.0.0.1:0")
        .env("SEALWIRE__ADMIN__BIND", "127.0.0.1:0")
        .envs(settings.iter().map(|(key, value)| (format!("SEALWIRE__{key}"), *value)))
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(output: &Output) -> (String, String) {
    (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn an_invalid_setting_stops_every_command_and_is_named_with_its_valid_values() {
    let folder = TempDir::new().unwrap();
    for (key, value, named, expected) in [
        ("SERVER__BIND", "nowhere", "server.bind", "an address and port"),
        ("AUTH__SECRET", "aHVudGVy", "auth.secret", "32 bytes in base64"),
        ("MAILER__URL", "pigeon:hunter", "mailer.url", "smtp://"),
        ("AUTH__SESSION_DAYS", "-1", "auth.session_days", "days, above 0"),
        ("LIMITS__CLAIM_BURST", "many", "limits.claim_burst", "a whole number"),
        ("LIMITS__CLAIM_BIRST", "1", "limits.claim_birst", "unknown setting"),
        ("SEVER__BIND", "127.0.0.1:0", "sever.bind", "unknown setting"),
    ] {
        for command in ["check-config", "serve", "migrate"] {
            let output = run(folder.path(), &[command], &[(key, value)]);
            let (stdout, stderr) = text(&output);
            assert_eq!(output.status.code(), Some(1), "{command} with {key}: {stdout}");
            assert!(stderr.contains(named) && stderr.contains(expected), "{stderr}");
            assert!(!stderr.contains("aHVudGVy") && !stderr.contains("hunter"), "{stderr}");
        }
    }
    assert!(!folder.path().join("sealwire.db").exists(), "no database was created");
}

#[test]
fn the_operators_listener_needs_a_token_unless_it_is_local() {
    let folder = TempDir::new().unwrap();
    for bind in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9090"] {
        for command in ["serve", "check-config"] {
            let output = run(folder.path(), &[command], &[("ADMIN__BIND", bind)]);
            let (_, stderr) = text(&output);
            assert_eq!(output.status.code(), Some(1), "{bind}: {stderr}");
            assert!(stderr.contains("admin.token") && stderr.contains("admin.bind"), "{stderr}");
        }
        let with_token =
            run(folder.path(), &["check-config"], &[("ADMIN__BIND", bind), ("ADMIN__TOKEN", "sixteen letters.")]);
        assert!(with_token.status.success());
    }
}

#[test]
fn a_port_that_is_in_use_is_reported_with_its_setting() {
    let folder = TempDir::new().unwrap();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().to_string();
    for (key, setting) in [("ADMIN__BIND", "admin.bind"), ("SERVER__BIND", "server.bind")] {
        let output = run(folder.path(), &["serve"], &[(key, &taken)]);
        let (_, stderr) = text(&output);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(&format!("{setting} = {taken}")), "{stderr}");
    }
}

#[test]
fn migrating_twice_succeeds() {
    let folder = TempDir::new().unwrap();
    for _ in 0..2 {
        let output = run(folder.path(), &["migrate"], &[]);
        assert!(output.status.success(), "{}", text(&output).1);
    }
    assert!(folder.path().join("sealwire.db").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_a_newer_version_stop_every_command_and_check_config_reports_older_ones() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("sealwire.db");
    let sqlite = format!("sqlite://{}", file.display());
    let postgres = Services::shared().database().await;
    let secret = STANDARD.encode([7; 32]);
    for url in [sqlite.as_str(), postgres.as_str()] {
        let settings = [("DATABASE__URL", url), ("AUTH__SECRET", secret.as_str())];
        let run = |command: &str| run(folder.path(), &command.split(' ').collect::<Vec<_>>(), &settings);
        assert!(run("migrate").status.success());
        let shown = text(&run("check-config --connect")).1;
        assert!(shown.contains("database: the database") && !shown.contains("up to date"), "{shown}");
        change(
            url,
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
            SELECT 990101000000, 'newer', success, checksum, execution_time FROM _sqlx_migrations LIMIT 1",
        )
        .await;
        for command in ["check-config --connect", "serve", "migrate"] {
            let output = run(command);
            let (stdout, stderr) = text(&output);
            assert_eq!(output.status.code(), Some(1), "{command}: {stdout}");
            assert!(stderr.contains("migration 990101000000 of a newer version"), "{stderr}");
        }
        change(url, "DELETE FROM _sqlx_migrations WHERE version = 990101000000").await;
        let newest = "DELETE FROM _sqlx_migrations WHERE version = (SELECT MAX(version) FROM _sqlx_migrations)";
        change(url, newest).await;
        let shown = text(&run("check-config --connect")).1;
        assert!(shown.contains("a start brings its tables up to date"), "{shown}");
    }
}

/// Runs a statement directly on a database.
async fn change(url: &str, statement: &'static str) {
    if url.starts_with("sqlite:") {
        url.parse::<SqliteConnectOptions>().unwrap().connect().await.unwrap().execute(statement).await.unwrap();
    } else {
        url.parse::<PgConnectOptions>().unwrap().connect().await.unwrap().execute(statement).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_file_is_private_and_can_be_used_by_only_one_server() {
    let mut server = ServerProcess::start(&[]).await;
    let beside = [
        "sealwire.db-wal",
        "sealwire.db-shm",
        "sealwire.db-lock",
        "sealwire.db-vapid",
        "sealwire.lock",
        "sealwire.secret",
    ];
    for name in beside.into_iter().chain(["sealwire.db"]) {
        assert_eq!(mode(&server.path(name)), 0o600, "{name}");
    }
    let file = server.path("sealwire.db");
    let folder = file.parent().unwrap();
    let refused = |command: &str| {
        let output = run(folder, &[command], &[]);
        let (_, said) = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("{} is in use by a running server", file.display())), "{said}");
        assert_eq!(said.lines().filter(|line| line.starts_with("sealwire: ")).count(), 1, "{said}");
    };
    refused("serve");
    // Commands that change no tables may run beside the server.
    for command in ["check-config", "migrate"] {
        let output = run(folder, &[command], &[]);
        assert!(output.status.success(), "{command}: {}", text(&output).1);
    }
    let url = format!("sqlite://{}", file.display());
    change(&url, "CREATE TABLE kept AS SELECT * FROM _sqlx_migrations").await;
    change(&url, "DELETE FROM _sqlx_migrations WHERE version = (SELECT MAX(version) FROM _sqlx_migrations)").await;
    refused("migrate");
    change(&url, "DELETE FROM _sqlx_migrations").await;
    change(&url, "INSERT INTO _sqlx_migrations SELECT * FROM kept").await;
    // The lock on the file ends with the process, even if the process is killed.
    server.kill();
    server.restart().await;
    assert!(server.terminate().await.success());
    server.restart().await;

    let parent = TempDir::new().unwrap();
    let url = format!("sqlite://{}", parent.path().join("data/deep/sealwire.db").display());
    assert!(run(parent.path(), &["migrate"], &[("DATABASE__URL", &url)]).status.success());
    for made in ["data", "data/deep"] {
        assert_eq!(mode(&parent.path().join(made)), 0o700, "{made}");
    }
}

/// Decodes a field from base64.
fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn seeded_devices_can_connect_and_their_keys_can_be_claimed_and_verified() {
    let server = ServerProcess::start(&[]).await;
    let out = server.path("devices.jsonl");
    let arguments = ["seed", "--users", "3", "--devices", "2", "--prekeys", "5", "--out", out.to_str().unwrap()];
    server.command(&arguments);
    server.command(&arguments);
    let lines = fs::read_to_string(&out).unwrap();
    let devices: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let distinct = |key: &str| devices.iter().map(|line| line[key].as_str().unwrap()).collect::<HashSet<_>>().len();
    assert_eq!((devices.len(), distinct("user_id"), distinct("device_id"), distinct("token")), (6, 3, 6, 6));
    assert!(devices.iter().all(|line| line.as_object().unwrap().len() == 3));

    let claimer = Socket::connect(&server, &sign_in(&server, "alice@example.org").await.token, Codec::Json).await;
    for line in &devices {
        let socket = Socket::connect(&server, line["token"].as_str().unwrap(), Codec::MsgPack).await;
        assert_eq!(socket.welcome["user_id"], line["user_id"]);
        assert_eq!(socket.welcome["device_id"], line["device_id"]);
        assert_eq!(socket.welcome["keys"]["one_time"], 5);
        let claim =
            json!({ "user_id": line["user_id"], "device_ids": [line["device_id"]], "claim_id": Uuid::from_u128(7) });
        let answer = claimer.request("keys.claim", claim).await;
        let bundle = &answer["bundles"][0];
        assert_eq!(bundle["suite"], Suite::SignalX3dh.as_str());
        assert_eq!(bundle["one_time"], "claimed");
        assert_eq!(bytes(&bundle["one_time_prekey"]["public_key"]).len(), 33);
        let (identity, signed) = (bytes(&bundle["identity_key"]), &bundle["signed_prekey"]);
        let identity = IdentityKey::parse(Suite::SignalX3dh, &identity).unwrap();
        let (signed, signature) = (bytes(&signed["public_key"]), bytes(&signed["signature"]));
        signature::verify(Suite::SignalX3dh, &identity, &signed, &signature).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secret_file_is_private_and_survives_a_restart() {
    let mut server = ServerProcess::start(&[]).await;
    let secret = server.path("sealwire.secret");
    let before = fs::read_to_string(&secret).unwrap();
    assert_eq!(STANDARD.decode(before.trim()).unwrap().len(), 32);
    assert_eq!(mode(&secret), 0o600);
    let (challenge_id, code) = challenge(&server, "alice@example.org").await;
    assert!(server.terminate().await.success());
    server.restart().await;
    assert_eq!(fs::read_to_string(&secret).unwrap(), before);
    assert_eq!(mode(&secret), 0o600);
    let entered = json!({ "challenge_id": challenge_id, "email": "alice@example.org", "code": code });
    let (status, body) = post(&server, "/v1/auth/verify", entered).await;
    assert_eq!(status, StatusCode::CREATED, "a code from before the restart is still valid: {body}");
    assert_eq!(mails(server.mail()).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_announces_the_stop_to_its_clients_and_exits_with_0() {
    let mut server = ServerProcess::start(&[]).await;
    let person = sign_in(&server, "alice@example.org").await;
    let mut stream = connect_raw(&server, Some(&person.token), "sealwire.v1.json").await.unwrap();
    for event in ["welcome", "mailbox.drained"] {
        assert!(stream.next().await.unwrap().unwrap().to_text().unwrap().contains(event));
    }
    let closing = tokio::spawn(async move {
        let mut events: Vec<Value> = Vec::new();
        loop {
            match timeout(PATIENCE, stream.next()).await.unwrap() {
                Some(Ok(Message::Text(text))) => events.push(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(Some(close)))) => return (events, u16::from(close.code)),
                Some(Ok(_)) => {}
                end => panic!("no close frame: {end:?}"),
            }
        }
    });
    assert_eq!(server.terminate().await.code(), Some(0));
    let (events, close) = closing.await.unwrap();
    assert_eq!(close, 4000);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["event"], "server.draining");
    assert!(events[0]["data"]["reconnect_in_ms"].as_u64().unwrap() <= 60_000);
    server.restart().await;
    Socket::connect(&server, &person.token, Codec::Json).await.barrier().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn healthcheck_reports_whether_the_server_is_ready_and_if_not_why() {
    let mut server = ServerProcess::start(&[]).await;
    assert_eq!(server.command(&["healthcheck"]), "");
    let bind = server.address().to_string();
    server.terminate().await;
    let folder = TempDir::new().unwrap();
    let unhealthy = |bind: &str, why: &str| {
        let output = run(folder.path(), &["healthcheck"], &[("SERVER__BIND", bind)]);
        let (_, said) = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why) && said.contains("sealwire: "), "{said}");
    };
    unhealthy(&bind, "nothing answers at 127.0.0.1");
    unhealthy("127.0.0.1:0", "server.bind");

    // A server that is up and answers that it is not ready.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = listener.local_addr().unwrap().to_string();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = [0; 512];
        let length = stream.read(&mut asked).unwrap();
        stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 15\r\n\r\n{\"reasons\":[1]}").unwrap();
        String::from_utf8_lossy(&asked[..length]).into_owned()
    });
    unhealthy(&bind, "503 Service Unavailable {\"reasons\":[1]}");
    assert!(answering.join().unwrap().starts_with("GET /readyz HTTP/1.1\r\n"));
    assert!(!folder.path().join("sealwire.db").exists(), "a check changes nothing");
}
