//! Deletes rows that are past their retention time.

use std::time::Duration;

use uuid::Uuid;

use super::{
    Store, StoreError,
    challenges::{GUESSES_COUNT_FOR, NETWORK_IS_KNOWN},
    sql::{Sql, sweeps as sql},
};
use crate::domain::{Timestamp, clock_guard::TOLERATED_AHEAD, work};

/// Maximum number of rows in one transaction.
const STEP: u64 = 500;
/// How long challenges and the records of claims and sends are kept.
const RETENTION: Duration = Duration::from_hours(24);
/// How long the claims of strangers on a device are kept after the newest: the hour that the limit counts, and another
/// because the clocks of nodes differ.
const STRANGER_CLAIM_RETENTION: Duration = Duration::from_hours(2);
/// How long a decided approval is kept.
const APPROVAL_RETENTION: Duration = Duration::from_hours(7 * 24);
/// How long the reason why a session ended is kept.
const REASON_RETENTION: Duration = Duration::from_hours(30 * 24);
/// How long a spent proof is kept after it has become stale, because the clocks of nodes differ.
const PROOF_RETENTION: Duration = Duration::from_hours(1);

/// Up to when rows are past their time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cutoff {
    /// The current time, by a clock that can be trusted.
    pub now: Timestamp,
    /// Whether records from the future may be deleted too.
    pub and_future: bool,
}

impl From<Timestamp> for Cutoff {
    fn from(now: Timestamp) -> Self {
        Self { now, and_future: true }
    }
}

impl Store {
    /// Deletes what is past its retention time, in many small transactions: expired sessions; after an hour, spent
    /// proofs; after two hours, the counts of strangers' claims; after a day, challenges, the networks of wrong guesses,
    /// the records of claims and sends (which reveal who talks to whom) and the key material of issued PQ keys; after
    /// seven days, decided approvals; after 30 days, wrong guesses and the reasons why sessions ended; after 90 days, known
    /// networks. Also deletes those records whose times are in the future, which were written under a wrong clock. Returns the
    /// number of rows.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn sweep(&self, cutoff: impl Into<Cutoff>) -> Result<u64, StoreError> {
        let Cutoff { now, and_future } = cutoff.into();
        let day_ago = now.before(RETENTION);
        // The statement that records the rows first, if any; the statement that deletes or clears them; the time up to
        // which rows are due.
        let sweeps = [
            (Some(sql::RECORD_SESSIONS), sql::SESSIONS, now),
            (None, sql::CHALLENGES, day_ago),
            (None, sql::SPENT_PROOFS, now.before(PROOF_RETENTION)),
            (None, sql::KNOWN_NETWORKS, now.before(NETWORK_IS_KNOWN)),
            (None, sql::WRONG_GUESSES, now.before(GUESSES_COUNT_FOR)),
            (None, sql::NETWORK_GUESSES, day_ago),
            (None, sql::GUESS_NOTICES, day_ago),
            (None, sql::CLAIMS, day_ago),
            (None, sql::PQ_CLAIMS, day_ago),
            (None, sql::SENDS, day_ago),
            (None, sql::STRANGER_CLAIMS, now.before(STRANGER_CLAIM_RETENTION)),
            (None, sql::APPROVALS, now.before(APPROVAL_RETENTION)),
            (None, sql::ENDED_SESSIONS, now.before(REASON_RETENTION)),
        ];
        let ahead = now + TOLERATED_AHEAD;
        let from_the_future = [
            sql::CHALLENGES_AHEAD,
            sql::KNOWN_NETWORKS_AHEAD,
            sql::WRONG_GUESSES_AHEAD,
            sql::NETWORK_GUESSES_AHEAD,
            sql::GUESS_NOTICES_AHEAD,
            sql::CLAIMS_AHEAD,
            sql::PQ_CLAIMS_AHEAD,
            sql::SENDS_AHEAD,
            sql::STRANGER_CLAIMS_AHEAD,
            sql::APPROVALS_AHEAD,
            sql::PENDING_APPROVALS_AHEAD,
            sql::ENDED_SESSIONS_AHEAD,
        ];
        let proofs = (None, sql::SPENT_PROOFS_AHEAD, ahead + work::LIFETIME);
        let from_the_future = from_the_future.map(|delete| (None, delete, ahead)).into_iter().chain([proofs]);
        let mut swept = 0;
        for (record, delete, until) in sweeps.into_iter().chain(from_the_future.filter(|_| and_future)) {
            loop {
                let step = self
                    .retrying(|| async {
                        let mut tx = self.begin().await?;
                        if let Some(record) = record {
                            tx.query(record).bind(until.to_utc()).bind(STEP.cast_signed()).execute().await?;
                        }
                        let rows = tx.query(delete).bind(until.to_utc()).bind(STEP.cast_signed()).execute().await?;
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

    /// Sets the times of users and devices that are in the future to `now`: when they were created, and when devices were last
    /// seen. They were written under a wrong clock, and a user or device would count as new until then. Returns the number
    /// of rows.
    ///
    /// Reads all users and devices, `window` in a statement (at least one), and writes only if it finds one.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    pub async fn lower_times_ahead(&self, now: Timestamp, window: u32) -> Result<u64, StoreError> {
        let tables = [
            (sql::USERS_WINDOW, sql::USERS_AHEAD, sql::LOWER_USERS),
            (sql::DEVICES_WINDOW, sql::DEVICES_AHEAD, sql::LOWER_DEVICES),
        ];
        let mut lowered = 0;
        for (end_of_window, ahead, lower) in tables {
            let mut after = Some(Uuid::nil());
            while let Some(from) = after {
                let last: Option<(Uuid,)> = self
                    .read()
                    .await?
                    .query(end_of_window)
                    .bind(from)
                    .bind(i64::from(window) - 1)
                    .fetch_optional()
                    .await?;
                after = last.map(|(id,)| id);
                lowered += self.lower_times_of(ahead, lower, (from, after.unwrap_or(Uuid::max())), now).await?;
            }
        }
        Ok(lowered)
    }

    /// Does the above for the rows of one table between two ids.
    async fn lower_times_of(
        &self,
        ahead: Sql,
        lower: Sql,
        (from, to): (Uuid, Uuid),
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let latest = (now + TOLERATED_AHEAD).to_utc();
        let (count,): (i64,) = self.read().await?.query(ahead).bind(from).bind(to).bind(latest).fetch_one().await?;
        if count == 0 {
            return Ok(0);
        }
        self.retrying(|| async {
            let mut tx = self.begin().await?;
            let rows = tx.query(lower).bind(from).bind(to).bind(latest).bind(now.to_utc()).execute().await?;
            tx.commit().await?;
            Ok(rows)
        })
        .await
    }
}
