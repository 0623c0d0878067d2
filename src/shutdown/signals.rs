//! Handles SIGTERM and SIGINT.

use std::{convert::Infallible, io, process, thread, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
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

/// The handling of signals while the server starts.
pub struct StartSignals(oneshot::Sender<()>);

impl StartSignals {
    /// Leaves signals to the server.
    pub fn started(self) {
        // Fails only if the thread has ended, which then handles no signals.
        let _ = self.0.send(());
    }
}

impl Signals {
    /// Installs the signal handlers. Must be called in a Tokio runtime.
    ///
    /// # Errors
    /// If the operating system refuses a handler.
    pub fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Ends the process with `exit_code` at the first signal, so that every wait of a start or a command ends with it.
    /// Call [`StartSignals::started`] on the result once the server handles signals itself; keep it until then.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn end_start(exit_code: i32) -> io::Result<StartSignals> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let mut signals = {
            // The handlers are installed before this returns.
            let _guard = runtime.enter();
            Self::new()?
        };
        let (started, has_started) = oneshot::channel();
        thread::Builder::new().name("start signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    _ = has_started => {}
                    () = signals.next() => {
                        tracing::info!("stopped by a signal");
                        process::exit(exit_code);
                    }
                }
            });
        })?;
        Ok(StartSignals(started))
    }

    /// Stops the server gracefully at the first signal. A second signal ends the process immediately, with exit code 1.
    /// Must run in an actix system.
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
