//! What runs on the runtimes of store and bus: background tasks, which never end, and [`Work`], which does.
//!
//! The server cannot do without any of its background tasks. Each has a name, and its end, by a panic or by returning, is
//! an alarm: a server without it would go on half dead.

mod work;

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{runtime::Handle, sync::watch, task::JoinHandle};

pub use self::work::Work;

/// Spawns background tasks and notices those that end. Clones share the alarm.
#[derive(Clone)]
pub struct Tasks {
    work: Work,
    /// Runs the batch workers.
    batches: Handle,
    /// The first task that ended.
    ended: Arc<watch::Sender<Option<&'static str>>>,
    names: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Tasks {
    /// Tasks and work on one runtime. There are none yet.
    #[must_use]
    pub fn new(runtime: Handle) -> Self {
        let (batches, ended) = (runtime.clone(), Arc::new(watch::Sender::new(None)));
        Self { work: Work::new(runtime), batches, ended, names: Arc::default() }
    }

    /// Runs the batch workers on a runtime of their own.
    #[must_use]
    pub fn with_batch_runtime(self, batches: Handle) -> Self {
        Self { batches, ..self }
    }

    /// Starts a task that runs for as long as the server does.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.spawn_on(self.work.runtime(), name, task)
    }

    /// Starts a batch worker. Many requests wait for it, so it does not queue up behind their tasks.
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

    /// Spawns work on the runtime of the tasks.
    #[must_use]
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// Waits for a task to end, and returns its name. When the server stops in good order, nobody waits any more.
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
    async fn nobody_is_alarmed_while_all_run() {
        let tasks = Tasks::new(Handle::current());
        tasks.spawn("steady", std::future::pending());
        assert!(tasks.work().spawn(async { panic!("a defect") }).await.is_err());
        assert!(timeout(Duration::from_millis(50), tasks.first_ended()).await.is_err(), "work may end");
    }
}
