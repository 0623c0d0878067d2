//! Clients, servers and networks that fail at random moments: no message is lost, none is handled twice, order is kept.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use sealwire_client::{Client, Event, Events, MemoryStorage, Options, Outgoing, Session};
use uuid::Uuid;

use super::{Process, Seen, at, keys, network::Network, sign_in, stored};
use crate::support::{Server, ServerProcess, eventually};

/// How often a client is killed.
const KILLS: u32 = 40;

/// A device whose app keeps what it has received and what it has to send, beside the library's storage.
#[derive(Clone)]
struct App {
    session: Session,
    storage: MemoryStorage,
    /// The texts and `seq` of handled messages, written together.
    handled: Seen<Vec<(i64, String)>>,
    /// The number of messages that were given to the library, written with its record.
    given: Seen<u32>,
}

impl App {
    async fn new(server: &impl Server, email: &str) -> Self {
        let session = sign_in(server, email).await;
        let app = Self { session, storage: MemoryStorage::new(), handled: Seen::default(), given: Seen::default() };
        let (client, _events) =
            Client::start(&at(server.address()), app.session.clone(), app.storage.clone()).await.unwrap();
        client.publish_keys(keys([])).await.unwrap();
        client.stop().await;
        app
    }

    /// What the app does while its process lives: writes to the other device, and handles events.
    async fn live(self, client: Client, mut events: Events, to: Session, messages: u32) {
        let writing = self.clone();
        let sender = client.clone();
        tokio::spawn(async move {
            loop {
                let number = *writing.given.lock().unwrap();
                if number >= messages {
                    return;
                }
                let message =
                    Outgoing::new(sender.new_message_id(), to.user_id).device(to.device_id, 3, number.to_string());
                let prepared = sender.prepare(message).unwrap();
                // In a real app one transaction.
                {
                    let mut given = writing.given.lock().unwrap();
                    let record = prepared.record().clone();
                    futures_util::FutureExt::now_or_never(sealwire_client::Storage::save(&writing.storage, record))
                        .unwrap()
                        .unwrap();
                    *given += 1;
                }
                drop(sender.submit(prepared).await);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        while let Some(event) = events.next().await {
            match event {
                Event::Message(message) => {
                    let text = String::from_utf8(message.content).unwrap();
                    self.handled.lock().unwrap().push((message.seq.unwrap(), text));
                }
                Event::Sent(sent) => assert_eq!(sent.result.unwrap().stored, 1),
                Event::Ended(end) => panic!("{end}"),
                _ => {}
            }
        }
    }

    /// Starts a process of the app.
    async fn start(&self, server: std::net::SocketAddr, to: &Self, messages: u32) -> Process {
        let process = Process::new();
        let last = self.handled.lock().unwrap().last().map_or(0, |(seq, _)| *seq);
        let session = Session::load(&self.storage).await.unwrap().unwrap();
        let options = Options::default().last_seq(last);
        let (client, events) = process.start(&at(server), session, self.storage.clone(), options).await;
        process.spawn(self.clone().live(client, events, to.session.clone(), messages));
        process
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_repeated_or_reordered_when_clients_networks_and_servers_fail_at_random() {
    let seed = Uuid::new_v4().as_u64_pair().0;
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut server =
        ServerProcess::start(&[("LIMITS__SENDS_PER_DEVICE_SECOND", "0"), ("LIMITS__SENDS_PER_PAIR_SECOND", "0")]).await;
    let network = Network::start(server.address()).await;
    let alice = App::new(&server, "alice@example.org").await;
    let bob = App::new(&server, "bob@example.org").await;
    let messages = 400;
    let mut processes =
        [alice.start(network.address, &bob, messages).await, bob.start(network.address, &alice, messages).await];
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..150))).await;
        match rng.random_range(0..6) {
            0 => {
                server.kill();
                server.restart().await;
            }
            1 => network.cut(),
            which => {
                let (app, other) = if which % 2 == 0 { (&alice, &bob) } else { (&bob, &alice) };
                let process = &mut processes[usize::from(which % 2 != 0)];
                process.kill();
                *process = app.start(network.address, other, messages).await;
            }
        }
    }
    processes.iter_mut().for_each(Process::kill);
    let processes =
        [alice.start(network.address, &bob, messages).await, bob.start(network.address, &alice, messages).await];
    let expected: Vec<String> = (0..messages).map(|number| number.to_string()).collect();
    for (app, name) in [(&alice, "Alice"), (&bob, "Bob")] {
        eventually(&format!("{name} has all messages"), || async {
            (app.handled.lock().unwrap().len() >= expected.len()).then_some(())
        })
        .await;
        eventually("every answer is handled", || async { (stored(&app.storage).await == 0).then_some(()) }).await;
        let texts: Vec<String> = app.handled.lock().unwrap().iter().map(|(_, text)| text.clone()).collect();
        assert_eq!(texts, expected, "{name}");
    }
    drop(processes);
}
