//! The handle of a client: starts its task, and asks it for requests.

use std::{
    collections::HashMap,
    fmt,
    future::IntoFuture,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use sealwire_protocol::{
    Codec,
    access::{
        AccessKey, AddBlockRequest, ListBlocksRequest, RemoveBlockRequest, SetAccessRequest, ShownKey, Strangers,
    },
    approvals::{
        AccountStatusReply, AccountStatusRequest, DecideRequest, LockAccountRequest, RequestedApproval,
        UnlockAccountRequest,
    },
    auth::{EndSessionRequest, ListSessionsRequest, ListedSession, LogoutRequest},
    devices::{ListDevicesRequest, ListedDevice, RenameDeviceRequest, RevokeDeviceRequest},
    events::Welcome,
    frame::{RequestFrame, SocketRequest},
    ids::{ApprovalId, ClaimId, DeviceId, MessageId, SessionId, UserId},
    keys::{
        BundlesReply, ClaimKeysRequest, FetchKeysRequest, KeysStatusReply, KeysStatusRequest, PrekeyBundle,
        PublishKeysReply, PublishKeysRequest, Suite, UnavailableDevice,
    },
    limits::MAX_FRAME_BYTES,
    messages::SendMessageReply,
    users::{ChangeEmailRequest, DeleteAccountRequest, FindUserRequest},
    value::{List, Named, Text},
};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use crate::{
    driver::{Command, Driver, Queued, Shared, decode_reply},
    error::{RequestError, StorageError},
    events::{Events, Queue},
    inbox::Inbox,
    message::{Outgoing, Prepared},
    outbox::Outbox,
    random::Random,
    reconnect::End,
    server::{Challenge, Server},
    session::{self, Session},
    storage::{AnyStorage, Record, Storage},
};

/// Commands that wait for the task, which takes them at once.
const COMMANDS: usize = 64;
/// The beginning of the keys of claims' records.
const CLAIMS: &str = "claim/";

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct Options {
    codec: Codec,
    request_timeout: Duration,
    outbox_limit: usize,
    last_seq: i64,
    seed: Option<u64>,
    observer: Observer,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            codec: Codec::MsgPack,
            request_timeout: Duration::from_secs(30),
            outbox_limit: 10_000,
            last_seq: 0,
            seed: None,
            observer: Observer::default(),
        }
    }
}

impl Options {
    /// The encoding of frames; MessagePack if it is not set. JSON is easier to read in a debugger.
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// How long a request waits for its reply, reconnects included; 30 seconds if it is not set. Messages that were given
    /// to [`Client::send`] wait without limit.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How many messages may wait to be sent, or for the app to handle their answers; 10,000 if it is not set.
    #[must_use]
    pub fn outbox_limit(mut self, limit: usize) -> Self {
        self.outbox_limit = limit;
        self
    }

    /// The highest [`seq`](crate::Message::seq) that the app has stored; 0 if it is not set. Messages up to it are repeats:
    /// they are acked, and not given to the app.
    #[must_use]
    pub fn last_seq(mut self, seq: i64) -> Self {
        self.last_seq = seq;
        self
    }

    /// Shows all frames to a function, in the client's encoding: to look at the protocol. They contain tokens and
    /// ciphertexts, so do not log them elsewhere than on a developer's machine.
    #[must_use]
    pub fn observe_frames(mut self, observe: impl Fn(Direction, &[u8]) + Send + Sync + 'static) -> Self {
        self.observer = Observer(Some(Arc::new(observe)));
        self
    }

    /// Makes ids and waits reproducible, for tests. Two clients must not have the same seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}

/// Who has sent a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The client.
    Sent,
    /// The server.
    Received,
}

type Observe = dyn Fn(Direction, &[u8]) + Send + Sync;

/// A function that sees all frames.
#[derive(Clone, Default)]
pub(crate) struct Observer(Option<Arc<Observe>>);

