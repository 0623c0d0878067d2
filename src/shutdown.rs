//! How a server stops: soft at the first signal, within a set time, and at once at the second.
//!
//! Soft means, in this order: not ready and no new sockets; every socket finishes the requests it has begun, says
//! `server.draining` and closes; the listener closes and ordinary requests finish; what is still at work on the store
//! or in the mail queue finishes. Each step has a share of the time, so that one that hangs does not take the others'.

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
}

/// Stops a running server from elsewhere.
#[derive(Clone)]
pub struct Stopper {
    /// The listener with its workers.
    pub server: ServerHandle,
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
        let gone = async {
            self.hub.drain(SPREAD, sockets / 4).await;
            while self.connections.in_use() > 0 {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(sockets, gone).await.is_err() {
            tracing::warn!(sockets = self.connections.in_use(), "some sockets did not close in time");
        }
        self.server.stop(true).await;
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
        }
    }
}
