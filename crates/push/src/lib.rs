#![doc = include_str!("../README.md")]
//!
//! # Why hyper
//!
//! The client is hyper with a connector of its own. The connector sees every address that is connected to, literal or
//! looked up, so one check there covers both; and the size of HTTP/1 response heads can be limited, which bounds the
//! memory of a thousand hostile answers to a few megabytes.

mod address;
mod apns;
mod endpoint;
mod fcm;
mod http;
mod jwt;
mod key_text;
mod notification;
mod origins;
mod outcome;
mod record;
mod sender;
mod settings;
mod target;
mod web_push;

pub use address::is_public;
pub use apns::ApnsKey;
pub use endpoint::EndpointRules;
pub use fcm::ServiceAccount;
pub use http::{Resolve, Resolving, SystemResolver};
pub use key_text::KeyError;
pub use notification::{Nonce, Notification, Payload, Urgency};
pub use outcome::{Outcome, Reason};
pub use sender::{Sender, SetupError, Usage};
pub use settings::{ApnsSettings, FcmSettings, Limits, Settings, WebPushSettings};
pub use target::{ApnsTarget, FcmTarget, Kind, Target, TargetError, UnknownKind, WebPushTarget};
pub use tokio_rustls::rustls::pki_types::CertificateDer;
pub use web_push::VapidKey;
