//! The sweeper: what has outlived its use is deleted, now and then, in small steps.

use std::{sync::Arc, time::Duration};

use super::Service;

/// Time between two sweeps.
const EVERY: Duration = Duration::from_mins(5);

/// Time between two looks for mail whose time is up.
const MAIL_EVERY: Duration = Duration::from_secs(5);

/// Sweeps until it is dropped.
pub async fn sweep_forever(service: Arc<Service>) {
    loop {
        match service.store.sweep(service.now()).await {
            Ok(rows) => {
                service.metrics.sweeps.inc();
                service.metrics.swept_rows.add(rows);
                tracing::debug!(rows, "swept");
            }
            Err(error) => tracing::warn!(%error, "could not sweep"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Deletes mail whose time is up until it is dropped.
pub async fn expire_mail_forever(service: Arc<Service>) {
    loop {
        match service.store.expire_mail(service.now()).await {
            Ok(0) => {}
            Ok(rows) => {
                service.metrics.expired.add(rows);
                tracing::debug!(rows, "mail expired");
            }
            Err(error) => tracing::warn!(%error, "could not expire mail"),
        }
        tokio::time::sleep(MAIL_EVERY).await;
    }
}
