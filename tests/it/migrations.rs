//! Databases that an earlier version filled. `tests/fixtures/migration_2` holds dumps of both engines, made by a server
//! whose newest migration was the second, and the answers that it gave: this server must give the same.

use std::{collections::BTreeMap, fs, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, postgres::PgConnectOptions, sqlite::SqliteConnectOptions};
use uuid::Uuid;

use crate::support::{
    Codec, Services, Socket, TestApp,
    http::{call, post},
};

fn fixture(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/migration_2");
    fs::read_to_string(folder.join(name)).unwrap()
}

/// Selects the columns that became text. The first column names the value: by table, device and, in the pool, key id.
const KEYS: &str = "SELECT 'identity ' || HEX(device_id), public_key FROM identity_keys \
    UNION ALL SELECT 'signed ' || HEX(device_id), public_key FROM signed_prekeys \
    UNION ALL SELECT 'signature ' || HEX(device_id), signature FROM signed_prekeys \
    UNION ALL SELECT 'one_time ' || HEX(device_id) || key_id, public_key FROM one_time_prekeys";
const HASHES: &str = "SELECT 'session ' || HEX(id), token_hash FROM sessions \
    UNION ALL SELECT 'otp ' || HEX(id), otp_hash FROM email_otps";
const TABLES: [&str; 11] = [
    "users",
    "devices",
    "sessions",
    "email_otps",
    "identity_keys",
    "signed_prekeys",
    "one_time_prekeys",
    "pq_prekeys",
    "mailboxes",
    "messages",
    "sends",
];

fn on_postgres(query: &str) -> String {
    query.replace("HEX(device_id)", "device_id::TEXT").replace("HEX(id)", "id::TEXT")
}

/// Encodes the values as text, as the new columns should hold them.
fn encoded(keys: Vec<(String, Vec<u8>)>, hashes: Vec<(String, Vec<u8>)>) -> BTreeMap<String, String> {
    let hex = |bytes: Vec<u8>| blake3::Hash::from_slice(&bytes).unwrap().to_hex().to_string();
    let keys = keys.into_iter().map(|(name, bytes)| (name, STANDARD.encode(bytes)));
    keys.chain(hashes.into_iter().map(|(name, bytes)| (name, hex(bytes)))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn migrating_a_sqlite_file_of_an_earlier_version_loses_no_data() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("filled.db").display());
    let connect = async || {
        let options = url.parse::<SqliteConnectOptions>().unwrap().create_if_missing(true).foreign_keys(false);
        options.connect().await.unwrap()
    };
    let mut before = connect().await;
    before.execute(AssertSqlSafe(fixture("sqlite.sql"))).await.unwrap();
    let keys: Vec<(String, Vec<u8>)> = sqlx::query_as(KEYS).fetch_all(&mut before).await.unwrap();
    let hashes: Vec<(String, Vec<u8>)> = sqlx::query_as(HASHES).fetch_all(&mut before).await.unwrap();
    assert!(keys.len() >= 25 && hashes.len() >= 9, "{} {}", keys.len(), hashes.len());
    let mut counts = Vec::new();
    for table in TABLES {
        let count = format!("SELECT COUNT(*) FROM {table}");
        let rows: i64 = sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut before).await.unwrap();
        counts.push((table, rows));
    }
    // Row numbers in another order than the key ids, as replaced keys had.
    before.execute("UPDATE one_time_prekeys SET rowid = 1000 - rowid").await.unwrap();
    drop(before);

    let expected: Value = serde_json::from_str(&fixture("sqlite.json")).unwrap();
    let app = start(&url, &expected);
    let mut after = connect().await;
    let texts: Vec<(String, String)> =
        sqlx::query_as(AssertSqlSafe(format!("{KEYS} UNION ALL {HASHES}"))).fetch_all(&mut after).await.unwrap();
    assert_eq!(texts.into_iter().collect::<BTreeMap<_, _>>(), encoded(keys, hashes));
    for (table, rows) in counts {
        let count = format!("SELECT COUNT(*) FROM {table}");
        let now: i64 = sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut after).await.unwrap();
        assert_eq!(now, rows, "{table}");
    }
    let dangling = sqlx::query("PRAGMA foreign_key_check").fetch_all(&mut after).await.unwrap();
    assert!(dangling.is_empty(), "{} rows refer to nothing", dangling.len());
    let owned = "SELECT COUNT(*) FROM sqlite_schema WHERE sql LIKE '%new\\_%' ESCAPE '\\'";
    assert_eq!(
        sqlx::query_scalar::<_, i64>(owned).fetch_one(&mut after).await.unwrap(),
        0,
        "a table still has its temporary name"
    );
    drop(after);
    assert_same_answers(&app, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn migrating_a_postgres_database_of_an_earlier_version_loses_no_data() {
    let url = Services::shared().database().await;
    let connect = async || url.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
    let mut load = connect().await;
    load.execute(AssertSqlSafe(fixture("postgres.sql"))).await.unwrap();
    drop(load);
    let mut before = connect().await;
    let keys: Vec<(String, Vec<u8>)> =
        sqlx::query_as(AssertSqlSafe(on_postgres(KEYS))).fetch_all(&mut before).await.unwrap();
    let hashes: Vec<(String, Vec<u8>)> =
        sqlx::query_as(AssertSqlSafe(on_postgres(HASHES))).fetch_all(&mut before).await.unwrap();
    assert!(keys.len() >= 25 && hashes.len() >= 9, "{} {}", keys.len(), hashes.len());
    drop(before);

    let expected: Value = serde_json::from_str(&fixture("postgres.json")).unwrap();
    let app = start(&url, &expected);
    let mut after = connect().await;
    let texts = on_postgres(&format!("{KEYS} UNION ALL {HASHES}"));
    let texts: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(texts)).fetch_all(&mut after).await.unwrap();
    assert_eq!(texts.into_iter().collect::<BTreeMap<_, _>>(), encoded(keys, hashes));
    drop(after);
    assert_same_answers(&app, &expected).await;
}

