//! What the two edges, HTTP and the socket, share: converts the protocol's requests to domain values and results to
//! replies, and maps errors to error codes, statuses and details.
//!
//! | Module | Responsible for |
//! | --- | --- |
//! | `error` | errors, and their mapping to the error codes of the protocol |
//! | `response` | errors as HTTP responses |
//! | `access`, `accounts`, `keys`, `messages`, `push` | requests and replies, by subject |
//! | `events` | events |
//! | `bearer`, `client_address`, `origins` | token, client address and browser origin of an HTTP request |

pub mod access;
pub mod accounts;
mod bearer;
mod client_address;
mod error;
pub mod events;
pub mod keys;
pub mod messages;
mod origins;
pub mod push;
mod response;

pub use bearer::bearer_token;
pub use client_address::{client_address, is_proxy};
pub use error::{EdgeError, Problem};
pub use origins::Origins;
