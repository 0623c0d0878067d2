//! Every shape of Sealwire's protocol, version 1, as `docs/protocol.md` describes it: what clients send and what the
//! server answers, over HTTP and over the socket, in both encodings. The server, the load generator and clients in Rust
//! share it, so each type can be written and read.
//!
//! | Look for | In |
//! | --- | --- |
//! | encodings and subprotocols | [`codec`] |
//! | requests and replies of the socket, the list of ops | [`frame`] |
//! | signing in over HTTP, `session.*` ops | [`auth`] |
//! | `devices.*` ops | [`devices`] |
//! | `users.*` and `account.*` ops | [`users`] |
//! | `keys.*` ops, bundles, suites | [`keys`] |
//! | `messages.*` ops, message content | [`messages`] |
//! | events | [`events`] |
//! | errors | [`error`], their codes and the close codes in [`codes`] |
//! | bounds that clients must keep | [`limits`] |
//! | `/healthz`, `/readyz` | [`health`] |
//! | ids, times, strict values | [`ids`], [`time`], [`value`] |
//!
//! Requests are read strictly: only maps are maps, only text is text. The `bin` of `MessagePack` is neither, and holds
//! message content alone. Replies, events and errors are read leniently, so that a client understands a newer server:
//! unknown fields are ignored and unknown words become [`value::Named::Unknown`].
//!
//! Types here say how things are written. What a request may ask for beyond its form is the server's concern. There is
//! no I/O and no dependency on a runtime.

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
pub mod time;
pub mod users;
pub mod value;

pub use codec::Codec;
pub use codes::{CloseCode, Code};
pub use time::Timestamp;

#[cfg(test)]
mod shapes;