impl Observer {
    pub(crate) fn see(&self, direction: Direction, frame: &[u8]) {
        if let Some(observe) = &self.0 {
            observe(direction, frame);
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "a function" } else { "none" })
    }
}

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
            pool_version: Arc::new(AtomicI64::new(0)),
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

    /// Finds the user of an address.
    ///
    /// # Errors
    /// `not_found` if no user has it; `rate_limited`.
    pub async fn find_user(&self, email: &str) -> Result<UserId, RequestError> {
        Ok(self.request(FindUserRequest { email: text(email)? }).await?.user_id)
    }

    /// Publishes keys of this device.
    ///
    /// # Errors
    /// Those of `keys.publish`.
    pub async fn publish_keys(&self, keys: PublishKeysRequest) -> Result<PublishKeysReply, RequestError> {
        let reply = self.request(keys).await?;
        // Notices of low pools that are older are outdated.
        self.inner.shared.pool_version.fetch_max(reply.status.pool_version, Ordering::Relaxed);
        Ok(reply)
    }

    /// What the server holds of this device's keys, with a digest to compare with
    /// [`HeldKeys::digest`](crate::HeldKeys::digest).
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn keys_status(&self) -> Result<KeysStatusReply, RequestError> {
        self.request(KeysStatusRequest { digest: Some(true) }).await
    }

    /// Gets the bundles of a user's devices, without taking one-time keys: to compare identity keys. `access` is the access
    /// key that the user has shared, if they have.
    ///
    /// # Errors
    /// `not_found` for an unknown user, or one who refuses strangers.
    pub async fn fetch_keys(&self, user: UserId, access: Option<AccessKey>) -> Result<BundlesReply, RequestError> {
        let access = access.map(|key| ShownKey(Some(key)));
        self.request(FetchKeysRequest { user_id: user, device_ids: None, suites: None, access }).await
    }

    /// Claims bundles with which the app opens encrypted sessions with a user's devices. Await the returned request;
    /// before, say which devices.
    ///
    /// `purpose` names what the bundles are for, such as the id of the message that needs them. A claim id is drawn and
    /// stored for it, and a later claim for the same user and purpose, also after a crash, gets the same keys, until
    /// [`Claim::used`] is called. So use another purpose for each group of sessions, and call `used` once they are stored.
    pub fn claim<'a>(&'a self, user: UserId, purpose: &'a str) -> ClaimRequest<'a> {
        ClaimRequest { client: self, user, purpose, devices: None, suites: None, access: None }
    }

    /// The user's active devices.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn devices(&self) -> Result<Vec<ListedDevice>, RequestError> {
        Ok(self.request(ListDevicesRequest {}).await?.devices)
    }

    /// Names a device of the user.
    ///
    /// # Errors
    /// `unknown_device`; `device_too_new`.
    pub async fn rename_device(&self, device: DeviceId, name: &str) -> Result<(), RequestError> {
        self.request(RenameDeviceRequest { device_id: Some(device), name: text(name)? }).await.map(drop)
    }

    /// Revokes a device of the user.
    ///
    /// # Errors
    /// `unknown_device`, also for a device that is revoked already; `device_too_new`.
    pub async fn revoke_device(&self, device: DeviceId) -> Result<(), RequestError> {
        self.request(RevokeDeviceRequest { device_id: device }).await.map(drop)
    }

    /// The user's valid sessions.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn sessions(&self) -> Result<Vec<ListedSession>, RequestError> {
        Ok(self.request(ListSessionsRequest {}).await?.sessions)
    }

    /// Ends a session of the user.
    ///
    /// # Errors
    /// `not_found` if there is no such session; `device_too_new`.
    pub async fn end_session(&self, session: SessionId) -> Result<(), RequestError> {
        self.request(EndSessionRequest { session_id: session }).await.map(drop)
    }

    /// Renews the session now. The client also does that by itself, when half of the session's life is over.
    ///
    /// # Errors
    /// As [`request`](Self::request); [`RequestError::Storage`] if the new token cannot be stored. The session stays as
    /// it was then.
    pub async fn renew_session(&self) -> Result<(), RequestError> {
        let (reply, answer) = oneshot::channel();
        let work = async {
            self.inner.commands.send(Command::Renew(reply)).await.map_err(|_| self.ended())?;
            answer.await.map_err(|_| self.ended())?
        };
        timeout(self.inner.options.request_timeout, work).await.map_err(|_| RequestError::TimedOut)?
    }

    /// Logs out: ends the session, and the client with [`End::LoggedOut`]. The device keeps its keys.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn log_out(&self) -> Result<(), RequestError> {
        self.request_of_the_end(LogoutRequest {}, &End::LoggedOut).await
    }

    /// Deletes the account, with a code for [`CodePurpose::Delete`](sealwire_protocol::auth::CodePurpose::Delete). The
    /// client ends with [`End::AccountDeleted`].
    ///
    /// # Errors
    /// `device_too_new`, `invalid_code`, `too_many_attempts`.
    pub async fn delete_account(&self, challenge: &Challenge, code: &str) -> Result<(), RequestError> {
        let request = DeleteAccountRequest { challenge_id: Some(challenge.id), code: Some(text(code)?) };
        self.request_of_the_end(request, &End::AccountDeleted).await
    }

    /// Makes a request that ends the client. If its reply is lost, the way in which the client ends tells that it was done.
    async fn request_of_the_end<T>(&self, request: T, end: &End) -> Result<(), RequestError>
    where
        T: SocketRequest + Serialize,
        T::Reply: DeserializeOwned,
    {
        match self.request(request).await {
            Err(RequestError::Ended(how)) if how == *end => Ok(()),
            other => other.map(drop),
        }
    }

    /// Gives the account another address: that of the challenge, whose code is for
    /// [`CodePurpose::ChangeEmail`](sealwire_protocol::auth::CodePurpose::ChangeEmail). If the account is locked, returns
    /// the request that waits for an approval: show the person its number.
    ///
    /// # Errors
    /// `device_too_new`, `invalid_code`, `too_many_attempts`, `email_taken`, `rate_limited`.
    pub async fn change_email(
        &self,
        challenge: &Challenge,
        code: &str,
    ) -> Result<Option<RequestedApproval>, RequestError> {
        let (email, code) = (text(&challenge.email)?, text(code)?);
        let request = ChangeEmailRequest { email, challenge_id: Some(challenge.id), code: Some(code) };
        Ok(self.request(request).await?.approval)
    }

    /// Draws a recovery key, for [`lock_account`](Self::lock_account).
    #[must_use]
    pub fn new_recovery_key(&self) -> [u8; 32] {
        self.inner.shared.random.bytes()
    }

    /// Locks the account: a new device then also needs an approval by another one, or the recovery key. Show the key to the
    /// person before; the server gets only its hash. `wait` is the time after which a request is approved unless a device
    /// denies it, a day to 30 days; a week if `None`. If the account is locked already, a young device needs the `present`
    /// recovery key.
    ///
    /// # Errors
    /// `device_too_new`; `invalid_code` if the present recovery key is wrong.
    pub async fn lock_account(
        &self,
        recovery_key: &[u8; 32],
        wait: Option<Duration>,
        present: Option<&[u8; 32]>,
    ) -> Result<(), RequestError> {
        let request = LockAccountRequest {
            recovery_key_hash: Text::base64(&Sha256::digest(recovery_key)),
            wait_s: wait.map(|wait| wait.as_secs()),
            recovery_key: present.map(|key| Text::base64(key)),
        };
        self.request(request).await.map(drop)
    }

    /// Unlocks the account. A young device needs the recovery key.
    ///
    /// # Errors
    /// `device_too_new`; `invalid_code` if the recovery key is wrong.
    pub async fn unlock_account(&self, recovery_key: Option<&[u8; 32]>) -> Result<(), RequestError> {
        self.request(UnlockAccountRequest { recovery_key: recovery_key.map(|key| Text::base64(key)) }).await.map(drop)
    }

    /// Whether the account is locked, and what waits for an approval.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn account_status(&self) -> Result<AccountStatusReply, RequestError> {
        self.request(AccountStatusRequest {}).await
    }

    /// Approves a request of [`Event::ApprovalRequested`](crate::Event::ApprovalRequested). `number` is what the person has
    /// read from the new device and entered here. A wrong one denies the request.
    ///
    /// # Errors
    /// `denied` if the number is wrong; `not_found` if there is no such request or it was denied; `device_limit`, after
    /// which it can be approved with [`DecideRequest::replace_device_id`]; `device_too_new`.
    pub async fn approve(&self, request: ApprovalId, number: &str) -> Result<(), RequestError> {
        let number = Some(text(number)?);
        let request = DecideRequest { request_id: request, approve: true, number, replace_device_id: None };
        self.request(request).await.map(drop)
    }

    /// Denies a request of [`Event::ApprovalRequested`](crate::Event::ApprovalRequested).
    ///
    /// # Errors
    /// `not_found` if there is no such request or it was approved; `device_too_new`.
    pub async fn deny(&self, request: ApprovalId) -> Result<(), RequestError> {
        let request = DecideRequest { request_id: request, approve: false, number: None, replace_device_id: None };
        self.request(request).await.map(drop)
    }

    /// Sets the access key of the user, 16 random bytes, and what people may do who do not show it.
    ///
    /// # Errors
    /// `bad_request` for [`Strangers::Refuse`] without a key; `device_too_new`.
    pub async fn set_access(&self, key: Option<AccessKey>, strangers: Strangers) -> Result<(), RequestError> {
        self.request(SetAccessRequest { key, strangers: strangers.into(), sealed: None }).await.map(drop)
    }

    /// Drops what a user sends, from now on.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn block(&self, user: UserId) -> Result<(), RequestError> {
        self.request(AddBlockRequest { user_id: user }).await.map(drop)
    }

    /// Accepts messages of a user again.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn unblock(&self, user: UserId) -> Result<(), RequestError> {
        self.request(RemoveBlockRequest { user_id: user }).await.map(drop)
    }

    /// The blocked users.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn blocked(&self) -> Result<Vec<UserId>, RequestError> {
        Ok(self.request(ListBlocksRequest {}).await?.user_ids)
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

