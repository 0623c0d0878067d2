//! Upgraded connections over real sockets, through the production listener.

mod client;
mod messages;
mod pressure;
mod server;
mod upgrade;

/// Waits for a condition.
async fn eventually(condition: impl Fn() -> bool) {
    crate::support::eventually("what the transport should do", || async { condition().then_some(()) }).await;
}
