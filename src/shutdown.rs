//! Stops the server: gracefully and within a set time at the first signal, immediately at the second.
//!
//! A graceful stop has these steps, each with a share of the time:
//!
//! 1. The node reports that it is not ready, and refuses new sockets.
//! 2. Every socket finishes its requests in flight, sends `server.draining` and closes. Sockets with requests that hang are
//!    closed without the replies, early enough to send the close.
//! 3. The listener closes, and HTTP requests finish.
//! 4. Work on the store and unsent mails finish.

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

/// The interval over which the clients of a stopping node spread their reconnects.
const RECONNECT_SPREAD: Duration = Duration::from_secs(5);

/// A handle that stops a running server.
#[derive(Clone)]
pub struct Stopper {
    /// The listener for clients.
    pub server: ServerHandle,
    /// The operator's listener, which stops last.
    pub admin: ServerHandle,
    /// The connected devices.
    pub hub: Arc<Hub>,
    /// WebSocket connections, including closing ones.
    pub connections: Budget,
    /// The time limit for stopping.
    pub time: DrainTime,
}

impl Stopper {
    /// Closes all sockets, then stops the clients' listener.
    pub async fn stop(&self) {
        self.hub.start_draining();
        tracing::info!(sockets = self.connections.in_use(), "stopping");
        let sockets = self.time.sockets();
        if timeout(sockets, self.close_sockets(sockets)).await.is_err() {
            tracing::warn!(sockets = self.connections.in_use(), "some sockets did not close in time");
        }
        self.server.stop(true).await;
    }

    /// Lets sockets finish their requests and close, and cuts off those that do not in time.
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

    /// Waits for unfinished work, for at most its share of the time.
    pub(crate) async fn finish_work(&self, work: &Work) {
        if timeout(self.time.work(), work.finished()).await.is_err() {
            tracing::warn!(tasks = work.unfinished(), "some requests or mails did not finish in time");
        }
    }
}
