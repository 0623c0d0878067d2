//! `PgBouncer` between the server and PostgreSQL. In each pool mode, the server either works or refuses to start and names
//! the setting to change.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Stdio},
};

use sealwire::domain::Suite;
use serde_json::json;
use sqlx::{ConnectOptions, Executor, postgres::PgConnectOptions};
use tempfile::TempDir;
use uuid::Uuid;

use crate::support::{
    Codec, KeySet, Member, ServerProcess, Services, Socket, eventually, http::confirmation, services::script, sign_in,
};

const SECRET: (&str, &str) = ("AUTH__SECRET", "c2VhbHdpcmUtdGVzdC1zZWNyZXQtMzItYnl0ZXMtISE=");

/// A `PgBouncer` in front of one PostgreSQL. It is killed when this is dropped.
struct PgBouncer {
    process: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl PgBouncer {
    async fn start(database: &str, more: &str) -> Self {
        script(&["need", "pgbouncer", "pgbouncer"]);
        let target: PgConnectOptions = database.parse().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let folder = tempfile::tempdir().unwrap();
        // PgBouncer drops root privileges and reads the file as another user.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let file = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host={} port={} user={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
             unix_socket_dir =\nauth_type = any\nmax_client_conn = 200\ndefault_pool_size = 20\n{more}\n",
            target.get_host(),
            target.get_port(),
            target.get_username(),
            address.port(),
        );
        fs::write(&file, text).unwrap();
        let mut command = Command::new("pgbouncer");
        if rustix::process::geteuid().is_root() {
            command.args(["-u", "postgres"]);
        }
        command.arg("-q").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().unwrap();
        eventually("PgBouncer listens", || async { TcpStream::connect(address).ok() }).await;
        Self { process, address, _folder: folder }
    }

    /// Returns the URL of a database, by way of this pooler.
    fn url(&self, database: &str) -> String {
        let name = database.rsplit_once('/').unwrap().1;
        format!("postgres://anybody@{}/{name}", self.address)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts a server with settings that it must refuse, and returns its stderr.
fn refusal(settings: &[(&str, &str)]) -> String {
    let folder = TempDir::new().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_sealwire"))
        .env("SEALWIRE__SERVER__BIND", "127.0.0.1:0")
        .env("SEALWIRE__ADMIN__BIND", "127.0.0.1:0")
        .envs(settings.iter().map(|(name, value)| (format!("SEALWIRE__{name}"), *value)))
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "not refused: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stderr).unwrap()
}

/// Publishes and claims keys, sends and acks messages, renews a session and deletes an account.
async fn use_everything(node: &ServerProcess) {
    let owner = sign_in(node, "owner@example.org").await;
    let claimer = sign_in(node, "claimer@example.org").await;
    let keys = Socket::connect(node, &owner.token, Codec::Json).await;
    keys.request("keys.publish", KeySet::new(Suite::SignalPqxdh, 1).complete(1..=30)).await;
    let claiming = Socket::connect(node, &claimer.token, Codec::MsgPack).await;
    let claims =
        (0..30).map(|_| claiming.request("keys.claim", json!({ "user_id": owner.user, "claim_id": Uuid::new_v4() })));
    let mut issued: Vec<u64> = futures_util::future::join_all(claims)
        .await
        .iter()
        .filter_map(|reply| reply["bundles"][0]["one_time_prekey"]["key_id"].as_u64())
        .collect();
    issued.sort_unstable();
    assert!(issued.windows(2).all(|pair| pair[0] != pair[1]), "a key was issued twice: {issued:?}");
    assert_eq!(issued.len(), 10, "the burst of the drain limit");
    let alice = Member::join(node, "alice@example.org", Codec::Json).await;
    let bob = Member::join(node, "bob@example.org", Codec::MsgPack).await;
    for round in 0..20 {
        let text = format!("message {round}");
        alice.send(&[&bob.person], &text).await;
        bob.receives(&text).await;
    }
    let renewed = keys.request("session.renew", json!({})).await;
    let again = Socket::connect(node, renewed["token"].as_str().unwrap(), Codec::Json).await;
    again.request("account.delete", confirmation(node, "owner@example.org", "delete").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_pooling_works_only_with_the_pooler_setting() {
    let database = Services::shared().database().await;
    let pooler =
        PgBouncer::start(&database, "pool_mode = transaction\nignore_startup_parameters = extra_float_digits,options")
            .await;
    let url = pooler.url(&database);
    let error = refusal(&[("DATABASE__URL", &url), SECRET]);
    assert!(error.contains("database.pooler"), "{error}");
    // Also refused if the database gives all sessions the required settings.
    let mut admin = database.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
    let name = database.rsplit_once('/').unwrap().1;
    for setting in [
        "lock_timeout = '1100ms'",
        "statement_timeout = '9s'",
        "idle_in_transaction_session_timeout = '15s'",
        "enable_seqscan = off",
    ] {
        admin.execute(sqlx::AssertSqlSafe(format!("ALTER DATABASE {name} SET {setting}"))).await.unwrap();
    }
    let fresh =
        PgBouncer::start(&database, "pool_mode = transaction\nignore_startup_parameters = extra_float_digits,options")
            .await;
    let error = refusal(&[("DATABASE__URL", &fresh.url(&database)), SECRET]);
    assert!(error.contains("database.pooler") && error.contains("another connection"), "{error}");
    let error = refusal(&[("DATABASE__URL", &url), ("DATABASE__POOLER", "true"), SECRET]);
    assert!(error.contains("database.migrate_url"), "{error}");

    // By default, PgBouncer refuses startup parameters.
    let plain = PgBouncer::start(&database, "pool_mode = transaction").await;
    let settings = [
        ("DATABASE__URL", plain.url(&database)),
        ("DATABASE__POOLER", "true".to_owned()),
        ("DATABASE__MIGRATE_URL", database.clone()),
        (SECRET.0, SECRET.1.to_owned()),
    ];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let node = ServerProcess::start(&settings).await;
    use_everything(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn session_pooling_works_only_if_the_sessions_have_the_required_settings() {
    let database = Services::shared().database().await;
    let defaults = PgBouncer::start(&database, "pool_mode = session").await;
    let error = refusal(&[("DATABASE__URL", &defaults.url(&database)), SECRET]);
    assert!(error.contains("startup parameter") && error.contains("database.pooler"), "{error}");
    let ignoring = "pool_mode = session\nignore_startup_parameters = extra_float_digits,options";
    let dropping = PgBouncer::start(&database, ignoring).await;
    let error = refusal(&[("DATABASE__URL", &dropping.url(&database)), SECRET]);
    assert!(error.contains("lock_timeout is 0") && error.contains("database.pooler"), "{error}");
    let mut admin = database.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
    let name = database.rsplit_once('/').unwrap().1;
    for setting in [
        "lock_timeout = '1100ms'",
        "statement_timeout = '9s'",
        "idle_in_transaction_session_timeout = '15s'",
        "enable_seqscan = off",
    ] {
        admin.execute(sqlx::AssertSqlSafe(format!("ALTER DATABASE {name} SET {setting}"))).await.unwrap();
    }
    let fresh = PgBouncer::start(&database, ignoring).await;
    let url = fresh.url(&database);
    let node = ServerProcess::start(&[("DATABASE__URL", url.as_str()), SECRET]).await;
    use_everything(&node).await;
}
