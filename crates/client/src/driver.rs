//! The task of a client: connects, sends requests and messages, takes replies and events, and reconnects. What to do when
//! is decided in [`reconnect`](crate::reconnect), [`liveness`](crate::liveness), [`outbox`](crate::outbox) and
//! [`inbox`](crate::inbox); this module does the I/O.

mod connection;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use sealwire_protocol::{
    Codec,
    auth::{RenewSessionReply, RenewSessionRequest},
    events::{Event as Wire, Welcome},
    frame::{ReplyFrame, RequestId, ServerOutline},
    limits::{MAX_IN_FLIGHT, MAX_SEQS_PER_ACK},
    messages::{AckMessagesReply, AckMessagesRequest, SendMessageReply},
    value::{List, Named},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tokio_tungstenite::tungstenite::{
    Message as Frame,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use self::connection::{Connection, InFlight, Phase};
use crate::{
    client::State,
    error::{HttpError, RequestError},
    events::{Event, Queue, Receipt},
    http::Socket,
    inbox::{Arrival, Inbox},
    liveness::{Liveness, Verdict},
    message::{Message, Prepared, Sent},
    options::{Direction, Observer},
    outbox::{Answer, Outbox, Place},
    pool_versions::PoolVersions,
    random::Random,
    reconnect::{End, Failure, Next, Pause, Reconnect},
    server::Server,
    session::Session,
    storage::AnyStorage,
};

/// How long a client that is stopped waits for replies, and then for the server's Close.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// How long to wait at least after a failed renewal or ack.
const RENEW_AGAIN: Duration = Duration::from_mins(1);
const ACK_AGAIN: Duration = Duration::from_secs(1);
/// A time that never comes.
const NEVER: Duration = Duration::from_hours(24 * 365);

/// The reply to a request: its frame, or why there is none.
pub(crate) type FrameSender = oneshot::Sender<Result<Vec<u8>, End>>;
/// The answer to a message.
pub(crate) type SentSender = oneshot::Sender<Result<SendMessageReply, RequestError>>;

/// What the handles of a client ask of its task.
pub(crate) enum Command {
    /// Make a request, whose frame has this id.
    Request { id: RequestId, frame: Vec<u8>, reply: FrameSender },
    /// Send a message that is stored.
    Send { prepared: Prepared, reply: Option<SentSender> },
    /// The app has handled an envelope.
    Handled(i64),
    /// Renew the session now.
    Renew(oneshot::Sender<Result<(), RequestError>>),
    /// The network has changed: find out whether the connection still works, or connect now.
    NetworkChanged,
    /// Stop.
    Stop,
}

/// A request that is not answered.
struct Request {
    frame: Vec<u8>,
    reply: FrameSender,
}

/// A message that is not answered.
pub(crate) struct Queued {
    prepared: Prepared,
    reply: Option<SentSender>,
}

impl Queued {
    pub(crate) fn stored(prepared: Prepared) -> Self {
        Self { prepared, reply: None }
    }
}

/// What the task shares with the handles.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) codec: Codec,
    pub(crate) random: Random,
    pub(crate) next_id: Arc<AtomicU32>,
    /// The number of messages that are not answered, or whose answer the app has not handled.
    pub(crate) outbox_len: Arc<AtomicUsize>,
    pub(crate) pool_versions: Arc<PoolVersions>,
    pub(crate) observer: Observer,
}

impl Shared {
    /// An id that no other request of this client has.
    pub(crate) fn request_id(&self) -> RequestId {
        // Zero comes once in four billion.
        NonZeroU32::new(self.next_id.fetch_add(1, Ordering::Relaxed)).unwrap_or(NonZeroU32::MIN)
    }
}

/// The task.
pub(crate) struct Driver {
    pub(crate) server: Server,
    pub(crate) session: Session,
    pub(crate) storage: AnyStorage,
    pub(crate) shared: Shared,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) state: watch::Sender<State>,
    pub(crate) current: watch::Sender<Session>,
    pub(crate) events: Arc<Queue>,
    pub(crate) outbox: Outbox<Queued>,
    pub(crate) inbox: Inbox,
    requests: BTreeMap<u32, Request>,
    /// Those of the requests that were not sent on the present connection.
    unsent: BTreeSet<u32>,
    renewals: Vec<oneshot::Sender<Result<(), RequestError>>>,
    reconnect: Reconnect,
    stopping: bool,
    /// All handles and the events were dropped.
    abandoned: bool,
}

