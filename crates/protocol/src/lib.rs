//! The types of Sealwire's protocol, version 1, which `docs/protocol.md` describes: requests, replies and events, over
//! HTTP and over the socket, in both encodings. The server, the load generator and clients in Rust share this crate, so
//! every type can be serialized and deserialized.
//!
//! | Look for | In |
//! | --- | --- |
//! | encodings and subprotocols | [`codec`] |
//! | requests and replies of the socket, the list of ops | [`frame`] |
//! | signing in over HTTP, `session.*` ops | [`auth`] |
//! | `devices.*` ops | [`devices`] |
//! | the lock of an account, approvals | [`approvals`] |
//! | `users.*` and `account.*` ops | [`users`] |
//! | `access.*` and `blocks.*` ops, access keys | [`access`] |
//! | `keys.*` ops, bundles, suites | [`keys`] |
//! | `messages.*` ops, message content | [`messages`] |
//! | events | [`events`] |
//! | errors | [`error`], their codes and the close codes in [`codes`] |
//! | limits that clients must respect | [`limits`] |
//! | `/healthz`, `/readyz` | [`health`] |
//! | ids, times, strict values | [`ids`], [`time`], [`value`] |
//!
//! Requests are read strictly: an array is not accepted for a map, nor the `bin` of `MessagePack` for a list or text;
//! `bin` is used only for message content. Replies, events and errors are read leniently, so that a client understands
//! a newer server: unknown fields are ignored, and unknown names become [`value::Named::Unknown`].
//!
//! The types check only the form of values; the server checks everything else. The crate does no I/O and depends on no
//! async runtime.

pub mod access;
pub mod approvals;
pub mod auth;
pub mod codec;
pub mod codes;
pub mod devices;
pub mod error;
pub mod events;
pub mod frame;
pub mod health;
pub mod ids;
pub mod keys;
pub mod limits;
pub mod messages;
pub mod push;
pub mod time;
pub mod users;
pub mod value;

pub use codec::Codec;
pub use codes::{CloseCode, Code, ProtocolFault};
pub use time::Timestamp;

#[cfg(test)]
mod shapes;
