//! Requests in flight on one socket: how many, with which ids, and in which order replies, events and the close come.

use serde_json::{Value, json};
use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use uuid::Uuid;

use crate::support::{
    Codec, KeySet, TestApp,
    http::confirmation,
    raw::{RawSocket, data, encode},
    sign_in,
};

/// The close code for violations of the protocol.
const PROTOCOL_ERROR: u16 = 4504;

/// Holds the write lock of the database, so that claims wait in flight until it is released.
struct WriteLock(SqliteConnection);

impl WriteLock {
    async fn take(app: &TestApp) -> Self {
        let mut connection = SqliteConnectOptions::new().filename(app.database()).connect().await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await.unwrap();
        Self(connection)
    }

    async fn release(mut self) {
        sqlx::query("ROLLBACK").execute(&mut self.0).await.unwrap();
        self.0.close().await.unwrap();
    }
}

fn claim(id: u32, user: &str) -> Value {
    json!({ "id": id, "op": "keys.claim", "params": { "user_id": user, "claim_id": Uuid::from_u128(id.into()) } })
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_requests_may_be_in_flight_and_each_request_gets_one_reply() {
    let app = TestApp::start(&[("LIMITS__CLAIM_BURST", "0")]);
    let person = sign_in(&app, "frames@example.org").await;
    let owner = sign_in(&app, "owner@example.org").await;
    let (mut keys, _) = RawSocket::connect(&app, &owner.token, Codec::Json).await;
    let set = KeySet::new(sealwire::domain::Suite::SignalX3dh, 1).complete(1..=80);
    keys.send_value(&json!({ "id": 1, "op": "keys.publish", "params": set })).await;
    keys.reply(1).await;
    for codec in Codec::ALL {
        let (mut socket, _) = RawSocket::connect(&app, &person.token, codec).await;
        let held = WriteLock::take(&app).await;
        let claims = |ids: std::ops::RangeInclusive<u32>| -> Vec<u8> {
            ids.flat_map(|id| data(codec, &encode(codec, &claim(id, &owner.user)))).collect()
        };
        socket.send(&claims(1..=10)).await;
        // Ten requests wait; others overtake them.
        socket.send_value(&json!({ "id": 100, "op": "keys.nonsense" })).await;
        assert_eq!(socket.reply(100).await["error"]["code"], "unknown_op");
        socket.send_value(&json!({ "id": 100, "op": "keys.fetch", "params": {} })).await;
        assert_eq!(socket.reply(100).await["error"]["code"], "bad_request");
        assert!(socket.status(101).await["result"].is_object());
        socket.send(&claims(11..=80)).await;
        for id in 65..=80 {
            let reply = socket.message().await.unwrap();
            assert_eq!(reply["id"], id, "{reply}");
            assert_eq!(reply["error"]["code"], "too_many_in_flight");
            assert_eq!(reply["error"]["retryable"], true);
        }
        held.release().await;
        let mut replies = std::collections::BTreeSet::new();
        for _ in 1..=64 {
            let reply = socket.message().await.unwrap();
            assert!(reply["result"]["bundles"].is_array(), "{reply}");
            assert!(replies.insert(reply["id"].as_u64().unwrap()), "a second reply: {reply}");
        }
        assert!(replies.into_iter().eq(1..=64));
        // An answered id may be used again.
        assert!(socket.status(1).await["result"].is_object());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reusing_an_id_that_is_in_flight_closes_the_socket_with_4504() {
    let app = TestApp::start(&[]);
    let person = sign_in(&app, "frames@example.org").await;
    let (mut socket, _) = RawSocket::connect(&app, &person.token, Codec::Json).await;
    let held = WriteLock::take(&app).await;
    socket.send_value(&claim(7, &person.user)).await;
    socket.send_value(&json!({ "id": 7, "op": "keys.status" })).await;
    assert_eq!(socket.close_code().await, PROTOCOL_ERROR);
    held.release().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ending_a_session_sends_the_reply_then_the_event_then_the_close() {
    let app = TestApp::start(&[]);
    for (op, code, reason) in [("session.logout", 4500, "logout"), ("account.delete", 4506, "account_deleted")] {
        let token = sign_in(&app, "frames@example.org").await.token;
        let (mut socket, _) = RawSocket::connect(&app, &token, Codec::MsgPack).await;
        let params = match op {
            "account.delete" => confirmation(&app, "frames@example.org", "delete").await,
            _ => json!({}),
        };
        socket.send_value(&json!({ "id": 9, "op": op, "params": params })).await;
        assert_eq!(socket.message().await.unwrap(), json!({ "id": 9, "result": {} }));
        let revoked = json!({ "event": "session.revoked", "data": { "reason": reason } });
        assert_eq!(socket.message().await.unwrap(), revoked);
        assert_eq!(socket.frame().await.unwrap().1[..2], u16::to_be_bytes(code));
    }
}
