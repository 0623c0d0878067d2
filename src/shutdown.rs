//! How a server stops: soft at the first signal, within a set time, and at once at a second.
//!
//! Soft means, in this order: not ready and no new sockets; every socket finishes the requests it has begun, says
//! `server.draining` and closes; the listener closes and ordinary requests finish; what is still at work on the store
//! or on its way to the mail server finishes. Each step has a share of the time, so that one that hangs does not take the
//! others'. A socket whose requests hang is closed without their replies while there is time to tell it so.

use std::{io, sync::Arc, time::Duration};

use actix_server::ServerHandle;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{sleep, timeout},
};

use crate::{
    socket::{Budget, Hub},
    tasks::Work,
};

/// The time over which a stopping node's clients should come back.
const SPREAD: Duration = Duration::from_secs(5);
/// Signals within this time after the first are the same order: supervisors that signal a process and its group, such as
/// `timeout`, deliver one twice, and a terminal that closes adds its own.
const ECHO: Duration = Duration::from_millis(100);

/// The time that stopping may take, and how it is shared out.
#[derive(Clone, Copy, Debug)]
pub struct DrainTime(u64);

impl DrainTime {
    /// So many seconds, three at least.
    #[must_use]
    pub fn from_secs(seconds: u64) -> Self {
        Self(seconds.max(3))
    }

    /// For ordinary requests, in seconds: a quarter.
    #[must_use]
    pub fn http_secs(self) -> u64 {
        (self.0 / 4).max(1)
    }

    /// For what is at work behind both: an eighth.
    #[must_use]
    pub fn work(self) -> Duration {
        Duration::from_secs(self.0) / 8
    }

    /// For sockets: the rest, less a moment to spare.
    #[must_use]
    pub fn sockets(self) -> Duration {
        let others = Duration::from_secs(self.http_secs()) + self.work() + Duration::from_millis(500);
        Duration::from_secs(self.0).saturating_sub(others)
    }

    /// For sockets to get their replies; in the rest of [`Self::sockets`] they are closed without.
    #[must_use]
    pub fn replies(self) -> Duration {
        self.sockets() * 3 / 4
    }
}

/// Stops a running server from elsewhere.
#[derive(Clone)]
pub struct Stopper {
    /// The listener with its workers.
    pub server: ServerHandle,
    /// The operator's listener, which ends after everything else.
    pub admin: ServerHandle,
    /// Who is connected.
    pub hub: Arc<Hub>,
    /// Upgraded sockets, those that are closing included.
    pub connections: Budget,
    /// How long it may take.
    pub time: DrainTime,
}

impl Stopper {
    /// Tells all clients to come back later, closes their sockets, and stops the listener once they are gone.
    pub async fn stop(&self) {
        self.hub.start_draining();
        tracing::info!(sockets = self.connections.in_use(), "stopping");
        let sockets = self.time.sockets();
        let answered = async {
            self.hub.drain(SPREAD, sockets / 4).await;
            self.gone().await;
        };
        let closed = async {
            if timeout(self.time.replies(), answered).await.is_err() {
                let sockets = self.hub.connected();
                if sockets > 0 {
                    tracing::warn!(sockets, "some sockets are closed without their replies");
                    self.hub.cut_off();
                }
                self.gone().await;
            }
        };
        if timeout(sockets, closed).await.is_err() {
            tracing::warn!(sockets = self.connections.in_use(), "some sockets did not close in time");
        }
        self.server.stop(true).await;
    }

    /// Waits until no socket is left.
    async fn gone(&self) {
        while self.connections.in_use() > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for what is still at work.
    pub(crate) async fn settle(&self, work: &Work) {
        if timeout(self.time.work(), work.settled()).await.is_err() {
            tracing::warn!(tasks = work.unfinished(), "some requests or mails did not finish in time");
        }
    }
}

/// SIGTERM and SIGINT (Ctrl-C).
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over from the operating system. Needs a Tokio runtime.
    ///
    /// # Errors
    /// Where it does not let go of them.
    pub fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one that is meant as a second, not as an echo of the first.
    pub async fn second(&mut self) {
        let echoes = sleep(ECHO);
        tokio::pin!(echoes);
        loop {
            tokio::select! {
                // What came before the end of that time is an echo, however late it is looked at.
                biased;
                () = self.next() => {}
                () = &mut echoes => return self.next().await,
            }
        }
    }

    /// Waits for the next of either.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_never_come_to_more_than_the_whole() {
        for seconds in (0..100).chain([3600]) {
            let time = DrainTime::from_secs(seconds);
            let shares = time.sockets() + Duration::from_secs(time.http_secs()) + time.work();
            assert!(shares < Duration::from_secs(seconds.max(3)), "{seconds}");
            assert!(time.sockets() > time.work() && time.work() > Duration::ZERO, "{seconds}");
            assert!(time.replies() + Duration::from_millis(200) < time.sockets(), "{seconds}");
        }
    }
}
