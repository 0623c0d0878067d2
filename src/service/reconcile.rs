//! The reconcile: at intervals, each node checks its connections against the database and delivers the signals that
//! they missed, whether a signal was lost, its publisher died or the bus was down.

use std::{sync::Arc, time::Duration};

use rand::RngExt;

use super::Service;
use crate::{
    bus::BusState,
    domain::{LiveConnection, Signal},
    metrics::Repair,
    store::{ConnectionState, StoreError},
};

/// Interval while signals reach all nodes, and while they do not.
const EVERY: Duration = Duration::from_secs(30);
const EVERY_WITHOUT_BUS: Duration = Duration::from_secs(5);
/// Connections checked in one query.
const CHUNK: usize = 1000;
/// Each interval is shortened by a random share of up to this much, so that nodes do not run at the same time.
const JITTER: f64 = 0.2;

/// Reconciles at the interval, and at once when the bus is up again. Never returns.
pub async fn reconcile_forever(service: Arc<Service>) {
    let mut bus_state = service.bus.watch();
    loop {
        let every = if *bus_state.borrow_and_update() == BusState::Up { EVERY } else { EVERY_WITHOUT_BUS };
        let early = service.entropy.draw(|rng| rng.random_range(0.0..JITTER));
        tokio::select! {
            () = tokio::time::sleep(every.mul_f64(1.0 - early)) => {}
            Ok(()) = bus_state.changed() => {
                if *bus_state.borrow() != BusState::Up {
                    continue;
                }
            }
        }
        for chunk in service.local_delivery.connections().chunks(CHUNK) {
            if let Err(error) = service.reconcile(chunk).await {
                tracing::warn!(%error, "cannot reconcile connections with the database");
            }
        }
        service.metrics.reconcile_rounds.inc();
    }
}

impl Service {
    /// Checks connections of this node, and delivers to each the signals it missed.
    async fn reconcile(&self, connections: &[LiveConnection]) -> Result<(), StoreError> {
        let states = self.store.check_connections(connections, self.now()).await?;
        for (connection, state) in connections.iter().zip(states) {
            if let Some((signal, missed)) = missed_signal(connection, state) {
                self.metrics.reconcile_repairs.inc(missed);
                self.local_delivery.deliver(connection.device, signal);
            } else if let Some(ConnectionState { mailbox_head: seq @ 1.., .. }) = state {
                self.local_delivery.deliver(connection.device, Signal::Mail { seq, envelope: None });
            }
        }
        self.store.touch_connected(connections, self.now()).await?;
        let devices: Vec<_> = connections.iter().map(|connection| connection.device).collect();
        for (device, signal) in self.store.low_pools(&devices).await? {
            // The connection ignores a level that it has announced already.
            self.local_delivery.deliver(device, signal);
        }
        Ok(())
    }
}

/// Returns the signal that a connection missed, if any. `state` is `None` if the device no longer exists.
fn missed_signal(connection: &LiveConnection, state: Option<ConnectionState>) -> Option<(Signal, Repair)> {
    match state {
        None => Some((Signal::AccountDeleted, Repair::Deleted)),
        Some(ConnectionState { revoked: true, .. }) => Some((Signal::DeviceRevoked, Repair::Revoked)),
        Some(ConnectionState { session_is_valid: false, .. }) => {
            Some((Signal::LoggedOut { sessions: vec![connection.session] }, Repair::LoggedOut))
        }
        Some(ConnectionState { newest_epoch, .. }) if newest_epoch > connection.epoch => {
            Some((Signal::Displaced { epoch: newest_epoch }, Repair::Displaced))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{DeviceId, SessionId};

    #[test]
    fn each_missed_change_yields_its_signal() {
        let session = SessionId(Uuid::from_u128(2));
        let connection = LiveConnection { device: DeviceId(Uuid::from_u128(1)), session, epoch: 7 };
        let current = ConnectionState { newest_epoch: 7, revoked: false, session_is_valid: true, mailbox_head: 0 };
        let missed = |state| missed_signal(&connection, state);
        assert_eq!(missed(Some(current)), None);
        assert_eq!(missed(None), Some((Signal::AccountDeleted, Repair::Deleted)));
        let revoked = ConnectionState { revoked: true, session_is_valid: false, ..current };
        assert_eq!(missed(Some(revoked)), Some((Signal::DeviceRevoked, Repair::Revoked)));
        let ended = ConnectionState { session_is_valid: false, ..current };
        let logged_out = Signal::LoggedOut { sessions: vec![session] };
        assert_eq!(missed(Some(ended)), Some((logged_out, Repair::LoggedOut)));
        let displaced = ConnectionState { newest_epoch: 8, ..current };
        assert_eq!(missed(Some(displaced)), Some((Signal::Displaced { epoch: 8 }, Repair::Displaced)));
    }
}
