//! Two nodes behind a load balancer that restart one after the other, or are killed.

use std::time::Duration;

use sealwire_client::{Event, Message, Outgoing};
use tokio::time::sleep;

use super::{Device, Seen, at, keys, network::Network, sign_in};
use crate::support::{Cluster, Server, Services, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn clients_move_between_nodes_that_restart_and_lose_nothing() {
    let services = Services::shared();
    let mut cluster = Cluster::start(
        &services,
        2,
        &[("LIMITS__SENDS_PER_DEVICE_SECOND", "0"), ("LIMITS__SENDS_PER_PAIR_SECOND", "0")],
    )
    .await;
    let balancer = Network::before(cluster.nodes.iter().map(Server::address).collect()).await;
    let mut devices = Vec::new();
    for email in ["alice@example.org", "bob@example.org"] {
        let session = sign_in(&cluster.nodes[0], email).await;
        let device = Device::start(&at(balancer.address), session).await;
        device.client.publish_keys(keys([])).await.unwrap();
        devices.push(device);
    }
    let [alice, mut bob] = devices.try_into().ok().unwrap();

    // Bob reads all the time.
    let (user, device) = (bob.user(), bob.id());
    let read = Seen::<Vec<Message>>::default();
    let (reads, bobs) = (read.clone(), bob.client.clone());
    let reading = tokio::spawn(async move {
        loop {
            let message = bob.receives().await;
            reads.lock().unwrap().push(message);
        }
    });

    // Alice writes, and does not wait for answers. She is a stranger to Bob, who may have a quarter of 1,000 messages unread.
    let client = alice.client.clone();
    let seen = read.clone();
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let writing = tokio::spawn(async move {
        let mut answers = Vec::new();
        while !*stopped.borrow_and_update() {
            if answers.len() >= seen.lock().unwrap().len() + 200 {
                sleep(Duration::from_millis(5)).await;
                continue;
            }
            let text = answers.len().to_string();
            let message = Outgoing::new(client.new_message_id(), user).device(device, 3, text);
            answers.push(client.enqueue(message).await.unwrap());
            sleep(Duration::from_millis(5)).await;
        }
        answers
    });
    for round in 0..2 {
        for node in 0..2 {
            if round == 0 {
                assert!(cluster.nodes[node].terminate().await.success());
            } else {
                cluster.nodes[node].kill();
            }
            cluster.nodes[node].restart().await;
            alice.client.connected().await.unwrap();
            bobs.connected().await.unwrap();
        }
    }
    stop.send(true).unwrap();
    let answers = writing.await.unwrap();
    let written = answers.len();
    for answer in answers {
        assert_eq!(answer.await.unwrap().stored, 1);
    }
    eventually("all messages are read", || async { (read.lock().unwrap().len() >= written).then_some(()) }).await;
    reading.abort();
    let mut last_seq = 0;
    for (number, message) in read.lock().unwrap().iter().enumerate() {
        assert_eq!(message.content, number.to_string().into_bytes());
        assert!(message.seq > Some(last_seq));
        last_seq = message.seq.unwrap();
    }

    // The sender has moved.
    let mut welcomes = 0;
    alice.client.stop().await;
    let mut alice = alice;
    while let Some(event) = alice.events.next().await {
        welcomes += usize::from(matches!(event, Event::Connected(_)));
    }
    println!("{written} messages over {welcomes} connections of the sender");
    assert!(welcomes >= 2);
}
