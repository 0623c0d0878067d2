//! What a device is told by others: of its sessions, its keys, its mail.

use actix::{Context, Handler};
use sealwire_protocol::{CloseCode, events::Event};

use super::{DeviceSocket, Told};
use crate::domain::{EndReason, KeyKind, Signal, bundle::depth};

impl DeviceSocket {
    pub(super) fn heed(&mut self, signal: Signal, ctx: &mut Context<Self>) {
        if self.closing {
            return;
        }
        let Some(epoch) = self.epoch else {
            match signal {
                // The mailbox is read after the welcome, up to here at least.
                Signal::Mail { seq, .. } => self.delivery.note(seq),
                // The device is not connected yet.
                Signal::Ephemeral(_) => {}
                signal => self.early.push(signal),
            }
            return;
        };
        match signal {
            Signal::Mail { seq, envelope } => self.mail_arrived(seq, envelope, ctx),
            Signal::Ephemeral(envelope) => self.ephemeral_arrived(envelope, ctx),
            Signal::PrekeysLow { kind, remaining, pool_version } => {
                let threshold = self.node.service.low_watermark();
                let heard = (pool_version, depth(remaining, threshold));
                let known = &mut self.known_depth[usize::from(kind == KeyKind::PqOneTime)];
                if heard <= *known {
                    return;
                }
                *known = heard;
                self.event(&Event::PrekeysLow { kind: kind.into(), remaining, threshold, pool_version }, ctx);
            }
            Signal::DevicesChanged { added, removed } => {
                self.event(&Event::DevicesChanged { added, removed }, ctx);
            }
            // Which session this socket belongs to is being decided.
            Signal::LoggedOut { .. } if self.renewing => self.early.push(signal),
            Signal::LoggedOut { sessions } if sessions.contains(&self.session.caller.session) => {
                let expired = self.session.expires_at <= self.node.service.now();
                self.end(if expired { EndReason::Expired } else { EndReason::Logout }, ctx);
            }
            Signal::DeviceRevoked => self.end(EndReason::DeviceRevoked, ctx),
            Signal::AccountDeleted => self.end(EndReason::AccountDeleted, ctx),
            Signal::Displaced { epoch: newer } if newer > epoch => self.close(CloseCode::Displaced, ctx),
            Signal::LoggedOut { .. } | Signal::Displaced { .. } => {}
        }
    }
}

impl Handler<Told> for DeviceSocket {
    type Result = ();

    fn handle(&mut self, Told(signal): Told, ctx: &mut Context<Self>) {
        self.heed(signal, ctx);
    }
}
