//! Batches that do not wait to be filled: while one transaction is in flight, requests of the same kind queue up, and the next
//! transaction takes as many of them as a batch may have. An idle server answers after one transaction; a busy one shares
//! its commits.
//!
//! If a queue has several workers, a batch starts while another runs only if it is large enough, or if an item has waited
//! for long, as behind a batch that waits for a lock. Otherwise nodes that share a database would run many small batches,
//! which cost more for each item.
//!
//! Batches take the users in turns ([`FairQueue`]), so that a user with many requests does not delay others.
//!
//! If a batch finds the database unavailable, all requests that are queued at that time fail too. Otherwise each batch
//! would wait for its own timeout.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;

use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    DatabaseHealth, StoreError,
    fair_queue::{FairQueue, QueueFull},
};
use crate::{
    domain::{Refusal, UserId},
    metrics::{BatchMeter, Metrics},
    tasks::Tasks,
};

/// Maximum number of queued requests. If the queue is full, the user with the most requests in it loses its newest.
const QUEUE: usize = 16_384;
/// Maximum number of queued requests of one user. Further ones get `unavailable`.
const QUEUE_PER_USER: usize = QUEUE / 4;

/// An item of a batch.
pub trait BatchItem: Send + 'static {
    /// The user with whose items it takes turns; `None` if the server itself queues it.
    fn user(&self) -> Option<UserId>;
}

/// When a batch starts while another of the same queue runs.
#[derive(Clone, Copy, Debug)]
pub struct Beside {
    /// The number of queued items for which it starts. Larger batches cost less for each item.
    pub least_items: usize,
    /// How long an item waits before it starts, however few are queued: the running batch may wait for a lock.
    pub longest_wait: Duration,
}

impl Beside {
    /// At once.
    pub const ALWAYS: Self = Self { least_items: 1, longest_wait: Duration::ZERO };
}

/// Configuration of the workers of a [`Batcher`].
pub struct BatchWorkers {
    /// The name of their tasks.
    pub name: &'static str,
    /// Maximum number of items in a batch.
    pub largest_batch: usize,
    /// The number of workers. With more than one, later items may overtake earlier ones.
    pub count: usize,
    /// When a worker starts a batch while another runs.
    pub beside: Beside,
    /// Records the size and duration of batches.
    pub meter: BatchMeter,
    /// Counts what is refused because its user has too much in the queue.
    pub metrics: Arc<Metrics>,
}

struct QueuedItem<Item, Answer> {
    item: Item,
    since: Instant,
    caller: oneshot::Sender<Result<Answer, StoreError>>,
}

/// A queue of items of one kind, served in batches. Clones share the queue; the workers stop when the last is dropped.
pub struct Batcher<Item, Answer> {
    handle: Arc<BatcherHandle<Item, Answer>>,
}

/// Closes the queue when it is dropped.
struct BatcherHandle<Item, Answer> {
    queue: Arc<BatchQueue<Item, Answer>>,
    metrics: Arc<Metrics>,
}

/// What the callers and the workers share.
struct BatchQueue<Item, Answer> {
    beside: Beside,
    state: Mutex<QueueState<QueuedItem<Item, Answer>>>,
    /// Wakes a worker if a batch may start or an item has to be watched, and all of them if the queue is closed.
    changed: Notify,
}

struct QueueState<Queued> {
    items: FairQueue<Queued>,
    /// Whether nothing more is going to be queued.
    is_closed: bool,
    /// The number of workers. Without any, nothing is queued.
    workers: usize,
    /// The number of batches that run.
    running: usize,
    /// Since when the queue has items, or when a batch last left some of them; `None` if it is empty.
    waiting_since: Option<Instant>,
}

impl<Queued> QueueState<Queued> {
    /// Whether the next batch may start.
    fn may_start(&self, beside: Beside) -> bool {
        self.running == 0
            || self.is_closed
            || self.items.len() >= beside.least_items
            || self.waiting_since.is_some_and(|since| since.elapsed() >= beside.longest_wait)
    }

    /// Notes that items were queued or taken at this time.
    fn note_change(&mut self, at: Instant) {
        self.waiting_since = (self.items.len() > 0).then_some(at);
    }
}

