//! Messages are accepted once, in order, although replies are lost and clients are killed.

use sealwire_client::{
    AccessKey, Client, Code, End, Event, MemoryStorage, Options, Outgoing, RequestError, State, Strangers,
};

use super::{
    Device, Process, at, code,
    network::{Flow, Network},
    session, sign_in, stored,
};
use crate::support::{Server, TestApp, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_stored_delivered_and_acked() {
    let app = TestApp::start(&[]);
    let alice = Device::join(&app, "alice@example.org").await;
    let mut bob = Device::join(&app, "bob@example.org").await;
    let reply = alice.client.send(alice.message(&bob, "Hello Bob")).await.unwrap();
    assert_eq!((reply.stored, reply.duplicate), (1, false));

    let message = bob.receives().await;
    assert_eq!((message.seq, &message.content[..], message.kind), (Some(1), &b"Hello Bob"[..], 3));
    assert_eq!((message.from.user_id, message.from.device_id), (alice.user(), alice.id()));
    bob.client.stop().await;
    let session = bob.client.session();
    let bob = Device::start(&at(app.address()), session).await;
    assert_eq!(bob.client.connected().await.unwrap().mailbox.waiting, 0, "the ack came before the stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_handler_did_not_finish_comes_again() {
    let app = TestApp::start(&[]);
    let alice = Device::join(&app, "alice@example.org").await;
    let mut bob = Device::join(&app, "bob@example.org").await;
    for text in ["one", "two"] {
        alice.client.send(alice.message(&bob, text)).await.unwrap();
    }
    let mut handled = 0;
    let failed = bob
        .events
        .for_each(async |event| {
            if matches!(event, Event::Message(_)) {
                handled += 1;
            }
            // The second message cannot be stored.
            if handled < 2 { Ok(()) } else { Err("the disk is full") }
        })
        .await;
    assert_eq!(failed, Err("the disk is full"));
    bob.client.stop().await;

    let session = bob.client.session();
    let mut bob = Device::start(&at(app.address()), session).await;
    assert_eq!(bob.reads().await, "two", "and the first was acked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_reply_was_lost_is_repeated_under_its_id() {
    let app = TestApp::start(&[]);
    let network = Network::start(app.address()).await;
    let mut alice = Device::join_through(&app, network.address, "alice@example.org").await;
    let mut bob = Device::join(&app, "bob@example.org").await;

    network.lose_replies();
    let sending = tokio::spawn({
        let (client, message) = (alice.client.clone(), alice.message(&bob, "Hello"));
        async move { client.send(message).await }
    });
    assert_eq!(bob.reads().await, "Hello");
    network.cut();
    let reply = sending.await.unwrap().unwrap();
    assert!(reply.duplicate, "the server had accepted it");

    // The next one arrives too, and the first only once.
    alice.client.send(alice.message(&bob, "Again")).await.unwrap();
    assert_eq!(bob.reads().await, "Again");
    assert_eq!(alice.stored().await, 2, "kept until the app has handled that they were sent");
    for _ in 0..2 {
        alice.event("an answer", |event| matches!(event, Event::Sent(_)).then_some(())).await;
    }
    alice.events.handled().await;
    assert_eq!(alice.stored().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_killed_repeats_its_message_at_the_next_start() {
    let app = TestApp::start(&[]);
    let network = Network::start(app.address()).await;
    let mut bob = Device::join(&app, "bob@example.org").await;
    let session = sign_in(&app, "alice@example.org").await;
    let storage = MemoryStorage::new();
    let mut process = Process::new();
    let server = at(network.address);
    let (client, _events) = process.start(&server, session.clone(), storage.clone(), Options::default()).await;
    client.connected().await.unwrap();

    network.lose_replies();
    let message = Outgoing::new(client.new_message_id(), bob.user()).device(bob.id(), 3, "Hello");
    let id = message.message_id;
    process.spawn(async move { client.send(message).await });
    assert_eq!(bob.reads().await, "Hello");
    process.kill();
    assert_eq!(stored(&storage).await, 1);

    let mut alice = Device::start_over(&server, session, storage).await;
    let sent = alice
        .event("the answer", |event| match event {
            Event::Sent(sent) => Some(sent),
            _ => None,
        })
        .await;
    assert_eq!((sent.message_id, sent.to), (id, bob.user()));
    assert!(sent.result.unwrap().duplicate);
    alice.events.handled().await;
    assert_eq!(alice.stored().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_given_while_offline_are_sent_in_order() {
    let app = TestApp::start(&[]);
    let network = Network::start(app.address()).await;
    let alice = Device::join_through(&app, network.address, "alice@example.org").await;
    let mut bob = Device::join(&app, "bob@example.org").await;
    network.to_server(Flow::Lose);
    network.to_client(Flow::Lose);
    network.cut();
    alice.is("offline", |state| !matches!(state, State::Connected(_))).await;

    let mut sending = Vec::new();
    for number in 0..100 {
        let message = alice.message(&bob, &number.to_string());
        sending.push(alice.client.enqueue(message).await.unwrap());
    }
    network.to_server(Flow::Pass);
    network.to_client(Flow::Pass);
    network.cut();
    for reply in sending {
        assert!(!reply.await.unwrap().duplicate);
    }
    for number in 0..100 {
        assert_eq!(bob.reads().await, number.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_message_names_the_missing_devices_and_is_sent_again_under_its_id() {
    let app = TestApp::start(&[]);
    let alice = Device::join(&app, "alice@example.org").await;
    let mut phone = Device::join(&app, "bob@example.org").await;
    let mut laptop = Device::join(&app, "bob@example.org").await;

    let message = alice.message(&phone, "Hello");
    let error = alice.client.send(message.clone()).await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), (Some(Code::DevicesMismatch), false));
    let (missing, extra) = error.mismatch().unwrap();
    assert_eq!((missing, extra), (&[laptop.id()][..], &[][..]));

    let purpose = message.message_id.to_string();
    let claim = alice.client.claim(phone.user(), &purpose).devices(missing.iter().copied()).await.unwrap();
    assert_eq!(claim.bundles.len(), 1);
    claim.used().await.unwrap();
    let reply = alice.client.send(message.device(laptop.id(), 3, "Hello")).await.unwrap();
    assert_eq!((reply.stored, reply.duplicate), (2, false));
    assert_eq!((phone.reads().await, laptop.reads().await), ("Hello".to_owned(), "Hello".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_message_is_not_acked() {
    let app = TestApp::start(&[]);
    let alice = Device::join(&app, "alice@example.org").await;
    let mut bob = Device::join(&app, "bob@example.org").await;
    alice.client.send_ephemeral(&alice.message(&bob, "(typing)")).await.unwrap();
    let message = bob.receives().await;
    assert_eq!((message.seq, message.ephemeral), (None, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sent_is_refused_at_once() {
    let app = TestApp::start(&[]);
    let alice = Device::join(&app, "alice@example.org").await;
    let bob = Device::join(&app, "bob@example.org").await;
    let big = (0..20).fold(alice.message(&bob, "x"), |message, _| message.device(bob.id(), 3, vec![0; 32 * 1024]));
    let error = alice.client.send(big).await.unwrap_err();
    assert!(matches!(error, RequestError::TooLarge { limit: 524_288, .. }), "{error}");
    assert_eq!(alice.stored().await, 0);
    // The connection is still there.
    alice.client.send(alice.message(&bob, "small")).await.unwrap();
    eventually("the small one is answered", || async { (alice.stored().await == 1).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_and_those_with_the_access_key_are_not() {
    let app = TestApp::start(&[]);
    let alice = Device::join(&app, "alice@example.org").await;
    let mut bob = Device::join(&app, "bob@example.org").await;
    let key = AccessKey([7; 16]);
    bob.client.set_access(Some(key.clone()), Strangers::Refuse).await.unwrap();
    let message = alice.message(&bob, "Hello");
    assert_eq!(alice.client.send(message.clone()).await.unwrap_err().code(), Some(Code::NotFound));
    assert_eq!(alice.client.fetch_keys(bob.user(), None).await.unwrap_err().code(), Some(Code::NotFound));
    assert_eq!(alice.client.fetch_keys(bob.user(), Some(key.clone())).await.unwrap().bundles.len(), 1);
    alice.client.claim(bob.user(), "hello").access(key.clone()).await.unwrap().used().await.unwrap();
    alice.client.send(message.access(key.clone())).await.unwrap();
    assert_eq!(bob.reads().await, "Hello");

    bob.client.block(alice.user()).await.unwrap();
    assert_eq!(bob.client.blocked().await.unwrap(), [alice.user()]);
    alice.client.send(alice.message(&bob, "dropped").access(key.clone())).await.unwrap();
    bob.client.unblock(alice.user()).await.unwrap();
    alice.client.send(alice.message(&bob, "Again").access(key)).await.unwrap();
    assert_eq!(bob.reads().await, "Again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_sent_after_the_person_has_signed_in_again() {
    let app = TestApp::start(&[]);
    let network = Network::start(app.address()).await;
    let mut bob = Device::join(&app, "bob@example.org").await;
    // A device that has published nothing signs in again without a proof.
    let server = at(network.address);
    let mut alice = Device::start(&server, sign_in(&app, "alice@example.org").await).await;
    alice.client.connected().await.unwrap();
    network.forget();
    let message = alice.message(&bob, "Hello");
    let answer = alice.client.enqueue(message).await.unwrap();
    at(app.address()).log_out(alice.client.session().token()).await.unwrap();
    network.cut();
    assert_eq!(alice.ended().await, End::LoggedOut);
    assert!(matches!(answer.await, Err(RequestError::Ended(End::LoggedOut))));
    assert_eq!(alice.stored().await, 1);

    let (challenge, code) = code(&app, "alice@example.org").await;
    let session = session(server.sign_in(&challenge, &code).as_device(alice.id()).await.unwrap());
    let alice = Device::start_over(&server, session, alice.storage.clone()).await;
    assert_eq!(bob.reads().await, "Hello");

    // A new device does not send what another one has left.
    alice.client.stop().await;
    let new = sign_in(&app, "alice@example.org").await;
    let new = Device::start_over(&server, new, alice.storage.clone()).await;
    assert_eq!(new.stored().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_outbox_takes_nothing_more() {
    let app = TestApp::start(&[]);
    let session = sign_in(&app, "alice@example.org").await;
    let mut bob = Device::join(&app, "bob@example.org").await;
    let options = Options::default().outbox_limit(2);
    let (client, mut events) =
        Client::start_with(&at(app.address()), session, MemoryStorage::new(), options).await.unwrap();
    let message = |text: &str| Outgoing::new(client.new_message_id(), bob.user()).device(bob.id(), 3, text);
    for text in ["one", "two"] {
        client.send(message(text)).await.unwrap();
    }
    let error = client.send(message("three")).await.unwrap_err();
    assert!(matches!(error, RequestError::OutboxFull { limit: 2 }) && error.retryable(), "{error}");
    // An answer that is handled makes room.
    while !matches!(events.next().await, Some(Event::Sent(_))) {}
    events.handled().await;
    client.send(message("three")).await.unwrap();
    for text in ["one", "two", "three"] {
        assert_eq!(bob.reads().await, text);
    }
}