/// How the wait before a reconnect ended.
enum Waited {
    Over,
    Stopped,
}

impl Driver {
    #[expect(clippy::too_many_arguments, reason = "called once")]
    pub(crate) fn new(
        server: Server,
        session: Session,
        storage: AnyStorage,
        shared: Shared,
        commands: mpsc::Receiver<Command>,
        state: watch::Sender<State>,
        current: watch::Sender<Session>,
        events: Arc<Queue>,
        outbox: Outbox<Queued>,
        inbox: Inbox,
    ) -> Self {
        Self {
            server,
            session,
            storage,
            shared,
            commands,
            state,
            current,
            events,
            outbox,
            inbox,
            requests: BTreeMap::new(),
            unsent: BTreeSet::new(),
            renewals: Vec::new(),
            reconnect: Reconnect::default(),
            stopping: false,
            abandoned: false,
        }
    }

    /// Runs until the client ends.
    pub(crate) async fn run(mut self) {
        let end = loop {
            let failure = match self.connect().await {
                Some(Ok(socket)) => self.serve(socket).await,
                Some(Err(failure)) => failure,
                None => break End::Stopped,
            };
            if self.stopping {
                break End::Stopped;
            }
            let random = self.shared.random.fraction();
            tracing::debug!(?failure, "disconnected");
            match self.reconnect.failed(failure, random) {
                Next::End(end) => break end,
                Next::Wait(pause) => {
                    if matches!(self.wait(pause).await, Waited::Stopped) {
                        break End::Stopped;
                    }
                }
            }
        };
        tracing::debug!(%end, "ended");
        self.finish(&end).await;
    }

    /// Opens a connection. `None` if the client is stopped meanwhile.
    async fn connect(&mut self) -> Option<Result<Socket, Failure>> {
        self.state.send_replace(State::Connecting);
        let (server, token) = (self.server.clone(), self.session.token().to_owned());
        let (codec, nonce) = (self.shared.codec, self.shared.random.bytes());
        let upgrade = async move { server.upgrade(&token, codec, nonce).await };
        tokio::pin!(upgrade);
        loop {
            tokio::select! {
                result = &mut upgrade => return Some(result.map_err(failure)),
                command = self.commands.recv() => self.command(command, None),
            }
            if self.stopping {
                return None;
            }
        }
    }

    /// Waits before a reconnect. A change of the network ends the random part of the wait, not what the server asked for.
    async fn wait(&mut self, pause: Pause) -> Waited {
        let started = Instant::now();
        let mut until = started + pause.total().min(NEVER);
        while !self.stopping {
            self.state.send_replace(State::Waiting { until: until.into_std() });
            tokio::select! {
                () = sleep_until(until) => return Waited::Over,
                command = self.commands.recv() => {
                    if matches!(command, Some(Command::NetworkChanged)) {
                        until = started + pause.asked_for.min(NEVER);
                    }
                    self.command(command, None);
                }
            }
        }
        Waited::Stopped
    }

    /// Uses a connection until it fails.
    async fn serve(&mut self, socket: Socket) -> Failure {
        let (sink, mut stream) = socket.split();
        let mut connection = Connection::open(sink, &self.shared);
        self.unsent = self.requests.keys().copied().collect();
        let failure = loop {
            let wake = connection.wake_at(&self.outbox);
            tokio::select! {
                frame = stream.next() => {
                    connection.liveness.received(Instant::now().into_std());
                    match frame {
                        Some(Ok(Frame::Close(frame))) => break closed(frame),
                        Some(Ok(frame @ (Frame::Text(_) | Frame::Binary(_)))) => {
                            self.arrived(&mut connection, &frame.into_data()).await;
                        }
                        Some(Ok(_)) => {}
                        Some(Err(error)) => {
                            tracing::debug!(%error, "the connection broke");
                            break Failure::Lost;
                        }
                        None => break Failure::Lost,
                    }
                }
                command = self.commands.recv(), if !self.abandoned => self.command(command, Some(&mut connection)),
                () = sleep_until(wake) => {}
            }
            if let ControlFlow::Break(failure) = self.advance(&mut connection) {
                break failure;
            }
        };
        if failure == Failure::Lost {
            connection.writing.abort();
        }
        self.disconnected(connection);
        failure
    }

