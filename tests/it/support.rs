//! What tests are built from: servers (in this process and as a process of their own), people who sign in, sockets, and
//! real keys.

pub mod chromium;
pub mod claiming;
pub mod cluster;
pub mod couriers;
pub mod http;
pub mod keys;
pub mod mail_server;
pub mod mailing;
#[path = "../../examples/tour/packed.rs"]
mod packed;
pub mod problem;
pub mod proxy;
pub mod raw;
pub mod server;
pub mod services;
pub mod socket;

use std::{
    future::Future,
    time::{Duration, Instant},
};

pub use cluster::{Cluster, Holder};
pub use http::{Person, sign_in, sign_in_as};
pub use keys::KeySet;
pub use mailing::Member;
pub use server::{Server, ServerProcess, Settings, TestApp};
pub use services::Services;
pub use socket::{Codec, Socket};

/// How long a condition may take to come true before the test fails. Generous: it is not what is tested.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until the condition gives something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The error code of a failed request.
pub fn code(error: &serde_json::Value) -> &str {
    error["code"].as_str().unwrap_or("an error without a code")
}
