//! Natural batching: while one transaction is in flight, requests of the same kind queue up, and the next transaction
//! takes all that wait. No timers: an idle system answers after one round trip, a busy one shares its commits.
//!
//! Where a transaction finds that the database is out of reach, those who queued up behind it are told so with it, and not
//! each batch after a time of its own.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;

use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::Instant,
};

use super::{Reach, StoreError};
use crate::{metrics::BatchMeter, tasks::Tasks};

/// Requests that may wait. Beyond it callers are told `unavailable` rather than kept.
const QUEUE: usize = 16_384;

struct Waiting<Item, Answer> {
    item: Item,
    since: Instant,
    caller: oneshot::Sender<Result<Answer, StoreError>>,
}

/// A queue in front of one kind of transaction. Clones share the queue; the worker stops when the last is dropped.
pub struct Batcher<Item, Answer> {
    queue: mpsc::Sender<Waiting<Item, Answer>>,
}

impl<Item, Answer> Clone for Batcher<Item, Answer> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<Item: Send + 'static, Answer: Send + 'static> Batcher<Item, Answer> {
    /// Starts a worker of this name for each lane, which hands at most `largest` items at a time to `run`; that must give one result
    /// for each, in their order. With more lanes than one, later items may overtake earlier ones. `reach` is that of the
    /// database which `run` uses.
    pub fn start<Run, Batch>(
        tasks: &Tasks,
        name: &'static str,
        largest: usize,
        lanes: usize,
        meter: &BatchMeter,
        reach: &Arc<Reach>,
        run: Run,
    ) -> Self
    where
        Run: Fn(Vec<Item>) -> Batch + Clone + Send + 'static,
        Batch: Future<Output = Vec<Result<Answer, StoreError>>> + Send,
    {
        let (queue, waiting) = mpsc::channel::<Waiting<Item, Answer>>(QUEUE);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..lanes {
            let (waiting, run, meter, reach) = (waiting.clone(), run.clone(), meter.clone(), reach.clone());
            tasks.spawn_lane(name, async move {
                let mut taken = Vec::with_capacity(largest);
                while waiting.lock().await.recv_many(&mut taken, largest).await > 0 {
                    let lost_at = reach.lost_at();
                    let mut items = Vec::with_capacity(taken.len());
                    let mut callers = Vec::with_capacity(taken.len());
                    for Waiting { item, since, caller } in taken.drain(..) {
                        if lost_at.is_some_and(|lost| since < lost) {
                            let _ = caller.send(Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)));
                        } else {
                            items.push(item);
                            callers.push(caller);
                        }
                    }
                    if items.is_empty() {
                        continue;
                    }
                    let (count, began) = (items.len(), Instant::now());
                    // A panic is a defect, but it must not take the lane with it; its callers hear `Overloaded`.
                    let Ok(answers) = AssertUnwindSafe(run(items)).catch_unwind().await else { continue };
                    meter.ran(count, began.elapsed());
                    for (caller, answer) in callers.into_iter().zip(answers) {
                        // A caller that has gone away does not want its answer; what was committed stays.
                        let _ = caller.send(answer);
                    }
                }
            });
        }
        Self { queue }
    }

    /// Queues one item and waits for its result.
    ///
    /// # Errors
    /// What `run` says of it, or `Overloaded` where the queue is full or the worker has stopped.
    pub async fn submit(&self, item: Item) -> Result<Answer, StoreError> {
        self.enqueue(item)?.answer().await
    }

    /// Queues one item, behind all that were queued before.
    ///
    /// # Errors
    /// `Overloaded` where the queue is full or the worker has stopped.
    pub fn enqueue(&self, item: Item) -> Result<Queued<Answer>, StoreError> {
        let (caller, answer) = oneshot::channel();
        let waiting = Waiting { item, since: Instant::now(), caller };
        self.queue.try_send(waiting).map_err(|_| StoreError::Overloaded)?;
        Ok(Queued(answer))
    }
}

/// An item that waits for its result.
#[must_use = "somebody should want the answer"]
pub struct Queued<Answer>(oneshot::Receiver<Result<Answer, StoreError>>);

impl<Answer> Queued<Answer> {
    /// The result.
    ///
    /// # Errors
    /// What `run` says of it, or `Overloaded` where the worker has stopped.
    pub async fn answer(self) -> Result<Answer, StoreError> {
        self.0.await.map_err(|_| StoreError::Overloaded)?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::runtime::Handle;

    use super::*;
    use crate::metrics::{Batch, Metrics};

    #[tokio::test]
    async fn what_waits_shares_a_batch_and_each_gets_its_own_answer() {
        let batches = Arc::new(AtomicUsize::new(0));
        let (started, mut has_started) = mpsc::channel::<()>(8);
        let (release, released) = tokio::sync::watch::channel(false);
        let counter = batches.clone();
        let tasks = Tasks::new(Handle::current());
        let meter = Metrics::new().batch(Batch::Claims);
        let batcher = Batcher::start(&tasks, "doubling", 100, 1, &meter, &Arc::default(), move |items: Vec<usize>| {
            let (counter, started, mut released) = (counter.clone(), started.clone(), released.clone());
            async move {
                counter.fetch_add(1, Ordering::SeqCst);
                started.send(()).await.unwrap();
                released.wait_for(|go| *go).await.unwrap();
                items.into_iter().map(|n| Ok(n * 2)).collect()
            }
        });
        let first = tokio::spawn({
            let batcher = batcher.clone();
            async move { batcher.submit(1).await.unwrap() }
        });
        has_started.recv().await.unwrap();
        let later: Vec<_> = (2..50)
            .map(|n| {
                let batcher = batcher.clone();
                tokio::spawn(async move { (n, batcher.submit(n).await.unwrap()) })
            })
            .collect();
        while batcher.queue.capacity() > QUEUE - 48 {
            tokio::task::yield_now().await;
        }
        release.send(true).unwrap();
        assert_eq!(first.await.unwrap(), 2);
        for answer in later {
            let (n, doubled) = answer.await.unwrap();
            assert_eq!(doubled, n * 2);
        }
        assert_eq!(batches.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn who_waits_while_the_database_is_found_out_of_reach_is_not_made_to_wait_again() {
        let reach: Arc<Reach> = Arc::default();
        let attempts = Arc::new(AtomicUsize::new(0));
        let (release, released) = tokio::sync::watch::channel(false);
        let (tasks, known, counter) = (Tasks::new(Handle::current()), reach.clone(), attempts.clone());
        let meter = Metrics::new().batch(Batch::Mail);
        let batcher = Batcher::start(&tasks, "mail", 1, 1, &meter, &reach, move |items: Vec<usize>| {
            let (known, counter, mut released) = (known.clone(), counter.clone(), released.clone());
            async move {
                counter.fetch_add(1, Ordering::SeqCst);
                released.wait_for(|go| *go).await.unwrap();
                known.lost(&StoreError::Overloaded);
                items.into_iter().map(|_| Err::<(), _>(StoreError::Overloaded)).collect()
            }
        });
        let waiting: Vec<_> = (0..30).map(|n| batcher.enqueue(n).unwrap()).collect();
        release.send(true).unwrap();
        for queued in waiting {
            assert!(queued.answer().await.is_err());
        }
        assert_eq!(attempts.load(Ordering::SeqCst), 1, "one for all who waited");
        assert!(batcher.submit(30).await.is_err());
        assert_eq!(attempts.load(Ordering::SeqCst), 2, "who comes later has one of its own");
    }
}
