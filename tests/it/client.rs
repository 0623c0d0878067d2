//! The client library (`crates/client`) against real servers.

mod approvals;
mod ends;
mod first_message;
mod network;
mod networks;
mod outbox;
mod pools;
mod random_failures;
mod refused;
mod renewal;
mod restarts;
mod rolling;
mod sign_in;
mod tls;

use std::{net::SocketAddr, path::Path, sync::Arc};

use sealwire::domain::Suite;
use sealwire_client::{
    Challenge, Client, DeviceId, End, Event, Events, MemoryStorage, Message, Options, Outgoing, Server, Session,
    SignIn, State, Storage, UserId, protocol::keys::PublishKeysRequest,
};
use tokio::time::timeout;
use uuid::Uuid;

use crate::support::{self, KeySet, PATIENCE, eventually, http};

/// The library's view of a server at an address.
fn at(address: SocketAddr) -> Server {
    Server::new(&format!("http://{address}")).unwrap()
}

/// Signs in on a new device.
async fn sign_in(server: &impl support::Server, email: &str) -> Session {
    let (challenge, code) = code(server, email).await;
    session(at(server.address()).sign_in(&challenge, &code).await.unwrap())
}

/// Requests a code to sign in, and waits for it.
async fn code(server: &impl support::Server, email: &str) -> (Challenge, String) {
    let before = http::codes(server.mail(), email);
    let challenge = at(server.address()).request_code(email).await.unwrap();
    let code = new_code(server.mail(), email, &before).await;
    (challenge, code)
}

/// The session of a sign-in that needs no approval.
fn session(sign_in: SignIn) -> Session {
    match sign_in {
        SignIn::Session(session) => session,
        SignIn::Approval(approval) => panic!("{approval:?}"),
    }
}

/// Waits for a code that was not mailed before.
async fn new_code(mail: &Path, email: &str, before: &[String]) -> String {
    eventually("a mail with a code", || async {
        http::codes(mail, email).into_iter().find(|code| !before.contains(code))
    })
    .await
}

/// A complete set of keys, with one-time prekeys of these ids.
fn keys(one_time: impl IntoIterator<Item = u32>) -> PublishKeysRequest {
    let mut set = KeySet::new(Suite::SignalX3dh, Uuid::new_v4().as_u64_pair().0);
    serde_json::from_value(set.complete(one_time)).unwrap()
}

/// A started client of a device.
struct Device {
    client: Client,
    events: Events,
    storage: MemoryStorage,
}

impl Device {
    /// Starts a client for a session, over a new storage.
    async fn start(server: &Server, session: Session) -> Self {
        Self::start_over(server, session, MemoryStorage::new()).await
    }

    /// Starts a client for a session, over this storage.
    async fn start_over(server: &Server, session: Session, storage: MemoryStorage) -> Self {
        let (client, events) = Client::start(server, session, storage.clone()).await.unwrap();
        Self { client, events, storage }
    }

    /// Signs in on a new device, connects and publishes keys.
    async fn join(server: &impl support::Server, email: &str) -> Self {
        Self::join_through(server, server.address(), email).await
    }

    /// Like [`join`](Self::join), but connects to another address, such as a proxy's.
    async fn join_through(server: &impl support::Server, address: SocketAddr, email: &str) -> Self {
        let device = Self::start(&at(address), sign_in(server, email).await).await;
        device.client.publish_keys(keys(1..=5)).await.unwrap();
        device
    }

    fn user(&self) -> UserId {
        self.client.user_id()
    }

    fn id(&self) -> DeviceId {
        self.client.device_id()
    }

    /// A message with this text for another device, whose user has no other.
    fn message(&self, to: &Self, text: &str) -> Outgoing {
        Outgoing::new(self.client.new_message_id(), to.user()).device(to.id(), 3, text)
    }

    /// Waits for the first event for which the function gives a value. Earlier ones count as handled.
    async fn event<T>(&mut self, what: &str, mut choose: impl FnMut(Event) -> Option<T>) -> T {
        let wait = async {
            loop {
                let event = self.events.next().await.unwrap_or_else(|| panic!("the client ended before: {what}"));
                if let Some(chosen) = choose(event) {
                    return chosen;
                }
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("timed out waiting for: {what}"))
    }

    /// Waits for the next message, and says that it was handled.
    async fn receives(&mut self) -> Message {
        let message = self
            .event("a message", |event| match event {
                Event::Message(message) => Some(message),
                _ => None,
            })
            .await;
        self.events.handled().await;
        message
    }

    /// Waits for the next message, and returns its text.
    async fn reads(&mut self) -> String {
        String::from_utf8(self.receives().await.content).unwrap()
    }

    /// Waits until the client ends, and returns why.
    async fn ended(&mut self) -> End {
        self.event("the end", |event| match event {
            Event::Ended(end) => Some(end),
            _ => None,
        })
        .await
    }

    /// Waits until the client is in such a state.
    async fn is(&self, what: &str, wanted: impl FnMut(&State) -> bool) {
        let mut state = self.client.state();
        let wait = state.wait_for(wanted);
        drop(timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("the client is not {what}")).unwrap());
    }

    /// The number of stored messages that are not answered.
    async fn stored(&self) -> usize {
        stored(&self.storage).await
    }
}

/// The number of messages in a storage that are not answered.
async fn stored(storage: &MemoryStorage) -> usize {
    let records = storage.load().await.unwrap();
    records.iter().filter(|record| record.key.starts_with("outbox/")).count()
}

/// A client in a runtime of its own, which can be killed: nothing of it runs afterwards, and nothing is cleaned up.
struct Process {
    runtime: Option<tokio::runtime::Runtime>,
}

impl Process {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { runtime: Some(runtime) }
    }

    /// Starts a client in it.
    async fn start(
        &self,
        server: &Server,
        session: Session,
        storage: MemoryStorage,
        options: Options,
    ) -> (Client, Events) {
        let server = server.clone();
        let start = async move { Client::start_with(&server, session, storage, options).await.unwrap() };
        self.spawn(start).await.unwrap()
    }

    /// Runs a future in it.
    fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
        self.runtime.as_ref().unwrap().spawn(work)
    }

    /// Kills it, and waits until nothing of it runs any more.
    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime cannot be shut down on a thread of another one.
            std::thread::spawn(move || runtime.shutdown_timeout(PATIENCE)).join().unwrap();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Shares a value with a client's process.
type Seen<T> = Arc<std::sync::Mutex<T>>;