/// Starts a server on the database, with the time and the secret of the server that filled it.
fn start(url: &str, expected: &Value) -> TestApp {
    TestApp::with_clock(&[("DATABASE__URL", url), ("AUTH__SECRET", expected["auth_secret"].as_str().unwrap())])
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

async fn assert_same_answers(app: &TestApp, expected: &Value) {
    for session in expected["sessions"].as_array().unwrap() {
        let answer = call(app, Method::GET, "/v1/auth/session", Some(text(&session["token"])), None).await;
        assert_eq!(answer, (StatusCode::OK, session["session"].clone()));
    }
    let (status, _) = call(app, Method::GET, "/v1/auth/session", Some(text(&expected["revoked"])), None).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    for asked in expected["asked"].as_array().unwrap() {
        let socket = Socket::connect(app, text(&asked["token"]), Codec::Json).await;
        let reply = socket.request(text(&asked["op"]), asked["params"].clone()).await;
        assert_eq!(reply, asked["reply"], "{} {}", asked["op"], asked["params"]);
    }
    let alice = Socket::connect(app, text(&expected["alice"]), Codec::Json).await;
    for envelope in expected["envelopes"].as_array().unwrap() {
        assert_eq!(alice.event("message").await, *envelope);
    }
    let sender = Socket::connect(app, text(&expected["sent"]["token"]), Codec::Json).await;
    let repeated = sender.request("messages.send", expected["sent"]["params"].clone()).await;
    assert_eq!(repeated["duplicate"], true, "{repeated}");
    // A key that was issued before stays issued.
    let pool = alice.request("keys.status", json!({})).await;
    assert_eq!(pool["one_time"], 3, "{pool}");
    // The others are issued in the order of their ids.
    let claim = expected["asked"].as_array().unwrap().iter().find(|asked| asked["op"] == "keys.claim").unwrap();
    let claimer = Socket::connect(app, text(&claim["token"]), Codec::Json).await;
    for key_id in 3..=5 {
        let params = json!({ "user_id": claim["params"]["user_id"], "claim_id": Uuid::new_v4() });
        let claimed = claimer.request("keys.claim", params).await;
        assert_eq!(claimed["bundles"][0]["one_time_prekey"]["key_id"], key_id, "{claimed}");
    }

    let (status, session) = post(app, "/v1/auth/verify", expected["challenge"].clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{session}");
    let renewed = text(&expected["renewed"]["token"]);
    let (status, session) = call(app, Method::GET, "/v1/auth/session", Some(renewed), None).await;
    assert_eq!((status, &session["session_id"]), (StatusCode::OK, &expected["renewed"]["session_id"]));
}
