//! Messages: accepted into mailboxes, read out of them, acknowledged.

use std::time::Duration;

use tokio::sync::oneshot;

use super::Service;
use crate::{
    domain::{
        Caller, DeviceId, MessageId, Refusal, UserId,
        envelope::{MailPage, MailPageRequest, MailboxSize, OutgoingEnvelope},
    },
    store::{AcceptedMessage, AckRequest, MailAnswer, MailRequest, SendRequest},
};

/// The places of a socket's requests of one kind, which take effect in the order in which they came.
#[derive(Default)]
pub struct Turns {
    last: Option<oneshot::Receiver<()>>,
}

/// The place of one request. Its turn is over when it is dropped, which must not be before it has come.
pub struct Turn {
    before: Option<oneshot::Receiver<()>>,
    _after: oneshot::Sender<()>,
}

impl Turns {
    /// The place behind all that were given out.
    pub fn take(&mut self) -> Turn {
        let (after, last) = oneshot::channel();
        Turn { before: self.last.replace(last), _after: after }
    }
}

impl Turn {
    /// Waits for the turn of the one before to be over.
    pub async fn ready(&mut self) {
        if let Some(before) = self.before.take() {
            // It is dropped, never sent.
            let _ = before.await;
        }
    }
}

/// A message to the devices of a user.
pub struct Message {
    /// The sending device's name for it.
    pub id: MessageId,
    /// Whose devices.
    pub to: UserId,
    /// Only for who is connected now.
    pub ephemeral: bool,
    /// How long it waits.
    pub ttl: Duration,
    /// One for each device.
    pub envelopes: Vec<OutgoingEnvelope>,
    /// Devices of the user that the sender cannot encrypt for.
    pub skipped: Vec<DeviceId>,
}

impl Service {
    /// Accepts a message: once this returns, it is stored. `epoch` names the connection that it came over; its turn has
    /// come.
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
        self.limits.send(caller.device, now)?;
        let Message { id, to, ephemeral, ttl, envelopes, skipped } = message;
        let request = SendRequest { caller, epoch, message: id, to, ephemeral, ttl, envelopes, skipped, now };
        let queued = self.mail.enqueue(MailRequest::Send(request))?;
        drop(turn);
        match queued.answer().await? {
            MailAnswer::Sent(accepted) => {
                if !accepted.duplicate {
                    self.metrics.sends.inc();
                }
                Ok(accepted)
            }
            MailAnswer::Acked(_) => Err(Refusal::Internal),
        }
    }

    /// Deletes envelopes that have arrived, and gives how many there were.
    ///
    /// # Errors
    /// `session_revoked`
    pub async fn ack(&self, caller: Caller, seqs: Vec<i64>) -> Result<u64, Refusal> {
        let request = AckRequest { caller, seqs, now: self.now() };
        match self.mail.submit(MailRequest::Ack(request)).await? {
            MailAnswer::Acked(count) => Ok(count),
            MailAnswer::Sent(_) => Err(Refusal::Internal),
        }
    }

    /// What waits in all mailboxes of the database together.
    ///
    /// # Errors
    /// `unavailable`
    pub async fn mailbox_backlog(&self) -> Result<MailboxSize, Refusal> {
        Ok(self.store.mailbox_backlog().await?)
    }

    /// Some envelopes of a device.
    ///
    /// # Errors
    /// `unavailable`
    pub async fn mail_page(&self, device: DeviceId, page: MailPageRequest) -> Result<MailPage, Refusal> {
        Ok(self.store.mail_page(device, page, self.now()).await?)
    }
}
