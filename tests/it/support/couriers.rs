//! Devices that write to each other through crashes, and the books that are kept of it.

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
    claiming::{Endpoint, connect_patiently},
    mailing::message,
};

/// How far the run has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
pub enum Phase {
    /// Everybody writes and reads.
    Write,
    /// What was begun is finished, and everybody reads.
    Read,
    /// It is over.
    Stop,
}

/// What happened.
#[derive(Default)]
pub struct Books {
    /// Sending device → its accepted messages with the devices they went to, in order.
    accepted: BTreeMap<String, Vec<(u64, Vec<String>)>>,
    /// Receiving device, sending device → what arrived, first copies in order.
    arrived: HashMap<(String, String), Vec<u64>>,
    seen: HashSet<(String, i64)>,
    /// Acks that were answered.
    confirmed: HashSet<(String, i64)>,
    /// Copies that came again because their ack was not confirmed.
    pub repeats: usize,
    /// Requests that were made again.
    pub retried: usize,
    /// Connections that were made anew.
    pub reconnects: usize,
}

/// Devices under way.
pub struct Couriers {
    phase: watch::Sender<Phase>,
    pub books: Arc<Mutex<Books>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Books {
    /// Messages that were accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.values().map(Vec::len).sum()
    }

    /// First copies that arrived.
    pub fn arrived(&self) -> usize {
        self.arrived.values().map(Vec::len).sum()
    }

    fn note(&mut self, to: &str, event: &Value) {
        let seq = event["seq"].as_i64().unwrap();
        let from = event["from"]["device_id"].as_str().unwrap();
        if !self.seen.insert((to.to_owned(), seq)) {
            assert!(
                !self.confirmed.contains(&(to.to_owned(), seq)),
                "{to}: {seq} came again after its ack was answered"
            );
            self.repeats += 1;
            return;
        }
        let n = number(event["content"].as_str().unwrap());
        self.arrived.entry((to.to_owned(), from.to_owned())).or_default().push(n);
    }

    /// Every accepted message arrived at each of its devices, in the order in which its sender sent.
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
        assert_eq!(self.arrived.len(), expected.len(), "nothing arrived that was not sent");
    }
}

fn number(content: &str) -> u64 {
    use base64::{Engine, engine::general_purpose::STANDARD};
    String::from_utf8(STANDARD.decode(content).unwrap()).unwrap().parse().unwrap()
}

/// Users with two devices each, who can be written to.
pub async fn households(server: &impl Server, users: usize) -> Vec<[Person; 2]> {
    let mut all = Vec::new();
    for user in 0..users {
        let email = format!("user{user}@example.org");
        let one = Member::join(server, &email, Codec::Json).await;
        let other = Member::join(server, &email, Codec::MsgPack).await;
        all.push([one.person, other.person]);
    }
    all
}

impl Couriers {
    /// Every device writes to the users in turn, with a pause in between, over nodes in turn.
    pub fn start(endpoints: &[std::net::SocketAddr], households: &[[Person; 2]], pause: Duration) -> Self {
        let (phase, _) = watch::channel(Phase::Write);
        let books = Arc::<Mutex<Books>>::default();
        let mut tasks = Vec::new();
        for (index, person) in households.iter().flatten().enumerate() {
            let mut endpoints: Vec<Endpoint> = endpoints.iter().map(|address| Endpoint { address: *address }).collect();
            let nodes = endpoints.len();
            endpoints.rotate_left(index % nodes);
            let peers: Vec<[Person; 2]> =
                households.iter().filter(|household| household[0].user != person.user).cloned().collect();
            let courier = Courier {
                person: person.clone(),
                peers,
                pause,
                books: books.clone(),
                next: index as u64,
                pending: None,
            };
            tasks.push(tokio::spawn(courier.run(endpoints, phase.subscribe())));
        }
        Self { phase, books, tasks }
    }

    /// Ends the writing; what was begun will be finished.
    pub fn stop_writing(&self) {
        self.phase.send(Phase::Read).unwrap();
    }

    /// Ends the run.
    pub async fn stop(self) -> Arc<Mutex<Books>> {
        self.phase.send(Phase::Stop).unwrap();
        for task in join_all(self.tasks).await {
            task.unwrap();
        }
        self.books
    }

    /// Whether every message that was begun has been accepted and every accepted one has arrived.
    pub fn is_quiet(&self) -> bool {
        let books = self.books.lock().unwrap();
        let expected: usize = books.accepted.values().flatten().map(|(_, devices)| devices.len()).sum();
        expected == books.arrived()
    }
}

struct Courier {
    person: Person,
    peers: Vec<[Person; 2]>,
    pause: Duration,
    books: Arc<Mutex<Books>>,
    next: u64,
    /// What was sent and not answered.
    pending: Option<(u64, Value, Vec<String>)>,
}

impl Courier {
    async fn run(mut self, endpoints: Vec<Endpoint>, mut phase: watch::Receiver<Phase>) {
        let mut endpoints = endpoints.iter().cycle();
        while *phase.borrow() != Phase::Stop {
            let socket = connect_patiently(&mut endpoints, &self.person).await;
            let reading = read(&socket, self.person.device.clone(), self.books.clone());
            let mut until = phase.clone();
            tokio::select! {
                () = reading => {}
                () = self.write(&socket, &phase) => {}
                _ = until.wait_for(|phase| *phase == Phase::Stop) => {}
            }
            self.books.lock().unwrap().reconnects += 1;
            phase.mark_unchanged();
        }
    }

    /// Writes until the socket closes; then what is pending stays so.
    async fn write(&mut self, socket: &Socket, phase: &watch::Receiver<Phase>) {
        loop {
            if self.pending.is_none() {
                if *phase.borrow() != Phase::Write {
                    socket.closed().await;
                    return;
                }
                tokio::time::sleep(self.pause).await;
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
                    let mut books = self.books.lock().unwrap();
                    let mine = books.accepted.entry(self.person.device.clone()).or_default();
                    mine.push((*n, devices.clone()));
                    self.pending = None;
                }
                Some(Err(error)) => {
                    assert_eq!(error["code"], "unavailable", "{error}");
                    self.books.lock().unwrap().retried += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                None => {
                    self.books.lock().unwrap().retried += 1;
                    return;
                }
            }
        }
    }
}

/// Takes what arrives, in order, and acks it until the ack is answered; ends with the socket.
async fn read(socket: &Socket, device: String, books: Arc<Mutex<Books>>) {
    while let Some(event) = socket.event_or_close("message").await {
        books.lock().unwrap().note(&device, &event);
        let seq = event["seq"].as_i64().unwrap();
        loop {
            match socket.try_request("messages.ack", json!({ "seqs": [seq] })).await {
                // Zero where the ack before was lost on its way back.
                Some(Ok(answer)) => {
                    assert!(answer["acked"].as_u64().unwrap() <= 1);
                    books.lock().unwrap().confirmed.insert((device.clone(), seq));
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
