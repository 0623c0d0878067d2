//! Serves WebSocket connections: the upgrade, the transport below the WebSocket protocol, and an actor for each
//! connected device.

mod closing;
mod delivery;
mod device;
mod flow;
mod hub;
mod message_reader;
mod networks;
mod node;
mod ops;
mod outbox;
mod outbox_body;
mod read_gate;
mod request_rate;
mod seats;
mod shares;
pub mod transport;
mod upgrade;

pub use hub::Hub;
pub use networks::{NetworkLimits, Networks};
pub use node::Node;
pub use seats::Seats;
pub use shares::SharedBudget;
pub use upgrade::open;
