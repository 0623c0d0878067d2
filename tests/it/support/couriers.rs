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
    eventually,
    mailing::message,
};

/// What mailboxes and their books hold.
pub const STORED: &str = "SELECT (SELECT COUNT(*) FROM messages), CAST(SUM(count) AS BIGINT), \
    CAST(SUM(bytes) AS BIGINT), CAST(SUM(expired_total) AS BIGINT) FROM mailboxes";

/// Waits until no mailbox of the database of this connection holds anything: the last acks have been committed.
macro_rules! wait_until_empty {
    ($database:expr) => {
        tokio::time::timeout($crate::support::PATIENCE, async {
            while sqlx::query_as::<_, (i64, i64, i64, i64)>($crate::support::couriers::STORED)
                .fetch_one(&mut $database)
                .await
                .unwrap()
                != (0, 0, 0, 0)
            {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("every mailbox is empty at last")
    };
}
pub(crate) use wait_until_empty;

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
    /// Messages that somebody began to send.
    begun: usize,
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
    /// How connections ended, by close code (1006: without one).
    pub closes: BTreeMap<u16, usize>,
}

/// Devices under way.
pub struct Couriers {
    phase: watch::Sender<Phase>,
    pub books: Arc<Mutex<Books>>,
    devices: Vec<String>,
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

    /// Whether one more message may be sent, which then has begun.
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
        let devices = households.iter().flatten().map(|person| person.device.clone()).collect();
        Self { phase, books, devices, tasks }
    }

    /// Waits until every device has had so many more of its messages accepted.
    pub async fn all_get_on(&self, messages: usize) {
        let accepted = || {
            let books = self.books.lock().unwrap();
            let of = |device: &String| books.accepted.get(device).map_or(0, Vec::len);
            self.devices.iter().map(of).collect::<Vec<_>>()
        };
        let before = accepted();
        eventually("every device gets on", || async {
            let all = accepted().into_iter().zip(&before).all(|(now, before)| now >= before + messages);
            all.then_some(())
        })
        .await;
    }

    /// Ends the writing, and waits until what was begun has been accepted and has arrived.
    pub async fn settle(&self) {
        self.phase.send(Phase::Read).unwrap();
        eventually("all has arrived", || async { self.is_quiet().then_some(()) }).await;
    }

    /// Ends the run, says what came of it and checks that nothing was lost.
    pub async fn report(self, what: &str) -> Arc<Mutex<Books>> {
        let shared = self.stop().await;
        let books = shared.lock().unwrap();
        println!(
            "{what}: {} messages accepted, {} copies arrived, {} came again, {} requests repeated, connections closed: \
             {:?}",
            books.accepted(),
            books.arrived(),
            books.repeats,
            books.retried,
            books.closes,
        );
        books.assert_complete();
        drop(books);
        shared
    }

    async fn stop(self) -> Arc<Mutex<Books>> {
        self.phase.send(Phase::Stop).unwrap();
        for task in join_all(self.tasks).await {
            task.unwrap();
        }
        self.books
    }

    /// Whether every message that was begun has been accepted and every accepted one has arrived.
    fn is_quiet(&self) -> bool {
        let books = self.books.lock().unwrap();
        let expected: usize = books.accepted.values().flatten().map(|(_, devices)| devices.len()).sum();
        books.begun == books.accepted() && expected == books.arrived()
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
    async fn run(mut self, endpoints: Vec<Endpoint>, phase: watch::Receiver<Phase>) {
        let mut endpoints = endpoints.iter().cycle();
        let mut over = phase.clone();
        loop {
            let socket = connect_patiently(&mut endpoints, &self.person).await;
            let reading = read(&socket, self.person.device.clone(), self.books.clone());
            // Both end with the socket, so an answer that came before its end is taken note of.
            let ended = async { tokio::join!(reading, self.write(&socket, &phase)) };
            tokio::select! {
                _ = ended => {}
                _ = over.wait_for(|phase| *phase == Phase::Stop) => return,
            }
            let code = socket.close_code().await;
            *self.books.lock().unwrap().closes.entry(code).or_default() += 1;
            // Whoever is sent away is told when to come back.
            if let Some(told) = socket.take_event("server.draining") {
                tokio::time::sleep(Duration::from_millis(told["reconnect_in_ms"].as_u64().unwrap())).await;
            }
        }
    }

    /// Writes until the socket closes; then what is pending stays so.
    async fn write(&mut self, socket: &Socket, phase: &watch::Receiver<Phase>) {
        loop {
            if self.pending.is_none() {
                tokio::time::sleep(self.pause).await;
                if !self.books.lock().unwrap().may_begin(phase) {
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
