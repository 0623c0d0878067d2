//! Handles the signals for an open connection: about its session, its device, its keys and its mail.

use actix::Context;
use sealwire_protocol::{CloseCode, events::Event};

use super::{DeviceSocket, HandlerResult, connection::DeviceConnection, open::OpenState};
use crate::{
    domain::{EndReason, Signal},
    edge,
};

impl OpenState {
    /// Handles a signal by sending events, delivering mail or closing the connection.
    pub fn handle_signal(
        &mut self,
        connection: &DeviceConnection,
        signal: Signal,
        ctx: &mut Context<DeviceSocket>,
    ) -> HandlerResult {
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
            Signal::SessionsChanged { device, opened, ended } => {
                connection.send_event(&Event::SessionsChanged { device_id: device, opened, ended })
            }
            Signal::LoggedOut { sessions } => {
                // A renewal decides which session this connection belongs to, so the signal waits for it.
                let signal = self.requests.hold_signal(Signal::LoggedOut { sessions });
                let Some(Signal::LoggedOut { sessions }) = signal else { return Ok(()) };
                if !sessions.contains(&connection.session.caller.session) {
                    return Ok(());
                }
                let is_expired = connection.session.expires_at <= connection.node.service.now();
                Err(connection.end_session(if is_expired { EndReason::Expired } else { EndReason::Logout }))
            }
            Signal::ApprovalRequested(request) => connection.send_event(&edge::events::approval_requested(*request)),
            Signal::DeviceRevoked => Err(connection.end_session(EndReason::DeviceRevoked)),
            Signal::AccountDeleted => Err(connection.end_session(EndReason::AccountDeleted)),
            Signal::Displaced { epoch } if epoch > self.epoch => Err(CloseCode::Displaced.into()),
            Signal::Displaced { .. } => Ok(()),
        }
    }
}