    /// Sends what can be sent, and checks the deadlines.
    fn advance(&mut self, connection: &mut Connection) -> ControlFlow<Failure> {
        let now = Instant::now();
        match connection.liveness.check(now.into_std()) {
            Verdict::Alive => {}
            Verdict::Ping => connection.write(Frame::Ping(Vec::new().into())),
            Verdict::Dead => return ControlFlow::Break(Failure::Lost),
        }
        if connection.broken || connection.phase == Phase::Opening && now >= connection.welcome_by {
            return ControlFlow::Break(Failure::Lost);
        }
        if connection.phase == Phase::Closing {
            return if connection.stop_by.is_some_and(|at| now >= at) {
                ControlFlow::Break(Failure::Lost)
            } else {
                ControlFlow::Continue(())
            };
        }
        if connection.phase == Phase::Open {
            self.send_requests(connection, now);
        }
        if self.stopping {
            let stop_by = *connection.stop_by.get_or_insert(now + STOP_TIMEOUT);
            if connection.phase != Phase::Open || connection.in_flight.is_empty() || now >= stop_by {
                connection.phase = Phase::Closing;
                connection.stop_by = Some(now + STOP_TIMEOUT);
                let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                connection.write(Frame::Close(Some(normal)));
            }
        }
        ControlFlow::Continue(())
    }

    /// Sends, in this order: messages, requests, acks, and a renewal.
    fn send_requests(&mut self, connection: &mut Connection, now: Instant) {
        let codec = self.shared.codec;
        while !self.stopping && connection.has_room_for_messages() {
            let Some((place, queued)) = self.outbox.next(now.into_std()) else { break };
            let id = self.shared.request_id();
            connection.request(id, &queued.prepared.message.request(codec, false), InFlight::Message(place));
        }
        while connection.has_room() {
            let Some(id) = self.unsent.pop_first() else { break };
            let Some(request) = self.requests.get(&id) else { continue };
            if request.reply.is_closed() {
                self.requests.remove(&id);
                continue;
            }
            connection.in_flight.insert(id, InFlight::Request);
            connection.write_data(request.frame.clone());
        }
        if self.inbox.has_unacked() && !connection.acking() && now >= connection.ack_not_before && connection.has_room()
        {
            let seqs = self.inbox.take_unacked(MAX_SEQS_PER_ACK);
            let request =
                AckMessagesRequest { seqs: List(seqs.iter().filter_map(|seq| u64::try_from(*seq).ok()).collect()) };
            connection.request(self.shared.request_id(), &request, InFlight::Ack(seqs));
        }
        let renew = !self.renewals.is_empty() || connection.renew_at.is_some_and(|at| now >= at);
        let renewing = connection.in_flight.values().any(|request| matches!(request, InFlight::Renew));
        if renew && !renewing && !self.stopping && connection.has_room() {
            connection.renew_at = None;
            connection.request(self.shared.request_id(), &RenewSessionRequest {}, InFlight::Renew);
        }
    }

    fn command(&mut self, command: Option<Command>, connection: Option<&mut Connection>) {
        match command {
            Some(Command::Request { id, frame, reply }) => {
                self.unsent.insert(id.get());
                self.requests.insert(id.get(), Request { frame, reply });
            }
            Some(Command::Send { prepared, reply }) => {
                self.outbox.push(prepared.place, prepared.message.to, Queued { prepared, reply });
            }
            Some(Command::Handled(seq)) => self.inbox.handled(seq),
            Some(Command::Renew(reply)) => self.renewals.push(reply),
            Some(Command::NetworkChanged) => {
                if let Some(connection) = connection {
                    connection.liveness.doubt(Instant::now().into_std());
                }
            }
            Some(Command::Stop) => self.stopping = true,
            None => {
                self.stopping = true;
                self.abandoned = true;
            }
        }
    }

    /// A data frame has arrived.
    async fn arrived(&mut self, connection: &mut Connection, frame: &[u8]) {
        self.shared.observer.see(Direction::Received, frame);
        match ServerOutline::decode(self.shared.codec, frame) {
            Ok(ServerOutline::Reply(id)) => self.reply(connection, id, frame).await,
            Ok(ServerOutline::Event(name)) if Wire::NAMES.contains(&name.as_str()) => {
                match self.shared.codec.decode(frame) {
                    Ok(event) => self.event(connection, event, frame).await,
                    Err(error) => tracing::warn!(%name, %error, "an event has an unexpected form"),
                }
            }
            Ok(ServerOutline::Event(name)) => tracing::debug!(%name, "an event of a newer server"),
            Err(error) => tracing::warn!(%error, "a frame is neither reply nor event"),
        }
    }

