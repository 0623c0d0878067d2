//! The errors of building and running a server.

use std::{io, net::SocketAddr};

use thiserror::Error;

use super::secret_file::SecretFileError;
use crate::{bus::BusUrlError, service::MailerError, store::StoreError};

/// Why a server could not be built, or stopped running.
#[derive(Debug, Error)]
pub enum AppError {
    /// The database cannot be opened or migrated.
    #[error("cannot open the database: {0}")]
    Store(#[from] StoreError),
    /// The URL of the database is invalid.
    #[error(transparent)]
    DatabaseUrl(StoreError),
    /// `bus.url` is neither `local` nor the URL of a Redis server or of sentinels.
    #[error("bus.url takes local, {0}")]
    Bus(#[source] BusUrlError),
    /// `check-config --connect` cannot reach Redis.
    #[error("cannot reach the Redis of bus.url: {0}")]
    BusUnreachable(String),
    /// The address for the test mail of `check-config --mail-to` is invalid.
    #[error("--mail-to takes a mail address, such as operator@chat.example")]
    TestAddress,
    /// The mailer cannot be set up or, in `check-config`, cannot send a mail.
    #[error(transparent)]
    Mailer(#[from] MailerError),
    /// A key for a push service is none. `config` has checked them.
    #[error("a key for a push service: {0}")]
    PushKey(#[from] sealwire_push::KeyError),
    /// The client for push services cannot be set up.
    #[error("cannot set up the client for push services: {0}")]
    Push(#[from] sealwire_push::SetupError),
    /// The server secret cannot be read or created.
    #[error(transparent)]
    Secret(#[from] SecretFileError),
    /// A port cannot be bound, or the operating system does not allow the listener.
    #[error("cannot listen on {setting} = {bind}: {source}")]
    Listen {
        /// The setting that contains the address, such as `server.bind`.
        setting: &'static str,
        /// The address.
        bind: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A listener failed while running.
    #[error("a listener failed: {0}")]
    Server(#[source] io::Error),
    /// A listener or a background task, with its name, ended unexpectedly. The rest of the server was stopped
    /// gracefully.
    #[error("a listener or background task ended unexpectedly: {0}")]
    TaskEnded(&'static str),
    /// The operating system cannot start threads.
    #[error("cannot start threads: {0}")]
    System(#[source] io::Error),
}
