//! Work: the tasks that a stopping server waits for.

use std::future::Future;

use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// Spawns and counts tasks that end by themselves, such as requests and mails. Clones share the count.
#[derive(Clone)]
pub struct Work {
    runtime: Handle,
    tracker: TaskTracker,
    /// Cancelled when the server waits for work to finish.
    ending: CancellationToken,
}

impl Work {
    /// Creates a spawner on a runtime.
    #[must_use]
    pub fn new(runtime: Handle) -> Self {
        Self { runtime, tracker: TaskTracker::new(), ending: CancellationToken::new() }
    }

    /// Spawns a task. It runs to completion even if the handle is dropped.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.tracker.spawn_on(work, &self.runtime)
    }

    /// Like [`Self::spawn`], but runs the task on the thread of the caller, which must be that of an actix worker. The task
    /// is dropped if that worker stops.
    pub fn spawn_local<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        self.tracker.spawn_local(work)
    }

    /// Counts as a task until it is dropped, for parts of background tasks that a stopping server waits for.
    pub fn begin(&self) -> TaskTrackerToken {
        self.tracker.token()
    }

    /// Waits until a server that is stopping waits for its work to finish. Work that pauses should then continue at once.
    pub async fn ending(&self) {
        self.ending.cancelled().await;
    }

    /// Ends pauses (see [`Self::ending`]), and waits until all work has finished.
    pub async fn finished(&self) {
        self.ending.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// The number of unfinished tasks.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.tracker.len()
    }

    /// The runtime that the work runs on.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn finishing_waits_for_all_work_and_ends_its_pauses() {
        let work = Work::new(Handle::current());
        let waiting = work.clone();
        let pausing = work.spawn(async move { waiting.ending().await });
        assert!(timeout(Duration::from_millis(50), work.ending()).await.is_err(), "not before the end");
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        work.spawn(async { released.await.unwrap() });
        work.spawn(async { panic!("a defect") });
        assert!(timeout(Duration::from_millis(50), work.finished()).await.is_err());
        timeout(SOON, pausing).await.unwrap().unwrap();
        assert!(timeout(Duration::from_millis(50), work.finished()).await.is_err());
        release.send(()).unwrap();
        assert_eq!(timeout(SOON, work.finished()).await, Ok(()));
        assert_eq!(work.unfinished(), 0);
    }

    #[tokio::test]
    async fn work_on_the_own_thread_is_waited_for_too() {
        let test = async {
            let work = Work::new(Handle::current());
            let (release, released) = tokio::sync::oneshot::channel::<()>();
            work.spawn_local(async { released.await.unwrap() });
            assert_eq!(work.unfinished(), 1);
            let waiting = tokio::task::spawn_local({
                let work = work.clone();
                async move { work.finished().await }
            });
            release.send(()).unwrap();
            timeout(SOON, waiting).await.unwrap().unwrap();
            assert_eq!(work.unfinished(), 0);
        };
        tokio::task::LocalSet::new().run_until(test).await;
    }
}
