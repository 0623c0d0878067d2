//! The WebSocket transport over real sockets: the production listener with handlers made for the tests.

mod client;
mod messages;
mod pressure;
mod server;
mod upgrade;

/// Waits for a condition.
async fn eventually(condition: impl Fn() -> bool) {
    crate::support::eventually("the transport reaches the expected state", || async { condition().then_some(()) })
        .await;
}
