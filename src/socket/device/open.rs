//! The state of an open connection, its welcome and its drain.

use sealwire_protocol::{CloseCode, events::Event};
use std::time::Duration;

use super::{
    HandlerResult,
    connection::DeviceConnection,
    key_notices::KeyNotices,
    requests::Requests,
    timer::{ConnectionTimer, HEARTBEAT},
};
use crate::{
    domain::{KeysStatus, Timestamp, envelope::MailboxStatus},
    edge,
    service::PushStatus,
    socket::delivery::Delivery,
};

/// The part of a connection that exists only while it is open. The methods take the [`DeviceConnection`] to which it
/// belongs.
pub struct OpenState {
    /// The connection's epoch. Of two connections of a device, the one with the higher epoch stays.
    pub(super) epoch: i64,
    /// Whether the node is stopping. Requests are no longer read then.
    is_draining: bool,
    /// The unanswered requests.
    pub(super) requests: Requests,
    /// Decides which mail is sent, and when.
    pub(super) delivery: Delivery,
    /// What the client knows about its keys.
    pub(super) keys: KeyNotices,
    /// The timer of all deadlines.
    pub(super) timer: ConnectionTimer,
}

impl OpenState {
    /// The state before the welcome.
    pub fn new(
        connection: &DeviceConnection,
        epoch: i64,
        keys: &KeysStatus,
        mailbox: MailboxStatus,
        newest_mail: i64,
    ) -> Self {
        let mut delivery = Delivery::new(connection.node.outbox_bytes / 2, mailbox);
        delivery.note_stored(newest_mail);
        Self {
            epoch,
            is_draining: false,
            requests: Requests::default(),
            delivery,
            keys: KeyNotices::new(keys),
            timer: ConnectionTimer::new(connection),
        }
    }

    /// The connection's epoch.
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Sends the welcome, followed by the notices about the device's keys that are due.
    pub fn welcome(
        &mut self,
        connection: &DeviceConnection,
        keys: KeysStatus,
        mailbox: MailboxStatus,
        push: PushStatus,
        now: Timestamp,
    ) -> HandlerResult {
        let low: Vec<_> = keys.low_pools().collect();
        let (threshold, pool_version) = (keys.threshold, keys.pool_version);
        connection.node.metrics.connects.inc();
        connection.send_event(&edge::events::welcome(&connection.session, now, HEARTBEAT, keys, mailbox, push))?;
        for (kind, remaining) in low {
            connection.send_event(&Event::PrekeysLow { kind: kind.into(), remaining, threshold, pool_version })?;
        }
        self.send_rotation_notice(connection, now)
    }

    /// Sends the notice that the signed prekey expires soon, if it is due.
    pub fn send_rotation_notice(&mut self, connection: &DeviceConnection, now: Timestamp) -> HandlerResult {
        match self.keys.take_rotation_notice(now) {
            Some(key) => {
                connection.send_event(&Event::SignedPrekeyExpiring { key_id: key.key_id, expires_at: key.expires_at })
            }
            None => Ok(()),
        }
    }

    /// Stops reading, asks the client to reconnect within `spread`, and closes once all requests are answered.
    pub fn drain(&mut self, connection: &DeviceConnection, spread: Duration) -> HandlerResult {
        if self.is_draining {
            return Ok(());
        }
        self.is_draining = true;
        let reconnect_in_ms = u64::try_from(connection.jitter_within(spread).as_millis()).unwrap_or(u64::MAX);
        connection.send_event(&Event::ServerDraining { reconnect_in_ms })?;
        connection.flow.gate.shut();
        self.close_if_drained()
    }

    /// Closes a draining connection if all its requests are answered.
    pub fn close_if_drained(&self) -> HandlerResult {
        if self.is_draining && self.requests.is_empty() { Err(CloseCode::Draining.into()) } else { Ok(()) }
    }
}
