//! Protocol v1 as clients see it: frames and their codec, the parameters of every op, events, the one table of
//! codes, and what both edges share of HTTP.

pub mod client;
pub mod code;
pub mod codec;
pub mod event;
pub mod frame;
pub mod http;
pub mod params;
pub mod value;

pub use code::{CloseCode, Code, Problem};
pub use codec::Codec;
