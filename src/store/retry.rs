//! Retries of transactions, and running the items of a failed batch one by one.

use std::future::Future;

use super::{Store, StoreError};
use crate::domain::{DeviceId, Signal};

tokio::task_local! {
    /// Set while the items of a batch that has waited for a row lock run one by one.
    static HAS_WAITED_FOR_LOCKS: ();
}

/// Whether the current task has waited for a row lock already, so that its transactions hardly wait again.
pub(super) fn has_waited_for_locks() -> bool {
    HAS_WAITED_FOR_LOCKS.try_with(|()| ()).is_ok()
}

/// Maximum number of times that a transaction runs before its caller gets `unavailable`.
const TRIES: u32 = 4;

/// The outcome of a batch.
pub struct BatchOutcome<Answer> {
    /// One answer for each request, in request order.
    pub answers: Vec<Result<Answer, StoreError>>,
    /// Signals to publish after the commit. The signals of one device are in order.
    pub signals: Vec<(DeviceId, Signal)>,
}

impl<Answer> Default for BatchOutcome<Answer> {
    fn default() -> Self {
        Self { answers: Vec::new(), signals: Vec::new() }
    }
}

impl<Answer> BatchOutcome<Answer> {
    /// Appends the outcome of the next requests.
    pub fn append(&mut self, other: Self) {
        self.answers.extend(other.answers);
        self.signals.extend(other.signals);
    }

    /// The same error for every request of a batch.
    #[must_use]
    pub fn failed(error: &StoreError, items: usize) -> Self {
        Self { answers: super::error::fail_all(error, items), signals: Vec::new() }
    }
}

impl Store {
    /// Runs a transaction, and runs it again after a serialization failure or deadlock (PostgreSQL only). `work` must
    /// not keep any state from a failed run.
    pub(super) async fn retrying<T, Run>(&self, work: impl Fn() -> Run) -> Result<T, StoreError>
    where
        Run: Future<Output = Result<T, StoreError>>,
    {
        let mut tries = 1;
        loop {
            match work().await {
                Err(StoreError::Conflict(error)) if tries < TRIES => {
                    tracing::debug!(%error, tries, "a transaction conflicted with another and runs again");
                    self.metrics.store_retries.inc();
                    tries += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// Runs a batch of items in one transaction. If it fails because of the data or of a row that stays locked, its items
    /// run one by one, so that only the item that is at fault or needs the row fails. If it is unknown whether the batch was committed, it runs again: `run` then gets
    /// `true` as its second argument and must look for what the earlier run wrote.
    pub(super) async fn run_batch<'i, Item, Answer, Run>(
        &self,
        name: &'static str,
        items: &'i [Item],
        run: impl Fn(&'i [Item], bool) -> Run,
    ) -> Result<BatchOutcome<Answer>, StoreError>
    where
        Run: Future<Output = Result<BatchOutcome<Answer>, StoreError>>,
    {
        match self.run_batch_with_retries(name, items, &run).await {
            Err(error @ (StoreError::Data(_) | StoreError::Internal(_))) if items.len() > 1 => {
                tracing::warn!(batch = name, %error, items = items.len(), "a batch failed; running its items one by one");
                let mut all = BatchOutcome::default();
                for item in items.chunks(1) {
                    match self.run_batch_with_retries(name, item, &run).await {
                        Ok(one) => all.append(one),
                        Err(error) => all.answers.push(Err(error)),
                    }
                }
                Ok(all)
            }
            Err(StoreError::Locked(error)) if items.len() > 1 => {
                tracing::debug!(batch = name, %error, items = items.len(), "a row is locked; running the items one by one");
                let run_all = async {
                    let mut all = BatchOutcome::default();
                    for item in items.chunks(1) {
                        match self.run_batch_with_retries(name, item, &run).await {
                            Ok(one) => all.append(one),
                            Err(error) => all.answers.push(Err(error)),
                        }
                    }
                    Ok(all)
                };
                HAS_WAITED_FOR_LOCKS.scope((), run_all).await
            }
            outcome => outcome,
        }
    }

    async fn run_batch_with_retries<'i, Item, Answer, Run>(
        &self,
        name: &'static str,
        items: &'i [Item],
        run: &impl Fn(&'i [Item], bool) -> Run,
    ) -> Result<BatchOutcome<Answer>, StoreError>
    where
        Run: Future<Output = Result<BatchOutcome<Answer>, StoreError>>,
    {
        let mut tries = 1;
        loop {
            let error = match run(items, tries > 1).await {
                Err(error) => error,
                done => return done,
            };
            // The transaction may have been committed, or a parallel repeat of the request was committed first: the
            // next run finds what was written. After a data error in a larger batch, `run_batch` runs the items one by
            // one.
            let may_succeed = match &error {
                StoreError::Unavailable(_) | StoreError::Conflict(_) => !error.is_outage(),
                StoreError::Data(_) => items.len() == 1,
                _ => false,
            };
            if !may_succeed || tries == TRIES {
                return Err(error);
            }
            tracing::debug!(batch = name, %error, tries, "a batch failed and runs again");
            self.metrics.store_retries.inc();
            tries += 1;
        }
    }
}
