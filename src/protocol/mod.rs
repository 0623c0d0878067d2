//! Protocol v1 as clients see it: frames and their codec, the parameters of every op, and the one table of codes.

pub mod code;
pub mod codec;
pub mod frame;
pub mod http;
pub mod params;

pub use code::{CloseCode, Code, Problem};
pub use codec::Codec;
