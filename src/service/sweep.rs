//! Background deletion of expired data.

use std::{sync::Arc, time::Duration};

use super::Service;

/// Interval between sweeps.
const EVERY: Duration = Duration::from_mins(5);

/// Interval between deletions of expired mail.
const MAIL_EVERY: Duration = Duration::from_secs(5);

/// Deletes rows past their retention time, except mail, at intervals. Never returns.
pub async fn sweep_forever(service: Arc<Service>) {
    loop {
        match service.store.sweep(service.now()).await {
            Ok(rows) => {
                service.metrics.sweeps.inc();
                service.metrics.swept_rows.add(rows);
                tracing::debug!(rows, "swept");
            }
            Err(error) => tracing::warn!(%error, "cannot sweep expired rows"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Deletes expired mail at intervals. Never returns.
pub async fn expire_mail_forever(service: Arc<Service>) {
    loop {
        match service.store.expire_mail(service.now()).await {
            Ok(0) => {}
            Ok(rows) => {
                service.metrics.expired.add(rows);
                tracing::debug!(rows, "mail expired");
            }
            Err(error) => tracing::warn!(%error, "cannot delete expired mail"),
        }
        tokio::time::sleep(MAIL_EVERY).await;
    }
}
