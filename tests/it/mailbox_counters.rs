//! The counters of mailboxes stay exact although nodes are killed while they store and delete envelopes.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{
    Cluster, Codec, Member, Person, Server, ServerProcess, Services, Settings, Socket,
    claiming::{Endpoint, connect_with_retries},
    code,
    counters::{Database, assert_exact},
    eventually,
    mailing::message,
};

/// A sender may have two envelopes of a mailbox, so that shares are counted most of the time.
const SMALL: Settings = &[
    ("MAILBOX__MAX_ENVELOPES", "12"),
    ("MAILBOX__MAX_PER_SENDER", "2"),
    ("MAILBOX__STRANGER_SHARE", "0.75"),
    ("LIMITS__SENDS_PER_DEVICE_SECOND", "0"),
    ("LIMITS__SENDS_PER_PAIR_SECOND", "0"),
];

/// What has happened so far.
#[derive(Default)]
struct Progress {
    stored: AtomicUsize,
    full: AtomicUsize,
    acked: AtomicUsize,
    is_over: AtomicBool,
}

impl Progress {
    /// Waits until this many more messages were stored, refused and acked.
    async fn advances(&self, by: usize) {
        let now = || [&self.stored, &self.full, &self.acked].map(|count| count.load(Ordering::Relaxed));
        let before = now();
        eventually("messages are stored, refused and acked", || async {
            now().iter().zip(before).all(|(now, before)| *now >= before + by).then_some(())
        })
        .await;
    }
}

/// The endpoints, beginning with another one for each index.
fn endpoints(addresses: &[SocketAddr], index: usize) -> Vec<Endpoint> {
    let mut endpoints: Vec<Endpoint> = addresses.iter().map(|address| Endpoint { address: *address }).collect();
    endpoints.rotate_left(index % addresses.len());
    endpoints
}

/// Sends to both devices, on a new connection whenever one ends, until the run is over.
async fn send(endpoints: Vec<Endpoint>, person: &Person, to: &[Person; 2], progress: &Progress) {
    let mut endpoints = endpoints.iter().cycle();
    while !progress.is_over.load(Ordering::Relaxed) {
        let socket = connect_with_retries(&mut endpoints, person).await;
        while !progress.is_over.load(Ordering::Relaxed) {
            match socket.try_request("messages.send", message(&[&to[0], &to[1]], "hello")).await {
                None => break,
                Some(Ok(_)) => progress.stored.fetch_add(1, Ordering::Relaxed),
                Some(Err(error)) if code(&error) == "mailbox_full" => progress.full.fetch_add(1, Ordering::Relaxed),
                Some(Err(error)) => {
                    assert_eq!(code(&error), "unavailable", "{error}");
                    0
                }
            };
        }
    }
}

/// Acks what arrives, on a new connection whenever one ends, until the run is over.
async fn receive(endpoints: Vec<Endpoint>, person: &Person, progress: &Progress) {
    let mut endpoints = endpoints.iter().cycle();
    while !progress.is_over.load(Ordering::Relaxed) {
        let socket = connect_with_retries(&mut endpoints, person).await;
        while let Some(event) = next(&socket, progress).await {
            let acked = socket.try_request("messages.ack", json!({ "seqs": [event["seq"]] })).await;
            if matches!(acked, Some(Ok(_))) {
                progress.acked.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// The next message; `None` if the socket closes or the run is over.
async fn next(socket: &Socket, progress: &Progress) -> Option<serde_json::Value> {
    loop {
        if let Some(event) = socket.take_event("message") {
            return Some(event);
        }
        if socket.is_closed() || progress.is_over.load(Ordering::Relaxed) {
            return None;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

/// Runs six senders and two receiving devices against these servers while `fail` runs.
async fn run(servers: &[SocketAddr], members: &[Person], bob: &[Person; 2], fail: impl AsyncFnOnce(&Progress)) {
    let progress = Progress::default();
    let senders = members.iter().enumerate();
    let senders = senders.map(|(index, person)| send(endpoints(servers, index), person, bob, &progress));
    let receivers = bob.iter().enumerate().map(|(index, person)| receive(endpoints(servers, index), person, &progress));
    let fail = async {
        fail(&progress).await;
        progress.is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(join_all(senders), join_all(receivers), fail);
}

async fn join_all_members(server: &impl Server) -> (Vec<Person>, [Person; 2]) {
    let mut people = Vec::new();
    for name in ["a", "b", "c", "d", "e", "f", "bob", "bob"] {
        people.push(Member::join(server, &format!("{name}@example.org"), Codec::Json).await.person);
    }
    let bob = [people.pop().unwrap(), people.pop().unwrap()];
    (people, bob)
}

/// Receives and acks everything, after which no share may be left.
async fn empty(server: &impl Server, bob: &[Person; 2], database: &mut Database) {
    for person in bob {
        let socket = Socket::connect(server, &person.token, Codec::Json).await;
        let waiting = socket.welcome["mailbox"]["waiting"].as_u64().unwrap();
        for _ in 0..waiting {
            let event = socket.event("message").await;
            socket.request("messages.ack", json!({ "seqs": [event["seq"]] })).await;
        }
    }
    assert_eq!(assert_exact(database).await, 0);
    assert_eq!(database.number("SELECT COUNT(*) FROM messages").await, 0);
    assert_eq!(database.number("SELECT COUNT(*) FROM mailbox_shares").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_are_exact_after_a_node_on_sqlite_was_killed() {
    let mut server = ServerProcess::start(SMALL).await;
    let (members, bob) = join_all_members(&server).await;
    let url = format!("sqlite://{}", server.path("sealwire.db").display());
    let mut database = Database::connect(&url).await;
    let mut counted = 0;
    let address = server.address();
    run(&[address], &members, &bob, async |progress| {
        for _ in 0..4 {
            progress.advances(20).await;
            server.kill();
            counted += assert_exact(&mut database).await;
            server.restart().await;
        }
        progress.advances(20).await;
    })
    .await;
    assert!(counted > 0, "shares were counted");
    empty(&server, &bob, &mut database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_are_exact_while_two_nodes_on_postgres_are_killed_in_turn() {
    let mut cluster = Cluster::start(&Services::shared(), 2, SMALL).await;
    let (members, bob) = join_all_members(&cluster.nodes[0]).await;
    let mut database = Database::connect(&cluster.database).await;
    let addresses: Vec<_> = cluster.nodes.iter().map(Server::address).collect();
    let mut counted = 0;
    run(&addresses, &members, &bob, async |progress| {
        for round in 0..4 {
            progress.advances(20).await;
            cluster.nodes[round % 2].kill();
            progress.advances(20).await;
            // Each statement sees one moment, while the other node goes on.
            counted += assert_exact(&mut database).await;
            cluster.nodes[round % 2].restart().await;
        }
        progress.advances(20).await;
    })
    .await;
    assert!(counted > 0, "shares were counted");
    empty(&cluster.nodes[0], &bob, &mut database).await;
}
