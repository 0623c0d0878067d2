//! How a server stops: soft at the first signal, within a set time, and at once at a second.
//!
//! Soft means, in this order: the node is not ready and takes no new sockets; every socket finishes the requests it has
//! begun, sends `server.draining` and closes; the listener closes, and ordinary requests finish; work on the store and
//! mails on their way finish. Each step has a share of the time. A socket whose requests hang is closed without their
//! replies while there is still time to send it the close.

mod drain_time;
mod signals;

use std::{sync::Arc, time::Duration};

use actix_server::ServerHandle;
use tokio::time::{sleep, timeout};

pub use self::{drain_time::DrainTime, signals::Signals};
use crate::{
    socket::{Budget, Hub},
    tasks::Work,
};

/// The time over which a stopping node's clients should come back.
const SPREAD: Duration = Duration::from_secs(5);

/// Stops a running server from elsewhere.
#[derive(Clone)]
pub struct Stopper {
    /// The clients' listener with its workers.
    pub server: ServerHandle,
    /// The operator's listener, which ends after everything else.
    pub admin: ServerHandle,
    /// The connected devices.
    pub hub: Arc<Hub>,
    /// Upgraded connections, including those that are closing.
    pub connections: Budget,
    /// The time that stopping may take.
    pub time: DrainTime,
}

impl Stopper {
    /// Sends all clients away, closes their sockets, and stops the listener once they are gone.
    pub async fn stop(&self) {
        self.hub.start_draining();
        tracing::info!(sockets = self.connections.in_use(), "stopping");
        let sockets = self.time.sockets();
        if timeout(sockets, self.close_sockets(sockets)).await.is_err() {
            tracing::warn!(sockets = self.connections.in_use(), "some sockets did not close in time");
        }
        self.server.stop(true).await;
    }

    /// Lets sockets finish what they have begun, and closes those that do not.
    async fn close_sockets(&self, share: Duration) {
        let answered = async {
            self.hub.drain(SPREAD, share / 4).await;
            self.sockets_gone().await;
        };
        if timeout(self.time.replies(), answered).await.is_ok() {
            return;
        }
        let sockets = self.hub.connected();
        if sockets > 0 {
            tracing::warn!(sockets, "some sockets are closed without their replies");
            self.hub.cut_off();
        }
        self.sockets_gone().await;
    }

    /// Waits until no socket is left.
    async fn sockets_gone(&self) {
        while self.connections.in_use() > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for the work that is still under way, for its share of the time.
    pub(crate) async fn finish_work(&self, work: &Work) {
        if timeout(self.time.work(), work.finished()).await.is_err() {
            tracing::warn!(tasks = work.unfinished(), "some requests or mails did not finish in time");
        }
    }
}
