//! A user that refuses strangers cannot be told from one that does not exist, nor, by those who knew it, from one that
//! was deleted.

use super::*;
use crate::support::{Cluster, http::confirmation};

/// The requests that somebody can make about a user, with the ids of the request itself.
fn requests(user: &str, device: &str, message: Uuid, claim: Uuid) -> Vec<(&'static str, Value)> {
    let part = json!({ "device_id": device, "type": 1, "content": base64(b"x") });
    let send = json!({ "message_id": message, "to": user, "messages": [part] });
    let changed = |field: &str, value: Value| {
        let mut changed = send.clone();
        changed[field] = value;
        changed
    };
    let mut skipped = changed("messages", json!([]));
    skipped["skip"] = json!([device]);
    let fetch = json!({ "user_id": user });
    let named = json!({ "user_id": user, "device_ids": [device, Uuid::new_v4()] });
    vec![
        ("messages.send", send.clone()),
        ("messages.send", changed("ephemeral", true.into())),
        ("messages.send", changed("messages", json!([]))),
        ("messages.send", skipped),
        ("messages.send", showing(send.clone(), &base64(&[8; 16]))),
        ("messages.send", showing(send, "malformed")),
        ("keys.fetch", fetch.clone()),
        ("keys.fetch", named.clone()),
        ("keys.fetch", showing(fetch.clone(), &base64(&[8; 16]))),
        ("keys.claim", json!({ "user_id": user, "claim_id": claim })),
        ("keys.claim", json!({ "user_id": user, "device_ids": named["device_ids"], "claim_id": claim })),
        ("keys.claim", showing(json!({ "user_id": user, "claim_id": claim }), "")),
    ]
}

