//! What time brings to a connection: pings, the end of the session, a signed prekey that expires, silence.

use std::time::Duration;

use actix::{AsyncContext, Context};
use sealwire_protocol::{CloseCode, events::Event};
use tokio::time::Instant;

use super::{DeviceSocket, HEARTBEAT};
use crate::domain::{EndReason, Timestamp, bundle::SignedPrekeyStatus};

/// A socket from which nothing came in for this long is closed.
const IDLE: Duration = Duration::from_mins(1);
/// How long before its expiry the owner is told to rotate a signed prekey.
const ROTATION_NOTICE: Duration = Duration::from_hours(72);
/// The longest that a timer is set for: what lies further ahead is looked at again then.
const LONGEST_TIMER: Duration = Duration::from_hours(24);
/// Time between two looks at mail whose ack is overdue.
const RESEND_LOOK: Duration = Duration::from_secs(1);

impl DeviceSocket {
    pub(super) fn tell_rotation(&mut self, now: Timestamp, ctx: &mut Context<Self>) {
        if let Some(SignedPrekeyStatus { key_id, expires_at }) = self.signed_prekey
            && !self.rotation_told
            && expires_at.before(ROTATION_NOTICE) <= now
        {
            self.rotation_told = true;
            self.event(&Event::SignedPrekeyExpiring { key_id, expires_at }, ctx);
        }
    }

    /// Sets the one timer to the next thing that time brings.
    pub(super) fn set_timer(&mut self, ctx: &mut Context<Self>) {
        let now = self.node.service.now();
        let mut wait = LONGEST_TIMER.min(self.session.expires_at.since(now));
        if let Some(key) = self.signed_prekey.filter(|_| !self.rotation_told) {
            wait = wait.min(key.expires_at.before(ROTATION_NOTICE).since(now));
        }
        let instant = Instant::now();
        wait = wait.min(self.next_ping.saturating_duration_since(instant));
        if let Some(at) = self.delivery.overdue_at() {
            // What cannot be sent again yet is not asked about at every turn.
            wait = wait.min(at.saturating_duration_since(instant).max(RESEND_LOOK));
        }
        // Past it, [`Self::tick`] has looked already and found that the silence is of our making.
        let alive_until = self.wire.last_received() + IDLE;
        if alive_until > instant {
            wait = wait.min(alive_until - instant);
        }
        ctx.cancel_future(self.timer);
        // Timers are coarse; a millisecond more saves a second look.
        self.timer = ctx.run_later(wait + Duration::from_millis(1), Self::tick);
    }

    pub(super) fn tick(&mut self, ctx: &mut Context<Self>) {
        let now = self.node.service.now();
        if self.session.expires_at <= now {
            return self.end(EndReason::Expired, ctx);
        }
        self.tell_rotation(now, ctx);
        let instant = Instant::now();
        if instant >= self.wire.last_received() + IDLE {
            if !self.outbox.is_empty() || self.delivery.is_under_way() {
                // It was sent something and takes no notice.
                return self.close(CloseCode::SlowConsumer, ctx);
            }
            if self.outbox.may_read() {
                return self.close(CloseCode::Idle, ctx);
            }
            // It is we who stopped reading.
            self.next_ping = instant + Duration::from_secs(1);
        }
        if instant >= self.next_ping {
            self.next_ping = instant + HEARTBEAT;
            self.outbox.ping();
        }
        self.resend_mail(instant, ctx);
        self.set_timer(ctx);
    }
}