impl<Item, Answer> BatchQueue<Item, Answer> {
    fn state(&self) -> MutexGuard<'_, QueueState<QueuedItem<Item, Answer>>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the next items, at most `most`, to `taken`. Waits until there is one or, while another batch runs, until
    /// [`Beside`] allows another. Returns false if the queue is closed and empty.
    ///
    /// The worker of that other batch calls this after it, so nothing is left in the queue.
    async fn take(&self, most: usize, taken: &mut Vec<QueuedItem<Item, Answer>>) -> bool {
        loop {
            // Made before the look at the queue, so that it misses no change after it.
            let changed = self.changed.notified();
            let (is_closed, waiting_since) = {
                let mut state = self.state();
                if state.may_start(self.beside) {
                    state.items.take(most, taken);
                    state.running += usize::from(!taken.is_empty());
                    state.note_change(Instant::now());
                }
                (state.is_closed, state.waiting_since)
            };
            if !taken.is_empty() {
                if waiting_since.is_some() {
                    // An idle worker takes the rest, or watches how long it waits.
                    self.changed.notify_one();
                }
                return true;
            }
            if is_closed {
                return false;
            }
            match waiting_since {
                Some(since) => drop(timeout_at(since + self.beside.longest_wait, changed).await),
                None => changed.await,
            }
        }
    }
}

impl<Item, Answer> Drop for BatcherHandle<Item, Answer> {
    fn drop(&mut self) {
        self.queue.state().is_closed = true;
        self.queue.changed.notify_waiters();
    }
}

/// A worker, in the count until this is dropped. The last one empties the queue, so that nobody waits for an answer.
struct Worker<Item, Answer>(Arc<BatchQueue<Item, Answer>>);

impl<Item, Answer> Drop for Worker<Item, Answer> {
    fn drop(&mut self) {
        let mut unserved = Vec::new();
        let mut state = self.0.state();
        state.workers -= 1;
        if state.workers == 0 {
            state.items.take(usize::MAX, &mut unserved);
        }
        // Not while the queue is locked: dropping an item may run code of its owner.
        drop(state);
    }
}

/// A batch, in the count of those that run until this is dropped.
struct RunningBatch<'q, Item, Answer>(&'q BatchQueue<Item, Answer>);

impl<Item, Answer> Drop for RunningBatch<'_, Item, Answer> {
    fn drop(&mut self) {
        self.0.state().running -= 1;
    }
}

