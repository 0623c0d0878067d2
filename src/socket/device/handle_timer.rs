//! Handles the deadlines of an open connection: pings, the end of the session, the notice that a signed prekey expires,
//! acks that are overdue, and the idle timeout.

use std::time::Duration;

use actix::{AsyncContext, Context};
use sealwire_protocol::CloseCode;
use tokio::time::Instant;

use super::{DeviceSocket, HandlerResult, connection::DeviceConnection, open::OpenState, timer::HEARTBEAT};
use crate::domain::EndReason;

/// A connection from which nothing is received for this long is closed, unless the server has stopped reading it for another
/// reason than its request rate.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);
/// Maximum time for which the timer is set. For a later deadline, it is then set again.
const LONGEST_TIMER: Duration = Duration::from_hours(24);
/// Minimum time between two checks for mail whose ack is overdue.
const MIN_RESEND_WAIT: Duration = Duration::from_secs(1);

impl OpenState {
    /// Sets the timer to the next deadline.
    pub fn set_timer(&mut self, connection: &DeviceConnection, ctx: &mut Context<DeviceSocket>) {
        let now = connection.node.service.now();
        let mut wait = LONGEST_TIMER.min(connection.session.expires_at.since(now));
        if let Some(at) = self.keys.rotation_notice_at() {
            wait = wait.min(at.since(now));
        }
        let instant = Instant::now();
        wait = wait.min(self.timer.next_ping.saturating_duration_since(instant));
        if let Some(at) = self.delivery.overdue_at() {
            // Overdue mail cannot always be sent again at once; the minimum keeps the timer from spinning.
            wait = wait.min(at.saturating_duration_since(instant).max(MIN_RESEND_WAIT));
        }
        // If this time is past, `tick` has found that the connection is silent because we stopped reading.
        let alive_until = connection.wire.last_received() + IDLE_TIMEOUT;
        if alive_until > instant {
            wait = wait.min(alive_until - instant);
        }
        ctx.cancel_future(self.timer.handle);
        // Timers are coarse. Another millisecond avoids waking up just before the deadline.
        self.timer.handle = ctx.run_later(wait + Duration::from_millis(1), |actor, ctx| {
            actor.when_open(ctx, |open, connection, ctx| open.tick(connection, ctx));
        });
    }

    /// Handles the deadlines that have passed, and sets the timer again.
    fn tick(&mut self, connection: &DeviceConnection, ctx: &mut Context<DeviceSocket>) -> HandlerResult {
        let now = connection.node.service.now();
        if connection.session.expires_at <= now {
            return Err(connection.end_session(EndReason::Expired));
        }
        self.send_rotation_notice(connection, now)?;
        let instant = Instant::now();
        if instant >= connection.wire.last_received() + IDLE_TIMEOUT {
            if !connection.flow.outbox.is_empty() || self.delivery.has_unacked() {
                // The client neither reads nor acks what it was sent.
                return Err(CloseCode::SlowConsumer.into());
            }
            if connection.flow.may_read() {
                return Err(CloseCode::Idle.into());
            }
            // Silent because we stopped reading, so it stays open. Ping soon.
            self.timer.next_ping = instant + Duration::from_secs(1);
        }
        if instant >= self.timer.next_ping {
            self.timer.next_ping = instant + HEARTBEAT;
            connection.flow.outbox.ping();
        }
        self.resend_mail(connection, instant, ctx);
        self.set_timer(connection, ctx);
        Ok(())
    }
}
