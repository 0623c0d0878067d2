//! The Tokio runtimes of a node, apart from those of the actix workers.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::tasks::Tasks;

/// Maximum number of threads for batch workers.
const BATCH_THREADS: usize = 4;

/// The runtimes that own the database connections and the bus. They outlive the actix workers, which stop first.
pub struct Runtimes {
    /// For the store, the bus and the use cases.
    store: Runtime,
    /// For the batch workers and their database connections. They have their own threads, because hundreds of requests
    /// wait for each of their transactions.
    batches: Runtime,
}

impl Runtimes {
    /// Starts both runtimes and their threads.
    ///
    /// # Errors
    /// If the operating system cannot start a thread.
    pub fn start() -> io::Result<Self> {
        Ok(Self {
            store: build("sealwire-store", cores())?,
            batches: build("sealwire-batch", cores().min(BATCH_THREADS))?,
        })
    }

    /// Returns a handle that spawns background tasks and work on these runtimes.
    pub fn tasks(&self) -> Tasks {
        Tasks::new(self.store.handle().clone()).with_batch_runtime(self.batches.handle().clone())
    }

    /// The runtime of the store, the bus and the use cases.
    pub fn store(&self) -> &Handle {
        self.store.handle()
    }

    /// Stops both runtimes without waiting for their tasks.
    pub fn stop(self) {
        self.batches.shutdown_background();
        self.store.shutdown_background();
    }
}

fn build(name: &str, threads: usize) -> io::Result<Runtime> {
    Builder::new_multi_thread().thread_name(name).worker_threads(threads).enable_all().build()
}

/// The number of threads that can run in parallel on this machine; 2 if it is unknown.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}
