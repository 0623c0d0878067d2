//! Stops the server: gracefully within a time limit at the first signal, immediately at the second.
//!
//! A graceful stop has these steps. Each of the last three has its share of the time limit ([`DrainTime`]):
//!
//! 1. The node reports that it is not ready, and refuses new sockets.
//! 2. Every socket sends `server.draining`, answers its requests in flight and closes. If requests hang, their sockets
//!    are closed without the replies, early enough that the Close frame is still sent.
//! 3. The listener for clients closes, and HTTP requests finish.
//! 4. Work on the store finishes, and queued mails are sent.

mod drain_time;
mod signals;

use std::{sync::Arc, time::Duration};

use actix_server::ServerHandle;
use tokio::time::{sleep, timeout};

pub use self::{
    drain_time::DrainTime,
    signals::{Signals, StartSignals},
};
use crate::{
    socket::{Hub, Seats},
    tasks::Work,
};

/// The time over which the clients of a stopping node spread their reconnects.
const RECONNECT_SPREAD: Duration = Duration::from_secs(5);

/// A handle that stops a running server.
#[derive(Clone)]
pub struct Stopper {
    /// Stops the listener for clients.
    pub server: ServerHandle,
    /// Stops the operator's listener, which stops last.
    pub admin: ServerHandle,
    /// The registry of the connected devices.
    pub hub: Arc<Hub>,
    /// Counts the WebSocket connections, including closing ones.
    pub connections: Seats,
    /// The time limit for stopping.
    pub time: DrainTime,
}

impl Stopper {
    /// Closes all sockets, then stops the clients' listener: steps 1 to 3.
    pub async fn stop(&self) {
        self.hub.start_draining();
        tracing::info!(sockets = self.connections.in_use(), "stopping");
        let sockets = self.time.sockets();
        if timeout(sockets, self.close_sockets(sockets)).await.is_err() {
            tracing::warn!(sockets = self.connections.in_use(), "some sockets did not close in time");
        }
        self.server.stop(true).await;
    }

    /// Drains all sockets within their `share` of the time. Closes those that have not answered their requests in time.
    async fn close_sockets(&self, share: Duration) {
        let drained = async {
            self.hub.drain(RECONNECT_SPREAD, share / 4).await;
            self.wait_until_closed().await;
        };
        if timeout(self.time.replies(), drained).await.is_ok() {
            return;
        }
        let sockets = self.hub.connected();
        if sockets > 0 {
            tracing::warn!(sockets, "some sockets are closed without their replies");
            self.hub.cut_off();
        }
        self.wait_until_closed().await;
    }

    /// Waits until all sockets have closed.
    async fn wait_until_closed(&self) {
        while self.connections.in_use() > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for unfinished work, at most for its share of the time: step 4.
    pub(crate) async fn finish_work(&self, work: &Work) {
        if timeout(self.time.work(), work.finished()).await.is_err() {
            tracing::warn!(tasks = work.unfinished(), "some requests or mails did not finish in time");
        }
    }
}
