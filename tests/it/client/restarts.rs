//! Servers that are killed, restarted and drained.

use std::time::Instant;

use sealwire_client::{Event, State};

use super::Device;
use crate::support::ServerProcess;

#[tokio::test(flavor = "multi_thread")]
async fn clients_survive_a_server_that_is_killed_again_and_again() {
    let mut server = ServerProcess::start(&[]).await;
    let alice = Device::join(&server, "alice@example.org").await;
    let mut bob = Device::join(&server, "bob@example.org").await;
    let (mut number, mut last_seq) = (0, 0);
    for _ in 0..3 {
        let mut sending = Vec::new();
        for _ in 0..20 {
            let message = alice.message(&bob, &number.to_string());
            sending.push(alice.client.enqueue(message).await.unwrap());
            number += 1;
        }
        server.kill();
        server.restart().await;
        for reply in sending {
            assert_eq!(reply.await.unwrap().stored, 1);
        }
        for expected in number - 20..number {
            let message = bob.receives().await;
            assert_eq!(message.content, expected.to_string().into_bytes());
            assert!(message.seq > Some(last_seq), "none comes twice");
            last_seq = message.seq.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_not_answered_is_repeated_after_a_restart() {
    let mut server = ServerProcess::start(&[]).await;
    let alice = Device::join(&server, "alice@example.org").await;
    server.kill();
    let client = alice.client.clone();
    let asking = tokio::spawn(async move { client.devices().await });
    alice.is("disconnected", |state| !matches!(state, State::Connected(_))).await;
    server.restart().await;
    let devices = asking.await.unwrap().unwrap();
    assert_eq!((devices.len(), devices[0].device_id), (1, alice.id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_server_says_when_to_come_back() {
    let mut server = ServerProcess::start(&[]).await;
    let mut alice = Device::join(&server, "alice@example.org").await;
    let mut bob = Device::join(&server, "bob@example.org").await;
    let stopping = Instant::now();
    server.send_sigterm();
    let mut state = alice.client.state();
    let state = state.wait_for(|state| matches!(state, State::Waiting { .. })).await.unwrap().clone();
    let State::Waiting { until } = state else { panic!("{state:?}") };
    assert!(until > stopping);
    let (client, message) = (alice.client.clone(), alice.message(&bob, "Hello"));
    let sending = tokio::spawn(async move { client.send(message).await });
    server.stopped().await;
    server.restart().await;
    sending.await.unwrap().unwrap();
    assert_eq!(bob.reads().await, "Hello");
    assert!(Instant::now() >= until, "not earlier than the server said");
    let mut welcomes = 0;
    while welcomes < 2 {
        alice.event("a welcome", |event| matches!(event, Event::Connected(_)).then_some(())).await;
        welcomes += 1;
    }
    assert_eq!(alice.client.connected().await.unwrap().device_id, alice.id());
}
