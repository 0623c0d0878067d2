//! The reconcile: now and then, a node asks the database about its own connections and acts on what it finds. One piece of
//! code heals lost signals, dead publishers and outages of the bus alike.

use std::{sync::Arc, time::Duration};

use rand::RngExt;

use super::Service;
use crate::{
    domain::{LiveConnection, Signal},
    metrics::Repair,
    store::{ConnectionState, StoreError},
};

/// Time between two passes while the bus is up, and while it is down.
const EVERY: Duration = Duration::from_secs(30);
const EVERY_WITHOUT_BUS: Duration = Duration::from_secs(5);
/// Connections looked up at once.
const CHUNK: usize = 1000;
/// The share of the interval by which a pass may come early, so that nodes do not come together.
const JITTER: f64 = 0.2;

/// Reconciles until it is dropped: at the interval, and at once when the bus returns.
pub async fn reconcile_forever(service: Arc<Service>) {
    let mut bus_is_up = service.bus.watch();
    loop {
        let every = if *bus_is_up.borrow_and_update() { EVERY } else { EVERY_WITHOUT_BUS };
        let early = service.entropy.draw(|rng| rng.random_range(0.0..JITTER));
        tokio::select! {
            () = tokio::time::sleep(every.mul_f64(1.0 - early)) => {}
            Ok(()) = bus_is_up.changed() => {
                if !*bus_is_up.borrow() {
                    continue;
                }
            }
        }
        for chunk in service.local_delivery.live().chunks(CHUNK) {
            if let Err(error) = service.reconcile(chunk).await {
                tracing::warn!(%error, "could not reconcile");
            }
        }
        service.metrics.reconcile_rounds.inc();
    }
}

impl Service {
    /// Looks after some connections of this node.
    async fn reconcile(&self, connections: &[LiveConnection]) -> Result<(), StoreError> {
        for (connection, state) in connections.iter().zip(self.store.check_connections(connections, self.now()).await?)
        {
            if let Some((signal, missed)) = verdict(connection, state) {
                self.metrics.reconcile_repairs.inc(missed);
                self.local_delivery.deliver(connection.device, signal);
            } else if let Some(ConnectionState { mailbox_head: seq @ 1.., .. }) = state {
                self.local_delivery.deliver(connection.device, Signal::Mail { seq, envelope: None });
            }
        }
        let devices: Vec<_> = connections.iter().map(|connection| connection.device).collect();
        for (device, signal) in self.store.low_pools(&devices).await? {
            // The device knows what it has heard already.
            self.local_delivery.deliver(device, signal);
        }
        Ok(())
    }
}

/// The signal that a connection has missed, if there is one.
fn verdict(connection: &LiveConnection, state: Option<ConnectionState>) -> Option<(Signal, Repair)> {
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
    fn a_connection_hears_what_it_missed() {
        let session = SessionId(Uuid::from_u128(2));
        let connection = LiveConnection { device: DeviceId(Uuid::from_u128(1)), session, epoch: 7 };
        let current = ConnectionState { newest_epoch: 7, revoked: false, session_is_valid: true, mailbox_head: 0 };
        let verdict = |state| verdict(&connection, state);
        assert_eq!(verdict(Some(current)), None);
        assert_eq!(verdict(None), Some((Signal::AccountDeleted, Repair::Deleted)));
        let revoked = ConnectionState { revoked: true, session_is_valid: false, ..current };
        assert_eq!(verdict(Some(revoked)), Some((Signal::DeviceRevoked, Repair::Revoked)));
        let ended = ConnectionState { session_is_valid: false, ..current };
        let logged_out = Signal::LoggedOut { sessions: vec![session] };
        assert_eq!(verdict(Some(ended)), Some((logged_out, Repair::LoggedOut)));
        let displaced = ConnectionState { newest_epoch: 8, ..current };
        assert_eq!(verdict(Some(displaced)), Some((Signal::Displaced { epoch: 8 }, Repair::Displaced)));
    }
}
