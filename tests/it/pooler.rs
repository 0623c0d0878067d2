//! A pooler (`PgBouncer`) between the server and PostgreSQL: with each of its modes the server works, or is refused at the start with what
//! to set.

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

use crate::support::{Codec, KeySet, Member, ServerProcess, Services, Socket, eventually, services::script, sign_in};

const SECRET: (&str, &str) = ("AUTH__SECRET", "c2VhbHdpcmUtdGVzdC1zZWNyZXQtMzItYnl0ZXMtISE=");

/// A `PgBouncer` in front of one PostgreSQL. It ends when this is dropped.
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
        // It gives up root and reads the file as another user.
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

    /// The URL of a database through this pooler.
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

/// What a start with these settings ends with.
fn refusal(settings: &[(&str, &str)]) -> String {
    let folder = TempDir::new().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_sealwire"))
        .env("SEALWIRE__SERVER__BIND", "127.0.0.1:0")
        .env("SEALWIRE__ADMIN__BIND", "127.0.0.1:0")
        .envs(settings.iter().map(|(name, value)| (format!("SEALWIRE__{name}"), *value)))
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "it started: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stderr).unwrap()
}

/// Publishes, claims, sends, acks, renews, and revokes, as clients do.
async fn use_everything(node: &ServerProcess) {
    let owner = sign_in(node, "owner@example.org").await;
    let claimer = sign_in(node, "claimer@example.org").await;
    let keys = Socket::connect(node, &owner.token, Codec::Json).await;
    keys.request("keys.publish", KeySet::new(Suite::SignalPqxdh, 1).complete(1..=30)).await;
    let claiming = Socket::connect(node, &claimer.token, Codec::MsgPack).await;
    let claims =
        (0..30).map(|_| claiming.request("keys.claim", json!({ "user_id": owner.user, "claim_id": Uuid::new_v4() })));
    let mut given: Vec<u64> = futures_util::future::join_all(claims)
        .await
        .iter()
        .filter_map(|reply| reply["bundles"][0]["one_time_prekey"]["key_id"].as_u64())
        .collect();
    given.sort_unstable();
    assert!(given.windows(2).all(|pair| pair[0] != pair[1]), "a key twice: {given:?}");
    assert_eq!(given.len(), 10, "the burst of the drain limit");
    let alice = Member::join(node, "alice@example.org", Codec::Json).await;
    let bob = Member::join(node, "bob@example.org", Codec::MsgPack).await;
    for round in 0..20 {
        let text = format!("message {round}");
        alice.send(&[&bob.person], &text).await;
        bob.receives(&text).await;
    }
    let renewed = keys.request("session.renew", json!({})).await;
    let again = Socket::connect(node, renewed["token"].as_str().unwrap(), Codec::Json).await;
    again.request("account.delete", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_of_transactions_is_refused_unless_the_setting_names_it_and_then_works() {
    let database = Services::shared().database().await;
    let pooler =
        PgBouncer::start(&database, "pool_mode = transaction\nignore_startup_parameters = extra_float_digits,options")
            .await;
    let url = pooler.url(&database);
    let said = refusal(&[("DATABASE__URL", &url), SECRET]);
    assert!(said.contains("database.pooler"), "{said}");
    // Also if its sessions happen to have the right settings.
    let mut admin = database.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
    let name = database.rsplit_once('/').unwrap().1;
    for setting in [
        "lock_timeout = '5s'",
        "statement_timeout = '9s'",
        "idle_in_transaction_session_timeout = '15s'",
        "enable_seqscan = off",
    ] {
        admin.execute(sqlx::AssertSqlSafe(format!("ALTER DATABASE {name} SET {setting}"))).await.unwrap();
    }
    let fresh =
        PgBouncer::start(&database, "pool_mode = transaction\nignore_startup_parameters = extra_float_digits,options")
            .await;
    let said = refusal(&[("DATABASE__URL", &fresh.url(&database)), SECRET]);
    assert!(said.contains("database.pooler") && said.contains("another connection"), "{said}");
    let said = refusal(&[("DATABASE__URL", &url), ("DATABASE__POOLER", "true"), SECRET]);
    assert!(said.contains("database.migrate_url"), "{said}");

    // With the defaults of PgBouncer, which refuses startup parameters.
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
async fn a_pooler_of_sessions_is_refused_with_what_to_set_unless_its_sessions_have_the_settings() {
    let database = Services::shared().database().await;
    let defaults = PgBouncer::start(&database, "pool_mode = session").await;
    let said = refusal(&[("DATABASE__URL", &defaults.url(&database)), SECRET]);
    assert!(said.contains("startup parameter") && said.contains("database.pooler"), "{said}");
    let ignoring = "pool_mode = session\nignore_startup_parameters = extra_float_digits,options";
    let dropping = PgBouncer::start(&database, ignoring).await;
    let said = refusal(&[("DATABASE__URL", &dropping.url(&database)), SECRET]);
    assert!(said.contains("lock_timeout is 0") && said.contains("database.pooler"), "{said}");
    let mut admin = database.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
    let name = database.rsplit_once('/').unwrap().1;
    for setting in [
        "lock_timeout = '5s'",
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
