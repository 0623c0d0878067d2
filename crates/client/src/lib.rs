#![doc = include_str!("../README.md")]

mod approval;
mod client;
mod driver;
mod error;
mod events;
mod held_keys;
mod http;
mod inbox;
mod liveness;
mod message;
mod options;
mod outbox;
mod pool_versions;
mod proof_of_work;
mod random;
mod reconnect;
mod server;
mod session;
mod storage;

pub use approval::{Approval, ApprovalState, SignIn};
pub use client::{Answer, Claim, ClaimRequest, Client, State};
pub use error::{HttpError, InvalidUrl, RequestError, StorageError};
pub use events::{Event, Events};
pub use held_keys::HeldKeys;
pub use message::{Ciphertext, Message, Outgoing, Prepared, Sent};
pub use options::{Direction, Options};
pub use reconnect::End;
pub use sealwire_protocol as protocol;
pub use sealwire_protocol::{
    Code, Codec, Timestamp,
    access::{AccessKey, Strangers},
    auth::CodePurpose,
    ids::{ApprovalId, ChallengeId, ClaimId, DeviceId, MessageId, SessionId, UserId},
};
pub use server::{Challenge, Server, SignInRequest};
pub use session::Session;
pub use storage::{FileStorage, MemoryStorage, Record, Storage};
#[cfg(feature = "tls")]
pub use tokio_rustls::rustls;

#[doc = include_str!("recipes.md")]
pub mod recipes {}
