//! Messages: storing them in mailboxes, reading mailboxes, and acknowledging.

use std::time::Duration;

use tokio::sync::oneshot;

use super::Service;
use crate::{
    domain::{
        AccessKey, Caller, DeviceId, MessageId, Refusal, UserId,
        envelope::{MailPage, MailPageRequest, MailboxSize, OutgoingEnvelope},
    },
    store::{AcceptedMessage, AckRequest, MailAnswer, MailRequest, PendingAnswer, SendRequest, StoreError},
};

/// Lets the requests of one kind on a socket take effect in the order received, although they run concurrently.
#[derive(Default)]
pub struct FifoGate {
    /// Resolves when the newest turn is dropped.
    last: Option<oneshot::Receiver<()>>,
}

/// The turn of one request. Dropping it lets the next request proceed, so wait for [`Self::ready`] first.
pub struct Turn {
    previous: Option<oneshot::Receiver<()>>,
    /// Dropped with the turn, which releases the next one.
    _done: oneshot::Sender<()>,
}

impl FifoGate {
    /// Returns a turn that comes after all earlier ones.
    pub fn take(&mut self) -> Turn {
        let (done, last) = oneshot::channel();
        Turn { previous: self.last.replace(last), _done: done }
    }
}

impl Turn {
    /// Waits until the previous turn is dropped.
    pub async fn ready(&mut self) {
        if let Some(previous) = self.previous.take() {
            // Always an error: the sender is dropped without sending.
            let _ = previous.await;
        }
    }
}

/// A message to the devices of a user.
pub struct Message {
    /// Chosen by the sending device; a repeat under the same id is stored once.
    pub id: MessageId,
    /// The recipient.
    pub to: UserId,
    /// Whether it is only for devices that are connected now; such a message is not stored.
    pub ephemeral: bool,
    /// Whether devices that do not ack it are woken.
    pub is_urgent: bool,
    /// How long it stays in the mailboxes of its devices.
    pub ttl: Duration,
    /// One for each device of the recipient.
    pub envelopes: Vec<OutgoingEnvelope>,
    /// Devices of the user that the sender cannot encrypt for.
    pub skipped: Vec<DeviceId>,
    /// The access key that the sender shows, if it has the form of one.
    pub access: Option<AccessKey>,
}

impl Service {
    /// Accepts a message. When this returns, the message is stored, unless it is ephemeral. `epoch` is that of the
    /// sending connection; `turn` must be ready, and is dropped as soon as the message is queued. May be called on any runtime.
    ///
    /// # Errors
    /// `session_revoked`, `rate_limited`, `not_found`, `no_devices`, `devices_mismatch`, `id_conflict`, `mailbox_full`
    pub async fn send(
        &self,
        caller: Caller,
        epoch: i64,
        turn: Turn,
        message: Message,
    ) -> Result<AcceptedMessage, Refusal> {
        let now = self.now();
        self.limits.send(&caller, message.to, now)?;
        let Message { id, to, ephemeral, is_urgent, ttl, envelopes, skipped, access } = message;
        let count = envelopes.len() as u64;
        let request =
            SendRequest { caller, epoch, message: id, to, ephemeral, is_urgent, ttl, envelopes, skipped, access, now };
        let queued = self.mail.enqueue(MailRequest::Send(request))?;
        drop(turn);
        match answer(queued).await? {
            MailAnswer::Sent(accepted) => {
                if !accepted.duplicate {
                    self.metrics.sends.inc();
                    self.metrics.envelopes.add(count);
                }
                Ok(accepted)
            }
            MailAnswer::Acked(_) | MailAnswer::Deferred(_) => Err(Refusal::Internal),
        }
    }

    /// Deletes acknowledged envelopes, and returns how many of them the mailbox still held. May be called on any runtime.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn ack(&self, caller: Caller, seqs: Vec<i64>) -> Result<u64, Refusal> {
        let request = AckRequest { caller, seqs, now: self.now() };
        let queued = self.mail.enqueue(MailRequest::Ack(request))?;
        match answer(queued).await? {
            MailAnswer::Acked(count) => Ok(count),
            MailAnswer::Sent(_) | MailAnswer::Deferred(_) => Err(Refusal::Internal),
        }
    }

    /// Returns the number and bytes of the envelopes in all mailboxes of the database.
    ///
    /// # Errors
    /// `unavailable`
    pub async fn mailbox_backlog(&self) -> Result<MailboxSize, Refusal> {
        Ok(self.store.mailbox_backlog().await?)
    }

    /// Returns a page of a device's mailbox.
    ///
    /// # Errors
    /// `unavailable`
    pub async fn mail_page(&self, device: DeviceId, page: MailPageRequest) -> Result<MailPage, Refusal> {
        Ok(self.store.mail_page(device, page, self.now()).await?)
    }
}

/// Waits for the final answer to a request.
async fn answer(queued: PendingAnswer<MailAnswer>) -> Result<MailAnswer, StoreError> {
    match queued.answer().await? {
        MailAnswer::Deferred(pending) => pending.answer().await,
        answer => Ok(answer),
    }
}
