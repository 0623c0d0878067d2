//! Why a server could not be built or run.

use std::{io, net::SocketAddr};

use thiserror::Error;

use super::secret_file::SecretFileError;
use crate::{service::MailerError, store::StoreError};

/// Why a server could not be built, or stopped running.
#[derive(Debug, Error)]
pub enum AppError {
    /// The database cannot be opened or migrated.
    #[error("cannot open the database: {0}")]
    Store(#[from] StoreError),
    /// `bus.url` is neither `local` nor a Redis URL.
    #[error("bus.url is not the address of a Redis: {0}")]
    Bus(#[source] redis::RedisError),
    /// The mailer cannot be set up.
    #[error(transparent)]
    Mailer(#[from] MailerError),
    /// The server's secret cannot be read or made.
    #[error(transparent)]
    Secret(#[from] SecretFileError),
    /// A port cannot be bound, or the system's limits do not allow the listener.
    #[error("cannot serve on {setting} = {bind}: {source}")]
    Listen {
        /// The setting that has the address.
        setting: &'static str,
        /// The address.
        bind: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A listener failed while it ran.
    #[error("the listener failed: {0}")]
    Server(#[source] io::Error),
    /// A listener or a background task that the server needs ended. The rest has been stopped in good order.
    #[error("a background task ended: {0}")]
    TaskEnded(&'static str),
    /// The operating system gives no randomness or no threads.
    #[error("the system gives no randomness or threads: {0}")]
    System(#[source] io::Error),
}
