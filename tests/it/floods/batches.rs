//! Requests that are served in batches, of few accounts with many in flight: others do not wait behind them.
//!
//! The tests stop the database while requests arrive, so that they pile up, and judge by the server's own order: keys are
//! issued, and messages numbered, in the order in which the batches take the requests.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    Codec, Member, Server, ServerProcess, Services, Socket,
    claiming::{Owner, owners},
    code,
    counters::Database,
    eventually,
    mailing::message,
    proxy::Proxy,
    sign_in,
};

const ACCOUNTS: usize = 4;
/// Devices of each account.
const DEVICES: usize = 4;
/// Requests of each device, nearly as many as may be in flight.
const REQUESTS: usize = 60;
const FLOOD: usize = ACCOUNTS * DEVICES * REQUESTS;
/// One-time keys of the target, which are fewer than the claims of the flood.
const POOL: u32 = 500;

const SETTINGS: [(&str, &str); 4] = [
    ("LIMITS__REQUESTS_PER_CONNECTION_SECOND", "0"),
    ("LIMITS__SENDS_PER_DEVICE_SECOND", "0"),
    ("LIMITS__SENDS_PER_PAIR_SECOND", "0"),
    ("LIMITS__CLAIM_BURST", "0"),
];

/// What the accounts flood the server with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flood {
    Claims,
    /// Sends and acks, by turns.
    Mail,
    Acks,
    Status,
}

/// Stops the database: what is sent to it waits until it goes on.
trait Stop {
    async fn stop(&mut self);
    async fn go_on(&mut self);
}

impl Stop for Proxy {
    async fn stop(&mut self) {
        self.stop_forwarding();
    }

    async fn go_on(&mut self) {
        self.resume_forwarding();
    }
}

/// A SQLite file. Only its writer can be stopped.
impl Stop for Database {
    async fn stop(&mut self) {
        self.run("BEGIN IMMEDIATE").await;
    }

    async fn go_on(&mut self) {
        self.run("ROLLBACK").await;
    }
}

struct Scene {
    /// Its device is claimed from and sent to.
    target: Owner,
    bystander: Member,
    flooders: Vec<Socket>,
}

impl Scene {
    async fn prepare(server: &impl Server) -> Self {
        let target = owners(server, 1, POOL).await.pop().unwrap();
        let bystander = Member::join(server, "bystander@example.org", Codec::Json).await;
        let mut flooders = Vec::new();
        for index in 0..ACCOUNTS * DEVICES {
            let person = sign_in(server, &format!("flooder{}@example.org", index % ACCOUNTS)).await;
            flooders.push(Socket::connect(server, &person.token, Codec::MsgPack).await);
        }
        Self { target, bystander, flooders }
    }

    fn claim(&self) -> (&'static str, Value) {
        let person = &self.target.person;
        let params = json!({ "user_id": person.user, "device_ids": [person.device], "claim_id": Uuid::new_v4() });
        ("keys.claim", params)
    }

    fn send(&self) -> (&'static str, Value) {
        ("messages.send", message(&[&self.target.person], "hello"))
    }

    fn request(&self, flood: Flood, index: usize) -> (&'static str, Value) {
        match flood {
            Flood::Claims => self.claim(),
            Flood::Mail if index.is_multiple_of(2) => self.send(),
            Flood::Mail | Flood::Acks => ("messages.ack", json!({ "seqs": (1..=100).collect::<Vec<_>>() })),
            Flood::Status => ("keys.status", json!({})),
        }
    }

