//! The handle of a client: starts its task, and asks it for requests.

mod claim;
mod ops;

use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use sealwire_protocol::{
    events::Welcome,
    frame::{RequestFrame, SocketRequest},
    ids::{ClaimId, DeviceId, MessageId, UserId},
    limits::MAX_FRAME_BYTES,
    messages::SendMessageReply,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use self::claim::CLAIMS;
pub use self::claim::{Claim, ClaimRequest};
use crate::{
    driver::{Command, Driver, Queued, Shared, decode_reply},
    error::{RequestError, StorageError},
    events::{Events, Queue},
    inbox::Inbox,
    message::{Outgoing, Prepared},
    options::Options,
    outbox::Outbox,
    random::Random,
    reconnect::End,
    server::Server,
    session::{self, Session},
    storage::{AnyStorage, Storage},
};

/// Commands that wait for the task, which takes them at once.
const COMMANDS: usize = 64;

/// The state of a client.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum State {
    /// A connection is being opened.
    Connecting,
    /// Connected, with this welcome.
    Connected(Arc<Welcome>),
    /// The connection failed; the client connects again at this time.
    Waiting {
        /// When.
        until: Instant,
    },
    /// The client has ended and does not connect again.
    Ended(End),
}

/// A device that stays connected. Clones are handles of the same client. It stops when [`stop`](Self::stop) is called, or
/// when all its handles and its [`Events`] are dropped.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    user_id: UserId,
    device_id: DeviceId,
    shared: Shared,
    options: Options,
    storage: AnyStorage,
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<State>,
    session: watch::Receiver<Session>,
    next_place: AtomicU64,
    /// Keeps the order of messages while they are stored.
    sending: tokio::sync::Mutex<()>,
    /// The ids of claims that are not used yet, by record key.
    claims: Mutex<HashMap<String, ClaimId>>,
}

