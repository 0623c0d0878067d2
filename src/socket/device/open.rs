//! What a connection has while it is open, from the welcome to the drain.

use sealwire_protocol::{CloseCode, events::Event};
use std::time::Duration;

use super::{
    Handled,
    connection::Connection,
    key_notices::KeyNotices,
    requests::Requests,
    timers::{HEARTBEAT, Timers},
};
use crate::{
    domain::{KeysStatus, Timestamp, envelope::MailboxStatus},
    edge,
    socket::delivery::Delivery,
};

/// An open connection. Its methods take the [`Connection`] that it belongs to.
pub struct Open {
    /// The connection's place among those of the device.
    pub(super) epoch: i64,
    /// Whether the node is being stopped: nothing more is read.
    is_draining: bool,
    pub(super) requests: Requests,
    pub(super) delivery: Delivery,
    pub(super) keys: KeyNotices,
    pub(super) timers: Timers,
}

impl Open {
    /// The state before the welcome.
    pub fn new(
        connection: &Connection,
        epoch: i64,
        keys: &KeysStatus,
        mailbox: MailboxStatus,
        newest_mail: i64,
    ) -> Self {
        let mut delivery = Delivery::new(connection.node.outbox_bytes / 2, mailbox);
        delivery.note(newest_mail);
        Self {
            epoch,
            is_draining: false,
            requests: Requests::default(),
            delivery,
            keys: KeyNotices::new(keys),
            timers: Timers::new(connection),
        }
    }

    /// The connection's place among those of the device.
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Sends the welcome, and behind it what the client should know of its keys.
    pub fn welcome(
        &mut self,
        connection: &Connection,
        keys: KeysStatus,
        mailbox: MailboxStatus,
        now: Timestamp,
    ) -> Handled {
        let low: Vec<_> = keys.low_pools().collect();
        let (threshold, pool_version) = (keys.threshold, keys.pool_version);
        connection.node.metrics.connects.inc();
        connection.send_event(&edge::events::welcome(&connection.session, now, HEARTBEAT, keys, mailbox))?;
        for (kind, remaining) in low {
            connection.send_event(&Event::PrekeysLow { kind: kind.into(), remaining, threshold, pool_version })?;
        }
        self.send_rotation_notice(connection, now)
    }

    /// Sends the notice that the signed prekey expires, if it is due.
    pub fn send_rotation_notice(&mut self, connection: &Connection, now: Timestamp) -> Handled {
        match self.keys.take_rotation_notice(now) {
            Some(key) => {
                connection.send_event(&Event::SignedPrekeyExpiring { key_id: key.key_id, expires_at: key.expires_at })
            }
            None => Ok(()),
        }
    }

    /// Reads no more, asks the client to come back within `spread`, and closes once all requests have their replies.
    pub fn drain(&mut self, connection: &Connection, spread: Duration) -> Handled {
        if self.is_draining {
            return Ok(());
        }
        self.is_draining = true;
        let reconnect_in_ms = u64::try_from(connection.share_of(spread).as_millis()).unwrap_or(u64::MAX);
        connection.send_event(&Event::ServerDraining { reconnect_in_ms })?;
        connection.flow.gate.shut();
        self.close_if_drained()
    }

    /// Closes a draining connection that owes no reply.
    pub fn close_if_drained(&self) -> Handled {
        if self.is_draining && self.requests.is_empty() { Err(CloseCode::Draining) } else { Ok(()) }
    }
}
