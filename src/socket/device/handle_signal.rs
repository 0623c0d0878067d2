//! Signals about an open connection's device: its sessions, its keys, its mail.

use actix::Context;
use sealwire_protocol::{CloseCode, events::Event};

use super::{DeviceSocket, Handled, connection::Connection, open::Open};
use crate::domain::{EndReason, Signal};

impl Open {
    /// Turns a signal into events or a close.
    pub fn handle_signal(
        &mut self,
        connection: &Connection,
        signal: Signal,
        ctx: &mut Context<DeviceSocket>,
    ) -> Handled {
        match signal {
            Signal::Mail { seq, envelope } => self.handle_mail(connection, seq, envelope, ctx),
            Signal::Ephemeral(envelope) => self.handle_ephemeral(connection, envelope, ctx),
            Signal::PrekeysLow { kind, remaining, pool_version } => {
                let threshold = connection.node.service.low_watermark();
                if !self.keys.take_low_pool(kind, remaining, threshold, pool_version) {
                    return Ok(());
                }
                connection.send_event(&Event::PrekeysLow { kind: kind.into(), remaining, threshold, pool_version })
            }
            Signal::DevicesChanged { added, removed } => {
                connection.send_event(&Event::DevicesChanged { added, removed })
            }
            Signal::LoggedOut { sessions } => {
                if let Some(deferred) = &mut self.requests.renewal {
                    // It is being decided which session this connection belongs to.
                    deferred.push(Signal::LoggedOut { sessions });
                    return Ok(());
                }
                if !sessions.contains(&connection.session.caller.session) {
                    return Ok(());
                }
                let is_over = connection.session.expires_at <= connection.node.service.now();
                Err(connection.end_session(if is_over { EndReason::Expired } else { EndReason::Logout }))
            }
            Signal::DeviceRevoked => Err(connection.end_session(EndReason::DeviceRevoked)),
            Signal::AccountDeleted => Err(connection.end_session(EndReason::AccountDeleted)),
            Signal::Displaced { epoch } if epoch > self.epoch => Err(CloseCode::Displaced),
            Signal::Displaced { .. } => Ok(()),
        }
    }
}
