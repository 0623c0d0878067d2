//! The sweeper: what has outlived its use is deleted, now and then, in small steps.

use std::{sync::Arc, time::Duration};

use super::Service;

/// Time between two sweeps.
const EVERY: Duration = Duration::from_mins(5);

/// Sweeps until it is dropped.
pub async fn sweep_forever(service: Arc<Service>) {
    loop {
        match service.store.sweep(service.now()).await {
            Ok(rows) => tracing::debug!(rows, "swept"),
            Err(error) => tracing::warn!(%error, "could not sweep"),
        }
        tokio::time::sleep(EVERY).await;
    }
}
