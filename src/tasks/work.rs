//! Work: what a server that stops waits for.

use std::future::Future;

use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Spawns work that ends by itself, such as requests and mails, and counts it. Clones share the count.
#[derive(Clone)]
pub struct Work {
    runtime: Handle,
    tracker: TaskTracker,
    ending: CancellationToken,
}

impl Work {
    /// Work on a runtime. None is under way yet.
    #[must_use]
    pub fn new(runtime: Handle) -> Self {
        Self { runtime, tracker: TaskTracker::new(), ending: CancellationToken::new() }
    }

    /// Runs it to its end, even if nobody waits for the result any more.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.tracker.spawn_on(work, &self.runtime)
    }

    /// Waits until the server is about to end and only waits for work: pausing work should go on at once.
    pub async fn ending(&self) {
        self.ending.cancelled().await;
    }

    /// Resumes the work that pauses, and waits until none is under way.
    pub async fn finished(&self) {
        self.ending.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// The number of pieces of work under way.
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
    async fn work_is_waited_for_even_if_it_panics_and_resumed_if_it_pauses() {
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
}
