//! Gauges that are updated when the metrics are scraped.

use super::{Admin, NodeUsage, process};
use crate::{
    domain::envelope::MailboxSize,
    metrics::{Direction, PoolState},
    service::BusState,
};

impl Admin {
    /// Sets all gauges to their current values.
    pub(super) async fn update_gauges(&self) {
        let metrics = &self.metrics;
        let NodeUsage { connected, sockets, http, work, inbound, outbound, is_draining } = (self.usage)();
        metrics.connected_devices.set(connected as u64);
        metrics.open_sockets.set(sockets.0 as u64);
        metrics.open_sockets_limit.set(sockets.1 as u64);
        metrics.open_http.set(http.0 as u64);
        metrics.open_http_limit.set(http.1 as u64);
        metrics.work_under_way.set(work as u64);
        metrics.draining.set(u64::from(is_draining));
        for (direction, (used, limit)) in [(Direction::In, inbound), (Direction::Out, outbound)] {
            metrics.memory_in_use.set(direction, used as u64);
            metrics.memory_limit.set(direction, limit as u64);
        }
        let MailboxSize { envelopes, bytes } = self.backlog().unwrap_or_default();
        metrics.mailbox_envelopes.set(envelopes);
        metrics.mailbox_bytes.set(bytes);
        metrics.pushes_under_way.set(self.service.pushes_under_way() as u64);
        metrics.resident_memory.set(process::resident_bytes().unwrap_or_default());
        metrics.open_files.set(process::open_files().unwrap_or_default());
        metrics.max_files.set(process::max_files().unwrap_or(u64::MAX));
        metrics.database_up.set(u64::from(self.latency().await.is_some()));
        let (_, pool) = self.service.store_state();
        metrics.pool_connections.set(PoolState::Idle, pool.idle.into());
        metrics.pool_connections.set(PoolState::Busy, (pool.open - pool.idle).into());
        metrics.pool_limit.set(pool.limit.into());
        metrics.bus_up.set(u64::from(self.service.bus_state() == BusState::Up));
    }
}
