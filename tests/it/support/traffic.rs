//! Devices that send each other messages while nodes crash, and a ledger that detects lost, reordered and repeated
//! messages.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use super::{
    Codec, Member, Person, Server, Socket,
    claiming::{Endpoint, connect_with_retries},
    eventually,
    mailing::message,
};

/// Selects the number of stored messages and the mailboxes' counters.
pub const STORED: &str = "SELECT (SELECT COUNT(*) FROM messages), CAST(SUM(count) AS BIGINT), \
    CAST(SUM(bytes) AS BIGINT), CAST(SUM(expired_total) AS BIGINT) FROM mailboxes";

/// Waits until every mailbox in the database behind this connection is empty, i.e. the last acks are committed.
macro_rules! wait_until_empty {
    ($database:expr) => {
        tokio::time::timeout($crate::support::PATIENCE, async {
            while sqlx::query_as::<_, (i64, i64, i64, i64)>($crate::support::traffic::STORED)
                .fetch_one(&mut $database)
                .await
                .unwrap()
                != (0, 0, 0, 0)
            {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("timed out waiting until every mailbox is empty")
    };
}
pub(crate) use wait_until_empty;

/// The phases of a run, in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
pub enum Phase {
    /// All devices send and receive.
    Write,
    /// Devices finish the sends they have started, start no others, and receive.
    Read,
    /// Devices disconnect.
    Stop,
}

/// What was sent, received and acked.
#[derive(Default)]
pub struct Ledger {
    /// Number of messages that a device started to send.
    begun: usize,
    /// Sending device → its accepted messages in order, each with its recipient devices.
    accepted: BTreeMap<String, Vec<(u64, Vec<String>)>>,
    /// (Receiving device, sending device) → first deliveries in order.
    arrived: HashMap<(String, String), Vec<u64>>,
    seen: HashSet<(String, i64)>,
    /// Messages whose ack was answered.
    confirmed: HashSet<(String, i64)>,
    /// Number of redeliveries, each of a message whose ack was not answered.
    pub repeats: usize,
    /// Number of send requests that were repeated.
    pub retried: usize,
    /// Number of closed connections by close code (1006: no close frame).
    pub closes: BTreeMap<u16, usize>,
}

/// A running set of devices.
pub struct Traffic {
    phase: watch::Sender<Phase>,
    pub ledger: Arc<Mutex<Ledger>>,
    devices: Vec<String>,
    tasks: Vec<JoinHandle<()>>,
}

impl Ledger {
    /// Returns the number of accepted messages.
    pub fn accepted(&self) -> usize {
        self.accepted.values().map(Vec::len).sum()
    }

    /// Returns the number of first deliveries.
    pub fn arrived(&self) -> usize {
        self.arrived.values().map(Vec::len).sum()
    }

    /// Returns whether one more message may be sent; if so, counts it as begun.
    fn may_begin(&mut self, phase: &watch::Receiver<Phase>) -> bool {
        let may = *phase.borrow() == Phase::Write;
        self.begun += usize::from(may);
        may
    }

    fn note(&mut self, to: &str, event: &Value) {
        let seq = event["seq"].as_i64().unwrap();
        let from = event["from"]["device_id"].as_str().unwrap();
        if !self.seen.insert((to.to_owned(), seq)) {
            assert!(
                !self.confirmed.contains(&(to.to_owned(), seq)),
                "{to}: message {seq} was redelivered after its ack was answered"
            );
            self.repeats += 1;
            return;
        }
        let n = number(event["content"].as_str().unwrap());
        self.arrived.entry((to.to_owned(), from.to_owned())).or_default().push(n);
    }

    /// Asserts that every accepted message arrived at each of its devices, in the sender's order.
    pub fn assert_complete(&self) {
        let mut expected: HashMap<(String, String), Vec<u64>> = HashMap::new();
        for (from, messages) in &self.accepted {
            for (n, devices) in messages {
                for to in devices {
                    expected.entry((to.clone(), from.clone())).or_default().push(*n);
                }
            }
        }
        for (pair, numbers) in &expected {
            assert_eq!(self.arrived.get(pair), Some(numbers), "from {} to {}", pair.1, pair.0);
        }
        assert_eq!(self.arrived.len(), expected.len(), "expected no messages except those that were sent");
    }
}

fn number(content: &str) -> u64 {
    use base64::{Engine, engine::general_purpose::STANDARD};
    String::from_utf8(STANDARD.decode(content).unwrap()).unwrap().parse().unwrap()
}

/// Creates this many users with two devices each, all with published keys.
pub async fn user_pairs(server: &impl Server, users: usize) -> Vec<[Person; 2]> {
    let mut all = Vec::new();
    for user in 0..users {
        let email = format!("user{user}@example.org");
        let one = Member::join(server, &email, Codec::Json).await;
        let other = Member::join(server, &email, Codec::MsgPack).await;
        all.push([one.person, other.person]);
    }
    all
}

impl Traffic {
    /// Starts sending: every device sends to the other users in turn, with a pause between messages. On each reconnect it
    /// moves to the next node.
    pub fn start(endpoints: &[std::net::SocketAddr], user_pairs: &[[Person; 2]], pause: Duration) -> Self {
        let (phase, _) = watch::channel(Phase::Write);
        let ledger = Arc::<Mutex<Ledger>>::default();
        let mut tasks = Vec::new();
        for (index, person) in user_pairs.iter().flatten().enumerate() {
            let mut endpoints: Vec<Endpoint> = endpoints.iter().map(|address| Endpoint { address: *address }).collect();
            let nodes = endpoints.len();
            endpoints.rotate_left(index % nodes);
            let peers: Vec<[Person; 2]> =
                user_pairs.iter().filter(|household| household[0].user != person.user).cloned().collect();
            let device = TrafficDevice {
                person: person.clone(),
                peers,
                pause,
                ledger: ledger.clone(),
                next: index as u64,
                pending: None,
            };
            tasks.push(tokio::spawn(device.run(endpoints, phase.subscribe())));
        }
        let devices = user_pairs.iter().flatten().map(|person| person.device.clone()).collect();
        Self { phase, ledger, devices, tasks }
    }

    /// Waits until this many more messages of every device have been accepted.
    pub async fn all_make_progress(&self, messages: usize) {
        let accepted = || {
            let ledger = self.ledger.lock().unwrap();
            let of = |device: &String| ledger.accepted.get(device).map_or(0, Vec::len);
            self.devices.iter().map(of).collect::<Vec<_>>()
        };
        let before = accepted();
        eventually("every device makes progress", || async {
            let all = accepted().into_iter().zip(&before).all(|(now, before)| now >= before + messages);
            all.then_some(())
        })
        .await;
    }

    /// Stops new sends, and waits until every message that was begun is accepted and delivered.
    pub async fn finish_writing(&self) {
        self.phase.send(Phase::Read).unwrap();
        eventually("every message is delivered", || async { self.is_quiet().then_some(()) }).await;
    }

    /// Ends the run, prints a summary and asserts that nothing was lost or reordered.
    pub async fn report(self, what: &str) -> Arc<Mutex<Ledger>> {
        let shared = self.stop().await;
        let ledger = shared.lock().unwrap();
        println!(
            "{what}: {} messages accepted, {} delivered, {} redelivered, {} requests repeated, closes by code: {:?}",
            ledger.accepted(),
            ledger.arrived(),
            ledger.repeats,
            ledger.retried,
            ledger.closes,
        );
        ledger.assert_complete();
        drop(ledger);
        shared
    }

    async fn stop(self) -> Arc<Mutex<Ledger>> {
        self.phase.send(Phase::Stop).unwrap();
        for task in join_all(self.tasks).await {
            task.unwrap();
        }
        self.ledger
    }

    /// Returns whether every message that was begun has been accepted, and every accepted one delivered.
    fn is_quiet(&self) -> bool {
        let ledger = self.ledger.lock().unwrap();
        let expected: usize = ledger.accepted.values().flatten().map(|(_, devices)| devices.len()).sum();
        ledger.begun == ledger.accepted() && expected == ledger.arrived()
    }
}

struct TrafficDevice {
    person: Person,
    peers: Vec<[Person; 2]>,
    pause: Duration,
    ledger: Arc<Mutex<Ledger>>,
    next: u64,
    /// The message that was sent but not answered: its number, parameters and recipient devices.
    pending: Option<(u64, Value, Vec<String>)>,
}

impl TrafficDevice {
    async fn run(mut self, endpoints: Vec<Endpoint>, phase: watch::Receiver<Phase>) {
        let mut endpoints = endpoints.iter().cycle();
        let mut over = phase.clone();
        loop {
            let socket = connect_with_retries(&mut endpoints, &self.person).await;
            let reading = read(&socket, self.person.device.clone(), self.ledger.clone());
            // Both run until the socket closes, so an answer that arrives just before is recorded.
            let ended = async { tokio::join!(reading, self.write(&socket, &phase)) };
            tokio::select! {
                _ = ended => {}
                _ = over.wait_for(|phase| *phase == Phase::Stop) => return,
            }
            let code = socket.close_code().await;
            *self.ledger.lock().unwrap().closes.entry(code).or_default() += 1;
            // A draining node says when to reconnect.
            if let Some(draining) = socket.take_event("server.draining") {
                tokio::time::sleep(Duration::from_millis(draining["reconnect_in_ms"].as_u64().unwrap())).await;
            }
        }
    }

    /// Sends until the socket closes. A message that is pending then is repeated on the next connection.
    async fn write(&mut self, socket: &Socket, phase: &watch::Receiver<Phase>) {
        loop {
            if self.pending.is_none() {
                tokio::time::sleep(self.pause).await;
                if !self.ledger.lock().unwrap().may_begin(phase) {
                    socket.closed().await;
                    return;
                }
                let peer = &self.peers[usize::try_from(self.next).unwrap() % self.peers.len()];
                let params = message(&peer.iter().collect::<Vec<_>>(), &self.next.to_string());
                let devices = peer.iter().map(|person| person.device.clone()).collect();
                self.pending = Some((self.next, params, devices));
                self.next += 1;
            }
            let Some((n, params, devices)) = &self.pending else { continue };
            match socket.try_request("messages.send", params.clone()).await {
                Some(Ok(answer)) => {
                    assert_eq!(answer["undelivered"], json!([]));
                    let mut ledger = self.ledger.lock().unwrap();
                    let mine = ledger.accepted.entry(self.person.device.clone()).or_default();
                    mine.push((*n, devices.clone()));
                    self.pending = None;
                }
                Some(Err(error)) => {
                    assert_eq!(error["code"], "unavailable", "{error}");
                    self.ledger.lock().unwrap().retried += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                None => {
                    self.ledger.lock().unwrap().retried += 1;
                    return;
                }
            }
        }
    }
}

/// Records and acks messages in order until the socket closes. An ack is repeated until it is answered.
async fn read(socket: &Socket, device: String, ledger: Arc<Mutex<Ledger>>) {
    while let Some(event) = socket.event_or_close("message").await {
        ledger.lock().unwrap().note(&device, &event);
        let seq = event["seq"].as_i64().unwrap();
        loop {
            match socket.try_request("messages.ack", json!({ "seqs": [seq] })).await {
                // 0 if an earlier ack was committed but its reply was lost.
                Some(Ok(answer)) => {
                    assert!(answer["acked"].as_u64().unwrap() <= 1);
                    ledger.lock().unwrap().confirmed.insert((device.clone(), seq));
                    break;
                }
                Some(Err(error)) => {
                    assert_eq!(error["code"], "unavailable", "{error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                None => return,
            }
        }
    }
}
