//! Logging: human in a terminal, JSON elsewhere, on standard error. `RUST_LOG` sets the levels.
//!
//! Our own log statements name devices, sessions and clients by id and address, and never hold a token, a code, an e-mail
//! address or a key. Libraries make no such promise: at their lower levels they print the bytes and statements that pass
//! through them. So those levels of theirs are off, whatever `RUST_LOG` says.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::IsTerminal,
    panic::PanicHookInfo,
};

use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// The levels if `RUST_LOG` is unset or empty. actix-http reports every malformed request as an error of its own, which is
/// the client's and not the operator's.
const DEFAULT_LEVELS: &str = "info,actix_http=off,actix_server=warn";

/// `RUST_LOG` cannot be parsed. To ignore it would leave out of the log what somebody asked for.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("RUST_LOG takes a level (error, warn, info, debug, trace, off) or PART=LEVEL,…, such as sealwire=debug,info")]
pub struct WrongLevels;

/// Starts logging for the process, at the levels in `RUST_LOG`. Does nothing if it has been started already.
///
/// # Errors
/// If the levels are invalid.
pub fn init(levels: Option<&str>) -> Result<(), WrongLevels> {
    let filter = filter(levels)?;
    let registry = tracing_subscriber::registry().with(filter).with(trusted());
    // If standard error is closed, writing to it must not end the tasks that do.
    let layer = || fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let started = if std::io::stderr().is_terminal() {
        registry.with(layer()).try_init()
    } else {
        registry.with(layer().json().with_span_list(false)).try_init()
    };
    if started.is_ok() {
        std::panic::set_hook(Box::new(report_panic));
    }
    Ok(())
}

fn filter(levels: Option<&str>) -> Result<EnvFilter, WrongLevels> {
    let levels = levels.map(str::trim).filter(|levels| !levels.is_empty()).unwrap_or(DEFAULT_LEVELS);
    // A word alone that is not a level would pass for the name of a part, and silence all others. Most likely it is a typo.
    let is_typo = |part: &str| {
        part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && part.parse::<LevelFilter>().is_err()
            && part != "sealwire"
    };
    if levels.split(',').map(str::trim).any(|part| !part.is_empty() && is_typo(part)) {
        return Err(WrongLevels);
    }
    EnvFilter::builder().parse(levels).map_err(|_| WrongLevels)
}

/// The lowest levels that are logged at all: every level of our own, and of libraries what they mean for operators.
fn trusted() -> Targets {
    Targets::new().with_target("sealwire", LevelFilter::TRACE).with_default(LevelFilter::INFO)
}

/// Logs a panic. A message that was formatted at run time may hold anything, so only one that stands in the source is
/// logged; the place has to do for the others.
fn report_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string);
    let message = panic.payload().downcast_ref::<&'static str>();
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(place, message, backtrace, "a defect: a task has panicked");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_applied_or_refused() {
        for good in [
            "",
            "warn",
            "INFO",
            "off",
            "info,",
            "sealwire=debug",
            "sealwire=debug,info",
            "lettre::transport=debug,info",
            "sealwire",
            "lettre::transport",
            "trace,sqlx=trace,actix_http=off",
        ] {
            assert!(filter(Some(good)).is_ok(), "{good}");
        }
        for bad in ["wran", "info,[bad", "sealwire=loud", "info,debgu", "sealwire=debug;info", "a=b=c"] {
            assert_eq!(filter(Some(bad)).err(), Some(WrongLevels), "{bad}");
        }
        assert_eq!(filter(None).unwrap().to_string(), filter(Some(DEFAULT_LEVELS)).unwrap().to_string());
    }
}
