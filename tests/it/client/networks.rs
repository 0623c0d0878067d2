//! Bad networks.

use std::time::{Duration, Instant};

use sealwire_client::{Client, MemoryStorage, Options, RequestError};

use super::{
    Device, at,
    network::{Flow, Network},
    sign_in,
};
use crate::support::{Server, TestApp};

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_again_and_again_loses_nothing() {
    let app = TestApp::start(&[]);
    let network = Network::start(app.address()).await;
    let alice = Device::join_through(&app, network.address, "alice@example.org").await;
    let mut bob = Device::join_through(&app, network.address, "bob@example.org").await;
    for round in 0..5 {
        let mut sending = Vec::new();
        for number in 0..10 {
            let message = alice.message(&bob, &format!("{round} {number}"));
            sending.push(alice.client.enqueue(message).await.unwrap());
        }
        network.cut();
        for reply in sending {
            reply.await.unwrap();
        }
        for number in 0..10 {
            assert_eq!(bob.reads().await, format!("{round} {number}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_dead_but_open_is_noticed_and_replaced() {
    let app = TestApp::start(&[]);
    let network = Network::start(app.address()).await;
    let alice = Device::join_through(&app, network.address, "alice@example.org").await;
    let connections = network.connections();
    network.forget();
    let forgotten = Instant::now();
    let (client, other) = (alice.client.clone(), alice.client.clone());
    let asking = tokio::spawn(async move { client.devices().await });
    other.network_changed().await;
    assert_eq!(asking.await.unwrap().unwrap().len(), 1);
    assert!(network.connections() > connections);
    assert!(forgotten.elapsed() < Duration::from_secs(25), "in {:?}", forgotten.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_network_is_only_slow() {
    let app = TestApp::start(&[]);
    let network = Network::start(app.address()).await;
    let alice = Device::join_through(&app, network.address, "alice@example.org").await;
    let mut bob = Device::join(&app, "bob@example.org").await;
    let connections = network.connections();
    network.to_server(Flow::Late(Duration::from_millis(300)));
    network.to_client(Flow::Late(Duration::from_millis(300)));
    for text in ["one", "two", "three"] {
        alice.client.send(alice.message(&bob, text)).await.unwrap();
        assert_eq!(bob.reads().await, text);
    }
    assert_eq!(network.connections(), connections, "it stays connected");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_network_times_out() {
    let app = TestApp::start(&[]);
    let network = Network::start(app.address()).await;
    let session = sign_in(&app, "alice@example.org").await;
    network.to_client(Flow::Lose);
    let options = Options::default().request_timeout(Duration::from_millis(300));
    let (client, _events) =
        Client::start_with(&at(network.address), session, MemoryStorage::new(), options).await.unwrap();
    let error = client.devices().await.unwrap_err();
    assert!(matches!(error, RequestError::TimedOut) && error.retryable(), "{error}");
    client.stop().await;
}
