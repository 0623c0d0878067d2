//! Repeated sends: a message id is remembered for a day.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{
    Codec, Member, TestApp,
    http::confirmation,
    mailing::{content, message},
    problem::assert_problem,
    sign_in,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_message_gets_the_first_reply_and_stores_nothing() {
    let app = TestApp::with_clock(&[]);
    let mut alice = Member::join(&app, "alice@example.org", Codec::MsgPack).await;
    let bob = Member::join(&app, "bob@example.org", Codec::MsgPack).await;
    let params = message(&[&bob.person], "once");
    let first = alice.socket.request("messages.send", params.clone()).await;
    let mut expected = first.clone();
    expected["duplicate"] = true.into();
    for _ in 0..2 {
        app.advance(Duration::from_hours(11));
        assert_eq!(alice.socket.request("messages.send", params.clone()).await, expected);
        alice.reconnect(&app, Codec::MsgPack).await;
    }
    // A different `ttl_s` does not make it another message.
    let mut short = params.clone();
    short["ttl_s"] = 60.into();
    assert_eq!(alice.socket.request("messages.send", short).await, expected);
    bob.receives("once").await;
    alice.send(&[&bob.person], "twice").await;
    assert_eq!(bob.receives("twice").await["seq"], 2, "nothing was stored in between");
    // After a day the id is forgotten.
    app.advance(Duration::from_hours(3));
    let anew = alice.socket.request("messages.send", params).await;
    assert_eq!(anew["duplicate"], false);
    assert_eq!(bob.receives("once").await["seq"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_different_message_with_the_same_id_is_a_conflict() {
    let app = TestApp::start(&[]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let twin = Member::join(&app, "alice@example.org", Codec::Json).await;
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    let carol = Member::join(&app, "carol@example.org", Codec::Json).await;
    let first = message(&[&bob.person], "one");
    alice.socket.request("messages.send", first.clone()).await;
    let mut other_content = first.clone();
    other_content["messages"][0]["content"] = content("two").into();
    let mut other_type = first.clone();
    other_type["messages"][0]["type"] = 9.into();
    let mut other_user = message(&[&carol.person], "one");
    other_user["message_id"] = first["message_id"].clone();
    let mut ephemeral = first.clone();
    ephemeral["ephemeral"] = true.into();
    for params in [other_content, other_type, other_user, ephemeral] {
        let error = alice.socket.refused("messages.send", params.clone()).await;
        assert_problem(&error, "id_conflict", &params.to_string());
    }
    bob.receives("one").await;
    // Another device may use the same id.
    let mut theirs = message(&[&bob.person], "from the twin");
    theirs["message_id"] = first["message_id"].clone();
    assert_eq!(twin.socket.request("messages.send", theirs).await["duplicate"], false);
    bob.receives("from the twin").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_can_be_repeated_after_devices_were_added_or_revoked() {
    let app = TestApp::start(&[]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let phone = Member::join(&app, "bob@example.org", Codec::Json).await;
    let laptop = Member::join(&app, "bob@example.org", Codec::Json).await;
    let params = message(&[&phone.person, &laptop.person], "both");
    alice.socket.request("messages.send", params.clone()).await;
    phone.socket.request("devices.revoke", json!({ "device_id": laptop.person.device })).await;
    let tablet = Member::join(&app, "bob@example.org", Codec::Json).await;
    let again = alice.socket.request("messages.send", params.clone()).await;
    assert_eq!((again["duplicate"].clone(), again["undelivered"].clone()), (true.into(), json!([])));
    // A device that only the repeat names gets the message too.
    let mut wider = message(&[&phone.person, &tablet.person], "both");
    wider["message_id"] = params["message_id"].clone();
    for _ in 0..2 {
        assert_eq!(alice.socket.request("messages.send", wider.clone()).await["duplicate"], true);
    }
    phone.receives("both").await;
    tablet.receives("both").await;
    alice.send(&[&phone.person, &tablet.person], "next").await;
    assert_eq!(tablet.receives("next").await["seq"], 2);
    assert_eq!(phone.receives("next").await["seq"], 2);
    // A repeat is accepted even after the recipient deleted the account.
    phone.socket.request("account.delete", confirmation(&app, &phone.person.email, "delete").await).await;
    assert_eq!(alice.socket.request("messages.send", params).await["duplicate"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_repeats_store_one_message() {
    let app = TestApp::start(&[("LIMITS__SENDS_PER_DEVICE_SECOND", "0"), ("LIMITS__SENDS_PER_PAIR_SECOND", "0")]);
    let alice = Member::join(&app, "alice@example.org", Codec::MsgPack).await;
    let bob = Member::join(&app, "bob@example.org", Codec::MsgPack).await;
    for round in 0..20 {
        let params = message(&[&bob.person], &round.to_string());
        let answers = join_all((0..8).map(|_| alice.socket.request("messages.send", params.clone()))).await;
        let first = answers.iter().filter(|answer| answer["duplicate"] == false).count();
        assert_eq!(first, 1, "{answers:?}");
        assert!(answers.iter().all(|answer| answer["accepted_at"] == answers[0]["accepted_at"]));
        assert_eq!(bob.receives(&round.to_string()).await["seq"], round + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_of_a_refused_message_is_not_remembered() {
    let app = TestApp::start(&[]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let bob = Member::join(&app, "bob@example.org", Codec::Json).await;
    let spare = sign_in(&app, "bob@example.org").await;
    let mut wrong = message(&[&bob.person, &spare], "x");
    assert_problem(
        &alice.socket.refused("messages.send", wrong.clone()).await,
        "devices_mismatch",
        "a wrong list of devices",
    );
    wrong["messages"].as_array_mut().unwrap().pop();
    wrong["messages"][0]["content"] = content("y").into();
    assert_eq!(alice.socket.request("messages.send", wrong).await["duplicate"], false);
    bob.receives("y").await;
}
