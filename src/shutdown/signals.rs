//! The operating system's signals to stop.

use std::{convert::Infallible, io, process, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};

use super::Stopper;

/// Signals within this time after the first are one order: supervisors that signal a process and its group, such as
/// `timeout`, deliver it twice, and a terminal that closes adds a signal of its own.
const ECHO: Duration = Duration::from_millis(100);

/// SIGTERM and SIGINT (Ctrl-C).
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over from the operating system. Needs a Tokio runtime.
    ///
    /// # Errors
    /// If the operating system does not allow it.
    pub fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Stops the server softly at the first signal. A second one ends the process at once, with exit code 1. Needs an
    /// actix system.
    pub async fn stop(mut self, stopper: Stopper) -> Infallible {
        self.next().await;
        actix_rt::spawn(async move { stopper.stop().await });
        self.second().await;
        tracing::warn!("a second signal: ending at once");
        process::exit(1)
    }

    /// Waits for a signal that is not an echo of the first.
    async fn second(&mut self) {
        let echoes = sleep(ECHO);
        tokio::pin!(echoes);
        loop {
            tokio::select! {
                // What came before the end of that time is an echo, however late it is looked at.
                biased;
                () = self.next() => {}
                () = &mut echoes => return self.next().await,
            }
        }
    }

    /// Waits for the next of either.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
