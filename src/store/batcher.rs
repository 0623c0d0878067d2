//! Batching without timers: while one transaction is in flight, requests of the same kind queue up, and the next
//! transaction takes all of them. An idle server answers after one transaction; a busy one shares its commits.
//!
//! If a batch finds the database unavailable, all requests that are queued at that time fail too. Otherwise each batch
//! would wait for its own timeout.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;

use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::Instant,
};

use super::{DatabaseHealth, Place, StoreError, UserQueues};
use crate::{
    domain::UserId,
    metrics::{BatchMeter, Metrics},
    tasks::Tasks,
};

/// Maximum number of queued requests. If the queue is full, a request gets `unavailable` at once.
const QUEUE: usize = 16_384;
/// Maximum number of queued requests of one user; more wait in the user's own queue.
const QUEUE_PER_USER: usize = QUEUE / 4;

/// An item of a batch.
pub trait BatchItem: Send + 'static {
    /// The user whose share of the queue the item takes; `None` if the server itself queues it.
    fn user(&self) -> Option<UserId>;
}

/// Configuration of the workers of a [`Batcher`].
pub struct BatchWorkers {
    /// The name of their tasks.
    pub name: &'static str,
    /// Maximum number of items in a batch.
    pub largest_batch: usize,
    /// The number of workers. With more than one, later items may overtake earlier ones.
    pub count: usize,
    /// Records the size and duration of batches.
    pub meter: BatchMeter,
    /// Counts what is refused because a user has too much in the queue.
    pub metrics: Arc<Metrics>,
}

struct QueuedItem<Item, Answer> {
    item: Item,
    since: Instant,
    /// The place of its user, given back when a worker takes the item.
    place: Option<Place>,
    caller: oneshot::Sender<Result<Answer, StoreError>>,
}

/// A queue of items of one kind, served in batches. Clones share the queue; the workers stop when the last is dropped.
pub struct Batcher<Item, Answer> {
    queue: mpsc::Sender<QueuedItem<Item, Answer>>,
    users: UserQueues,
}

impl<Item, Answer> Clone for Batcher<Item, Answer> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), users: self.users.clone() }
    }
}

impl<Item: BatchItem, Answer: Send + 'static> Batcher<Item, Answer> {
    /// Starts the workers, which pass batches to `run`. `run` must return one result per item, in order. `health` is
    /// the health of the database that `run` uses.
    pub fn start<Run, Batch>(tasks: &Tasks, workers: BatchWorkers, health: &Arc<DatabaseHealth>, run: Run) -> Self
    where
        Run: Fn(Vec<Item>) -> Batch + Clone + Send + 'static,
        Batch: Future<Output = Vec<Result<Answer, StoreError>>> + Send,
    {
        let (queue, waiting) = mpsc::channel::<QueuedItem<Item, Answer>>(QUEUE);
        let waiting = Arc::new(Mutex::new(waiting));
        let BatchWorkers { name, largest_batch: largest, count, meter, metrics } = workers;
        for _ in 0..count {
            let (waiting, run, meter, health) = (waiting.clone(), run.clone(), meter.clone(), health.clone());
            tasks.spawn_batch_worker(name, async move {
                let mut taken = Vec::with_capacity(largest);
                while waiting.lock().await.recv_many(&mut taken, largest).await > 0 {
                    let last_outage_at = health.last_outage_at();
                    let mut items = Vec::with_capacity(taken.len());
                    let mut callers = Vec::with_capacity(taken.len());
                    for QueuedItem { item, since, place, caller } in taken.drain(..) {
                        drop(place);
                        if last_outage_at.is_some_and(|outage| since < outage) {
                            let _ = caller.send(Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)));
                        } else {
                            items.push(item);
                            callers.push(caller);
                        }
                    }
                    if items.is_empty() {
                        continue;
                    }
                    let (size, began) = (items.len(), Instant::now());
                    // A panic is a defect, but it must not end the worker. The callers of this batch get `Overloaded`.
                    let Ok(answers) = AssertUnwindSafe(run(items)).catch_unwind().await else { continue };
                    meter.record(size, began.elapsed());
                    for (caller, answer) in callers.into_iter().zip(answers) {
                        // Fails if the caller no longer waits.
                        let _ = caller.send(answer);
                    }
                }
            });
        }
        Self { queue, users: UserQueues::new(QUEUE_PER_USER, metrics) }
    }

    /// Queues one item and waits for its result.
    ///
    /// # Errors
    /// Those of [`Self::enqueue`] and `PendingAnswer::answer`.
    pub async fn submit(&self, item: Item) -> Result<Answer, StoreError> {
        self.enqueue(item).await?.answer().await
    }

    /// Queues one item. Unlike [`Self::submit`], it does not wait for the result. It waits only if the user has used up
    /// its share of the queue; items of a user are queued in the order of the calls.
    ///
    /// # Errors
    /// `unavailable` if too many items of the user wait; `Overloaded` if the queue is full or the workers have stopped.
    pub async fn enqueue(&self, item: Item) -> Result<PendingAnswer<Answer>, StoreError> {
        let place = match item.user() {
            Some(user) => Some(self.users.enter(user).await?),
            None => None,
        };
        let (caller, answer) = oneshot::channel();
        let waiting = QueuedItem { item, since: Instant::now(), place, caller };
        self.queue.try_send(waiting).map_err(|_| StoreError::Overloaded)?;
        Ok(PendingAnswer(answer))
    }
}

