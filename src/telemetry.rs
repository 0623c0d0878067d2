//! Logging: human in a terminal, JSON elsewhere, on standard error. `RUST_LOG` sets the levels.
//!
//! Our own log statements name devices, sessions and clients by id and address, and never hold a token, a code, an e-mail
//! address or a key. Libraries give no such promise: at their lower levels they print the bytes and statements that pass
//! through them. So those levels of theirs are off, whatever `RUST_LOG` says.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::IsTerminal,
    panic::PanicHookInfo,
};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// The levels where `RUST_LOG` says nothing. actix-http reports every malformed request as an error of its own, which is
/// the client's and not the operator's.
const DEFAULT_LEVELS: &str = "info,actix_http=off,actix_server=warn";

/// Starts logging for the process. Does nothing where it has been started already.
pub fn init() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_LEVELS));
    let registry = tracing_subscriber::registry().with(filter).with(trusted());
    // A log that nobody takes any more must not end the tasks that write to it.
    let layer = || fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let started = if std::io::stderr().is_terminal() {
        registry.with(layer()).try_init()
    } else {
        registry.with(layer().json().with_span_list(false)).try_init()
    };
    if started.is_ok() {
        std::panic::set_hook(Box::new(report_panic));
    }
}

/// The most that anybody may say: everything of our own, and of libraries what they mean for operators.
fn trusted() -> Targets {
    Targets::new().with_target("sealwire", LevelFilter::TRACE).with_default(LevelFilter::INFO)
}

/// A panic as a line of the log. A message that was put together at run time may hold anything, so only one that stands in
/// the source is repeated; the place tells the rest.
fn report_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string);
    let message = panic.payload().downcast_ref::<&'static str>();
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(place, message, backtrace, "a defect: a task has panicked");
}
