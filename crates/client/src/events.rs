//! What a client reports to the app, and in which order.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
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

/// The most events that wait for the app and cannot come again, such as ephemeral messages. Beyond, the oldest are dropped.
const MAX_NOTICES: usize = 1000;

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
/// only up to a number without an ack; by the outbox for answers, which count as long as they are not handled; and here
/// for others.
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Notify,
    /// The number of messages that are not answered, or whose answer is not handled.
    outbox_len: Arc<AtomicUsize>,
}

#[derive(Default)]
struct State {
    events: VecDeque<(Event, Receipt)>,
    notices: usize,
    /// The app does not take events any more.
    abandoned: bool,
    /// No more events come.
    finished: bool,
}

fn is_notice((event, receipt): &(Event, Receipt)) -> bool {
    *receipt == Receipt::None && !matches!(event, Event::Ended(_))
}

impl Queue {
    pub(crate) fn new(outbox_len: Arc<AtomicUsize>) -> Self {
        Self { state: Mutex::default(), changed: Notify::new(), outbox_len }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event. Returns the receipt if nobody takes events any more.
    pub(crate) fn push(&self, event: Event, receipt: Receipt) -> Option<Receipt> {
        let mut state = self.state();
        if state.abandoned {
            return Some(receipt);
        }
        state.finished |= matches!(event, Event::Ended(_));
        let entry = (event, receipt);
        state.notices += usize::from(is_notice(&entry));
        state.events.push_back(entry);
        if state.notices > MAX_NOTICES
            && let Some(oldest) = state.events.iter().position(is_notice)
        {
            state.events.remove(oldest);
            state.notices -= 1;
        }
        drop(state);
        self.changed.notify_one();
        None
    }

    fn pop(&self) -> Option<(Event, Receipt)> {
        let mut state = self.state();
        let taken = state.events.pop_front()?;
        state.notices -= usize::from(is_notice(&taken));
        Some(taken)
    }

    /// The answer to a message was handled.
    pub(crate) fn answer_handled(&self) {
        self.outbox_len.fetch_sub(1, Ordering::Relaxed);
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
                self.queue.answer_handled();
            }
        }
        self.taken = Receipt::None;
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.abandoned = true;
        let answers = state.events.drain(..).filter(|(_, receipt)| matches!(receipt, Receipt::Record(_))).count();
        let answers = answers + usize::from(matches!(self.taken, Receipt::Record(_)));
        self.queue.outbox_len.fetch_sub(answers, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("taken", &self.taken).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_events_that_nobody_takes_the_oldest_notices_are_dropped() {
        let answers = Arc::new(AtomicUsize::new(1));
        let queue = Queue::new(answers.clone());
        queue.push(Event::MailboxDrained, Receipt::Envelope(1));
        for _ in 0..2 * MAX_NOTICES {
            queue.push(Event::MailboxDrained, Receipt::None);
        }
        queue.push(Event::Ended(End::Stopped), Receipt::None);
        let receipts: Vec<Receipt> = std::iter::from_fn(|| queue.pop()).map(|(_, receipt)| receipt).collect();
        assert_eq!(receipts.len(), MAX_NOTICES + 2);
        assert_eq!(receipts[0], Receipt::Envelope(1), "an envelope is kept");
        assert_eq!(queue.state().notices, 0);
    }
}
