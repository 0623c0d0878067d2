//! Reading mailboxes.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    domain::{
        DeviceId, Envelope, MessageId, Timestamp, UserId,
        envelope::{MailPage, MailPageRequest, MailboxSize},
    },
    store::{Store, StoreError, rows, sql::mailbox as sql},
};

impl Store {
    /// The number and size of all stored envelopes. Reads every mailbox row, so call it rarely.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn mailbox_backlog(&self) -> Result<MailboxSize, StoreError> {
        let (count, bytes): (i64, i64) = self.read().await?.query(sql::BACKLOG).fetch_one().await?;
        Ok(super::mailbox_size(count, bytes))
    }

    /// A page of a device's unexpired envelopes, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn mail_page(
        &self,
        device: DeviceId,
        page: MailPageRequest,
        now: Timestamp,
    ) -> Result<MailPage, StoreError> {
        type EnvelopeRow = (i64, Uuid, Uuid, Uuid, i32, Vec<u8>, DateTime<Utc>);
        let bytes = i64::try_from(page.bytes).unwrap_or(i64::MAX);
        let found: Vec<EnvelopeRow> = self
            .read()
            .await?
            .query(sql::PAGE)
            .bind(device.0)
            .bind(page.after)
            .bind(page.through)
            .bind(now.to_utc())
            .bind(i64::from(page.envelopes))
            .bind(bytes)
            .fetch_all()
            .await?;
        let total: usize = found.iter().map(|row| row.5.len()).sum();
        let complete = found.len() < page.envelopes as usize && total < page.bytes;
        let envelope = |(seq, message, user, from, kind, content, accepted_at): EnvelopeRow| {
            let envelope = Envelope {
                message: MessageId(message),
                from_user: UserId(user),
                from_device: DeviceId(from),
                kind: u8::try_from(kind).unwrap_or_default(),
                content: content.into(),
                accepted_at: rows::time(accepted_at),
            };
            (seq, Arc::new(envelope))
        };
        Ok(MailPage { envelopes: found.into_iter().map(envelope).collect(), complete })
    }
}