/// A claim that is made when it is awaited: for all addressable devices of the user, unless
/// [`devices`](Self::devices) names some.
#[must_use = "a claim is made when it is awaited"]
#[derive(Clone, Debug)]
pub struct ClaimRequest<'a> {
    client: &'a Client,
    user: UserId,
    purpose: &'a str,
    devices: Option<Vec<DeviceId>>,
    suites: Option<Vec<Suite>>,
    access: Option<AccessKey>,
}

impl ClaimRequest<'_> {
    /// Claims only these devices, at most 100.
    pub fn devices(mut self, devices: impl IntoIterator<Item = DeviceId>) -> Self {
        self.devices = Some(devices.into_iter().collect());
        self
    }

    /// The suites that the app can use. Devices of others are `unavailable`, and none of their keys is taken.
    pub fn suites(mut self, suites: impl IntoIterator<Item = Suite>) -> Self {
        self.suites = Some(suites.into_iter().collect());
        self
    }

    /// Shows the access key that the user has shared.
    pub fn access(mut self, key: AccessKey) -> Self {
        self.access = Some(key);
        self
    }

    async fn make(self) -> Result<Claim, RequestError> {
        let Self { client, user, purpose, devices, suites, access } = self;
        let key = claim_key(user, purpose);
        let known = client.claims().get(&key).copied();
        let claim_id = if let Some(id) = known {
            id
        } else {
            let id = ClaimId(client.inner.shared.random.uuid());
            let record = Record { key: key.clone(), value: id.to_string().into_bytes() };
            client.inner.storage.save(record).await?;
            *client.claims().entry(key.clone()).or_insert(id)
        };
        let request = ClaimKeysRequest {
            user_id: user,
            device_ids: devices.map(List),
            suites: suites.map(|suites| List(suites.into_iter().map(Named::from).collect())),
            access: access.map(|key| ShownKey(Some(key))),
            claim_id,
        };
        let BundlesReply { bundles, unavailable, .. } = client.request(request).await?;
        Ok(Claim { bundles, unavailable, client: client.clone(), key })
    }
}