/// The result of a queued item.
#[derive(Debug)]
#[must_use = "dropping it discards the answer"]
pub struct PendingAnswer<Answer>(oneshot::Receiver<Result<Answer, StoreError>>);

impl<Answer> PendingAnswer<Answer> {
    /// Waits for the result.
    ///
    /// # Errors
    /// The error of `run`; `Unavailable` if the database was found unavailable while the item was queued; `Overloaded`
    /// if `run` panicked or the workers have stopped.
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
    use crate::metrics::Batch;

    impl BatchItem for usize {
        fn user(&self) -> Option<UserId> {
            None
        }
    }

    /// An item of a user.
    struct OfUser(UserId);

    impl BatchItem for OfUser {
        fn user(&self) -> Option<UserId> {
            Some(self.0)
        }
    }

    fn one_worker(largest_batch: usize) -> BatchWorkers {
        let metrics = Arc::new(Metrics::new());
        BatchWorkers { name: "batch", largest_batch, count: 1, meter: metrics.batch(Batch::Claims), metrics }
    }

    #[tokio::test]
    async fn a_user_may_queue_a_quarter_and_has_a_short_queue_of_its_own() {
        let tasks = Tasks::new(Handle::current());
        let (release, released) = tokio::sync::watch::channel(false);
        let batcher = Batcher::start(&tasks, one_worker(100), &Arc::default(), move |items: Vec<OfUser>| {
            let mut released = released.clone();
            async move {
                released.wait_for(|go| *go).await.unwrap();
                items.iter().map(|_| Ok(())).collect()
            }
        });
        let [greedy, other] = [1, 2].map(|n| UserId(uuid::Uuid::from_u128(n)));
        let queue = |user, count: usize| {
            let queued = (0..count).map(|_| batcher.enqueue(OfUser(user)).now_or_never());
            queued.filter_map(|queued| queued.map(|queued| assert!(queued.is_ok()))).count()
        };
        assert_eq!(queue(greedy, QUEUE), QUEUE_PER_USER);
        // The worker takes a batch, which makes room for as many.
        while batcher.queue.capacity() <= QUEUE - QUEUE_PER_USER {
            tokio::task::yield_now().await;
        }
        assert_eq!(queue(greedy, QUEUE), 100);
        assert_eq!(queue(other, 1000), 1000, "others are not affected");
        let waiting: Vec<_> = (0..64)
            .map(|_| {
                let batcher = batcher.clone();
                tokio::spawn(async move { batcher.submit(OfUser(greedy)).await })
            })
            .collect();
        let refused = || async { matches!(batcher.submit(OfUser(greedy)).await, Err(StoreError::Refused(_))) };
        for _ in 0..waiting.len() {
            tokio::task::yield_now().await;
        }
        assert!(refused().await);
        release.send(true).unwrap();
        for one in waiting {
            one.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn queued_requests_share_a_batch_and_each_gets_its_own_answer() {
        let batches = Arc::new(AtomicUsize::new(0));
        let (started, mut has_started) = mpsc::channel::<()>(8);
        let (release, released) = tokio::sync::watch::channel(false);
        let counter = batches.clone();
        let tasks = Tasks::new(Handle::current());
        let batcher = Batcher::start(&tasks, one_worker(100), &Arc::default(), move |items: Vec<usize>| {
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
    async fn queued_requests_fail_with_the_batch_that_finds_an_outage() {
        let health: Arc<DatabaseHealth> = Arc::default();
        let attempts = Arc::new(AtomicUsize::new(0));
        let (release, released) = tokio::sync::watch::channel(false);
        let (tasks, known, counter) = (Tasks::new(Handle::current()), health.clone(), attempts.clone());
        let batcher = Batcher::start(&tasks, one_worker(1), &health, move |items: Vec<usize>| {
            let (known, counter, mut released) = (known.clone(), counter.clone(), released.clone());
            async move {
                counter.fetch_add(1, Ordering::SeqCst);
                released.wait_for(|go| *go).await.unwrap();
                known.record_outage(&StoreError::Overloaded);
                items.into_iter().map(|_| Err::<(), _>(StoreError::Overloaded)).collect()
            }
        });
        let waiting: Vec<_> = (0..30).map(|n| batcher.enqueue(n).now_or_never().unwrap().unwrap()).collect();
        release.send(true).unwrap();
        for queued in waiting {
            assert!(queued.answer().await.is_err());
        }
        assert_eq!(attempts.load(Ordering::SeqCst), 1, "one attempt for all queued requests");
        assert!(batcher.submit(30).await.is_err());
        assert_eq!(attempts.load(Ordering::SeqCst), 2, "a later request makes its own attempt");
    }
}
