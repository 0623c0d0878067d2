//! What time brings to an open connection: pings, the end of the session, a signed prekey that expires, silence.

use std::time::Duration;

use actix::{AsyncContext, Context};
use sealwire_protocol::CloseCode;
use tokio::time::Instant;

use super::{DeviceSocket, Handled, connection::Connection, open::Open, timers::HEARTBEAT};
use crate::domain::EndReason;

/// A connection from which nothing came in for this long is closed.
const IDLE: Duration = Duration::from_mins(1);
/// The longest that the timer is set for: what lies further ahead is looked at again then.
const LONGEST_TIMER: Duration = Duration::from_hours(24);
/// Time between two looks at mail whose ack is overdue.
const RESEND_LOOK: Duration = Duration::from_secs(1);

impl Open {
    /// Sets the timer to the next thing that time brings.
    pub fn set_timer(&mut self, connection: &Connection, ctx: &mut Context<DeviceSocket>) {
        let now = connection.node.service.now();
        let mut wait = LONGEST_TIMER.min(connection.session.expires_at.since(now));
        if let Some(at) = self.keys.rotation_notice_at() {
            wait = wait.min(at.since(now));
        }
        let instant = Instant::now();
        wait = wait.min(self.timers.next_ping.saturating_duration_since(instant));
        if let Some(at) = self.delivery.overdue_at() {
            // What cannot be sent again yet is not asked about each time.
            wait = wait.min(at.saturating_duration_since(instant).max(RESEND_LOOK));
        }
        // Past it, [`Self::tick`] has looked already and found that we are the reason for the silence.
        let alive_until = connection.wire.last_received() + IDLE;
        if alive_until > instant {
            wait = wait.min(alive_until - instant);
        }
        ctx.cancel_future(self.timers.handle);
        // Timers are coarse; a millisecond more saves a second look.
        self.timers.handle = ctx.run_later(wait + Duration::from_millis(1), |actor, ctx| {
            actor.when_open(ctx, |open, connection, ctx| open.tick(connection, ctx));
        });
    }

    fn tick(&mut self, connection: &Connection, ctx: &mut Context<DeviceSocket>) -> Handled {
        let now = connection.node.service.now();
        if connection.session.expires_at <= now {
            return Err(connection.end_session(EndReason::Expired));
        }
        self.send_rotation_notice(connection, now)?;
        let instant = Instant::now();
        if instant >= connection.wire.last_received() + IDLE {
            if !connection.flow.outbox.is_empty() || self.delivery.has_unacked() {
                // It was sent something and takes no notice.
                return Err(CloseCode::SlowConsumer);
            }
            if connection.flow.may_read() {
                return Err(CloseCode::Idle);
            }
            // It is we who stopped reading.
            self.timers.next_ping = instant + Duration::from_secs(1);
        }
        if instant >= self.timers.next_ping {
            self.timers.next_ping = instant + HEARTBEAT;
            connection.flow.outbox.ping();
        }
        self.resend_mail(connection, instant, ctx);
        self.set_timer(connection, ctx);
        Ok(())
    }
}