impl<'a> IntoFuture for ClaimRequest<'a> {
    type Output = Result<Claim, RequestError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.make())
    }
}

/// The bundles that were claimed.
#[must_use = "call `used` once the encrypted sessions are stored"]
#[derive(Clone, Debug)]
pub struct Claim {
    /// The bundles, one for each device. Check their signatures.
    pub bundles: Vec<PrekeyBundle>,
    /// Devices without a bundle, and why.
    pub unavailable: Vec<UnavailableDevice>,
    client: Client,
    key: String,
}

impl Claim {
    /// Says that the encrypted sessions are stored: the claim id is forgotten, and the next claim for this purpose takes
    /// other keys.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn used(self) -> Result<(), StorageError> {
        self.client.inner.storage.delete(self.key.clone()).await?;
        self.client.claims().remove(&self.key);
        Ok(())
    }

    /// The key of the record of the claim id, for apps that delete it in the transaction that stores the encrypted
    /// sessions. Call [`used`](Self::used) all the same.
    #[must_use]
    pub fn record_key(&self) -> &str {
        &self.key
    }
}

impl Client {
    fn claims(&self) -> std::sync::MutexGuard<'_, HashMap<String, ClaimId>> {
        self.inner.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key of a claim's record. A hash, since a purpose may have any characters.
fn claim_key(user: UserId, purpose: &str) -> String {
    let hash = Sha256::new().chain_update(user.0.as_bytes()).chain_update(purpose).finalize();
    hash.iter().take(16).fold(CLAIMS.to_owned(), |key, byte| format!("{key}{byte:02x}"))
}

fn text(text: &str) -> Result<Text, RequestError> {
    Text::parse(text).ok_or(RequestError::InvalidText)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn claims_differ_by_user_and_purpose() {
        let user = |number| UserId(Uuid::from_u128(number));
        let key = claim_key(user(1), "a");
        assert_eq!(key, claim_key(user(1), "a"));
        assert_eq!(key.len(), CLAIMS.len() + 32);
        assert_ne!(key, claim_key(user(1), "b"));
        assert_ne!(key, claim_key(user(2), "a"));
    }
}
