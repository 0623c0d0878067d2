//! Notices a connection that is dead although it is still open, such as after a network change. Does no I/O; time is a
//! parameter.

use std::time::{Duration, Instant};

/// Added to the server's heartbeat before the client pings.
const SLACK: Duration = Duration::from_secs(5);
/// How long an answer to a ping or a reply to a request may take while nothing else arrives.
const PATIENCE: Duration = Duration::from_secs(10);

/// What [`Liveness::check`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is to be done.
    Alive,
    /// Send a ping.
    Ping,
    /// The connection is dead.
    Dead,
}

/// Watches one connection.
#[derive(Clone, Debug)]
pub struct Liveness {
    heartbeat: Duration,
    /// When a ping is due if nothing arrives before.
    ping_at: Instant,
    /// When the connection is dead if nothing arrives before; set with a ping.
    dead_at: Option<Instant>,
}

impl Liveness {
    /// A connection that has just been opened, to a server that pings at this interval.
    #[must_use]
    pub fn new(heartbeat: Duration, now: Instant) -> Self {
        Self { heartbeat, ping_at: now + heartbeat + SLACK, dead_at: None }
    }

    /// Something has arrived.
    pub fn received(&mut self, now: Instant) {
        *self = Self::new(self.heartbeat, now);
    }

    /// A request was sent, so a reply is due.
    pub fn requested(&mut self, now: Instant) {
        self.ping_at = self.ping_at.min(now + PATIENCE);
    }

    /// Asks for a check at once, such as after a change of the network.
    pub fn doubt(&mut self, now: Instant) {
        self.ping_at = self.ping_at.min(now);
    }

    /// When [`Self::check`] has to be called.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.dead_at.unwrap_or(self.ping_at)
    }

    /// What is to be done now.
    pub fn check(&mut self, now: Instant) -> Verdict {
        match self.dead_at {
            Some(dead_at) if now >= dead_at => Verdict::Dead,
            None if now >= self.ping_at => {
                self.dead_at = Some(now + PATIENCE);
                Verdict::Ping
            }
            _ => Verdict::Alive,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_secs(25);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_silent_connection_is_pinged_and_then_dead() {
        let start = Instant::now();
        let mut liveness = Liveness::new(HEARTBEAT, start);
        assert_eq!(liveness.due(), start + 30 * SECOND);
        assert_eq!(liveness.check(start + 29 * SECOND), Verdict::Alive);
        assert_eq!(liveness.check(start + 30 * SECOND), Verdict::Ping);
        assert_eq!(liveness.due(), start + 40 * SECOND);
        assert_eq!(liveness.check(start + 31 * SECOND), Verdict::Alive, "one ping is enough");
        assert_eq!(liveness.check(start + 40 * SECOND), Verdict::Dead);
    }

    #[test]
    fn whatever_arrives_shows_that_it_is_alive() {
        let start = Instant::now();
        let mut liveness = Liveness::new(HEARTBEAT, start);
        assert_eq!(liveness.check(start + 30 * SECOND), Verdict::Ping);
        liveness.received(start + 31 * SECOND);
        assert_eq!(liveness.check(start + 40 * SECOND), Verdict::Alive);
        assert_eq!(liveness.due(), start + 61 * SECOND);
    }

    #[test]
    fn a_request_without_a_reply_is_noticed_earlier() {
        let start = Instant::now();
        let mut liveness = Liveness::new(HEARTBEAT, start);
        liveness.requested(start + SECOND);
        liveness.requested(start + 9 * SECOND);
        assert_eq!(liveness.check(start + 11 * SECOND), Verdict::Ping);
        assert_eq!(liveness.check(start + 21 * SECOND), Verdict::Dead);
    }

    #[test]
    fn a_doubt_pings_at_once() {
        let start = Instant::now();
        let mut liveness = Liveness::new(HEARTBEAT, start);
        liveness.doubt(start);
        assert_eq!(liveness.check(start), Verdict::Ping);
    }
}
