//! What the two edges, HTTP and the socket, share. Requests of the protocol become values of the domain here, once, and
//! results become replies; everything that is refused gets its code, status and details.
//!
//! | Module | Responsible for |
//! | --- | --- |
//! | `error` | what the edges refuse, and the one mapping to the protocol's errors |
//! | `response` | errors as HTTP responses |
//! | `accounts`, `keys`, `messages` | requests and replies, by area |
//! | `events` | events |
//! | `bearer`, `client_address`, `origins` | who is behind an HTTP request |

pub mod accounts;
mod bearer;
mod client_address;
mod error;
pub mod events;
pub mod keys;
pub mod messages;
mod origins;
mod response;

pub use bearer::bearer_token;
pub use client_address::{client_address, is_proxy};
pub use error::{EdgeError, Problem};
pub use origins::Origins;
