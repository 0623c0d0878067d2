//! A database that was restored from a backup. After `deploy/after-restore.sql` no key and no message number is used
//! twice, although the database has forgotten what happened after the backup.

use std::{path::Path, process::Command};

use reqwest::{Method, StatusCode};
use sealwire::domain::Suite;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    Codec, KeySet, Person, ServerProcess, Services, Socket,
    http::{call, sign_in_again},
    mailing::message,
    sign_in, sign_in_as,
};

const AFTER_RESTORE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/after-restore.sql");
const SECRET: &str = "c2VhbHdpcmUtdGVzdC1zZWNyZXQtMzItYnl0ZXMtISE=";

/// Runs a command-line tool, as docs/operations.md tells operators to.
fn tool(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn claim(socket: &Socket, owner: &Person) -> Value {
    let answer = socket.request("keys.claim", json!({ "user_id": owner.user, "claim_id": Uuid::new_v4() })).await;
    answer["bundles"][0].clone()
}

/// Sends a message, receives and acks it, and returns its number.
async fn exchange(from: &Socket, owner: &Person, socket: &Socket) -> u64 {
    from.request("messages.send", message(&[owner], "hello")).await;
    let seq = socket.event("message").await["seq"].clone();
    assert_eq!(socket.request("messages.ack", json!({ "seqs": [seq] })).await["acked"], 1);
    seq.as_u64().unwrap()
}

/// Uses a server before and after the backup that `back_up` makes, kills it, and checks it after `restore`.
async fn assert_restore_is_safe(mut server: ServerProcess, back_up: impl FnOnce(), restore: impl FnOnce()) {
    let owner = sign_in(&server, "owner@example.org").await;
    let lost = sign_in(&server, "owner@example.org").await;
    let claimer = sign_in(&server, "claimer@example.org").await;
    let mut keys = KeySet::new(Suite::SignalX3dh, 1);
    let owners = Socket::connect(&server, &owner.token, Codec::Json).await;
    owners.request("keys.publish", keys.complete(1..=5)).await;
    let claimers = Socket::connect(&server, &claimer.token, Codec::Json).await;
    assert_eq!(claim(&claimers, &owner).await["one_time_prekey"]["key_id"], 1);
    assert_eq!(exchange(&claimers, &owner, &owners).await, 1);
    // This message is not acked yet when the backup is made, so it is delivered again, with the same number.
    claimers.request("messages.send", message(&[&owner], "hello")).await;
    assert_eq!(owners.event("message").await["seq"], 2);

    back_up();
    owners.request("messages.ack", json!({ "seqs": [2] })).await;
    assert_eq!(claim(&claimers, &owner).await["one_time_prekey"]["key_id"], 2);
    assert_eq!(exchange(&claimers, &owner, &owners).await, 3);
    let (status, _) = call(&server, Method::DELETE, "/v1/auth/session", Some(&lost.token), None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    drop((owners, claimers));
    server.kill();
    restore();
    server.restart().await;

    for person in [&owner, &lost, &claimer] {
        let (status, _) = call(&server, Method::GET, "/v1/auth/session", Some(&person.token), None).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "a restore ends all sessions");
    }
    let owner = sign_in_again(&server, &owner, &mut keys).await;
    let claimer = sign_in_as(&server, "claimer@example.org", json!({ "device": { "id": claimer.device } })).await;
    let claimers = Socket::connect(&server, &claimer.token, Codec::Json).await;
    let bundle = claim(&claimers, &owner).await;
    assert_eq!((&bundle["one_time"], &bundle["one_time_prekey"]), (&json!("exhausted"), &Value::Null), "{bundle}");

    let owners = Socket::connect(&server, &owner.token, Codec::Json).await;
    assert_eq!(owners.welcome["keys"]["one_time"], 0);
    assert_eq!(owners.event("prekeys.low").await["remaining"], 0, "the owner gets the event");
    let again = owners.event("message").await;
    assert_eq!(again["seq"], 2);
    owners.request("messages.ack", json!({ "seqs": [2] })).await;
    assert!(exchange(&claimers, &owner, &owners).await > 3, "a number is not used twice");

    let republished =
        owners.request("keys.publish", json!({ "one_time_prekeys": [keys.prekey(2), keys.prekey(6)] })).await;
    assert_eq!(republished["one_time"]["already_issued"], json!([2]), "{republished}");
    assert_eq!(claim(&claimers, &owner).await["one_time_prekey"]["key_id"], 6);
    assert_eq!(claim(&claimers, &owner).await["one_time"], "exhausted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_sqlite_database_uses_no_key_and_no_message_number_twice() {
    let server = ServerProcess::start(&[]).await;
    let [database, backup] = ["sealwire.db", "backup.db"].map(|name| server.path(name).to_str().unwrap().to_owned());
    let (live, kept) = (database.clone(), backup.clone());
    assert_restore_is_safe(
        server,
        move || tool("sqlite3", &[&live, &format!("VACUUM INTO '{kept}'")]),
        move || {
            for end in ["-wal", "-shm"] {
                let beside = format!("{database}{end}");
                if Path::new(&beside).exists() {
                    std::fs::remove_file(beside).unwrap();
                }
            }
            std::fs::rename(&backup, &database).unwrap();
            tool("sqlite3", &["-bail", &database, &format!(".read {AFTER_RESTORE}")]);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_postgres_database_uses_no_key_and_no_message_number_twice() {
    let services = Services::shared();
    let database = services.database().await;
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("backup.dump").to_str().unwrap().to_owned();
    let server = ServerProcess::start(&[("DATABASE__URL", &database), ("AUTH__SECRET", SECRET)]).await;
    let (live, kept) = (database.clone(), dump.clone());
    assert_restore_is_safe(
        server,
        move || tool("pg_dump", &["--format=custom", "--file", &kept, &live]),
        move || {
            tool("psql", &[&database, "-qc", "DROP SCHEMA public CASCADE; CREATE SCHEMA public"]);
            tool("pg_restore", &["--exit-on-error", "--no-owner", "--dbname", &database, &dump]);
            tool("psql", &["-v", "ON_ERROR_STOP=1", "-qf", AFTER_RESTORE, &database]);
        },
    )
    .await;
}
