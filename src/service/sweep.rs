//! Background deletion of expired data.

use std::{sync::Arc, time::Duration};

use super::Service;
use crate::store::StoreError;

/// Interval between sweeps.
const EVERY: Duration = Duration::from_mins(5);

/// Number of users or devices whose times one statement checks.
const ACCOUNTS_PER_STATEMENT: u32 = 5000;

/// Interval between deletions of expired mail.
const MAIL_EVERY: Duration = Duration::from_secs(5);

/// Deletes rows past their retention time, except mail, at intervals. Never returns.
pub async fn sweep_forever(service: Arc<Service>) {
    loop {
        match service.sweep().await {
            Ok(None) => {}
            Ok(Some(rows)) => {
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
        match service.expire_mail().await {
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

impl Service {
    /// Deletes rows past their retention time and, if it is due, corrects the times of accounts. Returns the number of rows;
    /// `None` if the clock is not trusted.
    async fn sweep(&self) -> Result<Option<u64>, StoreError> {
        let Some(cutoff) = self.cutoff().await? else { return Ok(None) };
        let mut rows = self.store.sweep(cutoff).await?;
        if cutoff.and_future && self.must_correct_accounts() {
            let lowered = self.store.lower_times_ahead(cutoff.now, ACCOUNTS_PER_STATEMENT).await;
            rows += lowered.inspect_err(|_| self.accounts_were_not_corrected())?;
        }
        Ok(Some(rows))
    }

    /// Deletes expired mail, and returns its number: 0 if the clock is not trusted.
    async fn expire_mail(&self) -> Result<u64, StoreError> {
        match self.cutoff().await? {
            Some(cutoff) => self.store.expire_mail(cutoff.now).await,
            None => Ok(0),
        }
    }
}
