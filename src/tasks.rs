//! Tasks on the runtimes of store and bus: background tasks, which never end, and [`Work`], which does.
//!
//! The server needs all of its background tasks. If one ends, by a panic or by returning, [`Tasks::first_ended`]
//! reports its name and the server stops, rather than run without it.

mod work;

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    runtime::Handle,
    sync::watch,
    task::{AbortHandle, JoinHandle},
};

pub use self::work::Work;

/// Spawns background tasks and reports the first that ends. Clones share their state.
#[derive(Clone)]
pub struct Tasks {
    work: Work,
    /// Runs the batch workers.
    batches: Handle,
    /// The first task that ended.
    ended: Arc<watch::Sender<Option<&'static str>>>,
    names: Arc<Mutex<BTreeSet<&'static str>>>,
    started: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Tasks {
    /// Creates a spawner on one runtime, with no tasks yet.
    #[must_use]
    pub fn new(runtime: Handle) -> Self {
        let (batches, ended) = (runtime.clone(), Arc::new(watch::Sender::new(None)));
        Self { work: Work::new(runtime), batches, ended, names: Arc::default(), started: Arc::default() }
    }

    /// Runs the batch workers on a runtime of their own.
    #[must_use]
    pub fn with_batch_runtime(self, batches: Handle) -> Self {
        Self { batches, ..self }
    }

    /// The same spawner, which runs batch workers beside the other tasks.
    #[must_use]
    pub fn without_batch_runtime(self) -> Self {
        let batches = self.work.runtime().clone();
        Self { batches, ..self }
    }

    /// Starts a task that runs for as long as the server does.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.spawn_on(self.work.runtime(), name, task)
    }

    /// Starts a batch worker. It has a runtime of its own so that it does not queue behind the tasks of the many
    /// requests that wait for it.
    pub fn spawn_batch_worker(
        &self,
        name: &'static str,
        worker: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        self.spawn_on(&self.batches, name, worker)
    }

    fn spawn_on(
        &self,
        runtime: &Handle,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
        // Dropped whether the task returns or panics.
        let guard = EndGuard { name, ended: self.ended.clone() };
        let task = runtime.spawn(async move {
            let _guard = guard;
            task.await;
        });
        self.started.lock().unwrap_or_else(PoisonError::into_inner).push(task.abort_handle());
        task
    }

    /// Ends all background tasks, before what they use is closed: otherwise they would log that it fails.
    pub fn end(&self) {
        for task in self.started.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }

    /// The names of all background tasks started so far.
    #[must_use]
    pub fn names(&self) -> BTreeSet<&'static str> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Work on the same runtime as the tasks.
    #[must_use]
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// Waits until a background task ends, and returns its name. Returns at once if one has ended already.
    pub async fn first_ended(&self) -> &'static str {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await.map(|name| *name) {
            Ok(Some(name)) => name,
            // Unreachable: `self` holds the sender.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

/// Records the end of a task when it is dropped.
struct EndGuard {
    name: &'static str,
    ended: Arc<watch::Sender<Option<&'static str>>>,
}

impl Drop for EndGuard {
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
    async fn a_task_that_panics_is_reported() {
        let tasks = Tasks::new(Handle::current());
        tasks.spawn("steady", std::future::pending());
        tasks.spawn("shaky", async { panic!("a defect") });
        assert_eq!(timeout(SOON, tasks.first_ended()).await, Ok("shaky"));
    }

    #[tokio::test]
    async fn background_tasks_can_be_ended() {
        let tasks = Tasks::new(Handle::current());
        let task = tasks.spawn("steady", std::future::pending());
        tasks.end();
        assert!(timeout(SOON, task).await.unwrap().unwrap_err().is_cancelled());
    }

    #[tokio::test]
    async fn the_first_of_two_tasks_that_return_is_reported() {
        let tasks = Tasks::new(Handle::current());
        tasks.spawn("first", async {}).await.unwrap();
        tasks.spawn("second", async {}).await.unwrap();
        assert_eq!(timeout(SOON, tasks.clone().first_ended()).await, Ok("first"), "also after it has ended");
    }

    #[tokio::test]
    async fn nothing_is_reported_while_all_tasks_run() {
        let tasks = Tasks::new(Handle::current());
        tasks.spawn("steady", std::future::pending());
        assert!(tasks.work().spawn(async { panic!("a defect") }).await.is_err());
        assert!(timeout(Duration::from_millis(50), tasks.first_ended()).await.is_err(), "work may end");
    }
}
