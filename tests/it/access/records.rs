//! What senders leave in the database: nothing, unless a message is stored or dropped for a block.

use sqlx::Row;

use super::*;

/// Two envelopes of each mailbox for strangers.
const SMALL: Settings = &[
    ("MAILBOX__MAX_ENVELOPES", "8"),
    ("MAILBOX__STRANGER_SHARE", "0.25"),
    ("LIMITS__SENDS_PER_DEVICE_SECOND", "0"),
    ("LIMITS__SENDS_PER_PAIR_SECOND", "0"),
];

async fn join(app: &TestApp, name: &str) -> Member {
    Member::join(app, &format!("{name}@example.org"), Codec::Json).await
}

/// The number of remembered sends.
async fn records(app: &TestApp) -> i64 {
    const COUNT: &str = "SELECT COUNT(*) FROM sends";
    if let Some(url) = app.postgres() {
        let mut connection = url.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
        connection.fetch_one(COUNT).await.unwrap().get(0)
    } else {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(app.database());
        options.connect().await.unwrap().fetch_one(COUNT).await.unwrap().get(0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_store_nothing_leave_no_record() {
    for app in on_both_engines(SMALL).await {
        let (bob, alice) = (join(&app, "bob").await, join(&app, "alice").await);
        let nobody = sign_in(&app, "nobody@example.org").await;
        for text in ["one", "two"] {
            alice.send(&[&bob.person], text).await;
        }
        assert_eq!(records(&app).await, 2);
        let skip = |of: &Person| json!({ "to": of.user, "messages": [], "skip": [of.device] });
        let mut unknown = bob.person.clone();
        unknown.user = Uuid::new_v4().to_string();
        for _ in 0..20 {
            let send = async |mut params: Value| {
                params["message_id"] = Uuid::new_v4().to_string().into();
                alice.socket.try_request("messages.send", params).await.unwrap()
            };
            let outcome = async |params: Value| match send(params).await {
                Ok(sent) => format!("stored {}, duplicate {}", sent["stored"], sent["duplicate"]),
                Err(error) => error["code"].as_str().unwrap().to_owned(),
            };
            let mut ephemeral = message(&[&bob.person], "typing");
            ephemeral["ephemeral"] = true.into();
            assert_eq!(outcome(ephemeral).await, "stored 0, duplicate false");
            assert_eq!(outcome(message(&[&bob.person], "three")).await, "mailbox_full");
            assert_eq!(outcome(message(&[&bob.person, &alice.person], "three")).await, "devices_mismatch");
            assert_eq!(outcome(message(&[&nobody], "three")).await, "no_devices");
            assert_eq!(outcome(message(&[&unknown], "three")).await, "not_found");
            assert_eq!(outcome(skip(&bob.person)).await, "stored 0, duplicate false");
            assert_eq!(outcome(json!({ "to": alice.person.user, "messages": [] })).await, "stored 0, duplicate false");
        }
        assert_eq!(records(&app).await, 2);
        // A message that names nobody is not remembered, so its id may still be used.
        let mut params = skip(&bob.person);
        params["message_id"] = Uuid::new_v4().to_string().into();
        for _ in 0..2 {
            assert_eq!(alice.socket.request("messages.send", params.clone()).await["duplicate"], false);
        }
        bob.receives("one").await;
        let mut stored = message(&[&bob.person], "three");
        stored["message_id"] = params["message_id"].clone();
        let sent = alice.socket.request("messages.send", stored.clone()).await;
        assert_eq!((&sent["duplicate"], &sent["stored"]), (&json!(false), &json!(1)));
        assert_eq!(alice.socket.request("messages.send", stored).await["duplicate"], true);
        assert_eq!(records(&app).await, 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_dropped_for_a_block_is_remembered_once() {
    for app in on_both_engines(SMALL).await {
        let (bob, alice) = (join(&app, "bob").await, join(&app, "alice").await);
        bob.socket.request("blocks.add", json!({ "user_id": alice.person.user })).await;
        for number in 1..=10 {
            // More than there is room for, with a repeat of each.
            let params = message(&[&bob.person], "dropped");
            let sent = alice.socket.request("messages.send", params.clone()).await;
            assert_eq!((&sent["duplicate"], &sent["stored"]), (&json!(false), &json!(1)));
            let mut again = sent.clone();
            again["duplicate"] = true.into();
            assert_eq!(alice.socket.request("messages.send", params.clone()).await, again);
            let mut other = params;
            other["messages"][0]["type"] = 9.into();
            assert_eq!(alice.socket.refused("messages.send", other).await["code"], "id_conflict");
            let mut ephemeral = message(&[&bob.person], "dropped");
            ephemeral["ephemeral"] = true.into();
            alice.socket.request("messages.send", ephemeral).await;
            assert_eq!(records(&app).await, number);
        }
    }
}
