//! The runtimes besides those of the actix workers.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::tasks::Tasks;

/// Threads for the batch workers at most. They plan what the database then does.
const BATCH_THREADS: usize = 4;

/// Own the database connections and the bus, so that none of these depends on an actix worker that stops.
pub struct Runtimes {
    /// For the store, the bus and the use cases.
    store: Runtime,
    /// For the batch workers and their connections: hundreds of requests wait for each of their transactions.
    batches: Runtime,
}

impl Runtimes {
    /// Starts their threads.
    ///
    /// # Errors
    /// If the operating system has no threads to give.
    pub fn start() -> io::Result<Self> {
        Ok(Self {
            store: build("sealwire-store", cores())?,
            batches: build("sealwire-batch", cores().min(BATCH_THREADS))?,
        })
    }

    /// Spawns background tasks and work on them.
    pub fn tasks(&self) -> Tasks {
        Tasks::new(self.store.handle().clone()).with_batch_runtime(self.batches.handle().clone())
    }

    /// The runtime of store, bus and use cases.
    pub fn store(&self) -> &Handle {
        self.store.handle()
    }

    /// Stops both without waiting for what still runs.
    pub fn stop(self) {
        self.batches.shutdown_background();
        self.store.shutdown_background();
    }
}

fn build(name: &str, threads: usize) -> io::Result<Runtime> {
    Builder::new_multi_thread().thread_name(name).worker_threads(threads).enable_all().build()
}

/// Cores of this machine, 2 if it does not say.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}