impl Client {
    /// Starts a client for a session, and stores the session. It connects in the background, sends the messages that an
    /// earlier run has left unanswered, and reports [`Events`], which the app must take.
    ///
    /// If the storage has a later session of the same device, that one is used: the given one was renewed. What the storage
    /// has of another device is deleted.
    ///
    /// Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn start(
        server: &Server,
        session: Session,
        storage: impl Storage,
    ) -> Result<(Self, Events), StorageError> {
        Self::start_with(server, session, storage, Options::default()).await
    }

    /// Like [`start`](Self::start), with settings.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn start_with(
        server: &Server,
        session: Session,
        storage: impl Storage,
        options: Options,
    ) -> Result<(Self, Events), StorageError> {
        let storage = AnyStorage::new(storage);
        let mut records = storage.load().await?;
        let session = match session::stored(&records)? {
            Some(stored) if stored.device_id != session.device_id => {
                for record in records.drain(..) {
                    storage.delete(record.key).await?;
                }
                session
            }
            Some(stored) if stored.expires_at > session.expires_at && !stored.has_ended() => stored,
            _ => session,
        };
        storage.save(session.record()).await?;
        records.sort_by(|one, other| one.key.cmp(&other.key));

        let mut outbox = Outbox::default();
        let mut claims = HashMap::new();
        let mut next_place = 0;
        for record in &records {
            if let Some(prepared) = Prepared::from_record(record) {
                next_place = prepared.place + 1;
                outbox.push(prepared.place, prepared.message.to, Queued::stored(prepared));
            } else if record.key.starts_with(CLAIMS)
                && let Some(id) = std::str::from_utf8(&record.value).ok().and_then(ClaimId::parse)
            {
                claims.insert(record.key.clone(), id);
            }
        }

        let shared = Shared {
            codec: options.codec,
            random: options.seed.map_or_else(Random::from_system, Random::from_seed),
            next_id: Arc::new(AtomicU32::new(1)),
            outbox_len: Arc::new(AtomicUsize::new(outbox.len())),
            pool_versions: Arc::default(),
            observer: options.observer.clone(),
        };
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let (state_sender, state) = watch::channel(State::Connecting);
        let (session_sender, session_receiver) = watch::channel(session.clone());
        let queue = Arc::new(Queue::new(shared.outbox_len.clone()));
        let events = Events::new(queue.clone(), commands.clone(), storage.clone());
        let inner = Inner {
            user_id: session.user_id,
            device_id: session.device_id,
            shared: shared.clone(),
            storage: storage.clone(),
            commands,
            state,
            session: session_receiver,
            next_place: AtomicU64::new(next_place),
            sending: tokio::sync::Mutex::new(()),
            claims: Mutex::new(claims),
            options,
        };
        let inbox = Inbox::new(inner.options.last_seq);
        let driver = Driver::new(
            server.clone(),
            session,
            storage,
            shared,
            receiver,
            state_sender,
            session_sender,
            queue,
            outbox,
            inbox,
        );
        tokio::spawn(driver.run());
        Ok((Self { inner: Arc::new(inner) }, events))
    }

    /// The user of the device.
    #[must_use]
    pub fn user_id(&self) -> UserId {
        self.inner.user_id
    }

    /// The device.
    #[must_use]
    pub fn device_id(&self) -> DeviceId {
        self.inner.device_id
    }

    /// The session, with its latest token.
    #[must_use]
    pub fn session(&self) -> Session {
        self.inner.session.borrow().clone()
    }

    /// The state, to look at or to wait for changes of.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.inner.state.clone()
    }

    /// Waits until the client is connected, and returns the welcome. Does not take an event.
    ///
    /// # Errors
    /// Why the client has ended, if it has.
    pub async fn connected(&self) -> Result<Arc<Welcome>, End> {
        let mut state = self.state();
        let state = state.wait_for(|state| matches!(state, State::Connected(_) | State::Ended(_))).await;
        match state.as_deref() {
            Ok(State::Connected(welcome)) => Ok(welcome.clone()),
            Ok(State::Ended(end)) => Err(end.clone()),
            _ => Err(End::Stopped),
        }
    }

    /// Tells the client that the network has changed, such as after a change from mobile data to Wi-Fi, or after the
    /// device was asleep. It finds out within seconds whether its connection still works, or connects at once unless the
    /// server has asked it to wait.
    pub async fn network_changed(&self) {
        // A client that has ended does not care.
        let _ = self.inner.commands.send(Command::NetworkChanged).await;
    }

    /// Stops the client: waits for a moment for acks and replies, closes the connection, and ends with [`End::Stopped`].
    /// Messages that are not answered are sent at the next start.
    pub async fn stop(&self) {
        let _ = self.inner.commands.send(Command::Stop).await;
        let mut state = self.state();
        let _ = state.wait_for(|state| matches!(state, State::Ended(_))).await;
    }

    /// Makes a request, and returns its reply. If the connection is lost before, the request is repeated on the next
    /// one, which every op allows; see "Repeating requests" in the protocol.
    ///
    /// Use [`send`](Self::send) for messages, and [`claim`](Self::claim) for keys: these repeat after a crash, too.
    ///
    /// # Errors
    /// [`RequestError::Refused`] with the codes of the op; [`RequestError::TimedOut`].
    pub async fn request<T>(&self, params: T) -> Result<T::Reply, RequestError>
    where
        T: SocketRequest + Serialize,
        T::Reply: DeserializeOwned,
    {
        let codec = self.inner.shared.codec;
        let id = self.inner.shared.request_id();
        let frame = codec.encode(&RequestFrame::new(id, &params))?;
        self.check_size(frame.len())?;
        let (reply, answer) = oneshot::channel();
        let work = async {
            let request = Command::Request { id, frame, reply };
            self.inner.commands.send(request).await.map_err(|_| self.ended())?;
            answer.await.map_err(|_| self.ended())?.map_err(RequestError::Ended)
        };
        let frame = timeout(self.inner.options.request_timeout, work).await.map_err(|_| RequestError::TimedOut)??;
        decode_reply(codec, &frame)
    }

    /// Draws the id of a message.
    #[must_use]
    pub fn new_message_id(&self) -> MessageId {
        MessageId(self.inner.shared.random.uuid())
    }

    /// Stores a message and sends it, again and again until it is answered. The answer also comes as
    /// [`Event::Sent`](crate::Event::Sent).
    ///
    /// If the future is dropped after the message was stored, it is sent all the same.
    ///
    /// # Errors
    /// [`RequestError::Refused`] if the server refuses the message for good, such as with `devices_mismatch`, whose
    /// devices are in [`RequestError::mismatch`]; [`RequestError::Ended`], after which a later start sends the message;
    /// [`RequestError::Storage`], [`RequestError::TooLarge`] or [`RequestError::OutboxFull`] if it was not taken.
    pub async fn send(&self, message: Outgoing) -> Result<SendMessageReply, RequestError> {
        self.enqueue(message).await?.await
    }

    /// Stores a message, and returns its future answer. Messages for one recipient are sent in the order in which these
    /// calls return, so a caller need not wait for the answer to one before the next.
    ///
    /// # Errors
    /// If it was not taken: [`RequestError::Storage`], [`RequestError::TooLarge`], [`RequestError::OutboxFull`] or
    /// [`RequestError::Ended`].
    pub async fn enqueue(&self, message: Outgoing) -> Result<Answer, RequestError> {
        let _in_order = self.inner.sending.lock().await;
        let prepared = self.prepare(message)?;
        self.inner.storage.save(prepared.record.clone()).await?;
        self.submit(prepared).await
    }

    /// Gives a message its place in the outbox, without storing or sending it: for apps that store
    /// [`Prepared::record`] in the transaction that stores the state of the encrypted sessions. Then call
    /// [`submit`](Self::submit).
    ///
    /// # Errors
    /// [`RequestError::TooLarge`], [`RequestError::OutboxFull`].
    pub fn prepare(&self, message: Outgoing) -> Result<Prepared, RequestError> {
        let limit = self.inner.options.outbox_limit;
        if self.inner.shared.outbox_len.load(Ordering::Relaxed) >= limit {
            return Err(RequestError::OutboxFull { limit });
        }
        let codec = self.inner.shared.codec;
        let frame = codec.encode(&RequestFrame::new(std::num::NonZeroU32::MAX, &message.request(codec, false)))?;
        self.check_size(frame.len())?;
        Prepared::new(self.inner.next_place.fetch_add(1, Ordering::Relaxed), message)
    }

    /// Takes a message whose record the app has stored, and returns its future answer. Order is kept as by
    /// [`enqueue`](Self::enqueue).
    ///
    /// # Errors
    /// [`RequestError::Ended`]; the message is sent at the next start.
    pub async fn submit(&self, prepared: Prepared) -> Result<Answer, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.inner.shared.outbox_len.fetch_add(1, Ordering::Relaxed);
        let command = Command::Send { prepared, reply: Some(reply) };
        self.inner.commands.send(command).await.map_err(|_| self.ended())?;
        Ok(Answer { answer, state: self.inner.state.clone() })
    }

    /// Sends a message only to the devices that are connected now, such as "is typing". It is not stored.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn send_ephemeral(&self, message: &Outgoing) -> Result<(), RequestError> {
        self.request(message.request(self.inner.shared.codec, true)).await.map(drop)
    }

    fn claims(&self) -> MutexGuard<'_, HashMap<String, ClaimId>> {
        self.inner.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> RequestError {
        ended(&self.inner.state)
    }

    fn check_size(&self, size: usize) -> Result<(), RequestError> {
        let limit = match &*self.inner.state.borrow() {
            State::Connected(welcome) => welcome.limits.frame_bytes,
            _ => MAX_FRAME_BYTES,
        };
        // A larger one would end the connection for good.
        if size > limit { Err(RequestError::TooLarge { size, limit }) } else { Ok(()) }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("user_id", &self.inner.user_id)
            .field("device_id", &self.inner.device_id)
            .field("state", &*self.inner.state.borrow())
            .finish_non_exhaustive()
    }
}

/// The answer to a message, from [`Client::enqueue`] and [`Client::submit`]. Dropping it does not stop the message.
#[must_use = "await it to learn whether the message was accepted"]
#[derive(Debug)]
pub struct Answer {
    answer: oneshot::Receiver<Result<SendMessageReply, RequestError>>,
    state: watch::Receiver<State>,
}

impl Future for Answer {
    type Output = Result<SendMessageReply, RequestError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| answer.unwrap_or_else(|_| Err(ended(&self.state))))
    }
}

/// Why a client that does not answer any more has ended.
fn ended(state: &watch::Receiver<State>) -> RequestError {
    let end = match &*state.borrow() {
        State::Ended(end) => end.clone(),
        _ => End::Stopped,
    };
    RequestError::Ended(end)
}