/// The outcome of a request, without the time at which a message was accepted.
async fn outcome(socket: &Socket, op: &str, params: Value) -> Result<Value, Value> {
    let mut outcome = socket.try_request(op, params).await.unwrap();
    if let Ok(reply) = &mut outcome
        && let Some(at) = reply.get_mut("accepted_at")
    {
        *at = Value::Null;
    }
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn to_a_stranger_it_looks_like_a_user_that_does_not_exist() {
    for app in on_both_engines(&[]).await {
        for codec in Codec::ALL {
            let email = |name: &str| format!("{name}.{codec:?}@example.org");
            let bob = Member::join(&app, &email("bob"), codec).await;
            let dave = Member::join(&app, &email("dave"), codec).await;
            let alice = Member::join(&app, &email("alice"), codec).await;
            bob.socket.request("access.set", json!({ "strangers": "refuse", "key": key() })).await;
            bob.socket.request("blocks.add", json!({ "user_id": alice.person.user })).await;
            let unknown = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
            let of_bob = requests(&bob.person.user, &bob.person.device, Uuid::new_v4(), Uuid::new_v4());
            let of_nobody = requests(&unknown.0, &unknown.1, Uuid::new_v4(), Uuid::new_v4());
            for ((op, to_bob), (_, to_nobody)) in of_bob.iter().zip(&of_nobody) {
                let refused = outcome(&alice.socket, op, to_bob.clone()).await.unwrap_err();
                assert_problem(&refused, "not_found", op);
                assert_eq!(refused, outcome(&alice.socket, op, to_nobody.clone()).await.unwrap_err(), "{op}: {to_bob}");
                // Those who show the key are served.
                let known = outcome(&dave.socket, op, showing(to_bob.clone(), &key())).await;
                assert!(
                    known.is_ok() || known.as_ref().is_err_and(|error| error["code"] == "id_conflict"),
                    "{known:?}"
                );
            }
            let find =
                async |by: &Member, email: &str| outcome(&by.socket, "users.find", json!({ "email": email })).await;
            let unknown = find(&alice, "nobody@example.org").await;
            assert_problem(unknown.as_ref().unwrap_err(), "not_found", "users.find");
            for by in [&alice, &dave] {
                assert_eq!(find(by, &email("bob")).await, unknown);
            }
            assert_eq!(find(&bob, &email("bob")).await, Ok(json!({ "user_id": bob.person.user })));
            assert_eq!(find(&bob, &email("alice")).await, Ok(json!({ "user_id": alice.person.user })));
            // Its own devices need no key.
            bob.socket.request("keys.fetch", json!({ "user_id": bob.person.user })).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn to_somebody_who_knew_it_it_looks_like_a_deleted_user() {
    for app in on_both_engines(&[]).await {
        for codec in Codec::ALL {
            let alice = Member::join(&app, &format!("alice.{codec:?}@example.org"), codec).await;
            let mut outcomes = Vec::new();
            for deletes in [false, true] {
                let email = format!("bob.{codec:?}.{deletes}@example.org");
                let bob = Member::join(&app, &email, codec).await;
                let mut keys = KeySet::new(Suite::SignalX3dh, 5);
                let laptop = sign_in(&app, &email).await;
                let laptop_socket = Socket::connect(&app, &laptop.token, codec).await;
                laptop_socket.request("keys.publish", keys.complete(1..=3)).await;
                bob.socket.request("access.set", json!({ "strangers": "refuse", "key": key() })).await;
                let sent = showing(message(&[&bob.person, &laptop], "known"), &key());
                alice.socket.request("messages.send", sent.clone()).await;
                let claimed = json!({ "user_id": bob.person.user, "claim_id": Uuid::new_v4(), "access": key() });
                alice.socket.request("keys.claim", claimed.clone()).await;
                if deletes {
                    bob.socket.request("account.delete", confirmation(&app, &email, "delete").await).await;
                } else {
                    let new = json!({ "strangers": "refuse", "key": base64(&[9; 16]) });
                    bob.socket.request("access.set", new).await;
                }
                let mut changed = sent.clone();
                changed["messages"][0]["content"] = base64(b"changed").into();
                let mut further = sent.clone();
                let part = json!({ "device_id": Uuid::new_v4(), "type": 1, "content": base64(b"x") });
                further["messages"].as_array_mut().unwrap().push(part);
                let of_first: Vec<_> = [
                    ("messages.send", sent.clone()),
                    ("messages.send", further),
                    ("messages.send", changed),
                    ("messages.send", message(&[&bob.person], "new")),
                    ("keys.claim", claimed),
                    ("keys.fetch", json!({ "user_id": bob.person.user, "access": key() })),
                    ("users.find", json!({ "email": email })),
                ]
                .into();
                let mut answers = Vec::new();
                for (op, params) in of_first {
                    answers.push(outcome(&alice.socket, op, params).await);
                }
                assert_eq!(
                    answers[0].as_ref().map(|reply| (&reply["duplicate"], &reply["stored"])),
                    Ok((&json!(true), &json!(2)))
                );
                outcomes.push(answers);
            }
            assert_eq!(outcomes[0], outcomes[1]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn access_settings_made_on_one_node_hold_on_the_other() {
    let cluster = Cluster::start(&Services::shared(), 2, &[]).await;
    let bob = Member::join(&cluster.nodes[0], "bob@example.org", Codec::Json).await;
    let alice = Member::join(&cluster.nodes[1], "alice@example.org", Codec::MsgPack).await;
    alice.send(&[&bob.person], "known").await;
    bob.socket.request("access.set", json!({ "strangers": "refuse", "key": key() })).await;
    let unknown = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
    let of_bob = requests(&bob.person.user, &bob.person.device, Uuid::new_v4(), Uuid::new_v4());
    let of_nobody = requests(&unknown.0, &unknown.1, Uuid::new_v4(), Uuid::new_v4());
    for ((op, to_bob), (_, to_nobody)) in of_bob.into_iter().zip(of_nobody) {
        let refused = outcome(&alice.socket, op, to_bob.clone()).await.unwrap_err();
        assert_problem(&refused, "not_found", op);
        assert_eq!(refused, outcome(&alice.socket, op, to_nobody).await.unwrap_err(), "{op}: {to_bob}");
    }
    let by_address = json!({ "email": "bob@example.org" });
    assert_problem(&alice.socket.refused("users.find", by_address).await, "not_found", "users.find");
    alice.socket.request("messages.send", showing(message(&[&bob.person], "with the key"), &key())).await;
    bob.socket.request("access.set", json!({ "strangers": "allow" })).await;
    alice.send(&[&bob.person], "allowed").await;
    for text in ["known", "with the key", "allowed"] {
        bob.receives(text).await;
    }
}
