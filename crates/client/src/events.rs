//! What a client reports to the app, and in which order.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sealwire_protocol::{
    Timestamp,
    approvals::PendingApproval,
    events::Welcome,
    ids::{DeviceId, SessionId},
    keys::KeyKind,
    value::Named,
};
use tokio::sync::{Notify, mpsc};

use crate::{
    driver::Command,
    message::{Message, Sent},
    reconnect::End,
    session::Session,
    storage::AnyStorage,
};

/// The most ephemeral messages that wait for the app. Beyond, the oldest are dropped.
const MAX_EPHEMERAL: usize = 1000;

/// Something that the app should know. Events of a newer server are ignored.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The client is connected. Compare `welcome.keys` with the keys that the app holds, and publish what is missing. The
    /// event comes after each reconnect.
    Connected(Arc<Welcome>),
    /// A message for this device. It is acked when the next event is asked for, so store it before.
    Message(Message),
    /// A message of this device was accepted, or refused for good. Also comes for messages of an earlier run of the app.
    /// It comes again at the next start, unless the next event is asked for.
    Sent(Sent),
    /// All messages that waited when the client connected have been given to the app.
    MailboxDrained,
    /// A pool of one-time keys runs low: publish more.
    PrekeysLow {
        /// The pool.
        kind: Named<KeyKind>,
        /// Keys in it.
        remaining: u32,
        /// A pool with at most this many keys is low.
        threshold: u32,
    },
    /// The signed prekey expires soon: publish another.
    SignedPrekeyExpiring {
        /// Its id.
        key_id: u32,
        /// When it is served no longer.
        expires_at: Timestamp,
    },
    /// Devices of the user were added or revoked.
    DevicesChanged {
        /// New devices.
        added: Vec<DeviceId>,
        /// Revoked devices.
        removed: Vec<DeviceId>,
    },
    /// A new device, or a change of the account's address, waits for an approval by this device. Ask the person for the
    /// number that the new device shows, and call [`Client::approve`](crate::Client::approve) or
    /// [`Client::deny`](crate::Client::deny). The event comes after each reconnect until the request is decided.
    ApprovalRequested(Box<PendingApproval>),
    /// Sessions of one of the user's devices were opened or ended. If the person did not do that, show it.
    SessionsChanged {
        /// The device.
        device_id: DeviceId,
        /// Sessions that a sign-in opened.
        opened: Vec<SessionId>,
        /// Sessions that ended other than by expiry or renewal.
        ended: Vec<SessionId>,
    },
    /// The session was renewed, and its new token is stored.
    SessionRenewed(Session),
    /// The client has ended and does not connect again. This is the last event.
    Ended(End),
}

/// What has to be done once the app has handled an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Receipt {
    /// Nothing.
    None,
    /// Ack the envelope.
    Envelope(i64),
    /// Delete the record of a message that was sent.
    Record(String),
}

/// The events that the app has not taken yet. Their number is bounded: by the server for stored messages, which it sends
/// only up to a number without an ack, and here for others.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    events: VecDeque<(Event, Receipt)>,
    ephemeral: usize,
    /// The app does not take events any more.
    abandoned: bool,
    /// No more events come.
    finished: bool,
}

fn is_ephemeral(event: &Event) -> bool {
    matches!(event, Event::Message(message) if message.seq.is_none())
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event. Returns the receipt if nobody takes events any more.
    pub(crate) fn push(&self, event: Event, receipt: Receipt) -> Option<Receipt> {
        let mut state = self.state();
        if state.abandoned {
            return Some(receipt);
        }
        if is_ephemeral(&event) {
            state.ephemeral += 1;
            if state.ephemeral > MAX_EPHEMERAL
                && let Some(oldest) = state.events.iter().position(|(event, _)| is_ephemeral(event))
            {
                state.events.remove(oldest);
                state.ephemeral -= 1;
            }
        }
        state.finished |= matches!(event, Event::Ended(_));
        state.events.push_back((event, receipt));
        drop(state);
        self.changed.notify_one();
        None
    }

    fn pop(&self) -> Option<(Event, Receipt)> {
        let mut state = self.state();
        let taken = state.events.pop_front()?;
        state.ephemeral -= usize::from(is_ephemeral(&taken.0));
        Some(taken)
    }
}

/// The events of a client, in order.
///
/// Asking for the next event says that the one before was handled. Only then a message is acked, and the record of a
/// message that was sent is deleted. So an app that is killed while it handles an event gets it again, and nothing is lost.
/// If the app drops the events, arriving messages are not acked, and the server stops sending them.
pub struct Events {
    queue: Arc<Queue>,
    commands: mpsc::Sender<Command>,
    storage: AnyStorage,
    /// What is to be done for the event that the app has taken last.
    taken: Receipt,
}

impl Events {
    pub(crate) fn new(queue: Arc<Queue>, commands: mpsc::Sender<Command>, storage: AnyStorage) -> Self {
        Self { queue, commands, storage, taken: Receipt::None }
    }

    /// Says that the last event was handled, and returns the next one. `None` after [`Event::Ended`].
    ///
    /// Cancel-safe: if the future is dropped, no event is lost.
    pub async fn next(&mut self) -> Option<Event> {
        self.handled().await;
        loop {
            let changed = self.queue.changed.notified();
            if let Some((event, receipt)) = self.queue.pop() {
                self.taken = receipt;
                return Some(event);
            }
            if self.queue.state().finished {
                return None;
            }
            changed.await;
        }
    }

    /// Handles one event after the other until the client ends, and returns why it ended. A message is acked when the
    /// handler has returned `Ok`.
    ///
    /// # Errors
    /// The first error of the handler. The event is then not handled; it comes again if the client is started anew.
    pub async fn for_each<E>(&mut self, mut handler: impl AsyncFnMut(Event) -> Result<(), E>) -> Result<End, E> {
        let mut end = End::Stopped;
        while let Some(event) = self.next().await {
            if let Event::Ended(why) = &event {
                end = why.clone();
            }
            handler(event).await?;
        }
        Ok(end)
    }

    /// Says that the last event was handled, without waiting for the next one.
    pub async fn handled(&mut self) {
        // Taken out only at the end, so that dropping the future loses nothing.
        match &self.taken {
            Receipt::None => return,
            Receipt::Envelope(seq) => {
                // If the client has ended, the envelope comes again.
                let _ = self.commands.send(Command::Handled(*seq)).await;
            }
            Receipt::Record(key) => {
                if let Err(error) = self.storage.delete(key.clone()).await {
                    tracing::warn!(%error, "a message that was sent is kept; it is sent again at the next start");
                }
            }
        }
        self.taken = Receipt::None;
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.abandoned = true;
        state.events.clear();
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("taken", &self.taken).finish_non_exhaustive()
    }
}
