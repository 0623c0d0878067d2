//! What runs on the runtimes of store and bus: background tasks, which never end, and work, which does.
//!
//! A background task is one that the server cannot do without. Each has a name, and one that ends, by a panic or by
//! returning, is an alarm: a server without it would go on half dead. Work is what a server that stops waits for.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{runtime::Handle, sync::watch, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Spawns work: requests, deliveries, whatever ends by itself. Clones share the count.
#[derive(Clone)]
pub struct Work {
    runtime: Handle,
    tracker: TaskTracker,
    ending: CancellationToken,
}

impl Work {
    /// Nothing under way yet.
    #[must_use]
    pub fn new(runtime: Handle) -> Self {
        Self { runtime, tracker: TaskTracker::new(), ending: CancellationToken::new() }
    }

    /// Runs it to its end, whether or not anybody waits for the result.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.tracker.spawn_on(work, &self.runtime)
    }

    /// Waits until the server is about to end and only waits for what is under way: whoever pauses should go on.
    pub async fn ending(&self) {
        self.ending.cancelled().await;
    }

    /// Waits until nothing is under way, of which it tells those that pause.
    pub async fn settled(&self) {
        self.ending.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// How much is under way.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.tracker.len()
    }
}

/// Spawns background tasks and hears of those that end. Clones share the alarm.
#[derive(Clone)]
pub struct Tasks {
    work: Work,
    lanes: Handle,
    /// The first task that ended.
    ended: Arc<watch::Sender<Option<&'static str>>>,
    names: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Tasks {
    /// No tasks yet.
    #[must_use]
    pub fn new(runtime: Handle) -> Self {
        let (lanes, ended) = (runtime.clone(), Arc::new(watch::Sender::new(None)));
        Self { work: Work::new(runtime), lanes, ended, names: Arc::default() }
    }

    /// Runs the lanes of batchers on a runtime of their own.
    #[must_use]
    pub fn with_lanes(self, lanes: Handle) -> Self {
        Self { lanes, ..self }
    }

    /// Starts a task that is to run for as long as the server does.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.spawn_on(&self.work.runtime, name, task)
    }

    /// Starts a lane of a batcher, which many wait for: it does not queue up behind their tasks.
    pub fn spawn_lane(&self, name: &'static str, lane: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.spawn_on(&self.lanes, name, lane)
    }

    fn spawn_on(
        &self,
        runtime: &Handle,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
        // Dropped when the task returns and when it panics alike.
        let alarm = Alarm { name, ended: self.ended.clone() };
        runtime.spawn(async move {
            let _alarm = alarm;
            task.await;
        })
    }

    /// The names of all tasks that were started.
    #[must_use]
    pub fn names(&self) -> BTreeSet<&'static str> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where work goes, on the same runtime.
    #[must_use]
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// Waits for a task to end and names it. At a regular end of the server nobody asks any more.
    pub async fn first_ended(&self) -> &'static str {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await.map(|name| *name) {
            Ok(Some(name)) => name,
            // The sender is ours, so it is still there.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

struct Alarm {
    name: &'static str,
    ended: Arc<watch::Sender<Option<&'static str>>>,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.ended.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(self.name);
            is_first
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_task_that_panics_is_named() {
        let tasks = Tasks::new(Handle::current());
        tasks.spawn("steady", std::future::pending());
        tasks.spawn("shaky", async { panic!("a defect") });
        assert_eq!(timeout(SOON, tasks.first_ended()).await, Ok("shaky"));
    }

    #[tokio::test]
    async fn so_is_one_that_returns_and_the_first_counts() {
        let tasks = Tasks::new(Handle::current());
        tasks.spawn("first", async {}).await.unwrap();
        tasks.spawn("second", async {}).await.unwrap();
        assert_eq!(timeout(SOON, tasks.clone().first_ended()).await, Ok("first"), "also for those who ask later");
    }

    #[tokio::test]
    async fn work_is_waited_for_also_where_it_panics_and_told_if_it_pauses() {
        let tasks = Tasks::new(Handle::current());
        let work = tasks.work().clone();
        let pausing = tasks.work().spawn(async move { work.ending().await });
        assert!(timeout(Duration::from_millis(50), tasks.work().ending()).await.is_err(), "not before the end");
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        tasks.work().spawn(async { released.await.unwrap() });
        tasks.work().spawn(async { panic!("a defect") });
        assert!(timeout(Duration::from_millis(50), tasks.work().settled()).await.is_err());
        timeout(SOON, pausing).await.unwrap().unwrap();
        assert!(timeout(Duration::from_millis(50), tasks.work().settled()).await.is_err());
        release.send(()).unwrap();
        assert_eq!(timeout(SOON, tasks.work().settled()).await, Ok(()));
        assert_eq!(tasks.work().unfinished(), 0);
        assert!(timeout(Duration::from_millis(50), tasks.first_ended()).await.is_err(), "work may end");
    }

    #[tokio::test]
    async fn nobody_is_alarmed_while_all_run() {
        let tasks = Tasks::new(Handle::current());
        tasks.spawn("steady", std::future::pending());
        assert!(timeout(Duration::from_millis(50), tasks.first_ended()).await.is_err());
    }
}
