//! Ephemeral messages: delivered to the devices that are connected, never stored.

use serde_json::{Value, json};

use crate::support::{
    Codec, Member, TestApp,
    mailing::{content, message},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_message_reaches_only_connected_devices() {
    let app = TestApp::start(&[]);
    let alice = Member::join(&app, "alice@example.org", Codec::Json).await;
    let phone = Member::join(&app, "bob@example.org", Codec::MsgPack).await;
    let mut laptop = Member::join(&app, "bob@example.org", Codec::Json).await;
    let mut params = message(&[&phone.person, &laptop.person], "typing");
    params["ephemeral"] = true.into();
    for _ in 0..2 {
        // The id is not remembered, so the same message may be sent again.
        let sent = alice.socket.request("messages.send", params.clone()).await;
        assert_eq!((&sent["duplicate"], &sent["undelivered"]), (&json!(false), &json!([])));
        for member in [&phone, &laptop] {
            let event = member.socket.event("message").await;
            assert_eq!((&event["seq"], &event["ephemeral"]), (&Value::Null, &json!(true)));
            assert_eq!(event["content"], content("typing"));
            assert_eq!(event["message_id"], params["message_id"]);
        }
    }
    // It arrives after a stored message that was sent before it.
    alice.send(&[&phone.person, &laptop.person], "stored").await;
    alice.socket.request("messages.send", params).await;
    let first = phone.socket.event("message").await;
    let second = phone.socket.event("message").await;
    assert_eq!((&first["seq"], &second["seq"]), (&json!(1), &Value::Null));

    laptop.reconnect(&app, Codec::Json).await;
    assert_eq!(laptop.socket.welcome["mailbox"]["waiting"], 1);
    laptop.receives("stored").await;
    laptop.socket.event("mailbox.drained").await;
    assert_eq!(laptop.socket.take_event("message"), None);
}
