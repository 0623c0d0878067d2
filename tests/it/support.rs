//! Helpers for the tests: servers (in this process or as processes of their own), signed-in devices, sockets and real
//! keys.

pub mod app_push;
pub mod chromium;
pub mod claiming;
pub mod cluster;
pub mod counters;
pub mod http;
pub mod keys;
pub mod mail_server;
pub mod mailing;
pub mod pace;
mod packed;
pub mod problem;
pub mod proxy;
pub mod push_service;
pub mod raw;
pub mod server;
pub mod services;
pub mod socket;
pub mod traffic;
pub mod work;

use std::{
    future::Future,
    time::{Duration, Instant},
};

pub use cluster::{Cluster, RowLock};
pub use http::{Person, sign_in, sign_in_as};
pub use keys::KeySet;
pub use mailing::Member;
pub use server::{Server, ServerProcess, Settings, TestApp};
pub use services::Services;
pub use socket::{Codec, Socket};

/// How long a test waits for a condition before it fails. Generous, because no test measures it.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Polls the condition until it returns `Some`, and returns the value. Fails after [`PATIENCE`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out waiting until: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Returns the error code of a failed request.
pub fn code(error: &serde_json::Value) -> &str {
    error["code"].as_str().unwrap_or("(no error code)")
}