    async fn reply(&mut self, connection: &mut Connection, id: RequestId, frame: &[u8]) {
        let codec = self.shared.codec;
        let now = Instant::now();
        match connection.in_flight.remove(&id.get()) {
            None => tracing::warn!(%id, "a reply without a request"),
            Some(InFlight::Request) => {
                if let Some(request) = self.requests.remove(&id.get()) {
                    let _ = request.reply.send(Ok(frame.to_vec()));
                }
            }
            Some(InFlight::Message(place)) => {
                self.answered(place, decode_reply(codec, frame), now);
            }
            Some(InFlight::Ack(seqs)) => {
                if let Err(error) = decode_reply::<AckMessagesReply>(codec, frame) {
                    self.inbox.ack_failed(seqs);
                    connection.ack_not_before = now + error.retry_after().unwrap_or_default().max(ACK_AGAIN);
                }
            }
            Some(InFlight::Renew) => {
                let result = match decode_reply(codec, frame) {
                    Ok(reply) => self.renewed(connection, reply).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = &result {
                    tracing::warn!(%error, "the session was not renewed");
                    connection.renew_at = Some(now + error.retry_after().unwrap_or_default().max(RENEW_AGAIN));
                }
                for renewal in self.renewals.drain(..) {
                    let _ = renewal.send(result.clone());
                }
            }
        }
    }

    /// A message was answered.
    fn answered(&mut self, place: Place, result: Result<SendMessageReply, RequestError>, now: Instant) {
        let error = result.as_ref().err().and_then(RequestError::body);
        let random = self.shared.random.fraction();
        let Some(Answer::Final(queued)) = self.outbox.answered(place, error, now.into_std(), random) else { return };
        let Queued { prepared: Prepared { message, record, .. }, reply } = queued;
        let sent = Sent { message_id: message.message_id, to: message.to, result: result.clone() };
        let unread = self.events.push(Event::Sent(sent), Receipt::Record(record.key));
        if let Some(Receipt::Record(key)) = unread {
            self.events.answer_handled();
            let storage = self.storage.clone();
            tokio::spawn(async move { storage.delete(key).await });
        }
        if let Some(reply) = reply {
            let _ = reply.send(result);
        }
    }

    /// The session was renewed: stores the new token, then presents it, which ends the old session.
    async fn renewed(&mut self, connection: &mut Connection, reply: RenewSessionReply) -> Result<(), RequestError> {
        let mut session = self.session.renewed(reply);
        let renew_in = connection.server_time().map(|at| session.renew_in(at));
        // If it cannot be stored, the old token stays valid as long as the new one is not presented.
        self.storage.save(session.record()).await?;
        connection.renew_at = renew_in.map(|wait| Instant::now() + wait.min(NEVER));
        self.session = session.clone();
        self.current.send_replace(session.clone());
        self.events.push(Event::SessionRenewed(session.clone()), Receipt::None);
        let server = self.server.clone();
        tokio::spawn(async move {
            if let Err(error) = server.check_session(session.token()).await {
                tracing::debug!(%error, "the new token is presented at the next connect");
            }
        });
        Ok(())
    }

    async fn event(&mut self, connection: &mut Connection, event: Wire<'_>, frame: &[u8]) {
        let event = match event {
            Wire::Welcome(welcome) => return self.welcome(connection, *welcome).await,
            Wire::Message(message) => {
                let Ok(message) = Message::from_event(message, self.shared.codec, frame) else {
                    tracing::warn!("a message has content of an unexpected form");
                    return;
                };
                match message.seq.map(|seq| (seq, self.inbox.arrived(seq))) {
                    Some((seq, Arrival::New)) => {
                        self.events.push(Event::Message(message), Receipt::Envelope(seq));
                        return;
                    }
                    Some((_, Arrival::Queued | Arrival::Handled)) => return,
                    None => Event::Message(message),
                }
            }
            Wire::SessionRevoked { reason } => return self.reconnect.session_revoked(&reason),
            Wire::Refused(error) => return self.reconnect.refused(error),
            Wire::ServerDraining { reconnect_in_ms } => {
                connection.phase = Phase::Draining;
                return self.reconnect.draining(Duration::from_millis(reconnect_in_ms));
            }
            Wire::PrekeysLow { kind, remaining, threshold, pool_version } => {
                if matches!(kind, Named::Known(kind) if self.shared.pool_versions.is_overtaken(kind, pool_version)) {
                    return;
                }
                Event::PrekeysLow { kind, remaining, threshold }
            }
            Wire::SignedPrekeyExpiring { key_id, expires_at } => Event::SignedPrekeyExpiring { key_id, expires_at },
            Wire::DevicesChanged { added, removed } => Event::DevicesChanged { added, removed },
            Wire::DevicesRequested(pending) => Event::ApprovalRequested(pending),
            Wire::SessionsChanged { device_id, opened, ended } => Event::SessionsChanged { device_id, opened, ended },
            Wire::MailboxDrained {} => Event::MailboxDrained,
        };
        self.events.push(event, Receipt::None);
    }

    async fn welcome(&mut self, connection: &mut Connection, welcome: Welcome) {
        let now = Instant::now();
        self.reconnect.welcome();
        connection.welcome = Some((now, welcome.server_time));
        connection.phase = Phase::Open;
        connection.limit = welcome.limits.in_flight.clamp(1, MAX_IN_FLIGHT);
        connection.liveness = Liveness::new(Duration::from_secs(welcome.heartbeat_s.max(1)), now.into_std());
        let before = self.session.clone();
        self.session.expires_at = welcome.expires_at;
        let renew_in = self.session.renew_in(welcome.server_time);
        connection.renew_at = Some(now + renew_in.min(NEVER));
        if self.session != before {
            if let Err(error) = self.storage.save(self.session.record()).await {
                tracing::warn!(%error, "the session is not stored");
            }
            self.current.send_replace(self.session.clone());
        }
        let welcome = Arc::new(welcome);
        self.state.send_replace(State::Connected(welcome.clone()));
        self.events.push(Event::Connected(welcome), Receipt::None);
    }

    /// Keeps what was not answered, for the next connection.
    fn disconnected(&mut self, connection: Connection) {
        // The server's Close is answered when the writer is dropped.
        drop(connection.writer);
        for (_, request) in connection.in_flight {
            if let InFlight::Ack(seqs) = request {
                self.inbox.ack_failed(seqs);
            }
        }
        self.requests.retain(|_, request| !request.reply.is_closed());
        self.outbox.disconnected();
    }

    /// Tells everybody that the client has ended. Unanswered messages stay stored.
    async fn finish(mut self, end: &End) {
        if end.must_sign_in() || end.must_wipe() {
            self.session.end();
            if let Err(error) = self.storage.save(self.session.record()).await {
                tracing::warn!(%error, "the end of the session is not stored");
            }
        }
        self.state.send_replace(State::Ended(end.clone()));
        self.commands.close();
        for (_, request) in self.requests {
            let _ = request.reply.send(Err(end.clone()));
        }
        for renewal in self.renewals {
            let _ = renewal.send(Err(RequestError::Ended(end.clone())));
        }
        self.events.push(Event::Ended(end.clone()), Receipt::None);
    }
}

/// Decodes a reply.
pub(crate) fn decode_reply<T: DeserializeOwned>(codec: Codec, frame: &[u8]) -> Result<T, RequestError> {
    let reply: ReplyFrame<T> = codec.decode(frame)?;
    reply.result.map_err(|error| RequestError::Refused(Box::new(error)))
}

fn closed(frame: Option<CloseFrame>) -> Failure {
    let (code, reason) = frame.map_or((1005, String::new()), |frame| (frame.code.into(), frame.reason.to_string()));
    Failure::Closed { code, reason }
}

/// Why an upgrade failed.
fn failure(error: HttpError) -> Failure {
    tracing::debug!(%error, "cannot connect");
    match error {
        HttpError::Refused(error) => {
            let retry_after = error.retry_after_ms.map(Duration::from_millis);
            Failure::Refused { error, retry_after }
        }
        HttpError::Unexpected { retry_after, .. } => Failure::Unexpected { retry_after },
        _ => Failure::Lost,
    }
}