    /// Makes one request of each kind. All of them must succeed. Returns the number of the key that was claimed, if any was
    /// left.
    async fn work(&self) -> Option<u64> {
        let bystander = &self.bystander.socket;
        let request = |(op, params): (&'static str, Value)| bystander.request(op, params);
        let (claim, _, _, _) = tokio::join!(
            request(self.claim()),
            request(self.send()),
            request(("messages.ack", json!({ "seqs": [1] }))),
            request(("keys.status", json!({}))),
        );
        claim["bundles"][0]["one_time_prekey"]["key_id"].as_u64()
    }

    /// The number of the bystander's latest message among those that the target has received since the last call.
    async fn position_of_message(&self) -> usize {
        let last = message(&[&self.target.person], "the last");
        self.bystander.socket.request("messages.send", last.clone()).await;
        let (mut position, mut received) = (None, 0);
        loop {
            let event = self.target.socket.event("message").await;
            self.target.socket.request("messages.ack", json!({ "seqs": [event["seq"]] })).await;
            if event["content"] == last["messages"][0]["content"] {
                return position.expect("its message has arrived");
            }
            received += 1;
            if event["from"]["user_id"] == self.bystander.person.user.as_str() {
                position = Some(received);
            }
        }
    }

    /// Floods the server while the database stands still, then lets it go on. Returns the number of the key that the
    /// bystander claimed meanwhile.
    async fn flood(&self, flood: Flood, database: &mut impl Stop) -> Option<u64> {
        let arrived = &AtomicUsize::new(0);
        database.stop().await;
        let attack = self.flooders.iter().map(|socket| async move {
            let requests = (0..REQUESTS).map(|index| self.request(flood, index));
            let requests = join_all(requests.map(|(op, params)| socket.request(op, params)));
            tokio::join!(requests, noticed(socket, arrived))
        });
        let bystander = async {
            eventually("the flood has arrived", || async {
                (arrived.load(Ordering::Relaxed) == self.flooders.len()).then_some(())
            })
            .await;
            let go_on = async {
                noticed(&self.bystander.socket, arrived).await;
                database.go_on().await;
            };
            tokio::join!(self.work(), go_on).0
        };
        let (_, key) = tokio::join!(join_all(attack), bystander);
        key
    }
}

/// Waits until the server has read everything that was sent on the socket before: it refuses an unknown op at once.
async fn noticed(socket: &Socket, count: &AtomicUsize) {
    assert_eq!(code(&socket.refused("no.such.op", json!({})).await), "unknown_op");
    count.fetch_add(1, Ordering::Relaxed);
}

async fn assert_bystander_is_served_first(server: &impl Server, database: &mut impl Stop) {
    let scene = Scene::prepare(server).await;
    assert_eq!((scene.work().await, scene.position_of_message().await), (Some(1), 1));

    let key = scene.flood(Flood::Claims, database).await;
    // If it waited for all that came before, none would be left.
    assert!(key.is_some_and(|key| key < FLOOD as u64 / 2), "{key:?}");
    scene.position_of_message().await;

    scene.flood(Flood::Mail, database).await;
    let position = scene.position_of_message().await;
    assert!(position < FLOOD / 4, "{position} of {} messages were stored before", FLOOD / 2);

    for flood in [Flood::Acks, Flood::Status] {
        scene.flood(flood, database).await;
        scene.position_of_message().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn four_accounts_with_many_requests_in_flight_do_not_delay_others_on_sqlite() {
    let server = ServerProcess::start(&SETTINGS).await;
    let mut database = Database::connect(&format!("sqlite://{}", server.path("sealwire.db").display())).await;
    assert_bystander_is_served_first(&server, &mut database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_accounts_with_many_requests_in_flight_do_not_delay_others_on_postgres() {
    let database = Services::shared().database().await;
    let (front, rest) = database.split_once('@').unwrap();
    let (address, name) = rest.split_once('/').unwrap();
    let mut proxy = Proxy::start(address.parse().unwrap()).await;
    let database = format!("{front}@{}/{name}", proxy.address);
    // So few that there is one worker for claims, whose batches show the order.
    let postgres = [
        ("DATABASE__URL", database.as_str()),
        ("DATABASE__MAX_CONNECTIONS", "7"),
        ("AUTH__SECRET", "c2VhbHdpcmUtdGVzdC1zZWNyZXQtMzItYnl0ZXMtISE="),
    ];
    let settings: Vec<_> = SETTINGS.into_iter().chain(postgres).collect();
    let server = ServerProcess::start(&settings).await;
    assert_bystander_is_served_first(&server, &mut proxy).await;
}
