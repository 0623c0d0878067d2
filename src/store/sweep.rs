//! Deletes rows that are past their retention time.

use std::time::Duration;

use super::{Store, StoreError, sql::sweeps as sql};
use crate::domain::Timestamp;

/// Maximum number of rows in one transaction.
const STEP: u64 = 500;
/// How long challenges and the records of claims and sends are kept.
const KEPT: Duration = Duration::from_hours(24);

impl Store {
    /// Deletes expired sessions and, after a day, challenges, the records of claims and sends (they reveal who talks to
    /// whom), and the key material of issued PQ keys. Returns the number of rows. Runs in many small transactions.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn sweep(&self, now: Timestamp) -> Result<u64, StoreError> {
        let day_ago = now.before(KEPT);
        let sweeps = [
            (sql::SESSIONS, now),
            (sql::CHALLENGES, day_ago),
            (sql::CLAIMS, day_ago),
            (sql::PQ_CLAIMS, day_ago),
            (sql::SENDS, day_ago),
        ];
        let mut swept = 0;
        for (text, until) in sweeps {
            loop {
                let step = self
                    .retrying(|| async {
                        let mut tx = self.begin().await?;
                        let rows = tx.query(text).bind(until.to_utc()).bind(STEP.cast_signed()).execute().await?;
                        tx.commit().await?;
                        Ok(rows)
                    })
                    .await?;
                swept += step;
                if step < STEP {
                    break;
                }
            }
        }
        Ok(swept)
    }
}