impl<Item, Answer> Clone for Batcher<Item, Answer> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone() }
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
        let BatchWorkers { name, largest_batch: largest, count, beside, meter, metrics } = workers;
        let items = FairQueue::new(QUEUE, QUEUE_PER_USER);
        let state = Mutex::new(QueueState { items, is_closed: false, workers: count, running: 0, waiting_since: None });
        let queue = Arc::new(BatchQueue { beside, state, changed: Notify::new() });
        for _ in 0..count {
            let (worker, run, meter, health) = (Worker(queue.clone()), run.clone(), meter.clone(), health.clone());
            tasks.spawn_batch_worker(name, async move {
                let mut taken = Vec::with_capacity(largest);
                while worker.0.take(largest, &mut taken).await {
                    let _running = RunningBatch(&worker.0);
                    let last_outage_at = health.last_outage_at();
                    let mut items = Vec::with_capacity(taken.len());
                    let mut callers = Vec::with_capacity(taken.len());
                    for QueuedItem { item, since, caller } in taken.drain(..) {
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
        Self { handle: Arc::new(BatcherHandle { queue, metrics }) }
    }

    /// Queues one item and waits for its result.
    ///
    /// # Errors
    /// Those of [`Self::enqueue`] and `PendingAnswer::answer`.
    pub async fn submit(&self, item: Item) -> Result<Answer, StoreError> {
        self.enqueue(item)?.answer().await
    }

    /// Queues one item. Unlike [`Self::submit`], it does not wait for the result. Items of a user are served in the order
    /// of the calls.
    ///
    /// # Errors
    /// `unavailable` if too many items of the user wait; `Overloaded` if the queue is full, and no user has more in it than
    /// this one, or the workers have stopped.
    pub fn enqueue(&self, item: Item) -> Result<PendingAnswer<Answer>, StoreError> {
        let BatcherHandle { queue, metrics } = &*self.handle;
        let (caller, answer) = oneshot::channel();
        let since = Instant::now();
        let (user, queued) = (item.user(), QueuedItem { item, since, caller });
        let (pushed, must_wake) = {
            let mut state = queue.state();
            if state.workers == 0 {
                return Err(StoreError::Overloaded);
            }
            let pushed = state.items.push(user, queued);
            let is_first = state.waiting_since.is_none();
            if is_first {
                state.note_change(since);
            }
            // The worker of the running batch will take this. An idle one only watches for how long the first item waits.
            (pushed, is_first || state.may_start(queue.beside))
        };
        match pushed {
            Ok(None) => {}
            Ok(Some(removed)) => {
                metrics.user_queue_full.inc();
                let _ = removed.caller.send(Err(Refusal::Unavailable.into()));
            }
            Err(QueueFull::OfUser) => {
                metrics.user_queue_full.inc();
                return Err(Refusal::Unavailable.into());
            }
            Err(QueueFull::OfAll) => return Err(StoreError::Overloaded),
        }
        if must_wake {
            queue.changed.notify_one();
        }
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
    /// The error of `run`; `Unavailable` if the database was found unavailable while the item was queued; the refusal
    /// `unavailable` if the queue was full and the user had the most items in it; `Overloaded` if `run` panicked or the
    /// workers have stopped.
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

    /// A user and the number of its item.
    impl BatchItem for (usize, usize) {
        fn user(&self) -> Option<UserId> {
            Some(user(self.0))
        }
    }

    fn one_worker(largest_batch: usize) -> BatchWorkers {
        let metrics = Arc::new(Metrics::new());
        let meter = metrics.batch(Batch::Claims);
        BatchWorkers { name: "batch", largest_batch, count: 1, beside: Beside::ALWAYS, meter, metrics }
    }

    fn user(n: usize) -> UserId {
        UserId(uuid::Uuid::from_u128(n as u128))
    }

    fn queued<Item, Answer>(batcher: &Batcher<Item, Answer>) -> usize {
        batcher.handle.queue.state().items.len()
    }

    /// The users and numbers of the items that were served, in order.
    type Served = Arc<Mutex<Vec<(usize, usize)>>>;

    /// A batcher whose batches wait for `released`, and what it has served, as user and number of the item.
    fn recorder(
        tasks: &Tasks,
        largest_batch: usize,
        released: &tokio::sync::watch::Receiver<bool>,
    ) -> (Batcher<(usize, usize), ()>, Served) {
        let served = Served::default();
        let (served_by, released) = (served.clone(), released.clone());
        let batcher = Batcher::start(tasks, one_worker(largest_batch), &Arc::default(), move |items: Vec<_>| {
            let (served, mut released) = (served_by.clone(), released.clone());
            async move {
                released.wait_for(|go| *go).await.unwrap();
                let answers = items.iter().map(|_| Ok(())).collect();
                served.lock().unwrap().extend(items);
                answers
            }
        });
        (batcher, served)
    }

    #[tokio::test]
    async fn whatever_others_have_queued_a_user_is_served_in_the_next_batch() {
        const EACH: usize = 640;
        let (release, released) = tokio::sync::watch::channel(false);
        let tasks = Tasks::new(Handle::current());
        let (batcher, served) = recorder(&tasks, 128, &released);
        let mut answers = Vec::new();
        for number in 0..EACH {
            answers.extend((0..4).map(|user| batcher.enqueue((user, number)).unwrap()));
        }
        // The first batch is under way.
        while queued(&batcher) == 4 * EACH {
            tokio::task::yield_now().await;
        }
        answers.extend((0..2).map(|number| batcher.enqueue((9, number)).unwrap()));
        release.send(true).unwrap();
        for answer in answers {
            answer.answer().await.unwrap();
        }
        let served = served.lock().unwrap();
        let positions = |of: usize| -> Vec<_> {
            served
                .iter()
                .enumerate()
                .filter(|(_, (user, _))| *user == of)
                .map(|(position, item)| (position, item.1))
                .collect()
        };
        let bystander: Vec<_> = positions(9).into_iter().map(|(position, _)| position).collect();
        assert!(bystander[0] < 128 + 5 && bystander[1] < 128 + 10, "{bystander:?}");
        for user in 0..4 {
            assert!(positions(user).into_iter().map(|(_, number)| number).eq(0..EACH), "the order of a user is kept");
        }
    }

    #[tokio::test]
    async fn a_full_queue_refuses_what_the_users_that_fill_it_have_queued_last() {
        let (release, released) = tokio::sync::watch::channel(false);
        let tasks = Tasks::new(Handle::current());
        let (batcher, served) = recorder(&tasks, 128, &released);
        let metrics = batcher.handle.metrics.clone();
        let mut flood = Vec::new();
        for number in 0..640 {
            flood.extend((0..26).map_while(|user| batcher.enqueue((user, number)).ok()));
        }
        // Nothing runs meanwhile: this test and the worker share a thread.
        assert_eq!((queued(&batcher), flood.len()), (QUEUE, QUEUE));
        let bystanders: Vec<_> = (100..200).map(|user| batcher.enqueue((user, 0)).unwrap()).collect();
        assert_eq!((queued(&batcher), metrics.user_queue_full.get()), (QUEUE, 100));
        release.send(true).unwrap();
        for answer in bystanders {
            answer.answer().await.unwrap();
        }
        let mut refused = 0;
        for answer in flood {
            refused += usize::from(matches!(answer.answer().await, Err(StoreError::Refused(Refusal::Unavailable))));
        }
        assert_eq!(refused, 100);
        let last = served.lock().unwrap().iter().rposition(|(user, _)| *user >= 100).unwrap();
        assert!(last < 126, "{last}");
    }

    #[tokio::test]
    async fn a_user_may_queue_a_quarter() {
        let (_release, released) = tokio::sync::watch::channel(false);
        let tasks = Tasks::new(Handle::current());
        let (batcher, _served) = recorder(&tasks, 128, &released);
        let accepted = (0..QUEUE).filter(|number| batcher.enqueue((1, *number)).is_ok()).count();
        assert_eq!(accepted, QUEUE_PER_USER);
        assert!(matches!(batcher.enqueue((1, QUEUE)), Err(StoreError::Refused(Refusal::Unavailable))));
        assert!(batcher.enqueue((2, 0)).is_ok());
    }

    #[tokio::test]
    async fn a_batch_starts_beside_another_only_if_it_is_large_enough() {
        let (release, released) = tokio::sync::watch::channel(false);
        let tasks = Tasks::new(Handle::current());
        let started = Arc::new(Mutex::new(Vec::new()));
        let beside = Beside { least_items: 4, longest_wait: Duration::from_hours(1) };
        let workers = BatchWorkers { count: 3, beside, ..one_worker(16) };
        let starting = started.clone();
        let batcher = Batcher::start(&tasks, workers, &Arc::default(), move |items: Vec<usize>| {
            starting.lock().unwrap().push(items.len());
            let mut released = released.clone();
            async move {
                released.wait_for(|go| *go).await.unwrap();
                items.into_iter().map(Ok).collect()
            }
        });
        let mut answers = vec![batcher.enqueue(0).unwrap()];
        // Enough for all workers to look at the queue: they share a thread with this test.
        let all_look = || async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        };
        for (items, expected) in [(3, &[1][..]), (1, &[1, 4]), (3, &[1, 4])] {
            all_look().await;
            answers.extend((0..items).map(|number| batcher.enqueue(number).unwrap()));
            all_look().await;
            assert_eq!(*started.lock().unwrap(), expected);
        }
        assert_eq!(queued(&batcher), 3);
        release.send(true).unwrap();
        for answer in answers {
            answer.answer().await.unwrap();
        }
        assert_eq!(*started.lock().unwrap(), [1, 4, 3], "after the others, the rest is served");
    }

    #[tokio::test]
    async fn an_item_that_has_waited_for_long_starts_a_batch_beside_one_that_is_stuck() {
        let (_never, released) = tokio::sync::watch::channel(false);
        let tasks = Tasks::new(Handle::current());
        let beside = Beside { least_items: 4, longest_wait: Duration::from_millis(20) };
        let workers = BatchWorkers { count: 2, beside, ..one_worker(16) };
        let batcher = Batcher::start(&tasks, workers, &Arc::default(), move |items: Vec<usize>| {
            let mut released = released.clone();
            async move {
                if items.contains(&0) {
                    released.wait_for(|go| *go).await.unwrap();
                }
                items.into_iter().map(Ok).collect()
            }
        });
        let _stuck = batcher.enqueue(0).unwrap();
        while queued(&batcher) > 0 {
            tokio::task::yield_now().await;
        }
        for number in 1..4 {
            let began = Instant::now();
            assert_eq!(batcher.submit(number).await.unwrap(), number);
            assert!(began.elapsed() >= beside.longest_wait, "until then the running batch might have ended");
        }
    }

    #[tokio::test]
    async fn without_workers_nobody_waits() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (_release, released) = tokio::sync::watch::channel(false);
        let tasks = Tasks::new(runtime.handle().clone());
        let (batcher, _served) = recorder(&tasks, 1, &released);
        let waiting: Vec<_> = (0..3).map(|number| batcher.enqueue((1, number)).unwrap()).collect();
        runtime.shutdown_background();
        for answer in waiting {
            assert!(matches!(answer.answer().await, Err(StoreError::Overloaded)));
        }
        assert!(matches!(batcher.submit((1, 3)).await, Err(StoreError::Overloaded)));
    }

    #[tokio::test]
    async fn queued_requests_share_a_batch_and_each_gets_its_own_answer() {
        let batches = Arc::new(AtomicUsize::new(0));
        let (started, mut has_started) = tokio::sync::mpsc::channel::<()>(8);
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
        while queued(&batcher) < 48 {
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
        let waiting: Vec<_> = (0..30).map(|n| batcher.enqueue(n).unwrap()).collect();
        release.send(true).unwrap();
        for queued in waiting {
            assert!(queued.answer().await.is_err());
        }
        assert_eq!(attempts.load(Ordering::SeqCst), 1, "one attempt for all queued requests");
        assert!(batcher.submit(30).await.is_err());
        assert_eq!(attempts.load(Ordering::SeqCst), 2, "a later request makes its own attempt");
    }
}
