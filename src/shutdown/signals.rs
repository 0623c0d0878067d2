//! Handles SIGTERM and SIGINT.

use std::{convert::Infallible, io, process, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};

use super::Stopper;

/// Signals within this time after the first count as repetitions of it. Programs that signal both a process and its
/// group, such as `timeout`, send it twice, and closing a terminal adds another.
const REPEAT_WINDOW: Duration = Duration::from_millis(100);

/// The handlers of SIGTERM and SIGINT (Ctrl-C).
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs the signal handlers. Must be called in a Tokio runtime.
    ///
    /// # Errors
    /// If the operating system refuses a handler.
    pub fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Stops the server gracefully at the first signal, and ends the process with exit code 1 at the second. Never
    /// returns. Must run in an actix system.
    pub async fn stop(mut self, stopper: Stopper) -> Infallible {
        self.next().await;
        actix_rt::spawn(async move { stopper.stop().await });
        self.second().await;
        tracing::warn!("received a second signal; exiting immediately");
        process::exit(1)
    }

    /// Waits for a signal that is not a repetition of the first.
    async fn second(&mut self) {
        let window = sleep(REPEAT_WINDOW);
        tokio::pin!(window);
        loop {
            tokio::select! {
                // Signals are checked first: one sent within the window is a repetition, even if this task sees it
                // later.
                biased;
                () = self.next() => {}
                () = &mut window => return self.next().await,
            }
        }
    }

    /// Waits for the next signal of either kind.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
