//! Logging to standard error: readable text in a terminal, JSON otherwise. `RUST_LOG` sets the levels.
//!
//! Sealwire's own log statements identify devices, sessions and clients by id and address, and never contain a token, a
//! code, an e-mail address or a key. Libraries log data and statements at `debug` and `trace`, so these levels are off
//! for them, whatever `RUST_LOG` says.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::IsTerminal,
    panic::PanicHookInfo,
};

use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// The levels if `RUST_LOG` is unset or empty. actix-http is off because it logs every malformed request of a client as
/// an error; sqlx repeats PostgreSQL's notices and warns of slow statements, which the metrics show.
const DEFAULT_LEVELS: &str = "info,actix_http=off,actix_server=warn,sqlx=error";

/// `RUST_LOG` is invalid. It is an error because ignoring it would silently omit what the operator asked for.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("RUST_LOG takes a level (error, warn, info, debug, trace, off) or PART=LEVEL,…, such as sealwire=debug,info")]
pub struct WrongLevels;

/// Starts logging for the process. `levels` is the value of `RUST_LOG`. Does nothing if logging has been started
/// already.
///
/// # Errors
/// If the levels are invalid.
pub fn init(levels: Option<&str>) -> Result<(), WrongLevels> {
    let filter = filter(levels)?;
    let registry = tracing_subscriber::registry().with(filter).with(trusted());
    // If standard error is closed, a failed write must not panic in the task that logs.
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
    // A single word that is not a level would be taken for a target, and turn all other targets off. It is most likely
    // a typo.
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

/// The most verbose levels allowed, whatever `RUST_LOG` says: all for Sealwire, `info` for libraries.
fn trusted() -> Targets {
    Targets::new().with_target("sealwire", LevelFilter::TRACE).with_default(LevelFilter::INFO)
}

/// Logs a panic. Only a constant message is logged: one formatted at run time could contain secrets, so for it only the
/// location is logged.
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
    fn valid_levels_are_accepted_and_typos_are_refused() {
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
